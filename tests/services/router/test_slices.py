"""Slices: money held in advance, from which calls are admitted without asking."""

from services.router.money.slices import (
    BUSY_HOLDS,
    CALLS,
    IDLE_S,
    PAYERS_MAX,
    REFUSED_S,
    Slice,
    Slices,
)

KEY = ("org", "proj", "key", "", "", "")
OTHER = ("org", "proj", "other", "", "", "")


def slice_of(left: int, *, until_s: float = 100.0, name: str = "s-1") -> Slice:
    return Slice(id=name, left_nano_usd=left, good_until_s=until_s, used_s=0.0)


def busy(slices: Slices, key: tuple[str, str, str, str, str, str] = KEY) -> int:
    """What is asked for once a payer has become busy."""
    return [slices.wanted(key, 10, 0.0) for _ in range(BUSY_HOLDS)][-1]


def test_a_payer_that_calls_often_is_worth_a_slice_and_a_quiet_one_is_not() -> None:
    slices = Slices()
    assert [slices.wanted(OTHER, 10, second * 2.0) for second in range(50)] == [0] * 50
    assert busy(slices) == 10 * CALLS
    assert slices.wanted(KEY, 10, 0.0) == 0, "one question at a time"


def test_calls_take_from_a_slice_until_it_has_too_little() -> None:
    slices = Slices()
    busy(slices)
    slices.put(KEY, slice_of(25))
    assert [slices.take(KEY, 10, 1.0) for _ in range(3)] == ["s-1", "s-1", ""]
    (done,) = slices.returnable(1.0)
    assert done.left_nano_usd == 5
    assert slices.take(KEY, 1, 1.0) == "", "what is to be returned admits nothing"


def test_a_slice_belongs_to_its_payer() -> None:
    slices = Slices()
    busy(slices)
    slices.put(KEY, slice_of(25))
    assert slices.take(OTHER, 1, 1.0) == ""


def test_what_was_not_dispatched_is_there_again() -> None:
    slices = Slices()
    busy(slices)
    slices.put(KEY, slice_of(10))
    assert slices.take(KEY, 10, 1.0) == "s-1"
    slices.give_back(KEY, "s-1", 10)
    assert slices.take(KEY, 10, 1.0) == "s-1"


def test_a_slice_admits_nothing_once_its_time_is_over() -> None:
    slices = Slices()
    busy(slices)
    slices.put(KEY, slice_of(25, until_s=5.0))
    assert slices.take(KEY, 1, 5.0) == ""
    assert [one.id for one in slices.returnable(5.0)] == ["s-1"]


def test_an_idle_slice_goes_back_and_one_in_use_stays() -> None:
    slices = Slices()
    busy(slices)
    slices.put(KEY, slice_of(25))
    slices.take(KEY, 1, 1.0)
    assert slices.returnable(1.0 + IDLE_S - 0.01) == []
    assert [one.id for one in slices.returnable(1.0 + IDLE_S)] == ["s-1"]
    assert slices.returnable(99.0) == [], "once"


def test_no_slice_is_asked_for_soon_after_one_was_refused_or_called_back() -> None:
    slices = Slices()
    busy(slices)
    slices.refused(KEY, 0.0)
    assert busy(slices) == 0
    assert [slices.wanted(KEY, 10, REFUSED_S) for _ in range(BUSY_HOLDS)][-1] == 10 * CALLS
    slices.put(KEY, slice_of(25))
    slices.recall(frozenset({"s-1", "unknown"}), REFUSED_S)
    assert slices.take(KEY, 1, REFUSED_S) == ""
    assert [one.id for one in slices.returnable(REFUSED_S)] == ["s-1"]
    assert [slices.wanted(KEY, 10, REFUSED_S) for _ in range(BUSY_HOLDS)][-1] == 0


def test_a_payer_that_is_forgotten_leaves_no_slice_behind() -> None:
    slices = Slices()
    busy(slices)
    slices.put(KEY, slice_of(25))
    for number in range(PAYERS_MAX):
        slices.wanted(("org", str(number), "", "", "", ""), 1, 0.0)
    assert [one.id for one in slices.returnable(0.0)] == ["s-1"]
    slices.put(KEY, slice_of(25, name="late"))
    assert [one.id for one in slices.returnable(0.0)] == ["late"]


def test_closing_gives_everything_back() -> None:
    slices = Slices()
    busy(slices)
    slices.put(KEY, slice_of(25))
    slices.close()
    assert [one.left_nano_usd for one in slices.returnable(0.0)] == [25]
