"""Holds over gRPC: checks what is asked, gathers, and asks the store."""

# ruff: noqa: N802 - methods are named as the contract names them

import asyncio
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import grpc

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import hold_service_pb2 as pb
from onegate.usage.v1 import hold_service_pb2_grpc
from runtime.errors import GatewayError
from runtime.metrics import Metrics
from runtime.rpc import require_operator
from runtime.secrets import Secret
from services.usage.gathering import Gathering
from services.usage.ledger.budgets import LIMIT_NANO_USD_MAX
from services.usage.ledger.hold_store import HoldStore
from services.usage.ledger.holder_store import HolderStore
from services.usage.reports import queries

HOLDS_MAX: Final = 1_000
"""The most holds, raises or attempts of one request."""

LEASE_MS_MAX: Final = 24 * 3600 * 1000
HOLDER_CHARS_MAX: Final = 128
NAME_CHARS_MAX: Final = 4_096

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Placing: TypeAlias = Gathering[pb.PlaceHoldsRequest, list[pb.HoldAnswer]]


class HoldService(hold_service_pb2_grpc.HoldServiceServicer):
    """Sets money aside for routers.

    Args:
        stores: of holds and of their holders.
        operator_token: what operators show.
        metrics: where outcomes are counted.
        recalled: set when slices are called back.
    """

    def __init__(
        self,
        stores: tuple[HoldStore, HolderStore],
        operator_token: Secret,
        metrics: Metrics,
        recalled: asyncio.Event,
    ) -> None:
        self._holds, self._holders = stores
        self._recalled = recalled
        self._operator_token = operator_token
        self._placing: Placing = Gathering(self._holds.place)
        counter = metrics.counter("holds", "Holds by what became of them.", ("outcome",))
        self._counts = {
            number: counter.labelled(name.removeprefix("HOLD_OUTCOME_").lower())
            for name, number in pb.HoldOutcome.items()
        }

    async def close(self) -> None:
        """Waits for what is being placed."""
        await self._placing.close()

    async def OpenEpoch(
        self, request: pb.OpenEpochRequest, _context: Context
    ) -> pb.OpenEpochResponse:
        """Gives a router its epoch."""
        _check_holder(request.holder)
        if request.journal_epoch < 0:
            raise _invalid("journal_epoch", "must not be negative")
        _check_lease(request.lease_ms or 1)
        return await self._holders.open_epoch(request)

    async def CloseEpochs(
        self, request: pb.CloseEpochsRequest, _context: Context
    ) -> pb.CloseEpochsResponse:
        """Voids what older epochs hold."""
        _check_holder(request.holder)
        return pb.CloseEpochsResponse(voided=await self._holders.close_epochs(request))

    async def PlaceHolds(
        self, request: pb.PlaceHoldsRequest, _context: Context
    ) -> pb.PlaceHoldsResponse:
        """Places holds, together with those of other requests."""
        _check_holder(request.holder)
        _check_count(request.holds, "holds")
        for hold in request.holds:
            _check_id(hold.attempt_id, "attempt_id")
            _check_amounts(hold.amount_nano_usd, hold.amount_least_nano_usd)
            _check_lease(hold.lease_ms)
            _check_payer(hold.payer)
        if not request.holds:
            return pb.PlaceHoldsResponse()
        answers = await self._placing.ask(request)
        self._count(answers)
        return pb.PlaceHoldsResponse(answers=answers)

    async def StreamHolds(  # type: ignore[override]  # read and write instead of iterators
        self, _requests: object, context: Context
    ) -> None:
        """Places holds for as long as their router asks, a request at a time."""
        while (request := await context.read()) is not grpc.aio.EOF:
            placed = await self.PlaceHolds(request.place, context)
            await context.write(pb.StreamHoldsResponse(placed=placed))

    async def RaiseHolds(
        self, request: pb.RaiseHoldsRequest, _context: Context
    ) -> pb.RaiseHoldsResponse:
        """Raises holds."""
        _check_holder(request.holder)
        _check_count(request.raises, "raises")
        for one in request.raises:
            _check_amounts(one.amount_nano_usd, one.amount_least_nano_usd)
        answers = await self._holds.raise_holds(request)
        self._count(answers)
        return pb.RaiseHoldsResponse(answers=answers)

    async def VoidHolds(
        self, request: pb.VoidHoldsRequest, _context: Context
    ) -> pb.VoidHoldsResponse:
        """Gives holds back."""
        _check_holder(request.holder)
        _check_count(request.attempt_ids, "attempt_ids")
        for attempt_id in request.attempt_ids:
            _check_id(attempt_id, "attempt_ids")
        return pb.VoidHoldsResponse(voided=await self._holds.void(request))

    async def RenewLeases(
        self, request: pb.RenewLeasesRequest, _context: Context
    ) -> pb.RenewLeasesResponse:
        """Notes that a router lives."""
        _check_holder(request.holder)
        _check_count(request.attempt_ids, "attempt_ids")
        if request.attempt_ids:
            _check_lease(request.lease_ms)
        return pb.RenewLeasesResponse(recalled_slice_ids=await self._holders.renew(request))

    async def TakeSlice(
        self, request: pb.TakeSliceRequest, _context: Context
    ) -> pb.TakeSliceResponse:
        """Sets a slice aside where there is plenty of room."""
        _check_holder(request.holder)
        _check_id(request.slice_id, "slice_id")
        _check_amounts(request.amount_nano_usd, request.amount_least_nano_usd)
        _check_lease(request.lease_ms)
        _check_payer(request.payer)
        return pb.TakeSliceResponse(answer=await self._holds.take_slice(request))

    async def ReturnSlice(
        self, request: pb.ReturnSliceRequest, _context: Context
    ) -> pb.ReturnSliceResponse:
        """Takes back what is left of a slice."""
        _check_holder(request.holder)
        _check_amounts(request.amount_nano_usd, 0)
        returned = await self._holds.return_slice(request)
        return pb.ReturnSliceResponse(returned_nano_usd=returned)

    async def ListHolds(
        self, request: pb.ListHoldsRequest, context: Context
    ) -> pb.ListHoldsResponse:
        """A page of what is not settled, by id."""
        require_operator(context, self._operator_token.reveal())
        count = queries.page_size_of(request.page_size)
        after = queries.place_of(request.page_token, request.holder) or ""
        found = await self._holders.open_holds(request.holder, after, count + 1)
        page = found[:count]
        more = len(found) > count
        token = queries.token_of(page[-1].attempt_id, request.holder) if more else ""
        return pb.ListHoldsResponse(holds=page, next_page_token=token)

    def _count(self, answers: Sequence[pb.HoldAnswer]) -> None:
        for answer in answers:
            self._counts[answer.outcome].add(1)
            if answer.refusal.retry_after_ms:
                self._recalled.set()


