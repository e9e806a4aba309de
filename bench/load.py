"""The load: raw connections that send the same request and time the answer.

Closed loop: every connection sends again as soon as it has its answer; gives throughput. Open
loop: requests start on a schedule whatever the answers do, and their latency counts from the
scheduled moment, so that a slow answer cannot hide the wait of those behind it.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.connection import Answer, Connection, Shape

__all__ = ["Shape", "Tally", "closed_loop", "open_loop", "quantile"]

CONNECTIONS_MAX: Final = 4000
RECONNECT_S: Final = 0.05
STRETCH: Final = 4.0
"""How many times longer than asked a closed loop may run to see enough answers."""
ROUNDS_MIN: Final = 3
"""How often each connection should have had its answer before a closed loop ends."""
CLOSING_S: Final = 0.02
"""What the event loop gets to close connections before it ends."""
WAIT_S: Final = 5.0
"""How long an open loop waits for its last answers: what takes longer has failed."""


@dataclass(slots=True)
class Tally:
    """What a run gave; times in seconds."""

    duration_s: float = 0.0
    completed: int = 0
    failed: int = 0
    latencies_s: list[float] = field(default_factory=list)
    first_bytes_s: list[float] = field(default_factory=list)
    refusals_s: list[float] = field(default_factory=list)
    """How long refusals took (429 and 503), from when the request was sent."""
    without_advice: int = 0
    """Refusals that do not say when to come back."""
    failures: dict[str, int] = field(default_factory=dict)
    late_s: list[float] = field(default_factory=list)
    """How late requests of an open loop were sent: the load's own fault."""

    def fail(self, why: str) -> None:
        """Counts one failure."""
        self.failed += 1
        self.failures[why] = self.failures.get(why, 0) + 1

    def take(self, answer: Answer, since_s: float) -> None:
        """Takes one answer in, timed from ``since_s``."""
        if answer.why:
            self.fail(answer.why)
            if answer.why in ("429", "503"):
                self.refusals_s.append(answer.ended_at_s - answer.sent_at_s)
                self.without_advice += not answer.retry_after
            return
        self.completed += 1
        self.latencies_s.append(answer.ended_at_s - since_s)
        self.first_bytes_s.append(answer.first_byte_at_s - since_s)

    @property
    def rate(self) -> float:
        """Completed requests a second."""
        return self.completed / self.duration_s if self.duration_s else 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the values lie; 0 of none."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def nothing() -> None:
    """For who has nothing to do at a window's ends."""


class ClosedLoop:
    """A fixed number of connections, each of which always has one request under way.

    A tenth of the time goes first, unmeasured. ``watch`` is called at both ends of what is
    measured. Slow gateways get up to :data:`STRETCH` times as long, until enough answers were seen.
    """

    def __init__(
        self,
        shape: Shape,
        connections: int,
        duration_s: float,
        watch: Callable[[], None] = nothing,
        answers_min: int | None = None,
    ) -> None:
        self.tally = Tally()
        self._enough = ROUNDS_MIN * connections if answers_min is None else answers_min
        self._shape = shape
        self._request = shape.request()
        self._wanted = connections
        self._duration_s = duration_s
        self._watch = watch
        self._connections: set[Connection] = set()
        self._over = asyncio.get_running_loop().create_future()
        self._start_s = self._stop_s = 0.0
        self._measuring = False
        self.longest_s = duration_s * (STRETCH + 0.1)
        """When it ends however few answers were seen."""

    async def run(self) -> Tally:
        """Runs it."""
        loop = asyncio.get_running_loop()
        self._stop_s = time.perf_counter() + 1e9
        for _ in range(self._wanted):
            await self._open()
        warm = loop.call_later(self._duration_s / 10, self._begin)
        last = loop.call_later(self.longest_s, self._end)
        try:
            await self._over
        finally:
            warm.cancel()
            last.cancel()
            for connection in list(self._connections):
                connection.leave()
            await asyncio.sleep(CLOSING_S)
        return self.tally

    def _begin(self) -> None:
        self._watch()
        self._start_s = time.perf_counter()
        self._stop_s = self._start_s + self._duration_s
        self._measuring = True
        loop = asyncio.get_running_loop()
        loop.call_later(self._duration_s, self._look)

    def _look(self) -> None:
        """The time is over: enough seen?"""
        if self._measuring and self.tally.completed >= self._enough:
            self._end()

    def _end(self) -> None:
        if not self._measuring or self._over.done():
            return
        self._measuring = False
        self.tally.duration_s = time.perf_counter() - self._start_s
        self._watch()
        self._over.set_result(None)

    def _ended(self, connection: Connection, answer: Answer) -> None:
        if self._measuring:
            self.tally.take(answer, answer.sent_at_s)
            if answer.ended_at_s >= self._stop_s and self.tally.completed >= self._enough:
                self._end()
        if self._over.done():
            return
        if connection.alive:
            connection.send(self._request, time.perf_counter())
        else:
            self._connections.discard(connection)
            asyncio.get_running_loop().call_later(RECONNECT_S, self._reopen)

    def _reopen(self) -> None:
        if not self._over.done():
            self._opening = asyncio.ensure_future(self._open())

    async def _open(self) -> None:
        try:
            connection = await Connection.to(self._shape, self._ended)
        except OSError:
            self.tally.fail("not connected")
            asyncio.get_running_loop().call_later(RECONNECT_S, self._reopen)
            return
        self._connections.add(connection)
        connection.send(self._request, time.perf_counter())


