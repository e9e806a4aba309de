"""The third border: error reasons as HTTP.

One table for every reason; a test keeps it complete. The body is OpenAI's shape with ``metadata``
beside it. ``x-should-retry`` tells the official SDKs, which by themselves send again after 408,
409, 429 and every 5xx, when that would only multiply what the router has already tried.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from edge.endpoints.strict_json import encode
from edge.http import HttpRefusalError
from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError, reason_name
from runtime.money import usd
from runtime.redaction import redact_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpError:
    """How one reason looks over HTTP.

    Attributes:
        status: the HTTP status.
        type: OpenAI's ``error.type``.
        retry: ``x-should-retry``; ``None`` for statuses that no SDK sends again by itself.
        retry_after_ms: how long to wait when the error itself does not say; 0 for no advice.
    """

    status: int
    type: str
    retry: bool | None = None
    retry_after_ms: int = 0


_AUTHENTICATION: Final = HttpError(status=401, type="authentication_error")
_PERMISSION: Final = HttpError(status=403, type="permission_error")
_NOT_FOUND: Final = HttpError(status=404, type="not_found_error")
_INVALID: Final = HttpError(status=400, type="invalid_request_error")
_UPSTREAM: Final = HttpError(status=502, type="api_error", retry=False)
_UNAVAILABLE: Final = HttpError(status=503, type="api_error", retry=True, retry_after_ms=1000)

HTTP_ERRORS: Final[Mapping[int, HttpError]] = {
    error_pb2.ERROR_REASON_UNSPECIFIED: HttpError(status=500, type="api_error", retry=False),
    error_pb2.ERROR_REASON_INVALID_API_KEY: _AUTHENTICATION,
    error_pb2.ERROR_REASON_KEY_EXPIRED: _AUTHENTICATION,
    error_pb2.ERROR_REASON_KEY_DISABLED: _AUTHENTICATION,
    error_pb2.ERROR_REASON_MODEL_FORBIDDEN: _PERMISSION,
    error_pb2.ERROR_REASON_SCOPE_MISSING: _PERMISSION,
    error_pb2.ERROR_REASON_DATA_POLICY: _PERMISSION,
    error_pb2.ERROR_REASON_ADDRESS_FORBIDDEN: _PERMISSION,
    error_pb2.ERROR_REASON_MODEL_NOT_FOUND: _NOT_FOUND,
    error_pb2.ERROR_REASON_NOT_FOUND: _NOT_FOUND,
    error_pb2.ERROR_REASON_METHOD_NOT_ALLOWED: HttpError(status=405, type="invalid_request_error"),
    error_pb2.ERROR_REASON_INVALID_REQUEST: _INVALID,
    error_pb2.ERROR_REASON_UNSUPPORTED_PARAMETER: _INVALID,
    error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED: _INVALID,
    error_pb2.ERROR_REASON_CONTENT_POLICY: _INVALID,
    error_pb2.ERROR_REASON_MODEL_PRICE_UNKNOWN: _INVALID,
    error_pb2.ERROR_REASON_IDEMPOTENCY_MISMATCH: _INVALID,
    error_pb2.ERROR_REASON_CONFLICT: HttpError(
        status=409, type="invalid_request_error", retry=False
    ),
    error_pb2.ERROR_REASON_REQUEST_TOO_LARGE: HttpError(status=413, type="invalid_request_error"),
    error_pb2.ERROR_REASON_REQUEST_TIMEOUT: HttpError(
        status=408, type="invalid_request_error", retry=True
    ),
    error_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED: HttpError(
        status=429, type="rate_limit_error", retry=True, retry_after_ms=1000
    ),
    error_pb2.ERROR_REASON_BUDGET_EXHAUSTED: HttpError(
        status=429, type="insufficient_quota", retry=False
    ),
    error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED: HttpError(
        status=429, type="rate_limit_error", retry=True, retry_after_ms=1000
    ),
    error_pb2.ERROR_REASON_UPSTREAM_ERROR: _UPSTREAM,
    error_pb2.ERROR_REASON_UPSTREAM_AUTH: _UPSTREAM,
    error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL: _UPSTREAM,
    error_pb2.ERROR_REASON_UPSTREAM_TOO_LARGE: _UPSTREAM,
    error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT: HttpError(status=504, type="api_error", retry=False),
    error_pb2.ERROR_REASON_UPSTREAM_UNREACHABLE: _UPSTREAM,
    error_pb2.ERROR_REASON_AUTH_UNAVAILABLE: _UNAVAILABLE,
    error_pb2.ERROR_REASON_BUDGET_UNAVAILABLE: _UNAVAILABLE,
    error_pb2.ERROR_REASON_OVERLOADED: _UNAVAILABLE,
    error_pb2.ERROR_REASON_DRAINING: _UNAVAILABLE,
    error_pb2.ERROR_REASON_JOURNAL_FULL: _UNAVAILABLE,
    error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE: _UNAVAILABLE,
    error_pb2.ERROR_REASON_STORE_UNAVAILABLE: _UNAVAILABLE,
    error_pb2.ERROR_REASON_INTERNAL: HttpError(status=500, type="api_error", retry=False),
    # Nobody reads this answer: the caller has left. The status is what access logs show.
    error_pb2.ERROR_REASON_CANCELLED: HttpError(status=499, type="api_error"),
    error_pb2.ERROR_REASON_DEADLINE_EXCEEDED: HttpError(status=504, type="api_error", retry=False),
}


def http_error(reason: int) -> HttpError:
    """A reason's row; a reason that a newer process made up counts as a defect."""
    return HTTP_ERRORS.get(reason) or HTTP_ERRORS[error_pb2.ERROR_REASON_INTERNAL]


