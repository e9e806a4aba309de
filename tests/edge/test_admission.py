"""How many calls may wait, as the gateway keeps up or falls behind."""

import asyncio
import time

import pytest

from edge.admission import FORGIVEN_S, WAITING_MIN, Admission, Bounds, Room, adapted
from runtime.clock import SystemClock
from tests.edge.wire import until

BOUNDS = Bounds(calls_max=2000, behind_max_s=0.2)
FULL = Room(limit=2000)
BEHIND = Room(limit=2000, behind_s=0.2)


@pytest.mark.parametrize(
    ("room", "late_s", "waiting", "after"),
    [
        pytest.param(FULL, 0.0, 0, FULL, id="on time"),
        pytest.param(FULL, FORGIVEN_S, 1000, FULL, id="a little late is on time"),
        pytest.param(FULL, 0.21, 1000, BEHIND, id="one hiccup is no overload"),
        pytest.param(BEHIND, 0.02, 1000, Room(limit=600, behind_s=0.2), id="still late: fewer"),
        pytest.param(BEHIND, 5.0, 1000, Room(limit=600, behind_s=0.2), id="very late: no fewer"),
        pytest.param(BEHIND, 0.02, 9000, Room(limit=1200, behind_s=0.2), id="of what may wait"),
        pytest.param(
            BEHIND, 0.02, 5, Room(limit=WAITING_MIN, behind_s=0.2), id="some may always wait"
        ),
        pytest.param(Room(limit=600), 0.0, 9, Room(limit=631), id="on time again: some more"),
        pytest.param(Room(limit=1999), 0.0, 9, FULL, id="never more than all"),
        pytest.param(
            Room(limit=600, behind_s=0.2),
            0.01,
            9,
            Room(limit=600, behind_s=0.2),
            id="what added up stays until it is worked off",
        ),
    ],
)
def test_room_follows_lateness(room: Room, late_s: float, waiting: int, after: Room) -> None:
    found = adapted(room, late_s, waiting, BOUNDS)
    assert found.limit == after.limit
    assert found.behind_s == pytest.approx(after.behind_s)


def test_what_added_up_is_worked_off_tick_by_tick() -> None:
    room = BEHIND
    for _ in range(round(BOUNDS.behind_max_s / FORGIVEN_S) + 1):
        room = adapted(room, 0.0, 0, BOUNDS)
    assert room.behind_s == 0


def test_a_small_limit_of_the_operators_stays() -> None:
    small = Bounds(calls_max=10, behind_max_s=0.2)
    room = Room(limit=10)
    for _ in range(3):
        room = adapted(room, 0.2, 5, small)
    assert room.limit == 10


@pytest.mark.anyio
async def test_a_late_router_makes_an_edge_refuse_that_is_on_time() -> None:
    admission = Admission(BOUNDS, SystemClock(), lambda: 0.1)
    admission.waiting = 1000
    admission.start()
    try:
        await until(lambda: admission.full)
    finally:
        admission.close()


@pytest.mark.anyio
async def test_an_edge_that_is_late_itself_refuses() -> None:
    admission = Admission(BOUNDS, SystemClock(), lambda: 0.0)
    admission.waiting = 1000
    admission.start()

    async def hold_up() -> None:
        while True:
            time.sleep(0.1)  # noqa: ASYNC251 - a loop that does not come round is what is tested
            await asyncio.sleep(0)

    busy = asyncio.create_task(hold_up())
    try:
        await until(lambda: admission.full)
    finally:
        busy.cancel()
        admission.close()
