"""The Anthropic wire: golden exchanges, answers, errors, models."""

import json
from typing import Any

import pytest

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers import PROVIDERS
from services.router.providers.anthropic import WIRE
from services.router.providers.base import ListedModel
from tests.providers import goldens
from tests.providers.calls import call, exchange

INVALID = error_pb2.ERROR_REASON_INVALID_REQUEST
PROTOCOL = error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
MODEL = "claude-sonnet-4-5"


@pytest.mark.parametrize("golden", goldens.load("anthropic"))
def test_a_golden_exchange_comes_out_as_written(golden: dict[str, Any]) -> None:
    goldens.check(WIRE, golden)


@pytest.mark.parametrize(
    ("status", "kind", "said", "reason"),
    [
        (400, "invalid_request_error", "messages: at least one is required", INVALID),
        (
            400,
            "invalid_request_error",
            "prompt is too long: 205000 tokens > 200000 maximum",
            error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
        ),
        (
            400,
            "invalid_request_error",
            "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
            error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
        ),
        (
            400,
            "invalid_request_error",
            "Your credit balance is too low to access the Anthropic API.",
            error_pb2.ERROR_REASON_UPSTREAM_AUTH,
        ),
        (401, "authentication_error", "invalid x-api-key", error_pb2.ERROR_REASON_UPSTREAM_AUTH),
        (402, "billing_error", "pay", error_pb2.ERROR_REASON_UPSTREAM_AUTH),
        (403, "permission_error", "no", error_pb2.ERROR_REASON_UPSTREAM_AUTH),
        (404, "not_found_error", "model: claude-9", error_pb2.ERROR_REASON_MODEL_NOT_FOUND),
        (413, "request_too_large", "32 MB", error_pb2.ERROR_REASON_REQUEST_TOO_LARGE),
        (429, "rate_limit_error", "slow", error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED),
        (500, "api_error", "oops", error_pb2.ERROR_REASON_UPSTREAM_ERROR),
        (504, "timeout_error", "late", error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT),
        (529, "overloaded_error", "Overloaded", error_pb2.ERROR_REASON_UPSTREAM_ERROR),
        (418, "brand_new_error", "?", error_pb2.ERROR_REASON_UPSTREAM_ERROR),
        (422, "brand_new_error", "?", INVALID),
    ],
)
def test_an_error_is_known_by_its_type_then_by_its_status(
    status: int, kind: str, said: str, reason: int
) -> None:
    body = json.dumps({"type": "error", "error": {"type": kind, "message": said}}).encode()
    error = WIRE.error(status, {"retry-after": "7"}, body)
    assert (error.reason, error.upstream_status) == (reason, status)
    assert error.retry_after_ms == 7_000


@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b"", b"[]", b'{"error": "x"}'])
def test_an_error_page_is_known_by_its_status(body: bytes) -> None:
    assert WIRE.error(502, {}, body).reason == error_pb2.ERROR_REASON_UPSTREAM_ERROR
    assert WIRE.error(429, {}, body).reason == error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED
    assert WIRE.error(400, {}, body).message == (
        "Anthropic refused the request: it does not say why."
    )


def test_an_error_shows_neither_keys_nor_endless_text() -> None:
    said = "bad key sk-ant-api03-SECRET and Bearer abc.def, AIzaSECRET\n" + "word " * 200
    body = json.dumps({"error": {"type": "invalid_request_error", "message": said}}).encode()
    message = WIRE.error(400, {}, body).message
    assert "SECRET" not in message
    assert "abc.def" not in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("headers", "wait_ms"),
    [
        ({"retry-after": "2"}, 2_000),
        ({"retry-after": "0.5"}, 500),
        ({"retry-after-ms": "120", "retry-after": "9"}, 120),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0),
        ({}, 0),
    ],
)
def test_the_wait_is_read_from_the_headers(headers: dict[str, str], wait_ms: int) -> None:
    assert WIRE.error(429, headers, b"").retry_after_ms == wait_ms


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"id": "m", "content": [{"type": "text"}], "stop_reason": "end_turn"}',
        b'{"id": "m", "content": [{"type": "text", "text": 5}], "stop_reason": "end_turn"}',
        b'{"id": "m", "content": [], "stop_reason": null}',
    ],
)
def test_what_is_no_message_is_a_broken_protocol(body: bytes) -> None:
    with pytest.raises(GatewayError) as raised:
        WIRE.response(exchange(call(), "m"), body)
    assert raised.value.reason == error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL


