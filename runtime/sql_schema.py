"""Schemas that only move forward: numbered steps, each run once, whoever starts first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    MetaData,
    String,
    Table,
    func,
    insert,
    select,
)
from sqlalchemy.schema import CreateTable, ExecutableDDLElement


class SchemaError(Exception):
    """The database and this program do not fit: it was written by a newer one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Only:
    """A statement for one dialect alone, named as SQLAlchemy does (``postgresql``)."""

    dialect: str
    sql: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One step forward of a service's schema; there is no way back.

    Args:
        version: 1 for the first, then one more each time, never reused or edited once released.
        statements: run in order, in the transaction that records the version. Text where every
            dialect agrees, a DDL element (``CreateTable(table)``) where types differ,
            :class:`Only` for one of them alone.
    """

    version: int
    statements: tuple[str | Only | ExecutableDDLElement, ...]


_VERSIONS: Final = Table(
    "schema_version",
    MetaData(),
    Column("service", String(64), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("applied_at_us", BigInteger, nullable=False),
)


def check(service: str, migrations: Sequence[Migration]) -> None:
    """Raises ``ValueError`` for steps that do not count 1, 2, 3."""
    if [m.version for m in migrations] != list(range(1, len(migrations) + 1)):
        raise ValueError(f"The migrations of {service} must count 1, 2, 3 without a gap.")


def migrate(
    connection: Connection, service: str, migrations: Sequence[Migration], now_us: int
) -> int:
    """Runs the steps that are missing; the caller holds back everybody else who would.

    Raises ``SchemaError`` when the database is ahead of the program.
    """
    connection.execute(CreateTable(_VERSIONS, if_not_exists=True))
    newest = select(func.coalesce(func.max(_VERSIONS.c.version), 0))
    current: int = connection.execute(newest.where(_VERSIONS.c.service == service)).scalar_one()
    if current > len(migrations):
        raise SchemaError(
            f"The database of {service} has schema version {current}; this program knows"
            f" {len(migrations)}. Run the newer program, or restore a copy from before it."
        )
    for migration in migrations[current:]:
        for statement in migration.statements:
            match statement:
                case str():
                    connection.exec_driver_sql(statement)
                case Only():
                    if connection.dialect.name == statement.dialect:
                        connection.exec_driver_sql(statement.sql)
                case _:
                    connection.execute(statement)
        row = {"service": service, "version": migration.version, "applied_at_us": now_us}
        connection.execute(insert(_VERSIONS).values(row))
    return len(migrations)
