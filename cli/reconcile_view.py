"""How differences between a bill and the records are shown, as they come."""

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC
from decimal import Decimal
from typing import Any, Final, Protocol, assert_never

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table
from rich.text import Text

from cli.bill_rows import EXACT
from cli.keys_view import console, print_json
from cli.usage_view import Output, plain_cell, print_csv
from onegate.usage.v1 import reconcile_service_pb2 as pb

_KIND: Final = "BILL_DIFFERENCE_KIND_"
_COUNTS: Final = ("count", "input_tokens", "cached_input_tokens", "output_tokens")
_WORDS: Final = {
    pb.BILL_DIFFERENCE_KIND_ONLY_THEIRS: ("only theirs", "red"),
    pb.BILL_DIFFERENCE_KIND_ONLY_OURS: ("only ours", "yellow"),
    pb.BILL_DIFFERENCE_KIND_TOKENS: ("tokens", "magenta"),
    pb.BILL_DIFFERENCE_KIND_COST: ("cost", "cyan"),
}


_COLUMNS: Final = (
    (pb.BILL_FIGURE_INPUT_TOKENS, "in", "input_tokens"),
    (pb.BILL_FIGURE_CACHED_INPUT_TOKENS, "cached", "cached_input_tokens"),
    (pb.BILL_FIGURE_OUTPUT_TOKENS, "out", "output_tokens"),
    (pb.BILL_FIGURE_COST, "USD", "cost_usd"),
)
"""What a bill may say, what it is called, and the field that has it."""


class Sink(Protocol):
    """Takes differences as they come, and the result at the end."""

    def add(self, found: Iterable[pb.BillDifference]) -> None:
        """Some differences."""
        ...

    def end(self, result: pb.Reconciliation) -> None:
        """The result."""
        ...


def sink_of(output: Output, rows_max: int) -> Sink:
    """What shows differences in a form."""
    match output:
        case Output.JSON:
            return JsonSink()
        case Output.CSV:
            return CsvSink()
        case Output.TABLE:
            return TableSink(rows_max)
        case _:
            assert_never(output)


def difference_fields(one: pb.BillDifference) -> dict[str, Any]:
    """A difference as JSON has it."""
    theirs = _figures(one.theirs) if one.HasField("theirs") else None
    ours = _figures(one.ours) if one.HasField("ours") else None
    return {
        "differs": [_word(kind) for kind in one.kinds],
        "request_id": one.request_id,
        "attempt_id": one.attempt_id,
        "day": one.day,
        "model": one.model,
        "credential": one.credential,
        "theirs": theirs,
        "ours": ours,
    }


def result_fields(result: pb.Reconciliation) -> dict[str, Any]:
    """A result as JSON has it."""
    head = result.head
    return {
        "id": result.id,
        "name": head.name,
        "sha256": head.digest.hex(),
        "compared_at": _iso(result.compared_at),
        "matched_by": pb.BillMatch.Name(head.match).removeprefix("BILL_MATCH_").lower(),
        "started_from": _iso(head.started_from),
        "started_before": _iso(head.started_before),
        "providers": list(head.providers),
        "agreed": result.agreed,
        "only_theirs": result.only_theirs,
        "only_ours": result.only_ours,
        "tokens_differ": result.tokens_differ,
        "costs_differ": result.costs_differ,
        "theirs": _figures(result.theirs),
        "ours": _figures(result.ours),
        "earlier_id": result.earlier_id or None,
        "earlier_at": _iso(result.earlier_at) if result.earlier_id else None,
    }


class JsonSink:
    """``{"differences": […], "result": {…}}``, written as it comes."""

    def __init__(self) -> None:
        self._apart = ""

    def add(self, found: Iterable[pb.BillDifference]) -> None:
        """Some differences."""
        for one in found:
            self._begin()
            text = json.dumps(difference_fields(one), ensure_ascii=False)
            typer.echo(self._apart + text, nl=False)
            self._apart = ",\n"

    def end(self, result: pb.Reconciliation) -> None:
        """The result."""
        self._begin()
        typer.echo(f'],\n"result": {json.dumps(result_fields(result), ensure_ascii=False)}}}')

    def _begin(self) -> None:
        if not self._apart:
            typer.echo('{"differences": [', nl=False)
            self._apart = "\n"


