"""What providers say of how much is left, as they write it in recorded answers."""

import pytest

from services.router.routing.rate_headers import UNSAID_S, duration_s, used_up_s

DATE = "Tue, 10 Sep 2024 23:58:08 GMT"
OPENAI = "x-ratelimit-{}-requests"
ANTHROPIC = "anthropic-ratelimit-input-tokens-{}"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360.0),
        ("1h2m3s", 3723.0),
        ("8.64s", 8.64),
        ("120ms", 0.12),
        ("1m30.951s", 90.951),
        ("17", 17.0),
        ("", 0.0),
        ("soon", 0.0),
        ("nan", 0.0),
        ("-5", 0.0),
        ("1.2.3s", 0.0),
    ],
)
def test_the_time_until_a_limit_is_full_again_is_read(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("names", "left", "limit", "reset", "wait_s"),
    [
        (OPENAI, "59", "60", "1s", 0.0),
        (OPENAI, "0", "60", "1s", 1.0),
        (OPENAI, "0", "", "1m13.588s", 73.588),
        # Two of a hundred are as good as none, one of five is not.
        (OPENAI, "2", "100", "6m0s", 360.0),
        (OPENAI, "3", "100", "6m0s", 0.0),
        (OPENAI, "1", "5", "6m0s", 0.0),
        # Joined by a proxy, as it was recorded.
        (OPENAI, "0", "60", "2ms, req_fcbf1d5389cb4a908ff622465164f997", 0.002),
        ("x-ratelimit-{}-tokens", "599", "30000", "26ms", 0.026),
        # Cerebras: seconds; a day's limit is not as good as used up before it is.
        ("x-ratelimit-{}-tokens-minute", "0", "60000", "33.24", 33.24),
        ("x-ratelimit-{}-requests-day", "100", "14400", "33011.38", 0.0),
        ("x-ratelimit-{}-requests-day", "0", "14400", "33011.38", 33011.38),
        # Mistral names the window and nothing else.
        ("x-ratelimit-{}-req-10-second", "0", "60", "", 10.0),
        ("x-ratelimit-{}-tokens-minute", "147", "2000000", "", 60.0),
        ("x-ratelimit-{}-tokens-month", "9999999", "10000000000", "", 0.0),
        # Together: seconds; OpenRouter: a moment, in milliseconds; others: in seconds.
        ("x-ratelimit-{}", "0", "2", "1", 1.0),
        ("x-ratelimit-{}", "0", "20", "1726012698000", 10.0),
        ("x-ratelimit-{}", "0", "20", "1726012698", 10.0),
        ("ratelimit-{}", "0", "", "1", 1.0),
        ("ratelimit-{}", "599", "", "1", 0.0),
        (OPENAI, "0", "60", "", UNSAID_S),
        (OPENAI, "0", "60", "soon", 0.0),
        (OPENAI, "none", "60", "1s", None),
        (OPENAI, "-1", "60", "1s", None),
        (OPENAI, "nan", "60", "1s", None),
    ],
)
def test_load_moves_for_as_long_as_a_limit_is_used_up(
    names: str, left: str, limit: str, reset: str, wait_s: float | None
) -> None:
    said = {names.format("remaining"): left}
    said |= {names.format("limit"): limit} if limit else {}
    said |= {names.format("reset"): reset} if reset else {}
    assert used_up_s(said, DATE) == (None if wait_s is None else pytest.approx(wait_s))


@pytest.mark.parametrize(
    ("reset", "date", "wait_s"),
    [
        ("2024-09-10T23:59:08Z", DATE, 60.0),
        ("2024-09-10T23:57:08Z", DATE, 0.0),
        ("2024-09-10T23:59:08Z", "", UNSAID_S),
        ("2024-09-10T23:59:08", DATE, UNSAID_S),
        ("T", DATE, UNSAID_S),
    ],
)
def test_anthropic_names_a_moment_by_its_own_clock(reset: str, date: str, wait_s: float) -> None:
    said = {
        ANTHROPIC.format("remaining"): "0",
        ANTHROPIC.format("limit"): "30000",
        ANTHROPIC.format("reset"): reset,
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "2024-09-11T23:59:08Z",
    }
    assert used_up_s(said, date) == wait_s


@pytest.mark.parametrize(("reset", "wait_s"), [("500", 0.5), ("", 60.0)])
def test_azure_counts_in_milliseconds_or_names_the_period(reset: str, wait_s: float) -> None:
    said = {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-limit-requests": "120",
        "x-ratelimit-renewalperiod-requests": "60",
    }
    said |= {"x-ratelimit-reset-requests": reset} if reset else {}
    assert used_up_s(said, DATE) == wait_s


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        ('"api";r=497;t=68', 0.0),
        ('"api";r=0;t=68', 68.0),
        ('"a";r=0;t=3, "b";r=0;t=9, "c";r=1;t=99', 9.0),
        ('"api";r=0', UNSAID_S),
        ("nonsense", 0.0),
    ],
)
def test_the_one_header_of_the_draft_is_read(value: str, wait_s: float) -> None:
    said = {"ratelimit": value, "ratelimit-policy": '"fixed window";"api";q=500;w=300'}
    assert used_up_s(said, DATE) == wait_s


def test_the_longest_wait_of_several_limits_counts() -> None:
    said = {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "12ms",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "8s",
    }
    assert used_up_s(said, DATE) == 8.0


def test_who_says_nothing_says_nothing() -> None:
    assert used_up_s({}, DATE) is None
    assert used_up_s({"x-ratelimit-limit-requests": "60"}, DATE) is None
