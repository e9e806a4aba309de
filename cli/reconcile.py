"""``onegate reconcile``: compares what a provider bills with what the gateway recorded.

Matching runs in the usage service, which has the records; the files are read here.
"""

import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from itertools import islice
from pathlib import Path
from typing import Annotated, Final, TypeVar

import grpc
import typer
from rich.markup import escape

from cli.bill_files import Bill, FileError, examined, rows
from cli.bill_formats import COLUMNS, Figure
from cli.bill_rows import Row
from cli.context import fail
from cli.reconcile_view import Sink, print_results, sink_of
from cli.usage import OutputOption, Usage, moment, run_with_usage
from cli.usage_view import Output
from onegate.common.v1 import error_pb2
from onegate.usage.v1 import reconcile_service_pb2 as pb
from runtime.clock import SystemClock
from runtime.rpc import OPERATOR_KEY, from_rpc_error

WRONG: Final = 2
"""The exit code when nothing was compared; 1 says that there are differences."""
TIMEOUT_S: Final = 3_600.0
"""How long a comparison may take, in seconds."""

_LINES_AT_ONCE: Final = 1_000
_FIGURES: Final = {
    Figure.INPUT: pb.BILL_FIGURE_INPUT_TOKENS,
    Figure.CACHED: pb.BILL_FIGURE_CACHED_INPUT_TOKENS,
    Figure.OUTPUT: pb.BILL_FIGURE_OUTPUT_TOKENS,
    Figure.COST: pb.BILL_FIGURE_COST,
}

T = TypeVar("T")

reconcile_app = typer.Typer()


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What the bill calls models and payers, and what the gateway does."""

    models: Mapping[str, str]
    credentials: Mapping[str, str]

    def credential(self, row: Row) -> str:
        """Which credential a line is about; as the provider calls it where nobody says more."""
        known = (self.credentials[one] for one in row.owners if one in self.credentials)
        return next(known, row.owners[0] if row.owners else "")


@reconcile_app.command(context_settings={"help_option_names": ["-h", "--help"]})
def reconcile_command(
    context: typer.Context,
    files: Annotated[
        list[Path] | None, typer.Argument(help="A provider's exports, CSV or JSON: one bill.")
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            help="The configured provider whose bill it is; repeatable. Default: by format."
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="Where the bill says what, such as id=generation_id; of "
            + ", ".join(COLUMNS)
            + ". Repeatable."
        ),
    ] = None,
    credential: Annotated[
        list[str] | None,
        typer.Option(help="THEIRS=OURS: their API key, project or workspace; our credential."),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="THEIRS=OURS: what the bill calls a model.")
    ] = None,
    exact_models: Annotated[
        bool, typer.Option("--exact-models", help="Tell dated names of models apart.")
    ] = False,
    since: Annotated[str, typer.Option(help="From then on; default: what the bill says.")] = "",
    until: Annotated[str, typer.Option(help="Until then; default: what the bill says.")] = "",
    tolerance: Annotated[
        str, typer.Option(help="By how many USD the cost of a line may differ.")
    ] = "0",
    tolerance_tokens: Annotated[
        int, typer.Option(min=0, help="By how many tokens its counts may.")
    ] = 0,
    limit: Annotated[int, typer.Option(min=1, help="How many differences the table shows.")] = 50,
    history: Annotated[bool, typer.Option("--list", help="Show earlier comparisons.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Compare a provider's bill with the records: exit 0 when they agree, 1 when they differ."""
    if history:
        print_results(_or_wrong(lambda: run_with_usage(context, _results)), output)
        return
    if not files:
        raise typer.BadParameter("name the files of a bill, or --list", param_hint="FILES")
    names = Names(
        models=_pairs(model, "--model", "THEIRS=OURS"),
        credentials=_pairs(credential, "--credential", "THEIRS=OURS"),
    )
    columns = _pairs(column, "--column", "PART=COLUMN")
    if not COLUMNS.keys() >= columns.keys():
        raise typer.BadParameter(f"a part is one of {', '.join(COLUMNS)}", param_hint="--column")
    try:
        bill = examined(files, columns)
        head = _head(bill, files, names, provider or sorted(bill.providers))
        head.models_exact = exact_models
        head.tolerance_usd, head.tolerance_tokens = _amount(tolerance), tolerance_tokens
        _set_span(head, bill, (since, until))
        sink = sink_of(output, limit)
        lines = _lines(rows(files, columns), names, by_credential=head.by_credential)
        result = _or_wrong(
            lambda: run_with_usage(context, lambda usage: _compare(usage, head, lines, sink))
        )
    except FileError as error:
        fail(escape(str(error)), WRONG)
    sink.end(result)
    if result.only_theirs or result.only_ours or result.tokens_differ or result.costs_differ:
        raise typer.Exit(1)