class CsvSink:
    """A row for each difference; the result goes to standard error."""

    def __init__(self) -> None:
        self._writer = csv.writer(sys.stdout, lineterminator="\n")
        self._begun = False

    def add(self, found: Iterable[pb.BillDifference]) -> None:
        """Some differences."""
        self._begin()
        for one in found:
            row = difference_fields(one)
            theirs, ours = row["theirs"] or {}, row["ours"] or {}
            self._writer.writerow(
                [
                    " ".join(row["differs"]),
                    *(plain_cell(row[name]) for name in _PLACE),
                    *(theirs.get(name, "") for name in _SAID),
                    *(ours.get(name, "") for name in _SAID),
                ]
            )

    def end(self, result: pb.Reconciliation) -> None:
        """The result."""
        self._begin()
        sys.stdout.flush()
        typer.echo(_sentence(result), err=True)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            sides = [f"{side}_{name}" for side in ("theirs", "ours") for name in _SAID]
            self._writer.writerow(["differs", *_PLACE, *sides])


_PLACE: Final = ("request_id", "attempt_id", "day", "model", "credential")
_SAID: Final = (*_COUNTS, "cost_usd")


class TableSink:
    """The first differences and the totals, for people."""

    def __init__(self, rows_max: int) -> None:
        self._rows_max = rows_max
        self._kept: list[pb.BillDifference] = []
        self._count = 0

    def add(self, found: Iterable[pb.BillDifference]) -> None:
        """Some differences."""
        for one in found:
            self._count += 1
            if len(self._kept) < self._rows_max:
                self._kept.append(one)

    def end(self, result: pb.Reconciliation) -> None:
        """The result."""
        out = console()
        if self._kept:
            out.print(_differences(self._kept, result.head))
            if self._count > len(self._kept):
                left = self._count - len(self._kept)
                out.print(f"and {left:,} more: --limit, or -o csv for all", style="dim")
            out.print()
        out.print(_totals(result))
        out.print(Text(_sentence(result), style="yellow" if self._count else "green"))


def print_results(results: Sequence[pb.Reconciliation], output: Output) -> None:
    """Earlier results, newest first."""
    found = [result_fields(result) for result in results]
    match output:
        case Output.JSON:
            print_json(found)
        case Output.CSV:
            for row in found:
                row["providers"] = " ".join(row["providers"])
                row["theirs"], row["ours"] = (row[side]["cost_usd"] for side in ("theirs", "ours"))
            print_csv(found, list(result_fields(pb.Reconciliation())))
        case Output.TABLE:
            made = Table(box=None, pad_edge=False)
            for name in ("compared", "bill", "agreed"):
                made.add_column(name, no_wrap=name == "compared")
            for name in ("only theirs", "only ours", "tokens", "cost", "USD: theirs", "ours"):
                made.add_column(name, justify="right", no_wrap=True)
            for row in found:
                differ = ("only_theirs", "only_ours", "tokens_differ", "costs_differ")
                made.add_row(
                    row["compared_at"][:16].replace("T", " "),
                    Text(row["name"]),
                    f"{row['agreed']:,}",
                    *(f"{row[name]:,}" for name in differ),
                    *(_money(row[side]["cost_usd"]) for side in ("theirs", "ours")),
                )
            console().print(made)
        case _:
            assert_never(output)


