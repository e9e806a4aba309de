"""Sums of what was used, read from the cubes as far as they go and from the records beyond.

Whatever the state of the cubes, a sum is that of the records and adjustments that are committed:
one snapshot says how far the cubes go, what is late, and what lies beyond.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    and_,
    case,
    cast,
    func,
    literal_column,
    select,
    text,
    union_all,
)
from sqlalchemy.types import JSON

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import usage_record_pb2
from runtime.errors import GatewayError
from runtime.sql import Database
from services.usage.reports.rollup_schema import (
    ADJUSTMENTS,
    COUNTS,
    CUBES,
    DOUBTS,
    LATE,
    MARKS,
    MEASURES,
    UNCERTAIN,
    Cube,
)
from services.usage.reports.spans import DAY_US, Marks, Source, Span, spans
from services.usage.store import RECORDS, STARTED_AT_US_MAX

GROUPS_MAX: Final = 100_000
"""The most groups that one page of a report holds."""

START: Final = "start"
"""The group of the bucket that a record started in: its number since 1970."""
TAG: Final = "tag"
"""The group of the value of the question's tag."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TIME: Final = RECORDS.c.started_at_us
_ROOM: Final = text("SET LOCAL work_mem = '48MB'")
"""A month by customer and day is tens of thousands of groups: sorting them on disk takes longer
than everything else."""

