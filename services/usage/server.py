"""The usage service: keeps what was used, sums it up, and says what models cost."""

# ruff: noqa: N802 - methods are named as the contract names them

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any, Final, TypeAlias

import grpc

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import (
    alert_service_pb2_grpc,
    billing_service_pb2_grpc,
    budget_service_pb2_grpc,
    catalogue_service_pb2_grpc,
    cooldown_service_pb2_grpc,
    hold_service_pb2_grpc,
    idempotency_service_pb2_grpc,
    invoice_service_pb2_grpc,
    ledger_service_pb2_grpc,
    price_service_pb2_grpc,
    reconcile_service_pb2_grpc,
    report_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from runtime.clock import Clock, SystemClock, SystemEntropy
from runtime.config import Settings
from runtime.errors import GatewayError
from runtime.failpoints import Failpoints, configured
from runtime.metrics import Metrics, serve_metrics
from runtime.passes import REPORTS, SPENDING, Gate
from runtime.readiness import follow_store, when_available
from runtime.rpc import RpcServer, require_operator
from runtime.secrets import FileSecrets, Secret
from runtime.sql import Database, open_configured, open_patient, unix_micros
from services.usage.alerts.alert_sender import AlertSender, ways_of
from services.usage.alerts.alert_service import AlertService
from services.usage.alerts.alert_store import AlertStore
from services.usage.alerts.rate_store import RateStore
from services.usage.alerts.rate_watch import RateWatch
from services.usage.billing.agreement_store import AgreementStore, Postings
from services.usage.billing.billing_service import BillingService
from services.usage.billing.credit_store import CreditStore
from services.usage.billing.rerate_store import RerateStore
from services.usage.cooldowns.cooldown_service import CooldownService
from services.usage.cooldowns.cooldown_store import CooldownStore
from services.usage.idempotency import idempotency_store
from services.usage.idempotency.idempotency_service import SPARE_US, IdempotencyService
from services.usage.idempotency.idempotency_store import IdempotencyStore
from services.usage.intake import Intake
from services.usage.invoices.invoice_service import InvoiceService
from services.usage.invoices.invoice_store import InvoiceStore
from services.usage.ledger import ledger_schema
from services.usage.ledger.budget_board import BudgetBoard
from services.usage.ledger.budget_service import BudgetIds, BudgetService, LedgerService
from services.usage.ledger.budget_store import BudgetStore
from services.usage.ledger.charge_store import Charger
from services.usage.ledger.check_store import LedgerCheck
from services.usage.ledger.hold_service import HoldService
from services.usage.ledger.hold_store import HoldStore
from services.usage.ledger.holder_store import HolderStore
from services.usage.ledger.ledger_keeper import LedgerKeeper
from services.usage.ledger.ledger_store import LedgerStore, shared_clock, shared_clock_sql
from services.usage.prices import seed
from services.usage.prices.board import Board
from services.usage.prices.catalogue_service import Catalogues, CatalogueService
from services.usage.prices.catalogue_store import SqlCatalogueStore
from services.usage.prices.facts import shipped_facts
from services.usage.prices.price_service import OperatorPrices, PriceService
from services.usage.prices.price_store import SqlPriceStore
from services.usage.reconcile.reconcile_service import ReconcileService
from services.usage.reconcile.reconcile_store import ReconcileStore
from services.usage.reports import queries
from services.usage.reports.report_service import ReportService, columns_of, question_of
from services.usage.reports.report_store import ReportStore
from services.usage.reports.rollup_keeper import RollupKeeper
from services.usage.reports.rollup_store import Rollups
from services.usage.retention.retention_keeper import RetentionKeeper
from services.usage.retention.retention_store import Retention
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
        self,
        stores: tuple[Store, ReportStore],
        intake: Intake,
        operator_token: Secret,
        metrics: Metrics,
    ) -> None:
        self._store, self._reports = stores
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
        selection = queries.selection_of(request.filter)
        count = queries.page_size_of(request.page_size)
        after = queries.cursor_of(request.page_token, selection)
        # One more than the page holds says whether there is another.
        found = await self._store.list_records(selection, after=after, count_max=count + 1)
        page = found[:count]
        token = ""
        if len(found) > count:
            last = queries.Cursor(
                started_at_us=page[-1].started_at.ToMicroseconds(), attempt_id=page[-1].attempt_id
            )
            token = queries.cursor_token(last, selection)
        return usage_service_pb2.ListUsageResponse(records=page, next_page_token=token)

    async def SummarizeUsage(
        self, request: usage_service_pb2.SummarizeUsageRequest, context: Context
    ) -> usage_service_pb2.SummarizeUsageResponse:
        """Sums by group, dearest first."""
        require_operator(context, self._operator_token.reveal())
        groups = columns_of(request.group_by, request.tag)
        question = question_of(queries.selection_of(request.filter), groups, request.tag)
        found = await self._reports.totals(question, rows_max=queries.ROWS_MAX, dearest_first=True)
        return usage_service_pb2.SummarizeUsageResponse(
            rows=[queries.summary(total.group, total.sums) for total in found]
        )


