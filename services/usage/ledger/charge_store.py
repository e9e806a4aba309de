"""Charges attempts to the accounts of budgets, in the transaction that keeps their records.

A record that no budget counts costs a look into a dictionary. Where there never was a budget,
a whole batch costs one number read.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from onegate.usage.v1.budget_pb2 import Budget
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from services.usage.ledger import holds, transactions
from services.usage.ledger.budgets import Account, Book, account
from services.usage.ledger.hold_rows import locked, rewrite
from services.usage.ledger.holds import Held
from services.usage.ledger.ledger_store import LedgerStore
from services.usage.ledger.transactions import Kind, Tally


class Who(NamedTuple):
    """Who pays for a recorded attempt."""

    organization_id: str
    project_id: str
    key_id: str
    customer: str
    feature: str
    run: str


def payer_of(record: UsageRecord) -> Who:
    """Who pays for an attempt."""
    named = record.attribution
    return Who(
        record.organization_id,
        record.project_id,
        record.key_id,
        named.customer,
        named.feature,
        named.run,
    )


class Charger:
    """Charges records through the ledger."""

    def __init__(self, ledger_store: LedgerStore) -> None:
        self._ledger = ledger_store

    def charge(self, connection: Connection, records: Sequence[UsageRecord]) -> list[str]:
        """Releases what was held for some attempts and adds what they cost to every account that
        they count on. Called before their records are inserted, in the same transaction.

        Returns:
            The accounts that exist once the transaction commits, for :meth:`committed`.
        """
        book = self._ledger.book(connection)
        if not book.revision:
            return []
        concerned = [
            (record, matches)
            for record in records
            if (matches := _matches(book, record)) or record.HasField("reservation")
        ]
        if not concerned:
            return []
        return self._charge(connection, concerned)

    def doubt(self, connection: Connection, attempt_ids: Collection[str]) -> None:
        """Posts what is held for attempts as uncertain: nobody can believe their records."""
        self._ledger.book(connection)
        kept = locked(connection, attempt_ids)
        tally = Tally()
        for hold in kept.values():
            holds.expire(hold, tally)
        self._ledger.lock(connection, {a for hold in kept.values() for a in hold.accounts})
        self._ledger.apply(connection, tally, self._ledger.now_us(connection))
        rewrite(connection, kept.values())

    def committed(self, accounts: Collection[str]) -> None:
        """The transaction of :meth:`charge` has committed."""
        self._ledger.remember(accounts)

    def _charge(
        self,
        connection: Connection,
        concerned: Sequence[tuple[UsageRecord, list[tuple[Budget, str]]]],
    ) -> list[str]:
        now_us = self._ledger.now_us(connection)
        wanted = {record.attempt_id for record, _ in concerned}
        wanted |= {record.reservation.slice_id for record, _ in concerned} - {""}
        kept = locked(connection, wanted)
        tally = Tally()
        opened: dict[str, Account] = {}
        touched: set[str] = set()
        for record, matches in concerned:
            held_on, reserved = _settle(record, kept, tally)
            counted = {name.partition("/")[0] for name in held_on}
            more = [account(b, s, now_us) for b, s in matches if b.id not in counted]
            opened.update((one.id, one) for one in more)
            names = sorted({*held_on, *(one.id for one in more)})
            touched.update(names)
            if names and record.cost_nano_usd:
                over = max(record.cost_nano_usd - reserved, 0) if held_on else 0
                posting = transactions.transaction(
                    Kind.POSTING, record.attempt_id, names, record.cost_nano_usd, over
                )
                tally.write(posting)
            # Also accounts of the holds' may come to a part at which people are told.
            opened.update(_alerting(matches, held_on, now_us))
        self._ledger.open(connection, opened.values())
        lines = self._ledger.lock(connection, touched)
        self._ledger.apply(connection, tally, now_us)
        alerting = [one for one in opened.values() if one.id in touched]
        self._ledger.note_crossings(connection, lines, tally, alerting)
        rewrite(connection, kept.values())
        return sorted(touched)


def _matches(book: Book, record: UsageRecord) -> list[tuple[Budget, str]]:
    if not book.concerns(record.organization_id):
        return []
    return book.matching(payer_of(record))


def _settle(record: UsageRecord, kept: dict[str, Held], tally: Tally) -> tuple[Sequence[str], int]:
    """Releases what was set aside: on which accounts, and how much it was."""
    own = kept.get(record.attempt_id)
    slice_ = kept.get(record.reservation.slice_id) if record.reservation.slice_id else None
    reserved = own.amount_nano_usd if own is not None else 0
    share = 0
    if slice_ is not None and slice_.slice:
        share = max(record.reservation.slice_amount_nano_usd, 0)
    held_on = holds.settle(own, slice_, share, record.attempt_id, tally)
    return held_on, reserved + share


def _alerting(
    matches: Sequence[tuple[Budget, str]], held_on: Sequence[str], now_us: int
) -> list[tuple[str, Account]]:
    on = set(held_on)
    made = [account(b, s, now_us) for b, s in matches if b.alert.percents]
    return [(one.id, one) for one in made if one.id in on]
