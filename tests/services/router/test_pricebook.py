"""The router's copy of the prices, against the real price service over real sockets."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, time, timedelta
from pathlib import Path
from typing import Any, Self

import pytest

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import price_pb2, price_service_pb2, price_service_pb2_grpc
from runtime.config import RpcSettings
from runtime.errors import GatewayError
from runtime.rpc import RpcServer, channel
from services.router import following
from services.router.money import pricebook as module
from services.router.money.pricebook import PriceBook
from services.usage.prices.board import Board
from services.usage.prices.facts import FactBook
from services.usage.prices.price_service import OperatorPrices, PriceService
from services.usage.prices.pricing import Catalogue, Line, PricedModel, Tariff, Vendor
from tests.services.usage.records import NOON, TOKEN, SteppedClock, prices_of, until

pytestmark = pytest.mark.anyio

RPC = RpcSettings()
FACTS = FactBook(
    {"source": "facts-1", "models": {"kind/plain": {"output": 77}, "kind/new": {"context": 9}}},
    {"vendors": {}, "models": {}},
)
INPUT = price_pb2.METER_INPUT_TOKENS


def rate(nano: int) -> tuple[Line, ...]:
    return (Line(meter=INPUT, nano_usd_per_million=nano),)


def priced(name: str, *tariffs: Tariff) -> PricedModel:
    return PricedModel(
        id=f"vendor/{name}",
        source="source-1",
        origin="here",
        tariffs=tariffs,
        facts=price_service_pb2.ModelFacts(name=name.title(), context_tokens_max=1000),
    )


def prices(plain: int = 5) -> Catalogue:
    """A model with one price, one with hours, one with a date to come; and names for them."""
    day = (NOON + timedelta(days=2)).date()
    models = {
        "plain": priced("plain", Tariff(lines=rate(plain))),
        "hourly": priced(
            "hourly",
            Tariff(lines=rate(1)),
            Tariff(lines=rate(9), hours=(time(13, tzinfo=UTC), time(14, tzinfo=UTC))),
        ),
        "dated": priced(
            "dated",
            Tariff(lines=rate(1)),
            Tariff(lines=rate(2), starts_on=day),
        ),
    }
    aliases = {f"{name}-2026": found for name, found in models.items()}
    return Catalogue({"kind": Vendor(find={**models, **aliases}.get, listed=models)})


class CountingService(PriceService):
    """The real service; counts look-ups, and can be silent or broken at the wire."""

    asked: list[str]
    failure: GatewayError | None = None
    silent = False

    async def GetPrice(  # noqa: N802 - the contract's name
        self, request: price_service_pb2.GetPriceRequest, context: Any
    ) -> price_service_pb2.GetPriceResponse:
        self.asked.append(request.model)
        await asyncio.sleep(0.02)
        if self.failure is not None:
            raise self.failure
        return await super().GetPrice(request, context)

    async def WatchPrices(  # noqa: N802 - the contract's name
        self, request: price_service_pb2.WatchPricesRequest, context: Any
    ) -> AsyncGenerator[price_service_pb2.WatchPricesResponse, None]:
        async for news in super().WatchPrices(request, context):
            if self.silent:
                await asyncio.sleep(60)
            yield news


class Usage:
    """A price service that can be started and stopped."""

    def __init__(self, directory: Path, clock: SteppedClock) -> None:
        self.address = f"unix:{directory}/usage.sock"
        self.directory = directory
        self.clock = clock
        self.service: CountingService
        self.prices: OperatorPrices
        self._cleanup = AsyncExitStack()
        self._server: RpcServer | None = None

    async def start(self, catalogue: Catalogue | None = None) -> Self:
        board = Board(catalogue or prices(), FACTS, self.clock)
        await board.extend()
        self.prices = await self._cleanup.enter_async_context(
            prices_of(self.directory, board, self.clock)
        )
        self.service = CountingService(board, self.prices, TOKEN)
        self.service.asked = []
        self._server = RpcServer(RPC, "usage")
        self._server.add(price_service_pb2_grpc.add_PriceServiceServicer_to_server, self.service)
        await self._server.start(self.address)
        return self

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(1)
            await self._cleanup.aclose()
            self._server = None


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
async def usage(tmp_path: Path, clock: SteppedClock) -> AsyncIterator[Usage]:
    made = Usage(tmp_path, clock)
    yield made
    await made.stop()


@asynccontextmanager
async def book_of(usage: Usage) -> AsyncIterator[PriceBook]:
    line = channel(usage.address, RPC)
    book = PriceBook(line, usage.clock, "router-test")
    book.start()
    try:
        yield book
    finally:
        await book.close()
        await line.close()


def cost(sheet: price_pb2.PriceSheet | None) -> int | None:
    return None if sheet is None else sheet.rates[0].nano_usd_per_million


async def test_pushed_prices_are_found_at_once_and_by_the_hour(
    usage: Usage, clock: SteppedClock
) -> None:
    await usage.start()
    async with book_of(usage) as book:
        assert not book.ready
        assert book.find("kind/plain") is None
        await until(lambda: book.ready, "the first prices")
        assert cost(book.find("kind/plain")) == 5
        assert [cost(book.find("kind/hourly")), cost(book.find("kind/dated"))] == [1, 1]
        clock.passed_s = 3600.0
        assert cost(book.find("kind/hourly")) == 9
        clock.passed_s = 2 * 86_400.0
        assert [cost(book.find("kind/hourly")), cost(book.find("kind/dated"))] == [1, 2]
        clock.passed_s = -30 * 86_400.0
        assert cost(book.find("kind/hourly")) == 1
        assert usage.service.asked == []


async def test_names_and_facts_are_those_that_are_listed(usage: Usage) -> None:
    await usage.start()
    async with book_of(usage) as book:
        assert list(book.names("kind")) == []
        await until(lambda: book.ready, "the first prices")
        assert sorted(book.names("kind")) == ["dated", "hourly", "plain"]
        assert list(book.names("kin")) == []
        facts = book.facts("kind/plain")
        assert facts is not None
        assert (facts.name, facts.context_tokens_max) == ("Plain", 1000)
        assert (facts.output_tokens_max, list(facts.sources)) == (77, ["source-1", "facts-1"])
        assert book.facts("kind/plain-2026") is None


async def test_facts_come_with_an_answer_also_where_there_is_no_price(usage: Usage) -> None:
    await usage.start()
    async with book_of(usage) as book:
        await until(lambda: book.ready, "the first prices")
        assert await book.get("kind/new") is None
        assert await book.get("kind/plain-2026") is not None
        unpriced, dated = book.facts("kind/new"), book.facts("kind/plain-2026")
        assert unpriced is not None
        assert (unpriced.model, unpriced.context_tokens_max) == ("kind/new", 9)
        assert dated is not None
        assert dated.context_tokens_max == 1000


async def test_another_name_is_asked_for_once_and_then_found(usage: Usage) -> None:
    await usage.start()
    async with book_of(usage) as book:
        await until(lambda: book.ready, "the first prices")
        assert book.find("kind/plain-2026") is None
        answers = await asyncio.gather(*(book.get("kind/plain-2026") for _ in range(50)))
        assert {cost(answer) for answer in answers} == {5}
        found = book.find("kind/plain-2026")
        assert found is not None
        assert found.model == "kind/plain-2026"
        assert usage.service.asked == ["kind/plain-2026"]


async def test_a_name_without_a_price_is_asked_for_again_after_a_minute(
    usage: Usage, clock: SteppedClock
) -> None:
    await usage.start()
    async with book_of(usage) as book:
        await until(lambda: book.ready, "the first prices")
        assert [await book.get("kind/other") for _ in range(3)] == [None] * 3
        assert await book.get("x" * 300) is None
        assert usage.service.asked == ["kind/other", "x" * 300]
        clock.passed_s = module.UNKNOWN_S + 1
        assert await book.get("kind/other") is None
        assert len(usage.service.asked) == 3


async def test_a_caller_that_leaves_does_not_take_the_answer_along(usage: Usage) -> None:
    await usage.start()
    async with book_of(usage) as book:
        await until(lambda: book.ready, "the first prices")
        leaving = asyncio.create_task(book.get("kind/plain-2026"))
        staying = asyncio.create_task(book.get("kind/plain-2026"))
        await until(lambda: usage.service.asked, "the question")
        leaving.cancel()
        assert cost(await staying) == 5


async def test_without_usage_what_is_known_stays_and_the_rest_is_unavailable(
    usage: Usage, clock: SteppedClock
) -> None:
    await usage.start()
    async with book_of(usage) as book:
        await until(lambda: book.ready, "the first prices")
        await book.get("kind/dated-2026")
        await usage.stop()
        clock.passed_s = 3 * 86_400.0 + 3700
        assert cost(book.find("kind/hourly")) == 9
        assert cost(await book.get("kind/dated-2026")) == 2
        with pytest.raises(GatewayError) as refused:
            await book.get("kind/plain-2026")
        assert refused.value.reason == error_pb2.ERROR_REASON_BUDGET_UNAVAILABLE
        assert book.ready
        await book.learn(["kind/plain", "kind/plain-2026", "kind/hourly-2026"])
        await usage.start()
        async with asyncio.timeout(10):
            while True:
                try:
                    assert cost(await book.get("kind/plain-2026")) == 5
                    break
                except GatewayError:
                    await asyncio.sleep(0.05)


async def test_other_prices_of_a_restarted_usage_take_over_for_every_name(usage: Usage) -> None:
    await usage.start()
    async with book_of(usage) as book:
        await until(lambda: book.ready, "the first prices")
        await book.get("kind/plain-2026")
        assert await book.get("kind/new") is None
        assert await book.get("kind/new-2027") is None
        await usage.stop()
        both = {
            "plain": priced("plain", Tariff(lines=rate(7))),
            "new": priced("new", Tariff(lines=rate(3))),
        }
        names = {**both, "plain-2026": both["plain"], "new-2027": both["new"]}
        await usage.start(Catalogue({"kind": Vendor(find=names.get, listed=both)}))
        await until(lambda: cost(book.find("kind/plain")) == 7, "the new price")
        await until(lambda: cost(book.find("kind/plain-2026")) == 7, "the new price by name")
        assert cost(book.find("kind/new")) == 3
        assert cost(await book.get("kind/new-2027")) == 3
        # What usage no longer knows has no price any more.
        assert book.find("kind/hourly") is None


async def test_a_name_that_lost_its_price_is_forgotten(usage: Usage) -> None:
    await usage.start()
    async with book_of(usage) as book:
        await until(lambda: book.ready, "the first prices")
        await book.get("kind/plain-2026")
        await usage.stop()
        await usage.start(Catalogue({}))
        await until(lambda: book.find("kind/plain-2026") is None, "the end of the price")


async def test_names_are_kept_up_to_date_by_themselves(usage: Usage) -> None:
    await usage.start()
    async with book_of(usage) as book:
        await until(lambda: book.ready, "the first prices")
        await book.get("kind/plain-2026")
        await until(lambda: usage.service.asked.count("kind/plain-2026") > 2, "a refresh")


async def test_a_silent_usage_is_asked_anew(usage: Usage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "SILENCE_S", 0.2)
    await usage.start()
    usage.service.silent = True
    async with book_of(usage) as book:
        await asyncio.sleep(0.3)
        assert not book.ready
        usage.service.silent = False
        await until(lambda: book.ready, "the first prices")


async def test_many_names_are_learnt_together(usage: Usage) -> None:
    await usage.start()
    async with book_of(usage) as book:
        await until(lambda: book.ready, "the first prices")
        names = [f"kind/{name}" for name in ("plain", "plain-2026", "dated-2026", "hourly-2026")]
        await book.learn([*names, "kind/nobodys"])
        assert all(book.find(name) for name in names)
        assert sorted(usage.service.asked) == sorted([*names[1:], "kind/nobodys"])


async def test_too_many_questions_at_once_are_refused(
    usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ASKED_MAX", 3)
    await usage.start()
    async with book_of(usage) as book:
        await until(lambda: book.ready, "the first prices")
        answers = await asyncio.gather(
            *(book.get(f"kind/x{n}") for n in range(5)), return_exceptions=True
        )
        refused = [answer for answer in answers if isinstance(answer, GatewayError)]
        assert [error.reason for error in refused] == [error_pb2.ERROR_REASON_OVERLOADED] * 2


async def test_what_is_remembered_of_names_is_bounded(
    usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NAMES_MAX", 2)
    monkeypatch.setattr(module, "UNKNOWN_MAX", 2)
    await usage.start()
    async with book_of(usage) as book:
        await until(lambda: book.ready, "the first prices")
        for name in ("plain-2026", "dated-2026", "hourly-2026", "a", "b", "c"):
            await book.get(f"kind/{name}")
            assert len(book._named) <= 2
            assert len(book._unknown) <= 2
        assert [await book.get(f"kind/{name}") for name in ("b", "c", "a")] == [None] * 3
        assert [usage.service.asked.count(f"kind/{name}") for name in "abc"] == [2, 1, 1]


async def test_a_defect_of_the_book_is_loud(
    usage: Usage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(module._Listed, "put", broken)
    await usage.start()
    async with book_of(usage):
        await until(lambda: "no longer followed" in caplog.text, "an alarm")
