"""Threads that own connections, and what becomes of a transaction that fails.

A transaction is a function of a connection. It runs whole on one thread, is bounded in time and
in how many wait, and is run again from its start when the database says that nothing of it was
kept: after a deadlock, a failed serialisation, or a connection that broke before the commit was
sent. A commit whose answer is lost is never run again: its outcome is unknown.
"""

import asyncio
import contextlib
import enum
import logging
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, exc

from onegate.common.v1 import error_pb2
from runtime.clock import Clock, Entropy
from runtime.errors import GatewayError

_LOG = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[Connection], T]
"""What runs inside a transaction: returns plain values, never a live result. It may run more than
once, so it has no effect but on the database.
"""

CONNECTIONS_MAX: Final = 8
"""Connections of one process: one that listens, the others for transactions."""
TIMEOUT_S: Final = 5.0
"""How long a caller waits for its transaction, queue, lock and repetitions included, in seconds."""

PENDING_MAX: Final = 1024
"""Transactions that may wait or run at once on each side; one more is refused."""

REPETITIONS_MAX: Final = 6
"""How often a transaction of which nothing was kept is run again."""

_BACKOFF_S: Final = 0.01
"""The longest wait before the first repetition, in seconds; it doubles with each."""

_RETRY_AFTER_MS: Final = 1000
_UINT32: Final = 2**32


class Fault(enum.Enum):
    """Whose fault an error of the database is."""

    STATEMENT = enum.auto()
    """The statement's: the store hears of it."""
    INPUT = enum.auto()
    """A value that this database cannot keep."""
    CONFLICT = enum.auto()
    """Another transaction came between; nothing was kept."""
    LOST = enum.auto()
    """The connection broke. Nothing was kept unless the commit was under way."""
    AWAY = enum.auto()
    """The database's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneRules:
    """What a lane needs to know of its database.

    Args:
        name: what the database is called in messages.
        threads: transactions that run at once, each on a connection of its own.
        timeout_s: how long a caller waits, in seconds.
        fault_of: whose fault an error is.
        rest_s: how long a connection is used before the pool is asked for one, in seconds.
        abandon: makes a driver's connection fail wherever it waits; ``None`` when work ends by
            itself.
    """

    name: str
    threads: int
    timeout_s: float
    fault_of: Callable[[exc.DBAPIError], Fault]
    rest_s: float = math.inf
    abandon: Callable[[Any], None] | None = None


class _UndoneError(Exception):
    """Nothing of the transaction was kept; it may run once more."""


class _Ticket:
    """One caller's hold on the connection that works for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._driver: Any = None
        self._left = False

    def take(self, connection: Connection) -> None:
        """The connection now works for this caller."""
        with self._lock:
            self._driver = connection.connection.dbapi_connection

    def give_back(self) -> None:
        """The connection works for nobody, or for another."""
        with self._lock:
            self._driver = None

    def leave(self, abandon: Callable[[Any], None] | None) -> None:
        """The caller waits no longer."""
        with self._lock:
            self._left = True
            if abandon is not None and self._driver is not None:
                abandon(self._driver)

    @property
    def left(self) -> bool:
        """Whether nobody waits for the answer."""
        return self._left


@dataclass(frozen=True, slots=True)
class _Resting:
    """A connection that no transaction uses, and until when one may."""

    connection: Connection
    until_s: float