def _or_wrong(work: Callable[[], T]) -> T:
    """The work; a failure of it is no difference."""
    try:
        return work()
    except typer.Exit:
        raise typer.Exit(WRONG) from None


def _pairs(given: Sequence[str] | None, option: str, form: str) -> dict[str, str]:
    found = {}
    for text in given or ():
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise typer.BadParameter(f"{text!r} is not {form}", param_hint=option)
        found[name] = value
    return found


def _amount(text: str) -> str:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal(-1)
    if not 0 <= amount < 10**12:
        raise typer.BadParameter(f"{text!r} is no amount in USD", param_hint="--tolerance")
    return format(amount, "f")


def _head(bill: Bill, files: Sequence[Path], names: Names, providers: Sequence[str]) -> pb.BillHead:
    return pb.BillHead(
        digest=bill.digest,
        name=" ".join(path.name for path in files)[:500],
        match=pb.BILL_MATCH_REQUEST if bill.by_request else pb.BILL_MATCH_BUCKET,
        figures=[_FIGURES[figure] for figure in Figure if figure in bill.figures],
        providers=providers,
        by_model=bill.has_models,
        by_credential=bool(names.credentials),
    )


def _set_span(head: pb.BillHead, bill: Bill, asked: tuple[str, str]) -> None:
    now = SystemClock().now()
    since, until = asked
    if since:
        head.started_from.FromDatetime(_moment(since, now, "--since"))
    elif bill.from_us is not None:
        head.started_from.FromMicroseconds(bill.from_us)
    if until:
        head.started_before.FromDatetime(_moment(until, now, "--until"))
    elif bill.before_us is not None:
        head.started_before.FromMicroseconds(bill.before_us)
    if not (head.HasField("started_from") and head.HasField("started_before")):
        raise FileError("no line says when: name the time that the bill is of, --since and --until")
    if head.started_from.ToMicroseconds() >= head.started_before.ToMicroseconds():
        raise FileError("the time that the bill is of ends before it begins")


def _moment(text: str, now: datetime, option: str) -> datetime:
    return moment(text, now, option)


def _lines(found: Iterator[Row], names: Names, *, by_credential: bool) -> Iterator[pb.BillLine]:
    for row in found:
        line = pb.BillLine(
            request_id=row.request_id,
            model=names.models.get(row.model, row.model),
            credential=names.credential(row) if by_credential else "",
            figures=pb.BillFigures(
                input_tokens=row.input_tokens,
                cached_input_tokens=row.cached_input_tokens,
                output_tokens=row.output_tokens,
                cost_usd=format(row.cost_usd, "f"),
            ),
        )
        if row.from_us is not None:
            line.started_at.FromMicroseconds(row.from_us)
        yield line


async def _compare(
    usage: Usage, head: pb.BillHead, lines: Iterator[pb.BillLine], sink: Sink
) -> pb.Reconciliation:
    """Sends a bill and takes what comes. Raises ``GatewayError`` and ``FileError``."""
    broken: list[FileError] = []
    metadata = ((OPERATOR_KEY, usage.operator_token.reveal()),)
    call = usage.bills.Reconcile(
        _requests(head, lines, broken), timeout=TIMEOUT_S, metadata=metadata
    )
    result = None
    try:
        async for answer in call:
            sink.add(answer.differences)
            if answer.HasField("result"):
                result = answer.result
    except grpc.aio.AioRpcError as error:
        away = error_pb2.ERROR_REASON_BUDGET_UNAVAILABLE
        raise from_rpc_error(error, away=away) from error
    finally:
        call.cancel()
    if broken:
        raise broken[0]
    if result is None:
        raise FileError("usage ended without a result: try again")
    return result


async def _requests(
    head: pb.BillHead, lines: Iterator[pb.BillLine], broken: list[FileError]
) -> AsyncIterator[pb.ReconcileRequest]:
    yield pb.ReconcileRequest(head=head)
    count = 0
    shows = sys.stderr.isatty()
    try:
        while some := list(islice(lines, _LINES_AT_ONCE)):
            count += len(some)
            if shows:
                sys.stderr.write(f"\r{count:,} lines ")
            yield pb.ReconcileRequest(lines=pb.BillLines(lines=some))
    except FileError as error:
        # It could be read a moment ago: what was sent so far is no bill.
        broken.append(error)
        raise
    finally:
        if shows and count:
            sys.stderr.write("\r" + " " * 24 + "\r")


async def _results(usage: Usage) -> list[pb.Reconciliation]:
    request = pb.ListReconciliationsRequest(page_size=1_000)
    answer = await usage.call(usage.bills.ListReconciliations, request)
    return list(answer.results)
