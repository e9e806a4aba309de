"""How changes of prices are shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Final, assert_never

from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table
from rich.text import Text

from cli.keys_view import console, print_json
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
    """What an import would do to one model."""

    model: str
    sheet: PriceSheet
    why_not: str
    before: PriceSheet | None

    @property
    def verdict(self) -> str:
        """``left out``, ``new``, ``same`` or ``changed``."""
        if self.why_not:
            return "left out"
        if self.before is None:
            return "new"
        return "same" if _rates(self.before) == _rates(self.sheet) else "changed"

    @property
    def changes(self) -> bool:
        """Whether anything would be set."""
        return self.verdict in ("new", "changed")


def _rates(sheet: PriceSheet) -> dict[tuple[int, int, str], int]:
    return {
        (rate.meter, rate.above_input_tokens, rate.service_tier): rate.nano_usd_per_million
        for rate in sheet.rates
    }


def _figures(sheet: PriceSheet | None) -> dict[str, str]:
    base = {
        meter: nano
        for (meter, above, tier), nano in _rates(sheet or PriceSheet()).items()
        if not above and not tier
    }
    return {name: usd(base[m]) if m in base else "" for name, m in _SHOWN.items()}


def print_differences(differences: Sequence[Difference], output: Output) -> None:
    """What an import would do: in a table only what changes, with a count of the rest."""
    rows = [_difference_fields(one) for one in differences]
    match output:
        case Output.JSON:
            print_json(rows)
        case Output.CSV:
            blank = Difference(model="", sheet=PriceSheet(), why_not="", before=None)
            print_csv(rows, list(_difference_fields(blank)))
        case Output.TABLE:
            console().print(_difference_table(differences))
            counts = {
                word: sum(one.verdict == word for one in differences)
                for word in ("new", "changed", "same", "left out")
            }
            text = ", ".join(f"{count:,} {word}" for word, count in counts.items())
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


def _difference_table(differences: Sequence[Difference]) -> Table:
    made = Table(box=None, pad_edge=False, caption="USD for a million tokens, standard tier")
    made.add_column("model", no_wrap=True)
    made.add_column("")
    for name in _SHOWN:
        made.add_column(name, justify="right", no_wrap=True)
    for one in differences:
        if one.changes:
            before, after = _figures(one.before), _figures(one.sheet)
            cells = [_arrow(before[name], after[name]) for name in _SHOWN]
            made.add_row(Text(one.model), one.verdict, *cells)
    return made


def _arrow(before: str, after: str) -> str:
    return after or "-" if before == after else f"{before or '-'} → {after or '-'}"


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
