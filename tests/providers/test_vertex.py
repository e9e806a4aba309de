"""Vertex AI: three dialects behind one address, told apart by the model's name."""

import json

import pytest

from onegate.common.v1 import content_pb2, error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers.base import Exchange, ShortLived
from services.router.providers.vertex import SCOPE, WIRE

ANTHROPIC_ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
GOOGLE_ERROR = {
    "error": {
        "code": 429,
        "message": "Quota exceeded",
        "status": "RESOURCE_EXHAUSTED",
        "details": [{"@type": "type.googleapis.com/google.rpc.Help"}],
    }
}


def exchange(model: str, **fields: object) -> Exchange:
    said = content_pb2.Part(text=content_pb2.TextPart(text="Hi"))
    message = content_pb2.Message(role=content_pb2.ROLE_USER, parts=[said])
    request = chat_pb2.ChatRequest(messages=[message], **fields)  # type: ignore[arg-type]
    return Exchange(request=request, model=model, cost=lambda tokens: 0)


@pytest.mark.parametrize(
    ("model", "stream", "path"),
    [
        ("gemini-3-pro", False, "/publishers/google/models/gemini-3-pro:generateContent"),
        (
            "gemini-3-pro",
            True,
            "/publishers/google/models/gemini-3-pro:streamGenerateContent?alt=sse",
        ),
        ("claude-opus-5", False, "/publishers/anthropic/models/claude-opus-5:rawPredict"),
        ("claude-opus-5@1", True, "/publishers/anthropic/models/claude-opus-5@1:streamRawPredict"),
        ("claude-../x", False, "/publishers/anthropic/models/claude-..%2Fx:rawPredict"),
        ("qwen/qwen3", True, "/endpoints/openapi/chat/completions"),
    ],
)
def test_the_name_of_a_model_decides_where_its_call_goes(
    model: str, stream: bool, path: str
) -> None:
    assert WIRE.request(exchange(model, stream=stream)).path == path


def test_claude_s_version_stands_in_the_body_and_its_model_does_not() -> None:
    sent = WIRE.request(exchange("claude-opus-5", extra_json=b'{"anthropic_beta": ["b-1"]}'))
    body = json.loads(sent.body)
    assert body["anthropic_version"] == "vertex-2023-10-16"
    assert "model" not in body
    assert dict(sent.headers)["anthropic-beta"] == "b-1"


def test_a_service_tier_is_refused_for_gemini_unless_it_is_the_usual_one() -> None:
    assert b"serviceTier" not in WIRE.request(exchange("gemini-3-pro", service_tier="default")).body
    with pytest.raises(GatewayError) as refused:
        WIRE.request(exchange("gemini-3-pro", service_tier="flex"))
    assert refused.value.reason == error_pb2.ERROR_REASON_UNSUPPORTED_PARAMETER


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (529, ANTHROPIC_ERROR, error_pb2.ERROR_REASON_UPSTREAM_ERROR),
        (429, GOOGLE_ERROR, error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED),
        (403, None, error_pb2.ERROR_REASON_UPSTREAM_AUTH),
    ],
)
def test_errors_are_read_in_the_form_they_have(
    status: int, body: object, reason: error_pb2.ErrorReason.ValueType
) -> None:
    raw = b"<html>no</html>" if body is None else json.dumps(body).encode()
    assert WIRE.error(status, {}, raw).reason == reason


def test_a_key_file_buys_tokens_and_is_not_shown() -> None:
    bought = WIRE.authorize('{"type": "service_account"}')
    assert isinstance(bought, ShortLived)
    assert (bought.seller, bought.scope) == ("google", SCOPE)
    assert "service_account" not in repr(bought)
    assert isinstance(WIRE.authorize(""), ShortLived)
    assert WIRE.authorize("key") == [("x-goog-api-key", "key")]


def test_no_list_is_asked_for() -> None:
    assert WIRE.models_request() is None
    assert WIRE.models(b"") == []
