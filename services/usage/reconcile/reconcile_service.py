"""Compares bills over gRPC: one at a time, in bounded memory, on a thread that may wait."""

# ruff: noqa: N802 - methods are named as the contract names them

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Any, Final, TypeAlias

import grpc

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import reconcile_service_pb2 as pb
from onegate.usage.v1 import reconcile_service_pb2_grpc
from runtime.clock import Clock, Entropy, uuid7
from runtime.errors import GatewayError
from runtime.rpc import require_operator
from runtime.secrets import Secret
from runtime.sql import unix_micros
from services.usage.reconcile.bills import BILL_LINES_MAX, LINES_MAX, check_head, rules_of
from services.usage.reconcile.comparing import Outcome, differences, line_of
from services.usage.reconcile.reconcile_store import ReconcileStore
from services.usage.reconcile.scratch_sql import Scratch, Side
from services.usage.reports import queries
from services.usage.reports.queries import Cursor

TOLD_MAX: Final = 500
"""Differences of one answer."""
PIECE_TIMEOUT_S: Final = 60.0
"""How long the next piece of a bill may take to come, in seconds."""

_RESULTS: Final = "reconciliations"
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class ReconcileService(reconcile_service_pb2_grpc.ReconcileServiceServicer):
    """Lets operators compare a provider's bill with the records."""

    def __init__(
        self, store: ReconcileStore, operator_token: Secret, chance: tuple[Clock, Entropy]
    ) -> None:
        self._store = store
        self._operator_token = operator_token
        self._clock, self._entropy = chance
        self._busy = asyncio.Lock()

    async def Reconcile(
        self, requests: AsyncIterator[pb.ReconcileRequest], context: Context
    ) -> AsyncIterator[pb.ReconcileResponse]:
        """Every difference, then the result."""
        require_operator(context, self._operator_token.reveal())
        if self._busy.locked():
            raise GatewayError(
                error_pb2.ERROR_REASON_OVERLOADED,
                "Another bill is being compared. Try again when it is done.",
                retry_after_ms=5_000,
            )
        async with self._busy:
            head = await _head(requests)
            scratch = await asyncio.to_thread(Scratch)
            try:
                await _take(requests, scratch, head)
                await self._add_records(scratch, head)
                outcome = Outcome()
                found = differences(scratch.pairs(), head, rules_of(head), outcome)
                while told := await asyncio.to_thread(_some, found):
                    yield pb.ReconcileResponse(differences=told)
            finally:
                await asyncio.shield(asyncio.to_thread(scratch.close))
            yield pb.ReconcileResponse(result=await self._kept(head, outcome))

    async def ListReconciliations(
        self, request: pb.ListReconciliationsRequest, context: Context
    ) -> pb.ListReconciliationsResponse:
        """A page of results, newest first."""
        require_operator(context, self._operator_token.reveal())
        count = queries.page_size_of(request.page_size)
        place = queries.place_of(request.page_token, _RESULTS)
        after = None
        if place is not None:
            at_us, _, name = place.partition("/")
            after = int(at_us), name
        found = await self._store.results(after, count + 1)
        page, token = found[:count], ""
        if len(found) > count:
            last = f"{page[-1].compared_at.ToMicroseconds()}/{page[-1].id}"
            token = queries.token_of(last, _RESULTS)
        return pb.ListReconciliationsResponse(results=page, next_page_token=token)

    async def _add_records(self, scratch: Scratch, head: pb.BillHead) -> None:
        if head.match == pb.BILL_MATCH_BUCKET:
            said = await self._store.buckets(head)
            await asyncio.to_thread(scratch.add, Side.OURS, said)
            return
        after: Cursor | None = None
        while True:
            said, after = await self._store.page(head, after)
            await asyncio.to_thread(scratch.add, Side.OURS, said)
            if after is None:
                return

    async def _kept(self, head: pb.BillHead, outcome: Outcome) -> pb.Reconciliation:
        now = self._clock.now()
        earlier = await self._store.latest(head.digest)
        name = uuid7(int(now.timestamp() * 1000), self._entropy).replace("-", "")
        result = pb.Reconciliation(
            id=f"rec_{name}",
            head=head,
            agreed=outcome.agreed,
            only_theirs=outcome.only_theirs,
            only_ours=outcome.only_ours,
            tokens_differ=outcome.tokens_differ,
            costs_differ=outcome.costs_differ,
            theirs=outcome.theirs.to_proto(),
            ours=outcome.ours.to_proto(),
        )
        result.compared_at.FromMicroseconds(unix_micros(now))
        if earlier is not None:
            result.earlier_id = earlier.id
            result.earlier_at.CopyFrom(earlier.compared_at)
        await self._store.keep(result)
        return result


async def _next(requests: AsyncIterator[pb.ReconcileRequest]) -> pb.ReconcileRequest | None:
    """The next piece of a bill; ``None`` at its end. Raises REQUEST_TIMEOUT."""
    try:
        async with asyncio.timeout(PIECE_TIMEOUT_S):
            return await anext(requests, None)
    except TimeoutError:
        raise GatewayError(
            error_pb2.ERROR_REASON_REQUEST_TIMEOUT,
            f"The next part of the bill did not come within {PIECE_TIMEOUT_S:.0f} s.",
        ) from None


async def _head(requests: AsyncIterator[pb.ReconcileRequest]) -> pb.BillHead:
    first = await _next(requests)
    if first is None or not first.HasField("head"):
        raise _invalid("head", "must come first")
    check_head(first.head)
    return first.head


async def _take(
    requests: AsyncIterator[pb.ReconcileRequest], scratch: Scratch, head: pb.BillHead
) -> None:
    """Adds up the lines of a bill."""
    count = 0
    while (request := await _next(requests)) is not None:
        lines = request.lines.lines
        if request.HasField("head") or len(lines) > LINES_MAX:
            raise _invalid("lines", f"must follow the head, at most {LINES_MAX:,} at once")
        count += len(lines)
        if count > BILL_LINES_MAX:
            raise _invalid("lines", f"may be at most {BILL_LINES_MAX:,}: import a shorter time")
        said = [line_of(line, head) for line in lines]
        await asyncio.to_thread(scratch.add, Side.THEIRS, said)


def _some(found: Iterator[pb.BillDifference]) -> list[pb.BillDifference]:
    return list(islice(found, TOLD_MAX))


def _invalid(param: str, what: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, f"`{param}` {what}.", param=param)
