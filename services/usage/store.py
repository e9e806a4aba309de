"""Where usage is kept: a row for every attempt, once and for ever, and what contradicts it aside.

The attempt's id is the primary key and the only guard against counting twice: a record that comes
again changes nothing, however late. A record whose id is known with another content never
replaces the first; it lies in quarantine for people to look at. Columns are what reports ask for;
the whole record lies beside them.

The ledger's postings point here by attempt id. Nothing in these tables is ever updated. On
PostgreSQL the records lie in parts by month (:mod:`services.usage.retention.months`); what a
retention setting lets go is removed by :mod:`services.usage.retention.retention_store` alone.
"""

import enum
import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from operator import attrgetter, itemgetter
from typing import Any, Final, Protocol

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Select,
    String,
    Table,
    Text,
    and_,
    insert,
    or_,
    select,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.types import TypeEngine

from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.failpoints import OFF, Failpoint, Failpoints
from runtime.sql import Database, Migration, NanoUsd, RowNumber
from services.usage.driver_sql import insertion, run, run_all
from services.usage.reports import rollup_schema
from services.usage.reports.queries import Cursor, Selection
from services.usage.reports.rollup_schema import COUNTS
from services.usage.retention import partition_schema

_LOG = logging.getLogger(__name__)

_METADATA = MetaData()
ID_CHARS_MAX: Final = 64
_ID: Final = String(ID_CHARS_MAX)

_FIELDS: Final[Mapping[str, tuple[str, TypeEngine[Any]]]] = {
    "attempt_id": ("attempt_id", String(36)),
    "request_id": ("request_id", Text()),
    "attempt_number": ("attempt_number", Integer()),
    "organization_id": ("organization_id", _ID),
    "project_id": ("project_id", _ID),
    "key_id": ("key_id", _ID),
    "model": ("model", Text()),
    "model_requested": ("model_requested", Text()),
    "provider": ("provider", Text()),
    "endpoint": ("endpoint", Text()),
    "stream": ("stream", Boolean()),
    "duration_us": ("duration_us", BigInteger()),
    "first_token_us": ("first_token_us", BigInteger()),
    "outcome": ("outcome", Integer()),
    "error_reason": ("error_reason", Integer()),
    "upstream_status": ("upstream_status", Integer()),
    "cost_nano_usd": ("cost_nano_usd", NanoUsd()),
    "price_version": ("price_version", Text()),
    "certainty": ("certainty", Integer()),
    "end_user": ("attribution.end_user", Text()),
    "customer": ("attribution.customer", Text()),
    "feature": ("attribution.feature", Text()),
    "run": ("attribution.run", Text()),
    "upstream_request_id": ("upstream_request_id", Text()),
    "service_tier": ("tokens.service_tier", Text()),
    "credential": ("credential", Text()),
}
"""Columns that are a field of the record: which one, and the type."""

_ADDED: Final = ("service_tier", "cached_input_audio_tokens", "team", "tags", "credential")
"""Columns that later migrations added; they are empty in rows from before."""

RECORDS = Table(
    "usage_records",
    _METADATA,
    *(
        Column(name, kind, primary_key=name == "attempt_id", nullable=False)
        for name, (_, kind) in _FIELDS.items()
    ),
    *(Column(name, BigInteger, nullable=False) for name in COUNTS),
    # The tag `team`, and all tags as a JSON object; empty where there are none.
    Column("team", Text, nullable=False),
    Column("tags", Text, nullable=False),
    Column("started_at_us", BigInteger, nullable=False),
    Column("recorded_at_us", BigInteger, nullable=False),
    # The record as it came, for what no column names.
    Column("record", LargeBinary, nullable=False),
)

QUARANTINE = Table(
    "usage_quarantine",
    _METADATA,
    Column("id", RowNumber, primary_key=True),
    Column("attempt_id", Text, nullable=False),
    # The same contradiction is kept once, however often it is sent.
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("why", Text, nullable=False),
    Column("recorded_at_us", BigInteger, nullable=False),
    Column("record", LargeBinary, nullable=False),
)

