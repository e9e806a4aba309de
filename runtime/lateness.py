"""How late a process is: it sets itself a timer and looks when it runs.

A process that has more to do than it can, or that the machine does not let run, answers everything
late. Its own timers are late by as much.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from runtime.clock import Clock

TICK_S: Final = 0.05


class Lateness:
    """Watches how late the event loop is.

    Args:
        clock: measures it.
        ticked: is told at each tick how late that one was, in seconds.
    """

    __slots__ = ("_due_s", "_monotonic", "_ticked", "_timer", "late_s")

    def __init__(self, clock: Clock, ticked: Callable[[float], None] | None = None) -> None:
        self._monotonic = clock.monotonic
        self._ticked = ticked
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.late_s = 0.0
        """How late the last tick was."""

    def start(self) -> None:
        """Begins to watch; needs the running loop."""
        self._due_s = self._monotonic() + TICK_S
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def close(self) -> None:
        """Watches no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self.late_s = late_s = max(self._monotonic() - self._due_s, 0.0)
        if self._ticked is not None:
            self._ticked(late_s)
        self.start()
