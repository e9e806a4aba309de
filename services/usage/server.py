"""The usage service: keeps what was used, sums it up, and says what models cost."""

# ruff: noqa: N802 - methods are named as the contract names them

import asyncio
import bisect
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any, Final, TypeAlias

import grpc

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import (
    price_service_pb2,
    price_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from runtime.clock import SystemClock, SystemEntropy
from runtime.config import Settings
from runtime.errors import GatewayError
from runtime.metrics import Metrics, serve_metrics
from runtime.patterns import matches
from runtime.rpc import RpcServer, require_operator
from runtime.secrets import FileSecrets, Secret
from runtime.sql import open_database
from services.usage import reports, seed
from services.usage.board import Board
from services.usage.facts import shipped_facts
from services.usage.intake import Intake
from services.usage.store import SqlStore, Store, Verdict

RECORDS_MAX: Final = 1_000
"""The most records of one request."""

MODEL_CHARS_MAX: Final = 256
"""The longest name of a model that is looked up."""

STOP_GRACE_S: Final = 5.0
"""How long calls under way may take when the service stops, in seconds."""

_LOG = logging.getLogger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class UsageService(usage_service_pb2_grpc.UsageServiceServicer):
    """Takes finished attempts from routers; tells the operator about them."""

    def __init__(
        self, store: Store, intake: Intake, operator_token: Secret, metrics: Metrics
    ) -> None:
        self._store = store
        self._intake = intake
        self._operator_token = operator_token
        counter = metrics.counter("records", "Records by what became of them.", ("verdict",))
        self._counts = {verdict: counter.labelled(verdict.name.lower()) for verdict in Verdict}

    async def RecordUsage(
        self, request: usage_service_pb2.RecordUsageRequest, _context: Context
    ) -> usage_service_pb2.RecordUsageResponse:
        """Keeps a batch; the answer means that it is committed."""
        if len(request.records) > RECORDS_MAX:
            raise _invalid("records", f"may hold at most {RECORDS_MAX}")
        if not request.records:
            return usage_service_pb2.RecordUsageResponse()
        records = list(request.records)
        verdicts = await self._intake.record(records)
        for verdict in Verdict:
            self._counts[verdict].add(verdicts.count(verdict))
        quarantined = [
            record.attempt_id
            for record, verdict in zip(records, verdicts, strict=True)
            if verdict is Verdict.QUARANTINED
        ]
        if quarantined:
            _LOG.error("%d records are in quarantine: %s", len(quarantined), quarantined[:10])
        return usage_service_pb2.RecordUsageResponse(
            inserted=verdicts.count(Verdict.INSERTED),
            duplicates=verdicts.count(Verdict.DUPLICATE),
            quarantined=quarantined,
        )

    async def ListUsage(
        self, request: usage_service_pb2.ListUsageRequest, context: Context
    ) -> usage_service_pb2.ListUsageResponse:
        """A page of records, newest first."""
        require_operator(context, self._operator_token.reveal())
        selection = reports.selection_of(request.filter)
        count = reports.page_size_of(request.page_size)
        after = reports.cursor_of(request.page_token, selection)
        # One more than the page holds says whether there is another.
        found = await self._store.list_records(selection, after=after, count_max=count + 1)
        page = found[:count]
        token = ""
        if len(found) > count:
            last = reports.Cursor(
                started_at_us=page[-1].started_at.ToMicroseconds(), attempt_id=page[-1].attempt_id
            )
            token = reports.cursor_token(last, selection)
        return usage_service_pb2.ListUsageResponse(records=page, next_page_token=token)

    async def SummarizeUsage(
        self, request: usage_service_pb2.SummarizeUsageRequest, context: Context
    ) -> usage_service_pb2.SummarizeUsageResponse:
        """Sums by group, dearest first."""
        require_operator(context, self._operator_token.reveal())
        dimensions = reports.dimensions_of(request.group_by)
        selection = reports.selection_of(request.filter)
        rows = await self._store.summarize(selection, dimensions)
        return usage_service_pb2.SummarizeUsageResponse(
            rows=[reports.summary(row, dimensions) for row in rows]
        )


class PriceService(price_service_pb2_grpc.PriceServiceServicer):
    """Says what models cost."""

    def __init__(self, board: Board) -> None:
        self._board = board

    async def ListPrices(
        self, request: price_service_pb2.ListPricesRequest, _context: Context
    ) -> price_service_pb2.ListPricesResponse:
        """A page of the sheets in force now, by model."""
        count = reports.page_size_of(request.page_size)
        pattern = request.model or "*"
        after = reports.place_of(request.page_token, pattern)
        models = self._board.models
        start = 0 if after is None else bisect.bisect_right(models, after)
        found = [model for model in models[start:] if matches(pattern, model)]
        page = found[:count]
        return price_service_pb2.ListPricesResponse(
            prices=map(self._board.in_force, page),
            next_page_token=reports.token_of(page[-1], pattern) if len(found) > count else "",
        )

    async def WatchPrices(
        self, request: price_service_pb2.WatchPricesRequest, _context: Context
    ) -> AsyncGenerator[price_service_pb2.WatchPricesResponse, None]:
        """All sheets, then what is added."""
        _LOG.info("%r watches prices", request.watcher[:64])
        async with aclosing(self._board.watch()) as news:
            async for response in news:
                yield response

    async def GetPrice(
        self, request: price_service_pb2.GetPriceRequest, _context: Context
    ) -> price_service_pb2.GetPriceResponse:
        """The sheets of one name; none when nobody knows it."""
        if not 0 < len(request.model) <= MODEL_CHARS_MAX:
            raise _invalid("model", f"must be `kind/name` of at most {MODEL_CHARS_MAX} characters")
        return price_service_pb2.GetPriceResponse(
            prices=self._board.prices(request.model), facts=self._board.facts(request.model)
        )


def _invalid(param: str, what: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, f"`{param}` {what}.", param=param)


async def run(settings: Settings, *, stop: asyncio.Event, ready: Callable[[], None]) -> None:
    """Serves until ``stop`` is set."""
    clock = SystemClock()
    operator_token = FileSecrets(SystemEntropy()).read_or_make(settings.rpc.operator_token_file)
    metrics = Metrics("usage")
    async with AsyncExitStack() as cleanup:
        store = SqlStore(open_database(settings.usage.dsn))
        cleanup.push_async_callback(store.close)
        await store.migrate(now=clock.now())
        board = Board(seed.catalogue(), shipped_facts(), clock)
        await board.extend()
        intake = Intake(store, clock)
        cleanup.push_async_callback(intake.close)
        if settings.telemetry.metrics_address:
            page = await serve_metrics(settings.telemetry.metrics_address, metrics)
            cleanup.push_async_callback(page.close)
        server = RpcServer(settings.rpc, "usage")
        service = UsageService(store, intake, operator_token, metrics)
        server.add(usage_service_pb2_grpc.add_UsageServiceServicer_to_server, service)
        server.add(price_service_pb2_grpc.add_PriceServiceServicer_to_server, PriceService(board))
        await server.start(settings.usage.listen)
        cleanup.push_async_callback(server.stop, STOP_GRACE_S)
        async with asyncio.TaskGroup() as tasks:
            extending = tasks.create_task(board.run())
            ready()
            await stop.wait()
            extending.cancel()
