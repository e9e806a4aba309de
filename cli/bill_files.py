"""Reads the files of a bill, line by line: in little memory, and saying where one is wrong.

A bill is read twice: once to know what it is and that all of it can be read, and once to send it.
"""

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from cli.bill_formats import Figure, Format, figures_of, format_of
from cli.bill_json import objects
from cli.bill_rows import BillError, FieldError, Row

FILE_BYTES_MAX: Final = 8 << 30
"""The largest file: a bill of five million lines is smaller."""
LINES_MAX: Final = 5_000_000

_HEAD_CHARS: Final = 4096


class FileError(Exception):
    """A file cannot be read; the message says which, where and why."""


@dataclass(slots=True, kw_only=True)
class Bill:
    """What a bill was found to be.

    Attributes:
        digest: the SHA-256 of its files' digests, in their order by value.
        from_us, before_us: the time that it is of, in µs since 1970; ``None`` when no line says.
        owners: what it calls those who paid, the first few.
        has_models: whether any line names a model.
    """

    digest: bytes = b""
    names: list[str] = field(default_factory=list)
    providers: set[str] = field(default_factory=set)
    figures: set[Figure] = field(default_factory=set)
    by_request: bool = False
    from_us: int | None = None
    before_us: int | None = None
    has_models: bool = False
    owners: set[str] = field(default_factory=set)
    lines: int = 0

    def add(self, row: Row) -> None:
        """Takes note of a line."""
        if row.from_us is not None and (self.from_us is None or row.from_us < self.from_us):
            self.from_us = row.from_us
        if row.before_us is not None and (self.before_us is None or row.before_us > self.before_us):
            self.before_us = row.before_us
        if row.says:
            self.lines += 1
            self.has_models = self.has_models or bool(row.model)
            if len(self.owners) < 100:
                self.owners.update(row.owners)


def examined(paths: Sequence[Path], columns: Mapping[str, str]) -> Bill:
    """What a bill is; all of it can be read. Raises ``FileError``."""
    bill = Bill()
    digests = []
    kinds: set[bool] = set()
    for path in paths:
        digests.append(_digest(path))
        made = None
        for found, figures, row in _file_rows(path, columns):
            made = found
            bill.figures |= figures
            bill.add(row)
            if bill.lines > LINES_MAX:
                raise FileError(f"{path}: more than {LINES_MAX:,} lines; import a shorter time")
        if made is None:
            raise FileError(f"{path}: this file holds no lines")
        bill.names.append(made.name)
        bill.providers.update(made.providers)
        kinds.add(made.by_request)
    if len(kinds) > 1:
        raise FileError("files with ids of requests and files without cannot be one bill")
    if not bill.figures:
        raise FileError("nothing in it says how many tokens or how much")
    bill.by_request = kinds.pop()
    bill.digest = hashlib.sha256(b"".join(sorted(set(digests)))).digest()
    if len(set(digests)) < len(digests):
        raise FileError("the same file is given twice")
    return bill


def rows(paths: Iterable[Path], columns: Mapping[str, str]) -> Iterator[Row]:
    """The lines of a bill that say anything. Raises ``FileError``."""
    for path in paths:
        for _, _, row in _file_rows(path, columns):
            if row.says:
                yield row


def _digest(path: Path) -> bytes:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise FileError(f"{path}: larger than {FILE_BYTES_MAX >> 30} GiB")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None


def _file_rows(
    path: Path, columns: Mapping[str, str]
) -> Iterator[tuple[Format, frozenset[Figure], Row]]:
    try:
        # A byte order mark is none of its content.
        with path.open(encoding="utf-8-sig", newline="") as file:
            items = _items(file)
            yield from _read(items, columns)
    except BillError as error:
        raise FileError(f"{path}:{error.line}: {error.what}") from None
    except UnicodeDecodeError:
        raise FileError(f"{path}: this is no text in UTF-8") from None
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None


def _read(
    items: Iterator[tuple[int, Mapping[str, Any]]], columns: Mapping[str, str]
) -> Iterator[tuple[Format, frozenset[Figure], Row]]:
    made: Format | None = None
    for line, item in items:
        try:
            if made is None:
                made = format_of(item.keys(), columns)
            figures = made.figures or figures_of(item)
            for row in made.rows(item):
                yield made, figures, row
        except FieldError as error:
            raise BillError(line, str(error)) from None
        except KeyError as error:
            raise BillError(line, f"there is no {error.args[0]!r} in it") from None


def _items(file: IO[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    head = file.read(_HEAD_CHARS)
    file.seek(0)
    if "\0" in head:
        raise BillError(1, "this is neither CSV nor JSON")
    if head.lstrip("\ufeff \t\r\n")[:1] in ("{", "["):
        return objects(file)
    return _csv_rows(file, head)


def _csv_rows(file: IO[str], head: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    first = head.partition("\n")[0]
    apart = max((",", "\t", ";"), key=first.count)
    reader = csv.reader(file, delimiter=apart, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        if len(set(names)) < len(names):
            raise BillError(1, "a column is named twice")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(names):
                raise BillError(reader.line_num, f"{len(cells)} values under {len(names)} columns")
            yield reader.line_num, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise BillError(reader.line_num, f"this is no CSV: {error}") from None
