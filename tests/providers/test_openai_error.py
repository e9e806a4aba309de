"""What a provider's refusal means, in every shape that vendors give it, and what may be told."""

import json
from typing import Any

import pytest

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError, reason_name
from services.router.providers import PROVIDERS


def refusal(
    status: int, body: Any = None, *, kind: str = "compatible", headers: Any = None
) -> GatewayError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return PROVIDERS[kind].error(status, headers or {}, raw)


def words(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, words("no"), "invalid_request"),
        (422, words("no"), "invalid_request"),
        (409, words("no"), "invalid_request"),
        (401, words("no"), "upstream_auth"),
        (401, words("context length exceeded"), "upstream_auth"),
        (403, words("no"), "upstream_auth"),
        (402, words("Insufficient Balance"), "upstream_rate_limited"),
        (404, words("no route"), "upstream_error"),
        (405, words("no"), "upstream_error"),
        (408, words("too slow"), "upstream_timeout"),
        (413, words("too large"), "request_too_large"),
        (413, words("too many tokens", code="rate_limit_exceeded"), "request_too_large"),
        (429, words("slow down"), "upstream_rate_limited"),
        (429, words("prompt too long for this rate"), "upstream_rate_limited"),
        (429, words("pay", code="insufficient_quota"), "upstream_rate_limited"),
        (498, words("flex is full"), "upstream_rate_limited"),
        (500, words("oops"), "upstream_error"),
        (503, words("context length exceeded"), "upstream_error"),
        (529, words("overloaded"), "upstream_error"),
        (301, b"", "upstream_error"),
        (502, b"<html>bad gateway</html>", "upstream_error"),
        (400, b"\xff", "invalid_request"),
        (400, [], "invalid_request"),
        (400, words("x", code="context_length_exceeded"), "context_length_exceeded"),
        (400, words("x", type="exceed_context_size_error"), "context_length_exceeded"),
        (400, words("This model's maximum context length is 8192"), "context_length_exceeded"),
        (400, words("Your request exceeded model token limit: 8192"), "context_length_exceeded"),
        (400, words("Range of input length should be [1, 30720]"), "context_length_exceeded"),
        (400, words("Prompt is too long"), "context_length_exceeded"),
        (422, words("`inputs` + `max_new_tokens` must be <= 8193"), "context_length_exceeded"),
        (400, words("x", code="content_filter"), "content_policy"),
        (400, words("x", innererror={"code": "content_policy_violation"}), "content_policy"),
        (400, words("x", code="data_inspection_failed"), "content_policy"),
        (400, words("x", code=1301), "content_policy"),
        (403, words("Content violates usage guidelines."), "content_policy"),
        (403, words("Input was flagged"), "content_policy"),
        (404, words("x", code="DeploymentNotFound"), "model_not_found"),
        (403, words("x", code="model_not_found"), "model_not_found"),
        (404, words("model 'qwen' not found, try pulling it first"), "model_not_found"),
        (400, words("Invalid model: mistral-huge"), "model_not_found"),
        (400, words("x is not a valid model ID"), "model_not_found"),
        (400, words("Model Not Exist"), "model_not_found"),
        (400, words("Incorrect API key provided: xa***yz"), "upstream_auth"),
        (400, words("API key not valid. Please pass a valid API key."), "upstream_auth"),
        (400, words("x", code="Arrearage"), "upstream_rate_limited"),
    ],
)
def test_a_refusal_has_the_reason_that_it_gives(status: int, body: Any, reason: str) -> None:
    error = refusal(status, body)
    assert reason_name(error.reason) == reason
    assert error.upstream_status == status


