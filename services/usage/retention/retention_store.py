"""Forgets old records: never one that a sum, a hold or an invoice still needs.

What is given up is said first: a mark moves on, in a transaction that waits for everybody who is
about to keep a record. From then on a record of before the mark is not taken any more (it could
be one that was counted and forgotten), so that what is removed afterwards, piece by piece, can
come to nobody's account a second time. The cubes keep its sums for ever, and the ledger carries
its postings forward.
"""

from typing import Final

from sqlalchemy import Connection, Table, delete, func, select, update

from onegate.usage.v1 import hold_pb2
from runtime.sql import Database, serialise
from services.usage.invoices.unbilled_store import unbilled_from
from services.usage.ledger.carry_store import carried_before, carry
from services.usage.ledger.ledger_schema import HOLDS
from services.usage.reports.rollup_schema import LATE, MARKS
from services.usage.reports.spans import DAY_US
from services.usage.retention import partition_store
from services.usage.retention.months import Month, first_id

ROWS_MAX: Final = 2_000
"""How many rows are deleted in one transaction."""

_OPEN: Final = (hold_pb2.HOLD_STATE_PENDING, hold_pb2.HOLD_STATE_UNCERTAIN)
_LOCK: Final = "onegate_retention"


class Retention:
    """The work, a transaction each time.

    Args:
        database: where records are kept.
        records_days: for how many days at least; 0 for ever.
    """

    def __init__(self, database: Database, records_days: int) -> None:
        self._database = database
        self._kept_us = records_days * DAY_US

    async def prepare(self, now_us: int) -> None:
        """Makes the parts of this month and the next ones. Raises STORE_UNAVAILABLE."""
        for month in await self._database.read(lambda c: partition_store.lacking(c, now_us)):

            def make(connection: Connection, month: Month = month) -> None:
                serialise(connection, _LOCK)
                if month in partition_store.lacking(connection, now_us):
                    partition_store.make(connection, month)

            await self._database.write(make)

    async def advance(self, now_us: int) -> bool:
        """Does the next piece of what is due; false when nothing is. Raises STORE_UNAVAILABLE."""
        if not self._kept_us:
            return False
        wanted_us = (now_us - self._kept_us) // DAY_US * DAY_US
        match await self._database.read(lambda c: _due(c, wanted_us, now_us)):
            case "mark":
                await self._database.write(lambda c: _move(c, wanted_us, now_us))
            case "part":
                await self._database.write(_drop)
            case "rows":
                await self._database.write(_delete)
            case "ledger":
                await self._database.write(lambda c: _carry(c, now_us))
            case _:
                return False
        return True


def kept_from(connection: Connection, *, for_update: bool = False) -> int:
    """From when records are kept, in microseconds since 1970; 0 for all."""
    query = select(MARKS.c.before_us).where(MARKS.c.name == "kept")
    if for_update:
        query = query.with_for_update()
    found: int = connection.execute(query).scalar_one()
    return found


def _due(connection: Connection, wanted_us: int, now_us: int) -> str:
    kept_us = kept_from(connection)
    if kept_us < wanted_us and kept_us < _needed_from(connection, wanted_us, now_us):
        return "mark"
    if partition_store.ended(connection, kept_us) is not None:
        return "part"
    if any(_old(connection, table, kept_us, 1) for table in partition_store.loose(connection)):
        return "rows"
    return "ledger" if carried_before(connection, first_id(kept_us), 1) else ""


def _needed_from(connection: Connection, wanted_us: int, now_us: int) -> int:
    """The latest moment, not after a wanted one, from which something needs records."""
    days = select(MARKS.c.before_us).where(MARKS.c.name == "days")
    late = select(func.min(LATE.c.started_at_us))
    held = select(func.min(HOLDS.c.created_at_us)).where(HOLDS.c.state.in_(_OPEN))
    limits = [connection.execute(query).scalar() for query in (days, late)]
    # What is held was placed a moment after its attempt began.
    oldest = connection.execute(held).scalar()
    limits += [None if oldest is None else oldest - DAY_US, unbilled_from(connection, now_us)]
    found = min((limit for limit in limits if limit is not None), default=wanted_us)
    return min(found // DAY_US * DAY_US, wanted_us)


def _move(connection: Connection, wanted_us: int, now_us: int) -> None:
    """Waits for whoever keeps records under the mark as it was, and moves it."""
    kept_us = kept_from(connection, for_update=True)
    found = _needed_from(connection, wanted_us, now_us)
    if found > kept_us:
        connection.execute(update(MARKS).where(MARKS.c.name == "kept").values(before_us=found))


def _drop(connection: Connection) -> None:
    serialise(connection, _LOCK)
    part = partition_store.ended(connection, kept_from(connection))
    if part is not None:
        partition_store.drop(connection, part)


def _old(connection: Connection, table: Table, kept_us: int, count_max: int) -> list[str]:
    time = table.c.started_at_us
    query = select(table.c.attempt_id).where(time < kept_us).order_by(time).limit(count_max)
    return list(connection.execute(query).scalars())


def _delete(connection: Connection) -> None:
    serialise(connection, _LOCK)
    kept_us = kept_from(connection)
    for table in partition_store.loose(connection):
        names = _old(connection, table, kept_us, ROWS_MAX)
        if names:
            connection.execute(delete(table).where(table.c.attempt_id.in_(names)))
            return


def _carry(connection: Connection, now_us: int) -> None:
    serialise(connection, _LOCK)
    carry(connection, first_id(kept_from(connection)), now_us)
