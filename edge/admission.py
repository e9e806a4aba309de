"""How many model calls may wait for their answers: fewer when the gateway falls behind.

A process that is given more than it can do answers everything late, its refusals and health
checks too, and does its work in ever larger heaps. So the edge watches how late its own timer runs,
and hears from the routers how late theirs do. When lateness has added up, only a share of what
waits now may wait; when all are on time again, more, step by step, up to ``calls_max``. Calls whose
answer has begun do not count: a thousand slow streams are no reason to refuse a quick call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from runtime.clock import Clock
from runtime.lateness import Lateness

FORGIVEN_S: Final = 0.01
"""How late each tick may be: a fifth of the time."""
LESS: Final = 0.6
MORE: Final = 1.05
WAITING_MIN: Final = 256
"""So many may always wait: enough to keep the process busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How many calls may wait, and why.

    Attributes:
        limit: so many.
        behind_s: the lateness that has added up and was not worked off, in seconds.
    """

    limit: int
    behind_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Between what the limit moves.

    Attributes:
        calls_max: the most that may ever wait.
        behind_max_s: the lateness that may add up before fewer may wait, in seconds: a single
            hiccup of the machine is no overload.
    """

    calls_max: int
    behind_max_s: float


def adapted(room: Room, late_s: float, waiting: int, bounds: Bounds) -> Room:
    """The room after another tick.

    Args:
        room: as it was.
        late_s: how late the tick was, here or at the routers, whichever is later, in seconds.
        waiting: how many calls wait.
        bounds: between what the limit moves.
    """
    top = bounds.calls_max
    behind_s = max(room.behind_s + late_s - FORGIVEN_S, 0.0)
    if behind_s > bounds.behind_max_s:
        share = int(min(waiting, room.limit) * LESS)
        return Room(limit=min(max(share, WAITING_MIN), top), behind_s=bounds.behind_max_s)
    limit = room.limit
    if not behind_s:
        limit = min(int(limit * MORE) + 1, top)
    return Room(limit=limit, behind_s=behind_s)


class Admission:
    """Counts the calls that wait, and says whether there is room for another.

    Args:
        bounds: between what the limit moves.
        clock: measures this process's lateness.
        routers_late_s: how late the router is that calls go to, in seconds.
    """

    __slots__ = ("_bounds", "_lateness", "_routers_late_s", "room", "waiting")

    def __init__(self, bounds: Bounds, clock: Clock, routers_late_s: Callable[[], float]) -> None:
        self._bounds = bounds
        self._routers_late_s = routers_late_s
        self._lateness = Lateness(clock, self._tick)
        self.room = Room(limit=bounds.calls_max)
        self.waiting = 0
        """The calls whose answer has not begun."""

    @property
    def full(self) -> bool:
        """Whether another call is one too many."""
        return self.waiting >= self.room.limit

    def start(self) -> None:
        """Begins to watch; needs the running loop."""
        self._lateness.start()

    def close(self) -> None:
        """Watches no more."""
        self._lateness.close()

    def _tick(self, late_s: float) -> None:
        late_s = max(late_s, self._routers_late_s())
        room = self.room
        if late_s > FORGIVEN_S or room.behind_s or room.limit < self._bounds.calls_max:
            self.room = adapted(room, late_s, self.waiting, self._bounds)
