"""``onegate prices markup|rate|end|agreements|rerate``: what payers are charged, and what calls
cost after all.
"""

import enum
import sys
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cli.budgets import only_organization
from cli.context import fail
from cli.keys_view import console, print_json
from cli.prices_file import PriceFileError, nano_per_million, places, rate_of, unit_of, usd_of
from cli.usage import OutputOption, Usage, moment, prices_app, run_with_usage
from cli.usage_view import Output, print_csv, usd
from onegate.usage.v1 import billing_service_pb2 as pb
from onegate.usage.v1 import price_pb2
from onegate.usage.v1.billing_pb2 import Agreement, BillingPayer
from runtime.clock import SystemClock

app = prices_app

_PAGE_SIZE: Final = 1_000
_MILLI: Final = 1_000

OrgOption = Annotated[str, typer.Option("--org", help="The organisation's id; default: the one.")]
ProjectOption = Annotated[str, typer.Option(help="Only calls of this project (its id).")]
CustomerOption = Annotated[str, typer.Option(help="Only calls for this customer.")]
ModelOption = Annotated[str, typer.Option(help="A model (kind/name) or a pattern; default: all.")]
SourceOption = Annotated[str, typer.Option(help="Who agreed on it: a contract, a person.")]
SinceOption = Annotated[
    str, typer.Option("--from", help="For calls from this day or time (UTC) on; default: now.")
]


def payer_of(context: typer.Context, org: str, project: str, customer: str) -> BillingPayer:
    """Who pays."""
    organization = org or only_organization(context)
    return BillingPayer(organization_id=organization, project_id=project, customer=customer)


@app.command("markup")
def markup_command(
    context: typer.Context,
    percent: Annotated[str, typer.Argument(help="What is added to the cost: 12.5, or -5.")],
    source: SourceOption,
    org: OrgOption = "",
    project: ProjectOption = "",
    customer: CustomerOption = "",
    model: ModelOption = "",
    start: SinceOption = "",
) -> None:
    """Charge a payer so many percent more than calls cost (or less: write -- -5)."""
    try:
        thousandths = Decimal(percent) * _MILLI
        exact = int(thousandths)
    except (InvalidOperation, ValueError, OverflowError):
        raise typer.BadParameter(f"{percent!r} is no percentage: write 12.5") from None
    if exact != thousandths:
        raise typer.BadParameter(f"{percent!r} has more than three decimal places")
    payer = payer_of(context, org, project, customer)
    made = Agreement(payer=payer, model=model, source=source, markup_millipercent=exact)
    _set(context, made, start)


@app.command("rate")
def rate_command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model (kind/name) or a pattern.")],
    source: SourceOption,
    org: OrgOption = "",
    project: ProjectOption = "",
    customer: CustomerOption = "",
    input_usd: Annotated[str, typer.Option("--input", metavar="USD", help="A million.")] = "",
    output_usd: Annotated[str, typer.Option("--output", metavar="USD", help="As --input.")] = "",
    rate: Annotated[
        list[str] | None,
        typer.Option("--rate", metavar="METER[,…]=USD", help="As of `onegate prices set`."),
    ] = None,
    free: Annotated[bool, typer.Option("--free", help="Nothing is charged.")] = False,
    start: SinceOption = "",
) -> None:
    """Charge a payer an agreed price instead of what calls cost."""
    meters = {
        price_pb2.METER_INPUT_TOKENS: input_usd,
        price_pb2.METER_OUTPUT_TOKENS: output_usd,
    }
    sheet = price_pb2.PriceSheet(free=free)
    try:
        for meter, text in meters.items():
            if text:
                sheet.rates.add(meter=meter, nano_usd_per_million=nano_per_million(meter, text))
        sheet.rates.extend(map(rate_of, rate or ()))
    except PriceFileError as error:
        raise typer.BadParameter(str(error)) from None
    payer = payer_of(context, org, project, customer)
    _set(context, Agreement(payer=payer, model=model, source=source, price=sheet), start)


