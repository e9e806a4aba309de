"""Where agreements are kept, and what they make of the records that come."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, func, insert, select

from onegate.usage.v1.billing_pb2 import Agreement
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.sql import Database, serialise
from services.usage.billing import agreements
from services.usage.billing.agreements import AgreementBook, Charged
from services.usage.billing.billing_schema import AGREEMENTS, CHARGES, MIGRATIONS
from services.usage.driver_sql import insertion, run, run_all
from services.usage.ledger.ledger_store import NowUs
from services.usage.store import Charges

_A = AGREEMENTS.c
_REVISION = "SELECT coalesce(max(number), 0) FROM billing_agreements"
_INSERT_CHARGE = insertion(CHARGES.name, CHARGES.c.keys())


class Covered(NamedTuple):
    """What the rows of an attempt's charges add up to."""

    rows: int
    cost_nano_usd: int
    margin_nano_usd: int


class AgreementStore:
    """Agreements, in the database of the records that they are about.

    Args:
        database: the database.
        now_us: the clock that all writers share.
    """

    def __init__(self, database: Database, now_us: NowUs) -> None:
        self._database = database
        self._now_us = now_us
        self._book = AgreementBook()

    async def migrate(self, *, now: datetime) -> None:
        """Brings the schema of billing up to date."""
        await self._database.migrate("usage_billing", MIGRATIONS, now=now)

    async def set(self, wanted: Agreement) -> tuple[Agreement, bool]:
        """Keeps an agreement; false when the very same is in force. Raises INVALID_REQUEST."""
        return await self._database.write(lambda c: self._set(c, wanted))

    async def list(
        self, organization_id: str, before: int | None, count_max: int
    ) -> "list[tuple[int, Agreement]]":
        """Numbers and agreements, newest first."""
        query = select(_A.number, _A.agreement).order_by(_A.number.desc()).limit(count_max)
        if organization_id:
            query = query.where(_A.organization_id == organization_id)
        if before is not None:
            query = query.where(_A.number < before)
        found = await self._database.read(lambda c: c.execute(query).all())
        return [(row.number, _named(row.number, row.agreement)) for row in found]

    def book(self, connection: Connection) -> AgreementBook:
        """The agreements as a transaction sees them."""
        ((revision,),) = run(connection, _REVISION)
        book = self._book
        if revision != book.revision:
            rows = connection.execute(select(_A.number, _A.agreement).order_by(_A.number)).all()
            made = [_named(row.number, row.agreement) for row in rows]
            self._book = book = AgreementBook(made, revision)
        return book

    def charge(self, connection: Connection, records: Sequence[UsageRecord]) -> None:
        """Keeps what new records are charged where something was agreed on."""
        book = self.book(connection)
        if not book.revision:
            return
        now_us, rows = 0, []
        for record in records:
            charged = book.charged(record, record.cost_nano_usd)
            if charged is not None:
                now_us = now_us or self._now_us(connection)
                more = (record.cost_nano_usd, charged.amount_nano_usd - record.cost_nano_usd)
                rows.append(charge_row(record, 0, (*more, charged.agreement_id), now_us))
        run_all(connection, _INSERT_CHARGE, sorted(rows))

    def _set(self, connection: Connection, wanted: Agreement) -> tuple[Agreement, bool]:
        # Numbers grow in the order of commits, or a reader could pass one by.
        serialise(connection, "onegate_agreements")
        kept = agreements.checked(wanted, self._now_us(connection))
        standing = self.book(connection).standing(kept)
        if standing is not None and agreements.same(standing, kept):
            return standing, False
        if standing is None and kept.WhichOneof("charge") is None:
            raise agreements.invalid("agreement", "ends one that is not in force")
        content = kept.SerializeToString()
        row = {"organization_id": kept.payer.organization_id, "agreement": content}
        made = connection.execute(insert(AGREEMENTS).values(row))
        (number,) = made.inserted_primary_key or (0,)
        return _named(number, content), True


class Postings:
    """Charges records to budgets and under agreements, in the transaction that keeps them. Where
    there never was an agreement, a whole batch costs one number read.
    """

    def __init__(self, budgets: Charges, agreement_store: AgreementStore) -> None:
        self._budgets = budgets
        self._agreements = agreement_store

    def charge(self, connection: Connection, records: Sequence[UsageRecord]) -> Collection[str]:
        """See :class:`services.usage.store.Charges`."""
        used = self._budgets.charge(connection, records)
        self._agreements.charge(connection, records)
        return used

    def doubt(self, connection: Connection, attempt_ids: Collection[str]) -> None:
        """See :class:`services.usage.store.Charges`."""
        self._budgets.doubt(connection, attempt_ids)

    def committed(self, accounts: Collection[str]) -> None:
        """See :class:`services.usage.store.Charges`."""
        self._budgets.committed(accounts)


def covered(connection: Connection, attempt_ids: Collection[str]) -> Mapping[str, Covered]:
    """What agreements made of attempts so far."""
    attempt = CHARGES.c.attempt_id
    query = (
        select(
            attempt,
            func.count(),
            func.sum(CHARGES.c.cost_nano_usd),
            func.sum(CHARGES.c.margin_nano_usd),
        )
        .where(attempt.in_(sorted(attempt_ids)))
        .group_by(attempt)
    )
    found = connection.execute(query).all()
    return {row[0]: Covered(int(row[1]), int(row[2]), int(row[3])) for row in found}


def recharged(cost: int, charged: Charged | None, before: Covered) -> tuple[int, int, str] | None:
    """By how much covered cost and margin of an attempt change; ``None`` for nothing."""
    after = (0, 0) if charged is None else (cost, charged.amount_nano_usd - cost)
    more = after[0] - before.cost_nano_usd, after[1] - before.margin_nano_usd
    if more == (0, 0):
        return None
    return *more, "" if charged is None else charged.agreement_id


def write_charges(connection: Connection, rows: Sequence[tuple[object, ...]]) -> None:
    """Keeps rows of :func:`charge_row`."""
    run_all(connection, _INSERT_CHARGE, sorted(rows, key=repr))


def charge_row(
    record: UsageRecord, number: int, more: tuple[int, int, str], now_us: int
) -> tuple[object, ...]:
    """A row of ``usage_charges``: the ``number``-th change to what its record was charged."""
    cost, margin, agreement_id = more
    return (
        f"{record.attempt_id}/{number}" if number else record.attempt_id,
        record.attempt_id,
        record.organization_id,
        record.project_id,
        record.attribution.customer,
        record.started_at.ToMicroseconds(),
        cost,
        margin,
        agreement_id,
        now_us,
    )


def _named(number: int, agreement: bytes) -> Agreement:
    made = Agreement.FromString(agreement)
    made.id = f"agr_{number}"
    return made
