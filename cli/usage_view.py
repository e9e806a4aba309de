"""How usage and prices are shown: as JSON and CSV for programs, as tables for people.

Money is whole nano-USD inside and exact in every form: ``cost_usd`` is a decimal in text, never a
float.
"""

import csv
import enum
import io
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, assert_never

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table
from rich.text import Text

from cli.charts import Pen
from cli.keys_view import console, print_json
from onegate.common.v1 import error_pb2
from onegate.usage.v1 import price_pb2, usage_record_pb2
from onegate.usage.v1.price_pb2 import PriceSheet
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from onegate.usage.v1.usage_service_pb2 import UsageSummary

NANO_DIGITS: Final = 9
CENT_DIGITS: Final = 2


_BAR_WIDTH: Final = 20
_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_FORMULA_SIGNS: Final = ("=", "+", "-", "@", "\t", "\r")


class Output(enum.StrEnum):
    """How a command prints."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


_RATE_COLUMNS: Final = {
    "input": price_pb2.METER_INPUT_TOKENS,
    "cached": price_pb2.METER_CACHED_INPUT_TOKENS,
    "cache write": price_pb2.METER_CACHE_WRITE_TOKENS,
    "output": price_pb2.METER_OUTPUT_TOKENS,
}
"""What the table of prices shows, in USD for a million tokens."""

_MARKS: Final = {
    usage_record_pb2.CERTAINTY_ESTIMATED: " ≈",
    usage_record_pb2.CERTAINTY_UNCERTAIN: " ?",
}
"""Behind a cost that the provider did not report itself."""


def usd(nano_usd: int) -> str:
    """Nano-USD as USD, exactly: at least cents, at most all nine digits."""
    whole, rest = divmod(abs(nano_usd), 10**NANO_DIGITS)
    digits = f"{rest:0{NANO_DIGITS}d}".rstrip("0").ljust(CENT_DIGITS, "0")
    return f"{'-' if nano_usd < 0 else ''}{whole}.{digits}"


def record_fields(record: UsageRecord) -> dict[str, Any]:
    """A record as JSON has it."""
    tokens = record.tokens
    return {
        "attempt_id": record.attempt_id,
        "request_id": record.request_id,
        "attempt_number": record.attempt_number,
        "started_at": _iso(record.started_at),
        "key_id": record.key_id,
        "project_id": record.project_id,
        "organization_id": record.organization_id,
        "model_requested": record.model_requested,
        "model": record.model,
        "provider": record.provider,
        "endpoint": record.endpoint,
        "stream": record.stream,
        "outcome": _word(usage_record_pb2.Outcome.Name(record.outcome), "OUTCOME_"),
        "error_reason": _word(error_pb2.ErrorReason.Name(record.error_reason), "ERROR_REASON_"),
        "upstream_status": record.upstream_status,
        "duration_ms": record.duration_us / 1000,
        "first_token_ms": record.first_token_us / 1000,
        "input_tokens": tokens.input_tokens,
        "cached_input_tokens": tokens.cached_input_tokens,
        "cache_write_tokens": tokens.cache_write_tokens + tokens.cache_write_1h_tokens,
        "output_tokens": tokens.output_tokens,
        "reasoning_tokens": tokens.reasoning_tokens,
        "web_searches": tokens.web_searches,
        "service_tier": tokens.service_tier,
        "cost_nano_usd": record.cost_nano_usd,
        "cost_usd": usd(record.cost_nano_usd),
        "price_version": record.price_version,
        "certainty": _word(usage_record_pb2.Certainty.Name(record.certainty), "CERTAINTY_"),
        "finish_reason": record.finish_reason,
        "upstream_request_id": record.upstream_request_id,
        "credential": record.credential,
        "end_user": record.attribution.end_user,
        "customer": record.attribution.customer,
        "feature": record.attribution.feature,
        "run": record.attribution.run,
        **_data_fields(record.data),
        "tags": dict(sorted(record.tags.items())),
    }


def _data_fields(data: usage_record_pb2.DataProof) -> dict[str, Any]:
    """Under which data policy the call was let through; ``None`` for what was not known."""
    return {
        "data_class": data.data_class,
        "data_policy_version": data.policy_version,
        "data_regions": " ".join(data.regions),
        "data_retention_days": data.retention_days if data.HasField("retention_days") else None,
        "data_training": data.training if data.HasField("training") else None,
    }


def print_records(records: Sequence[UsageRecord], output: Output) -> None:
    """Records, newest first, a row each."""
    rows = [record_fields(record) for record in records]
    match output:
        case Output.JSON:
            print_json(rows)
        case Output.CSV:
            for row in rows:
                row["tags"] = " ".join(f"{name}={value}" for name, value in row["tags"].items())
            print_csv(rows, list(record_fields(UsageRecord())))
        case Output.TABLE:
            console().print(_record_table(records))
        case _:
            assert_never(output)


def _record_table(records: Sequence[UsageRecord]) -> Table:
    made = Table(box=None, pad_edge=False)
    for name in ("time (UTC)", "model", "key", "outcome", "status"):
        made.add_column(name, no_wrap=name.startswith("time"))
    for name in ("in", "cached", "out", "first token", "total", "cost (USD)"):
        made.add_column(name, justify="right", no_wrap=True)
    for record in records:
        row = record_fields(record)
        made.add_row(
            # Names are other people's text, not markup.
            *(Text(text) for text in (_clock(record.started_at), record.model, record.key_id)),
            row["outcome"] + (f" ({row['error_reason']})" if row["error_reason"] else ""),
            str(record.upstream_status or "-"),
            f"{record.tokens.input_tokens:,}",
            f"{record.tokens.cached_input_tokens:,}",
            f"{record.tokens.output_tokens:,}",
            f"{row['first_token_ms']:,.0f} ms" if record.first_token_us else "-",
            f"{row['duration_ms']:,.0f} ms",
            usd(record.cost_nano_usd) + _MARKS.get(record.certainty, ""),
        )
    return made


def print_summaries(rows: Sequence[UsageSummary], names: Sequence[str], output: Output) -> None:
    """Sums by group, dearest first; ``names`` say what was grouped by."""
    found = [summary_fields(row, names) for row in rows]
    match output:
        case Output.JSON:
            print_json(found)
        case Output.CSV:
            print_csv(found, list(summary_fields(UsageSummary(group=[""] * len(names)), names)))
        case Output.TABLE:
            out = console()
            # Bars are for people who look at a screen.
            pen = Pen(blocks="utf" in out.encoding.lower()) if out.is_terminal else None
            out.print(_summary_table(rows, names, pen))
        case _:
            assert_never(output)


def summary_fields(row: UsageSummary, names: Sequence[str]) -> dict[str, Any]:
    """A group's sums as JSON has them."""
    return {
        **dict(zip(names, row.group, strict=True)),
        "attempts": row.attempts,
        "failures": row.failures,
        "input_tokens": row.input_tokens,
        "cached_input_tokens": row.cached_input_tokens,
        "output_tokens": row.output_tokens,
        "cost_nano_usd": row.cost_nano_usd,
        "cost_usd": usd(row.cost_nano_usd),
        "uncertain_nano_usd": row.uncertain_nano_usd,
    }


