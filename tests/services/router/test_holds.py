"""A router's holds at a real usage service: asked for together, given back, refused, fenced."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import (
    budget_pb2,
    budget_service_pb2,
    budget_service_pb2_grpc,
    hold_service_pb2,
    hold_service_pb2_grpc,
)
from onegate.usage.v1.hold_pb2 import Hold
from runtime.clock import SystemClock, SystemEntropy, uuid7
from runtime.config import RpcSettings, Settings, UsageSettings
from runtime.errors import GatewayError
from runtime.rpc import OPERATOR_KEY, channel, unary
from services.router.money.budget_watch import BudgetWatch
from services.router.money.budgets import NO_HOLD, STRICT
from services.router.money.epochs import Epoch
from services.router.money.holds import Holds, Reserved, Wish
from services.router.money.slices import BUSY_HOLDS
from services.usage import server
from tests.services.usage.records import until

pytestmark = pytest.mark.anyio

PAYER = hold_service_pb2.Payer(organization_id="org_1", project_id="proj_1", key_id="key_1")


class Notes:
    """What a journal notes of epochs."""

    def __init__(self) -> None:
        self.known_epoch = 0
        self.settled = True

    def opened(self, epoch: int) -> None:
        self.known_epoch = epoch


class Usage:
    """A usage service that can be stopped and started again on the same database."""

    def __init__(self, directory: Path) -> None:
        self.settings = Settings(
            data_dir=str(directory),
            usage=UsageSettings(
                listen=f"unix:{directory}/usage.sock", dsn=f"sqlite://{directory}/usage.db"
            ),
            rpc=RpcSettings(operator_token_file=str(directory / "operator.token")),
        )
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        ready = asyncio.Event()
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(
            server.run(self.settings, stop=self._stop, ready=ready.set)
        )
        await until(ready.is_set, "the start of usage")
        self.channel = channel(self.settings.usage.listen, self.settings.rpc)
        self._budgets = budget_service_pb2_grpc.BudgetServiceStub(self.channel)
        self._holds = hold_service_pb2_grpc.HoldServiceStub(self.channel)

    async def stop(self) -> None:
        self._stop.set()
        assert self._task is not None
        await asyncio.wait_for(self._task, 10)

    @property
    def operator(self) -> list[tuple[str, str]]:
        token = Path(self.settings.rpc.operator_token_file).read_text().strip()
        return [(OPERATOR_KEY, token)]

    async def budget(self, limit: int, **fields: Any) -> budget_pb2.Budget:
        given = {
            "organization_id": "org_1",
            "scope": budget_pb2.BUDGET_SCOPE_KEY,
            "subject": "key_1",
            "period": budget_pb2.BUDGET_PERIOD_TOTAL,
            "mode": STRICT,
            **fields,
        }
        request = budget_service_pb2.SetBudgetRequest(
            budget=budget_pb2.Budget(limit_nano_usd=limit, **given)
        )
        answer = await unary(self._budgets.SetBudget, request, timeout_s=10, metadata=self.operator)
        return answer.budget

    async def held(self) -> list[Hold]:
        answer = await unary(
            self._holds.ListHolds,
            hold_service_pb2.ListHoldsRequest(),
            timeout_s=10,
            metadata=self.operator,
        )
        return list(answer.holds)


class Router:
    """The part of a router that holds."""

    def __init__(self, channel: grpc.aio.Channel, holder: str = "router-0") -> None:
        clock, entropy = SystemClock(), SystemEntropy()
        self.notes = Notes()
        self.epoch = Epoch(holder, self.notes, channel, clock)
        self.holds = Holds(channel, self.epoch, clock, entropy)
        self.epoch.recall = self.holds.recall
        self.watch = BudgetWatch(channel, clock, holder, self.holds.recall)
        self._entropy = entropy

    async def start(self) -> None:
        self.epoch.start()
        self.holds.start()
        self.watch.start()
        await until(lambda: self.notes.known_epoch and self.watch.ready, "the epoch")

    async def close(self) -> None:
        await self.watch.close()
        await self.holds.close()
        await self.epoch.close()

    def wish(self, amount: int, least: int | None = None) -> Wish:
        return Wish(
            attempt_id=uuid7(1_795_262_400_000, self._entropy),
            request_id="req",
            payer=PAYER,
            amount_nano_usd=amount,
            least_nano_usd=amount if least is None else least,
            lease_ms=60_000,
        )


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[tuple[Usage, Router]]:
    usage = Usage(directory)
    await usage.start()
    router = Router(usage.channel)
    await router.start()
    try:
        yield usage, router
    finally:
        await router.close()
        await usage.channel.close()
        await usage.stop()


async def placed(router: Router, wish: Wish) -> Reserved | GatewayError:
    try:
        return await router.holds.place(wish)
    except GatewayError as error:
        return error


async def test_budgets_that_are_set_are_known_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as (usage, router):
        assert router.watch.current.mode_of(PAYER) == NO_HOLD
        await usage.budget(100)
        await until(lambda: router.watch.current.mode_of(PAYER) == STRICT, "the budget")


async def test_calls_at_once_never_hold_more_than_there_is(tmp_path: Path) -> None:
    async with running(tmp_path) as (usage, router):
        await usage.budget(100)
        answers = await asyncio.gather(*(placed(router, router.wish(7)) for _ in range(50)))
        held = [answer for answer in answers if isinstance(answer, Reserved)]
        refused = [answer for answer in answers if isinstance(answer, GatewayError)]
        assert len(held) == 100 // 7
        assert {error.reason for error in refused} == {error_pb2.ERROR_REASON_BUDGET_EXHAUSTED}
        told = refused[0].budget
        assert told is not None
        assert (told.account, told.limit_nano_usd, told.asked_nano_usd) == ("key key_1", 100, 7)
        assert sum(hold.amount_nano_usd for hold in await usage.held()) == 98


async def test_less_than_wished_is_held_where_less_will_do(tmp_path: Path) -> None:
    async with running(tmp_path) as (usage, router):
        await usage.budget(100)
        assert await placed(router, router.wish(70)) == Reserved(amount_nano_usd=70)
        assert await placed(router, router.wish(70, least=10)) == Reserved(amount_nano_usd=30)


async def test_what_was_not_sent_is_given_back(tmp_path: Path) -> None:
    async with running(tmp_path) as (usage, router):
        await usage.budget(100)
        wish = router.wish(100)
        reserved = await router.holds.place(wish)
        assert isinstance(await placed(router, router.wish(1)), GatewayError)
        router.holds.void(wish, reserved.slice_id)
        await until_held(usage, 0)
        # What was refused a moment ago is refused for a second, whatever happens meanwhile.
        await asyncio.sleep(1.0)
        assert await placed(router, router.wish(100)) == Reserved(amount_nano_usd=100)


async def test_a_caller_who_leaves_while_it_waits_holds_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as (usage, router):
        await usage.budget(1_000)
        for _ in range(5):
            tasks = [asyncio.create_task(router.holds.place(router.wish(10))) for _ in range(20)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await until_held(usage, 0)


async def test_the_broke_are_refused_without_asking(tmp_path: Path) -> None:
    async with running(tmp_path) as (usage, router):
        await usage.budget(5)
        first = await placed(router, router.wish(10))
        await usage.stop()
        second = await placed(router, router.wish(10))
        assert isinstance(first, GatewayError)
        assert isinstance(second, GatewayError)
        assert second.reason == error_pb2.ERROR_REASON_BUDGET_EXHAUSTED
        assert second.budget == first.budget
        # One that asks for less may well have room.
        third = await placed(router, router.wish(3))
        assert isinstance(third, GatewayError)
        assert third.reason == error_pb2.ERROR_REASON_BUDGET_UNAVAILABLE
        await usage.start()


async def test_a_hold_whose_answer_never_came_is_given_back(tmp_path: Path) -> None:
    async with running(tmp_path) as (usage, router):
        await usage.budget(100)
        await usage.stop()
        refused = await placed(router, router.wish(10))
        assert isinstance(refused, GatewayError)
        assert refused.reason == error_pb2.ERROR_REASON_BUDGET_UNAVAILABLE
        await usage.start()
        await until_held(usage, 0)
        again = await placed(router, router.wish(100))
        for _ in range(600):
            if isinstance(again, Reserved):
                break
            await asyncio.sleep(0.05)
            again = await placed(router, router.wish(100))
        assert again == Reserved(amount_nano_usd=100)


async def test_a_busy_payer_is_admitted_from_a_slice_and_the_rest_goes_back(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as (usage, router):
        await usage.budget(1_000_000)
        for _ in range(BUSY_HOLDS):
            assert await placed(router, router.wish(10)) == Reserved(amount_nano_usd=10)
        reserved = await router.holds.place(router.wish(10))
        for _ in range(500):
            if reserved.slice_id:
                break
            await asyncio.sleep(0.01)
            reserved = await router.holds.place(router.wish(10))
        assert reserved.slice_id
        assert [hold.amount_nano_usd for hold in await usage.held() if hold.slice] == [640]
        # Ten of it settle with a record; the rest is back two seconds after its last use.
        for _ in range(1_000):
            if [hold.amount_nano_usd for hold in await usage.held() if hold.slice] == [10]:
                break
            await asyncio.sleep(0.01)
        assert [hold.amount_nano_usd for hold in await usage.held() if hold.slice] == [10]


async def test_a_slice_on_its_way_back_when_the_router_stops_comes_back(tmp_path: Path) -> None:
    async with running(tmp_path) as (usage, router):
        await usage.budget(1_000_000)
        await until(lambda: len(router.watch.current) == 1, "the budget")
        reserved = await router.holds.place(router.wish(10))
        for _ in range(500):
            if reserved.slice_id:
                break
            await asyncio.sleep(0.01)
            reserved = await router.holds.place(router.wish(10))
        router.holds.recall([reserved.slice_id])
        await asyncio.sleep(0)
        await router.holds.close()
        assert [hold.amount_nano_usd for hold in await usage.held() if hold.slice] == [10]


async def test_a_router_whose_name_is_taken_holds_nothing_any_more(tmp_path: Path) -> None:
    async with running(tmp_path) as (usage, router):
        await usage.budget(1_000)
        twin = Router(usage.channel)
        await twin.start()
        try:
            await placed(router, router.wish(10))
            refused = await placed(router, router.wish(10))
            assert isinstance(refused, GatewayError)
            assert refused.reason == error_pb2.ERROR_REASON_BUDGET_UNAVAILABLE
            assert "another router has taken the name router-0" in refused.message
            assert await placed(twin, twin.wish(10)) == Reserved(amount_nano_usd=10)
        finally:
            await twin.close()


async def test_the_holds_of_a_former_life_end_when_its_records_are_there(tmp_path: Path) -> None:
    async with running(tmp_path) as (usage, router):
        await usage.budget(1_000)
        await router.holds.place(router.wish(10))
        heir = Router(usage.channel)
        heir.notes.known_epoch, heir.notes.settled = router.notes.known_epoch, False
        await heir.start()
        try:
            assert len(await usage.held()) == 1, "it may have been dispatched"
            heir.notes.settled = True
            await until_held(usage, 0)
        finally:
            await heir.close()


async def until_held(usage: Usage, count: int) -> None:
    for _ in range(1_000):
        if len(await usage.held()) == count:
            return
        await asyncio.sleep(0.01)
    assert len(await usage.held()) == count
