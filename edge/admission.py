"""How many model calls may wait for their answers: fewer when the process falls behind.

A process that is given more than it can do answers everything late, its refusals and health
checks too, and does its work in ever larger heaps. So it watches how late its own timer runs. When
that has added up, only a share of what waits now may wait; when it is on time again, more, step
by step, up to ``calls_max``. Calls whose answer has begun do not count: a thousand slow streams are
no reason to refuse a quick call.
"""

import asyncio
from typing import Final

from runtime.clock import Clock

TICK_S: Final = 0.05
FORGIVEN_S: Final = 0.01
"""How late each tick may be: a fifth of the time."""
BEHIND_S: Final = 0.2
"""How much of what is not forgiven may add up: a single hiccup of the machine is no overload."""
LESS: Final = 0.6
MORE: Final = 1.05
WAITING_MIN: Final = 256
"""So many may always wait: enough to keep the process busy."""


class Admission:
    """Counts the calls that wait, and says whether there is room for another."""

    __slots__ = ("_behind_s", "_due_s", "_limit", "_monotonic", "_timer", "_top", "waiting")

    def __init__(self, calls_max: int, clock: Clock) -> None:
        self._top = calls_max
        self._limit = calls_max
        self._monotonic = clock.monotonic
        self._due_s = 0.0
        self._behind_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.waiting = 0
        """The calls whose answer has not begun."""

    @property
    def limit(self) -> int:
        """How many may wait."""
        return self._limit

    @property
    def full(self) -> bool:
        """Whether another call is one too many."""
        return self.waiting >= self._limit

    def start(self) -> None:
        """Begins to watch; needs the running loop."""
        self._due_s = self._monotonic() + TICK_S
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def close(self) -> None:
        """Watches no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self.adapt(self._monotonic() - self._due_s)
        self.start()

    def adapt(self, late_s: float) -> None:
        """Takes in how late a tick was, in seconds."""
        self._behind_s = max(self._behind_s + late_s - FORGIVEN_S, 0.0)
        if self._behind_s > BEHIND_S:
            self._behind_s = BEHIND_S
            waiting = min(self.waiting, self._limit)
            self._limit = min(max(int(waiting * LESS), WAITING_MIN), self._top)
        elif self._limit < self._top and not self._behind_s:
            self._limit = min(int(self._limit * MORE) + 1, self._top)
