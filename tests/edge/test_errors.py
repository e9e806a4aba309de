"""Error reasons as HTTP: the one table, and what an answer says beside its status."""

import json

import pytest

from edge import errors
from edge.http import HttpRefusalError
from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError, Reason, reason_name
from tests.openapi_oracle import ERROR, faults
from tests.recordings import needs_specs

TABLE = {
    "invalid_api_key": (401, "authentication_error", None),
    "key_expired": (401, "authentication_error", None),
    "model_forbidden": (403, "permission_error", None),
    "scope_missing": (403, "permission_error", None),
    "data_policy": (403, "permission_error", None),
    "model_not_found": (404, "not_found_error", None),
    "method_not_allowed": (405, "invalid_request_error", None),
    "invalid_request": (400, "invalid_request_error", None),
    "context_length_exceeded": (400, "invalid_request_error", None),
    "idempotency_mismatch": (400, "invalid_request_error", None),
    "request_too_large": (413, "invalid_request_error", None),
    "request_timeout": (408, "invalid_request_error", "true"),
    "rate_limit_exceeded": (429, "rate_limit_error", "true"),
    "budget_exhausted": (429, "insufficient_quota", "false"),
    "upstream_rate_limited": (429, "rate_limit_error", "true"),
    "upstream_error": (502, "api_error", "false"),
    "upstream_auth": (502, "api_error", "false"),
    "upstream_protocol": (502, "api_error", "false"),
    "upstream_too_large": (502, "api_error", "false"),
    "upstream_unreachable": (502, "api_error", "false"),
    "upstream_timeout": (504, "api_error", "false"),
    "auth_unavailable": (503, "api_error", "true"),
    "budget_unavailable": (503, "api_error", "true"),
    "overloaded": (503, "api_error", "true"),
    "draining": (503, "api_error", "true"),
    "journal_full": (503, "api_error", "true"),
    "router_unavailable": (503, "api_error", "true"),
    "internal": (500, "api_error", "false"),
}


def of(name: str, **fields: int) -> GatewayError:
    return GatewayError(Reason.Value(f"ERROR_REASON_{name.upper()}"), "Because.", **fields)  # type: ignore[arg-type]


def test_every_reason_has_its_row() -> None:
    assert set(errors.HTTP_ERRORS) == set(Reason.values())


@pytest.mark.parametrize("name", TABLE)
def test_a_reason_looks_as_the_surface_says(name: str) -> None:
    status, kind, retry = TABLE[name]
    error = of(name)
    assert errors.status_of(error) == status
    assert errors.error_json(error)["type"] == kind
    assert errors.error_json(error)["code"] == name
    headers = dict(errors.error_headers(error))
    assert headers.get("x-should-retry") == retry
    if status == 503:
        assert headers["retry-after"] == "1"


@pytest.mark.parametrize("reason", Reason.values())
def test_what_an_sdk_would_send_again_by_itself_always_says_whether_to(reason: int) -> None:
    error = GatewayError(reason, "Because.")
    status = errors.status_of(error)
    if status in (408, 409, 429) or status >= 500:
        assert "x-should-retry" in dict(errors.error_headers(error))


def test_a_wait_is_told_in_both_units() -> None:
    headers = dict(errors.error_headers(of("rate_limit_exceeded", retry_after_ms=1_001)))
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("2", "1001")
    budget = dict(errors.error_headers(of("budget_exhausted", retry_after_ms=5_000)))
    assert budget["retry-after"] == "5"
    assert "retry-after" not in dict(errors.error_headers(of("budget_exhausted")))
    assert "retry-after" not in dict(errors.error_headers(of("internal", retry_after_ms=5_000)))


def test_who_is_not_known_is_told_how_to_be() -> None:
    assert dict(errors.error_headers(of("key_expired")))["www-authenticate"].startswith("Bearer")


def test_a_refusal_of_http_has_its_own_status_and_headers() -> None:
    refusal = HttpRefusalError(405, "No.", [("allow", "GET")])
    assert errors.status_of(refusal) == 405
    assert ("allow", "GET") in errors.error_headers(refusal)


def test_attempts_and_exclusions_are_told() -> None:
    error = of("upstream_error", retry_after_ms=7, upstream_status=500)
    error.param = "model"
    error.attempts = [
        error_pb2.AttemptSummary(
            model="a/b",
            reason=error_pb2.ERROR_REASON_UPSTREAM_ERROR,
            upstream_status=500,
            duration_ms=9,
        ),
        error_pb2.AttemptSummary(model="a/c", duration_ms=1),
    ]
    error.excluded = [
        error_pb2.Exclusion(
            model="a/d", reason=error_pb2.ERROR_REASON_DATA_POLICY, detail="not in the EU"
        )
    ]
    assert json.loads(errors.error_body(error))["error"] == {
        "message": "Because.",
        "type": "api_error",
        "param": "model",
        "code": "upstream_error",
        "metadata": {
            "retryable": True,
            "retry_after_ms": 7,
            "upstream_status": 500,
            "attempts": [
                {
                    "model": "a/b",
                    "reason": "upstream_error",
                    "upstream_status": 500,
                    "duration_ms": 9,
                },
                {"model": "a/c", "reason": None, "upstream_status": None, "duration_ms": 1},
            ],
            "excluded": [{"model": "a/d", "reason": "data_policy", "detail": "not in the EU"}],
        },
    }


def test_a_reason_that_a_newer_process_made_up_is_a_defect_here() -> None:
    error = GatewayError(error_pb2.ERROR_REASON_INTERNAL, "Because.")
    error.reason = error_pb2.ErrorReason.ValueType(999)
    assert errors.status_of(error) == 500
    assert errors.error_json(error)["code"] == "reason_999"


@needs_specs
@pytest.mark.parametrize("reason", Reason.values())
def test_every_error_is_what_openais_description_says(reason: int) -> None:
    body = json.loads(errors.error_body(GatewayError(reason, "Because.")))
    assert faults(ERROR, body) == []
    assert set(body["error"]) >= {"message", "type", "param", "code"}
    assert body["error"]["code"] == reason_name(reason)
