"""Prices that operators set: kept, told at once, never told early, shared between processes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from onegate.usage.v1 import price_pb2, price_service_pb2, price_service_pb2_grpc
from onegate.usage.v1.price_pb2 import PriceSheet, Rate
from runtime.config import RpcSettings
from runtime.errors import GatewayError
from runtime.rpc import RpcServer, channel, unary
from services.router.money.pricebook import PriceBook
from services.usage.prices import price_service as module
from services.usage.prices.board import Board
from services.usage.prices.facts import FactBook
from services.usage.prices.price_service import OperatorPrices, PriceService
from services.usage.prices.pricing import Catalogue, Line, PricedModel, Tariff, Vendor
from tests.services.usage.records import NOON, OPERATOR, TOKEN, SteppedClock, prices_of, until

pytestmark = pytest.mark.anyio

INPUT, OUTPUT = price_pb2.METER_INPUT_TOKENS, price_pb2.METER_OUTPUT_TOKENS
FACTS = FactBook(
    {"source": "facts-1", "models": {"openai/own": {"context": 9}}}, {"vendors": {}, "models": {}}
)


def board_on(clock: SteppedClock) -> Board:
    """A board with one shipped price."""
    shipped = PricedModel(
        id="openai/shipped",
        source="source-1",
        origin="here",
        tariffs=(Tariff(lines=(Line(meter=INPUT, nano_usd_per_million=1),)),),
        facts=price_service_pb2.ModelFacts(),
    )
    models = {"shipped": shipped}
    return Board(Catalogue({"openai": Vendor(find=models.get, listed=models)}), FACTS, clock)


def sheet(model: str, nano: int, hours: float | None = None) -> PriceSheet:
    rates = [Rate(meter=meter, nano_usd_per_million=nano) for meter in (INPUT, OUTPUT)]
    made = PriceSheet(model=model, rates=rates, source="a contract")
    if hours is not None:
        made.valid_from.FromDatetime(NOON + timedelta(hours=hours))
    return made


@dataclass
class Usage:
    """A price service, a router's book, and an operator."""

    clock: SteppedClock
    prices: OperatorPrices
    book: PriceBook
    stub: price_service_pb2_grpc.PriceServiceStub

    async def set(self, *sheets: PriceSheet, withdrawn: tuple[str, ...] = ()) -> list[str]:
        request = price_service_pb2.SetPricesRequest(prices=sheets, withdrawn=withdrawn)
        answer = await unary(self.stub.SetPrices, request, timeout_s=5, metadata=OPERATOR)
        return [sheet.model for sheet in answer.prices]

    async def history(self, **fields: Any) -> price_service_pb2.ListPriceChangesResponse:
        request = price_service_pb2.ListPriceChangesRequest(**fields)
        return await unary(self.stub.ListPriceChanges, request, timeout_s=5, metadata=OPERATOR)

    def rate(self, model: str) -> int | None:
        found = self.book.find(model)
        return None if found is None else found.rates[0].nano_usd_per_million


@pytest.fixture
async def usage(tmp_path: Path) -> AsyncIterator[Usage]:
    clock = SteppedClock()
    board = board_on(clock)
    await board.extend()
    address = f"unix:{tmp_path}/usage.sock"
    server = RpcServer(RpcSettings(), "usage")
    async with prices_of(tmp_path, board, clock) as prices:
        service = PriceService(board, prices, TOKEN)
        server.add(price_service_pb2_grpc.add_PriceServiceServicer_to_server, service)
        await server.start(address)
        line: grpc.aio.Channel = channel(address, RpcSettings())
        book = PriceBook(line, clock, "router-test")
        book.start()
        await until(lambda: book.ready, "the first prices")
        yield Usage(clock, prices, book, price_service_pb2_grpc.PriceServiceStub(line))
        await book.close()
        await line.close()
        await server.stop(1)


async def test_a_price_that_is_set_is_known_to_routers_at_once(usage: Usage) -> None:
    assert await usage.book.get("openai/own") is None  # and remembered as unknown for a minute
    assert await usage.set(sheet("openai/own", 7)) == ["openai/own"]
    await until(lambda: usage.rate("openai/own") == 7, "the price", timeout_s=1.0)
    assert list(usage.book.names("openai")) == ["shipped", "own"]
    facts = usage.book.facts("openai/own")
    assert facts is not None
    assert facts.context_tokens_max == 9
    await usage.set(sheet("openai/own", 8))
    await until(lambda: usage.rate("openai/own") == 8, "the next price", timeout_s=1.0)


