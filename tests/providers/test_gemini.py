"""The Gemini wire: golden exchanges, answers, errors, models."""

import json
from typing import Any

import pytest

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers import PROVIDERS
from services.router.providers.base import ListedModel
from services.router.providers.gemini import WIRE
from services.router.providers.gemini_outcomes import FINISH_REASONS
from tests.providers import goldens
from tests.providers.calls import call, exchange

INVALID = error_pb2.ERROR_REASON_INVALID_REQUEST
PROTOCOL = error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
MODEL = "gemini-2.5-flash"


@pytest.mark.parametrize("golden", goldens.load("gemini"))
def test_a_golden_exchange_comes_out_as_written(golden: dict[str, Any]) -> None:
    goldens.check(WIRE, golden)


def rpc(status: int, code: str, said: str, **detail: Any) -> bytes:
    details = [
        {"@type": f"type.googleapis.com/google.rpc.{name}", **value}
        for name, value in detail.items()
    ]
    return json.dumps(
        {"error": {"code": status, "status": code, "message": said, "details": details}}
    ).encode()


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, rpc(400, "INVALID_ARGUMENT", "contents is not specified"), INVALID),
        (
            400,
            rpc(400, "INVALID_ARGUMENT", "bad key", ErrorInfo={"reason": "API_KEY_INVALID"}),
            error_pb2.ERROR_REASON_UPSTREAM_AUTH,
        ),
        (
            400,
            rpc(
                400,
                "INVALID_ARGUMENT",
                "The input token count (20) exceeds the maximum number of tokens allowed (10).",
            ),
            error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
        ),
        (400, rpc(400, "FAILED_PRECONDITION", "location"), error_pb2.ERROR_REASON_UPSTREAM_AUTH),
        (401, rpc(401, "UNAUTHENTICATED", "who"), error_pb2.ERROR_REASON_UPSTREAM_AUTH),
        (403, rpc(403, "PERMISSION_DENIED", "no"), error_pb2.ERROR_REASON_UPSTREAM_AUTH),
        (404, rpc(404, "NOT_FOUND", "models/x"), error_pb2.ERROR_REASON_MODEL_NOT_FOUND),
        (429, rpc(429, "RESOURCE_EXHAUSTED", "-"), error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED),
        (500, rpc(500, "INTERNAL", "oops"), error_pb2.ERROR_REASON_UPSTREAM_ERROR),
        (503, rpc(503, "UNAVAILABLE", "busy"), error_pb2.ERROR_REASON_UPSTREAM_ERROR),
        (504, rpc(504, "DEADLINE_EXCEEDED", "late"), error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT),
        (503, b"[" + rpc(503, "UNAVAILABLE", "busy") + b"]", error_pb2.ERROR_REASON_UPSTREAM_ERROR),
        (400, rpc(400, "BRAND_NEW", "?"), INVALID),
        (400, b'{"error": {"status": "INVALID_ARGUMENT", "message": "x", "details": 5}}', INVALID),
        (413, b"<html>", error_pb2.ERROR_REASON_REQUEST_TOO_LARGE),
        (502, b"[]", error_pb2.ERROR_REASON_UPSTREAM_ERROR),
    ],
)
def test_an_error_is_known_by_its_status_and_details(status: int, body: bytes, reason: int) -> None:
    error = WIRE.error(status, {}, body)
    assert (error.reason, error.upstream_status) == (reason, status)


@pytest.mark.parametrize(
    ("headers", "delay", "wait_ms"),
    [
        ({}, "34.5s", 34_500),
        ({"retry-after": "3"}, "7s", 7_000),
        ({"retry-after": "3"}, "soon", 3_000),
        ({}, None, 0),
    ],
)
def test_the_wait_is_read_from_the_details_then_from_the_headers(
    headers: dict[str, str], delay: str | None, wait_ms: int
) -> None:
    body = rpc(429, "RESOURCE_EXHAUSTED", "quota", RetryInfo={"retryDelay": delay})
    assert WIRE.error(429, headers, body).retry_after_ms == wait_ms


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"candidates": []}',
        b'{"candidates": [{"content": {"parts": []}}]}',
        b'{"candidates": [{"content": {"parts": [{"text": 5}]}, "finishReason": "STOP"}]}',
        b'{"candidates": [{"content": {"parts": [{"functionCall": {}}]}, "finishReason": "STOP"}]}',
        b'{"candidates": [{"content": {"parts": [{"functionCall": {"willContinue": true}}]}}]}',
    ],
)
def test_what_is_no_answer_is_a_broken_protocol(body: bytes) -> None:
    with pytest.raises(GatewayError) as raised:
        WIRE.response(exchange(call(), MODEL), body)
    assert raised.value.reason == PROTOCOL


