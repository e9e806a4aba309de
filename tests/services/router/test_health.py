"""Cool-downs, quarantines and the retry budget, over time that a test owns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.routing import health as module
from services.router.routing.health import Health, RetryBudget


@given(
    wishes=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 5000)), min_size=1, max_size=30),
    asked_after_s=st.floats(0, 10_000),
)
def test_nobody_is_called_before_the_latest_time_that_a_provider_asked_for(
    wishes: list[tuple[float, float]], asked_after_s: float
) -> None:
    health, now_s, until_s = Health(), 1000.0, 0.0
    for gap_s, wait_s in wishes:
        now_s += gap_s
        health.cool_down("a/m", wait_s, now_s)
        until_s = max(until_s, now_s + min(wait_s, module.COOL_DOWN_MAX_S))
    now_s += asked_after_s
    left_s = health.cooling_s("a/m", now_s)
    assert (left_s > 0) == (now_s < until_s)
    assert left_s == pytest.approx(max(until_s - now_s, 0.0))
    assert health.cooling_s("b/m", now_s) == 0.0


def test_cool_downs_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENTRIES_MAX", 3)
    health = Health()
    for index in range(5):
        health.cool_down(f"a/{index}", 10.0, 0.0)
    assert [health.cooling_s(f"a/{index}", 1.0) for index in range(5)] == [9.0, 9.0, 9.0, 0.0, 0.0]
    health.cool_down("a/0", 20.0, 1.0)
    assert health.cooling_s("a/0", 1.0) == 20.0
    health.cool_down("a/9", 10.0, 15.0)
    assert health.cooling_s("a/9", 15.0) == 10.0
    assert health.cooling_s("a/1", 15.0) == 0.0
    assert len(health._cooling) == 2


def test_a_refused_credential_rests_longer_each_time_and_is_news_once() -> None:
    health, now_s = Health(), 0.0
    assert health.quarantine("openai", now_s)
    assert not health.quarantine("openai", now_s + 1)  # a call that was under way
    for rest_s in (60, 120, 240, 480, 900, 900):
        assert health.quarantined("openai", now_s + rest_s - 1)
        now_s += rest_s
        assert not health.quarantined("openai", now_s)
        assert not health.quarantine("openai", now_s)
    health.restore("openai", "openai/m")
    assert not health.quarantined("openai", now_s)
    assert health.quarantine("openai", now_s)


def test_a_model_can_rest_without_its_provider() -> None:
    health = Health()
    health.restore("openai", "openai/a")
    health.quarantine("openai/a", 0.0)
    assert health.quarantined("openai/a", 1.0)
    assert not health.quarantined("openai", 1.0)
    health.restore("openai", "openai/b")
    assert health.quarantined("openai/a", 1.0)
    health.restore("openai", "openai/a")
    assert not health.quarantined("openai/a", 1.0)


def test_quarantines_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENTRIES_MAX", 1)
    health = Health()
    assert health.quarantine("a", 0.0)
    assert health.quarantine("b", 0.0)
    assert not health.quarantined("b", 1.0)


@given(
    calls=st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=400),
    ratio=st.floats(0, 1),
)
def test_retries_stay_within_their_share(calls: list[tuple[float, bool]], ratio: float) -> None:
    budget, now_s, earned, spent = RetryBudget(ratio), 0.0, 0, 0
    for gap_s, fails in calls:
        now_s += gap_s
        budget.earn(now_s)
        earned += 1
        if fails and budget.spend(now_s):
            spent += 1
    assert spent <= module.RETRIES_PER_S * (1 + now_s) + ratio * earned + 1e-6


def test_a_quiet_gateway_may_retry() -> None:
    budget = RetryBudget(0.1)
    assert [budget.spend(0.0) for _ in range(4)] == [True, True, True, False]
    assert budget.spend(0.4)
    assert not budget.spend(0.4)
    assert [budget.spend(1000.0) for _ in range(4)] == [True, True, True, False]


def test_many_calls_save_up_retries_but_not_without_end() -> None:
    budget = RetryBudget(0.5)
    for _ in range(10_000):
        budget.earn(1.0)
    assert sum(budget.spend(1.0) for _ in range(10_000)) == module.RETRIES_SAVED_MAX