_C = RECORDS.c
_INDEXES: Final = (
    Index("usage_records_by_time", _C.started_at_us, _C.attempt_id),
    Index("usage_records_by_organization", _C.organization_id, _C.started_at_us),
    Index("usage_records_by_project", _C.project_id, _C.started_at_us),
    Index("usage_records_by_key", _C.key_id, _C.started_at_us),
    Index("usage_records_by_model", _C.model, _C.started_at_us),
    Index("usage_records_by_request", _C.request_id),
    Index("usage_quarantine_by_attempt", QUARANTINE.c.attempt_id),
)

_FIRST_RECORDS: Final = Table(
    RECORDS.name,
    MetaData(),
    *(
        Column(column.name, column.type, primary_key=column.primary_key, nullable=False)
        for column in RECORDS.columns
        if column.name not in _ADDED
    ),
)

_ADD_CACHED_AUDIO: Final = (
    "ALTER TABLE usage_records ADD COLUMN cached_input_audio_tokens BIGINT NOT NULL DEFAULT 0"
)

MIGRATIONS: Final = (
    Migration(
        version=1,
        statements=(
            *map(CreateTable, (_FIRST_RECORDS, QUARANTINE)),
            *map(CreateIndex, _INDEXES),
        ),
    ),
    Migration(
        version=2,
        statements=(
            *(
                f"ALTER TABLE usage_records ADD COLUMN {name} TEXT NOT NULL DEFAULT ''"
                for name in ("service_tier", "team", "tags")
            ),
            _ADD_CACHED_AUDIO,
            *rollup_schema.STATEMENTS,
        ),
    ),
    Migration(
        version=3,
        statements=("ALTER TABLE usage_records ADD COLUMN credential TEXT NOT NULL DEFAULT ''",),
    ),
    Migration(version=4, statements=rollup_schema.DOUBT_STATEMENTS),
    Migration(version=5, statements=partition_schema.STATEMENTS),
)

STARTED_AT_US_MAX: Final = 2**62
COST_NANO_USD_MAX: Final = 10**15
"""A call for more than a million dollars is a mistake that a person must look at. A row of 2**63
would also make every sum over it overflow.
"""
COUNT_MAX: Final = 10**12
"""The same for tokens."""

RACES_MAX: Final = 5
"""How often a batch is looked at again because another process kept some of it meanwhile."""


class Verdict(enum.Enum):
    """What became of one record."""

    INSERTED = enum.auto()
    DUPLICATE = enum.auto()
    QUARANTINED = enum.auto()


class Charges(Protocol):
    """Charges records to whoever has a budget, in the transaction that keeps them."""

    def charge(self, connection: Connection, records: Sequence[UsageRecord]) -> Collection[str]:
        """Releases what was held for records that are about to be kept and adds what they cost;
        the accounts that it used.
        """
        ...

    def doubt(self, connection: Connection, attempt_ids: Collection[str]) -> None:
        """Keeps what is held for attempts whose records nobody can believe."""
        ...

    def committed(self, accounts: Collection[str]) -> None:
        """The transaction that used these accounts has committed."""
        ...


class Store(Protocol):
    """Keeps usage. Raises STORE_UNAVAILABLE while the database is away."""

    async def migrate(self, *, now: datetime) -> None:
        """Brings the schema up to date; nothing else may be called before."""
        ...

    async def record(self, records: Sequence[UsageRecord], *, now_us: int) -> list[Verdict]:
        """Keeps records, all in one transaction; a verdict for each, in order."""
        ...

    async def list_records(
        self, selection: Selection, *, after: Cursor | None, count_max: int
    ) -> list[UsageRecord]:
        """Up to ``count_max`` records older than ``after``, newest first."""
        ...

    async def close(self) -> None:
        """Lets go of the database."""
        ...


class _OutdatedError(Exception):
    """A record is from a time of which records were removed: it may have been one of them."""


