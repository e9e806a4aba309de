"""PostgreSQL, for several machines: a bounded pool of connections, each used by one thread at a
time, half of them for snapshots and half for writers at READ COMMITTED.

Nothing here waits for ever: connecting, a statement, a lock and a transaction that its client
forgot have limits (https://www.postgresql.org/docs/current/runtime-config-client.html), a peer that
fell silent is noticed by keepalives
(https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-KEEPALIVES), and a caller that
gives up cuts the connection that worked for it.
"""

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

import psycopg
from psycopg import conninfo
from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event, exc, text

from runtime import sql_schema
from runtime.clock import Clock, Entropy
from runtime.sql_lane import Fault, Lane, LaneRules, Work
from runtime.sql_schema import Migration, SchemaError
from runtime.sql_types import unix_micros

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

MIGRATION_TIMEOUT_S: Final = 600.0
"""How long changing the schema, or waiting for another process that does, may take, in seconds."""

_CONNECT_TIMEOUT_S: Final = 2
_RECONNECT_S: Final = 1.0
_RECYCLE_S: Final = 1800
"""So that connections find their way back after a failover, or to a new balance of a pooler."""

_DEFAULTS: Final[Mapping[str, str | int]] = {
    "application_name": "onegate",
    "connect_timeout": _CONNECT_TIMEOUT_S,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    # Milliseconds: when sent data stays without acknowledgement.
    "tcp_user_timeout": 10_000,
}
"""Parameters of a connection that the DSN may say otherwise."""

_CONFLICT: Final = frozenset({"40001", "40P01"})
_INPUT: Final = frozenset({"22001", "22021", "22P05"})
_LOST: Final = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03"})
_AWAY: Final = frozenset({"57014", "57P04", "55P03", "55006"})
_AWAY_CLASSES: Final = ("08", "28", "3D", "53", "58", "XX")
_READ_ONLY: Final = "25006"
"""Error codes (https://www.postgresql.org/docs/current/errcodes-appendix.html)."""


class PostgresDatabase:
    """A PostgreSQL database. See :class:`runtime.sql.Database`.

    Raises ``ValueError`` for a DSN that cannot be read, without quoting it: it may hold a password.
    """

    def __init__(
        self, dsn: str, *, timeout_s: float, connections_max: int, clock: Clock, entropy: Entropy
    ) -> None:
        self._parameters = _parameters_of(dsn)
        self._clock = clock
        name = str(self._parameters.get("dbname") or self._parameters.get("user") or "postgresql")
        writers = max(1, (connections_max - 1) // 2)
        readers = max(1, connections_max - 1 - writers)

        def lane(threads: int, *, writes: bool) -> Lane:
            rules = LaneRules(
                name=name,
                threads=threads,
                timeout_s=timeout_s,
                fault_of=_fault_of,
                rest_s=_RECYCLE_S,
                abandon=_cut,
            )
            engine = _engine(self._parameters, timeout_s, threads, writes=writes)
            return Lane(engine, rules, clock, entropy)

        self._writers = lane(writers, writes=True)
        self._readers = lane(readers, writes=False)

    async def read(self, work: Work[T]) -> T:
        """See :class:`runtime.sql.Database`."""
        return await self._readers.run(work)

    async def write(self, work: Work[T]) -> T:
        """See :class:`runtime.sql.Database`."""
        return await self._writers.run(work)

    async def migrate(self, service: str, migrations: Sequence[Migration], *, now: datetime) -> int:
        """See :class:`runtime.sql.Database`."""
        sql_schema.check(service, migrations)
        micros = unix_micros(now)

        def work(connection: Connection) -> int:
            _hold_schema(connection)
            return sql_schema.migrate(connection, service, migrations, micros)

        return await self._writers.run(work, timeout_s=MIGRATION_TIMEOUT_S)

    async def follow(self, channel: str, heard: Callable[[], None]) -> None:
        """See :class:`runtime.sql.Database`."""
        away = False
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(
                    **self._parameters, autocommit=True
                )
                async with connection:
                    await connection.execute(
                        psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel))
                    )
                    away = False
                    # What was announced before this moment was announced to others.
                    heard()
                    async for _ in connection.notifies():
                        heard()
            except (psycopg.Error, OSError) as error:
                if not away:
                    reason = next(iter(str(error).splitlines()), "")
                    _LOG.warning("changes made by other processes are noticed later: %s", reason)
                away = True
            await self._clock.sleep(_RECONNECT_S)

    async def close(self) -> None:
        """See :class:`runtime.sql.Database`."""
        await self._readers.close()
        await self._writers.close()


