"""Writes rows as CSV, JSON or Parquet, as they come.

Money is exact in each: ``cost_nano_usd`` is a whole number, and ``cost_usd`` a decimal (text in CSV
and JSON, where numbers are read as floats). Parquet needs pyarrow, which is an extra.
"""

import csv
import enum
import importlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Final, Protocol, assert_never

from cli.usage_view import plain_cell

ROWS_AT_ONCE: Final = 10_000
"""Rows of a row group in Parquet: so many are in memory."""

_USD_DIGITS: Final = 38
_NANO_DIGITS: Final = 9

Rows = Sequence[Mapping[str, Any]]


class Format(enum.StrEnum):
    """What a file is."""

    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


class Kind(enum.Enum):
    """What a column holds; what none is named for is text."""

    COUNT = enum.auto()
    FLAG = enum.auto()
    MILLISECONDS = enum.auto()
    TIME = enum.auto()
    USD = enum.auto()
    TAGS = enum.auto()


KINDS: Final[Mapping[str, Kind]] = {
    "attempt_number": Kind.COUNT,
    "started_at": Kind.TIME,
    "stream": Kind.FLAG,
    "upstream_status": Kind.COUNT,
    "duration_ms": Kind.MILLISECONDS,
    "first_token_ms": Kind.MILLISECONDS,
    "input_tokens": Kind.COUNT,
    "cached_input_tokens": Kind.COUNT,
    "cache_write_tokens": Kind.COUNT,
    "output_tokens": Kind.COUNT,
    "reasoning_tokens": Kind.COUNT,
    "web_searches": Kind.COUNT,
    "cost_nano_usd": Kind.COUNT,
    "uncertain_nano_usd": Kind.COUNT,
    "cost_usd": Kind.USD,
    "data_retention_days": Kind.COUNT,
    "data_training": Kind.FLAG,
    "tags": Kind.TAGS,
    "attempts": Kind.COUNT,
    "failures": Kind.COUNT,
}
"""Columns of records and of sums that are no text."""


class ExportError(Exception):
    """Nothing can be written; the message says what to do."""


class Writer(Protocol):
    """Writes rows to a file that somebody else opens and closes."""

    def write(self, rows: Rows) -> None:
        """Some rows."""
        ...

    def end(self) -> None:
        """There are no more."""
        ...


def writer_of(made: Format, columns: Sequence[str], path: Path | None, out: IO[str]) -> Writer:
    """A writer of a format.

    Args:
        columns: in their order.
        path: where Parquet is written; the others write to ``out``.

    Raises ``ExportError`` when the format needs what is not installed.
    """
    match made:
        case Format.CSV:
            return CsvWriter(columns, out)
        case Format.JSON:
            return JsonWriter(out)
        case Format.PARQUET:
            if path is None:
                raise ExportError("Parquet cannot be shown: name a file with --out.")
            return ParquetWriter(columns, path)
        case _:
            assert_never(made)


class CsvWriter:
    """Rows under a head; texts that a spreadsheet would take for formulas are guarded."""

    def __init__(self, columns: Sequence[str], out: IO[str]) -> None:
        self._columns = columns
        self._writer = csv.writer(out, lineterminator="\n")
        self._writer.writerow(columns)

    def write(self, rows: Rows) -> None:
        """Some rows."""
        self._writer.writerows([_cell(row[name]) for name in self._columns] for row in rows)

    def end(self) -> None:
        """There are no more."""


class JsonWriter:
    """An array, an object a line."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._apart = "[\n"

    def write(self, rows: Rows) -> None:
        """Some rows."""
        for row in rows:
            self._out.write(self._apart + json.dumps(row, ensure_ascii=False))
            self._apart = ",\n"

    def end(self) -> None:
        """There are no more."""
        self._out.write("[]\n" if self._apart == "[\n" else "\n]\n")


class ParquetWriter:
    """Row groups of :data:`ROWS_AT_ONCE` rows, compressed."""

    def __init__(self, columns: Sequence[str], path: Path) -> None:
        try:
            self._arrow = importlib.import_module("pyarrow")
            parquet = importlib.import_module("pyarrow.parquet")
        except ModuleNotFoundError:
            raise ExportError(
                "Parquet needs pyarrow, which is not installed: pip install 'onegate[parquet]'."
            ) from None
        self._columns = columns
        types = [(name, self._type(KINDS.get(name))) for name in columns]
        self._schema = self._arrow.schema(types)
        self._file = parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[Mapping[str, Any]] = []

    def write(self, rows: Rows) -> None:
        """Some rows."""
        self._rows += rows
        if len(self._rows) >= ROWS_AT_ONCE:
            self._flush()

    def end(self) -> None:
        """There are no more."""
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if self._rows:
            columns = {
                name: [_value(row[name], KINDS.get(name)) for row in self._rows]
                for name in self._columns
            }
            self._file.write_table(self._arrow.table(columns, schema=self._schema))
            self._rows = []

    def _type(self, kind: Kind | None) -> Any:
        arrow = self._arrow
        match kind:
            case None:
                return arrow.string()
            case Kind.COUNT:
                return arrow.int64()
            case Kind.FLAG:
                return arrow.bool_()
            case Kind.MILLISECONDS:
                return arrow.float64()
            case Kind.TIME:
                return arrow.timestamp("us", tz="UTC")
            case Kind.USD:
                return arrow.decimal128(_USD_DIGITS, _NANO_DIGITS)
            case Kind.TAGS:
                return arrow.map_(arrow.string(), arrow.string())
            case _:
                assert_never(kind)


def _value(value: Any, kind: Kind | None) -> Any:
    """As Arrow takes it."""
    match kind:
        case Kind.TIME:
            return datetime.fromisoformat(value)
        case Kind.USD:
            return Decimal(value)
        case Kind.TAGS:
            return list(value.items())
        case _:
            return value


def _cell(value: Any) -> Any:
    """As CSV has it."""
    if isinstance(value, Mapping):
        value = " ".join(f"{name}={text}" for name, text in value.items())
    return plain_cell(value)
