"""Versions of the catalogue: kept, in force everywhere at once, brought back; on each database."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import catalogue_service_pb2 as pb
from onegate.usage.v1 import (
    catalogue_service_pb2_grpc,
    price_pb2,
    price_service_pb2,
    price_service_pb2_grpc,
)
from runtime.config import RpcSettings
from runtime.errors import GatewayError
from runtime.rpc import OPERATOR_KEY, RpcServer, channel, unary
from runtime.sql import open_database
from services.router.money.pricebook import PriceBook
from services.usage.prices import catalogue_document
from services.usage.prices.board import Board
from services.usage.prices.catalogue_service import Catalogues, CatalogueService
from services.usage.prices.catalogue_store import CONTENTS, SqlCatalogueStore
from services.usage.prices.price_service import OperatorPrices, PriceService
from services.usage.prices.price_store import SqlPriceStore
from tests.services.usage.records import OPERATOR, TOKEN, SteppedClock, until
from tests.services.usage.test_catalogue_files import row, small

pytestmark = pytest.mark.anyio

INSTALLED = small(row("gpt-4o", "2.5", match={"starts_with": "gpt-4o"}), row("gpt-4.1"))


@dataclass
class Process:
    """One usage process, and what calls it."""

    board: Board
    catalogues: Catalogues
    catalogue: catalogue_service_pb2_grpc.CatalogueServiceStub
    prices: price_service_pb2_grpc.PriceServiceStub
    book: PriceBook

    async def call(self, method: Any, request: Any, metadata: Any = OPERATOR) -> Any:
        return await unary(method, request, timeout_s=10, metadata=metadata)

    async def in_force(self) -> pb.CatalogueVersion:
        answer: pb.GetCatalogueResponse = await self.call(
            self.catalogue.GetCatalogue, pb.GetCatalogueRequest()
        )
        return answer.version

    async def put(self, document: dict[str, Any], digest: str = "") -> pb.CatalogueVersion:
        digest = digest or (await self.in_force()).digest
        request = pb.RefreshCatalogueRequest(
            document=catalogue_document.packed(document), in_force=digest, actor="ada"
        )
        answer: pb.RefreshCatalogueResponse = await self.call(
            self.catalogue.RefreshCatalogue, request
        )
        return answer.version

    async def undo(self, number: int = 0) -> pb.CatalogueVersion:
        request = pb.RestoreCatalogueRequest(number=number, in_force=(await self.in_force()).digest)
        answer: pb.RestoreCatalogueResponse = await self.call(
            self.catalogue.RestoreCatalogue, request
        )
        return answer.version

    async def versions(self) -> list[tuple[int, int, str]]:
        found: list[pb.CatalogueVersion] = []
        request = pb.ListCatalogueVersionsRequest(page_size=2)
        while True:
            page = await self.call(self.catalogue.ListCatalogueVersions, request)
            found += page.versions
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return [(one.number, one.restores, one.source) for one in found]

    def told(self, model: str) -> int | None:
        """What a router was told that input costs."""
        sheet = self.book.find(model)
        return None if sheet is None else sheet.rates[0].nano_usd_per_million

    async def until_told(self, model: str, nano: int | None) -> None:
        await until(lambda: self.told(model) == nano, f"{model} at {nano}")


async def process(dsn: str, address: str, stack: AsyncExitStack) -> Process:
    clock = SteppedClock()
    database = open_database(dsn)
    stack.push_async_callback(database.close)
    installed = catalogue_document.read(INSTALLED)
    board = Board(installed.catalogue, installed.facts, clock)
    prices = OperatorPrices(SqlPriceStore(database), board, clock)
    store = SqlCatalogueStore(database)
    catalogues = Catalogues(store, board, clock, lambda: INSTALLED)
    await SqlPriceStore(database).migrate(now=clock.now())
    await store.migrate(now=clock.now())
    await catalogues.refresh()
    await board.extend()
    server = RpcServer(RpcSettings(), "usage")
    server.add(
        price_service_pb2_grpc.add_PriceServiceServicer_to_server,
        PriceService(board, prices, TOKEN),
    )
    server.add(
        catalogue_service_pb2_grpc.add_CatalogueServiceServicer_to_server,
        CatalogueService(catalogues, TOKEN),
    )
    await server.start(address)
    stack.push_async_callback(server.stop, 1)
    running = asyncio.create_task(catalogues.run())
    stack.callback(running.cancel)
    line = channel(address, RpcSettings())
    stack.push_async_callback(line.close)
    book = PriceBook(line, clock, "router-test")
    book.start()
    stack.push_async_callback(book.close)
    await until(lambda: book.ready, "the first prices")
    return Process(
        board=board,
        catalogues=catalogues,
        catalogue=catalogue_service_pb2_grpc.CatalogueServiceStub(line),
        prices=price_service_pb2_grpc.PriceServiceStub(line),
        book=book,
    )


@pytest.fixture
async def two(dsn: str, tmp_path: Path) -> AsyncIterator[tuple[Process, Process]]:
    """Two usage processes on one database, each with a router that follows it."""
    async with AsyncExitStack() as stack:
        yield (
            await process(dsn, f"unix:{tmp_path}/one.sock", stack),
            await process(dsn, f"unix:{tmp_path}/two.sock", stack),
        )


async def test_a_refresh_holds_in_every_process_and_every_router_without_a_restart(
    two: tuple[Process, Process], dsn: str, tmp_path: Path
) -> None:
    one, other = two
    snapshot = "openai/gpt-4o-2024-08-06"
    for each in two:
        assert each.told("openai/gpt-4o") == 2_500_000_000
        assert await each.book.get(snapshot) is not None  # asked for: it is not listed
    first = await one.in_force()
    assert (first.number, first.models) == (0, 2)
    made = await one.put(small(row("gpt-4o", "7"), row("brand-new")))
    assert (made.number, made.actor, made.models) == (2, "ada", 2)
    for each in two:
        await each.until_told("openai/gpt-4o", 7_000_000_000)
        assert each.told("openai/brand-new") == 1_000_000_000
        assert each.told("openai/gpt-4.1") is None
        await each.until_told(snapshot, None)
        assert set(each.book.names("openai")) == {"gpt-4o", "brand-new"}
        assert await each.book.get("openai/gpt-4.1") is None
    listed = await unary(
        other.prices.ListPrices, price_service_pb2.ListPricesRequest(), timeout_s=5
    )
    assert [sheet.model for sheet in listed.prices] == ["openai/brand-new", "openai/gpt-4o"]
    # Who starts later knows it too.
    async with AsyncExitStack() as stack:
        late = await process(dsn, f"unix:{tmp_path}/late.sock", stack)
        assert late.told("openai/gpt-4o") == 7_000_000_000


async def test_what_an_operator_priced_stays_through_a_refresh(
    two: tuple[Process, Process],
) -> None:
    one, _ = two
    rates = [
        price_pb2.Rate(meter=meter, nano_usd_per_million=5)
        for meter in (price_pb2.METER_INPUT_TOKENS, price_pb2.METER_OUTPUT_TOKENS)
    ]
    sheet = price_pb2.PriceSheet(model="openai/own", rates=rates, source="a contract")
    await one.call(one.prices.SetPrices, price_service_pb2.SetPricesRequest(prices=[sheet]))
    await one.put(small(row("own", "7")))
    await until(lambda: one.told("openai/gpt-4o") is None, "the refresh")
    assert one.told("openai/own") == 5


async def test_every_version_is_kept_and_can_be_brought_back(two: tuple[Process, Process]) -> None:
    one, other = two
    assert [number for number, _, _ in await one.versions()] == [0]
    with pytest.raises(GatewayError) as nothing:
        await one.undo()
    assert nothing.value.reason == error_pb2.ERROR_REASON_NOT_FOUND
    await one.put(small(row("a")))
    await one.put(small(row("b")))
    assert (await other.undo()).restores == 2
    await until(lambda: one.told("openai/a") is not None, "the version before")
    assert one.told("openai/b") is None
    # The one before that is what was installed, and there is none before it.
    assert (await one.undo()).restores == 1
    await until(lambda: other.told("openai/gpt-4o") == 2_500_000_000, "what was installed")
    with pytest.raises(GatewayError):
        await one.undo()
    assert (await one.undo(3)).restores == 3
    await until(lambda: one.told("openai/b") is not None, "version 3")
    told = await one.versions()
    assert [(number, restores) for number, restores, _ in told] == [
        (6, 3),
        (5, 1),
        (4, 2),
        (3, 0),
        (2, 0),
        (1, 0),
    ]
    assert told[-1][2] == "small-1, facts-1"
    kept = await one.call(one.catalogue.GetCatalogue, pb.GetCatalogueRequest(number=2))
    assert catalogue_document.unpacked(kept.document) == small(row("a"))


async def test_one_content_is_kept_once_and_the_same_again_is_no_version(
    two: tuple[Process, Process], dsn: str
) -> None:
    one, _ = two
    made = await one.put(small(row("a")))
    assert await one.put(small(row("a"))) == made
    await one.undo()
    await one.undo(made.number)
    database = open_database(dsn)
    kept = await database.read(lambda c: c.execute(CONTENTS.select()).all())
    await database.close()
    assert len(kept) == 2


async def test_two_refreshes_at_once_do_not_cover_each_other(two: tuple[Process, Process]) -> None:
    seen = (await two[0].in_force()).digest
    outcomes = await asyncio.gather(
        *(each.put(small(row(name)), seen) for each, name in zip(two, "ab", strict=True)),
        return_exceptions=True,
    )
    refused = [one for one in outcomes if isinstance(one, GatewayError)]
    assert [one.reason for one in refused] == [error_pb2.ERROR_REASON_CONFLICT]
    assert len(await two[0].versions()) == 2


@pytest.mark.parametrize(
    "document",
    [b"", b"nonsense", zlib.compress(b'{"format": 1}'), catalogue_document.packed(small())],
)
async def test_what_is_no_catalogue_changes_nothing(
    two: tuple[Process, Process], document: bytes
) -> None:
    one, _ = two
    request = pb.RefreshCatalogueRequest(
        document=document, in_force=(await one.in_force()).digest, actor="ada"
    )
    with pytest.raises(GatewayError) as refused:
        await one.call(one.catalogue.RefreshCatalogue, request)
    assert refused.value.reason == error_pb2.ERROR_REASON_INVALID_REQUEST
    assert [number for number, _, _ in await one.versions()] == [0]


@pytest.mark.parametrize(
    ("method", "request_type"),
    [
        ("GetCatalogue", pb.GetCatalogueRequest),
        ("ListCatalogueVersions", pb.ListCatalogueVersionsRequest),
        ("RefreshCatalogue", pb.RefreshCatalogueRequest),
        ("RestoreCatalogue", pb.RestoreCatalogueRequest),
    ],
)
async def test_only_the_operator_may(
    two: tuple[Process, Process], method: str, request_type: Any
) -> None:
    one, _ = two
    for metadata in ((), ((OPERATOR_KEY, "guess"),)):
        with pytest.raises(GatewayError) as refused:
            await one.call(getattr(one.catalogue, method), request_type(), metadata)
        assert refused.value.reason != error_pb2.ERROR_REASON_INVALID_REQUEST


async def test_a_missing_or_impossible_version_is_told(two: tuple[Process, Process]) -> None:
    one, _ = two
    for number, reason in (
        (99, error_pb2.ERROR_REASON_NOT_FOUND),
        (-1, error_pb2.ERROR_REASON_INVALID_REQUEST),
    ):
        with pytest.raises(GatewayError) as refused:
            await one.call(one.catalogue.GetCatalogue, pb.GetCatalogueRequest(number=number))
        assert refused.value.reason == reason
    request = pb.RestoreCatalogueRequest(in_force=(await one.in_force()).digest, actor="a\nb")
    with pytest.raises(GatewayError) as refused:
        await one.call(one.catalogue.RestoreCatalogue, request)
    assert refused.value.reason == error_pb2.ERROR_REASON_INVALID_REQUEST
