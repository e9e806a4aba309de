"""How changes of prices are shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from decimal import Decimal
from typing import Any, Final, assert_never

from google.protobuf.timestamp_pb2 import Timestamp
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cli.keys_view import console, print_json
from cli.prices_file import places, unit_of, usd_of
from cli.usage_view import Output, print_csv, usd
from onegate.usage.v1 import price_pb2, price_service_pb2
from onegate.usage.v1.price_pb2 import PriceSheet

_SHOWN: Final = {
    "input": price_pb2.METER_INPUT_TOKENS,
    "cached": price_pb2.METER_CACHED_INPUT_TOKENS,
    "output": price_pb2.METER_OUTPUT_TOKENS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What an import would do to one model, or how it differs from what ships.

    A ``sheet`` without a model is one that is not there.
    """

    model: str
    sheet: PriceSheet
    why_not: str
    before: PriceSheet | None

    @property
    def verdict(self) -> str:
        """``left out``, ``new``, ``removed``, ``same`` or ``changed``."""
        if self.why_not:
            return "left out"
        if self.before is not None and self.before.model and not self.sheet.model:
            return "removed"
        if self.before is None:
            return "new"
        same = _rates(self.before) == _rates(self.sheet) and self.before.free == self.sheet.free
        return "same" if same else "changed"

    @property
    def changes(self) -> bool:
        """Whether anything would be set."""
        return self.verdict in ("new", "changed")

    def lines(self) -> list[dict[str, Any]]:
        """The rates that differ: which, for how much of what, before and after."""
        if self.why_not:
            return []
        before = places(self.before) if self.before is not None else {}
        after = places(self.sheet)
        found = []
        for place in dict.fromkeys((*before, *after)):
            old, new = before.get(place), after.get(place)
            if (old and usd_of(old)) == (new and usd_of(new)) and bool(old) == bool(new):
                continue
            word = "changed" if old and new else "removed" if old else "added"
            found.append(
                {
                    "rate": str(place),
                    "verdict": word,
                    "usd_before": _decimal(usd_of(old)) if old else None,
                    "usd_after": _decimal(usd_of(new)) if new else None,
                    "per": unit_of(old or new or price_pb2.Rate()),
                }
            )
        return found


def _rates(sheet: PriceSheet) -> dict[Any, int]:
    return {place: rate.nano_usd_per_million for place, rate in places(sheet).items()}


def _decimal(usd: Decimal) -> str:
    """At least cents, and every digit that is not zero."""
    text = f"{usd:f}"
    whole, _, digits = text.partition(".")
    return f"{whole}.{digits.rstrip('0').ljust(2, '0')}"


def print_sheet(sheet: PriceSheet) -> None:
    """Every rate of a sheet."""
    since = _iso(sheet.valid_from) if sheet.HasField("valid_from") else "always"
    free = " Nothing is charged." if sheet.free else ""
    console().print(
        Text(f"{sheet.model}: {sheet.version}, from {sheet.source}, since {since}.{free}")
    )
    made = Table(box=None, pad_edge=False)
    for name, justify in (("rate", "left"), ("USD", "right"), ("for", "left")):
        made.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True)
    for place, rate in places(sheet).items():
        made.add_row(
            Text(str(place)), _decimal(usd_of(rate)), f"1 {unit_of(rate)}".replace("1 1M", "1M")
        )
    console().print(made)


def _figures(sheet: PriceSheet | None) -> dict[str, str]:
    base = {
        rate.meter: rate.nano_usd_per_million
        for place, rate in places(sheet or PriceSheet()).items()
        if " " not in str(place)
    }
    return {name: usd(base[m]) if m in base else "" for name, m in _SHOWN.items()}


def print_differences(differences: Sequence[Difference], output: Output) -> None:
    """What an import would do: in a table only what changes, with a count of the rest."""
    match output:
        case Output.JSON:
            print_json([_difference_json(one) for one in differences])
        case Output.CSV:
            rows = [_difference_fields(one) for one in differences]
            blank = Difference(model="", sheet=PriceSheet(), why_not="", before=None)
            print_csv(rows, list(_difference_fields(blank)))
        case Output.TABLE:
            console().print(_difference_table(differences))
            counts = {
                word: sum(one.verdict == word for one in differences)
                for word in ("new", "changed", "removed", "same", "left out")
            }
            text = ", ".join(
                f"{count:,} {word}"
                for word, count in counts.items()
                if count or word in ("new", "changed", "same")
            )
            console().print(f"{text}. With -o json: why.", style="dim")
        case _:
            assert_never(output)


def _difference_fields(one: Difference) -> dict[str, Any]:
    before, after = _figures(one.before), _figures(one.sheet)
    return {
        "model": one.model,
        "verdict": one.verdict,
        **{f"{name}_before": value for name, value in before.items()},
        **{f"{name}_after": value for name, value in after.items()},
        "why_not": one.why_not,
    }


def _difference_json(one: Difference) -> dict[str, Any]:
    sources = [sheet.source if sheet else None for sheet in (one.before, one.sheet)]
    return {
        **_difference_fields(one),
        "rates": one.lines(),
        "source_before": sources[0],
        "source_after": sources[1] or None,
    }


def _difference_table(differences: Sequence[Difference]) -> Table:
    made = Table(box=None, pad_edge=False, caption="USD", caption_justify="left")
    for name in ("model", "", "rate", "before", "after", "for"):
        right = name in ("before", "after")
        made.add_column(name, justify="right" if right else "left", no_wrap=True)
    for one in differences:
        if one.verdict not in ("new", "changed", "removed"):
            continue
        name, word = escape(one.model), one.verdict
        if one.sheet.free or (one.before is not None and one.before.free):
            made.add_row(
                name, word, "free", *("yes" if s and s.free else "no" for s in _two(one)), ""
            )
        for line in one.lines():
            cells = (line["usd_before"] or "-", line["usd_after"] or "-", line["per"])
            made.add_row(name, word, Text(line["rate"]), *cells)
            name, word = "", ""
    return made


def _two(one: Difference) -> tuple[PriceSheet | None, PriceSheet]:
    return one.before, one.sheet


def print_changes(changes: Sequence[price_service_pb2.PriceChange], output: Output) -> None:
    """What operators set, a row each."""
    rows = [_change_fields(change) for change in changes]
    match output:
        case Output.JSON:
            print_json(rows)
        case Output.CSV:
            print_csv(rows, list(_change_fields(price_service_pb2.PriceChange())))
        case Output.TABLE:
            made = Table(box=None, pad_edge=False)
            for name in _change_fields(price_service_pb2.PriceChange()):
                made.add_column(name.replace("_", " "), no_wrap=name != "source")
            for row in rows:
                made.add_row(*(Text(value) for value in row.values()))
            console().print(made)
        case _:
            assert_never(output)


def _change_fields(change: price_service_pb2.PriceChange) -> dict[str, str]:
    what = "free" if change.price.free else "set" if change.HasField("price") else "withdrawn"
    return {
        "recorded_at": _iso(change.recorded_at),
        "model": change.model,
        "what": what,
        "valid_from": _iso(change.valid_from),
        **_figures(change.price),
        "version": change.price.version,
        "source": change.price.source,
    }


def _iso(moment: Timestamp) -> str:
    return moment.ToDatetime(UTC).isoformat(timespec="seconds")
