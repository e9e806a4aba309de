"""The log of administration, shown and checked."""

# ruff: noqa: N802 - methods are named as the contract names them

from datetime import UTC, datetime
from typing import Final

from onegate.auth.v1 import audit_service_pb2 as pb
from onegate.auth.v1 import audit_service_pb2_grpc
from services.auth import audit, keys
from services.auth.administration import Administration, Context, Deed, refused
from services.auth.desks import paging
from services.auth.objects import AuditHeadRecord, AuditRecord
from services.auth.records import Session, Slice

FILTER_VALUES_MAX: Final = 100
CHUNK: Final = 500
"""How many entries are read at once."""

READ_MAX: Final = 20_000
"""How many entries one listing looks through; what is older is found from the last one's id."""

_UNIX_S_MAX: Final = 253_402_300_799


class AuditService(audit_service_pb2_grpc.AuditServiceServicer):
    """Shows the log."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, context: Context
    ) -> pb.ListAuditEventsResponse:
        """Entries of the log."""
        part = paging.part(request.page, before=request.before)
        _check_filters(request)

        def work(deed: Deed) -> list[AuditRecord]:
            deed.allow("audit_logs.list")
            return _found(deed, request, part)

        rows, has_more = paging.split(await self._administration.read(context, work), part)
        return pb.ListAuditEventsResponse(events=map(_message, rows), has_more=has_more)

    async def VerifyAuditLog(
        self, request: pb.VerifyAuditLogRequest, context: Context
    ) -> pb.VerifyAuditLogResponse:
        """Walks the whole chain, a chunk at a time, so that nobody waits for it."""

        def begin(deed: Deed) -> AuditHeadRecord | None:
            deed.allow("audit_logs.verify")
            return deed.session.find(AuditHeadRecord, {"id": audit.HEAD_ID})

        # What is written while the walk goes on is not looked at.
        head = await self._administration.read(context, begin)
        identity = self._administration.identity
        verifier = audit.Verifier(audit.chain_key(identity.pepper.reveal().encode()))
        noted = ""
        while verifier.fault is None and verifier.sequence < (head.sequence if head else 0):
            rows = await identity.store.view(lambda session: _chunk(session, verifier.sequence))
            if not rows:
                break
            for row in rows:
                verifier.take(row)
                if row.sequence == request.noted_sequence:
                    noted = row.mac
                if head is not None and row.sequence == head.sequence:
                    break
        fault = verifier.finish(head)
        if fault is None and request.noted_sequence and noted != request.noted_mac.hex():
            what = "this is not the entry that was noted: the log was replaced or cut"
            fault = audit.Fault(sequence=request.noted_sequence, what=what)
        return pb.VerifyAuditLogResponse(
            intact=fault is None,
            entries=verifier.sequence,
            broken_sequence=fault.sequence if fault else 0,
            fault=fault.what if fault else "",
            head_mac=bytes.fromhex(verifier.mac),
        )


def _chunk(session: Session, after: int) -> list[AuditRecord]:
    part = Slice(size=CHUNK, after=after, ascending=True, order="sequence")
    return session.select(AuditRecord, {}, part)


def _check_filters(request: pb.ListAuditEventsRequest) -> None:
    for name in ("types", "actor_ids", "actor_emails", "project_ids", "resource_ids"):
        if len(getattr(request, name)) > FILTER_VALUES_MAX:
            raise refused(name, f"must be at most {FILTER_VALUES_MAX}")


def _found(deed: Deed, request: pb.ListAuditEventsRequest, part: Slice) -> list[AuditRecord]:
    """The wanted entries. What no column alone says is looked for entry by entry."""
    where: dict[str, object] = {} if deed.scope is None else {"organization_id": deed.scope}
    columns = {
        "type": request.types,
        "project_id": request.project_ids,
        "resource_id": request.resource_ids,
        "email": request.actor_emails,
    }
    where |= {name: list(values) for name, values in columns.items() if values}
    if request.outcome in (pb.AUDIT_OUTCOME_UNSPECIFIED, pb.AUDIT_OUTCOME_DONE):
        where["refusal"] = ""
    found: list[AuditRecord] = []
    after, read = part.after, 0
    while len(found) < part.size and read < READ_MAX:
        chunk = Slice(size=CHUNK, after=after, before=part.before, ascending=part.ascending)
        rows = deed.session.select(AuditRecord, where, chunk)
        found += [row for row in rows if _is_wanted(row, request)]
        read += len(rows)
        if len(rows) < CHUNK:
            break
        after = rows[-1].id
    return found[: part.size]


def _is_wanted(row: AuditRecord, request: pb.ListAuditEventsRequest) -> bool:
    if request.outcome == pb.AUDIT_OUTCOME_REFUSED and not row.refusal:
        return False
    if request.actor_ids and not {row.key_id, row.user_id} & set(request.actor_ids):
        return False
    if request.HasField("from_unix_s") and row.effective_at < _moment(request.from_unix_s):
        return False
    return not (
        request.HasField("until_unix_s") and row.effective_at >= _moment(request.until_unix_s)
    )


def _moment(unix_s: int) -> datetime:
    return datetime.fromtimestamp(min(max(unix_s, 0), _UNIX_S_MAX), UTC)


def _message(entry: AuditRecord) -> pb.AuditEvent:
    return pb.AuditEvent(
        id=entry.id,
        sequence=entry.sequence,
        organization_id=entry.organization_id,
        project_id=entry.project_id,
        type=entry.type,
        effective_at=keys.timestamp(entry.effective_at),
        actor=pb.AuditActor(
            key_id=entry.key_id, user_id=entry.user_id, email=entry.email, address=entry.address
        ),
        resource_id=entry.resource_id,
        before_json=entry.before_json.encode(),
        after_json=entry.after_json.encode(),
        refusal=entry.refusal,
        mac=bytes.fromhex(entry.mac),
    )
