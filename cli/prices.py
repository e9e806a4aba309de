"""``onegate prices``: what operators set. Listing is in :mod:`cli.usage`, which shares its door.

A price is set for a model at a kind of vendor, by its own name there (``openai/gpt-4o``), and holds
at once in every router. Nothing is overwritten: ``history`` shows all that was ever set, ``reset``
goes back to the prices that ship with the gateway.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.markup import escape

from cli import agreements
from cli.context import CliContext, fail
from cli.keys_view import console
from cli.prices_file import PriceFileError, nano_per_million, rate_of, sheets_of
from cli.prices_view import Difference, print_changes, print_differences, print_sheet
from cli.usage import OutputOption, Usage, price_sheets, run_with_usage
from cli.usage_view import Output, print_prices
from onegate.usage.v1 import price_pb2, price_service_pb2
from onegate.usage.v1.price_pb2 import PriceSheet
from runtime.clock import SystemClock
from runtime.patterns import matches
from services.usage.prices import litellm

app = agreements.app

FILE_BYTES_MAX: Final = 64 * 1024 * 1024
_PAGE_SIZE: Final = 1_000

Usd = Annotated[str, typer.Option(metavar="USD", help="USD for a million tokens.")]
LitellmOption = Annotated[
    Path | None,
    typer.Option("--litellm", help="A file in the format of LiteLLM's model_prices….json."),
]
FileOption = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="A file of our own format: .toml or .json, every meter."),
]
RatesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rate",
        metavar="METER[,above=N][,tier=T][,size=S][,quality=Q][,mode=M]=USD",
        help="Any meter: USD for a million tokens, or for one image, second, page …; repeatable.",
    ),
]
ModelsOption = Annotated[
    str, typer.Option("--models", help="Only models that match, such as 'mistral/*'.")
]
NewOption = Annotated[bool, typer.Option("--new-only", help="Only models without a price so far.")]
ModelArgument = Annotated[str, typer.Argument(help="kind/name, or provider/name as configured.")]


@app.command("set")
def set_command(
    context: typer.Context,
    model: ModelArgument,
    source: Annotated[str, typer.Option(help="Where the price is from: a URL, a contract.")],
    input_usd: Annotated[str, typer.Option("--input", metavar="USD", help="For a million.")] = "",
    output_usd: Annotated[str, typer.Option("--output", metavar="USD", help="As --input.")] = "",
    cached: Usd = "",
    cache_write: Usd = "",
    cache_write_1h: Usd = "",
    reasoning: Usd = "",
    request: Annotated[str, typer.Option(metavar="USD", help="USD for one call.")] = "",
    rate: RatesOption = None,
    free: Annotated[bool, typer.Option("--free", help="Nothing is charged.")] = False,
    start: Annotated[
        str, typer.Option("--from", help="The day or time (UTC) from which it holds; default: now.")
    ] = "",
    show: Annotated[Output, typer.Option("--format", help="How to print it.")] = Output.TABLE,
) -> None:
    """Set what a model costs."""
    figures = {
        price_pb2.METER_INPUT_TOKENS: input_usd,
        price_pb2.METER_OUTPUT_TOKENS: output_usd,
        price_pb2.METER_CACHED_INPUT_TOKENS: cached,
        price_pb2.METER_CACHE_WRITE_TOKENS: cache_write,
        price_pb2.METER_CACHE_WRITE_1H_TOKENS: cache_write_1h,
        price_pb2.METER_REASONING_TOKENS: reasoning,
        price_pb2.METER_REQUESTS: request,
    }
    try:
        rates = [
            price_pb2.Rate(meter=meter, nano_usd_per_million=nano_per_million(meter, usd))
            for meter, usd in figures.items()
            if usd
        ]
        rates += map(rate_of, rate or ())
    except PriceFileError as error:
        raise typer.BadParameter(str(error)) from None
    sheet = PriceSheet(model=_price_name(context, model), rates=rates, source=source, free=free)
    if start:
        sheet.valid_from.FromDatetime(_moment(start))
    print_prices(_set(context, [sheet]) or [sheet], show)


@app.command("reset")
def reset_command(context: typer.Context, model: ModelArgument) -> None:
    """Go back to the price that ships with the gateway."""
    name = _price_name(context, model)

    async def work(usage: Usage) -> list[PriceSheet]:
        request = price_service_pb2.SetPricesRequest(withdrawn=[name])
        await usage.call(usage.prices.SetPrices, request)
        return await price_sheets(usage, name)

    sheets = run_with_usage(context, work)
    print_prices(sheets, Output.TABLE)
    if not sheets:
        console().print(f"{escape(name)} has no price now, and is refused.", style="dim")


@app.command("show")
def show_command(
    context: typer.Context, model: ModelArgument, output: OutputOption = Output.TABLE
) -> None:
    """Show every rate of one model: all meters, tiers, sizes and modes."""
    name = _price_name(context, model)
    sheets = run_with_usage(context, lambda usage: price_sheets(usage, name))
    if not sheets:
        fail(escape(f"No price is known for {name}."))
    if output is Output.TABLE:
        print_sheet(sheets[0])
    else:
        print_prices(sheets[:1], output)


@app.command("history")
def history_command(
    context: typer.Context,
    pattern: Annotated[str, typer.Argument(help="A model or a pattern; default: all.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List every price that was ever set here, newest first."""

    async def work(usage: Usage) -> list[price_service_pb2.PriceChange]:
        request = price_service_pb2.ListPriceChangesRequest(model=pattern, page_size=_PAGE_SIZE)
        found: list[price_service_pb2.PriceChange] = []
        while True:
            page: price_service_pb2.ListPriceChangesResponse = await usage.call(
                usage.prices.ListPriceChanges, request
            )
            found += page.changes
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    print_changes(run_with_usage(context, work), output)


