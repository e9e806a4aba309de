"""The one way to a SQL store: a transaction is a plain function of a connection.

Only this module and the services' ``store.py`` import SQLAlchemy. A store hands a function to
:meth:`Database.read` or :meth:`Database.write`; it runs in one transaction, on a thread that owns
its connection, and cannot wait for anything but the database. That keeps a write lock short by
construction and costs one thread hop per transaction where an async driver pays one per
statement (measured: 0.6 ms against 2.0 ms for two statements).

SQLite is what a single machine needs. A ``postgresql://`` DSN is known but refused until its
driver is among the dependencies: it becomes a second class here, with the same three methods.
"""

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol, TypeVar

from sqlalchemy import (
    URL,
    BigInteger,
    Connection,
    Engine,
    Integer,
    TypeDecorator,
    create_engine,
    event,
    exc,
)
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.schema import ExecutableDDLElement

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError

_LOG = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[Connection], T]
"""What runs inside a transaction: returns plain values, never a live result."""

TIMEOUT_S: Final = 5.0
"""How long a caller waits for its transaction, queue and lock included, in seconds."""

PENDING_MAX: Final = 1024
"""Transactions that may wait or run at once on each side; one more is refused."""

_READERS: Final = 2
_WAL_BYTES_MAX: Final = 64 * 1024 * 1024
_RETRY_AFTER_MS: Final = 1000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_INT64_MAX: Final = 2**63 - 1

_AWAY: Final = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)
"""Primary result codes (https://www.sqlite.org/rescode.html) that mean the store, not the
statement, is at fault.
"""


class SchemaError(Exception):
    """The database and this program do not fit: it was written by a newer one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One step forward of a service's schema; there is no way back.

    Args:
        version: 1 for the first, then one more each time, never reused or edited once released.
        statements: run in order, in the transaction that records the version. Text where every
            dialect agrees, a DDL element (``CreateTable(table)``) where types differ.
    """

    version: int
    statements: tuple[str | ExecutableDDLElement, ...]


class Database(Protocol):
    """One SQL database, as a store sees it. Raises STORE_UNAVAILABLE when it is away, locked for
    too long or full; lets errors of the statement itself (``IntegrityError``) through.
    """

    async def read(self, work: Work[T]) -> T:
        """Runs ``work`` in a read-only transaction: one snapshot, whatever it reads."""
        ...

    async def write(self, work: Work[T]) -> T:
        """Runs ``work`` in a transaction that holds the write lock from its start.

        It commits when ``work`` returns and rolls back when it raises. After a deadline or a
        cancellation the outcome is unknown to the caller: writers are idempotent.
        """
        ...

    async def migrate(self, service: str, migrations: Sequence[Migration], *, now: datetime) -> int:
        """Brings the schema of ``service`` up to the last of ``migrations``, in order.

        Returns the version. Raises ``SchemaError`` when the database is ahead of the program.
        """
        ...

    async def close(self) -> None:
        """Ends what runs and lets go of the files."""
        ...


def open_database(dsn: str, *, timeout_s: float = TIMEOUT_S) -> Database:
    """The database behind ``sqlite:///absolute/path``; the path is taken as it is written.

    Makes the file (mode 0600) and its directory (0700) when they are missing. Raises
    ``ValueError`` for a DSN that it does not know.
    """
    scheme, separator, rest = dsn.partition("://")
    match scheme:
        case "sqlite" if separator and rest.startswith("/") and rest.strip("/"):
            return SqliteDatabase(Path("/" + rest.lstrip("/")), timeout_s=timeout_s)
        case "postgresql":
            raise ValueError(
                "This build has no PostgreSQL driver: use a DSN like sqlite:///var/lib/onegate/x.db"
            )
        case _:
            raise ValueError(
                "A DSN looks like sqlite:///var/lib/onegate/auth.db, with an absolute path."
            )