def _invalid(param: str, what: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, f"`{param}` {what}.", param=param)


class _Books:
    """The ledger with everything around it: holds, budgets, and what looks after them."""

    def __init__(
        self, database: Database, metrics: Metrics, clock: Clock, failpoints: Failpoints
    ) -> None:
        self._database = database
        ledger = LedgerStore(shared_clock(clock), shared_clock_sql)
        self._agreements = AgreementStore(database, ledger.now_us)
        self.charger = Postings(Charger(ledger), self._agreements)
        self._billing = (
            self._agreements,
            CreditStore(database, ledger.now_us),
            RerateStore(database, ledger, self._agreements),
        )
        self._holds = HoldStore(database, ledger, failpoints)
        self._holders = HolderStore(database, ledger, self._holds)
        self._budgets = BudgetStore(database, ledger)
        self._check = LedgerCheck(database, ledger)
        self._invoices = InvoiceStore(database, ledger.now_us)
        self._bills = ReconcileStore(database)
        self._board = BudgetBoard(clock)
        self._clock = clock
        self._ids = BudgetIds(clock, SystemEntropy())
        stores = (self._budgets, self._holders, self._check)
        self.keeper = LedgerKeeper(stores, self._board, clock, metrics)
        self._metrics = metrics
        self._answers = IdempotencyStore(database, shared_clock(clock))
        self.answers = IdempotencyService(self._answers, clock, metrics)
        self._hold_service: HoldService | None = None
        self._cooldowns = CooldownStore(database, shared_clock(clock))
        self.cooldowns = CooldownService(self._cooldowns, self._board, clock)

    async def start(self, clock: Clock) -> None:
        """Brings the schema up to date and takes in what is kept. Raises STORE_UNAVAILABLE."""
        await self._database.migrate("usage_ledger", ledger_schema.MIGRATIONS, now=clock.now())
        await self._database.migrate(
            "usage_idempotency", idempotency_store.MIGRATIONS, now=clock.now()
        )
        await self._answers.spare(SPARE_US)
        await self._agreements.migrate(now=clock.now())
        await self._invoices.migrate(now=clock.now())
        await self._bills.migrate(now=clock.now())
        await self._cooldowns.migrate(now=clock.now())
        await self.cooldowns.start()
        await self.keeper.start()

    def serve(self, server: RpcServer, operator_token: Secret, board: Board) -> None:
        """Adds the services; ``board`` says what models cost at any time."""
        server.add(
            billing_service_pb2_grpc.add_BillingServiceServicer_to_server,
            BillingService(self._billing, board.between, operator_token),
        )
        self._hold_service = HoldService(
            (self._holds, self._holders), operator_token, self._metrics, self.keeper.wake
        )
        server.add(hold_service_pb2_grpc.add_HoldServiceServicer_to_server, self._hold_service)
        server.add(
            budget_service_pb2_grpc.add_BudgetServiceServicer_to_server,
            BudgetService(
                self._budgets, self._board, Gate(operator_token, SPENDING, self._clock), self._ids
            ),
        )
        server.add(
            ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server,
            LedgerService(self._check, operator_token),
        )
        server.add(
            idempotency_service_pb2_grpc.add_IdempotencyServiceServicer_to_server, self.answers
        )
        server.add(cooldown_service_pb2_grpc.add_CooldownServiceServicer_to_server, self.cooldowns)
        server.add(
            invoice_service_pb2_grpc.add_InvoiceServiceServicer_to_server,
            InvoiceService(self._invoices, operator_token),
        )
        server.add(
            reconcile_service_pb2_grpc.add_ReconcileServiceServicer_to_server,
            ReconcileService(self._bills, operator_token, (self._clock, SystemEntropy())),
        )

    async def close(self) -> None:
        """Waits for what is being placed."""
        if self._hold_service is not None:
            await self._hold_service.close()