@app.command("end")
def end_command(
    context: typer.Context,
    source: SourceOption,
    org: OrgOption = "",
    project: ProjectOption = "",
    customer: CustomerOption = "",
    model: ModelOption = "",
    start: SinceOption = "",
) -> None:
    """End what was agreed on for a payer and a model or pattern, word for word."""
    payer = payer_of(context, org, project, customer)
    _set(context, Agreement(payer=payer, model=model, source=source), start)


@app.command("agreements")
def agreements_command(
    context: typer.Context,
    org: Annotated[str, typer.Option("--org", help="Only of this organisation.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List all that was ever agreed on, newest first."""

    async def work(usage: Usage) -> list[Agreement]:
        request = pb.ListAgreementsRequest(organization_id=org, page_size=_PAGE_SIZE)
        found: list[Agreement] = []
        while True:
            page: pb.ListAgreementsResponse = await usage.call(
                usage.billing.ListAgreements, request
            )
            found += page.agreements
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    _print([_fields(one) for one in run_with_usage(context, work)], output, _fields(Agreement()))


def _set(context: typer.Context, made: Agreement, start: str) -> None:
    if start:
        made.valid_from.FromDatetime(moment(start, SystemClock().now(), "--from"))

    async def work(usage: Usage) -> pb.SetAgreementResponse:
        request = pb.SetAgreementRequest(agreement=made)
        answer: pb.SetAgreementResponse = await usage.call(usage.billing.SetAgreement, request)
        return answer

    answer = run_with_usage(context, work)
    kept = answer.agreement
    what = _what(kept) if answer.is_new else "in force already"
    console().print(escape(f"{kept.id}: {_whose(kept)}, {kept.model}: {what}."))
    if kept.valid_from.ToDatetime(UTC) < kept.recorded_at.ToDatetime(UTC):
        console().print(
            "Calls that are recorded already keep what they were charged: `onegate prices rerate`"
            " changes that.",
            style="dim",
        )


def _whose(one: Agreement) -> str:
    payer = one.payer
    return " ".join(filter(None, (payer.organization_id, payer.project_id, payer.customer)))


def _what(one: Agreement) -> str:
    match one.WhichOneof("charge"):
        case "markup_millipercent":
            return f"{Decimal(one.markup_millipercent) / _MILLI:+f} %"
        case "price":
            rates = [
                f"{place} {usd_of(rate):f} for a {unit_of(rate)}"
                for place, rate in places(one.price).items()
            ]
            return "free" if one.price.free else ", ".join(rates)
        case _:
            return "ended"


def _fields(one: Agreement) -> dict[str, Any]:
    return {
        "id": one.id,
        "organization_id": one.payer.organization_id,
        "project_id": one.payer.project_id,
        "customer": one.payer.customer,
        "model": one.model,
        "charged": _what(one),
        "valid_from": one.valid_from.ToJsonString(),
        "recorded_at": one.recorded_at.ToJsonString(),
        "source": one.source,
    }


def _print(rows: list[dict[str, Any]], output: Output, blank: dict[str, Any]) -> None:
    if output is Output.JSON:
        print_json(rows)
    elif output is Output.CSV:
        print_csv(rows, list(blank))
    else:
        made = Table(box=None, pad_edge=False)
        for name in blank:
            made.add_column(name.replace("_", " "), no_wrap=True)
        for row in rows:
            made.add_row(*(Text(str(value)) for value in row.values()))
        console().print(made)


class _Stop(enum.Enum):
    """How a run ended."""

    DONE = enum.auto()
    INTERRUPTED = enum.auto()


@app.command("rerate")
def rerate_command(
    context: typer.Context,
    start: Annotated[str, typer.Option("--from", help="Calls from this day or time (UTC) on.")],
    to: Annotated[str, typer.Option("--to", help="Calls before then; default: now.")] = "",
    model: Annotated[
        str, typer.Option(help="Only of this model (provider/model) or pattern.")
    ] = "",
    project: ProjectOption = "",
    org: Annotated[str, typer.Option("--org", help="Only of this organisation.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what differs.")] = False,
    billed: Annotated[
        bool, typer.Option("--billed", help="Also calls on invoices that stand; see the docs.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Put right what calls cost and are charged, by the prices and agreements of now."""
    now = SystemClock().now()
    request = pb.RerateUsageRequest(
        organization_id=org, project_id=project, model=model, dry_run=dry_run, billed=billed
    )
    request.started_from.FromDatetime(moment(start, now, "--from"))
    request.started_before.FromDatetime(moment(to, now, "--to") if to else now)
    total = _Total()
    stop = _Stop.DONE
    try:
        if not (dry_run or billed):
            # Nothing is kept when some of it may not be.
            _look_first(context, request)
        run_with_usage(context, lambda usage: _rerate(usage, request, total))
    except KeyboardInterrupt:
        stop = _Stop.INTERRUPTED
    total.print(output, dry_run=dry_run)
    if stop is _Stop.INTERRUPTED:
        typer.echo("Interrupted. What was put right stays; the same command goes on.", err=True)
        raise typer.Exit(130)


def _look_first(context: typer.Context, request: pb.RerateUsageRequest) -> None:
    look = pb.RerateUsageRequest()
    look.CopyFrom(request)
    look.dry_run = True
    found = _Total()
    run_with_usage(context, lambda usage: _rerate(usage, look, found))
    if found.invoices:
        names = ", ".join(list(found.invoices)[:5])
        fail(
            escape(
                f"Calls that differ are on invoices that stand ({names}). Credit these in whole"
                " first, or add --billed: differences are then lines of the next invoices."
            )
        )


async def _rerate(usage: Usage, request: pb.RerateUsageRequest, total: "_Total") -> None:
    while True:
        told: pb.RerateUsageResponse = await usage.call(usage.billing.RerateUsage, request)
        total.add(told)
        if sys.stderr.isatty():
            at: datetime = told.reached.ToDatetime(UTC)
            typer.echo(f"\r{at:%Y-%m-%d %H:%M}  {total.calls:,} calls ", nl=False, err=True)
        request.page_token = told.next_page_token
        if not told.next_page_token:
            break
    if sys.stderr.isatty():
        typer.echo("", err=True)


class _Total:
    """What all batches say together."""

    def __init__(self) -> None:
        self.calls = self.left = self.unpriced = 0
        self.invoices: dict[str, None] = {}
        self._rows: dict[str, pb.RerateRow] = {}

    def add(self, told: pb.RerateUsageResponse) -> None:
        """Adds a batch."""
        self.calls += told.calls
        self.left += told.left
        self.unpriced += told.unpriced
        self.invoices.update(dict.fromkeys(told.invoices))
        for row in told.rows:
            kept = self._rows.setdefault(row.model, pb.RerateRow(model=row.model))
            for name in _ROW_SUMS:
                setattr(kept, name, getattr(kept, name) + getattr(row, name))

    def print(self, output: Output, *, dry_run: bool) -> None:
        """Shows it."""
        rows = [_row_fields(row) for row in self._rows.values()]
        counts = {"calls": self.calls, "left": self.left, "unpriced": self.unpriced}
        if output is Output.JSON:
            invoices = list(self.invoices)
            print_json({"dry_run": dry_run, **counts, "invoices": invoices, "models": rows})
            return
        _print(rows, output, _row_fields(pb.RerateRow()))
        if output is Output.CSV:
            return
        differ = sum(row.calls for row in self._rows.values())
        word = "would be" if dry_run else "were"
        console().print(
            f"{self.calls:,} calls, of which {differ:,} {word} put right. {self.left:,} cannot be"
            f" worked out and stay; {self.unpriced:,} have no price."
        )
        if self.invoices:
            names = ", ".join(list(self.invoices)[:5])
            console().print(escape(f"Some are on invoices that stand: {names}."), style="yellow")


_ROW_SUMS: Final = (
    "calls",
    "cost_before_nano_usd",
    "cost_after_nano_usd",
    "charge_before_nano_usd",
    "charge_after_nano_usd",
)


def _row_fields(row: pb.RerateRow) -> dict[str, Any]:
    return {
        "model": row.model,
        "calls": row.calls,
        **{
            name.removesuffix("_nano_usd") + "_usd": usd(getattr(row, name))
            for name in _ROW_SUMS[1:]
        },
    }