def test_an_answer_without_usage_says_so_and_counts_its_bytes() -> None:
    blocks = [
        {"type": "text", "text": "smørbrød"},
        {"type": "thinking", "thinking": "ab", "signature": None},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"n": 10**29}},
        {"type": "brand_new", "x": 1},
    ]
    body = json.dumps({"id": "m", "content": blocks, "stop_reason": "brand_new"}).encode()
    called = exchange(call(), "claude-x")
    answer = WIRE.response(called, body)
    assert answer.usage is None
    assert answer.event.answer.model == "claude-x"
    assert answer.event.answer.choices[0].finish_reason == chat_pb2.FINISH_REASON_STOP
    arguments = f'{{"n":{10**29}}}'
    assert answer.event.answer.choices[0].message.parts[2].tool_call.arguments == arguments
    assert answer.output_bytes == 10 + 2 + 1 + len(arguments) + len('{"type":"brand_new","x":1}')


def test_the_caller_of_a_tool_is_kept_when_it_is_code() -> None:
    blocks = [
        {"type": "tool_use", "id": "t", "name": "f", "input": {}, "caller": {"type": kind}}
        for kind in ("direct", "code")
    ]
    body = json.dumps({"id": "m", "content": blocks, "stop_reason": "tool_use"}).encode()
    answer = WIRE.response(exchange(call(), "m"), body)
    parts = answer.event.answer.choices[0].message.parts
    assert [part.extra_json for part in parts] == [b"", b'{"caller":{"type":"code"}}']


def test_absurd_counts_count_as_nothing() -> None:
    usage = {"input_tokens": -5, "output_tokens": 1e9, "cache_read_input_tokens": True}
    body = json.dumps({"id": "m", "content": [], "stop_reason": "end_turn", "usage": usage})
    called = exchange(call(), "m")
    tokens = WIRE.response(called, body.encode()).usage
    assert tokens is not None
    assert (tokens.input_tokens, tokens.output_tokens) == (0, 0)


def test_the_key_goes_where_anthropic_wants_it() -> None:
    assert list(WIRE.authorize("sk-ant")) == [("x-api-key", "sk-ant")]
    assert WIRE.native is False
    assert PROVIDERS["anthropic"] is WIRE
    assert WIRE.dialect == chat_pb2.DIALECT_ANTHROPIC_MESSAGES
    assert WIRE.base_url == "https://api.anthropic.com"


def test_the_models_are_listed_with_their_limits() -> None:
    asked = WIRE.models_request()
    assert (asked.method, asked.path) == ("GET", "/v1/models?limit=1000")
    assert ("anthropic-version", "2023-06-01") in asked.headers
    page = {
        "data": [
            {
                "type": "model",
                "id": "claude-opus-5-5",
                "display_name": "Claude Opus 5.5",
                "created_at": "2026-10-06T00:00:00Z",
                "max_input_tokens": 1_000_000,
                "max_tokens": 128_000,
            },
            {"type": "model", "id": "claude-old", "created_at": "1970-01-01T00:00:00Z"},
            {"type": "model", "id": "claude-older"},
        ],
        "has_more": False,
    }
    assert WIRE.models(json.dumps(page).encode()) == [
        ListedModel(
            "claude-opus-5-5", 1_791_244_800, "anthropic", "Claude Opus 5.5", 1_000_000, 128_000
        ),
        ListedModel("claude-old", 0, "anthropic"),
        ListedModel("claude-older", 0, "anthropic"),
    ]


@pytest.mark.parametrize("body", [b"nope", b"{}", b'{"data": [{}]}', b'{"data": 3}'])
def test_what_is_no_list_of_models_is_a_broken_protocol(body: bytes) -> None:
    with pytest.raises(GatewayError) as raised:
        WIRE.models(body)
    assert raised.value.reason == error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
