"""Deadlines that move with every byte, at the price of an assignment.

A timer for each read of each stream would cost more than the read. Here every call under way has
one :class:`Watch` whose ``deadline_s`` is simply set anew, and one timer for the whole process
looks at all of them and cancels the tasks of those that are late. The watch then says whether a
cancellation was its doing.
"""

import asyncio
from typing import Final, Self

from runtime.clock import Clock

SWEEP_S: Final = 0.05
"""How often deadlines are looked at; a call ends at most so much too late."""


class Watch:
    """One task's deadline, in monotonic seconds. Use as a context manager around the task's
    work.
    """

    __slots__ = ("_task", "_watchdog", "deadline_s", "expired")

    def __init__(self, watchdog: "Watchdog", task: asyncio.Task[None], deadline_s: float) -> None:
        self._watchdog = watchdog
        self._task = task
        self.deadline_s = deadline_s
        self.expired = False

    def __enter__(self) -> Self:
        self._watchdog.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.discard(self)

    def expire(self) -> None:
        """Cancels the task, once."""
        if not self.expired:
            self.expired = True
            self._task.cancel()

    def caught(self) -> bool:
        """Asked when the task was cancelled: whether this watch alone did it.

        Takes the cancellation back when so; the task may then go on, or raise something better.
        """
        if not self.expired:
            return False
        self.expired = False
        return self._task.uncancel() == 0


class Watchdog:
    """The one timer. It runs only while something is watched."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._watches: set[Watch] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, deadline_s: float) -> Watch:
        """Watches the task that calls this."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can be watched")
        return Watch(self, task, deadline_s)

    def add(self, watch: Watch) -> None:
        """Starts watching."""
        self._watches.add(watch)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def discard(self, watch: Watch) -> None:
        """Stops watching."""
        self._watches.discard(watch)

    def _sweep(self) -> None:
        now_s = self._clock.monotonic()
        for watch in self._watches:
            if watch.deadline_s <= now_s:
                watch.expire()
        if self._watches:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
        else:
            self._timer = None
