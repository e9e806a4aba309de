"""The one exception that means "this call is refused or failed", with the reason that every
border translates.

Raise it where the fact is known. The borders are: provider answer to reason
(``services/router/providers``), reason to gRPC status (``runtime/rpc.py``), reason to HTTP
(``edge/errors.py``).
"""

from collections.abc import Sequence
from typing import Final, Self

from onegate.common.v1 import error_pb2

Reason = error_pb2.ErrorReason
"""The enum of reasons; ``Reason.Name(value)`` gives ``ERROR_REASON_…``."""

_PREFIX: Final = "ERROR_REASON_"

RETRYABLE: Final[frozenset[int]] = frozenset(
    {
        error_pb2.ERROR_REASON_REQUEST_TIMEOUT,
        error_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED,
        error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
        error_pb2.ERROR_REASON_UPSTREAM_ERROR,
        error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL,
        error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT,
        error_pb2.ERROR_REASON_UPSTREAM_UNREACHABLE,
        error_pb2.ERROR_REASON_AUTH_UNAVAILABLE,
        error_pb2.ERROR_REASON_BUDGET_UNAVAILABLE,
        error_pb2.ERROR_REASON_OVERLOADED,
        error_pb2.ERROR_REASON_DRAINING,
        error_pb2.ERROR_REASON_JOURNAL_FULL,
        error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE,
        error_pb2.ERROR_REASON_STORE_UNAVAILABLE,
    }
)
"""Reasons after which the same request may succeed if it is sent again later."""


def reason_name(reason: int) -> str:
    """The reason as a code for people and programs: ``INVALID_API_KEY`` gives
    ``invalid_api_key``. A reason that only a newer peer knows is called by its number.
    """
    if reason not in Reason.values():
        return f"reason_{reason}"
    return Reason.Name(error_pb2.ErrorReason.ValueType(reason)).removeprefix(_PREFIX).lower()


class GatewayError(Exception):
    """A refused or failed call.

    Args:
        reason: why, one of ``error_pb2.ERROR_REASON_*``.
        message: what happened and what to do next; never a secret, never a provider's raw body.
        param: the request field at fault, as the caller wrote it; empty when none is.
        retry_after_ms: how long to wait before the next try; 0 when unknown.
        upstream_status: the provider's HTTP status; 0 when none answered.
    """

    def __init__(
        self,
        reason: int,
        message: str,
        *,
        param: str = "",
        retry_after_ms: int = 0,
        upstream_status: int = 0,
    ) -> None:
        super().__init__(message)
        self.reason = error_pb2.ErrorReason.ValueType(reason)
        self.message = message
        self.param = param
        self.retry_after_ms = retry_after_ms
        self.upstream_status = upstream_status
        self.attempts: Sequence[error_pb2.AttemptSummary] = ()
        self.excluded: Sequence[error_pb2.Exclusion] = ()
        self.budget: error_pb2.BudgetRefusal | None = None

    @property
    def retryable(self) -> bool:
        """Whether sending the same request again may succeed."""
        return self.reason in RETRYABLE

    def to_proto(self) -> error_pb2.Error:
        """The error as it travels between processes."""
        return error_pb2.Error(
            reason=self.reason,
            message=self.message,
            param=self.param,
            retryable=self.retryable,
            retry_after_ms=self.retry_after_ms,
            upstream_status=self.upstream_status,
            attempts=self.attempts,
            excluded=self.excluded,
            budget=self.budget,
        )

    @classmethod
    def from_proto(cls, error: error_pb2.Error) -> Self:
        """The error as it left the process that raised it."""
        self = cls(
            error.reason,
            error.message,
            param=error.param,
            retry_after_ms=error.retry_after_ms,
            upstream_status=error.upstream_status,
        )
        self.attempts = list(error.attempts)
        self.excluded = list(error.excluded)
        self.budget = error.budget if error.HasField("budget") else None
        return self

    def __repr__(self) -> str:
        return f"GatewayError({reason_name(self.reason)}: {self.message})"