class SqlStore:
    """The store on any SQL database that ``runtime.sql`` knows.

    Args:
        database: where records are kept.
        charges: charges them to budgets in the same transaction; ``None`` for no budgets.
        failpoints: where a test may end this process.
    """

    def __init__(
        self,
        database: Database,
        charges: Charges | None = None,
        failpoints: Failpoints = OFF,
    ) -> None:
        self.database = database
        self._failpoints = failpoints
        self._charges = charges

    async def migrate(self, *, now: datetime) -> None:
        """See :class:`Store`."""
        await self.database.migrate("usage", MIGRATIONS, now=now)

    async def record(self, records: Sequence[UsageRecord], *, now_us: int) -> list[Verdict]:
        """See :class:`Store`."""
        distinct = {record.attempt_id for record in records}
        if len(distinct) == len(records) and not any(map(_fault, records)):
            try:
                used = await self.database.write(
                    lambda c: self._insert(c, records, [_row(r, now_us) for r in records])
                )
            except (IntegrityError, _OutdatedError):
                # Some are known or too old: the transaction left nothing behind, and is done again
                # with care.
                _LOG.debug("a batch holds records that are known or too old")
            else:
                if self._charges is not None:
                    self._charges.committed(used)
                return [Verdict.INSERTED] * len(records)
        for _ in range(RACES_MAX - 1):
            try:
                return await self._with_care(records, now_us)
            except IntegrityError:
                # Another process kept some of them since they were looked for: they are known now.
                _LOG.debug("a batch was overtaken")
        return await self._with_care(records, now_us)

    async def _with_care(self, records: Sequence[UsageRecord], now_us: int) -> list[Verdict]:
        return await self.database.write(lambda c: self._insert_with_care(c, records, now_us))

    def _insert(
        self,
        connection: Connection,
        records: Sequence[UsageRecord],
        rows: Sequence[tuple[object, ...]],
    ) -> Collection[str]:
        """All records, charged and kept, or none; the accounts that they are charged to.

        Values go to the driver as they are: none of these types needs the statement's own
        processing, which costs more per row than SQLite does.
        """
        _note_late(connection, records)
        # Before the rows are there: an account that is opened now adds up the rows of the past.
        used = self._charges.charge(connection, records) if self._charges is not None else ()
        # In one order everywhere, or two processes with the same records may wait for each other.
        run_all(connection, _INSERT, sorted(rows, key=itemgetter(0)))
        self._failpoints.hit(Failpoint.RECORD_UNCOMMITTED)
        return used

    def _insert_with_care(
        self, connection: Connection, records: Sequence[UsageRecord], now_us: int
    ) -> list[Verdict]:
        """Looks at each record before it is kept."""
        kept_us, _ = _marks(connection)
        known = _known(connection, {r.attempt_id for r in records if not _fault(r)})
        new: list[UsageRecord] = []
        aside: list[tuple[UsageRecord, str]] = []
        verdicts: list[Verdict] = []
        for record in records:
            first = known.get(record.attempt_id)
            fault = _fault(record)
            if not fault and first is None and record.started_at.ToMicroseconds() < kept_us:
                fault = "records of its time are kept no more, and it may have been one of them"
            if fault or (first is not None and first != record):
                aside.append((record, fault or "another record has this attempt id"))
                verdicts.append(Verdict.QUARANTINED)
            elif first is not None:
                verdicts.append(Verdict.DUPLICATE)
            else:
                known[record.attempt_id] = record
                new.append(record)
                verdicts.append(Verdict.INSERTED)
        if new:
            self._insert(connection, new, [_row(record, now_us) for record in new])
        unknown = {r.attempt_id for r, _ in aside if r.HasField("reservation")} - known.keys()
        if unknown and self._charges is not None:
            self._charges.doubt(connection, unknown)
        _set_aside(connection, aside, now_us)
        return verdicts

    async def list_records(
        self, selection: Selection, *, after: Cursor | None, count_max: int
    ) -> list[UsageRecord]:
        """See :class:`Store`."""
        query = _selected(select(_C.record), selection)
        if after is not None:
            at = after.started_at_us
            same = and_(_C.started_at_us == at, _C.attempt_id < after.attempt_id)
            query = query.where(or_(_C.started_at_us < at, same))
        query = query.order_by(_C.started_at_us.desc(), _C.attempt_id.desc()).limit(count_max)
        found = await self.database.read(lambda c: c.execute(query).scalars().all())
        return [UsageRecord.FromString(record) for record in found]

    async def close(self) -> None:
        """See :class:`Store`."""
        await self.database.close()