def _summary_table(rows: Sequence[UsageSummary], names: Sequence[str], pen: Pen | None) -> Table:
    made = Table(box=None, pad_edge=False, show_footer=len(rows) > 1)
    total = UsageSummary()
    for row in rows:
        for field in ("attempts", "failures", "input_tokens", "cached_input_tokens"):
            setattr(total, field, getattr(total, field) + getattr(row, field))
        total.output_tokens += row.output_tokens
        total.cost_nano_usd += row.cost_nano_usd
    for place, name in enumerate(names):
        made.add_column(name, footer="all" if place == 0 else "")
    for name, value in zip(
        ("calls", "not complete", "in", "cached", "out", "cost (USD)"), _figures(total), strict=True
    ):
        made.add_column(name, justify="right", no_wrap=True, footer=value)
    if pen is not None and names:
        made.add_column("", no_wrap=True)
    most = max((row.cost_nano_usd for row in rows), default=0)
    for row in rows:
        cells = [*(Text(value or "-") for value in row.group), *map(Text, _figures(row))]
        if pen is not None and names:
            cells.append(Text(pen.bar(row.cost_nano_usd, most, _BAR_WIDTH), style="cyan"))
        made.add_row(*cells)
    return made


def _figures(row: UsageSummary) -> list[str]:
    counts = (
        row.attempts,
        row.failures,
        row.input_tokens,
        row.cached_input_tokens,
        row.output_tokens,
    )
    return [*(f"{count:,}" for count in counts), usd(row.cost_nano_usd)]


