"""The usage service over real gRPC sockets, as a process runs it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import httpx2
import pytest

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import (
    price_service_pb2,
    price_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from onegate.usage.v1.price_pb2 import PriceSheet
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.config import RpcSettings, Settings, TelemetrySettings, UsageSettings
from runtime.errors import GatewayError
from runtime.rpc import OPERATOR_KEY, RpcServer, channel, unary
from services.usage import server
from services.usage.prices import seed
from services.usage.prices.board import AHEAD, Board
from services.usage.prices.facts import shipped_facts
from services.usage.prices.price_service import OperatorPrices, PriceService
from tests.services.usage.records import (
    NOON,
    TOKEN,
    SteppedClock,
    attempt_id,
    prices_of,
    record,
    until,
)

pytestmark = pytest.mark.anyio


def settings(directory: Path) -> Settings:
    return Settings(
        data_dir=str(directory),
        usage=UsageSettings(
            listen=f"unix:{directory}/usage.sock", dsn=f"sqlite://{directory}/usage.db"
        ),
        rpc=RpcSettings(operator_token_file=str(directory / "operator.token")),
    )


class Usage:
    """A running usage service and stubs of it."""

    def __init__(self, configured: Settings) -> None:
        self.settings = configured
        self.channel = channel(configured.usage.listen, configured.rpc)
        self.usage = usage_service_pb2_grpc.UsageServiceStub(self.channel)
        self.prices = price_service_pb2_grpc.PriceServiceStub(self.channel)

    @property
    def operator(self) -> list[tuple[str, str]]:
        token = Path(self.settings.rpc.operator_token_file).read_text().strip()
        return [(OPERATOR_KEY, token)]

    async def post(self, *records: UsageRecord) -> usage_service_pb2.RecordUsageResponse:
        request = usage_service_pb2.RecordUsageRequest(records=records)
        return await unary(self.usage.RecordUsage, request, timeout_s=10)

    async def listed(
        self, request: usage_service_pb2.ListUsageRequest
    ) -> usage_service_pb2.ListUsageResponse:
        return await unary(self.usage.ListUsage, request, timeout_s=10, metadata=self.operator)

    async def price(self, model: str) -> list[PriceSheet]:
        request = price_service_pb2.GetPriceRequest(model=model)
        return list((await unary(self.prices.GetPrice, request, timeout_s=10)).prices)


@pytest.fixture
async def usage(tmp_path: Path) -> AsyncIterator[Usage]:
    async for running in served(settings(tmp_path)):
        yield running


async def served(configured: Settings) -> AsyncIterator[Usage]:
    stop, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(server.run(configured, stop=stop, ready=ready.set))
    await until(lambda: ready.is_set() or task.done(), "the start of usage")
    assert not task.done(), task.exception()
    running = Usage(configured)
    yield running
    await running.channel.close()
    stop.set()
    await asyncio.wait_for(task, 10)


async def test_what_is_posted_is_listed_and_summed(usage: Usage) -> None:
    answer = await usage.post(*(record(number) for number in range(10)))
    assert (answer.inserted, answer.duplicates, list(answer.quarantined)) == (10, 0, [])
    answer = await usage.post(record(9), record(10), record(0, cost_nano_usd=1))
    assert (answer.inserted, answer.duplicates) == (1, 1)
    assert list(answer.quarantined) == [attempt_id(0)]

    listed = await usage.listed(usage_service_pb2.ListUsageRequest())
    assert list(listed.records) == [record(number) for number in reversed(range(11))]
    assert listed.next_page_token == ""

    request = usage_service_pb2.SummarizeUsageRequest(
        group_by=[
            usage_service_pb2.USAGE_DIMENSION_DAY,
            usage_service_pb2.USAGE_DIMENSION_KEY,
        ]
    )
    summed = await unary(usage.usage.SummarizeUsage, request, timeout_s=10, metadata=usage.operator)
    assert [(list(row.group), row.attempts, row.cost_nano_usd) for row in summed.rows] == [
        (["2026-11-21", "key_1"], 4, 4022),
        (["2026-11-21", "key_0"], 4, 4018),
        (["2026-11-21", "key_2"], 3, 3015),
    ]


async def test_an_empty_batch_is_fine_and_one_too_large_is_not(usage: Usage) -> None:
    assert (await usage.post()).inserted == 0
    with pytest.raises(GatewayError, match="at most 1000"):
        await usage.post(*(record(number) for number in range(1001)))


async def test_pages_go_on_where_the_last_one_ended_also_while_records_come_in(
    usage: Usage,
) -> None:
    await usage.post(*(record(number) for number in range(25)))
    request = usage_service_pb2.ListUsageRequest(page_size=10)
    request.filter.organization_id = "org_1"
    found: list[str] = []
    while True:
        answer = await usage.listed(request)
        found += [one.attempt_id for one in answer.records]
        await usage.post(record(100 + len(found)))
        if not answer.next_page_token:
            break
        request.page_token = answer.next_page_token
    assert found == [attempt_id(number) for number in reversed(range(25))]


@pytest.mark.parametrize("token", ["", "wrong"])
@pytest.mark.parametrize("method", ["ListUsage", "SummarizeUsage"])
async def test_reports_are_the_operators(usage: Usage, method: str, token: str) -> None:
    requests = {
        "ListUsage": usage_service_pb2.ListUsageRequest(),
        "SummarizeUsage": usage_service_pb2.SummarizeUsageRequest(),
    }
    with pytest.raises(GatewayError) as refused:
        await unary(
            getattr(usage.usage, method),
            requests[method],
            timeout_s=10,
            metadata=[(OPERATOR_KEY, token)] if token else [],
        )
    assert refused.value.reason == error_pb2.ERROR_REASON_INVALID_API_KEY


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (usage_service_pb2.ListUsageRequest(page_token="rubbish"), "page_token"),
        (usage_service_pb2.ListUsageRequest(page_size=-1), "page_size"),
    ],
)
async def test_a_bad_request_says_which_field(
    usage: Usage, request_: usage_service_pb2.ListUsageRequest, param: str
) -> None:
    with pytest.raises(GatewayError) as refused:
        await usage.listed(request_)
    assert refused.value.reason == error_pb2.ERROR_REASON_INVALID_REQUEST
    assert refused.value.param == param


async def test_prices_are_listed_by_pattern_page_by_page(usage: Usage) -> None:
    request = price_service_pb2.ListPricesRequest(model="openai/gpt-4o*", page_size=3)
    found: list[PriceSheet] = []
    while True:
        answer = await unary(usage.prices.ListPrices, request, timeout_s=10)
        found += answer.prices
        if not answer.next_page_token:
            break
        request.page_token = answer.next_page_token
    models = [sheet.model for sheet in found]
    assert models == sorted(set(models))
    assert "openai/gpt-4o-mini" in models
    assert all(model.startswith("openai/gpt-4o") for model in models)
    assert all(sheet.rates and sheet.version for sheet in found)

    request.model = "openai/*"
    with pytest.raises(GatewayError, match="page_token"):
        await unary(usage.prices.ListPrices, request, timeout_s=10)


async def test_all_prices_are_listed_without_a_pattern(usage: Usage) -> None:
    request = price_service_pb2.ListPricesRequest(page_size=5000)
    first = await unary(usage.prices.ListPrices, request, timeout_s=10)
    assert len(first.prices) == 1000
    request.page_token = first.next_page_token
    rest = await unary(usage.prices.ListPrices, request, timeout_s=10)
    assert len(first.prices) + len(rest.prices) == len(seed.catalogue().models)
    assert rest.next_page_token == ""


async def test_one_price_is_given_by_any_of_its_names(usage: Usage) -> None:
    (dated,) = await usage.price("openai/gpt-4o-2024-08-06")
    (plain,) = await usage.price("openai/gpt-4o")
    assert dated.model == "openai/gpt-4o-2024-08-06"
    assert dated.version == plain.version
    assert await usage.price("openai/unheard-of") == []
    peaks = await usage.price("deepseek/deepseek-chat")
    assert len({sheet.version for sheet in peaks}) == 2
    assert peaks[-1].valid_from.ToDatetime(UTC) > datetime.now(UTC) + timedelta(days=6)


@pytest.mark.parametrize("model", ["", "x" * 257])
async def test_a_name_of_no_or_endless_length_is_refused(usage: Usage, model: str) -> None:
    with pytest.raises(GatewayError, match="256"):
        await usage.price(model)


async def test_usage_survives_a_restart_and_stops_while_watched(tmp_path: Path) -> None:
    async for running in served(settings(tmp_path)):
        await running.post(record(1))
        watch = running.prices.WatchPrices(price_service_pb2.WatchPricesRequest(watcher="w"))
        await watch.read()
    async for again in served(settings(tmp_path)):
        assert (await again.post(record(1))).duplicates == 1


async def test_what_came_in_is_counted_on_the_metrics_page(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    telemetry = TelemetrySettings(metrics_address=f"127.0.0.1:{port}")
    async for running in served(replace(settings(tmp_path), telemetry=telemetry)):
        await running.post(record(1), record(2), record(1))
        async with httpx2.AsyncClient() as client:
            page = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
        assert 'onegate_usage_records_total{verdict="inserted"} 2.0' in page
        assert 'onegate_usage_records_total{verdict="duplicate"} 1.0' in page


class Watched:
    """A price service on a clock that the test moves."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._cleanup = AsyncExitStack()
        self.prices: OperatorPrices
        self.clock = SteppedClock()
        self.board = Board(seed.catalogue(), shipped_facts(), self.clock)
        self.server = RpcServer(RpcSettings(), "usage")
        self.address = f"unix:{directory}/prices.sock"
        self.channel = channel(self.address, RpcSettings())

    async def __aenter__(self) -> Self:
        await self.board.extend()
        self.prices = await self._cleanup.enter_async_context(
            prices_of(self.directory, self.board, self.clock)
        )
        service = PriceService(self.board, self.prices, TOKEN)
        self.server.add(price_service_pb2_grpc.add_PriceServiceServicer_to_server, service)
        await self.server.start(self.address)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.server.stop(1)
        await self._cleanup.aclose()

    def watch(self) -> AsyncIterator[price_service_pb2.WatchPricesResponse]:
        stub = price_service_pb2_grpc.PriceServiceStub(self.channel)
        request = price_service_pb2.WatchPricesRequest(watcher="test")
        return aiter(stub.WatchPrices(request, timeout=20))


