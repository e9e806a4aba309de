"""The Bedrock wire: golden exchanges, answers, errors, credentials, models."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from services.router.providers import PROVIDERS
from services.router.providers.base import ListedModel, ListsElsewhere, UpstreamRequest
from services.router.providers.bedrock import WIRE
from tests import recordings
from tests.providers import goldens, service_model
from tests.providers.calls import call, exchange

INVALID = error_pb2.ERROR_REASON_INVALID_REQUEST
PROTOCOL = error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
AUTH = error_pb2.ERROR_REASON_UPSTREAM_AUTH
FAILED = error_pb2.ERROR_REASON_UPSTREAM_ERROR
LIMITED = error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED
MISSING = error_pb2.ERROR_REASON_MODEL_NOT_FOUND
TOO_LONG = error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED
MODEL = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
GOLDENS = goldens.load("bedrock")


@pytest.mark.parametrize("golden", GOLDENS)
def test_a_golden_exchange_comes_out_as_written(golden: dict[str, Any]) -> None:
    goldens.check(WIRE, golden, named=True)


@recordings.needs_specs
@pytest.mark.parametrize("golden", GOLDENS)
def test_a_golden_body_is_valid_against_the_service_model(golden: dict[str, Any]) -> None:
    shapes = service_model.bedrock_runtime()
    shape = "ConverseStreamRequest" if golden["call"].get("stream") else "ConverseRequest"
    assert list(service_model.faults(shapes, shape, golden["sent"]["body"])) == []


def test_the_wire_is_registered() -> None:
    assert PROVIDERS["bedrock"] is WIRE
    assert isinstance(WIRE, ListsElsewhere)


@pytest.mark.parametrize(
    ("status", "name", "said", "reason"),
    [
        (400, "ValidationException", "The message is empty.", INVALID),
        (400, "ValidationException", "Input is too long for requested model.", TOO_LONG),
        (400, "ValidationException", "prompt is too long: 205000 tokens > 200000", TOO_LONG),
        (400, "ValidationException", "This exceeds the model's maximum context length", TOO_LONG),
        (400, "ValidationException", "The provided model identifier is invalid.", MISSING),
        (
            400,
            "ValidationException",
            "Invocation of model ID x with on-demand throughput isn\u2019t supported.",
            MISSING,
        ),
        (
            400,
            "ValidationException",
            "The request was blocked by content filters.",
            error_pb2.ERROR_REASON_CONTENT_POLICY,
        ),
        (400, "ServiceQuotaExceededException", "quota", LIMITED),
        (403, "AccessDeniedException", "no access to the model", AUTH),
        (403, "UnrecognizedClientException", "invalid token", AUTH),
        (403, "ExpiredTokenException", "expired", AUTH),
        (404, "ResourceNotFoundException", "no such model", MISSING),
        (408, "ModelTimeoutException", "late", error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT),
        (424, "ModelErrorException", "broken", FAILED),
        (429, "ModelNotReadyException", "not yet", FAILED),
        (429, "ThrottlingException", "slow down", LIMITED),
        (500, "InternalServerException", "oops", FAILED),
        (503, "ServiceUnavailableException", "away", FAILED),
        (429, "BrandNewException", "?", LIMITED),
        (418, "BrandNewException", "?", FAILED),
    ],
)
def test_an_error_is_known_by_its_name_then_by_its_status(
    status: int, name: str, said: str, reason: int
) -> None:
    body = json.dumps({"message": said}).encode()
    headers = {"x-amzn-errortype": f"{name}:http://internal.example/", "retry-after": "7"}
    error = WIRE.error(status, headers, body)
    assert (error.reason, error.upstream_status) == (reason, status)
    assert error.retry_after_ms == 7_000
    in_body = json.dumps({"__type": f"com.amazon#{name}", "Message": said}).encode()
    assert WIRE.error(status, {}, in_body).message == error.message


@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b"", b"[]", b'{"message": 5}'])
def test_an_error_page_is_known_by_its_status(body: bytes) -> None:
    assert WIRE.error(502, {}, body).reason == FAILED
    assert WIRE.error(403, {}, body).reason == AUTH
    assert "does not say why" in WIRE.error(400, {}, body).message


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"output": {"message": {"content": [1]}}, "stopReason": "end_turn"}',
        b'{"output": {"message": {"content": [{"toolUse": {}}]}}, "stopReason": "end_turn"}',
        b'{"output": {"message": {"content": []}}}',
        b'{"output": {"message": {"content": [{"reasoningContent": {"redactedContent": "*"}}]}}}',
    ],
)
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    with pytest.raises(GatewayError) as raised:
        WIRE.response(exchange(call(), MODEL), body)
    assert raised.value.reason == PROTOCOL


def test_an_answer_without_usage_says_so_and_counts_its_bytes() -> None:
    content = [
        {"type": "text", "text": "ø"},
        {"reasoningContent": {"reasoningText": {"text": "hm"}}},
        {"toolUse": {"toolUseId": "t", "name": "f", "input": {"a": 1}}},
        {"image": {"format": "png", "source": {"bytes": "aW1n"}}},
        {"brandNew": 1},
    ]
    told = {"output": {"message": {"content": content}}, "stopReason": "brand_new"}
    answer = WIRE.response(exchange(call(), MODEL), json.dumps(told).encode())
    assert answer.usage is None
    assert answer.output_bytes == 2 + 2 + 1 + len('{"a":1}') + len('{"brandNew":1}')
    assert answer.event.answer.choices[0].native_finish_reason == "brand_new"


def test_an_api_key_is_a_bearer_token_and_no_secret_is_no_header() -> None:
    assert WIRE.authorize("ABSK123") == [("authorization", "Bearer ABSK123")]
    assert WIRE.authorize("") == []


def test_keys_of_a_role_sign_every_request() -> None:
    sign = WIRE.authorize('{"AccessKeyId": "AKIA", "SecretAccessKey": "s", "SessionToken": "t"}')
    assert callable(sign)
    request = UpstreamRequest(method="POST", path="/model/m/converse", headers=[], body=b"{}")
    url = "https://bedrock-runtime.eu-west-1.amazonaws.com/model/m/converse"
    signed = dict(sign(url, request, datetime(2026, 11, 21, tzinfo=UTC)))
    assert signed["x-amz-security-token"] == "t"
    assert "Credential=AKIA/20261121/eu-west-1/bedrock/aws4_request" in signed["authorization"]


def test_the_lists_stand_beside_the_runtime() -> None:
    assert WIRE.models_request() is None
    base = "https://bedrock-runtime.us-east-1.amazonaws.com"
    assert [place for place, _ in WIRE.lists(base)] == [
        "https://bedrock.us-east-1.amazonaws.com",
        "https://bedrock.us-east-1.amazonaws.com",
    ]
    assert [place for place, _ in WIRE.lists("http://127.0.0.1:9")] == ["http://127.0.0.1:9"] * 2
    assert [(r.method, r.path.partition("?")[0]) for _, r in WIRE.lists(base)] == [
        ("GET", "/foundation-models"),
        ("GET", "/inference-profiles"),
    ]


def test_models_are_listed_by_the_names_that_calls_take() -> None:
    models = [
        {
            "modelId": "amazon.titan-text-express-v1",
            "modelName": "Titan Text",
            "providerName": "Amazon",
            "outputModalities": ["TEXT"],
            "inferenceTypesSupported": ["ON_DEMAND"],
        },
        {
            "modelId": "anthropic.claude-opus-5",
            "outputModalities": ["TEXT"],
            "inferenceTypesSupported": ["INFERENCE_PROFILE"],
        },
        {
            "modelId": "amazon.titan-embed-text-v2:0",
            "outputModalities": ["EMBEDDING"],
            "inferenceTypesSupported": ["ON_DEMAND"],
        },
    ]
    assert WIRE.models(json.dumps({"modelSummaries": models}).encode()) == [
        ListedModel("amazon.titan-text-express-v1", owner="amazon", name="Titan Text")
    ]
    arn = "arn:aws:bedrock:us-east-1:1:application-inference-profile/x1"
    profiles = [
        {
            "inferenceProfileId": "us.anthropic.claude-opus-5",
            "inferenceProfileName": "US Opus",
            "status": "ACTIVE",
            "type": "SYSTEM_DEFINED",
        },
        {
            "inferenceProfileId": "x1",
            "inferenceProfileArn": arn,
            "status": "ACTIVE",
            "type": "APPLICATION",
        },
        {"inferenceProfileId": "us.cohere.embed-v4:0", "status": "ACTIVE"},
        {"inferenceProfileId": "us.gone", "status": "INACTIVE"},
    ]
    assert WIRE.models(json.dumps({"inferenceProfileSummaries": profiles}).encode()) == [
        ListedModel("us.anthropic.claude-opus-5", name="US Opus"),
        ListedModel(arn),
    ]


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"modelSummaries": [{}]}'])
def test_what_is_no_list_of_models_is_refused(body: bytes) -> None:
    with pytest.raises(GatewayError) as raised:
        WIRE.models(body)
    assert raised.value.reason == PROTOCOL
