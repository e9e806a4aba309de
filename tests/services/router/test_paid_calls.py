"""What a whole router sets aside for a call, and what becomes of it when nothing is sent."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import (
    budget_pb2,
    budget_service_pb2,
    budget_service_pb2_grpc,
    hold_service_pb2_grpc,
)
from onegate.usage.v1 import hold_service_pb2 as pb
from runtime.config import ProviderSettings
from runtime.rpc import RpcServer
from tests.services.router.rig import FakeBudgets, hello, running, settings_in, sheet, until

pytestmark = pytest.mark.anyio


class StrictBudgets(FakeBudgets):
    """One, of the organisation."""

    async def WatchBudgets(  # noqa: N802
        self, request: budget_service_pb2.WatchBudgetsRequest, context: Any
    ) -> AsyncIterator[budget_service_pb2.WatchBudgetsResponse]:
        strict = budget_pb2.Budget(
            id="bud_1",
            organization_id="org_1",
            scope=budget_pb2.BUDGET_SCOPE_ORGANIZATION,
            subject="org_1",
            period=budget_pb2.BUDGET_PERIOD_TOTAL,
            mode=budget_pb2.BUDGET_MODE_STRICT,
            limit_nano_usd=10**12,
        )
        yield budget_service_pb2.WatchBudgetsResponse(budgets=[strict], complete=True)
        async for more in super().WatchBudgets(request, context):
            more.complete = False
            yield more


async def _unasked(_self: Any, request: Any, _context: Any) -> Any:
    raise AssertionError(f"nobody asked for {request}")


class FakeHolds(hold_service_pb2_grpc.HoldServiceServicer):
    """Holds what it is asked for, and remembers it."""

    PlaceHolds: Any = _unasked
    RaiseHolds: Any = _unasked
    RenewLeases: Any = _unasked
    TakeSlice: Any = _unasked
    ReturnSlice: Any = _unasked
    ListHolds: Any = _unasked

    def __init__(self) -> None:
        self.placed: list[str] = []
        self.voided: list[str] = []

    async def OpenEpoch(self, request: Any, context: Any) -> pb.OpenEpochResponse:  # noqa: N802
        return pb.OpenEpochResponse(epoch=1)

    async def CloseEpochs(self, request: Any, context: Any) -> pb.CloseEpochsResponse:  # noqa: N802
        return pb.CloseEpochsResponse()

    async def StreamHolds(self, _: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802  # read and write instead of iterators
        while (request := await context.read()) is not grpc.aio.EOF:
            self.placed += [hold.attempt_id for hold in request.place.holds]
            held = [
                pb.HoldAnswer(outcome=pb.HOLD_OUTCOME_HELD, amount_nano_usd=hold.amount_nano_usd)
                for hold in request.place.holds
            ]
            placed = pb.PlaceHoldsResponse(answers=held)
            await context.write(pb.StreamHoldsResponse(placed=placed))

    async def VoidHolds(self, request: Any, context: Any) -> pb.VoidHoldsResponse:  # noqa: N802
        self.voided += request.attempt_ids
        return pb.VoidHoldsResponse(voided=len(request.attempt_ids))


async def test_a_hold_is_given_back_when_the_wire_cannot_say_the_cap(tmp_path: Path) -> None:
    kept = FakeHolds()

    def money(usage: RpcServer) -> None:
        usage.add(budget_service_pb2_grpc.add_BudgetServiceServicer_to_server, StrictBudgets())
        usage.add(hold_service_pb2_grpc.add_HoldServiceServicer_to_server, kept)

    # Models of other families than Replicate's own have no input for a cap, and nobody names one.
    provider = ProviderSettings(
        name="r", kind="replicate", base_url="http://127.0.0.1:9", models=("acme/model",)
    )
    settings = settings_in(tmp_path, provider)
    async with running(settings, [sheet("replicate/acme/model")], money=money) as rig:
        said = await rig.chat(hello("r/acme/model"))
        assert said.error is not None
        assert said.error.reason == error_pb2.ERROR_REASON_UNSUPPORTED_PARAMETER
        assert len(kept.placed) == 1
        await until(lambda: kept.voided == kept.placed)
