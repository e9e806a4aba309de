"""How many calls may wait, as the process keeps up or falls behind."""

from edge.admission import BEHIND_S, FORGIVEN_S, WAITING_MIN, Admission
from runtime.clock import SystemClock

LATE_S = BEHIND_S


def admission(waiting: int, calls_max: int = 2000) -> Admission:
    made = Admission(calls_max, SystemClock())
    made.waiting = waiting
    return made


def test_a_single_hiccup_is_no_overload() -> None:
    made = admission(1000)
    for _ in range(50):
        made.adapt(LATE_S)
        for _ in range(round(LATE_S / FORGIVEN_S)):
            made.adapt(0.0)
    assert made.limit == 2000


def test_a_process_that_stays_late_lets_fewer_wait_than_do() -> None:
    made = admission(1000)
    for _ in range(3):
        made.adapt(LATE_S)
    assert WAITING_MIN <= made.limit < 1000
    assert made.full


def test_however_late_some_may_wait() -> None:
    made = admission(5)
    for _ in range(1000):
        made.adapt(LATE_S)
    assert made.limit == WAITING_MIN
    assert not made.full


def test_a_small_limit_of_the_operators_stays() -> None:
    made = admission(5, calls_max=10)
    for _ in range(3):
        made.adapt(LATE_S)
    assert made.limit == 10


def test_on_time_again_all_may_wait_again() -> None:
    made = admission(1000)
    for _ in range(20):
        made.adapt(LATE_S)
    shed = made.limit
    for _ in range(200):
        made.adapt(0.0)
    assert shed < made.limit == 2000