@app.command("diff")
def diff_command(
    context: typer.Context,
    litellm_file: LitellmOption = None,
    file: FileOption = None,
    models: ModelsOption = "*",
    new_only: NewOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what an import would change; without a file, where the prices in force differ from
    those that ship with this version.
    """
    if file is None and litellm_file is None:
        print_differences(_since_shipped(context, models), output)
        return
    entries = _entries(litellm_file, file)
    print_differences(_differences(context, entries, models, new_only), output)


@app.command("import")
def import_command(
    context: typer.Context,
    litellm_file: LitellmOption = None,
    file: FileOption = None,
    models: ModelsOption = "*",
    new_only: NewOption = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Set prices from a file, after showing what changes."""
    differences = _differences(context, _entries(litellm_file, file), models, new_only)
    print_differences(differences, Output.TABLE)
    sheets = [one.sheet for one in differences if one.changes]
    if not sheets:
        return
    if not yes:
        typer.confirm(f"Set the prices of {len(sheets):,} models?", abort=True)
    kept = _set(context, sheets)
    console().print(f"{len(kept):,} prices were set.")


def _since_shipped(context: typer.Context, models: str) -> list[Difference]:
    """What is in force against what ships with this version, model by model."""
    catalogue = importlib.import_module("services.usage.prices.seed").catalogue()
    now = SystemClock().now()
    there = {one.model: one for one in run_with_usage(context, lambda u: price_sheets(u, models))}
    names = sorted({*there, *(name for name in catalogue.models if matches(models, name))})
    found = []
    for name in names:
        shipped = catalogue.prices(name, at=now, until=now)
        found.append(
            Difference(
                model=name,
                sheet=there.get(name, PriceSheet()),
                why_not="",
                before=shipped[0] if shipped else None,
            )
        )
    return [one for one in found if one.verdict != "same"]


def _set(context: typer.Context, sheets: Sequence[PriceSheet]) -> Sequence[PriceSheet]:
    """The sheets as they are kept."""

    async def work(usage: Usage) -> Sequence[PriceSheet]:
        request = price_service_pb2.SetPricesRequest(prices=sheets)
        answer: price_service_pb2.SetPricesResponse = await usage.call(
            usage.prices.SetPrices, request
        )
        return answer.prices

    return run_with_usage(context, work)


def _differences(
    context: typer.Context, entries: Sequence[litellm.Entry], models: str, new_only: bool
) -> list[Difference]:
    """What an import would do, model by model."""
    wanted = [entry for entry in entries if matches(models, entry.model)]

    async def work(usage: Usage) -> dict[str, PriceSheet]:
        known = {sheet.model: sheet for sheet in await price_sheets(usage, "")}
        for entry in wanted:
            if entry.model not in known and entry.sheet is not None:
                known.update((s.model, s) for s in await price_sheets(usage, entry.model))
        return known

    known = run_with_usage(context, work)
    found = [
        Difference(
            model=e.model,
            sheet=e.sheet or PriceSheet(),
            why_not=e.why_not,
            before=known.get(e.model),
        )
        for e in wanted
    ]
    return [one for one in found if one.before is None] if new_only else found


def _entries(litellm_file: Path | None, file: Path | None) -> list[litellm.Entry]:
    """The entries of the one file that is named. Ends the command when it is none."""
    if file is not None and litellm_file is None:
        try:
            sheets = sheets_of(_bytes(file), is_json=file.suffix.lower() == ".json")
        except PriceFileError as error:
            fail(escape(f"{file}: {error}"))
        return [litellm.Entry(model=sheet.model, sheet=sheet) for sheet in sheets]
    if litellm_file is None or file is not None:
        fail("Say which file: --file prices.toml, or --litellm model_prices.json.")
    return _read(litellm_file)


def _bytes(file: Path) -> bytes:
    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            fail(escape(f"{file} is longer than {FILE_BYTES_MAX:,} bytes"))
        return file.read_bytes()
    except OSError as error:
        fail(escape(f"{file} cannot be read: {error.strerror}"))


def _read(file: Path) -> list[litellm.Entry]:
    raw = _bytes(file)
    try:
        document: Any = json.loads(raw.decode(), parse_float=Decimal)
    except ValueError as error:
        fail(escape(f"{file} is no JSON: {error}"))
    if not isinstance(document, Mapping):
        fail(escape(f"{file} is not in LiteLLM's format: it must be one object, a member a model"))
    try:
        return list(litellm.entries(document, f"litellm:{file.name}"))
    except (TypeError, KeyError, ValueError, InvalidOperation) as error:
        fail(escape(f"{file} is not in LiteLLM's format: {error}"))


def _price_name(context: typer.Context, model: str) -> str:
    """``kind/name`` for a model that may be named by its configured provider."""
    cli: CliContext = context.obj
    kinds = {provider.name: provider.kind for provider in cli.load().providers}
    prefix, slash, name = model.partition("/")
    return f"{kinds.get(prefix, prefix)}{slash}{name}"


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time: write 2026-12-01 or 2026-12-01T12:30.", param_hint="--from"
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
