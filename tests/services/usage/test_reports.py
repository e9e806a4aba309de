"""What may be asked of reports, and page tokens."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import usage_service_pb2
from onegate.usage.v1.usage_service_pb2 import UsageFilter
from runtime.errors import GatewayError
from services.usage.reports.queries import (
    Cursor,
    Selection,
    cursor_of,
    cursor_token,
    dimensions_of,
    page_size_of,
    place_of,
    selection_of,
    summary,
    token_of,
)

DAY = usage_service_pb2.USAGE_DIMENSION_DAY
MODEL = usage_service_pb2.USAGE_DIMENSION_MODEL


def test_a_filter_becomes_a_selection() -> None:
    wanted = UsageFilter(project_id="p", key_id="k", model="m", request_id="r", organization_id="o")
    assert selection_of(wanted) == Selection(
        project_id="p", key_id="k", model="m", request_id="r", organization_id="o"
    )
    wanted.started_from.FromDatetime(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))
    wanted.started_before.FromMicroseconds(2_000_001)
    found = selection_of(wanted)
    assert (found.from_us, found.before_us) == (1_000_000, 2_000_001)


@pytest.mark.parametrize(
    ("start", "end", "param"),
    [
        (5, 4, "filter.started_before"),
        (2**60, None, "filter.started_from"),
        (None, 2**60, "filter.started_before"),
    ],
)
def test_times_that_mean_nothing_are_refused(
    start: int | None, end: int | None, param: str
) -> None:
    wanted = UsageFilter()
    if start is not None:
        wanted.started_from.seconds = start
    if end is not None:
        wanted.started_before.seconds = end
    with pytest.raises(GatewayError) as refused:
        selection_of(wanted)
    assert refused.value.reason == error_pb2.ERROR_REASON_INVALID_REQUEST
    assert refused.value.param == param


@pytest.mark.parametrize(("asked", "given_"), [(0, 100), (1, 1), (1000, 1000), (5000, 1000)])
def test_a_page_has_a_usual_and_a_greatest_size(asked: int, given_: int) -> None:
    assert page_size_of(asked) == given_


def test_a_page_of_less_than_nothing_is_refused() -> None:
    with pytest.raises(GatewayError, match="page_size"):
        page_size_of(-1)


@given(st.integers(0, 2**62), st.text(max_size=40), st.text(max_size=5))
def test_a_token_leads_back_to_its_place(at_us: int, attempt_id: str, key_id: str) -> None:
    selection = Selection(key_id=key_id)
    cursor = Cursor(started_at_us=at_us, attempt_id=attempt_id)
    assert cursor_of(cursor_token(cursor, selection), selection) == cursor


def test_no_token_is_the_first_page() -> None:
    assert cursor_of("", Selection()) is None
    assert place_of("", "anything") is None


GOOD = cursor_token(Cursor(started_at_us=5, attempt_id="a"), Selection(key_id="k"))


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "nonsense",
        "ä",
        GOOD[:-2],
        GOOD + "A",
        GOOD + "=",
        "A" + GOOD,
        GOOD.swapcase(),
        cursor_token(Cursor(started_at_us=5, attempt_id="a"), Selection(key_id="other")),
        token_of("openai/gpt-4o", "*"),
        "_____________________w",
    ],
)
def test_a_token_that_was_cut_made_up_or_kept_from_elsewhere_is_refused(token: str) -> None:
    with pytest.raises(GatewayError) as refused:
        cursor_of(token, Selection(key_id="k"))
    assert refused.value.param == "page_token"


def test_dimensions_are_known_and_named_once() -> None:
    assert dimensions_of([DAY, MODEL]) == (DAY, MODEL)
    assert dimensions_of([]) == ()
    for bad in ([DAY, DAY], [usage_service_pb2.USAGE_DIMENSION_UNSPECIFIED], [99]):
        with pytest.raises(GatewayError, match="group_by"):
            dimensions_of(bad)  # type: ignore[arg-type]


def test_a_row_says_days_as_dates() -> None:
    sums = {
        "attempts": 1,
        "input_tokens": 2,
        "cached_input_tokens": 3,
        "output_tokens": 4,
        "cost_nano_usd": 5,
        "failures": 6,
        "uncertain_nano_usd": 7,
    }
    assert summary((20778, "m"), sums) == usage_service_pb2.UsageSummary(
        group=["2026-11-21", "m"],
        attempts=1,
        input_tokens=2,
        cached_input_tokens=3,
        output_tokens=4,
        cost_nano_usd=5,
        failures=6,
        uncertain_nano_usd=7,
    )
