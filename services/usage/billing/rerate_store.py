"""Keeps what calls cost after all: adjustments, entries of the ledger, and changed charges.

Records never change. An adjustment is the difference to what record and earlier adjustments add up
to, so that doing it again finds nothing to do. In the same transaction the cubes of the reports
take it in, and every account of an open period that the call was posted to.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, and_, func, insert, or_, select

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import billing_service_pb2 as pb
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.errors import GatewayError
from runtime.patterns import matches
from runtime.sql import Database, serialise
from services.usage.billing.agreement_store import (
    AgreementStore,
    Covered,
    charge_row,
    covered,
    recharged,
    write_charges,
)
from services.usage.billing.agreements import AgreementBook, invalid
from services.usage.billing.rerating import Rerated
from services.usage.driver_sql import run
from services.usage.invoices.used_store import standing_invoices
from services.usage.ledger import transactions
from services.usage.ledger.budgets import Account, account, account_named
from services.usage.ledger.charge_store import payer_of
from services.usage.ledger.ledger_schema import ACCOUNTS, ENTRIES
from services.usage.ledger.ledger_store import LedgerStore
from services.usage.ledger.transactions import WORLD, Kind, Tally
from services.usage.reports import rollup_store
from services.usage.reports.report_store import marks
from services.usage.reports.rollup_schema import ADJUSTMENTS
from services.usage.store import RECORDS

BATCH_MAX: Final = 500
"""Calls that one batch looks at."""
INVOICES_MAX: Final = 100

_R, _J = RECORDS.c, ADJUSTMENTS.c
_POSTING: Final = f"{Kind.POSTING.name.lower()}/"
_HOLD_KEPT: Final = "SELECT before_us FROM usage_rollup_marks WHERE name = 'kept' FOR SHARE"
_HOLD_BOOK: Final = "SELECT revision FROM budget_revisions FOR UPDATE"


class Place(NamedTuple):
    """Where a batch starts: after this call."""

    started_at_us: int
    attempt_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """A call that costs, or is charged, something else."""

    record: UsageRecord
    number: int
    cost_before: int
    cost_after: int
    charge_before: int
    charge_after: int
    price_version: str
    recharge: tuple[int, int, str] | None


@dataclass(slots=True, kw_only=True)
class _Found:
    """What differs, and which invoices have it."""

    changes: list[_Change] = field(default_factory=list)
    invoices: dict[str, None] = field(default_factory=dict)


class RerateStore:
    """Works on records in batches, oldest first."""

    def __init__(
        self, database: Database, ledger: LedgerStore, agreement_store: AgreementStore
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._agreements = agreement_store

    async def records(
        self, request: pb.RerateUsageRequest, after: Place | None
    ) -> tuple[list[UsageRecord], Place | None]:
        """The next calls that a request is about, and after which one to go on. Raises
        INVALID_REQUEST for a time of which records are gone.
        """
        span = request.started_from.ToMicroseconds(), request.started_before.ToMicroseconds()
        query = select(_R.started_at_us, _R.attempt_id, _R.model, _R.record).where(
            _R.started_at_us >= span[0], _R.started_at_us < span[1]
        )
        for column, value in (
            (_R.organization_id, request.organization_id),
            (_R.project_id, request.project_id),
            (_R.model, "" if "*" in request.model else request.model),
        ):
            if value:
                query = query.where(column == value)
        if after is not None:
            at, name = after
            query = query.where(
                or_(_R.started_at_us > at, and_(_R.started_at_us == at, _R.attempt_id > name))
            )
        query = query.order_by(_R.started_at_us, _R.attempt_id).limit(BATCH_MAX)

        def read(connection: Connection) -> Sequence[Any]:
            if span[0] < marks(connection).kept_us:
                raise invalid("started_from", "lies before the time of which records are kept")
            return connection.execute(query).all()

        rows = await self._database.read(read)
        pattern = request.model or "*"
        found = [UsageRecord.FromString(row.record) for row in rows if matches(pattern, row.model)]
        last = Place(rows[-1].started_at_us, rows[-1].attempt_id) if rows else None
        return found, last if len(rows) == BATCH_MAX else None

    async def look(self, batch: Sequence[Rerated]) -> pb.RerateUsageResponse:
        """What would change."""
        return await self._database.read(lambda c: _told(self._differing(c, batch)))

    async def keep(self, batch: Sequence[Rerated], *, billed: bool) -> pb.RerateUsageResponse:
        """Keeps what changes, all or nothing. Raises CONFLICT for a call that is on an invoice that
        stands, unless ``billed``.
        """
        return await self._database.write(lambda c: self._keep(c, batch, billed))

    def _keep(
        self, connection: Connection, batch: Sequence[Rerated], billed: bool
    ) -> pb.RerateUsageResponse:
        # One at a time, and no invoice is issued meanwhile.
        serialise(connection, "onegate_rerate")
        serialise(connection, "onegate_invoices")
        run(connection, _HOLD_KEPT)
        # Nobody opens an account meanwhile: it would count what it finds, and this too.
        run(connection, _HOLD_BOOK)
        found = self._differing(connection, batch)
        if found.invoices and not billed:
            raise _billed(found.invoices)
        now_us = self._ledger.now_us(connection)
        _adjust(
            connection, [one for one in found.changes if one.cost_after != one.cost_before], now_us
        )
        self._post(connection, found.changes, now_us)
        rows = [
            charge_row(one.record, one.number, one.recharge, now_us)
            for one in found.changes
            if one.recharge is not None
        ]
        write_charges(connection, rows)
        return _told(found)

    def _differing(self, connection: Connection, batch: Sequence[Rerated]) -> _Found:
        found = _Found()
        names = [one.record.attempt_id for one in batch]
        if not names:
            return found
        adjusted = _adjusted(connection, names)
        charges = covered(connection, names)
        book = self._agreements.book(connection)
        for one in batch:
            name = one.record.attempt_id
            before = adjusted.get(name, (0, 0))
            change = _change(one, before, charges.get(name, Covered(0, 0, 0)), book)
            if change is not None:
                found.changes.append(change)
        bills = standing_invoices(connection, [one.record for one in found.changes])
        found.invoices.update(dict.fromkeys(bills))
        return found

    def _post(self, connection: Connection, changes: Sequence[_Change], now_us: int) -> None:
        """Adds differences to the accounts of open periods that the calls count on."""
        book = self._ledger.book(connection)
        more = {o.record.attempt_id: o for o in changes if o.cost_after != o.cost_before}
        if not book.revision or not more:
            return
        accounts = _accounts(connection, book, more, now_us)
        tally = Tally()
        for name, of in accounts.items():
            change = more[name]
            tally.write(
                transactions.transaction(
                    Kind.RERATING,
                    f"{name}/{change.number}",
                    sorted(one.id for one in of),
                    change.cost_after - change.cost_before,
                )
            )
        touched = {one.id: one for of in accounts.values() for one in of}
        lines = self._ledger.lock(connection, touched)
        self._ledger.apply(connection, tally, now_us)
        alerting = [one for one in touched.values() if one.budget.alert.percents]
        self._ledger.note_crossings(connection, lines, tally, alerting)


def _change(
    one: Rerated, adjusted: tuple[int, int], charges: Covered, book: AgreementBook
) -> _Change | None:
    rows, so_far = adjusted
    before = one.record.cost_nano_usd + so_far
    after = before if one.cost_nano_usd is None else one.cost_nano_usd
    recharge = recharged(after, book.charged(one.record, after), charges)
    if after == before and recharge is None:
        return None
    margin = charges.margin_nano_usd
    return _Change(
        record=one.record,
        # Every change adds at least one row, so that no number comes twice.
        number=rows + charges.rows + 1,
        cost_before=before,
        cost_after=after,
        charge_before=before + margin,
        charge_after=after + margin + (recharge[1] if recharge else 0),
        price_version=one.price_version,
        recharge=recharge,
    )


def _adjusted(
    connection: Connection, attempt_ids: Collection[str]
) -> Mapping[str, tuple[int, int]]:
    """How many adjustments attempts have, and their sum."""
    query = (
        select(_J.attempt_id, func.count(), func.sum(_J.amount_nano_usd))
        .where(_J.attempt_id.in_(sorted(attempt_ids)))
        .group_by(_J.attempt_id)
    )
    return {row[0]: (int(row[1]), int(row[2])) for row in connection.execute(query)}


def _adjust(connection: Connection, changes: Sequence[_Change], now_us: int) -> None:
    """Keeps the differences for reports, and puts them into the cubes."""
    if not changes:
        return
    hours_us = rollup_store.lock(connection)
    rows = [
        {
            "id": f"rerate/{one.record.attempt_id}/{one.number}",
            "attempt_id": one.record.attempt_id,
            "started_at_us": one.record.started_at.ToMicroseconds(),
            "amount_nano_usd": one.cost_after - one.cost_before,
            "price_version": one.price_version,
            "recorded_at_us": now_us,
        }
        for one in changes
    ]
    connection.execute(insert(ADJUSTMENTS), rows)
    rollup_store.add(connection, hours_us, [str(row["id"]) for row in rows], adjusting=True)


def _accounts(
    connection: Connection, book: Any, changes: Mapping[str, _Change], now_us: int
) -> dict[str, list[Account]]:
    """The accounts of open periods that calls count on, by attempt id: those that were posted to,
    and those that were opened later and took the call in as a part of their history.
    """
    posted = _posted(connection, changes)
    candidates: dict[str, list[Account]] = {}
    for name, change in changes.items():
        found = [account_named(book, one) for one in posted.get(name, ())]
        counted = {one.budget.id for one in found}
        at_us = change.record.started_at.ToMicroseconds()
        for budget, subject in book.matching(payer_of(change.record)):
            if budget.id not in counted:
                one = account(budget, subject, at_us)
                if one.history_from_us is not None and at_us >= one.history_from_us:
                    found.append(one)
        candidates[name] = [o for o in found if o.span.end_us is None or o.span.end_us > now_us]
    wanted = {one.id for some in candidates.values() for one in some}
    there = set(
        connection.execute(select(ACCOUNTS.c.id).where(ACCOUNTS.c.id.in_(sorted(wanted)))).scalars()
    )
    kept = {name: [o for o in some if o.id in there] for name, some in candidates.items()}
    return {name: some for name, some in kept.items() if some}


def _posted(connection: Connection, attempt_ids: Collection[str]) -> dict[str, list[str]]:
    """The accounts that attempts were posted to."""
    query = select(ENTRIES.c.transaction_id, ENTRIES.c.account_id).where(
        ENTRIES.c.transaction_id.in_([f"{_POSTING}{name}" for name in sorted(attempt_ids)]),
        ENTRIES.c.account_id != WORLD,
    )
    found: dict[str, list[str]] = {}
    for transaction_id, account_id in connection.execute(query):
        found.setdefault(transaction_id.removeprefix(_POSTING), []).append(account_id)
    return found


def _told(found: _Found) -> pb.RerateUsageResponse:
    rows: dict[str, pb.RerateRow] = {}
    for one in found.changes:
        row = rows.setdefault(one.record.model, pb.RerateRow(model=one.record.model))
        row.calls += 1
        row.cost_before_nano_usd += one.cost_before
        row.cost_after_nano_usd += one.cost_after
        row.charge_before_nano_usd += one.charge_before
        row.charge_after_nano_usd += one.charge_after
    return pb.RerateUsageResponse(
        rows=[rows[name] for name in sorted(rows)],
        invoices=list(found.invoices)[:INVOICES_MAX],
    )


def _billed(invoices: Collection[str]) -> GatewayError:
    first = next(iter(invoices))
    return GatewayError(
        error_pb2.ERROR_REASON_CONFLICT,
        f"{first} bills calls that would cost something else. Credit it in whole first, or allow"
        " it: the difference is then a line of the next invoice of the same scope.",
    )
