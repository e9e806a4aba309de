"""What is seen of deployments, and when one is left alone; over time that a test owns."""

import pytest

from services.router.routing import observed as module
from services.router.routing.observed import Observed, Seen


def after(*ends: bool, gap_s: float = 0.125) -> tuple[Seen, float]:
    seen, now_s = Seen(), 1000.0
    for well in ends:
        now_s += gap_s
        seen.begin(now_s)
        if well:
            seen.succeeded(0.1, 10, 1.0, now_s)
        else:
            seen.failed(now_s)
        seen.end()
    return seen, now_s


def test_failures_in_a_row_open_the_breaker_and_one_success_between_does_not() -> None:
    seen, now_s = after(*[False] * module.STREAK_MAX)
    assert seen.broken_s(now_s) == module.REST_S
    seen, now_s = after(*[False] * (module.STREAK_MAX - 1), True, False)
    assert seen.broken_s(now_s) == 0


def test_many_failures_among_successes_open_it_too() -> None:
    seen, now_s = after(*[False, False, True] * 30, gap_s=0.0)
    assert seen.broken_s(now_s) > 0
    seen, now_s = after(*[False, True, True, True] * 30)
    assert seen.broken_s(now_s) == 0


def test_after_its_rest_one_call_looks_while_the_others_stay_away() -> None:
    seen, now_s = after(*[False] * module.STREAK_MAX)
    now_s += module.REST_S
    assert seen.broken_s(now_s) == 0
    seen.begin(now_s)
    assert seen.broken_s(now_s) == module.PROBE_MAX_S
    seen.succeeded(0.1, 10, 1.0, now_s)
    seen.end()
    assert seen.broken_s(now_s) == 0


def test_a_probe_that_fails_doubles_the_rest_up_to_a_maximum() -> None:
    seen, now_s = after(*[False] * module.STREAK_MAX)
    rests = []
    for _ in range(6):
        now_s += seen.broken_s(now_s)
        seen.begin(now_s)
        seen.failed(now_s)
        seen.end()
        rests.append(seen.broken_s(now_s))
    assert rests == [10.0, 20.0, 40.0, 60.0, 60.0, 60.0]


def test_a_probe_that_never_ends_does_not_keep_others_away_for_ever() -> None:
    seen, now_s = after(*[False] * module.STREAK_MAX)
    now_s += module.REST_S
    seen.begin(now_s)
    assert seen.broken_s(now_s + module.PROBE_MAX_S) == 0


def test_a_peak_of_latency_counts_at_once_and_fades() -> None:
    seen = Seen()
    seen.succeeded(0.1, 1, 0.0, 1000.0)
    seen.succeeded(2.0, 1, 0.0, 1001.0)
    assert seen.latency_s(1001.0) == 2.0
    seen.succeeded(0.1, 1, 0.0, 1002.0)
    assert 1.5 < seen.latency_s(1002.0) < 2.0
    assert seen.latency_s(1002.0 + 10 * module.DECAY_S) < 0.01


def test_calls_under_way_make_a_further_one_wait_longer() -> None:
    seen = Seen()
    assert seen.latency_s(1000.0) == 0
    seen.begin(1000.0)
    assert seen.latency_s(1000.0) == module.UNSEEN_S
    seen.succeeded(0.5, 1, 0.0, 1000.0)
    assert seen.latency_s(1000.0) == 1.0


def test_speed_is_of_the_stream_alone() -> None:
    seen = Seen()
    seen.succeeded(9.0, 101, 2.0, 1000.0)
    assert seen.tokens_per_s == 50.0
    seen.succeeded(9.0, 101, 0.0, 1000.0)
    assert seen.tokens_per_s == 50.0


def test_a_limit_that_is_used_up_is_believed_for_so_long_at_most() -> None:
    observed = Observed()
    seen = observed.of("a/m")
    seen.limited(None, 1000.0)
    seen.limited(0.0, 1000.0)
    assert not observed.full("a/m", 1000.0)
    seen.limited(9 * 3600.0, 1000.0)
    seen.limited(None, 1000.0)
    assert observed.full("a/m", 1000.0 + module.FULL_MAX_S - 1)
    assert not observed.full("a/m", 1000.0 + module.FULL_MAX_S)
    # The latest word counts.
    seen.limited(0.0, 1000.0)
    assert not observed.full("a/m", 1000.0)
    assert not observed.full("b/m", 1000.0)


def test_what_is_known_of_deployments_does_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENTRIES_MAX", 3)
    observed = Observed()
    for n in range(10):
        for _ in range(module.STREAK_MAX):
            observed.failed(f"a/{n}", 1000.0)
        if n == 1:
            observed.of("a/1").begin(1000.0)
    assert len(observed._seen) <= 3
    assert observed._failing <= observed._seen.keys()
    assert observed.find("a/1") is not None


def test_a_breaker_is_forgotten_once_it_is_closed() -> None:
    observed = Observed()
    for _ in range(module.STREAK_MAX):
        observed.failed("a/m", 1000.0)
    assert observed.broken_s("a/m", 1000.0) == module.REST_S
    assert observed.broken_s("b/m", 1000.0) == 0
    observed.of("a/m").succeeded(0.1, 1, 0.0, 1001.0)
    assert observed.broken_s("a/m", 1001.0) > 0, "a call from before says little"
    observed.of("a/m").succeeded(0.1, 1, 0.0, 1005.0)
    assert observed.broken_s("a/m", 1005.0) == 0
    assert not observed._failing