_SUMS: Final = (*MEASURES, UNCERTAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be summed up.

    Attributes:
        from_us, before_us: of what started in this time, the end exclusive.
        where: columns of the records, each with the values that count.
        not_endpoints: endpoints that do not count.
        groups: columns of the records, :data:`START` or :data:`TAG`.
        tag: the tag that TAG means.
        unit_us: how long a bucket of START is.
        uncertain: whether what was posted without a record counts.
        measures: what is summed up; the others are 0.
    """

    from_us: int = 0
    before_us: int = STARTED_AT_US_MAX
    where: Mapping[str, Sequence[str]] = field(default_factory=lambda: MappingProxyType({}))
    not_endpoints: Sequence[str] = ()
    groups: tuple[str, ...] = ()
    tag: str = ""
    unit_us: int = DAY_US
    uncertain: bool = True
    measures: Collection[str] = MEASURES

    def cube(self) -> Cube | None:
        """The cube that has all columns that are asked about."""
        wanted = {*self.where, *self.groups} - {START}
        if self.not_endpoints:
            wanted.add("endpoint")
        return next((cube for cube in CUBES if wanted <= set(cube.columns)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """One group: its values in the order of the groups, and its sums by measure."""

    group: tuple[str | int, ...]
    sums: Mapping[str, int]


class ReportStore:
    """Answers questions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def totals(
        self, question: Question, *, rows_max: int, dearest_first: bool = False
    ) -> list[Total]:
        """A row a group, by group or dearest first, at most ``rows_max``."""
        return await self._database.read(lambda c: totals(c, question, rows_max, dearest_first))

    async def page(self, question: Question) -> list[Total]:
        """All groups. Raises INVALID_REQUEST when there are more than :data:`GROUPS_MAX`."""
        found = await self.totals(question, rows_max=GROUPS_MAX + 1)
        if len(found) > GROUPS_MAX:
            raise GatewayError(
                error_pb2.ERROR_REASON_INVALID_REQUEST,
                f"This page would hold more than {GROUPS_MAX:,} groups. Ask for fewer buckets with"
                " `limit`, or group by less.",
                param="limit",
            )
        return found


def totals(
    connection: Connection, question: Question, rows_max: int, dearest_first: bool
) -> list[Total]:
    """The sums of committed records, in one snapshot."""
    if connection.dialect.name == "postgresql":
        connection.execute(_ROOM)
    nothing: ColumnElement[Any] = literal_column("0").label(UNCERTAIN)
    known = [part.add_columns(nothing) for part in _parts(connection, question)]
    parts = union_all(*known, *_doubts(question)).subquery("parts")
    names = [f"g{number}" for number in range(len(question.groups))]
    groups = [parts.c[name] for name in names]
    wanted = {*question.measures, UNCERTAIN}
    sums = [
        func.coalesce(_whole(parts.c[name]), 0).label(name) if name in wanted else _none(name)
        for name in _SUMS
    ]
    query = select(*groups, *sums).group_by(*groups).limit(rows_max)
    cost: ColumnElement[Any] = literal_column("cost_nano_usd").desc()
    query = query.order_by(*((cost, *groups) if dearest_first else groups))
    found = connection.execute(query).all()
    made = [_total(row, len(groups)) for row in found]
    # A sum over nothing is a row of zeros; a group of which nothing is left is none.
    return made if not question.groups else [total for total in made if any(total.sums.values())]


def marks(connection: Connection) -> Marks:
    """How far the cubes go."""
    found = connection.execute(select(MARKS.c.name, MARKS.c.before_us))
    reached = {str(row.name): int(row.before_us) for row in found}
    return Marks(hours_us=reached["hours"], days_us=reached["days"], kept_us=reached.get("kept", 0))


def measured(
    table: Table | None = None, wanted: Collection[str] = MEASURES
) -> list[ColumnElement[Any]]:
    """The sums of the records, or of a cube's rows; 0 for what is not wanted."""
    if table is not None:
        found = {name: _whole(table.c[name]) for name in MEASURES}
    else:
        completed = RECORDS.c.outcome == usage_record_pb2.OUTCOME_COMPLETED
        found = {
            "attempts": func.count(),
            "failures": func.count().filter(~completed),
            "attempts_searching": func.count().filter(RECORDS.c.web_searches > 0),
            "cost_nano_usd": _whole(RECORDS.c.cost_nano_usd),
            **{name: _whole(RECORDS.c[name]) for name in COUNTS},
        }
    return [found[name].label(name) if name in wanted else _none(name) for name in MEASURES]


def _none(name: str) -> ColumnElement[Any]:
    zero: ColumnElement[Any] = literal_column("0").label(name)
    return zero


def quotient(time: ColumnElement[Any], unit_us: int) -> ColumnElement[Any]:
    """The number of a unit of time since 1970, in whole numbers throughout: SQLAlchemy's ``//``
    would go through floating point on PostgreSQL.
    """
    # Written out: PostgreSQL takes two parameters for two expressions.
    divided: ColumnElement[Any] = time.op("/", return_type=BigInteger())(
        literal_column(str(unit_us))
    )
    return divided


def _whole(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """A sum in 64 bits. PostgreSQL's own type for it is made of decimal digits, which cost several
    times as much to add up again, to send and to read; a sum that does not fit is an error in
    either database.
    """
    return cast(func.sum(column), BigInteger)


def adjusted() -> list[ColumnElement[Any]]:
    """The sums of adjustments: they change nothing but the cost."""
    return [
        _whole(ADJUSTMENTS.c.amount_nano_usd).label(name)
        if name == "cost_nano_usd"
        else literal_column("0").label(name)
        for name in MEASURES
    ]


def records_of(
    measures: Sequence[ColumnElement[Any]], groups: Sequence[ColumnElement[Any]], *, adjusting: bool
) -> Select[Any]:
    """Groups of the records, or of the adjustments of records."""
    query = select(*groups, *measures)
    if adjusting:
        on = RECORDS.c.attempt_id == ADJUSTMENTS.c.attempt_id
        return query.select_from(ADJUSTMENTS.join(RECORDS, on)).group_by(*groups)
    return query.select_from(RECORDS).group_by(*groups)


def _parts(connection: Connection, question: Question) -> list[Select[Any]]:
    cube = question.cube()
    reached = marks(connection)
    kept_us = reached.kept_us
    if cube is None:
        reached = Marks(hours_us=0, days_us=0)
    parts = spans(question.from_us, question.before_us, reached, unit_us=question.unit_us)
    if any(part.source is Source.RECORDS and 0 < part.from_us < kept_us for part in parts):
        raise _outdated(kept_us)
    made: list[Select[Any]] = []
    summed: list[Span] = []
    for part in parts or [Span(source=Source.RECORDS, from_us=0, before_us=0)]:
        if part.source is Source.RECORDS or cube is None:
            made += _from_records(connection, question, part)
            continue
        summed.append(part)
        table = cube.days if part.source is Source.DAYS else cube.hours
        time = table.c.start_us
        sums = measured(table, question.measures)
        query = select(*_groups(connection, question, table, time), *sums)
        query = query.where(time >= part.from_us, time < part.before_us)
        made.append(_chosen(query, question, table))
    if summed:
        made.append(_late(connection, question, summed[0].from_us, summed[-1].before_us))
    return made


def _outdated(kept_us: int) -> GatewayError:
    day = (_EPOCH + timedelta(microseconds=kept_us)).date()
    return GatewayError(
        error_pb2.ERROR_REASON_INVALID_REQUEST,
        f"Single calls from before {day} (UTC) are kept no more, only their sums by hour. Begin on"
        f" a whole hour and ask for nothing that hours do not tell apart, or begin at {day}.",
    )


def _from_records(connection: Connection, question: Question, part: Span) -> list[Select[Any]]:
    groups = _groups(connection, question, RECORDS, _TIME)
    records = records_of(measured(None, question.measures), groups, adjusting=False)
    records = records.where(part.from_us <= _TIME, part.before_us > _TIME)
    changed = ADJUSTMENTS.c.started_at_us
    adjustments = records_of(adjusted(), groups, adjusting=True)
    adjustments = adjustments.where(changed >= part.from_us, changed < part.before_us)
    return [_chosen(query, question, RECORDS) for query in (records, adjustments)]


def _late(connection: Connection, question: Question, from_us: int, before_us: int) -> Select[Any]:
    groups = _groups(connection, question, RECORDS, _TIME)
    query = select(*groups, *measured(None, question.measures)).select_from(
        LATE.join(RECORDS, RECORDS.c.attempt_id == LATE.c.attempt_id)
    )
    time = LATE.c.started_at_us
    query = query.where(and_(time >= from_us, time < before_us)).group_by(*groups)
    return _chosen(query, question, RECORDS)


def _doubts(question: Question) -> list[Select[Any]]:
    """What was posted without a record: of no model or provider, and of nobody whom no budget
    named.
    """
    blank = [name for name in question.where if name not in DOUBTS.c]
    if not question.uncertain or any("" not in question.where[name] for name in blank):
        return []
    time = DOUBTS.c.started_at_us
    known: dict[str, ColumnElement[Any]] = {
        START: quotient(time, question.unit_us),
        **{name: DOUBTS.c[name] for name in question.groups if name in DOUBTS.c},
    }
    nobody: ColumnElement[Any] = literal_column("''")
    groups = [known.get(name, nobody).label(f"g{n}") for n, name in enumerate(question.groups)]
    amount = _whole(DOUBTS.c.amount_nano_usd)
    zero: ColumnElement[Any] = literal_column("0")
    sums = [
        amount.label(name) if name in ("cost_nano_usd", UNCERTAIN) else zero.label(name)
        for name in _SUMS
    ]
    query = select(*groups, *sums).where(time >= question.from_us, time < question.before_us)
    named = [name for name in question.where if name in DOUBTS.c]
    chosen = [DOUBTS.c[name].in_(list(question.where[name])) for name in named]
    # PostgreSQL does not group by a text that is the same everywhere.
    return [query.where(*chosen).group_by(*(known[n] for n in question.groups if n in known))]


def _groups(
    connection: Connection, question: Question, table: Table, time: ColumnElement[Any]
) -> list[ColumnElement[Any]]:
    """The values that are grouped by, named g0, g1, …."""
    made: list[ColumnElement[Any]] = []
    for number, name in enumerate(question.groups):
        if name == START:
            value: ColumnElement[Any] = quotient(time, question.unit_us)
        elif name == TAG:
            value = _tag(connection, question.tag)
        else:
            value = table.c[name]
        made.append(value.label(f"g{number}"))
    return made


def _tag(connection: Connection, name: str) -> ColumnElement[Any]:
    """A tag's value; empty where it is not set. ``name`` is checked: it becomes part of the SQL."""
    column: ColumnElement[Any] = RECORDS.c.tags
    path = f"'$.\"{name}\"'"
    if connection.dialect.name == "postgresql":
        column, path = cast(column, JSON), f"'{name}'"
    nothing: ColumnElement[Any] = literal_column("''")
    value = func.coalesce(column.op("->>")(literal_column(path)), nothing)
    return case((RECORDS.c.tags != nothing, value), else_=nothing)


def _chosen(query: Select[Any], question: Question, table: Table) -> Select[Any]:
    for name, values in question.where.items():
        query = query.where(table.c[name].in_(list(values)))
    if question.not_endpoints:
        query = query.where(table.c.endpoint.not_in(list(question.not_endpoints)))
    if table is not RECORDS:
        groups = [column for column in query.selected_columns if column.key not in MEASURES]
        query = query.group_by(*groups)
    return query


def _total(row: Row[Any], groups: int) -> Total:
    return Total(group=tuple(row[:groups]), sums=dict(zip(_SUMS, row[groups:], strict=True)))
