"""The usage service: keeps what was used, sums it up, and says what models cost."""

# ruff: noqa: N802 - methods are named as the contract names them

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Final, TypeAlias

import grpc

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import (
    price_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from runtime.clock import SystemClock, SystemEntropy
from runtime.config import Settings
from runtime.errors import GatewayError
from runtime.metrics import Metrics, serve_metrics
from runtime.readiness import follow_store, when_available
from runtime.rpc import RpcServer, require_operator
from runtime.secrets import FileSecrets, Secret
from runtime.sql import open_configured
from services.usage import reports, seed
from services.usage.board import Board
from services.usage.facts import shipped_facts
from services.usage.intake import Intake
from services.usage.price_service import OperatorPrices, PriceService
from services.usage.price_store import SqlPriceStore
from services.usage.store import SqlStore, Store, Verdict

RECORDS_MAX: Final = 1_000
"""The most records of one request."""

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


def _invalid(param: str, what: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, f"`{param}` {what}.", param=param)


async def run(settings: Settings, *, stop: asyncio.Event, ready: Callable[[], None]) -> None:
    """Serves until ``stop`` is set."""
    clock = SystemClock()
    operator_token = FileSecrets(SystemEntropy()).read_or_make(settings.rpc.operator_token_file)
    metrics = Metrics("usage")
    async with AsyncExitStack() as cleanup:
        database = open_configured(settings.usage)
        store, price_store = SqlStore(database), SqlPriceStore(database)
        cleanup.push_async_callback(store.close)
        board = Board(seed.catalogue(), shipped_facts(), clock)
        prices = OperatorPrices(price_store, board, clock)

        async def prepare() -> bool:
            await store.migrate(now=clock.now())
            await price_store.migrate(now=clock.now())
            await prices.refresh()
            return True

        if not await when_available(prepare, clock, stop):
            return
        await board.extend()
        intake = Intake(store, clock)
        cleanup.push_async_callback(intake.close)
        if settings.telemetry.metrics_address:
            page = await serve_metrics(settings.telemetry.metrics_address, metrics)
            cleanup.push_async_callback(page.close)
        server = RpcServer(settings.rpc, "usage")
        service = UsageService(store, intake, operator_token, metrics)
        server.add(usage_service_pb2_grpc.add_UsageServiceServicer_to_server, service)
        server.add(
            price_service_pb2_grpc.add_PriceServiceServicer_to_server,
            PriceService(board, prices, operator_token),
        )
        await server.start(settings.usage.listen)
        cleanup.push_async_callback(server.stop, STOP_GRACE_S)
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(board.run()),
                tasks.create_task(prices.run()),
                tasks.create_task(follow_store(server, prices.age_s, clock)),
            ]
            ready()
            await stop.wait()
            for task in running:
                task.cancel()
