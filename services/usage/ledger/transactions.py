"""What the ledger writes: transactions whose entries sum to zero. Pure.

What a budget's account gains, :data:`WORLD` loses. Nothing is ever changed: what turns out to be
wrong is put right by a further transaction. The id of a transaction says what it is about, so
that the database's primary key refuses to write it twice.
"""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

WORLD: Final = "world"
"""The other side of every entry: whom the providers' bills come from. It has no kept balance: it is
what all accounts have together, with the sign turned, and would be the one row that all share."""


class LedgerError(Exception):
    """The books do not allow what was about to be written: a defect. Nothing was written."""


class Kind(enum.IntEnum):
    """Why a transaction was written."""

    POSTING = 1
    """An attempt's record came."""
    OPENING = 2
    """An account was opened in a period that has begun already."""
    UNCERTAIN = 3
    """A lease ran out: what was held stands in for what nobody knows."""
    CORRECTION = 4
    """The truth came after all: takes back an UNCERTAIN one, in whole or for a share."""
    CARRIED = 5
    """Stands for many old postings with the same sums."""
    RERATING = 6
    """A call turned out to cost more or less than its record says: the price was corrected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """Entries that are written together or not at all.

    Attributes:
        id: names it for ever.
        kind: why it was written.
        reference: the attempt, slice or account that it is about.
        entries: what each account gains, in nano-USD; they sum to zero.
        overrun_nano_usd: by how much an attempt cost more than was set aside for it.
    """

    id: str
    kind: Kind
    reference: str
    entries: tuple[tuple[str, int], ...]
    overrun_nano_usd: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """How much of a hold stands in for what nobody knows, or no longer does.

    Attributes:
        id: the transaction that says so.
        hold_id: the attempt's or slice's hold.
        amount_nano_usd: what is in doubt now, or less than nothing for what no longer is.
        accounts: the ids of the hold's accounts, each of which was posted the amount.
    """

    id: str
    hold_id: str
    amount_nano_usd: int
    accounts: tuple[str, ...]


def transaction(
    kind: Kind,
    reference: str,
    accounts: Iterable[str],
    amount_nano_usd: int,
    overrun_nano_usd: int = 0,
) -> Transaction:
    """A transaction that adds an amount to each of some accounts.

    Raises:
        LedgerError: an account is named twice, or there is none.
    """
    entries = [(account, amount_nano_usd) for account in accounts]
    if not entries or len(dict(entries)) < len(entries):
        raise LedgerError(f"A transaction about {reference} names no account, or one twice.")
    entries.append((WORLD, -amount_nano_usd * len(entries)))
    made = Transaction(
        id=f"{kind.name.lower()}/{reference}",
        kind=kind,
        reference=reference,
        entries=tuple(entries),
        overrun_nano_usd=overrun_nano_usd,
    )
    check(made)
    return made


def check(made: Transaction) -> None:
    """Raises ``LedgerError`` unless the entries sum to zero."""
    if sum(amount for _, amount in made.entries):
        raise LedgerError(f"The transaction {made.id} does not sum to zero.")


class Tally:
    """What a database transaction does to accounts, summed up by account."""

    def __init__(self) -> None:
        self.posted: dict[str, int] = {}
        self.held: dict[str, int] = {}
        self.transactions: list[Transaction] = []
        self.doubts: list[Doubt] = []

    def write(self, made: Transaction) -> None:
        """Adds a transaction and what it does to the balances."""
        self.transactions.append(made)
        for account, amount in made.entries:
            if account != WORLD:
                self.posted[account] = self.posted.get(account, 0) + amount

    def doubt(
        self, kind: Kind, reference: str, hold: tuple[str, tuple[str, ...]], amount_nano_usd: int
    ) -> None:
        """Writes a transaction about the money of a hold, given with its accounts, whose truth is
        not known.
        """
        name, accounts = hold
        made = transaction(kind, reference, accounts, amount_nano_usd)
        self.write(made)
        self.doubts.append(
            Doubt(id=made.id, hold_id=name, amount_nano_usd=amount_nano_usd, accounts=accounts)
        )

    def hold(self, accounts: Sequence[str], amount_nano_usd: int) -> None:
        """Sets money aside on accounts; less than nothing releases it."""
        for account in accounts:
            self.held[account] = self.held.get(account, 0) + amount_nano_usd
