"""The records that a bill is compared with, and the results, which are kept for ever."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    and_,
    func,
    insert,
    or_,
    select,
)
from sqlalchemy.schema import CreateIndex, CreateTable

from onegate.usage.v1 import reconcile_service_pb2 as pb
from runtime.sql import Database, Migration
from services.usage.reconcile.bills import Figures, Said, usd_of
from services.usage.reconcile.comparing import (
    ATTEMPT,
    REQUEST,
    about_record,
    bucket,
    day_of,
    own_model,
)
from services.usage.reports.queries import Cursor
from services.usage.reports.report_store import START, Question, ReportStore
from services.usage.reports.rollup_schema import ADJUSTMENTS
from services.usage.reports.spans import DAY_US, HOUR_US
from services.usage.store import RECORDS

PAGE_RECORDS: Final = 2_000
"""Records that are read in one transaction."""

AROUND_US: Final = HOUR_US
"""How far outside of a bill's time its requests are looked for, in microseconds: providers date
them by their own clock, and some by their end.
"""

_METADATA = MetaData()

RECONCILIATIONS = Table(
    "usage_reconciliations",
    _METADATA,
    Column("id", String(64), primary_key=True),
    Column("digest", LargeBinary(32), nullable=False),
    Column("compared_at_us", BigInteger, nullable=False),
    Column("result", LargeBinary, nullable=False),
)

_INDEXES: Final = (
    Index("usage_reconciliations_by_time", RECONCILIATIONS.c.compared_at_us, RECONCILIATIONS.c.id),
    Index("usage_reconciliations_by_digest", RECONCILIATIONS.c.digest),
)

MIGRATIONS: Final = (
    Migration(
        version=1,
        statements=(CreateTable(RECONCILIATIONS), *map(CreateIndex, _INDEXES)),
    ),
)

_C, _K = RECORDS.c, RECONCILIATIONS.c


class ReconcileStore:
    """Reads records as bills see them, and keeps results."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reports = ReportStore(database)

    async def migrate(self, *, now: datetime) -> None:
        """Brings the schema up to date; the records' own must be there."""
        await self._database.migrate("usage_reconcile", MIGRATIONS, now=now)

    async def page(
        self, head: pb.BillHead, after: Cursor | None
    ) -> tuple[list[Said], Cursor | None]:
        """Records, oldest first, each at the place of the provider's id of its request; and where
        the next page starts, ``None`` after the last.
        """
        return await self._database.read(lambda c: _page(c, head, after))

    async def buckets(self, head: pb.BillHead) -> list[Said]:
        """Sums of records by day, and by what the bill tells apart. Raises INVALID_REQUEST when
        they are too many.
        """
        groups = [START, *(["model"] if head.by_model else [])]
        if head.by_credential:
            groups.append("credential")
        question = Question(
            from_us=head.started_from.ToMicroseconds(),
            before_us=head.started_before.ToMicroseconds(),
            where={"provider": list(head.providers)} if head.providers else {},
            groups=tuple(groups),
            unit_us=DAY_US,
            uncertain=False,
        )
        found = []
        for total in await self._reports.page(question):
            named = dict(zip(groups, total.group, strict=True))
            model = own_model(str(named.get("model", "")), exact=head.models_exact)
            place = bucket(head, day_of(int(named[START])), model, str(named.get("credential", "")))
            found.append(Said(place, "", _sums(total.sums)))
        return found

    async def keep(self, result: pb.Reconciliation) -> None:
        """Keeps a result."""
        row = {
            "id": result.id,
            "digest": result.head.digest,
            "compared_at_us": result.compared_at.ToMicroseconds(),
            "result": result.SerializeToString(),
        }
        await self._database.write(lambda c: c.execute(insert(RECONCILIATIONS).values(row)))

    async def latest(self, digest: bytes) -> pb.Reconciliation | None:
        """The latest comparison of a bill."""
        query = select(_K.result).where(_K.digest == digest)
        query = query.order_by(_K.compared_at_us.desc(), _K.id.desc()).limit(1)
        found = await self._database.read(lambda c: c.execute(query).scalar())
        return None if found is None else pb.Reconciliation.FromString(found)

    async def results(self, after: tuple[int, str] | None, count_max: int) -> list[Any]:
        """Results older than ``after`` (a time and an id), newest first."""
        query = select(_K.result).order_by(_K.compared_at_us.desc(), _K.id.desc())
        if after is not None:
            at_us, name = after
            same = and_(_K.compared_at_us == at_us, _K.id < name)
            query = query.where(or_(_K.compared_at_us < at_us, same))
        query = query.limit(count_max)
        found = await self._database.read(lambda c: c.execute(query).scalars().all())
        return [pb.Reconciliation.FromString(one) for one in found]


def _page(
    connection: Connection, head: pb.BillHead, after: Cursor | None
) -> tuple[list[Said], Cursor | None]:
    from_us, before_us = head.started_from.ToMicroseconds(), head.started_before.ToMicroseconds()
    query = select(
        _C.attempt_id,
        _C.started_at_us,
        _C.upstream_request_id,
        _C.model,
        _C.credential,
        _C.input_tokens,
        _C.cached_input_tokens,
        _C.output_tokens,
        _C.cost_nano_usd,
    ).where(_C.started_at_us >= from_us - AROUND_US, _C.started_at_us < before_us + AROUND_US)
    if head.providers:
        query = query.where(_C.provider.in_(list(head.providers)))
    if after is not None:
        same = and_(_C.started_at_us == after.started_at_us, _C.attempt_id > after.attempt_id)
        query = query.where(or_(_C.started_at_us > after.started_at_us, same))
    query = query.order_by(_C.started_at_us, _C.attempt_id).limit(PAGE_RECORDS)
    rows = connection.execute(query).all()
    more = _adjustments(connection, [row.attempt_id for row in rows])
    found = [_said(row, more.get(row.attempt_id, 0), (from_us, before_us)) for row in rows]
    if len(rows) < PAGE_RECORDS:
        return found, None
    last = rows[-1]
    return found, Cursor(started_at_us=last.started_at_us, attempt_id=last.attempt_id)


def _adjustments(connection: Connection, attempt_ids: Sequence[str]) -> dict[str, int]:
    """What attempts cost more or less than their records say."""
    if not attempt_ids:
        return {}
    named, amount = ADJUSTMENTS.c.attempt_id, ADJUSTMENTS.c.amount_nano_usd
    query = select(named, func.sum(amount)).where(named.in_(attempt_ids)).group_by(named)
    return {name: int(total) for name, total in connection.execute(query)}


def _said(row: Any, more_nano_usd: int, span: tuple[int, int]) -> Said:
    name = row.upstream_request_id
    inside = span[0] <= row.started_at_us < span[1]
    about = about_record(row.started_at_us // DAY_US, row.model, row.credential, inside=inside)
    figures = Figures(
        count=1,
        input_tokens=row.input_tokens,
        cached_input_tokens=row.cached_input_tokens,
        output_tokens=row.output_tokens,
        cost_usd=usd_of(row.cost_nano_usd + more_nano_usd),
    )
    return Said(REQUEST + name if name else ATTEMPT + row.attempt_id, about, figures)


def _sums(sums: Mapping[str, int]) -> Figures:
    return Figures(
        count=sums["attempts"],
        input_tokens=sums["input_tokens"],
        cached_input_tokens=sums["cached_input_tokens"],
        output_tokens=sums["output_tokens"],
        cost_usd=usd_of(sums["cost_nano_usd"]),
    )