def _parameters_of(dsn: str) -> dict[str, Any]:
    try:
        given = conninfo.conninfo_to_dict(dsn)
    except psycopg.Error:
        raise ValueError(
            "The PostgreSQL DSN cannot be read. It looks like"
            " postgresql://user:password@host:5432/database?sslmode=verify-full; characters like"
            " : / @ % in a password are written as %3A %2F %40 %25."
        ) from None
    return {**_DEFAULTS, **given}


def _engine(
    parameters: Mapping[str, Any], timeout_s: float, connections: int, *, writes: bool
) -> Engine:
    """An engine whose every connection has its limits and its kind of transaction."""
    limits_ms = {
        "statement_timeout": timeout_s,
        # Shorter, so that it is the lock that is named as the cause.
        "lock_timeout": timeout_s * 0.8,
        "idle_in_transaction_session_timeout": timeout_s * 2,
    }
    settings = ", ".join(
        f"set_config('{name}', '{max(1, int(limit * 1000))}', false)"
        for name, limit in limits_ms.items()
    )
    level = psycopg.IsolationLevel
    isolation = level.READ_COMMITTED if writes else level.REPEATABLE_READ

    def connect() -> psycopg.Connection[Any]:
        connection = psycopg.connect(**parameters, autocommit=True)
        try:
            connection.execute(f"SELECT {settings}")
            connection.autocommit = False
            connection.isolation_level = isolation
            # A server that only reads says so at the first write: reading goes on.
            connection.read_only = None if writes else True
        except psycopg.Error:
            connection.close()
            raise
        return connection

    engine = create_engine(
        "postgresql+psycopg://",
        creator=connect,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=timeout_s,
        pool_recycle=_RECYCLE_S,
        use_native_hstore=False,
        hide_parameters=True,
    )
    event.listen(engine, "handle_error", _renounce)
    return engine


def _renounce(context: ExceptionContext) -> None:
    """Connections to a server that takes no writes (any more) are of no use: the next ones may
    reach the server that took over.
    """
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect = True


def _hold_schema(connection: Connection) -> None:
    """Waits until nobody else changes the schema, and then holds everybody back who would."""
    limit = f"'{int(MIGRATION_TIMEOUT_S * 1000)}'"
    connection.execute(text(f"SET LOCAL statement_timeout = {limit}"))
    connection.execute(text(f"SET LOCAL lock_timeout = {limit}"))
    connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended('onegate schema_version', 0))")
    )
    encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
    if encoding != "UTF8":
        raise SchemaError(
            f"The database's encoding is {encoding}: make it with CREATE DATABASE … ENCODING 'UTF8'"
            " TEMPLATE template0."
        )


def _cut(driver: psycopg.Connection[Any]) -> None:
    """Makes whoever waits for this connection fail at once: its thread is needed."""
    try:
        held = socket.socket(fileno=os.dup(driver.fileno()))
    except (OSError, psycopg.Error):
        return
    with held:
        try:
            held.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            _LOG.debug("the connection was gone already: %s", error)


def _fault_of(error: exc.DBAPIError) -> Fault:
    code = getattr(error.orig, "sqlstate", None)
    if code in _CONFLICT:
        return Fault.CONFLICT
    if code == _READ_ONLY:
        return Fault.AWAY
    if error.connection_invalidated or code in _LOST:
        return Fault.LOST
    if isinstance(error, exc.DataError) and (code is None or code in _INPUT):
        return Fault.INPUT
    if code is None:
        # The driver's own errors: what could not be connected to is away.
        return Fault.AWAY if isinstance(error, exc.OperationalError) else Fault.STATEMENT
    return Fault.AWAY if code in _AWAY or code.startswith(_AWAY_CLASSES) else Fault.STATEMENT
