"""gRPC as every process uses it: channels, calls, servers and errors, with the settings that were
measured to matter.

The rest of the project imports from here; ``rpc_server.py`` and ``rpc_status.py`` are its parts.
"""

import hmac
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import grpc

from onegate.common.v1 import error_pb2
from runtime.config import RpcSettings
from runtime.errors import GatewayError
from runtime.rpc_server import SHARED_OPTIONS, RpcServer, limit_options, metadata_of
from runtime.rpc_status import GRPC_STATUS, from_rpc_error

__all__ = [
    "GRPC_STATUS",
    "OPERATOR_KEY",
    "RpcServer",
    "channel",
    "from_rpc_error",
    "require_operator",
    "unary",
]

OPERATOR_KEY: Final = "x-onegate-operator"
"""Metadata: the secret that admits administration."""

_CHANNEL_OPTIONS: Final[tuple[tuple[str, str | int], ...]] = (
    *SHARED_OPTIONS,
    # The router alone decides what is tried again.
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    # Each channel finds out by itself, and soon, that its peer is back.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
_LOOKAHEAD_BYTES: Final = 32 * 1024

_RequestT_contra = TypeVar("_RequestT_contra", contravariant=True)
_ResponseT_co = TypeVar("_ResponseT_co", covariant=True)
_RequestT = TypeVar("_RequestT")
_ResponseT = TypeVar("_ResponseT")
Metadata = Sequence[tuple[str, str]]


class UnaryMethod(Protocol[_RequestT_contra, _ResponseT_co]):
    """A stub's unary method."""

    def __call__(
        self, request: _RequestT_contra, *, timeout: float | None = None, metadata: Any = None
    ) -> Awaitable[_ResponseT_co]:
        """Sends a request."""
        ...


def channel(
    target: str, settings: RpcSettings, *, lookahead_bytes: int = _LOOKAHEAD_BYTES
) -> grpc.aio.Channel:
    """A channel to ``unix:PATH``, ``host:port`` or ``dns:///host:port``; connects when it is first
    used, and again by itself.

    Whoever reads a streaming call cancels it in a ``finally``: grpc.aio does not always do it when
    the reading task is cancelled (not at the moment when the first metadata arrives).

    ``lookahead_bytes`` is what a stream takes in before anybody reads it: little, so that a slow
    reader stops its sender, unless something above gRPC bounds it.
    """
    options = (
        *_CHANNEL_OPTIONS,
        *limit_options(settings),
        ("grpc.http2.lookahead_bytes", lookahead_bytes),
    )
    return grpc.aio.insecure_channel(target, options)


async def unary(
    method: UnaryMethod[_RequestT, _ResponseT],
    request: _RequestT,
    *,
    timeout_s: float,
    metadata: Metadata = (),
    away: error_pb2.ErrorReason.ValueType = error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE,
) -> _ResponseT:
    """The answer to one request.

    Raises the error that the servicer raised, with all its fields; ``away`` when the peer cannot
    be reached; DEADLINE_EXCEEDED after ``timeout_s``.
    """
    try:
        return await method(request, timeout=timeout_s, metadata=tuple(metadata))
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, away=away) from error


def require_operator(
    caller: "grpc.aio.ServicerContext[Any, Any] | Mapping[str, str]", token: str
) -> None:
    """Refuses, with INVALID_API_KEY, who does not present the operator's token.

    Takes constant time in the token; an empty token admits nobody.
    """
    metadata = caller if isinstance(caller, Mapping) else metadata_of(caller)
    presented = metadata.get(OPERATOR_KEY, "").encode()
    if not hmac.compare_digest(presented, token.encode()) or not token:
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_API_KEY,
            f"This method is the operator's: send the operator token as {OPERATOR_KEY}.",
        )
