"""What to do after a failed attempt, as a table of reasons. Pure.

Two questions, kept apart. *Elsewhere*: may another deployment take over? Yes, unless the call
itself is at fault; an attempt whose fate is unknown is then settled as uncertain beside the new
one. *Again*: may the same deployment be asked again? Only when its fate is known: nothing was
sent, it said no, or it began a stream and broke it off before any content.
"""

import enum
from typing import Final, Protocol

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError

BACKOFF_S: Final = 0.25
"""The longest pause before the first retry of a deployment; twice as long each time after."""
BACKOFF_MAX_S: Final = 2.0


class RandomBytes(Protocol):
    """Where jitter comes from: any ``runtime.clock.Entropy``."""

    def bytes(self, count: int) -> bytes:
        """``count`` bytes that nobody can foresee."""
        ...


class Step(enum.Enum):
    """What may follow a failed attempt."""

    STOP = enum.auto()
    """Nothing: the answer would be the same everywhere."""
    ELSEWHERE = enum.auto()
    """Another deployment."""
    AGAIN = enum.auto()
    """Another deployment, or the same one a little later."""


_BY_REASON: Final = {
    error_pb2.ERROR_REASON_UPSTREAM_UNREACHABLE: Step.AGAIN,
    error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED: Step.ELSEWHERE,
    error_pb2.ERROR_REASON_UPSTREAM_AUTH: Step.ELSEWHERE,
    error_pb2.ERROR_REASON_UPSTREAM_ERROR: Step.ELSEWHERE,
    error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL: Step.ELSEWHERE,
    error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT: Step.ELSEWHERE,
    error_pb2.ERROR_REASON_MODEL_NOT_FOUND: Step.ELSEWHERE,
}
_ITS_FAULT: Final = frozenset(
    {
        error_pb2.ERROR_REASON_UPSTREAM_UNREACHABLE,
        error_pb2.ERROR_REASON_UPSTREAM_ERROR,
        error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL,
        error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT,
    }
)
_REFUSED_FOR_NOW: Final = frozenset(
    {408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 529}
)
"""Statuses that say: not done, ask again. 529 is Anthropic's overload
(https://docs.anthropic.com/en/api/errors), 520 to 523 are Cloudflare's."""


def is_its_fault(failure: GatewayError) -> bool:
    """Whether a failure speaks against the deployment: not a limit, a credential or the call."""
    return failure.reason in _ITS_FAULT


def step_after(failure: GatewayError, *, broke_off: bool = False) -> Step:
    """What may follow the failure of an attempt of which the caller has seen nothing.

    Args:
        failure: how it failed.
        broke_off: the provider had begun a stream and ended it, with an error or without, before
            any content.
    """
    step = _BY_REASON.get(failure.reason, Step.STOP)
    if step is not Step.ELSEWHERE:
        return step
    refused = failure.upstream_status in _REFUSED_FOR_NOW
    silent = failure.reason == error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT
    return Step.AGAIN if refused or (broke_off and not silent) else step


def pause_s(retry: int, entropy: RandomBytes) -> float:
    """How long to wait before the n-th retry (from 1) of a deployment: full jitter
    (https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/).
    """
    most = min(BACKOFF_S * 2.0 ** (retry - 1), BACKOFF_MAX_S)
    return most * int.from_bytes(entropy.bytes(4), "big") / 2**32
