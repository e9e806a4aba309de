"""Keeps the cubes: seals hours that are over, sums them up once, and adds what comes late.

1. *Seal.* From the moment when it is said that an hour is sealed, every record of that hour is
   noted as late in the transaction that keeps it; every record from before is committed, because
   whoever keeps records holds the mark until it is done.
2. *Roll.* A sealed hour is summed up without what is noted as late, and the mark of the cubes
   moves on, in one transaction. A day follows its last hour.
3. *Fold.* What is late is taken off the list and added to its hour and day, in one transaction.

Each step is done once or not at all, by whichever process; readers see the sums of exactly the
committed records before, between and after the steps. Keeping a record costs one small read for a
whole transaction of records.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    delete,
    func,
    insert,
    literal_column,
    select,
    update,
)

from runtime.sql import Database
from services.usage.reports.report_store import adjusted, measured, quotient, records_of
from services.usage.reports.rollup_schema import (
    ADJUSTMENTS,
    CUBES,
    LATE,
    MARKS,
    MEASURES,
    Cube,
)
from services.usage.reports.spans import DAY_US, HOUR_US
from services.usage.store import RECORDS

GRACE_US: Final = HOUR_US // 4
"""How long after its end an hour is sealed, in microseconds: most long calls are over by then, and
every call can end later still."""

FOLD_MAX: Final = 500
"""How many late records are added in one transaction."""


class Rollups:
    """The work, a transaction each time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def advance(self, now_us: int) -> bool:
        """Does the next piece of what is due; false when nothing is. Raises STORE_UNAVAILABLE."""
        sealed_us = (now_us - GRACE_US) // HOUR_US * HOUR_US
        due = await self._database.read(lambda c: _due(c, sealed_us))
        match due:
            case "seal":
                await self._database.write(lambda c: _seal(c, sealed_us))
            case "roll":
                await self._database.write(_roll)
            case "fold":
                await self._database.write(_fold)
            case _:
                return False
        return True

    async def finish(self, now_us: int) -> None:
        """Does all that is due."""
        while await self.advance(now_us):
            pass


def lock(connection: Connection) -> int:
    """Holds back everybody else who changes the cubes; how far their hours go."""
    return _mark(connection, "hours", for_update=True)


def _due(connection: Connection, sealed_us: int) -> str:
    reached = _mark(connection, "sealed")
    if reached < sealed_us:
        return "seal"
    hours_us = _mark(connection, "hours")
    if hours_us < reached:
        return "roll"
    late = connection.execute(select(LATE.c.attempt_id).limit(1)).first()
    return "fold" if late is not None else ""


def _mark(connection: Connection, name: str, *, for_update: bool = False) -> int:
    query = select(MARKS.c.before_us).where(MARKS.c.name == name)
    if for_update:
        query = query.with_for_update()
    found: int = connection.execute(query).scalar_one()
    return found


def _move(connection: Connection, name: str, before_us: int) -> None:
    """Marks only move forward."""
    mark = update(MARKS).where(MARKS.c.name == name, MARKS.c.before_us < before_us)
    connection.execute(mark.values(before_us=before_us))


def _seal(connection: Connection, before_us: int) -> None:
    _move(connection, "sealed", before_us)


def _roll(connection: Connection) -> None:
    """Sums up the next sealed hour in which anything happened, and the day when it is over."""
    hours_us = lock(connection)
    sealed_us = _mark(connection, "sealed")
    firsts = [
        connection.execute(select(func.min(time)).where(time >= hours_us)).scalar_one()
        for time in (RECORDS.c.started_at_us, ADJUSTMENTS.c.started_at_us)
    ]
    first_us = min((found for found in firsts if found is not None), default=sealed_us)
    from_us = first_us // HOUR_US * HOUR_US
    before_us = min(from_us + HOUR_US, sealed_us)
    if from_us < before_us:
        for cube in CUBES:
            for part in _hour(cube, from_us, before_us):
                connection.execute(insert(cube.hours).from_select(_names(cube), part))
    _move(connection, "hours", before_us)
    _roll_days(connection, before_us)


def _hour(cube: Cube, from_us: int, before_us: int) -> list[Select[Any]]:
    groups = _of_records(cube)
    time = RECORDS.c.started_at_us
    late = select(LATE.c.attempt_id).where(
        LATE.c.started_at_us >= from_us, LATE.c.started_at_us < before_us
    )
    # One statement sees a record and the note that it is late, or neither.
    records = records_of(measured(), groups, adjusting=False).where(
        time >= from_us, time < before_us, RECORDS.c.attempt_id.not_in(late)
    )
    changed = ADJUSTMENTS.c.started_at_us
    adjustments = records_of(adjusted(), groups, adjusting=True).where(
        changed >= from_us, changed < before_us
    )
    return [records, adjustments]


def _roll_days(connection: Connection, hours_us: int) -> None:
    """Sums up the days that are over from their hours."""
    reached = _mark(connection, "days", for_update=True)
    before_us = hours_us // DAY_US * DAY_US
    if reached >= before_us:
        return
    for cube in CUBES:
        hours = cube.hours.c
        day = quotient(hours.start_us, DAY_US) * literal_column(str(DAY_US))
        groups = [day.label("start_us"), *(hours[name] for name in cube.columns)]
        days = select(*groups, *measured(cube.hours)).group_by(*groups)
        days = days.where(hours.start_us >= reached, hours.start_us < before_us)
        connection.execute(insert(cube.days).from_select(_names(cube), days))
    _move(connection, "days", before_us)


def _fold(connection: Connection) -> None:
    """Adds late records of the hours that the cubes have."""
    hours_us = lock(connection)
    some = select(LATE.c.attempt_id).where(LATE.c.started_at_us < hours_us)
    some = some.order_by(LATE.c.attempt_id).limit(FOLD_MAX)
    names = connection.execute(some).scalars().all()
    add(connection, hours_us, names, adjusting=False)
    connection.execute(delete(LATE).where(LATE.c.attempt_id.in_(names)))


def add(connection: Connection, hours_us: int, names: Sequence[str], *, adjusting: bool) -> None:
    """Adds records (by attempt id) or adjustments (by their own id) to the hours and days that the
    cubes have already. The cubes are locked.
    """
    days_us = _mark(connection, "days", for_update=True)
    which = ADJUSTMENTS.c.id if adjusting else RECORDS.c.attempt_id
    time = RECORDS.c.started_at_us
    measures = adjusted() if adjusting else measured()
    for cube in CUBES:
        for table, unit_us, before_us in (
            (cube.hours, HOUR_US, hours_us),
            (cube.days, DAY_US, days_us),
        ):
            groups = _of_records(cube, unit_us)
            part = records_of(measures, groups, adjusting=adjusting)
            part = part.where(which.in_(list(names)), time < before_us)
            connection.execute(insert(table).from_select(_names(cube), part))


def _names(cube: Cube) -> list[str]:
    return ["start_us", *cube.columns, *MEASURES]


def _of_records(cube: Cube, unit_us: int = HOUR_US) -> list[ColumnElement[Any]]:
    """A cube's columns, of records."""
    unit: ColumnElement[int] = literal_column(str(unit_us))
    start = (quotient(RECORDS.c.started_at_us, unit_us) * unit).label("start_us")
    return [start, *(RECORDS.c[name] for name in cube.columns)]
