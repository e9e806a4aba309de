"""How commands reach the usage service, and ``onegate prices list``.

Talks to usage as the operator of this machine: the address and the operator token are those of
the gateway that ``onegate up`` runs on the same data directory.
"""

import asyncio
import enum
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

import typer
from rich.markup import escape

from cli.context import CliContext, fail
from cli.keys_view import console
from cli.usage_groups import Groups
from cli.usage_view import Output, print_prices
from onegate.common.v1 import error_pb2
from onegate.usage.v1 import (
    alert_service_pb2_grpc,
    billing_service_pb2_grpc,
    budget_service_pb2_grpc,
    catalogue_service_pb2_grpc,
    invoice_service_pb2_grpc,
    ledger_service_pb2_grpc,
    price_service_pb2,
    price_service_pb2_grpc,
    reconcile_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from onegate.usage.v1.price_pb2 import PriceSheet
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from onegate.usage.v1.usage_service_pb2 import UsageFilter, UsageSummary
from runtime.config import Settings
from runtime.errors import GatewayError
from runtime.rpc import OPERATOR_KEY, channel, unary
from runtime.secrets import Secret, SecretError, read_secret

TIMEOUT_S: Final = 30.0
"""How long usage may take for one answer, in seconds."""

_PAGE_SIZE: Final = 1_000
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DURATION: Final = re.compile(r"([1-9][0-9]{0,5})([smhdw])")

T = TypeVar("T")


class By(enum.StrEnum):
    """What sums are grouped by."""

    MODEL = "model"
    KEY = "key"
    PROJECT = "project"
    PROVIDER = "provider"
    DAY = "day"
    FEATURE = "feature"
    CUSTOMER = "customer"


prices_app = typer.Typer(no_args_is_help=True, help="Show and set what models cost.")

OutputOption = Annotated[
    Output,
    typer.Option("--output", "-o", help="A table for people; JSON or CSV for programs."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Usage, as the operator calls it."""

    usage: usage_service_pb2_grpc.UsageServiceStub
    prices: price_service_pb2_grpc.PriceServiceStub
    budgets: budget_service_pb2_grpc.BudgetServiceStub
    ledger: ledger_service_pb2_grpc.LedgerServiceStub
    alerts: alert_service_pb2_grpc.AlertServiceStub
    invoices: invoice_service_pb2_grpc.InvoiceServiceStub
    bills: reconcile_service_pb2_grpc.ReconcileServiceStub
    catalogue: catalogue_service_pb2_grpc.CatalogueServiceStub
    billing: billing_service_pb2_grpc.BillingServiceStub
    operator_token: Secret

    async def call(self, method: Any, request: Any) -> Any:
        """One answer. Raises ``GatewayError``."""
        return await unary(
            method,
            request,
            timeout_s=TIMEOUT_S,
            metadata=((OPERATOR_KEY, self.operator_token.reveal()),),
            away=error_pb2.ERROR_REASON_BUDGET_UNAVAILABLE,
        )


@prices_app.command("list")
def prices_list_command(
    context: typer.Context,
    pattern: Annotated[
        str, typer.Argument(help="A model or a pattern such as 'anthropic/*'; default: all.")
    ] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List the prices in force, by model."""
    sheets = run_with_usage(context, lambda usage: price_sheets(usage, pattern))
    print_prices(sheets, output)
    if output is Output.TABLE and not sheets:
        console().print(
            "No price is known for that. Models are kind/name, such as 'openai/gpt-4o*'.",
            style="dim",
        )


def run_with_usage(context: typer.Context, work: Callable[[Usage], Awaitable[T]]) -> T:
    """Does the work with usage; a failure ends the command with one line."""
    cli: CliContext = context.obj
    settings = cli.load()
    try:
        return asyncio.run(_with_usage(settings, work))
    except SecretError as error:
        fail(escape(f"{error} The gateway makes it when it starts: run `onegate up` first."))
    except GatewayError as error:
        _refused(settings, error)


async def _with_usage(settings: Settings, work: Callable[[Usage], Awaitable[T]]) -> T:
    token = read_secret(Path(settings.rpc.operator_token_file))
    async with channel(settings.edge.usage, settings.rpc) as line:
        usage = Usage(
            usage=usage_service_pb2_grpc.UsageServiceStub(line),
            prices=price_service_pb2_grpc.PriceServiceStub(line),
            budgets=budget_service_pb2_grpc.BudgetServiceStub(line),
            ledger=ledger_service_pb2_grpc.LedgerServiceStub(line),
            alerts=alert_service_pb2_grpc.AlertServiceStub(line),
            invoices=invoice_service_pb2_grpc.InvoiceServiceStub(line),
            bills=reconcile_service_pb2_grpc.ReconcileServiceStub(line),
            catalogue=catalogue_service_pb2_grpc.CatalogueServiceStub(line),
            billing=billing_service_pb2_grpc.BillingServiceStub(line),
            operator_token=token,
        )
        return await work(usage)


def _refused(settings: Settings, error: GatewayError) -> NoReturn:
    if error.reason == error_pb2.ERROR_REASON_BUDGET_UNAVAILABLE:
        fail(escape(f"usage does not answer at {settings.edge.usage}: is `onegate up` running?"))
    if error.reason == error_pb2.ERROR_REASON_DEADLINE_EXCEEDED:
        fail(escape(f"usage at {settings.edge.usage} took more than {TIMEOUT_S:.0f} s to answer"))
    fail(escape(error.message))


async def records(usage: Usage, wanted: UsageFilter, limit: int) -> list[UsageRecord]:
    """The latest records, page by page."""
    request = usage_service_pb2.ListUsageRequest(filter=wanted)
    found: list[UsageRecord] = []
    while len(found) < limit:
        request.page_size = min(limit - len(found), _PAGE_SIZE)
        page: usage_service_pb2.ListUsageResponse = await usage.call(usage.usage.ListUsage, request)
        found += page.records
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    return found


async def summaries(usage: Usage, wanted: UsageFilter, groups: Groups) -> list[UsageSummary]:
    """Sums, dearest first."""
    request = usage_service_pb2.SummarizeUsageRequest(
        filter=wanted, group_by=groups.dimensions, tag=groups.tag
    )
    answer: usage_service_pb2.SummarizeUsageResponse = await usage.call(
        usage.usage.SummarizeUsage, request
    )
    return list(answer.rows)


async def price_sheets(usage: Usage, pattern: str) -> list[PriceSheet]:
    """The sheets of every model that matches; of one name also when it is not a listed one."""
    request = price_service_pb2.ListPricesRequest(model=pattern, page_size=_PAGE_SIZE)
    found: list[PriceSheet] = []
    while True:
        page: price_service_pb2.ListPricesResponse = await usage.call(
            usage.prices.ListPrices, request
        )
        found += page.prices
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    if not found and pattern and "*" not in pattern:
        one = price_service_pb2.GetPriceRequest(model=pattern)
        answer: price_service_pb2.GetPriceResponse = await usage.call(usage.prices.GetPrice, one)
        found += answer.prices[:1]
    return found


def moment(text: str, now: datetime, option: str) -> datetime:
    """``24h`` before ``now``, or a date or time as it is written, in UTC unless it says otherwise.
    Ends the command when it is neither.
    """
    try:
        if duration := _DURATION.fullmatch(text):
            return now - timedelta(seconds=int(duration[1]) * _UNITS_S[duration[2]])
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is no time: write 24h, 7d, 2026-11-01 or 2026-11-01T12:30.",
            param_hint=option,
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