class _Sums:
    """What records become: sums, reports, a word to whom spends too fast, and in the end room for
    others.
    """

    def __init__(self, database: Database, settings: Settings, clock: Clock) -> None:
        self.reports = ReportStore(database)
        # Adding up a busy day takes longer than anybody who waits may wait.
        self._database = database
        self._patient = open_patient(settings.usage, database)
        self._rollups = Rollups(self._patient)
        self._retention = Retention(database, settings.usage.records_days)
        rates = RateStore(database, shared_clock(clock))
        self._watch = RateWatch(rates, settings.alerts, clock)
        self._clock = clock

    async def start(self) -> None:
        """Makes room for what comes. Raises STORE_UNAVAILABLE."""
        await self._retention.prepare(unix_micros(self._clock.now()))

    def serve(self, server: RpcServer, operator_token: Secret) -> None:
        """Adds the services."""
        server.add(
            report_service_pb2_grpc.add_ReportServiceServicer_to_server,
            ReportService(self.reports, Gate(operator_token, REPORTS, self._clock), self._clock),
        )

    async def close(self) -> None:
        """Lets go of its own connections."""
        if self._patient is not self._database:
            await self._patient.close()

    def keepers(self) -> list[Coroutine[Any, Any, None]]:
        """What runs beside the services, until it is cancelled."""
        return [
            RollupKeeper(self._rollups, self._clock).run(),
            RetentionKeeper(self._retention, self._clock).run(),
            self._watch.run(),
        ]


class _Priced:
    """What models cost: the catalogue, and what operators set."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.board = Board(seed.catalogue(), shipped_facts(), clock)
        self._stores = (SqlPriceStore(database), SqlCatalogueStore(database))
        self.prices = OperatorPrices(self._stores[0], self.board, clock)
        self.catalogues = Catalogues(self._stores[1], self.board, clock)

    async def migrate(self, *, now: datetime) -> None:
        """Brings the schemas up to date. Raises STORE_UNAVAILABLE."""
        for store in self._stores:
            await store.migrate(now=now)

    async def refresh(self) -> None:
        """Takes in what is kept. Raises STORE_UNAVAILABLE."""
        await self.prices.refresh()
        await self.catalogues.refresh()

    def serve(self, server: RpcServer, operator_token: Secret) -> None:
        """Adds the services."""
        server.add(
            price_service_pb2_grpc.add_PriceServiceServicer_to_server,
            PriceService(self.board, self.prices, operator_token),
        )
        server.add(
            catalogue_service_pb2_grpc.add_CatalogueServiceServicer_to_server,
            CatalogueService(self.catalogues, operator_token),
        )


async def run(settings: Settings, *, stop: asyncio.Event, ready: Callable[[], None]) -> None:
    """Serves until ``stop`` is set."""
    clock = SystemClock()
    secrets = FileSecrets(SystemEntropy())
    operator_token = secrets.read_or_make(settings.rpc.operator_token_file)
    ways = ways_of(settings.alerts, secrets)
    metrics = Metrics("usage")
    async with AsyncExitStack() as cleanup:
        failpoints = configured(settings)
        database = open_configured(settings.usage)
        books = _Books(database, metrics, clock, failpoints)
        outbox = AlertStore(database, shared_clock(clock))
        store = SqlStore(database, books.charger, failpoints)
        sums = _Sums(database, settings, clock)
        cleanup.push_async_callback(sums.close)
        cleanup.push_async_callback(store.close)
        priced = _Priced(database, clock)

        async def prepare() -> bool:
            await store.migrate(now=clock.now())
            await priced.migrate(now=clock.now())
            await books.start(clock)
            await outbox.migrate(now=clock.now())
            await priced.refresh()
            await sums.start()
            return True

        if not await when_available(prepare, clock, stop):
            return
        await priced.board.extend()
        intake = Intake(store, clock, failpoints)
        cleanup.push_async_callback(intake.close)
        if settings.telemetry.metrics_address:
            page = await serve_metrics(settings.telemetry.metrics_address, metrics)
            cleanup.push_async_callback(page.close)
        server = RpcServer(settings.rpc, "usage")
        service = UsageService((store, sums.reports), intake, operator_token, metrics)
        server.add(usage_service_pb2_grpc.add_UsageServiceServicer_to_server, service)
        priced.serve(server, operator_token)
        sums.serve(server, operator_token)
        books.serve(server, operator_token, priced.board)
        chance = (clock, SystemEntropy())
        server.add(
            alert_service_pb2_grpc.add_AlertServiceServicer_to_server,
            AlertService(outbox, ways, operator_token, chance),
        )
        cleanup.push_async_callback(books.close)
        await server.start(settings.usage.listen)
        cleanup.push_async_callback(server.stop, STOP_GRACE_S)
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(priced.board.run()),
                tasks.create_task(priced.prices.run()),
                tasks.create_task(priced.catalogues.run()),
                tasks.create_task(books.keeper.run()),
                tasks.create_task(AlertSender(outbox, ways, *chance).run()),
                tasks.create_task(books.answers.run()),
                tasks.create_task(books.cooldowns.run()),
                *(tasks.create_task(one) for one in sums.keepers()),
                tasks.create_task(follow_store(server, priced.prices.age_s, clock)),
            ]
            ready()
            await stop.wait()
            for task in running:
                task.cancel()
