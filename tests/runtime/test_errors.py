"""Every reason is judged on purpose, and an error arrives as it left."""

import pytest

from onegate.common.v1 import error_pb2
from runtime.errors import RETRYABLE, GatewayError, Reason, reason_name

FINAL = {
    # The caller must change something first.
    error_pb2.ERROR_REASON_INVALID_API_KEY,
    error_pb2.ERROR_REASON_KEY_EXPIRED,
    error_pb2.ERROR_REASON_KEY_DISABLED,
    error_pb2.ERROR_REASON_MODEL_FORBIDDEN,
    error_pb2.ERROR_REASON_SCOPE_MISSING,
    error_pb2.ERROR_REASON_DATA_POLICY,
    error_pb2.ERROR_REASON_ADDRESS_FORBIDDEN,
    error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
    error_pb2.ERROR_REASON_NOT_FOUND,
    error_pb2.ERROR_REASON_METHOD_NOT_ALLOWED,
    error_pb2.ERROR_REASON_INVALID_REQUEST,
    error_pb2.ERROR_REASON_UNSUPPORTED_PARAMETER,
    error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
    error_pb2.ERROR_REASON_CONTENT_POLICY,
    error_pb2.ERROR_REASON_IDEMPOTENCY_MISMATCH,
    error_pb2.ERROR_REASON_CONFLICT,
    error_pb2.ERROR_REASON_REQUEST_TOO_LARGE,
    # An operator must.
    error_pb2.ERROR_REASON_MODEL_PRICE_UNKNOWN,
    error_pb2.ERROR_REASON_BUDGET_EXHAUSTED,
    error_pb2.ERROR_REASON_UPSTREAM_AUTH,
    error_pb2.ERROR_REASON_UPSTREAM_TOO_LARGE,
    # Nobody knows that trying again helps.
    error_pb2.ERROR_REASON_INTERNAL,
    # Nobody waits for the answer.
    error_pb2.ERROR_REASON_CANCELLED,
    error_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
    # Never sent on purpose.
    error_pb2.ERROR_REASON_UNSPECIFIED,
}
"""Reasons after which the same request fails again, each for the cause above it."""

WHOLE = error_pb2.Error(
    reason=error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
    message="Every provider is rate limited; wait 2 s.",
    param="model",
    retryable=True,
    retry_after_ms=2000,
    upstream_status=429,
    attempts=[
        error_pb2.AttemptSummary(
            model="groq/llama",
            reason=error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
            upstream_status=429,
            duration_ms=12,
        )
    ],
    excluded=[
        error_pb2.Exclusion(
            model="xai/grok", reason=error_pb2.ERROR_REASON_DATA_POLICY, detail="region us"
        )
    ],
)


@pytest.mark.parametrize("reason", Reason.values(), ids=Reason.Name)
def test_every_reason_is_retryable_or_final_on_purpose(
    reason: error_pb2.ErrorReason.ValueType,
) -> None:
    assert (reason in RETRYABLE) != (reason in FINAL)
    assert GatewayError(reason, "x").retryable == (reason in RETRYABLE)


def test_no_table_names_a_reason_that_is_gone() -> None:
    assert set(Reason.values()) == RETRYABLE | FINAL


@pytest.mark.parametrize("reason", Reason.values(), ids=Reason.Name)
def test_every_reason_has_a_code_for_people_and_programs(
    reason: error_pb2.ErrorReason.ValueType,
) -> None:
    code = reason_name(reason)
    assert code.replace("_", "").isalpha()
    assert code.islower()
    assert Reason.Value(f"ERROR_REASON_{code.upper()}") == reason


def test_codes_are_those_that_callers_know() -> None:
    assert reason_name(error_pb2.ERROR_REASON_INVALID_API_KEY) == "invalid_api_key"
    assert reason_name(error_pb2.ERROR_REASON_BUDGET_EXHAUSTED) == "budget_exhausted"


def test_an_error_arrives_as_it_left() -> None:
    arrived = GatewayError.from_proto(error_pb2.Error.FromString(WHOLE.SerializeToString()))
    assert arrived.to_proto() == WHOLE
    assert str(arrived) == WHOLE.message
    assert repr(arrived) == f"GatewayError(upstream_rate_limited: {WHOLE.message})"


def test_an_error_with_nothing_but_a_reason_arrives_too() -> None:
    bare = GatewayError(error_pb2.ERROR_REASON_NOT_FOUND, "No such key.")
    arrived = GatewayError.from_proto(bare.to_proto())
    assert (arrived.reason, arrived.message) == (bare.reason, bare.message)
    assert (arrived.param, arrived.retry_after_ms, arrived.upstream_status) == ("", 0, 0)
    assert (list(arrived.attempts), list(arrived.excluded)) == ([], [])


def test_whether_to_retry_is_decided_here_not_by_the_sender() -> None:
    forged = error_pb2.Error(reason=error_pb2.ERROR_REASON_BUDGET_EXHAUSTED, retryable=True)
    assert not GatewayError.from_proto(forged).retryable


def test_a_reason_of_a_newer_peer_survives() -> None:
    newer = error_pb2.Error(reason=error_pb2.ErrorReason.ValueType(999), message="new")
    arrived = GatewayError.from_proto(newer)
    assert arrived.to_proto().reason == 999
    assert not arrived.retryable
    assert repr(arrived) == "GatewayError(reason_999: new)"


def test_an_error_is_an_exception_like_any_other() -> None:
    with pytest.raises(GatewayError, match="No such key"):
        raise GatewayError(error_pb2.ERROR_REASON_NOT_FOUND, "No such key.")