async def closed_loop(
    shape: Shape, connections: int, duration_s: float, watch: Callable[[], None] = nothing
) -> Tally:
    """Throughput with a fixed number of connections; see :class:`ClosedLoop`."""
    return await ClosedLoop(shape, connections, duration_s, watch).run()


async def open_loop(
    shape: Shape, rate: float, duration_s: float, watch: Callable[[], None] = nothing
) -> Tally:
    """Latency at a fixed rate, from the scheduled moment; a tenth of the time goes first,
    unmeasured. What has no answer :data:`WAIT_S` after the last request was due has failed.
    """
    request = shape.request()
    tally = Tally()
    idle: list[Connection] = []
    everyone: set[Connection] = set()
    begin = time.perf_counter()
    start = begin + duration_s / 10

    def ended(connection: Connection, answer: Answer) -> None:
        if connection.scheduled_at_s >= start:
            tally.take(answer, connection.scheduled_at_s)
        if connection.alive:
            idle.append(connection)
        else:
            everyone.discard(connection)

    try:
        for number in range(int(rate * duration_s * 1.1)):
            due = begin + number / rate
            if number == int(rate * duration_s * 0.1):
                watch()
            await _until(due)
            connection = _free(idle)
            if connection is None:
                if len(everyone) >= CONNECTIONS_MAX:
                    tally.fail("too many connections")
                    continue
                with contextlib.suppress(OSError):
                    connection = await Connection.to(shape, ended)
                if connection is None:
                    tally.fail("not connected")
                    continue
                everyone.add(connection)
            tally.late_s.append(time.perf_counter() - due)
            connection.send(request, due)
        tally.duration_s = duration_s
        watch()
        await _finish(everyone, tally)
    finally:
        for connection in everyone:
            connection.leave()
        await asyncio.sleep(CLOSING_S)
    return tally


async def _until(due_s: float) -> None:
    delay_s = due_s - time.perf_counter()
    if delay_s > 0:
        await asyncio.sleep(delay_s)


def _free(idle: list[Connection]) -> Connection | None:
    """A connection that waits for work."""
    while idle:
        connection = idle.pop()
        if connection.alive:
            return connection
    return None


async def _finish(connections: set[Connection], tally: Tally) -> None:
    """Waits for what is still under way."""
    deadline = time.perf_counter() + WAIT_S
    while any(connection.busy for connection in connections):
        if time.perf_counter() > deadline:
            for _ in range(sum(connection.busy for connection in connections)):
                tally.fail("no answer in time")
            return
        await asyncio.sleep(0.01)
