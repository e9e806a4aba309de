"""Reasons on the wire of gRPC, both ways: status code, ErrorInfo, and the whole error in trailing
metadata.

One of the three borders that translate errors. What a peer of ours sends survives whole
(``onegate-error-bin``); any other gRPC client still gets a status code, a message and a
``google.rpc.ErrorInfo`` whose ``reason`` is the enum's name.
"""

from types import MappingProxyType
from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import (  # type: ignore[import-untyped]  # ships messages without type stubs
    error_details_pb2,
    status_pb2,
)

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError, reason_name

ERROR_KEY: Final = "onegate-error-bin"
"""Trailing metadata: a serialised ``onegate.common.v1.Error``."""

ERROR_DOMAIN: Final = "onegate"

_DETAILS_KEY: Final = "grpc-status-details-bin"
_MESSAGE_BYTES_MAX: Final = 512
"""Of the status message, which goes percent-encoded (three bytes for one)."""
_ERROR_BYTES_MAX: Final = 2560
"""Of the whole error. Together with the message, and in base64, the trailers stay under the 8 KiB
that gRPC clients accept by default (https://grpc.io/docs/guides/metadata/).
"""

_CODE: Final = grpc.StatusCode

GRPC_STATUS: Final = MappingProxyType(
    {
        error_pb2.ERROR_REASON_UNSPECIFIED: _CODE.INTERNAL,
        error_pb2.ERROR_REASON_INVALID_API_KEY: _CODE.UNAUTHENTICATED,
        error_pb2.ERROR_REASON_KEY_EXPIRED: _CODE.UNAUTHENTICATED,
        error_pb2.ERROR_REASON_KEY_DISABLED: _CODE.UNAUTHENTICATED,
        error_pb2.ERROR_REASON_MODEL_FORBIDDEN: _CODE.PERMISSION_DENIED,
        error_pb2.ERROR_REASON_SCOPE_MISSING: _CODE.PERMISSION_DENIED,
        error_pb2.ERROR_REASON_DATA_POLICY: _CODE.PERMISSION_DENIED,
        error_pb2.ERROR_REASON_ADDRESS_FORBIDDEN: _CODE.PERMISSION_DENIED,
        error_pb2.ERROR_REASON_MODEL_NOT_FOUND: _CODE.NOT_FOUND,
        error_pb2.ERROR_REASON_NOT_FOUND: _CODE.NOT_FOUND,
        error_pb2.ERROR_REASON_METHOD_NOT_ALLOWED: _CODE.UNIMPLEMENTED,
        error_pb2.ERROR_REASON_INVALID_REQUEST: _CODE.INVALID_ARGUMENT,
        error_pb2.ERROR_REASON_UNSUPPORTED_PARAMETER: _CODE.INVALID_ARGUMENT,
        error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED: _CODE.INVALID_ARGUMENT,
        error_pb2.ERROR_REASON_CONTENT_POLICY: _CODE.INVALID_ARGUMENT,
        error_pb2.ERROR_REASON_MODEL_PRICE_UNKNOWN: _CODE.FAILED_PRECONDITION,
        error_pb2.ERROR_REASON_IDEMPOTENCY_MISMATCH: _CODE.INVALID_ARGUMENT,
        error_pb2.ERROR_REASON_CONFLICT: _CODE.ALREADY_EXISTS,
        error_pb2.ERROR_REASON_REQUEST_TOO_LARGE: _CODE.INVALID_ARGUMENT,
        error_pb2.ERROR_REASON_REQUEST_TIMEOUT: _CODE.DEADLINE_EXCEEDED,
        error_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED: _CODE.RESOURCE_EXHAUSTED,
        error_pb2.ERROR_REASON_BUDGET_EXHAUSTED: _CODE.RESOURCE_EXHAUSTED,
        error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED: _CODE.RESOURCE_EXHAUSTED,
        error_pb2.ERROR_REASON_UPSTREAM_ERROR: _CODE.UNAVAILABLE,
        error_pb2.ERROR_REASON_UPSTREAM_AUTH: _CODE.FAILED_PRECONDITION,
        error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL: _CODE.UNAVAILABLE,
        error_pb2.ERROR_REASON_UPSTREAM_TOO_LARGE: _CODE.OUT_OF_RANGE,
        error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT: _CODE.DEADLINE_EXCEEDED,
        error_pb2.ERROR_REASON_UPSTREAM_UNREACHABLE: _CODE.UNAVAILABLE,
        error_pb2.ERROR_REASON_AUTH_UNAVAILABLE: _CODE.UNAVAILABLE,
        error_pb2.ERROR_REASON_BUDGET_UNAVAILABLE: _CODE.UNAVAILABLE,
        error_pb2.ERROR_REASON_OVERLOADED: _CODE.UNAVAILABLE,
        error_pb2.ERROR_REASON_DRAINING: _CODE.UNAVAILABLE,
        error_pb2.ERROR_REASON_JOURNAL_FULL: _CODE.UNAVAILABLE,
        error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE: _CODE.UNAVAILABLE,
        error_pb2.ERROR_REASON_STORE_UNAVAILABLE: _CODE.UNAVAILABLE,
        error_pb2.ERROR_REASON_INTERNAL: _CODE.INTERNAL,
        error_pb2.ERROR_REASON_CANCELLED: _CODE.CANCELLED,
        error_pb2.ERROR_REASON_DEADLINE_EXCEEDED: _CODE.DEADLINE_EXCEEDED,
    }
)
"""Every reason's status code; a test keeps it complete."""

