"""The one way to a SQL store: a transaction is a plain function of a connection.

Only the ``runtime/sql*.py`` modules and the services' stores import SQLAlchemy. A store hands a
function to :meth:`Database.read` or :meth:`Database.write`; it runs in one transaction, on a thread
that owns its connection, and cannot wait for anything but the database. That keeps a write lock
short by construction and costs one thread hop per transaction where an async driver pays one per
statement (measured: 0.6 ms against 2.0 ms for two statements).

SQLite is what a single machine needs and lets one writer in at a time. PostgreSQL takes many
processes with many writers each: a store says what must not come between with :func:`serialise`,
``with_for_update()`` or a constraint, and the same code is right on both.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import Connection, Table, func, literal_column, select

from runtime.clock import Clock, Entropy, SystemClock, SystemEntropy
from runtime.secrets import read_secret
from runtime.sql_lane import CONNECTIONS_MAX, TIMEOUT_S, Work
from runtime.sql_schema import Migration, Only, SchemaError
from runtime.sql_sqlite import SqliteDatabase
from runtime.sql_types import NanoUsd, RowNumber, Timestamp, unix_micros

__all__ = [
    "CONNECTIONS_MAX",
    "TIMEOUT_S",
    "Database",
    "Migration",
    "NanoUsd",
    "Only",
    "RowNumber",
    "SchemaError",
    "Timestamp",
    "Work",
    "announce",
    "insert_new",
    "open_configured",
    "open_database",
    "open_patient",
    "serialise",
    "unix_micros",
]

PATIENT_S: Final = 120.0
PATIENT_CONNECTIONS: Final = 3
"""What :func:`open_patient` opens."""

T = TypeVar("T")

_POSTGRESQL: Final = "postgresql"
_POSTGRES_ROOM: Final = "runtime.sql_postgres"
"""Imported when a DSN asks for it: the driver and the dialect cost a process 15 MB."""


class Database(Protocol):
    """One SQL database, as a store sees it.

    Raises STORE_UNAVAILABLE when it is away, locked for too long, full or read-only, and
    INVALID_REQUEST for a value that it cannot keep; lets errors of the statement itself
    (``IntegrityError``) through.
    """

    async def read(self, work: Work[T]) -> T:
        """Runs ``work`` in a read-only transaction: one snapshot, whatever it reads."""
        ...

    async def write(self, work: Work[T]) -> T:
        """Runs ``work`` in a transaction: on SQLite the only one that writes, on PostgreSQL one of
        several at READ COMMITTED.

        It commits when ``work`` returns and rolls back when it raises. When the database undid it
        (a deadlock), ``work`` runs again from its start. After a deadline, a cancellation or a
        connection that broke in the commit, the outcome is unknown to the caller: writers are
        idempotent.
        """
        ...

    async def migrate(self, service: str, migrations: Sequence[Migration], *, now: datetime) -> int:
        """Brings the schema of ``service`` up to the last of ``migrations``, in order; of several
        processes that start at once, one does it.

        Returns the version. Raises ``SchemaError`` when the database is ahead of the program.
        """
        ...

    async def follow(self, channel: str, heard: Callable[[], None]) -> None:
        """Calls ``heard`` whenever a transaction that :func:`announce` was called in commits, in
        whichever process, and whenever one may have been missed. Until it is cancelled; returns at
        once where one process has the database to itself. A hint: keep looking now and then.
        """
        ...

    async def close(self) -> None:
        """Ends what runs and lets go of the connections."""
        ...


def open_database(
    dsn: str,
    *,
    timeout_s: float = TIMEOUT_S,
    connections_max: int = CONNECTIONS_MAX,
    clock: Clock | None = None,
    entropy: Entropy | None = None,
) -> Database:
    """The database behind ``sqlite:///absolute/path``, taken as it is written, or behind
    ``postgresql://user:password@host/database``. Does not connect yet.

    Makes a SQLite file (mode 0600) and its directory (0700) when they are missing. Raises
    ``ValueError`` for a DSN that it does not know, without quoting it.
    """
    clock, entropy = clock or SystemClock(), entropy or SystemEntropy()
    scheme, separator, rest = dsn.partition("://")
    match scheme:
        case "sqlite" if separator and rest.startswith("/") and rest.strip("/"):
            return SqliteDatabase(Path("/" + rest.lstrip("/")), timeout_s, clock, entropy)
        case "postgresql":
            opened: Database = importlib.import_module(_POSTGRES_ROOM).PostgresDatabase(
                dsn,
                timeout_s=timeout_s,
                connections_max=connections_max,
                clock=clock,
                entropy=entropy,
            )
            return opened
        case _:
            raise ValueError(
                "A DSN looks like sqlite:///var/lib/onegate/auth.db, with an absolute path, or"
                " postgresql://user:password@host/database."
            )


class DatabaseSettings(Protocol):
    """The part of a service's settings that says where its data is."""

    @property
    def dsn(self) -> str:
        """The DSN; empty when a file holds it."""
        ...

    @property
    def dsn_file(self) -> str:
        """The path of a file that holds the DSN; empty for none."""
        ...

    @property
    def connections_max(self) -> int:
        """How many connections one process may have to PostgreSQL."""
        ...


def open_configured(settings: DatabaseSettings) -> Database:
    """The database that a service's settings name.

    Raises ``SecretError`` for a file that cannot be used, ``ValueError`` as :func:`open_database`.
    """
    return open_database(_dsn_of(settings), connections_max=settings.connections_max)


def open_patient(settings: DatabaseSettings, usual: Database) -> Database:
    """The same database for work that may take a minute and that nobody waits for: on PostgreSQL
    with three connections of its own, on SQLite, which has one writer, ``usual`` itself.

    Raises as :func:`open_configured`.
    """
    dsn = _dsn_of(settings)
    if not dsn.startswith(f"{_POSTGRESQL}:"):
        return usual
    return open_database(dsn, timeout_s=PATIENT_S, connections_max=PATIENT_CONNECTIONS)


def _dsn_of(settings: DatabaseSettings) -> str:
    if settings.dsn_file:
        return read_secret(Path(settings.dsn_file)).reveal()
    return settings.dsn


def serialise(connection: Connection, name: str) -> None:
    """Holds back every other transaction that asks for this name until this one ends, in whichever
    process; what is read next is what they left. SQLite's writers wait for each other anyway.
    """
    if connection.dialect.name == _POSTGRESQL:
        key = func.hashtextextended(f"onegate {name}", 0)
        connection.execute(select(func.pg_advisory_xact_lock(key)))


def announce(connection: Connection, channel: str) -> None:
    """Tells every process that follows the channel, once this transaction has committed."""
    if connection.dialect.name == _POSTGRESQL:
        connection.execute(select(func.pg_notify(channel, "")))


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Keeps the rows that break no unique constraint; says how many. Waits for a transaction that
    is about to keep the same. Give rows in the order of their keys, or two may deadlock.
    """
    if not rows:
        return 0
    dialect = importlib.import_module(f"sqlalchemy.dialects.{connection.dialect.name}")
    statement = dialect.insert(table).values(list(rows)).on_conflict_do_nothing()
    return len(connection.execute(statement.returning(literal_column("1"))).all())
