"""The tables of rollups: sums by hour and by day, and what says how far they go.

A cube holds the sums for every combination of some columns. Its rows are only ever inserted, and
several may be about the same combination: what came late, or was priced anew, is a further row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import BigInteger, Column, Index, MetaData, String, Table, Text
from sqlalchemy.schema import CreateIndex, CreateTable, ExecutableDDLElement

METADATA: Final = MetaData()

COUNTS: Final = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "input_audio_tokens",
    "cached_input_audio_tokens",
    "input_image_tokens",
    "output_tokens",
    "reasoning_tokens",
    "output_audio_tokens",
    "output_image_tokens",
    "web_searches",
)
"""Columns of records that are a field of the record's ``tokens``, by the same name."""

MEASURES: Final = ("attempts", "failures", "attempts_searching", "cost_nano_usd", *COUNTS)
"""What is summed up, by the names that the contract has for it."""

UNCERTAIN: Final = "uncertain_nano_usd"
"""The part of the cost that is :data:`DOUBTS`; beside the measures, because no cube has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cube:
    """Sums by some columns of the records, for each hour and for each day."""

    columns: tuple[str, ...]
    hours: Table
    days: Table


def _table(name: str, columns: Sequence[str]) -> Table:
    return Table(
        name,
        METADATA,
        Column("start_us", BigInteger, nullable=False),
        *(
            Column(one, String(64) if one.endswith("_id") else Text(), nullable=False)
            for one in columns
        ),
        *(Column(one, BigInteger, nullable=False) for one in MEASURES),
        Index(f"{name}_by_time", "start_us"),
        Index(f"{name}_by_organization", "organization_id", "start_us"),
    )


def _cube(name: str, *columns: str) -> Cube:
    return Cube(
        columns=columns,
        hours=_table(f"usage_{name}_hours", columns),
        days=_table(f"usage_{name}_days", columns),
    )


CUBES: Final = (
    _cube(
        "key",
        "organization_id",
        "project_id",
        "key_id",
        "model",
        "provider",
        "endpoint",
        "service_tier",
    ),
    _cube(
        "purpose",
        "organization_id",
        "project_id",
        "model",
        "provider",
        "endpoint",
        "team",
        "feature",
        "customer",
    ),
)
"""The first that has all columns of a question answers it. Runs, end users and other tags are too
many to be worth sums: questions about them read the records.
"""

MARKS = Table(
    "usage_rollup_marks",
    METADATA,
    Column("name", String(16), primary_key=True),
    Column("before_us", BigInteger, nullable=False),
)
"""How far things are, in microseconds since 1970. What started before ``sealed`` comes late. What
started before ``hours`` is in the cubes' hours, and before ``days`` in their days, except for what
:data:`LATE` names.
"""

LATE = Table(
    "usage_late",
    METADATA,
    Column("attempt_id", String(36), primary_key=True),
    Column("started_at_us", BigInteger, nullable=False),
)
"""Records that came after their hour was sealed and are in no cube yet."""

ADJUSTMENTS = Table(
    "usage_adjustments",
    METADATA,
    # Names it for ever: the same correction is never written twice.
    Column("id", Text, primary_key=True),
    Column("attempt_id", String(36), nullable=False),
    # When the attempt started: what a report of that time costs more or less.
    Column("started_at_us", BigInteger, nullable=False),
    Column("amount_nano_usd", BigInteger, nullable=False),
    Column("price_version", Text, nullable=False),
    Column("recorded_at_us", BigInteger, nullable=False),
    Index("usage_adjustments_by_time", "started_at_us"),
    Index("usage_adjustments_by_attempt", "attempt_id"),
)
"""What attempts cost more or less than their records say."""

DOUBTS = Table(
    "usage_doubts",
    METADATA,
    # The ledger's transaction: written with it, once.
    Column("id", Text, primary_key=True),
    # The attempt's hold, or the slice's.
    Column("hold_id", String(36), nullable=False),
    # When the money was set aside.
    Column("started_at_us", BigInteger, nullable=False),
    # Less than nothing takes back what came out after all.
    Column("amount_nano_usd", BigInteger, nullable=False),
    Column("organization_id", String(64), nullable=False),
    # Who it was, as far as the budgets that it was held on say so; empty beyond.
    Column("project_id", String(64), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("customer", Text, nullable=False),
    Column("feature", Text, nullable=False),
    Column("run", Text, nullable=False),
    Index("usage_doubts_by_time", "started_at_us"),
)
"""What may have been spent by attempts of which no record came: their sum is what the ledger has
posted as uncertain and not corrected. Few, and read as they are.
"""


def _name(index: Index) -> str:
    return str(index.name)


_TABLES: Final = (
    MARKS,
    LATE,
    ADJUSTMENTS,
    *(table for cube in CUBES for table in (cube.hours, cube.days)),
)

STATEMENTS: Final[tuple[str | ExecutableDDLElement, ...]] = (
    *map(CreateTable, _TABLES),
    *(CreateIndex(index) for table in _TABLES for index in sorted(table.indexes, key=_name)),
    *(
        f"INSERT INTO usage_rollup_marks (name, before_us) VALUES ('{name}', 0)"  # noqa: S608
        for name in ("sealed", "hours", "days")
    ),
)

DOUBT_STATEMENTS: Final[tuple[str | ExecutableDDLElement, ...]] = (
    CreateTable(DOUBTS),
    *(CreateIndex(index) for index in DOUBTS.indexes),
)