def status_of(error: GatewayError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, HttpRefusalError):
        return error.status
    return http_error(error.reason).status


def error_headers(error: GatewayError) -> list[tuple[str, str]]:
    """What an error says in the head of its answer."""
    row = http_error(error.reason)
    headers = list(error.headers) if isinstance(error, HttpRefusalError) else []
    wait_ms = error.retry_after_ms or row.retry_after_ms
    if wait_ms > 0 and (row.retry or row.status == 429):
        headers.append(("retry-after", str(math.ceil(wait_ms / 1000))))
        headers.append(("retry-after-ms", str(wait_ms)))
    if row.retry is not None:
        headers.append(("x-should-retry", "true" if row.retry else "false"))
    if row.status == 401:
        headers.append(("www-authenticate", 'Bearer realm="onegate"'))
    return headers


def error_body(error: GatewayError) -> bytes:
    """An error as JSON, in OpenAI's shape."""
    return encode({"error": error_json(error)})


def error_json(error: GatewayError) -> dict[str, Any]:
    """The error object."""
    metadata: dict[str, Any] = {"retryable": error.retryable}
    if error.retry_after_ms > 0:
        metadata["retry_after_ms"] = error.retry_after_ms
    if error.upstream_status:
        metadata["upstream_status"] = error.upstream_status
    if error.attempts:
        metadata["attempts"] = [_attempt(attempt) for attempt in error.attempts]
    if error.excluded:
        metadata["excluded"] = [
            {
                "model": redact_keys(out.model),
                "reason": _code(out.reason),
                "detail": redact_keys(out.detail),
            }
            for out in error.excluded
        ]
    if error.budget is not None:
        metadata["budget"] = _budget(error.budget)
    return {
        # What a caller puts where no key belongs comes back in sentences about it.
        "message": redact_keys(error.message),
        "type": http_error(error.reason).type,
        "param": error.param or None,
        "code": _code(error.reason),
        "metadata": metadata,
    }


def _budget(refusal: error_pb2.BudgetRefusal) -> dict[str, Any]:
    """How a budget stands, in USD; ``resets_at`` in Unix seconds."""
    resets = refusal.HasField("resets_at")
    return {
        "id": refusal.budget_id,
        "account": refusal.account,
        "limit": usd(refusal.limit_nano_usd),
        "spent": usd(refusal.spent_nano_usd),
        "held": usd(refusal.held_nano_usd),
        "asked": usd(refusal.asked_nano_usd),
        "resets_at": refusal.resets_at.seconds if resets else None,
    }


def _attempt(attempt: error_pb2.AttemptSummary) -> dict[str, Any]:
    failed = attempt.reason != error_pb2.ERROR_REASON_UNSPECIFIED
    return {
        "model": attempt.model,
        "reason": _code(attempt.reason) if failed else None,
        "upstream_status": attempt.upstream_status or None,
        "duration_ms": attempt.duration_ms,
    }


def _code(reason: int) -> str:
    """The reason as a code; one that this process does not know keeps its number."""
    return reason_name(reason) if reason in HTTP_ERRORS else f"reason_{reason}"