_PLAIN_STATUS: Final = MappingProxyType(
    {
        _CODE.CANCELLED: (
            error_pb2.ERROR_REASON_CANCELLED,
            "The call was cancelled before it was done.",
        ),
        _CODE.DEADLINE_EXCEEDED: (
            error_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
            "The call was not done within its deadline; allow more time or ask for less.",
        ),
        _CODE.UNIMPLEMENTED: (
            error_pb2.ERROR_REASON_NOT_FOUND,
            "The peer does not serve this method; run the same version of onegate everywhere.",
        ),
        _CODE.UNAUTHENTICATED: (
            error_pb2.ERROR_REASON_INVALID_API_KEY,
            "The peer did not accept this caller's credential.",
        ),
        _CODE.PERMISSION_DENIED: (
            error_pb2.ERROR_REASON_SCOPE_MISSING,
            "The peer does not allow this call.",
        ),
        _CODE.NOT_FOUND: (error_pb2.ERROR_REASON_NOT_FOUND, "The peer knows no such object."),
        _CODE.INVALID_ARGUMENT: (
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            "The peer refused the request as malformed.",
        ),
    }
)
"""What a status means that did not come from a service of ours, but from gRPC itself."""


def from_rpc_error(
    error: grpc.aio.AioRpcError,
    *,
    away: error_pb2.ErrorReason.ValueType = error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE,
) -> GatewayError:
    """The error that the peer raised, with all its fields; ``away`` when it cannot be reached."""
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_KEY and isinstance(value, bytes):
            try:
                return received(error_pb2.Error.FromString(value))
            except DecodeError:
                break
    code, details = error.code(), error.details() or ""
    if code is _CODE.UNAVAILABLE:
        return GatewayError(
            away, "A service that this call needs is not reachable; try again in a moment."
        )
    if code is _CODE.RESOURCE_EXHAUSTED and "larger than max" in details:
        return GatewayError(
            error_pb2.ERROR_REASON_REQUEST_TOO_LARGE,
            "A message of this call is larger than [rpc] message_bytes_max; send less.",
        )
    reason, message = _PLAIN_STATUS.get(
        code,
        (error_pb2.ERROR_REASON_INTERNAL, f"A service failed with the gRPC status {code.name}."),
    )
    return GatewayError(reason, message)


def received(error: error_pb2.Error) -> GatewayError:
    """An error that a peer sent; INTERNAL when a newer peer has a reason that is unknown here."""
    if error.reason not in GRPC_STATUS:
        error.reason = error_pb2.ERROR_REASON_INTERNAL
    return GatewayError.from_proto(error)


def status_of(error: GatewayError) -> tuple[grpc.StatusCode, str]:
    """The status code and the status message, which is cut to fit a header."""
    return GRPC_STATUS[error.reason], _cut(error.message)


def trailers_of(error: GatewayError) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries the error; lists are cut where they would not fit."""
    code, message = status_of(error)
    details = [any_pb2.Any(), any_pb2.Any()]
    details[0].Pack(
        error_details_pb2.ErrorInfo(
            reason=reason_name(error.reason).upper(),
            domain=ERROR_DOMAIN,
            metadata={"param": _cut(error.param)} if error.param else {},
        )
    )
    details[1].Pack(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after_ms)))
    status = status_pb2.Status(
        code=code.value[0],
        message=message,
        details=details if error.retry_after_ms else details[:1],
    )
    return ((ERROR_KEY, _fitting(error)), (_DETAILS_KEY, status.SerializeToString()))


def _fitting(error: GatewayError) -> bytes:
    """The serialised error, with so many exclusions, attempts and words as fit."""
    proto = error.to_proto()
    while proto.ByteSize() > _ERROR_BYTES_MAX and proto.excluded:
        del proto.excluded[len(proto.excluded) // 2 :]
    while proto.ByteSize() > _ERROR_BYTES_MAX and proto.attempts:
        del proto.attempts[len(proto.attempts) // 2 :]
    if proto.ByteSize() > _ERROR_BYTES_MAX:
        proto.message, proto.param = _cut(proto.message), _cut(proto.param)
    return proto.SerializeToString()


def _cut(text: str) -> str:
    """The beginning of a text that is too long for a header, at a character's border."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= _MESSAGE_BYTES_MAX:
        return text
    return encoded[:_MESSAGE_BYTES_MAX].decode("utf-8", "ignore") + "…"


def _duration(delay_ms: int) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=delay_ms // 1000, nanos=delay_ms % 1000 * 1_000_000)