class Lane:
    """An engine, the threads that may use it, and a bound on who waits for them."""

    def __init__(self, engine: Engine, rules: LaneRules, clock: Clock, entropy: Entropy) -> None:
        self._engine = engine
        self._rules = rules
        self._clock = clock
        self._entropy = entropy
        self._pending = 0
        self._closed = False
        self._away = False
        self._executor = ThreadPoolExecutor(rules.threads, thread_name_prefix=f"sql-{rules.name}")
        # Connections at rest: a transaction that goes well leaves its own for the next, which costs
        # less than the engine's pool does (measured: 15 µs against 50).
        self._resting: list[_Resting] = []

    async def run(self, work: Work[T], *, timeout_s: float | None = None) -> T:
        """One transaction, off the event loop. ``timeout_s`` replaces the lane's own.

        Raises STORE_UNAVAILABLE, and INVALID_REQUEST for a value that cannot be kept.
        """
        if self._closed:
            raise self._unavailable("it is shutting down")
        if self._pending >= PENDING_MAX:
            raise self._unavailable("too many calls wait for it")
        self._pending += 1
        ticket, loop = _Ticket(), asyncio.get_running_loop()
        deadline = loop.time() + (timeout_s or self._rules.timeout_s)
        try:
            async with asyncio.timeout_at(deadline):
                return await self._repeat(ticket, work)
        except TimeoutError:
            ticket.leave(self._rules.abandon)
            raise self._unavailable("it did not answer in time") from None
        except asyncio.CancelledError:
            # Most end soon by themselves, and a new connection costs more.
            ticket.leave(None)
            loop.call_at(deadline, ticket.leave, self._rules.abandon)
            raise
        finally:
            self._pending -= 1

    async def close(self) -> None:
        """Waits for what runs, then closes the connections; drops what has not started."""
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)
        try:
            async with asyncio.timeout(self._rules.timeout_s):
                await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)
        except TimeoutError:
            _LOG.warning("The database %s is still busy; leaving it to itself", self._rules.name)
        else:
            self._dispose()

    async def _repeat(self, ticket: _Ticket, work: Work[T]) -> T:
        loop = asyncio.get_running_loop()
        bound_s = _BACKOFF_S
        for _ in range(REPETITIONS_MAX):
            try:
                return await loop.run_in_executor(self._executor, self._transact, ticket, work)
            except _UndoneError:
                if self._closed:
                    break
                share = int.from_bytes(self._entropy.bytes(4), "big") / _UINT32
                await self._clock.sleep(bound_s * share)
                bound_s *= 2
        raise self._unavailable("it is out of reach or too busy")

    def _transact(self, ticket: _Ticket, work: Work[T]) -> T:
        committing = False
        opened: _Resting | None = None
        try:
            opened = self._connected()
            connection = opened.connection
            with connection.begin():
                ticket.take(connection)
                if ticket.left:
                    raise self._unavailable("nobody waits for it")
                answer = work(connection)
                committing = True
            ticket.give_back()
            if not self._closed:
                self._resting.append(opened)
                opened = None
        except exc.DBAPIError as error:
            if error.connection_invalidated:
                # What broke one has mostly broken all.
                self._disturb()
            self._judge(error, committing=committing)
            raise
        else:
            self._back()
            return answer
        finally:
            ticket.give_back()
            if opened is not None:
                if self._closed and not opened.connection.invalidated:
                    # No pool waits for it any more.
                    opened.connection.detach()
                # The pool looks whether it is still good.
                opened.connection.close()
            if self._closed:
                self._dispose()

    def _connected(self) -> _Resting:
        """A connection of this thread's own."""
        now_s = self._clock.monotonic()
        while self._resting:
            # Appending and taking are one step each, whichever threads do it.
            with contextlib.suppress(IndexError):
                rested = self._resting.pop()
                if now_s < rested.until_s:
                    return rested
                rested.connection.close()
        return _Resting(self._engine.connect(), now_s + self._rules.rest_s)

    def _disturb(self) -> None:
        """Gives the connections at rest back to the pool, which looks whether they are good."""
        while self._resting:
            with contextlib.suppress(IndexError):
                self._resting.pop().connection.close()

    def _dispose(self) -> None:
        """Closes what no transaction uses; whoever still works closes its own."""
        self._disturb()
        self._engine.dispose()

    def _judge(self, error: exc.DBAPIError, *, committing: bool) -> None:
        """Raises what the caller hears instead of ``error``; returns when that is for the store."""
        fault = self._rules.fault_of(error)
        if fault is Fault.STATEMENT:
            return
        if fault is Fault.INPUT:
            raise GatewayError(
                error_pb2.ERROR_REASON_INVALID_REQUEST,
                "A text is too long or holds a character that cannot be stored.",
            ) from None
        if fault is Fault.CONFLICT:
            raise _UndoneError from None
        self._lose(error)
        if fault is Fault.LOST and not committing:
            raise _UndoneError from None
        raise self._unavailable("it is locked, full or out of reach") from None

    def _lose(self, error: exc.DBAPIError) -> None:
        """Says once that the database is away. Only the first line: others may quote values."""
        if not self._away:
            reason = next(iter(str(error.orig).splitlines()), "")
            _LOG.warning("The database %s is unavailable: %s", self._rules.name, reason)
        self._away = True

    def _back(self) -> None:
        if self._away:
            _LOG.info("The database %s is back", self._rules.name)
        self._away = False

    def _unavailable(self, why: str) -> GatewayError:
        return GatewayError(
            error_pb2.ERROR_REASON_STORE_UNAVAILABLE,
            f"The gateway's database {self._rules.name} is unavailable: {why}. Try again shortly.",
            retry_after_ms=_RETRY_AFTER_MS,
        )
