"""``onegate usage export``: records, or sums of them, as a file.

Records come page by page, newest first, and are written as they come. A file has its name only
when all of it is there: until then it lies beside it under another name, which an interruption
takes away.
"""

import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import IO, Final

import typer
from rich.markup import escape

from cli.context import fail
from cli.export_files import ExportError, Format, Rows, Writer, writer_of
from cli.usage import Usage, run_with_usage, summaries
from cli.usage_groups import Groups
from cli.usage_view import record_fields, summary_fields
from onegate.usage.v1 import usage_service_pb2
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from onegate.usage.v1.usage_service_pb2 import UsageFilter, UsageSummary

PAGE_SIZE: Final = 1_000
SUMS_MAX: Final = 10_000
"""The most rows that usage sums up at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is exported: records that a filter chooses, or sums of them; as what, and to where."""

    wanted: UsageFilter
    groups: Groups | None
    format: Format
    out: Path | None


def export(context: typer.Context, wish: Wish) -> None:
    """Writes the file. Ends the command when that cannot be."""
    groups = wish.groups
    columns = list(
        record_fields(UsageRecord())
        if groups is None
        else summary_fields(UsageSummary(group=groups.names), groups.names)
    )
    try:
        with _place(wish) as (path, out):
            writer = writer_of(wish.format, columns, path, out)
            count = run_with_usage(context, lambda usage: _write(usage, wish, writer))
            writer.end()
    except ExportError as error:
        fail(escape(str(error)))
    except BrokenPipeError:
        # Whoever read it has had enough.
        raise typer.Exit(1) from None
    except OSError as error:
        fail(escape(f"{wish.out or 'standard output'}: {error.strerror or error}"))
    if wish.out is not None:
        typer.echo(f"{count:,} rows in {wish.out}", err=True)


@contextmanager
def _place(wish: Wish) -> Iterator[tuple[Path | None, IO[str]]]:
    """Where to write; a file gets its name when everything went well."""
    if wish.out is None:
        yield None, sys.stdout
        sys.stdout.flush()
        return
    with tempfile.NamedTemporaryFile(
        "w",
        encoding="utf-8",
        newline="",
        dir=wish.out.parent,
        prefix=f".{wish.out.name}.",
        suffix=".part",
        delete=False,
    ) as file:
        part = Path(file.name)
        try:
            yield part, file.file
            file.close()
            part.replace(wish.out)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


async def _write(usage: Usage, wish: Wish, writer: Writer) -> int:
    """All rows; how many there were."""
    shows = sys.stderr.isatty()
    count = 0
    async for rows, reached in _rows(usage, wish):
        writer.write(rows)
        count += len(rows)
        if shows:
            sys.stderr.write(f"\r{count:,} rows, {reached} ")
    if shows:
        sys.stderr.write("\r\x1b[K")
    return count


async def _rows(usage: Usage, wish: Wish) -> AsyncIterator[tuple[Rows, str]]:
    """Rows, and how far they reach."""
    groups = wish.groups
    if groups is not None:
        found = await summaries(usage, wish.wanted, groups)
        if len(found) >= SUMS_MAX:
            raise ExportError(
                f"These are more than {SUMS_MAX:,} groups: group by less, or choose a shorter time."
            )
        yield [summary_fields(row, groups.names) for row in found], "sums"
        return
    request = usage_service_pb2.ListUsageRequest(filter=wish.wanted, page_size=PAGE_SIZE)
    while True:
        page: usage_service_pb2.ListUsageResponse = await usage.call(usage.usage.ListUsage, request)
        if page.records:
            reached = page.records[-1].started_at.ToDatetime(UTC)
            yield [_fields(record) for record in page.records], f"{reached:%Y-%m-%d %H:%M}"
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return


def _fields(record: UsageRecord) -> dict[str, object]:
    """A record, with its time to the microsecond."""
    started_at = record.started_at.ToDatetime(UTC).isoformat(timespec="microseconds")
    return {**record_fields(record), "started_at": started_at}