def _differences(found: Sequence[pb.BillDifference], head: pb.BillHead) -> Table:
    made = Table(box=None, pad_edge=False)
    by_request = head.match == pb.BILL_MATCH_REQUEST
    names = ["differs", *(["request"] if by_request else []), "day", "model"]
    names += ["credential"] if head.by_credential else []
    for name in names:
        made.add_column(name, no_wrap=name in ("differs", "day"))
    says = [column for column in _COLUMNS if column[0] in head.figures]
    for _, word, _ in says:
        made.add_column(f"{word}: theirs", justify="right", no_wrap=True)
        made.add_column("ours", justify="right", no_wrap=True)
    if pb.BILL_FIGURE_COST in head.figures:
        made.add_column("apart", justify="right", no_wrap=True)
    for one in found:
        place = {
            "differs": _kinds(one),
            "request": Text(one.request_id or f"({one.attempt_id})"),
            "day": Text(one.day or "-"),
            "model": Text(one.model or "-"),
            "credential": Text(one.credential or "-"),
        }
        cells = [place[name] for name in names]
        for _, _, name in says:
            cells += [Text(_told(one.theirs, name) if one.HasField("theirs") else "-")]
            cells += [Text(_told(one.ours, name) if one.HasField("ours") else "-")]
        made.add_row(*cells, *([_apart(one)] if pb.BILL_FIGURE_COST in head.figures else []))
    return made


def _told(figures: pb.BillFigures, name: str) -> str:
    value = getattr(figures, name)
    return _money(value) if name == "cost_usd" else f"{value:,}"


def _kinds(one: pb.BillDifference) -> Text:
    made = Text()
    for number, kind in enumerate(one.kinds):
        word, style = _WORDS[kind]
        made.append(", " if number else "").append(word, style=style)
    return made


def _apart(one: pb.BillDifference) -> Text:
    """By how much the provider bills more."""
    theirs, ours = (Decimal(side.cost_usd or 0) for side in (one.theirs, one.ours))
    apart = EXACT.subtract(theirs, ours)
    style = "red" if apart > 0 else "yellow" if apart < 0 else "dim"
    return Text(f"{'+' if apart > 0 else ''}{_money(format(apart, 'f'))}", style=style)


def _totals(result: pb.Reconciliation) -> Table:
    made = Table(box=None, pad_edge=False)
    made.add_column("")
    made.add_column("lines", justify="right")
    for _, word, _ in _COLUMNS:
        made.add_column(word, justify="right", no_wrap=True)
    for side, figures in (("theirs", result.theirs), ("ours", result.ours)):
        told = (
            _told(figures, name) if side == "ours" or figure in result.head.figures else "-"
            for figure, _, name in _COLUMNS
        )
        made.add_row(side, f"{figures.count:,}", *told)
    return made


def _sentence(result: pb.Reconciliation) -> str:
    head = result.head
    parts = [
        f"{count:,} {word}"
        for count, word in (
            (result.only_theirs, "only theirs"),
            (result.only_ours, "only ours"),
            (result.tokens_differ, "with other tokens"),
            (result.costs_differ, "with another cost"),
        )
        if count
    ]
    day, end = _iso(head.started_from)[:16], _iso(head.started_before)[:16]
    said = f"{day} to {end}, {result.agreed:,} agree: " + (", ".join(parts) or "no difference")
    if result.earlier_id:
        said += f". This bill was compared before, at {_iso(result.earlier_at)[:16]}"
    return f"{said} ({result.id})."


def _figures(figures: pb.BillFigures) -> dict[str, Any]:
    return {
        **{name: getattr(figures, name) for name in _COUNTS},
        "cost_usd": _money(figures.cost_usd),
    }


def _money(amount: str) -> str:
    """An exact amount with at least two digits behind the point."""
    whole, _, rest = (amount or "0").partition(".")
    return f"{whole}.{rest.rstrip('0').ljust(2, '0')}"


def _word(kind: pb.BillDifferenceKind.ValueType) -> str:
    return pb.BillDifferenceKind.Name(kind).removeprefix(_KIND).lower()


def _iso(moment: Timestamp) -> str:
    return moment.ToDatetime(UTC).isoformat(timespec="seconds")