@pytest.mark.parametrize(
    ("body", "said", "param"),
    [
        (words("Bad value", param="temperature"), "Bad value", "temperature"),
        (words("Bad value", param=None), "Bad value", ""),
        ({"error": "Bad value"}, "Bad value", ""),
        ({"object": "error", "message": "Bad value", "param": "seed"}, "Bad value", "seed"),
        ({"detail": "Bad value"}, "Bad value", ""),
        (
            {
                "detail": [
                    {"type": "int", "loc": ["body", "messages", 0, "role"], "msg": "Bad role"},
                    {"loc": ["body", "seed"], "msg": "Bad seed"},
                    "odd",
                    {"msg": "and more"},
                ]
            },
            "Bad role; Bad seed; odd",
            "messages.0.role",
        ),
        (
            {"message": {"detail": [{"loc": ["body", "seed"], "msg": "Bad seed"}]}},
            "Bad seed",
            "seed",
        ),
        ([words("Bad value")], "Bad value", ""),
        (
            words("Provider returned error", metadata={"raw": "Bad value"}),
            "Provider returned error: Bad value",
            "",
        ),
        ("Bad value", "Bad value", ""),
        ({"error": {"error_description": " Bad\n value "}}, "Bad value", ""),
        ({"error": {}}, "it does not say why.", ""),
        ({"detail": []}, "it does not say why.", ""),
        ({"detail": 7}, "it does not say why.", ""),
    ],
)
def test_the_providers_words_are_kept_in_every_shape(body: Any, said: str, param: str) -> None:
    error = refusal(400, body, kind="groq")
    assert error.message == f"Groq refused the request: {said}"
    assert error.param == param


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdefghijkl",
        "gsk_abcdefghijkl",
        "xai-abcdefghijkl",
        "nvapi-abc-def-ghi",
        "hf_abcdefghijkl",
        "AIzaSyAbcdefghijkl",
        "github_pat_11ABCDEFG",
        "invalid-*****2345",
        "Bearer abc.def.ghi",
        "0123456789abcdef0123456789abcdef",
    ],
)
def test_a_secret_is_never_repeated(secret: str) -> None:
    error = refusal(400, words(f"The key {secret} is odd."))
    assert "The key *** is odd." in error.message
    bare = secret.removeprefix("Bearer ")
    assert bare not in refusal(400, words(f"See https://x/y?key={bare}&z=1")).message


@pytest.mark.parametrize(
    "harmless",
    [
        "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8",
        "skipping the task",
        "https://go.microsoft.com/fwlink/?linkid=21298766",
        "00000000-1111-2222-3333-444444444444",
    ],
)
def test_what_is_no_secret_is_told(harmless: str) -> None:
    assert harmless in refusal(400, words(f"See {harmless} there.")).message


def test_words_have_an_end() -> None:
    assert len(refusal(400, words("x " * 5000)).message) < 600


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_a_failure_that_the_caller_cannot_mend_tells_nothing_of_its_body(status: int) -> None:
    message = refusal(status, words("internal host db-7 says no")).message
    assert "db-7" not in message
    assert str(status) in message or status < 500


def test_an_address_that_is_none_is_the_operators_to_mend() -> None:
    for status in (301, 404, 405):
        assert "base_url" in refusal(status, b"not here").message


@pytest.mark.parametrize(
    ("headers", "retry_ms"),
    [
        ({}, 0),
        ({"retry-after": "2"}, 2000),
        ({"retry-after": " 1.5 "}, 1500),
        ({"retry-after-ms": "250", "retry-after": "2"}, 250),
        ({"retry-after": "999999999"}, 86_400_000),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "-1"}, 0),
        (
            {
                "retry-after": "Wed, 21 Oct 2026 07:28:30 GMT",
                "date": "Wed, 21 Oct 2026 07:28:00 GMT",
            },
            30_000,
        ),
        (
            {
                "retry-after": "Wed, 21 Oct 2026 07:27:00 GMT",
                "date": "Wed, 21 Oct 2026 07:28:00 GMT",
            },
            0,
        ),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}, 0),
    ],
)
def test_a_provider_says_how_long_to_wait(headers: dict[str, str], retry_ms: int) -> None:
    error = refusal(429, words("slow down"), headers=headers)
    assert error.retry_after_ms == retry_ms
    assert error.reason == error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED
