"""How versions of the catalogue and what differs between them are shown."""

from collections.abc import Sequence
from datetime import UTC
from typing import Any, Final, assert_never

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cli.keys_view import console, print_json
from cli.usage_view import Output, print_csv
from onegate.usage.v1.catalogue_service_pb2 import CatalogueVersion
from services.usage.prices.catalogue_changes import ModelChange, Verdict

ROWS_MAX: Final = 200
"""How many lines of a comparison a table shows."""
DIGEST_CHARS: Final = 12

_BRIEF: Final = ("input_tokens", "cached_input_tokens", "output_tokens", "context_length")
"""What a table says of a model that is new or gone."""


def print_changes(changes: Sequence[ModelChange], output: Output) -> None:
    """What differs: everything for programs, the first of it and the counts for people."""
    match output:
        case Output.JSON:
            print_json([_change(change) for change in changes])
        case Output.CSV:
            columns = ("model", "verdict", "field", "before", "after")
            print_csv([dict(zip(columns, r, strict=True)) for r in _rows(changes)], columns)
        case Output.TABLE:
            _print_table(changes)
        case _:
            assert_never(output)


def print_versions(versions: Sequence[CatalogueVersion], output: Output) -> None:
    """Versions, newest first: the first is in force."""
    rows = [version_fields(version) for version in versions]
    match output:
        case Output.JSON:
            print_json(rows)
        case Output.CSV:
            print_csv(rows, list(version_fields(CatalogueVersion())))
        case Output.TABLE:
            made = Table(box=None, pad_edge=False)
            for name in ("version", "since", "by", "models", "digest", "from"):
                made.add_column(name, no_wrap=name != "from")
            for version, row in zip(versions, rows, strict=True):
                source = Text(version.source)
                if version.restores:
                    source = Text(f"version {version.restores} again: {version.source}")
                digest = version.digest[:DIGEST_CHARS]
                since = row["recorded_at"] or "-"
                by = Text(version.actor or "-")
                made.add_row(str(version.number), since, by, f"{version.models:,}", digest, source)
            console().print(made)
        case _:
            assert_never(output)


def version_fields(version: CatalogueVersion) -> dict[str, Any]:
    """A version as JSON has it."""
    recorded = None
    if version.HasField("recorded_at"):
        recorded = f"{version.recorded_at.ToDatetime(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return {
        "version": version.number,
        "recorded_at": recorded,
        "actor": version.actor,
        "models": version.models,
        "digest": version.digest,
        "source": version.source,
        "restores": version.restores or None,
    }


def _change(change: ModelChange) -> dict[str, Any]:
    fields = {f.name: {"before": f.before, "after": f.after} for f in change.fields}
    return {"model": change.model, "verdict": change.verdict.value, "fields": fields}


def _rows(changes: Sequence[ModelChange]) -> list[tuple[str, str, str, str, str]]:
    return [
        (change.model, change.verdict.value, field.name, field.before, field.after)
        for change in changes
        for field in change.fields
    ]


def _print_table(changes: Sequence[ModelChange]) -> None:
    made = Table(
        box=None, pad_edge=False, caption="USD for a million units", caption_justify="left"
    )
    made.add_column("model", no_wrap=True)
    for name in ("what", "before", "after"):
        made.add_column(name)
    lines = [line for change in changes for line in _lines(change)]
    for line in lines[:ROWS_MAX]:
        # Names are other people's text, not markup.
        made.add_row(*map(Text, line))
    if changes:
        console().print(made)
    if len(lines) > ROWS_MAX:
        console().print(f"… and {len(lines) - ROWS_MAX:,} lines more: see -o json", style="dim")
    counts = ", ".join(
        f"{sum(change.verdict is word for change in changes):,} models {word.value}"
        for word in Verdict
    )
    console().print(escape(counts), style="dim")


def _lines(change: ModelChange) -> list[tuple[str, str, str, str]]:
    if change.verdict is Verdict.CHANGED:
        return [
            ("" if number else change.model, field.name, field.before or "-", field.after or "-")
            for number, field in enumerate(change.fields)
        ]
    brief = [
        f"{field.name} {field.before or field.after}"
        for field in change.fields
        if field.name in _BRIEF
    ]
    said = ", ".join(brief) or "no price"
    before, after = ("-", said) if change.verdict is Verdict.ADDED else (said, "-")
    return [(change.model, change.verdict.value, before, after)]
