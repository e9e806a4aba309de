"""SQLite, for a single machine: a file in WAL mode, one thread that writes, a few that read beside
it (https://www.sqlite.org/wal.html).
"""

import os
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from runtime import sql_schema
from runtime.clock import Clock, Entropy
from runtime.sql_lane import Fault, Lane, LaneRules, Work
from runtime.sql_schema import Migration
from runtime.sql_types import unix_micros

T = TypeVar("T")

_READERS: Final = 2
_WAL_BYTES_MAX: Final = 64 * 1024 * 1024

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


class SqliteDatabase:
    """A SQLite file. See :class:`runtime.sql.Database`."""

    def __init__(self, path: Path, timeout_s: float, clock: Clock, entropy: Entropy) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

        def lane(threads: int, *, writes: bool) -> Lane:
            rules = LaneRules(
                name=path.name, threads=threads, timeout_s=timeout_s, fault_of=_fault_of
            )
            return Lane(_engine(path, timeout_s, writes=writes), rules, clock, entropy)

        self._writer = lane(1, writes=True)
        self._readers = lane(_READERS, writes=False)

    async def read(self, work: Work[T]) -> T:
        """See :class:`runtime.sql.Database`."""
        return await self._readers.run(work)

    async def write(self, work: Work[T]) -> T:
        """See :class:`runtime.sql.Database`."""
        return await self._writer.run(work)

    async def migrate(self, service: str, migrations: Sequence[Migration], *, now: datetime) -> int:
        """See :class:`runtime.sql.Database`."""
        sql_schema.check(service, migrations)
        micros = unix_micros(now)
        return await self._writer.run(lambda c: sql_schema.migrate(c, service, migrations, micros))

    async def follow(self, channel: str, heard: Callable[[], None]) -> None:
        """See :class:`runtime.sql.Database`. One process has the file: it knows what it does."""

    async def close(self) -> None:
        """See :class:`runtime.sql.Database`."""
        # The last connection to close folds the log into the database file, so the writer's goes
        # last: a reader has no right to do it.
        await self._readers.close()
        await self._writer.close()


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
        # Past SQLAlchemy, which spends more time on it than the database.
        driver: Any = connection.connection.dbapi_connection
        try:
            driver.execute(begin)
        except sqlite3.Error as error:
            raise exc.DBAPIError.instance(
                begin, (), error, sqlite3.Error, dialect=connection.dialect
            ) from error

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", start)
    return engine


def _fault_of(error: exc.DBAPIError) -> Fault:
    code = getattr(error.orig, "sqlite_errorcode", None)
    away = error.connection_invalidated or (code is not None and code & 0xFF in _AWAY)
    return Fault.AWAY if away else Fault.STATEMENT