def _selected(query: Select[Any], selection: Selection) -> Select[Any]:
    query = query.where(*(_C[name] == value for name, value in selection.wanted().items()))
    if selection.from_us is not None:
        query = query.where(_C.started_at_us >= selection.from_us)
    if selection.before_us is not None:
        query = query.where(_C.started_at_us < selection.before_us)
    return query


def _note_late(connection: Connection, records: Sequence[UsageRecord]) -> None:
    """Remembers records of hours that are sealed. Until this transaction ends, none is sealed."""
    kept_us, sealed_us = _marks(connection)
    late = [
        (record.attempt_id, started_at_us)
        for record in records
        if (started_at_us := record.started_at.ToMicroseconds()) < sealed_us
    ]
    if any(started_at_us < kept_us for _, started_at_us in late):
        raise _OutdatedError
    run_all(connection, _INSERT_LATE, sorted(late))


def _marks(connection: Connection) -> tuple[int, int]:
    """From when records are kept, and before when hours are sealed; neither changes until the
    transaction ends.
    """
    found = dict(run(connection, _MARKS))
    return found["kept"], found["sealed"]


_MARKS: Final = (
    "SELECT name, before_us FROM usage_rollup_marks WHERE name IN ('kept', 'sealed')"
    " ORDER BY name FOR SHARE"
)
_INSERT: Final = insertion(RECORDS.name, RECORDS.c.keys())
_INSERT_LATE: Final = insertion(rollup_schema.LATE.name, rollup_schema.LATE.c.keys())


def _row(record: UsageRecord, now_us: int) -> tuple[object, ...]:
    """A row of ``usage_records``, in the order of its columns."""
    counts = _counts_of(record.tokens)
    if min(counts) < 0:
        # What costs as nothing (runtime/money.py) counts as nothing.
        counts = tuple(max(count, 0) for count in counts)
    started_at_us = record.started_at.ToMicroseconds()
    content = record.SerializeToString()
    team = tags = ""
    if record.tags:
        team = record.tags.get("team", "")
        tags = json.dumps(dict(record.tags), ensure_ascii=False, sort_keys=True)
    return (*_fields_of(record), *counts, team, tags, started_at_us, now_us, content)


_fields_of = attrgetter(*(path for path, _ in _FIELDS.values()))
_counts_of = attrgetter(*COUNTS)
_texts_of = attrgetter(
    *(path for path, kind in _FIELDS.values() if isinstance(kind, (String, Text)))
)
_ids_of = attrgetter(*(path for path, kind in _FIELDS.values() if kind is _ID))


def _fault(record: UsageRecord) -> str:
    """Why a record cannot be a row; empty when it can."""
    if len(record.attempt_id) != 36:
        return "the attempt id is no UUID"
    if not 0 < record.started_at.ToMicroseconds() < STARTED_AT_US_MAX:
        return "it does not say when it started"
    if not 0 <= record.cost_nano_usd <= COST_NANO_USD_MAX:
        return "its cost is absurd"
    if max(_counts_of(record.tokens)) > COUNT_MAX:
        return "its token counts are absurd"
    if max(map(len, _ids_of(record))) > ID_CHARS_MAX:
        return "an id is too long"
    if "\0" in "".join((*_texts_of(record), *record.tags, *record.tags.values())):
        # PostgreSQL cannot keep one; what one database refuses, none takes.
        return "a text holds a NUL"
    return ""


def _known(connection: Connection, attempt_ids: set[str]) -> dict[str, UsageRecord]:
    query = select(_C.record).where(_C.attempt_id.in_(attempt_ids))
    found = (UsageRecord.FromString(record) for record in connection.execute(query).scalars())
    return {record.attempt_id: record for record in found}


def _set_aside(
    connection: Connection, records: Sequence[tuple[UsageRecord, str]], now_us: int
) -> None:
    for record, why in records:
        content = record.SerializeToString(deterministic=True)
        digest = hashlib.sha256(content).digest()
        there = select(QUARANTINE.c.id).where(QUARANTINE.c.digest == digest)
        if connection.execute(there).first() is None:
            connection.execute(
                insert(QUARANTINE).values(
                    attempt_id=record.attempt_id.replace("\0", "\N{REPLACEMENT CHARACTER}"),
                    digest=digest,
                    why=why,
                    recorded_at_us=now_us,
                    record=content,
                )
            )