def price_fields(sheet: PriceSheet) -> dict[str, Any]:
    """A price sheet as JSON has it."""
    return {
        "model": sheet.model,
        "version": sheet.version,
        "valid_from": _iso(sheet.valid_from) if sheet.HasField("valid_from") else None,
        "source": sheet.source,
        "free": sheet.free,
        "rates": [
            {
                "meter": _word(price_pb2.Meter.Name(rate.meter), "METER_"),
                "nano_usd_per_million": rate.nano_usd_per_million,
                "usd_per_million": usd(rate.nano_usd_per_million),
                "above_input_tokens": rate.above_input_tokens,
                "service_tier": rate.service_tier,
                "size": rate.size,
                "quality": rate.quality,
                "mode": rate.mode,
            }
            for rate in sheet.rates
        ],
    }


def print_prices(sheets: Sequence[PriceSheet], output: Output) -> None:
    """Price sheets in force, a row each; in CSV a row for each rate."""
    match output:
        case Output.JSON:
            print_json([price_fields(sheet) for sheet in sheets])
        case Output.CSV:
            rows = [
                {**{k: v for k, v in fields.items() if k != "rates"}, **rate}
                for fields in map(price_fields, sheets)
                for rate in fields["rates"]
            ]
            blank = price_fields(PriceSheet(rates=[price_pb2.Rate()]))
            columns = [name for name in blank if name != "rates"] + list(blank["rates"][0])
            print_csv(rows, columns)
        case Output.TABLE:
            console().print(_price_table(sheets))
        case _:
            assert_never(output)


def _price_table(sheets: Sequence[PriceSheet]) -> Table:
    made = Table(
        box=None, pad_edge=False, caption="USD for a million tokens", caption_justify="left"
    )
    made.add_column("model", no_wrap=True)
    for name in (*_RATE_COLUMNS, "also"):
        made.add_column(name, justify="left" if name == "also" else "right", no_wrap=name != "also")
    for sheet in sheets:
        base = {
            rate.meter: rate.nano_usd_per_million
            for rate in sheet.rates
            if not (rate.above_input_tokens or rate.service_tier or rate.mode)
        }
        cells = [usd(base[m]) if m in base else "-" for m in _RATE_COLUMNS.values()]
        made.add_row(Text(sheet.model), *cells, Text(_also(sheet), style="dim"))
    return made


def _also(sheet: PriceSheet) -> str:
    """What a sheet charges beyond the table's columns."""
    others = [
        _word(price_pb2.Meter.Name(rate.meter), "METER_").removesuffix("_tokens")
        for rate in sheet.rates
        if rate.meter not in _RATE_COLUMNS.values() and not rate.service_tier
    ]
    steps = [f">{rate.above_input_tokens:,}" for rate in sheet.rates if rate.above_input_tokens]
    tiers = [word for rate in sheet.rates for word in (rate.service_tier, rate.mode) if word]
    return ", ".join(dict.fromkeys([*others, *steps, *tiers]))


def plain_cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: a text that begins like one has an
    apostrophe in front (https://owasp.org/www-community/attacks/CSV_Injection).
    """
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    return f"'{value}" if value.startswith(_FORMULA_SIGNS) else value


def print_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Rows under a head, as RFC 4180 has it but with plain line ends."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: plain_cell(value) for name, value in row.items()} for row in rows)
    typer.echo(text.getvalue(), nl=False)


def _word(name: str, prefix: str) -> str:
    """``OUTCOME_COMPLETED`` as ``completed``; what is not set as nothing."""
    word = name.removeprefix(prefix).lower()
    return "" if word == "unspecified" else word


def _iso(moment: Timestamp) -> str:
    return moment.ToDatetime(UTC).isoformat(timespec="milliseconds")


def _clock(moment: Timestamp) -> str:
    at: datetime = moment.ToDatetime(UTC)
    return f"{at:%Y-%m-%d %H:%M:%S}"
