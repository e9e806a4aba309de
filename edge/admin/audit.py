"""The log of administration in OpenAI's shape
(https://platform.openai.com/docs/api-reference/audit-logs). Pure.

An entry carries what OpenAI's does under the name of its type, and beside it the gateway's own:
``address``, ``outcome``, ``reason``, ``before`` and ``after``. What was refused is listed with
``outcome=refused`` or ``outcome=any``: its type is what was tried, not what happened.
"""

from typing import Final

from edge.admin.asked import Asked
from edge.admin.route import AnyRoute, Json, Route, listed, seconds
from edge.endpoints.strict_json import read_object
from onegate.auth.v1 import audit_service_pb2 as pb

_OUTCOMES: Final = {
    "done": pb.AUDIT_OUTCOME_DONE,
    "refused": pb.AUDIT_OUTCOME_REFUSED,
    "any": pb.AUDIT_OUTCOME_ANY,
}
_DEPTH_MAX: Final = 20


def event_json(event: pb.AuditEvent) -> Json:
    """One entry."""
    before, after = _object(event.before_json), _object(event.after_json)
    details: Json = {"id": event.resource_id}
    if after is not None:
        details["data" if before is None else "changes_requested"] = _changes(before, after)
    shown: Json = {
        "id": event.id,
        "object": "organization.audit_log",
        "type": event.type,
        "effective_at": seconds(event.effective_at),
        "actor": _actor(event.actor),
        "address": event.actor.address or None,
        "outcome": "refused" if event.refusal else "done",
        "reason": event.refusal or None,
        "before": before,
        "after": after,
    }
    if event.project_id:
        shown["project"] = {"id": event.project_id}
    if not event.refusal:
        shown[event.type] = details
    return shown


def _object(text: bytes) -> Json | None:
    return read_object(text, depth_max=_DEPTH_MAX) if text else None


def _changes(before: Json | None, after: Json) -> Json:
    """What is new, by field; OpenAI's own words for the fields differ by type."""
    hidden = ("id", "created_at")
    changed = {
        name: value for name, value in after.items() if before is None or before.get(name) != value
    }
    kept = {name: value for name, value in changed.items() if name not in hidden}
    if "name" in kept:
        kept["title"] = kept["name"]
    return kept


def _actor(actor: pb.AuditActor) -> Json:
    user = {"id": actor.user_id, "email": actor.email} if actor.user_id else None
    if not actor.key_id:
        # Somebody who signs in; or the operator, at the gateway's own command line.
        shown = {"ip_address": actor.address or None, **({"user": user} if user else {})}
        return {"type": "session", "session": shown}
    return {"type": "api_key", "api_key": {"id": actor.key_id, "type": "user", "user": user}}


def _list(asked: Asked) -> pb.ListAuditEventsRequest:
    # Organisations have no tenant above them here: what would be its events is theirs.
    asked.filter_flag("tenant_only")
    return pb.ListAuditEventsRequest(
        page=asked.page(20),
        before=asked.filter("before"),
        types=asked.filters("event_types"),
        actor_ids=asked.filters("actor_ids"),
        actor_emails=asked.filters("actor_emails"),
        project_ids=asked.filters("project_ids"),
        resource_ids=asked.filters("resource_ids"),
        from_unix_s=_latest(asked, "effective_at[gte]", "effective_at[gt]"),
        until_unix_s=_earliest(asked, "effective_at[lt]", "effective_at[lte]"),
        outcome=_OUTCOMES[asked.filter_word("outcome", *_OUTCOMES)],
    )


def _latest(asked: Asked, inclusive: str, exclusive: str) -> int | None:
    """From which second on; an exclusive bound begins with the next."""
    bounds = [asked.filter_whole(inclusive), _next(asked.filter_whole(exclusive))]
    return max((bound for bound in bounds if bound is not None), default=None)


def _earliest(asked: Asked, exclusive: str, inclusive: str) -> int | None:
    """Before which second; an inclusive bound ends with the next."""
    bounds = [asked.filter_whole(exclusive), _next(asked.filter_whole(inclusive))]
    return min((bound for bound in bounds if bound is not None), default=None)


def _next(second: int | None) -> int | None:
    return None if second is None else second + 1


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        name="audit_logs.list",
        method="GET",
        path="/v1/organization/audit_logs",
        rpc="AuditService/ListAuditEvents",
        request=_list,
        response=pb.ListAuditEventsResponse,
        answer=lambda answer, _: listed(
            [event_json(event) for event in answer.events], has_more=answer.has_more
        ),
    ),
)
