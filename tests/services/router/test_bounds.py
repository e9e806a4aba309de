"""Bounds are never too small, and guesses are near."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onegate.common.v1 import content_pb2
from onegate.common.v1.token_usage_pb2 import TokenUsage
from onegate.router.v1 import chat_pb2
from onegate.usage.v1 import price_pb2
from runtime.money import cost_nano_usd
from services.router.limits import bounds
from services.router.limits.bounds import (
    cost_bound,
    exceeds,
    input_tokens_bound,
    input_tokens_guess,
    input_tokens_within,
    output_tokens_bound,
    tokens_guess,
)

M = price_pb2


def text(content: str) -> content_pb2.Part:
    return content_pb2.Part(text=content_pb2.TextPart(text=content))


def said(*parts: content_pb2.Part) -> chat_pb2.ChatRequest:
    return chat_pb2.ChatRequest(messages=[content_pb2.Message(parts=parts)])


def native(body: bytes, bound: int = 0) -> chat_pb2.ChatRequest:
    return chat_pb2.ChatRequest(native=chat_pb2.NativeRequest(body=body, input_tokens_bound=bound))


@given(texts=st.lists(st.text(max_size=40), max_size=8))
def test_no_text_has_more_tokens_than_bytes(texts: list[str]) -> None:
    request = said(*[text(content) for content in texts])
    assert input_tokens_bound(request) >= sum(len(content.encode()) for content in texts)


def source(**fields: object) -> content_pb2.MediaSource:
    return content_pb2.MediaSource(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "least", "most"),
    [
        (text("x" * 100), 100, 150),
        (
            content_pb2.Part(image=content_pb2.ImagePart(source=source(url="https://x/y.png"))),
            50_000,
            50_100,
        ),
        (
            content_pb2.Part(audio=content_pb2.AudioPart(source=source(data=b"x" * 1600))),
            100,
            200,
        ),
        (
            content_pb2.Part(audio=content_pb2.AudioPart(source=source(url="https://x/y.mp3"))),
            1_000_000,
            1_000_100,
        ),
        (
            content_pb2.Part(video=content_pb2.VideoPart(source=source(data=b"x" * 16_000))),
            1000,
            1100,
        ),
        (
            content_pb2.Part(file=content_pb2.FilePart(source=source(file_id="f"))),
            1_000_000,
            1_000_100,
        ),
        (
            content_pb2.Part(file=content_pb2.FilePart(source=source(data=b"x" * 2_000_000))),
            2_000_000,
            2_000_100,
        ),
        (
            content_pb2.Part(
                tool_result=content_pb2.ToolResult(tool_call_id="c" * 10, parts=[text("x" * 100)])
            ),
            110,
            170,
        ),
        (
            content_pb2.Part(tool_call=content_pb2.ToolCall(name="f", arguments="x" * 50)),
            50,
            100,
        ),
    ],
)
def test_every_part_has_a_bound(part: content_pb2.Part, least: int, most: int) -> None:
    assert least <= input_tokens_bound(said(part)) <= most


def test_tools_schemas_and_predictions_count() -> None:
    request = chat_pb2.ChatRequest(
        tools=[chat_pb2.Tool(function=chat_pb2.FunctionTool(parameters_schema=b"x" * 100))],
        response_format=chat_pb2.ResponseFormat(schema=b"x" * 200),
        extra_json=b"x" * 400,
        prediction=[text("x" * 800)],
    )
    assert input_tokens_bound(request) >= 1500


def test_a_native_body_brings_its_own_bound() -> None:
    assert input_tokens_bound(native(b"x" * 40, 50_000)) == 50_000
    assert input_tokens_bound(native(b"x" * 40)) == 40
    assert input_tokens_guess(native(b"x" * 42, 50_000)) == 11
    assert input_tokens_guess(native(b"x" * 4000, 400)) == 100


@pytest.mark.parametrize(
    ("cap", "choices", "model_max", "bound"),
    [
        (None, None, 0, None),
        (None, None, 100, 100),
        (10, None, 100, 10),
        (10, 3, 0, 30),
        (None, 3, 5, 15),
        (10, 0, 0, 10),
    ],
)
def test_output_is_bounded_by_cap_or_model(
    cap: int | None, choices: int | None, model_max: int, bound: int | None
) -> None:
    request = chat_pb2.ChatRequest(output_tokens_max=cap, choices=choices)
    assert output_tokens_bound(request, model_max) == bound


def test_a_guess_takes_the_cap_or_a_usual_answer() -> None:
    request = native(b"x" * 400)
    assert tokens_guess(request) == 100 + bounds.OUTPUT_TOKENS_GUESS
    request.output_tokens_max = 7
    assert tokens_guess(request) == 107


RATES = st.lists(
    st.builds(
        price_pb2.Rate,
        meter=st.sampled_from(
            [
                M.METER_INPUT_TOKENS,
                M.METER_CACHED_INPUT_TOKENS,
                M.METER_CACHE_WRITE_TOKENS,
                M.METER_CACHE_WRITE_1H_TOKENS,
                M.METER_OUTPUT_TOKENS,
                M.METER_REASONING_TOKENS,
                M.METER_REQUESTS,
            ]
        ),
        nano_usd_per_million=st.integers(0, 10**11),
        above_input_tokens=st.sampled_from([0, 10, 1000]),
        service_tier=st.sampled_from(["", "priority"]),
    ),
    min_size=1,
    max_size=10,
)


@given(
    rates=RATES,
    content=st.text(max_size=200),
    cap=st.integers(1, 500),
    used=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    tier=st.sampled_from(["", "priority"]),
)
def test_no_usage_within_the_bounds_costs_more_than_the_bound(
    rates: list[price_pb2.Rate],
    content: str,
    cap: int,
    used: tuple[float, float, float, float],
    tier: str,
) -> None:
    request = said(text(content))
    request.output_tokens_max = cap
    sheet = price_pb2.PriceSheet(rates=rates)
    most = input_tokens_bound(request)
    tokens = TokenUsage(
        input_tokens=int(most * used[0]),
        cached_input_tokens=int(most * used[0] * used[1] / 2),
        cache_write_tokens=int(most * used[0] * used[2] / 2),
        output_tokens=int(cap * used[3]),
        reasoning_tokens=int(cap * used[3] * used[1]),
        service_tier=tier,
    )
    bound = cost_bound(request, sheet, 0)
    assert bound is not None
    assert cost_nano_usd(sheet, tokens) <= bound
    assert not exceeds(request, tokens.input_tokens, tokens.output_tokens)


def priced(*meters: price_pb2.Meter.ValueType) -> price_pb2.PriceSheet:
    return price_pb2.PriceSheet(
        rates=[price_pb2.Rate(meter=meter, nano_usd_per_million=1_000_000) for meter in meters]
    )


def test_what_is_free_costs_nothing_and_what_is_unbounded_has_no_bound() -> None:
    request = native(b"x" * 100)
    assert cost_bound(request, None, 0) == 0
    assert cost_bound(request, price_pb2.PriceSheet(free=True), 0) == 0
    sheet = priced(M.METER_INPUT_TOKENS, M.METER_OUTPUT_TOKENS)
    assert cost_bound(request, sheet, 0) is None
    assert cost_bound(request, sheet, 50) == 150


@pytest.mark.parametrize(
    ("bytes_", "window", "most"),
    [
        (100, 0, 100),
        (100, 4000, 100),
        (5000, 4000, 4000),
        # A document that is elsewhere may fill a window of two million.
        (1_000_000, 2_000_000, 2_000_000),
        (3_000_000, 2_000_000, 2_000_000),
    ],
)
def test_no_more_is_charged_than_fits_into_the_window(bytes_: int, window: int, most: int) -> None:
    assert input_tokens_within(native(b"{}", bytes_), window) == most


def test_a_text_longer_than_the_window_is_bounded_and_not_refused() -> None:
    # Five bytes a token: 20,000 bytes may well fit into 4,096 tokens.
    sheet = priced(M.METER_INPUT_TOKENS, M.METER_OUTPUT_TOKENS)
    assert cost_bound(native(b"x" * 20_000), sheet, 512, 4096) == 4096 + 512


def test_an_answer_without_a_cap_fits_into_the_window() -> None:
    sheet = priced(M.METER_INPUT_TOKENS, M.METER_OUTPUT_TOKENS)
    assert cost_bound(native(b"x" * 100), sheet, 0, 4096) == 100 + 4096


def test_a_rate_for_long_inputs_counts_only_where_the_input_can_be_long() -> None:
    sheet = priced(M.METER_INPUT_TOKENS, M.METER_OUTPUT_TOKENS)
    sheet.rates.add(
        meter=M.METER_INPUT_TOKENS, nano_usd_per_million=9_000_000, above_input_tokens=1000
    )
    assert cost_bound(native(b"x" * 1000), sheet, 1) == 1000 + 1
    assert cost_bound(native(b"x" * 1001), sheet, 1) == 9 * 1001 + 1


@pytest.mark.parametrize(
    ("request_", "bound"),
    [
        (native(b'{"messages":[]}'), 25),
        (native(b'{"web_search_options":{}}'), None),
        (chat_pb2.ChatRequest(web_search_options_json=b"{}"), None),
        (chat_pb2.ChatRequest(tools=[chat_pb2.Tool(provider_json=b"{}")]), None),
        (chat_pb2.ChatRequest(), 26),
    ],
)
def test_searches_have_no_bound_where_they_are_charged(
    request_: chat_pb2.ChatRequest, bound: int | None
) -> None:
    request_.output_tokens_max = 10
    sheet = priced(M.METER_INPUT_TOKENS, M.METER_OUTPUT_TOKENS, M.METER_WEB_SEARCHES)
    assert cost_bound(request_, sheet, 0) == bound


def test_a_usage_beyond_its_bounds_is_noticed() -> None:
    request = native(b"x" * 100, 200)
    assert not exceeds(request, 200, 10**9)
    assert exceeds(request, 201, 0)
    request.output_tokens_max = 5
    assert not exceeds(request, 10, 5)
    assert exceeds(request, 10, 6)
