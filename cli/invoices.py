"""``onegate invoice``: drafts, issues, credits and prints invoices."""

import enum
import json
import re
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table

from cli import invoice_file
from cli.budgets import nano_usd, only_organization
from cli.context import CliContext, fail
from cli.invoice_file import InvoiceFile
from cli.keys_view import console, print_json
from cli.usage import By, Usage, moment, run_with_usage
from onegate.usage.v1 import invoice_pb2, usage_service_pb2
from onegate.usage.v1 import invoice_service_pb2 as pb
from onegate.usage.v1.invoice_pb2 import Invoice, InvoiceCredit, InvoiceScope, InvoiceTerms
from runtime.clock import SystemClock, SystemEntropy, uuid7
from services.usage.invoices import documents, invoice_html, invoice_page, invoice_pdf

_MONTH: Final = re.compile(r"(\d{4})-(\d{2})", re.ASCII)
_PAGE_SIZE: Final = 1_000


class Format(enum.StrEnum):
    """What an invoice is written as."""

    PDF = "pdf"
    HTML = "html"
    JSON = "json"


app = typer.Typer(no_args_is_help=True, help="Draft, issue, credit and print invoices.")

OrganizationOption = Annotated[str, typer.Option("--org", help="The organisation's id.")]
ProjectOption = Annotated[str, typer.Option(help="Only calls of this project (its id).")]
CustomerOption = Annotated[str, typer.Option(help="Only calls for this customer.")]
MonthOption = Annotated[str, typer.Option(help="The calendar month (UTC), as 2026-10.")]
FromOption = Annotated[str, typer.Option("--from", help="Calls from then on: 2026-10-01.")]
BeforeOption = Annotated[str, typer.Option(help="Calls before then: 2026-11-01.")]
ByOption = Annotated[By, typer.Option(help="What a line is.")]
MarginOption = Annotated[str, typer.Option(help="Percent that are added to the usage.")]
CreditOption = Annotated[
    list[str] | None, typer.Option(help="Taken off, as 'Goodwill=25.00' (USD); repeatable.")
]
TaxOption = Annotated[str, typer.Option(help="The tax in percent.")]
CurrencyOption = Annotated[str, typer.Option(help="ISO 4217; default: the file's, else USD.")]
RateOption = Annotated[str, typer.Option(help="How much of the currency one USD is.")]
RateSourceOption = Annotated[str, typer.Option(help="Where the rate is from, and of which day.")]
FileOption = Annotated[
    Path | None, typer.Option("--file", help="Who sends and who pays; default: invoice.file.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="The document as JSON.")]
IssuerOption = Annotated[str, typer.Option(help="Who counts the numbers.")]
RequestOption = Annotated[
    str, typer.Option(help="Names this wish: with the same one again, the same document comes.")
]


@app.callback()
def invoice_command() -> None:
    """Draft, issue, credit and print invoices."""


@app.command("draft")
def draft_command(
    context: typer.Context,
    org: OrganizationOption = "",
    project: ProjectOption = "",
    customer: CustomerOption = "",
    month: MonthOption = "",
    from_: FromOption = "",
    before: BeforeOption = "",
    by: ByOption = By.MODEL,
    margin: MarginOption = "",
    credit: CreditOption = None,
    tax: TaxOption = "",
    currency: CurrencyOption = "",
    rate: RateOption = "",
    rate_source: RateSourceOption = "",
    file: FileOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write it there: .pdf, .html or .json.")
    ] = None,
    font: Annotated[
        Path | None, typer.Option(help="A further font for letters that the PDF lacks.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Show what an invoice would say; nothing is kept."""
    terms = _terms(context, _scope(context, (org, project, customer), (month, from_, before)), file)
    _take(terms, by, credit)
    _take_money(terms, (margin, tax), (currency, rate, rate_source))
    request = pb.DraftInvoiceRequest(terms=terms)

    async def work(usage: Usage) -> Invoice:
        answer: pb.DraftInvoiceResponse = await usage.call(usage.invoices.DraftInvoice, request)
        return answer.invoice

    made = run_with_usage(context, work)
    if out is not None:
        _write(made, out, _format_of(out), font)
    _show(made, json_)


@app.command("issue")
def issue_command(
    context: typer.Context,
    org: OrganizationOption = "",
    project: ProjectOption = "",
    customer: CustomerOption = "",
    month: MonthOption = "",
    from_: FromOption = "",
    before: BeforeOption = "",
    by: ByOption = By.MODEL,
    margin: MarginOption = "",
    credit: CreditOption = None,
    tax: TaxOption = "",
    currency: CurrencyOption = "",
    rate: RateOption = "",
    rate_source: RateSourceOption = "",
    file: FileOption = None,
    request_id: RequestOption = "",
    json_: JsonOption = False,
) -> None:
    """Number and freeze an invoice."""
    terms = _terms(context, _scope(context, (org, project, customer), (month, from_, before)), file)
    _take(terms, by, credit)
    _take_money(terms, (margin, tax), (currency, rate, rate_source))
    request = pb.IssueInvoiceRequest(terms=terms, request_id=request_id or _new_id())

    async def work(usage: Usage) -> Invoice:
        answer: pb.IssueInvoiceResponse = await usage.call(usage.invoices.IssueInvoice, request)
        return answer.invoice

    _show(run_with_usage(context, work), json_)


@app.command("credit")
def credit_command(
    context: typer.Context,
    number: Annotated[str, typer.Argument(help="The invoice's number.")],
    reason: Annotated[str, typer.Option(help="Why; it is on the credit note.")],
    amount: Annotated[
        str, typer.Option(help="The net amount, in the invoice's currency; default: all of it.")
    ] = "",
    issuer: IssuerOption = "",
    prefix: Annotated[str, typer.Option(help="What its number begins with.")] = "",
    request_id: RequestOption = "",
    json_: JsonOption = False,
) -> None:
    """Correct an invoice: number and freeze a credit note for all or a part of it."""
    request = pb.CreditInvoiceRequest(
        issuer=issuer,
        number=number,
        reason=reason,
        net_amount=amount,
        number_prefix=prefix,
        request_id=request_id or _new_id(),
    )

    async def work(usage: Usage) -> Invoice:
        answer: pb.CreditInvoiceResponse = await usage.call(usage.invoices.CreditInvoice, request)
        return answer.credit_note

    _show(run_with_usage(context, work), json_)


@app.command("list")
def list_command(
    context: typer.Context,
    org: OrganizationOption = "",
    issuer: Annotated[str, typer.Option(help="Only of this one.")] = "",
    json_: JsonOption = False,
) -> None:
    """List invoices and credit notes, newest first."""

    async def work(usage: Usage) -> list[Invoice]:
        request = pb.ListInvoicesRequest(issuer=issuer, organization_id=org, page_size=_PAGE_SIZE)
        found: list[Invoice] = []
        while True:
            page: pb.ListInvoicesResponse = await usage.call(usage.invoices.ListInvoices, request)
            found += page.invoices
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    found = run_with_usage(context, work)
    if json_:
        print_json([_fields(one) for one in found])
        return
    table = Table("number", "issued", "whose", "total", "state")
    for one in found:
        fields = _fields(one)
        table.add_row(
            *map(
                escape,
                (one.number, fields["issued_at"][:10], _whose(one), _total(one), _state(one)),
            )
        )
    console().print(table)


@app.command("show")
def show_command(
    context: typer.Context,
    number: Annotated[str, typer.Argument(help="Its number.")],
    issuer: IssuerOption = "",
    json_: JsonOption = False,
) -> None:
    """Show an invoice or a credit note."""
    _show(_get(context, number, issuer), json_)


@app.command("export")
def export_command(
    context: typer.Context,
    number: Annotated[str, typer.Argument(help="Its number.")],
    out: Annotated[Path | None, typer.Option(help="Where to; default: NUMBER.FORMAT here.")] = None,
    format_: Annotated[Format | None, typer.Option("--format", help="Default: pdf.")] = None,
    issuer: IssuerOption = "",
    font: Annotated[
        Path | None, typer.Option(help="A further font for letters that the PDF lacks.")
    ] = None,
) -> None:
    """Write an invoice or a credit note as PDF, HTML or JSON."""
    found = _get(context, number, issuer)
    chosen = format_ or (_format_of(out) if out else Format.PDF)
    path = out or Path(f"{found.number.replace('/', '-')}.{chosen.value}")
    _write(found, path, chosen, font)
    console().print(escape(f"{found.number} is in {path}."))


def _get(context: typer.Context, number: str, issuer: str) -> Invoice:
    request = pb.GetInvoiceRequest(issuer=issuer, number=number)

    async def work(usage: Usage) -> Invoice:
        answer: pb.GetInvoiceResponse = await usage.call(usage.invoices.GetInvoice, request)
        return answer.invoice

    return run_with_usage(context, work)


def _scope(
    context: typer.Context, whose: tuple[str, str, str], span: tuple[str, str, str]
) -> InvoiceScope:
    org, project, customer = whose
    month, start, before = span
    made = InvoiceScope(
        organization_id=org or only_organization(context), project_id=project, customer=customer
    )
    if bool(month) == bool(start and before) or bool(start) != bool(before):
        fail("Say which period: --month 2026-10, or --from and --before.")
    if month:
        found = _MONTH.fullmatch(month)
        if found is None or not 1 <= int(found[2]) <= 12 or not 1970 < int(found[1]) < 9999:
            fail(escape(f"{month} is no month: write 2026-10."))
        year, number = int(found[1]), int(found[2])
        first = datetime(year, number, 1, tzinfo=UTC)
        after = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    else:
        now = SystemClock().now()
        first, after = moment(start, now, "--from"), moment(before, now, "--before")
    made.started_from.FromDatetime(first)
    made.started_before.FromDatetime(after)
    return made


def _terms(context: typer.Context, scope: InvoiceScope, given: Path | None) -> InvoiceTerms:
    cli: CliContext = context.obj
    path = given or cli.load().invoice.file
    if not path:
        fail("Say who sends and who pays: --file invoice.toml, or invoice.file in onegate.toml.")
    file: InvoiceFile = invoice_file.read(Path(path))
    return file.usual(scope)


def _take(terms: InvoiceTerms, by: By, credits_given: list[str] | None) -> None:
    terms.lines_by = usage_service_pb2.UsageDimension.Value(f"USAGE_DIMENSION_{by.upper()}")
    for text in credits_given or ():
        description, separator, amount = text.rpartition("=")
        if not separator:
            fail(escape(f"{text} is no credit: write 'Goodwill=25.00'."))
        terms.credits.append(
            InvoiceCredit(description=description, amount_nano_usd=nano_usd(amount))
        )


def _take_money(
    terms: InvoiceTerms, percents: tuple[str, str], exchange: tuple[str, str, str]
) -> None:
    """What flags say wins over the file."""
    margin, tax = percents
    currency, rate, source = exchange
    terms.margin_percent = margin or terms.margin_percent
    terms.tax_percent = tax or terms.tax_percent
    terms.currency = currency or terms.currency
    terms.exchange_rate, terms.exchange_source = rate, source


def _new_id() -> str:
    return uuid7(int(SystemClock().now().timestamp() * 1000), SystemEntropy())


def _format_of(path: Path) -> Format:
    try:
        return Format(path.suffix.removeprefix(".").lower())
    except ValueError:
        fail(escape(f"{path} does not end in .pdf, .html or .json: say --format."))


def _write(made: Invoice, path: Path, format_: Format, font: Path | None) -> None:
    content: dict[str, Any] = json.loads(made.document)
    page = invoice_page.page(content, made.sha256)
    raw = made.document
    if format_ is Format.HTML:
        raw = invoice_html.html(page).encode()
    elif format_ is Format.PDF:
        try:
            printed = invoice_pdf.pdf(page, issued_at=content["issued_at"], further_font=font)
        except invoice_pdf.FontError as error:
            fail(escape(str(error)))
        raw = printed.pdf
        if printed.missing:
            console().print(
                escape(f"The font lacks {printed.missing!r}: name one that has it with --font."),
                style="yellow",
            )
    try:
        path.write_bytes(raw)
    except OSError as error:
        fail(escape(f"{path} cannot be written: {error.strerror}"))


def _show(made: Invoice, json_: bool) -> None:
    content: dict[str, Any] = json.loads(made.document)
    if json_:
        print_json({"sha256": made.sha256, "credited": made.credited, "document": content})
        return
    page = invoice_page.page(content, made.sha256)
    console().print(escape(f"{page.title} {page.number}"), style="bold")
    state = "credited in whole" if made.credited else ""
    for label, value in (("To", page.buyer.lines[0]), *page.facts, ("State", state)):
        if value:
            console().print(escape(f"{label}: {value}"))
    if page.rows:
        table = Table(page.headings[0])
        for heading in page.headings[1:]:
            table.add_column(heading, justify="right")
        for row in page.rows:
            table.add_row(*map(escape, row))
        console().print(table)
    for line in page.sums:
        style = "bold" if line.strong else ""
        detail = f" ({line.detail})" if line.detail else ""
        console().print(escape(f"{line.label}{detail}: {line.amount}"), style=style)


def _total(one: Invoice) -> str:
    amount = Decimal(one.total_minor).scaleb(-documents.places_of(one.currency))
    return f"{amount:,f} {one.currency}"


def _whose(one: Invoice) -> str:
    scope = one.scope
    return " ".join(filter(None, (scope.organization_id, scope.project_id, scope.customer)))


def _state(one: Invoice) -> str:
    if one.kind == invoice_pb2.INVOICE_KIND_CREDIT_NOTE:
        return f"corrects {one.credits_number}"
    return "credited" if one.credited else "stands"


def _fields(one: Invoice) -> dict[str, Any]:
    return {
        "number": one.number,
        "issuer": one.issuer,
        "kind": invoice_pb2.InvoiceKind.Name(one.kind)[13:].lower(),
        "issued_at": one.issued_at.ToJsonString(),
        **documents.scope_fields(one.scope),
        "currency": one.currency,
        "total": _total(one).split(" ")[0].replace(",", ""),
        "usage_nano_usd": one.usage_nano_usd,
        "credits_number": one.credits_number or None,
        "credited": one.credited,
        "sha256": one.sha256,
    }
