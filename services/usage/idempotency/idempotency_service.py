"""Answers to repeated calls over gRPC: checks what is asked and asks the store; and deletes what is
past its window.
"""

# ruff: noqa: N802 - methods are named as the contract names them

import logging
from typing import Any, Final, TypeAlias

import grpc

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import idempotency_service_pb2 as pb
from onegate.usage.v1 import idempotency_service_pb2_grpc
from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.metrics import Metrics
from services.usage.idempotency.idempotency_store import EXPIRED_MAX, IdempotencyStore

LEASE_MS_MAX: Final = 3600 * 1000
WINDOW_MS_MAX: Final = 31 * 24 * 3600 * 1000
CLAIMS_MAX: Final = 10_000
"""The most claims that one router names."""
CHUNK_BYTES_MAX: Final = 48 * 1024 * 1024
SPARE_US: Final = 20 * 1_000_000
"""How long routers have to say that they live once usage has started, in microseconds."""
EXPIRE_S: Final = 60.0
"""How often answers past their window are deleted, in seconds."""

_ENDS: Final = frozenset(
    {
        pb.CLAIM_STATE_UNSPECIFIED,
        pb.CLAIM_STATE_DONE,
        pb.CLAIM_STATE_TOO_LARGE,
        pb.CLAIM_STATE_GONE,
    }
)
_LOG = logging.getLogger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class IdempotencyService(idempotency_service_pb2_grpc.IdempotencyServiceServicer):
    """Keeps answers for routers.

    Args:
        store: where they are kept.
        clock: for pauses.
        metrics: where claims are counted.
    """

    def __init__(self, store: IdempotencyStore, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._clock = clock
        counter = metrics.counter(
            "idempotency_claims", "Calls with an idempotency key by how they stood.", ("state",)
        )
        self._counts = {
            number: counter.labelled(name.removeprefix("CLAIM_STATE_").lower())
            for name, number in pb.ClaimState.items()
        }

    async def run(self) -> None:
        """Deletes what is past its window, until it is cancelled."""
        while True:
            try:
                while await self._store.expire() == EXPIRED_MAX:
                    await self._clock.sleep(0)
            except GatewayError as error:
                _LOG.warning("kept answers are not looked after: %s", error.message)
            await self._clock.sleep(EXPIRE_S)

    async def ClaimAnswer(
        self, request: pb.ClaimAnswerRequest, _context: Context
    ) -> pb.ClaimAnswerResponse:
        """Says how a call stands."""
        _check(len(request.id) == 64, "id", "must be 64 hexadecimal digits")
        _check(len(request.body) == 32, "body", "must have 32 bytes")
        _check(len(request.claim_id) == 36, "claim_id", "must be a UUID")
        _check(0 < request.lease_ms <= LEASE_MS_MAX, "lease_ms", f"must be 1 to {LEASE_MS_MAX:,}")
        window = 0 < request.window_ms <= WINDOW_MS_MAX
        _check(window, "window_ms", f"must be 1 to {WINDOW_MS_MAX:,}")
        _check_owner(request.owner, request.life)
        answer = await self._store.claim(request)
        self._counts[answer.state].add(1)
        return answer

    async def AppendAnswer(
        self, request: pb.AppendAnswerRequest, _context: Context
    ) -> pb.AppendAnswerResponse:
        """Keeps a piece."""
        _check(len(request.chunk) <= CHUNK_BYTES_MAX, "chunk", "is too large")
        _check(request.sequence >= 0, "sequence", "must not be negative")
        _check(request.end in _ENDS, "end", "must be DONE, TOO_LARGE or GONE")
        await self._store.append(request)
        return pb.AppendAnswerResponse()

    async def ReadAnswer(
        self, request: pb.ReadAnswerRequest, _context: Context
    ) -> pb.ReadAnswerResponse:
        """Reads pieces."""
        return await self._store.read(request)

    async def KeepClaims(
        self, request: pb.KeepClaimsRequest, _context: Context
    ) -> pb.KeepClaimsResponse:
        """Renews leases."""
        _check_owner(request.owner, request.life)
        _check(len(request.claim_ids) <= CLAIMS_MAX, "claim_ids", f"may be {CLAIMS_MAX:,}")
        _check(0 < request.lease_ms <= LEASE_MS_MAX, "lease_ms", f"must be 1 to {LEASE_MS_MAX:,}")
        return pb.KeepClaimsResponse(ended=await self._store.keep(request))


def _check_owner(owner: str, life: str) -> None:
    _check(0 < len(owner) <= 128, "owner", "must have 1 to 128 characters")
    _check(len(life) == 36, "life", "must be a UUID")


def _check(right: bool, param: str, what: str) -> None:
    if not right:
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_REQUEST, f"`{param}` {what}.", param=param
        )
