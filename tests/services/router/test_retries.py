"""What follows which failure."""

import pytest

from onegate.common.v1 import error_pb2
from runtime.clock import SystemEntropy
from runtime.errors import GatewayError
from services.router import retries
from services.router.retries import Step, pause_s, step_after


@pytest.mark.parametrize(
    ("reason", "status", "step"),
    [
        ("UPSTREAM_UNREACHABLE", 0, Step.AGAIN),
        ("UPSTREAM_RATE_LIMITED", 429, Step.AGAIN),
        ("UPSTREAM_RATE_LIMITED", 402, Step.ELSEWHERE),
        ("UPSTREAM_RATE_LIMITED", 0, Step.ELSEWHERE),
        ("UPSTREAM_ERROR", 500, Step.AGAIN),
        ("UPSTREAM_ERROR", 503, Step.AGAIN),
        ("UPSTREAM_ERROR", 529, Step.AGAIN),
        ("UPSTREAM_ERROR", 501, Step.ELSEWHERE),
        ("UPSTREAM_ERROR", 0, Step.ELSEWHERE),
        ("UPSTREAM_TIMEOUT", 0, Step.ELSEWHERE),
        ("UPSTREAM_TIMEOUT", 408, Step.AGAIN),
        ("UPSTREAM_PROTOCOL", 0, Step.ELSEWHERE),
        ("UPSTREAM_AUTH", 401, Step.ELSEWHERE),
        ("UPSTREAM_AUTH", 403, Step.ELSEWHERE),
        ("MODEL_NOT_FOUND", 404, Step.ELSEWHERE),
        ("UPSTREAM_TOO_LARGE", 0, Step.STOP),
        ("INVALID_REQUEST", 400, Step.STOP),
        ("INVALID_REQUEST", 422, Step.STOP),
        ("CONTENT_POLICY", 400, Step.STOP),
        ("CONTEXT_LENGTH_EXCEEDED", 400, Step.STOP),
        ("CONTEXT_LENGTH_EXCEEDED", 500, Step.STOP),
        ("JOURNAL_FULL", 0, Step.STOP),
        ("DEADLINE_EXCEEDED", 0, Step.STOP),
        ("CANCELLED", 0, Step.STOP),
        ("INTERNAL", 0, Step.STOP),
    ],
)
def test_a_failure_decides_what_may_follow(reason: str, status: int, step: Step) -> None:
    value = error_pb2.ErrorReason.Value(f"ERROR_REASON_{reason}")
    assert step_after(GatewayError(value, "x", upstream_status=status)) is step


@pytest.mark.parametrize(
    ("reason", "step"),
    [
        ("UPSTREAM_PROTOCOL", Step.AGAIN),
        ("UPSTREAM_ERROR", Step.AGAIN),
        ("UPSTREAM_RATE_LIMITED", Step.AGAIN),
        ("UPSTREAM_TIMEOUT", Step.ELSEWHERE),
        ("UPSTREAM_TOO_LARGE", Step.STOP),
        ("CONTENT_POLICY", Step.STOP),
    ],
)
def test_a_stream_that_broke_off_before_any_content_may_be_asked_for_again(
    reason: str, step: Step
) -> None:
    value = error_pb2.ErrorReason.Value(f"ERROR_REASON_{reason}")
    assert step_after(GatewayError(value, "x"), broke_off=True) is step


def test_pauses_grow_to_a_limit_and_differ() -> None:
    entropy = SystemEntropy()
    for retry, most in ((1, 0.25), (2, 0.5), (3, 1.0), (4, 2.0), (9, retries.BACKOFF_MAX_S)):
        pauses = {pause_s(retry, entropy) for _ in range(50)}
        assert len(pauses) > 40
        assert all(0 <= pause < most for pause in pauses)
        assert max(pauses) > most / 2