def test_a_blocked_prompt_is_an_answer_without_content_that_costs_what_was_read() -> None:
    body = {
        "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
        "usageMetadata": {"promptTokenCount": 7},
    }
    answer = WIRE.response(exchange(call(), MODEL), json.dumps(body).encode())
    (choice,) = answer.event.answer.choices
    assert choice.finish_reason == chat_pb2.FINISH_REASON_CONTENT_FILTER
    assert (answer.finish_reason, answer.output_bytes) == ("PROHIBITED_CONTENT", 0)
    assert answer.usage is not None
    assert answer.usage.input_tokens == 7
    assert json.loads(answer.event.answer.extra_json)["google"]["promptFeedback"]


def whole(reason: str, *parts: dict[str, Any], **more: Any) -> bytes:
    candidate = {"content": {"parts": parts}, "finishReason": reason, **more}
    return json.dumps({"candidates": [candidate]}).encode()


@pytest.mark.parametrize("reason", [*FINISH_REASONS, "BRAND_NEW"])
def test_every_reason_has_a_meaning_and_keeps_its_word(reason: str) -> None:
    answer = WIRE.response(exchange(call(), MODEL), whole(reason))
    choice = answer.event.answer.choices[0]
    assert choice.native_finish_reason == answer.finish_reason == reason
    assert choice.finish_reason == FINISH_REASONS.get(reason, chat_pb2.FINISH_REASON_STOP)
    assert answer.usage is None


def test_calls_without_ids_get_the_same_ones_every_time() -> None:
    body = whole(
        "STOP",
        {"functionCall": {"name": "f", "args": {"n": 1}}},
        {"functionCall": {"name": "f", "args": {"n": 2}}},
    )
    first, again = (WIRE.response(exchange(call(), MODEL), body).event.answer for _ in range(2))
    ids = [part.tool_call.id for part in first.choices[0].message.parts]
    assert ids == [part.tool_call.id for part in again.choices[0].message.parts]
    assert len(set(ids)) == 2
    assert all(call_id.startswith("gemini-") and len(call_id) < 40 for call_id in ids)


def test_a_segment_that_does_not_fit_is_looked_for() -> None:
    segments = (
        {"startIndex": 90, "endIndex": 99, "text": "b"},
        {"startIndex": 1, "endIndex": 2, "text": "?"},
        {"endIndex": 1},
    )
    supports = [{"segment": segment, "groundingChunkIndices": [0]} for segment in segments]
    grounding = {
        "groundingChunks": [{"web": {"uri": "https://a.example/"}}],
        "groundingSupports": [*supports, {}],
    }
    body = whole("STOP", {"text": "a"}, {"text": "b"}, groundingMetadata=grounding)
    parts = WIRE.response(exchange(call(), MODEL), body).event.answer.choices[0].message.parts
    noted = [each.url_citation for each in parts[1].text.annotations]
    assert [(each.start_index, each.end_index) for each in noted] == [(1, 2), (1, 2), (0, 1)]


def test_the_wire_is_found_by_its_kind() -> None:
    assert PROVIDERS["gemini"] is WIRE


def test_the_key_never_stands_in_the_address() -> None:
    assert list(WIRE.authorize("AIza")) == [("x-goog-api-key", "AIza")]
    assert WIRE.native is False
    assert WIRE.dialect == chat_pb2.DIALECT_GOOGLE_GENERATE_CONTENT
    assert WIRE.base_url == "https://generativelanguage.googleapis.com/v1beta"
    assert "key" not in WIRE.request(exchange(call(stream=True), MODEL)).path


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-2.5-pro", "/models/gemini-2.5-pro:generateContent"),
        ("models/gemini-2.5-pro", "/models/gemini-2.5-pro:generateContent"),
        ("tunedModels/a?b", "/tunedModels/a%3Fb:generateContent"),
        ("a:b#c", "/models/a%3Ab%23c:generateContent"),
    ],
)
def test_a_model_is_named_by_its_path(model: str, path: str) -> None:
    assert WIRE.request(exchange(call(), model)).path == path


def test_the_models_that_generate_are_listed_with_their_limits() -> None:
    assert WIRE.models_request().path == "/models?pageSize=1000"
    page = {
        "models": [
            {
                "name": "models/gemini-2.5-pro",
                "displayName": "Gemini 2.5 Pro",
                "inputTokenLimit": 1_048_576,
                "outputTokenLimit": 65_536,
                "supportedGenerationMethods": ["generateContent", "countTokens"],
            },
            {"name": "models/embedder", "supportedGenerationMethods": ["embedContent"]},
            {"name": "tunedModels/mine"},
        ],
        "nextPageToken": "x",
    }
    assert WIRE.models(json.dumps(page).encode()) == [
        ListedModel("gemini-2.5-pro", 0, "google", "Gemini 2.5 Pro", 1_048_576, 65_536),
        ListedModel("tunedModels/mine", 0, "google"),
    ]


@pytest.mark.parametrize("body", [b"nope", b"{}", b'{"models": [{}]}', b'{"models": 3}'])
def test_what_is_no_list_of_models_is_a_broken_protocol(body: bytes) -> None:
    with pytest.raises(GatewayError) as raised:
        WIRE.models(body)
    assert raised.value.reason == PROTOCOL