async def test_an_operators_price_beats_the_shipped_one_until_it_is_withdrawn(
    usage: Usage,
) -> None:
    assert usage.rate("openai/shipped") == 1
    await usage.set(sheet("openai/shipped", 3))
    await until(lambda: usage.rate("openai/shipped") == 3, "the price")
    listed = await unary(usage.stub.ListPrices, price_service_pb2.ListPricesRequest(), timeout_s=5)
    assert [one.version.partition(":")[0] for one in listed.prices] == ["operator"]
    await usage.set(sheet("openai/own", 5), withdrawn=("openai/shipped", "openai/never"))
    await until(lambda: usage.rate("openai/shipped") == 1, "the shipped price")
    await usage.set(withdrawn=("openai/own",))
    await until(lambda: usage.rate("openai/own") is None, "no price")
    assert await usage.book.get("openai/own") is None


async def test_a_dated_price_takes_over_on_its_day_and_a_first_one_is_not_told_before(
    usage: Usage,
) -> None:
    await usage.set(sheet("openai/shipped", 3, hours=5), sheet("openai/own", 4, hours=5))
    await until(lambda: len(usage.prices.changes) == 2, "the changes")
    assert await usage.book.get("openai/own") is None
    assert usage.rate("openai/shipped") == 1
    running = asyncio.create_task(usage.prices.run())
    usage.clock.passed_s = 5 * 3600.0
    await until(lambda: usage.rate("openai/own") == 4, "the first price on its day")
    assert usage.rate("openai/shipped") == 3
    running.cancel()


async def test_the_same_again_changes_nothing_and_every_change_is_kept(usage: Usage) -> None:
    assert await usage.set(sheet("openai/own", 7)) == ["openai/own"]
    usage.clock.passed_s = 60.0
    assert await usage.set(sheet("openai/own", 7)) == []
    await usage.set(sheet("openai/own", 8), sheet("openai/shipped", 2))
    usage.clock.passed_s = 90.0
    await usage.set(withdrawn=("openai/own",))
    changes = (await usage.history()).changes
    assert [(c.model, c.HasField("price")) for c in changes] == [
        ("openai/own", False),
        ("openai/shipped", True),
        ("openai/own", True),
        ("openai/own", True),
    ]
    assert changes[0].recorded_at.ToDatetime() == (NOON + timedelta(seconds=90)).replace(
        tzinfo=None
    )
    first = await usage.history(model="openai/o*", page_size=2)
    rest = await usage.history(model="openai/o*", page_size=2, page_token=first.next_page_token)
    assert [c.model for c in (*first.changes, *rest.changes)] == ["openai/own"] * 3
    assert rest.next_page_token == ""


async def test_prices_outlive_the_process_and_reach_the_others(
    usage: Usage, tmp_path: Path
) -> None:
    await usage.set(sheet("openai/own", 7))
    board = board_on(usage.clock)
    async with prices_of(tmp_path, board, usage.clock) as again:
        await board.extend()
        in_force = board.in_force("openai/own")
        assert in_force is not None
        assert in_force.rates[0].nano_usd_per_million == 7
        following = asyncio.create_task(again.run())
        await usage.set(sheet("openai/own", 9))
        await until(lambda: len(again.changes) == 2, "what another process took")
        following.cancel()


@pytest.mark.parametrize(
    ("sheets", "withdrawn", "why"),
    [
        ((sheet("gpt-4o", 1),), (), "kind of provider"),
        ((sheet("openai/a", 1), sheet("openai/a", 2)), (), "twice"),
        ((sheet("openai/a", 1),), ("openai/a",), "twice"),
        ((), ("nonsense",), "kind of provider"),
        ((sheet("openai/a", 1),) * 3, (), "at most"),
    ],
)
async def test_a_request_that_cannot_be_is_refused_whole(
    usage: Usage,
    monkeypatch: pytest.MonkeyPatch,
    sheets: tuple[PriceSheet, ...],
    withdrawn: tuple[str, ...],
    why: str,
) -> None:
    monkeypatch.setattr(module, "CHANGES_MAX", 2)
    with pytest.raises(GatewayError, match=why):
        await usage.set(*sheets, withdrawn=withdrawn)
    assert not (await usage.history()).changes


async def test_only_the_operator_sets_prices_and_reads_their_history(usage: Usage) -> None:
    request = price_service_pb2.SetPricesRequest(prices=[sheet("openai/own", 7)])
    with pytest.raises(GatewayError, match="operator"):
        await unary(usage.stub.SetPrices, request, timeout_s=5)
    with pytest.raises(GatewayError, match="operator"):
        await unary(
            usage.stub.ListPriceChanges, price_service_pb2.ListPriceChangesRequest(), timeout_s=5
        )
