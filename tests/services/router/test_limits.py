"""Rate limits: the promise over any history, and each figure that a caller sees."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from services.router.limits import windows
from services.router.limits.windows import SLOTS, Limits, SlidingWindow

REQUESTS = grant_pb2.RATE_METER_REQUESTS
TOKENS = grant_pb2.RATE_METER_TOKENS
CONCURRENCY = grant_pb2.RATE_METER_CONCURRENCY
KEY = grant_pb2.RATE_SCOPE_KEY
MODEL = "openai/gpt-5"


def guess(tokens: int) -> Callable[[], int]:
    return lambda: tokens


def grant(
    *rates: grant_pb2.RateLimit, key_id: str = "key_1", project: str = "p"
) -> grant_pb2.Grant:
    return grant_pb2.Grant(
        key_id=key_id, project_id=project, organization_id="o", rate_limits=rates
    )


def rate(
    meter: grant_pb2.RateMeter.ValueType,
    amount: int,
    window_s: int = 60,
    *,
    scope: grant_pb2.RateScope.ValueType = KEY,
    model: str = "",
) -> grant_pb2.RateLimit:
    return grant_pb2.RateLimit(
        meter=meter, amount=amount, window_s=window_s, scope=scope, model=model
    )


def refused(
    counted: Limits, owner: grant_pb2.Grant, now_s: float, tokens: int = 1, model: str = MODEL
) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        counted.admit(owner, model, lambda: tokens, now_s)
    assert caught.value.reason == error_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED
    return caught.value


@dataclass
class Asked:
    """One call of a history: how long after the one before, and how many tokens."""

    gap_s: float
    tokens: int


HISTORIES = st.lists(
    st.builds(
        Asked,
        gap_s=st.one_of(st.just(0.0), st.floats(0, 0.2), st.floats(0, 30)),
        tokens=st.integers(1, 40),
    ),
    min_size=1,
    max_size=150,
)


@settings(max_examples=300, deadline=None)
@given(history=HISTORIES, amount=st.integers(1, 60), window_s=st.integers(1, 20))
def test_no_window_ever_admits_more_than_the_limit(
    history: list[Asked], amount: int, window_s: int
) -> None:
    window = SlidingWindow(window_s)
    admitted: list[tuple[float, int]] = []
    now_s = 1000.0
    for asked in history:
        now_s += asked.gap_s
        window.expire(now_s)
        tokens = min(asked.tokens, amount)
        if window.wait_s(tokens, amount, now_s) <= 0:
            window.add(tokens, now_s)
            admitted.append((now_s, tokens))
    for index, (start, _) in enumerate(admitted):
        inside = [tokens for at, tokens in admitted[index:] if at < start + window_s]
        assert sum(inside) <= amount
    assert len(window._slots) <= SLOTS + 1
    assert window.used == sum(slot.amount for slot in window._slots)


@settings(max_examples=300, deadline=None)
@given(history=HISTORIES, amount=st.integers(1, 60), window_s=st.integers(1, 20))
def test_who_waits_as_told_is_admitted(history: list[Asked], amount: int, window_s: int) -> None:
    counted, owner = Limits(), grant(rate(TOKENS, amount, window_s))
    now_s = 1000.0
    for asked in history:
        now_s += asked.gap_s
        try:
            counted.admit(owner, MODEL, guess(asked.tokens), now_s)
        except GatewayError as told:
            now_s += told.retry_after_ms / 1000
            counted.admit(owner, MODEL, guess(asked.tokens), now_s)


@settings(max_examples=200, deadline=None)
@given(
    history=st.lists(
        st.tuples(st.floats(0, 5), st.integers(1, 40), st.integers(0, 40)), max_size=80
    )
)
def test_corrected_tokens_add_up_to_what_was_used(history: list[tuple[float, int, int]]) -> None:
    counted, owner = Limits(), grant(rate(TOKENS, 10**6, 10**5))
    now_s, used = 0.0, 0
    for gap_s, reserved, actual in history:
        now_s += gap_s
        counted.admit(owner, MODEL, guess(reserved), now_s).close(actual, now_s)
        used += actual
    (window,) = counted._windows.values() if history else (SlidingWindow(1),)
    assert window.used == used


def test_requests_are_counted_and_told() -> None:
    counted, owner = Limits(), grant(rate(REQUESTS, 2))
    first = counted.admit(owner, MODEL, lambda: 1, 0.0)
    second = counted.admit(owner, MODEL, lambda: 1, 15.0)
    assert first.requests is not None
    assert (first.requests.limit, first.requests.remaining) == (2, 1)
    assert second.requests is not None
    assert (second.requests.remaining, second.requests.reset_ms) == (0, 60_000)
    assert second.tokens is None
    told = refused(counted, owner, 20.0)
    assert told.retry_after_ms == 40_000
    assert "key's limit of 2 requests in 60 s" in told.message
    counted.admit(owner, MODEL, lambda: 1, 60.0)


def test_a_key_without_limits_is_never_asked_for_its_tokens() -> None:
    def explode() -> int:
        raise AssertionError

    counted = Limits()
    for owner in (grant(), grant(rate(REQUESTS, 5)), grant(rate(CONCURRENCY, 5))):
        counted.admit(owner, MODEL, explode, 0.0).close(10, 1.0)


def test_tokens_are_reserved_by_guess_and_corrected() -> None:
    counted, owner = Limits(), grant(rate(TOKENS, 100))
    ticket = counted.admit(owner, MODEL, lambda: 80, 0.0)
    assert ticket.tokens is not None
    assert ticket.tokens.remaining == 20
    assert refused(counted, owner, 1.0, tokens=30).retry_after_ms == 59_000
    ticket.close(10, 2.0)
    other = counted.admit(owner, MODEL, lambda: 30, 3.0)
    assert other.tokens is not None
    assert other.tokens.remaining == 60
    other.close(100, 4.0)
    told = refused(counted, owner, 5.0, tokens=1)
    assert told.retry_after_ms == 58_000  # the 30 and the 70 beyond them count until they leave
    other.close(100, 6.0)
    assert counted.admit(owner, MODEL, lambda: 1, 64.1).tokens is not None


def test_a_correction_after_the_window_changes_nothing_that_has_left() -> None:
    counted, owner = Limits(), grant(rate(TOKENS, 100))
    ticket = counted.admit(owner, MODEL, lambda: 80, 0.0)
    ticket.close(10, 100.0)
    (window,) = counted._windows.values()
    assert window.used == 0


def test_a_call_larger_than_the_whole_limit_runs_alone() -> None:
    counted, owner = Limits(), grant(rate(TOKENS, 100))
    counted.admit(owner, MODEL, lambda: 5000, 0.0)
    refused(counted, owner, 1.0)
    counted.admit(owner, MODEL, lambda: 5000, 60.0)


def test_calls_at_once_are_counted_until_they_end() -> None:
    counted, owner = Limits(), grant(rate(CONCURRENCY, 2))
    first = counted.admit(owner, MODEL, lambda: 1, 0.0)
    counted.admit(owner, MODEL, lambda: 1, 0.0)
    told = refused(counted, owner, 500.0)
    assert told.retry_after_ms == 1000
    assert "2 calls at the same time" in told.message
    first.close(0, 501.0)
    first.close(0, 501.0)
    counted.admit(owner, MODEL, lambda: 1, 502.0)
    refused(counted, owner, 503.0)


def test_all_limits_admit_or_none_does() -> None:
    counted = Limits()
    owner = grant(rate(REQUESTS, 5), rate(CONCURRENCY, 5), rate(TOKENS, 10))
    counted.admit(owner, MODEL, lambda: 10, 0.0)
    for _ in range(10):
        refused(counted, owner, 1.0)
    assert [window.used for window in counted._windows.values()] == [1, 10]
    assert [place[0] for place in counted._busy.values()] == [1]


def test_the_tighter_of_two_limits_is_shown() -> None:
    counted, owner = Limits(), grant(rate(REQUESTS, 100, 3600), rate(REQUESTS, 3, 60))
    ticket = counted.admit(owner, MODEL, lambda: 1, 0.0)
    assert ticket.requests is not None
    assert ticket.requests.limit == 3
    owner = grant(rate(REQUESTS, 3, 61), rate(REQUESTS, 100, 3601))
    ticket = counted.admit(owner, MODEL, lambda: 1, 0.0)
    assert ticket.requests is not None
    assert ticket.requests.limit == 3


@pytest.mark.parametrize(
    ("scope", "same_key", "same_project"),
    [
        (grant_pb2.RATE_SCOPE_KEY, False, False),
        (grant_pb2.RATE_SCOPE_UNSPECIFIED, False, False),
        (grant_pb2.RATE_SCOPE_PROJECT, True, False),
        (grant_pb2.RATE_SCOPE_ORGANIZATION, True, True),
    ],
)
def test_a_limit_is_shared_by_its_scope(
    scope: grant_pb2.RateScope.ValueType, same_key: bool, same_project: bool
) -> None:
    counted = Limits()
    one = rate(REQUESTS, 1, scope=scope)
    counted.admit(grant(one), MODEL, lambda: 1, 0.0)
    for owner, shared in (
        (grant(one, key_id="key_2"), same_key),
        (grant(one, key_id="key_3", project="q"), same_project),
    ):
        if shared:
            refused(counted, owner, 1.0)
        else:
            counted.admit(owner, MODEL, lambda: 1, 1.0)


def test_a_limit_of_a_model_counts_only_that_model() -> None:
    counted, owner = Limits(), grant(rate(REQUESTS, 1, model="openai/*"))
    counted.admit(owner, "openai/gpt-5", lambda: 1, 0.0)
    counted.admit(owner, "anthropic/claude", lambda: 1, 0.0)
    told = refused(counted, owner, 1.0, model="openai/gpt-4o")
    assert "of openai/* in 60 s" in told.message


def test_a_limit_of_nothing_admits_nothing() -> None:
    told = refused(Limits(), grant(rate(REQUESTS, 0)), 0.0)
    assert told.retry_after_ms == 0
    refused(Limits(), grant(rate(TOKENS, 0)), 0.0)


def test_counters_at_rest_are_forgotten_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(windows, "COUNTERS_MAX", 10)
    counted = Limits()
    both = (rate(REQUESTS, 5), rate(CONCURRENCY, 5))
    busy = counted.admit(grant(*both, key_id="busy"), MODEL, lambda: 1, 0.0)
    for index in range(100):
        owner = grant(*both, key_id=f"key_{index}")
        counted.admit(owner, MODEL, lambda: 1, 100.0 * index).close(0, 100.0 * index)
    assert len(counted._windows) <= 11
    assert len(counted._busy) <= 11
    busy.close(0, 1.0)
    assert all(place[0] == 0 for place in counted._busy.values())


def test_what_a_chat_call_does_not_use_does_not_hold_it_back() -> None:
    counted = Limits()
    meters = (grant_pb2.RATE_METER_IMAGES, grant_pb2.RATE_METER_AUDIO_MEGABYTES)
    owner = grant(*(rate(meter, 0) for meter in meters))
    assert counted.admit(owner, "openai/gpt-5", lambda: 1, 0.0).requests is None