class SqliteDatabase:
    """A SQLite file in WAL mode: one thread writes, a few read beside it
    (https://www.sqlite.org/wal.html).
    """

    def __init__(self, path: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._name = path.name
        self._writer = _Lane(self._name, _engine(path, timeout_s, writes=True), 1, timeout_s)
        self._readers = _Lane(
            self._name, _engine(path, timeout_s, writes=False), _READERS, timeout_s
        )

    async def read(self, work: Work[T]) -> T:
        """See :class:`Database`."""
        return await self._readers.run(work)

    async def write(self, work: Work[T]) -> T:
        """See :class:`Database`."""
        return await self._writer.run(work)

    async def migrate(self, service: str, migrations: Sequence[Migration], *, now: datetime) -> int:
        """See :class:`Database`."""
        if [m.version for m in migrations] != list(range(1, len(migrations) + 1)):
            raise ValueError(f"The migrations of {service} must count 1, 2, 3 without a gap.")
        micros = unix_micros(now)
        return await self._writer.run(lambda c: _migrate(c, service, migrations, micros))

    async def close(self) -> None:
        """See :class:`Database`."""
        # The last connection to close folds the log into the database file, so the writer's goes
        # last: a reader has no right to do it.
        await self._readers.close()
        await self._writer.close()


class _Lane:
    """An engine, the threads that may use it, and a bound on who waits for them."""

    def __init__(self, name: str, engine: Engine, threads: int, timeout_s: float) -> None:
        self._name = name
        self._engine = engine
        self._timeout_s = timeout_s
        self._pending = 0
        self._closed = False
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"sql-{name}")

    async def run(self, work: Work[T]) -> T:
        """One transaction, off the event loop."""
        if self._closed:
            raise self._unavailable("it is shutting down")
        if self._pending >= PENDING_MAX:
            raise self._unavailable("too many calls wait for it")
        self._pending += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.get_running_loop().run_in_executor(
                    self._executor, self._transact, work
                )
        except TimeoutError:
            raise self._unavailable("it did not answer in time") from None
        finally:
            self._pending -= 1

    async def close(self) -> None:
        """Waits for what runs, then closes the connections; drops what has not started."""
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)
        except TimeoutError:
            _LOG.warning("The database %s is still busy; leaving it to itself", self._name)
        else:
            self._engine.dispose()

    def _transact(self, work: Work[T]) -> T:
        try:
            with self._engine.begin() as connection:
                return work(connection)
        except exc.DBAPIError as error:
            if not _is_away(error):
                raise
            _LOG.warning("The database %s is unavailable: %s", self._name, error.orig)
            raise self._unavailable("it is locked, full or out of reach") from None
        finally:
            if self._closed:
                self._engine.dispose()

    def _unavailable(self, why: str) -> GatewayError:
        return GatewayError(
            error_pb2.ERROR_REASON_STORE_UNAVAILABLE,
            f"The gateway's database {self._name} is unavailable: {why}. Try again shortly.",
            retry_after_ms=_RETRY_AFTER_MS,
        )


def _engine(path: Path, timeout_s: float, *, writes: bool) -> Engine:
    """An engine whose every connection is set up, and every transaction begun, as this module
    says.
    """
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        pool_size=1 if writes else _READERS,
        max_overflow=0,
        pool_timeout=timeout_s,
        connect_args={"check_same_thread": False, "timeout": timeout_s},
    )
    pragmas = (
        f"busy_timeout = {int(timeout_s * 1000)}",
        "journal_mode = WAL",
        "synchronous = NORMAL",
        "foreign_keys = ON",
        f"journal_size_limit = {_WAL_BYTES_MAX}",
        f"query_only = {'OFF' if writes else 'ON'}",
    )
    begin = "BEGIN IMMEDIATE" if writes else "BEGIN"

    def connect(dbapi: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        # The driver's own BEGIN comes too late and is never IMMEDIATE: it is switched off.
        dbapi.isolation_level = None
        try:
            for pragma in pragmas:
                dbapi.cursor().execute(f"PRAGMA {pragma}")
        except sqlite3.Error:
            dbapi.close()
            raise

    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", start)
    return engine


def _is_away(error: exc.DBAPIError) -> bool:
    """Whether the store is at fault, not the statement."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    return error.connection_invalidated or (code is not None and code & 0xFF in _AWAY)


def _migrate(
    connection: Connection, service: str, migrations: Sequence[Migration], now_us: int
) -> int:
    connection.exec_driver_sql(
        "CREATE TABLE IF NOT EXISTS schema_version (service VARCHAR(64) NOT NULL,"
        " version INTEGER NOT NULL, applied_at_us BIGINT NOT NULL, PRIMARY KEY (service, version))"
    )
    current: int = connection.exec_driver_sql(
        "SELECT COALESCE(MAX(version), 0) FROM schema_version WHERE service = ?", (service,)
    ).scalar_one()
    if current > len(migrations):
        raise SchemaError(
            f"The database of {service} has schema version {current}; this program knows"
            f" {len(migrations)}. Run the newer program, or restore a copy from before it."
        )
    for migration in migrations[current:]:
        for statement in migration.statements:
            if isinstance(statement, str):
                connection.exec_driver_sql(statement)
            else:
                connection.execute(statement)
        connection.exec_driver_sql(
            "INSERT INTO schema_version (service, version, applied_at_us) VALUES (?, ?, ?)",
            (service, migration.version, now_us),
        )
    return len(migrations)


def unix_micros(moment: datetime) -> int:
    """Whole microseconds since 1970 UTC, exactly. Raises ``ValueError`` for a naive time."""
    if moment.tzinfo is None:
        raise ValueError("A stored time needs its time zone.")
    return (moment - _EPOCH) // _MICROSECOND


class Timestamp(TypeDecorator[datetime]):
    """A moment, kept as whole microseconds since 1970 UTC: exact, ordered, the same everywhere."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """A time with its zone becomes a number."""
        del dialect
        return None if value is None else unix_micros(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """A number becomes a time in UTC."""
        del dialect
        return None if value is None else _EPOCH + value * _MICROSECOND


class NanoUsd(TypeDecorator[int]):
    """Money as a whole number of nano-USD. A float is refused rather than rounded."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        """Raises ``TypeError`` for what is not an int, ``ValueError`` beyond 64 bits."""
        del dialect
        if value is None:
            return None
        if type(value) is not int:
            raise TypeError("Money is a whole number of nano-USD, never a float.")
        if abs(value) > _INT64_MAX:
            raise ValueError("This amount of nano-USD does not fit into 64 bits.")
        return value


RowNumber = BigInteger().with_variant(Integer(), "sqlite")
"""A 64-bit number that the database counts up itself; SQLite does so for INTEGER keys only."""