async def test_a_watcher_gets_everything_then_heartbeats_then_the_days_that_are_added(
    tmp_path: Path,
) -> None:
    async with Watched(tmp_path) as watched:
        messages = watched.watch()
        sheets: list[PriceSheet] = []
        facts: list[price_service_pb2.ModelFacts] = []
        while not (message := await anext(messages)).complete:
            assert message.ByteSize() < 256 * 1024
            sheets += message.prices
            facts += message.facts
        assert {sheet.model for sheet in sheets} == set(watched.board.models)
        assert [fact.model for fact in facts] == list(watched.board.models)
        assert await anext(messages) == price_service_pb2.WatchPricesResponse()

        watched.clock.passed_s = timedelta(days=1).total_seconds()
        await watched.board.extend()
        added: list[PriceSheet] = []
        while not added:
            added += (await anext(messages)).prices
        assert {sheet.model.partition("/")[0] for sheet in added} == {"deepseek"}
        starts = [sheet.valid_from.ToDatetime(UTC) for sheet in added]
        assert min(starts) >= NOON + AHEAD
        assert max(starts) < NOON + AHEAD + timedelta(days=1)


async def test_the_listed_price_is_the_one_of_the_hour(tmp_path: Path) -> None:
    async with Watched(tmp_path) as watched:
        noon = watched.board.in_force("deepseek/deepseek-chat")
        watched.clock.passed_s = 5 * 3600.0
        evening = watched.board.in_force("deepseek/deepseek-chat")
        assert noon is not None
        assert evening is not None
        assert noon.version != evening.version
        asked = watched.board.prices("deepseek/deepseek-chat")[0]
        assert asked.version == evening.version


async def test_the_board_is_extended_by_itself() -> None:
    clock = SteppedClock()
    board = Board(seed.catalogue(), shipped_facts(), clock)
    await board.extend()
    first = board.in_force("openai/gpt-4o")
    running = asyncio.create_task(board.run())
    await until(lambda: board.in_force("openai/gpt-4o") is not first, "the next extension")
    running.cancel()
