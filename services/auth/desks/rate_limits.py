"""Rate limits of every level: organisation, project, key.

A change is pushed like a change of each key that it holds for.
"""

# ruff: noqa: N802 - methods are named as the contract names them

from collections.abc import Callable, Sequence
from dataclasses import replace

from onegate.auth.v1 import grant_pb2, rate_limit_service_pb2_grpc
from onegate.auth.v1 import rate_limit_service_pb2 as pb
from services.auth import key_rows, keys
from services.auth.administration import Administration, Context, Deed, conflict, missing, refused
from services.auth.desks import paging
from services.auth.desks.levels import keep_level
from services.auth.desks.project_policy import (
    LIMITS_MAX,
    set_project_limit,
    unset_project_limit,
)
from services.auth.objects import RateLimitRecord
from services.auth.policy import RateLimit
from services.auth.rate_limits import (
    Scope,
    changed,
    is_empty,
    meanings,
    message,
    model_of,
    rows,
    unlimited,
    with_row,
    without,
)
from services.auth.records import KeyRecord, Slice

Edit = Callable[[RateLimitRecord], RateLimitRecord]


class RateLimitService(rate_limit_service_pb2_grpc.RateLimitServiceServicer):
    """Administers rate limits."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def ListRateLimits(
        self, request: pb.ListRateLimitsRequest, context: Context
    ) -> pb.ListRateLimitsResponse:
        """The rate limits of one level, by model."""
        part = paging.part(request.page, order="model")
        after = model_of(request.page.after) if request.page.after else ""

        def work(deed: Deed) -> list[RateLimitRecord]:
            found = [row for row in _listed(deed, request.level) if row.model > after]
            return found[: part.size]

        found, has_more = paging.split(await self._administration.read(context, work), part)
        return pb.ListRateLimitsResponse(rate_limits=map(message, found), has_more=has_more)

    async def SetRateLimit(
        self, request: pb.SetRateLimitRequest, context: Context
    ) -> pb.SetRateLimitResponse:
        """Sets numbers of one model pattern."""

        def work(deed: Deed) -> RateLimitRecord:
            level, asked = request.level, request.rate_limit
            if level.project_id and not level.key_id:
                project = deed.active_project("rate_limits.update", level.project_id)
                return set_project_limit(deed, project, asked)
            return _edited(deed, level, "update", asked.id, lambda row: changed(row, asked))

        limit = await self._administration.change(context, work)
        return pb.SetRateLimitResponse(rate_limit=message(limit))

    async def UnsetRateLimit(
        self, request: pb.UnsetRateLimitRequest, context: Context
    ) -> pb.UnsetRateLimitResponse:
        """Takes numbers of one model pattern away."""

        def work(deed: Deed) -> RateLimitRecord:
            level, fields = request.level, request.fields
            if level.project_id and not level.key_id:
                project = deed.active_project("rate_limits.delete", level.project_id)
                return unset_project_limit(deed, project, request.id, fields)
            return _edited(deed, level, "delete", request.id, lambda row: _less(row, fields))

        limit = await self._administration.change(context, work)
        return pb.UnsetRateLimitResponse(rate_limit=message(limit))


def _less(row: RateLimitRecord, fields: Sequence[str]) -> RateLimitRecord:
    if is_empty(row):
        raise missing("rate limit")
    return without(row, fields)


def _listed(deed: Deed, level: pb.RateLimitLevel) -> list[RateLimitRecord]:
    if level.key_id:
        return list(rows(_key(deed, level, "list").policy.rate_limits).values())
    if level.project_id:
        project = deed.project("rate_limits.list", level.project_id)
        part = Slice(size=LIMITS_MAX, ascending=True, order="model")
        return deed.session.select(RateLimitRecord, {"project_id": project.id}, part)
    deed.allow("organization.rate_limits.list")
    return list(rows(deed.organization().policy.rate_limits).values())


def _edited(
    deed: Deed, level: pb.RateLimitLevel, action: str, limit_id: str, edit: Edit
) -> RateLimitRecord:
    """Changes the row of a model in a key's or the organisation's policy."""
    if level.key_id:
        key = _key(deed, level, action)
        if key.revoked_at is not None:
            raise conflict("The key has ended: it can have no limits.", "key_id")
        limits, row = _replaced(key.policy.rate_limits, limit_id, edit, grant_pb2.RATE_SCOPE_KEY)
        said = replace(key, policy=replace(key.policy, rate_limits=limits))
        if said != key:
            kept = key_rows.keep_key(deed.session, said, now=deed.now)
            deed.note(key.id, key, kept, key.project_id or "")
        return row
    deed.allow(f"organization.rate_limits.{action}")
    organization = deed.organization()
    limits, row = _replaced(
        organization.policy.rate_limits, limit_id, edit, grant_pb2.RATE_SCOPE_ORGANIZATION
    )
    policy = replace(organization.policy, rate_limits=limits)
    keep_level(deed, organization, replace(organization, policy=policy))
    return row


def _replaced(
    limits: Sequence[RateLimit], limit_id: str, edit: Edit, scope: Scope
) -> tuple[tuple[RateLimit, ...], RateLimitRecord]:
    model = meanings(model_of(limit_id))[-1]
    row = edit(rows(limits).get(model) or unlimited("", "", model, ""))
    found = with_row(limits, row, scope)
    most = keys.RATE_LIMITS_MAX if scope == grant_pb2.RATE_SCOPE_KEY else LIMITS_MAX
    if len(found) > most:
        raise refused("rate_limit_id", f"is one too many: there may be at most {most} numbers")
    return found, row


def _key(deed: Deed, level: pb.RateLimitLevel, action: str) -> KeyRecord:
    """The key whose limits the caller may see or change. Raises NOT_FOUND, SCOPE_MISSING."""
    if level.project_id:
        deed.project(f"api_keys.rate_limits.{action}", level.project_id)
    key = key_rows.find_key(deed.session, deed.scope, level.key_id)
    place = (key.project_id or "") if key else ""
    deed.allow(f"api_keys.rate_limits.{action}", place)
    is_elsewhere = key is not None and bool(level.project_id) and place != level.project_id
    if key is None or is_elsewhere:
        raise missing("key", "key_id")
    if key.kind == grant_pb2.KEY_KIND_ADMIN:
        raise refused("key_id", "must be a project's key: an admin key calls no models")
    deed.scope = key.organization_id
    return key