def _check_holder(name: str) -> None:
    if not 0 < len(name) <= HOLDER_CHARS_MAX:
        raise _invalid("holder", f"must have 1 to {HOLDER_CHARS_MAX} characters")


def _check_count(given: Sequence[object], param: str) -> None:
    if len(given) > HOLDS_MAX:
        raise _invalid(param, f"may hold at most {HOLDS_MAX:,}")


def _check_id(value: str, param: str) -> None:
    if len(value) != 36:
        raise _invalid(param, "must be a UUID")


def _check_amounts(amount: int, least: int) -> None:
    if not 0 <= least <= amount <= LIMIT_NANO_USD_MAX:
        raise _invalid(
            "amount_nano_usd", f"must be the least amount to {LIMIT_NANO_USD_MAX:,}, none negative"
        )


def _check_lease(lease_ms: int) -> None:
    if not 0 < lease_ms <= LEASE_MS_MAX:
        raise _invalid("lease_ms", f"must be 1 to {LEASE_MS_MAX:,}")


def _check_payer(payer: pb.Payer) -> None:
    if max(len(payer.customer), len(payer.feature), len(payer.run)) > NAME_CHARS_MAX:
        raise _invalid("payer", f"has a name of more than {NAME_CHARS_MAX:,} characters")
    if any("\0" in name for name in (payer.customer, payer.feature, payer.run)):
        raise _invalid("payer", "has a name with a NUL")


def _invalid(param: str, what: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, f"`{param}` {what}.", param=param)
