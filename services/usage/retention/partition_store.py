"""Makes the parts of the records' table ahead of time and drops those that are over.

PostgreSQL only; SQLite has one table. What lies in the rest because its part was not there in time
is moved in the transaction that makes the part.
"""

from typing import Final

from sqlalchemy import Connection, MetaData, Table, delete, func, insert, select, text
from sqlalchemy.schema import DropTable

from services.usage.retention import months
from services.usage.retention.months import REST, Month, Part
from services.usage.store import RECORDS

AHEAD: Final = 3
"""How many months ahead parts are made."""

_PARTS: Final = """
    SELECT child.relname FROM pg_inherits
    JOIN pg_class AS child ON child.oid = inhrelid
    JOIN pg_class AS parent ON parent.oid = inhparent
    WHERE parent.relname = 'usage_records' AND parent.relnamespace = (
      SELECT oid FROM pg_namespace WHERE nspname = current_schema())
"""
_PATIENCE: Final = text("SET LOCAL lock_timeout = '1s'")
"""Whoever waits for the whole table makes everybody behind it wait: it rather tries again."""


def divided(connection: Connection) -> bool:
    """Whether this database keeps records in parts."""
    return connection.dialect.name == "postgresql"


def parts(connection: Connection) -> set[str]:
    """The names of the parts; none where the table is one."""
    if not divided(connection):
        return set()
    return set(connection.execute(text(_PARTS)).scalars())


def lacking(connection: Connection, now_us: int) -> list[Month]:
    """The months that have no part and should."""
    return months.missing(parts(connection), now_us, AHEAD) if divided(connection) else []


def make(connection: Connection, month: Month) -> None:
    """Makes the part of a month, with what the rest holds of it."""
    bounds = (months.first_id(month.start_us), months.first_id(month.later(1).start_us))
    connection.execute(_PATIENCE)
    # Nobody puts more of this month there meanwhile.
    connection.execute(text(f"LOCK TABLE {REST} IN ACCESS EXCLUSIVE MODE"))
    connection.execute(text(f"CREATE TABLE {month.part} (LIKE {RECORDS.name} INCLUDING ALL)"))
    rest = table(REST)
    own = rest.c.attempt_id.between(bounds[0], bounds[1]) & (rest.c.attempt_id != bounds[1])
    moved = insert(table(month.part)).from_select(rest.columns.keys(), select(rest).where(own))
    connection.execute(moved)
    connection.execute(delete(rest).where(own))
    connection.execute(
        text(
            f"ALTER TABLE {RECORDS.name} ATTACH PARTITION {month.part}"
            f" FOR VALUES FROM ('{bounds[0]}') TO ('{bounds[1]}')"
        )
    )


def ended(connection: Connection, kept_us: int) -> Part | None:
    """The oldest part that holds nothing that started at a moment or later."""
    for part in months.over(parts(connection), kept_us):
        newest = connection.execute(select(func.max(table(part.name).c.started_at_us))).scalar()
        if newest is None or newest < kept_us:
            return part
    return None


def drop(connection: Connection, part: Part) -> None:
    """Drops a part with all that it holds."""
    connection.execute(_PATIENCE)
    connection.execute(DropTable(table(part.name)))


def loose(connection: Connection) -> list[Table]:
    """The tables whose old rows are deleted one by one: they are never over as a whole, or not for
    long.
    """
    if not divided(connection):
        return [RECORDS]
    found = parts(connection)
    past = [name for name in found if (part := months.part_of(name)) and part.whole_past]
    return [table(name) for name in sorted({*past, REST} & found)]


def table(name: str) -> Table:
    """A part, as a table of its own."""
    return RECORDS.to_metadata(MetaData(), name=name)
