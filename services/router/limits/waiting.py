"""Calls above a rate limit that wait for their turn instead of being refused.

One queue for each project and model. The highest priority goes first; within it keys take turns, so
that one with a thousand calls does not keep another with one waiting. A call that waits costs
nothing upstream. It leaves when it is admitted, when its time is over, or when its caller goes.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from onegate.common.v1 import error_pb2
from runtime.clock import Clock
from runtime.errors import GatewayError
from services.router.limits.windows import Ticket

RETRY_MIN_S: Final = 0.005
"""The least time between two looks at a limit."""
CROWDED_MS: Final = 1000
"""When a call may come again that has waited in vain behind others."""

Admit = Callable[[], Awaitable[Ticket]]


class _Waiter:
    """A call in a queue. The least ``rank`` is first."""

    __slots__ = ("rank", "turn")

    def __init__(self, rank: tuple[int, float, int]) -> None:
        self.rank = rank
        self.turn = asyncio.Event()


class _Queue:
    """The calls of one project and model."""

    __slots__ = ("_counts", "_passed", "_tags", "waiters")

    def __init__(self) -> None:
        self.waiters: list[_Waiter] = []
        self._tags: dict[str, float] = {}
        self._passed = 0.0
        self._counts = 0

    def join(self, key: str, priority: int) -> _Waiter:
        """A call of this key comes in: behind the key's own calls, beside those of others
        (start-time fair queueing, https://doi.org/10.1109/90.649569).
        """
        tag = max(self._tags.get(key, 0.0), self._passed) + 1.0
        self._tags[key] = tag
        self._counts += 1
        waiter = _Waiter((-priority, tag, self._counts))
        self.waiters.append(waiter)
        return waiter

    def first(self) -> _Waiter:
        """Whose turn it is."""
        return min(self.waiters, key=lambda waiter: waiter.rank)

    def leave(self, waiter: _Waiter) -> None:
        """A call is through or gives up; the next one looks."""
        self.waiters.remove(waiter)
        self._passed = max(self._passed, waiter.rank[1] - 1.0)
        if self.waiters:
            self.first().turn.set()


class Waiting:
    """All queues of a router.

    Args:
        clock: measures waits.
        wait_max_s: the longest wait; 0 for none: calls above a limit are refused at once.
        calls_max: how many calls wait at most, of all keys together.
    """

    def __init__(self, clock: Clock, wait_max_s: float, calls_max: int) -> None:
        self._clock = clock
        self._wait_max_s = wait_max_s
        self._calls_max = calls_max
        self._queues: dict[tuple[str, str], _Queue] = {}
        self.count = 0

    async def admitted(
        self, admit: Admit, place: tuple[str, str], key: str, priority: int, left_s: float
    ) -> Ticket:
        """The ticket of a call, once there is room for it.

        Args:
            admit: tries; raises RATE_LIMIT_EXCEEDED with the time after which it may go well.
            place: which queue: project and model.
            key: whose call.
            priority: from 0; the highest goes first.
            left_s: how long the call may wait.

        Raises what ``admit`` raised last, when the time is over or too many calls wait.
        """
        wait_s = min(self._wait_max_s, left_s)
        if wait_s <= 0:
            return await admit()
        if place not in self._queues:
            try:
                return await admit()
            except GatewayError as refusal:
                if not _may_wait(refusal) or self.count >= self._calls_max:
                    raise
        elif self.count >= self._calls_max:
            raise _crowded()
        return await self._wait(admit, place, (key, priority), self._clock.monotonic() + wait_s)

    async def _wait(
        self, admit: Admit, place: tuple[str, str], who: tuple[str, int], until_s: float
    ) -> Ticket:
        queue = self._queues.setdefault(place, _Queue())
        waiter = queue.join(*who)
        self.count += 1
        try:
            while True:
                if self._clock.monotonic() >= until_s:
                    raise _crowded()
                if queue.first() is waiter:
                    try:
                        return await admit()
                    except GatewayError as refusal:
                        left_s = until_s - self._clock.monotonic()
                        if not _may_wait(refusal) or left_s <= 0:
                            raise
                        pause_s = max(refusal.retry_after_ms / 1000, RETRY_MIN_S)
                        await self._clock.sleep(min(pause_s, left_s))
                else:
                    await self._turn(waiter, until_s)
        finally:
            self.count -= 1
            queue.leave(waiter)
            if not queue.waiters:
                self._queues.pop(place, None)

    async def _turn(self, waiter: _Waiter, until_s: float) -> None:
        waiter.turn.clear()
        try:
            async with asyncio.timeout(max(until_s - self._clock.monotonic(), 0.0)):
                await waiter.turn.wait()
        except TimeoutError:
            return


def _crowded() -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED,
        "Other calls wait for room under this project's rate limits, too; try again later.",
        retry_after_ms=CROWDED_MS,
    )


def _may_wait(refusal: GatewayError) -> bool:
    """Whether time alone helps."""
    limited = refusal.reason == error_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED
    return limited and refusal.retry_after_ms > 0
