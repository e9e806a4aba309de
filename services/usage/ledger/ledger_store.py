"""The ledger on SQL: accounts are opened, locked in order, and changed all or none.

Everything here runs inside somebody's transaction. Locks are taken in one order (the budgets'
revision, the holder, holds, accounts by id), which is what keeps two transactions from waiting
for each other on PostgreSQL; SQLite has one writer.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    Connection,
    Select,
    func,
    select,
    text,
)

from onegate.usage.v1 import budget_pb2
from onegate.usage.v1.budget_pb2 import Budget
from runtime.clock import Clock
from runtime.sql import insert_new, unix_micros
from services.usage.driver_sql import (
    Asked,
    Change,
    change_together,
    insertion,
    places,
    run,
)
from services.usage.ledger import transactions
from services.usage.ledger.budgets import Account, Book, thresholds
from services.usage.ledger.doubt_rows import write_doubts
from services.usage.ledger.holds import Room
from services.usage.ledger.ledger_schema import (
    ACCOUNTS,
    BUDGETS,
    CROSSINGS,
    ENTRIES,
    TRANSACTIONS,
)
from services.usage.ledger.transactions import Kind, LedgerError, Tally
from services.usage.reports.rollup_schema import ADJUSTMENTS
from services.usage.store import RECORDS

NowUs: TypeAlias = Callable[[Connection], int]
"""Says what time it is, in microseconds since 1970, by the clock that all writers share."""

KNOWN_MAX: Final = 100_000
"""Accounts that a process remembers to exist."""

_CHANGE: Final = (
    "UPDATE ledger_accounts SET posted_nano_usd = posted_nano_usd + ?,"
    " held_nano_usd = held_nano_usd + ? WHERE id = ? AND held_nano_usd + ? >= 0"
)
_ADMIT: Final = (
    "UPDATE ledger_accounts SET held_nano_usd = held_nano_usd + ?"
    " WHERE id = ? AND posted_nano_usd + held_nano_usd + ? <= limit_nano_usd"
)
"""B1: what is set aside fits, said by the database itself."""

_DATABASE_CLOCK: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_LINES: Final = "SELECT id, limit_nano_usd, posted_nano_usd, held_nano_usd FROM ledger_accounts"

_INSERT_TRANSACTION: Final = insertion(TRANSACTIONS.name, TRANSACTIONS.c.keys())
_INSERT_ENTRY: Final = insertion(ENTRIES.name, ENTRIES.c.keys())

_FOUND_BY: Final[Mapping[int, Any]] = {
    budget_pb2.BUDGET_SCOPE_ORGANIZATION: RECORDS.c.organization_id,
    budget_pb2.BUDGET_SCOPE_PROJECT: RECORDS.c.project_id,
    budget_pb2.BUDGET_SCOPE_KEY: RECORDS.c.key_id,
    budget_pb2.BUDGET_SCOPE_CUSTOMER: RECORDS.c.customer,
    budget_pb2.BUDGET_SCOPE_FEATURE: RECORDS.c.feature,
    budget_pb2.BUDGET_SCOPE_RUN: RECORDS.c.run,
}


ClockSql: TypeAlias = Callable[[Connection], str]
"""What a statement asks the database to know the time; empty where the process knows it."""


def shared_clock(clock: Clock) -> NowUs:
    """The database's clock; for SQLite, which is on this machine, the process's."""

    def now_us(connection: Connection) -> int:
        asked = shared_clock_sql(connection)
        if not asked:
            return unix_micros(clock.now())
        return int(connection.execute(text(f"SELECT {asked}")).scalar_one())

    return now_us


def shared_clock_sql(connection: Connection) -> str:
    """What :func:`shared_clock` asks."""
    return _DATABASE_CLOCK if connection.dialect.name == "postgresql" else ""


def own_clock_sql(_: Connection) -> str:
    """Nothing: the process knows the time."""
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A locked account, as it stands."""

    limit_nano_usd: int
    posted_nano_usd: int
    held_nano_usd: int


class LedgerStore:
    """The books, as transactions of one process see them.

    Args:
        now_us: the clock of periods and leases.
        clock_sql: what that clock asks the database.
    """

    def __init__(self, now_us: NowUs, clock_sql: ClockSql = own_clock_sql) -> None:
        self.now_us = now_us
        self._clock_sql = clock_sql
        # The budgets and the time as they were seen last: what the next transaction expects.
        self._book = Book()
        self._seen_us = 0
        self._known: set[str] = set()

    def book(self, connection: Connection) -> Book:
        """The budgets in force, which nobody can change until the transaction ends."""
        ((revision,),) = run(connection, "SELECT revision FROM budget_revisions FOR SHARE")
        book = self._book
        if revision != book.revision:
            self._book = book = loaded(connection, revision)
        return book

    def now(self, connection: Connection) -> int:
        """What time it is, in microseconds since 1970; the next transaction expects about it."""
        self._seen_us = now_us = self.now_us(connection)
        return now_us

    def expected(self) -> tuple[Book, int]:
        """The budgets and the time, as the last transaction saw them: mostly still right."""
        return self._book, self._seen_us

    def exist(self, accounts: Collection[str]) -> bool:
        """Whether all these accounts are known to exist."""
        return self._known.issuperset(accounts)

    def asked_now(self, connection: Connection) -> Asked:
        """Asks, and locks, what :meth:`heard_now` hears."""
        clock = self._clock_sql(connection)
        more = f", {clock}" if clock else ""
        return f"SELECT revision{more} FROM budget_revisions FOR SHARE", ()  # noqa: S608

    def heard_now(self, connection: Connection, rows: Sequence[Any]) -> tuple[int, int]:
        """The revision of the budgets, which stays, and the time, in microseconds since 1970."""
        ((revision, *clock),) = rows
        self._seen_us = now_us = clock[0] if clock else self.now_us(connection)
        return revision, now_us

    def open(self, connection: Connection, accounts: Collection[Account]) -> None:
        """Opens the accounts that do not exist yet, with what was spent in the period before their
        budgets were set. No account may be locked by the transaction yet.
        """
        new = {a.id: a for a in accounts if a.id not in self._known}
        for name in sorted(new):
            row = {
                "id": name,
                "budget_id": new[name].budget.id,
                "subject": new[name].subject,
                "period_start_us": new[name].span.start_us,
                "period_end_us": new[name].span.end_us,
                "limit_nano_usd": new[name].budget.limit_nano_usd,
                "posted_nano_usd": 0,
                "held_nano_usd": 0,
            }
            made = insert_new(connection, ACCOUNTS, [row])
            if made and new[name].history_from_us is not None:
                self._post_history(connection, new[name])

    def lock(self, connection: Connection, accounts: Collection[str]) -> Mapping[str, Line]:
        """The accounts as they stand; nobody else changes them until the transaction ends.

        Raises:
            LedgerError: one of them does not exist.
        """
        if not accounts:
            return {}
        names = sorted(set(accounts))
        found = lines_of(run(connection, *asked_lines(names)))
        if len(found) != len(names):
            self._known.clear()
            raise LedgerError(f"No such account: {sorted(set(names) - found.keys())[:3]}.")
        return found

    def rooms(self, connection: Connection, accounts: Collection[Account]) -> dict[str, Room]:
        """The accounts, opened where need be, locked, and how much room they have."""
        self.open(connection, accounts)
        by_id = {account.id: account for account in accounts}
        return rooms_of(by_id, self.lock(connection, by_id))

    def remember(self, accounts: Collection[str]) -> None:
        """These accounts exist: a transaction that used them has committed."""
        if len(self._known) + len(accounts) > KNOWN_MAX:
            self._known.clear()
        self._known.update(accounts)

    def admit(self, connection: Connection, tally: Tally, kept: Change | None = None) -> None:
        """Sets aside what a batch of holds takes, on every account or on none, and makes a further
        change on the same way to the database.
        """
        rows = [(held, name, held) for name, held in sorted(tally.held.items()) if held]
        changes: list[Change] = [(_ADMIT, rows)]
        if kept is not None:
            changes.append(kept)
        _check(change_together(connection, changes)[0], rows)

    def apply(self, connection: Connection, tally: Tally, now_us: int) -> None:
        """Writes transactions and what they do to the balances. The accounts are locked."""
        write_doubts(connection, tally.doubts, now_us)
        rows = []
        for name in sorted(tally.posted.keys() | tally.held.keys()):
            posted, held = tally.posted.get(name, 0), tally.held.get(name, 0)
            if posted or held:
                rows.append((posted, held, name, held))
        changes = [*_written(tally.transactions, now_us), (_CHANGE, rows)]
        _check(change_together(connection, changes)[-1], rows)

    def note_crossings(
        self,
        connection: Connection,
        lines: Mapping[str, Line],
        tally: Tally,
        accounts: Collection[Account],
    ) -> None:
        """Keeps which accounts came to a part of their limit at which people are to be told."""
        now_us = self.now_us(connection)
        for account in accounts:
            before = lines[account.id].posted_nano_usd
            after = before + tally.posted.get(account.id, 0)
            for percent, amount in thresholds(account.budget):
                if before < amount <= after:
                    _note(connection, account.id, percent, (after, now_us))

    def _post_history(self, connection: Connection, account: Account) -> None:
        budget = account.budget
        wanted = [
            RECORDS.c.organization_id == budget.organization_id,
            _FOUND_BY[budget.scope] == account.subject,
            RECORDS.c.started_at_us >= account.history_from_us,
        ]
        if budget.project_id:
            wanted.append(RECORDS.c.project_id == budget.project_id)
        posted: Select[Any] = select(func.coalesce(func.sum(RECORDS.c.cost_nano_usd), 0))
        changed = (
            select(func.coalesce(func.sum(ADJUSTMENTS.c.amount_nano_usd), 0))
            .join(RECORDS, RECORDS.c.attempt_id == ADJUSTMENTS.c.attempt_id)
            .where(ADJUSTMENTS.c.started_at_us >= account.history_from_us)
        )
        parts = [query.where(*wanted) for query in (posted, changed)]
        spent = sum(int(connection.execute(query).scalar_one()) for query in parts)
        if spent:
            tally = Tally()
            tally.write(transactions.transaction(Kind.OPENING, account.id, [account.id], spent))
            self.apply(connection, tally, self.now_us(connection))


def asked_lines(names: Sequence[str]) -> Asked:
    """Asks for some accounts, sorted, and locks them."""
    return f"{_LINES} WHERE id IN {places(len(names))} ORDER BY id FOR UPDATE", names


def lines_of(rows: Sequence[Any]) -> dict[str, Line]:
    """The accounts that were found, by id."""
    return {
        name: Line(limit_nano_usd=limit, posted_nano_usd=posted, held_nano_usd=held)
        for name, limit, posted, held in rows
    }


def rooms_of(accounts: Mapping[str, Account], lines: Mapping[str, Line]) -> dict[str, Room]:
    """How much room locked accounts have."""
    return {
        name: Room(
            account=accounts[name],
            limit_nano_usd=line.limit_nano_usd,
            posted_nano_usd=line.posted_nano_usd,
            held_nano_usd=line.held_nano_usd,
        )
        for name, line in lines.items()
    }


def loaded(connection: Connection, revision: int) -> Book:
    """The budgets in force, read from their table."""
    query = select(BUDGETS.c.budget).where(BUDGETS.c.deleted_at_us.is_(None)).order_by(BUDGETS.c.id)
    found = connection.execute(query).scalars()
    return Book([Budget.FromString(budget) for budget in found], revision)


def _written(made: Sequence[transactions.Transaction], now_us: int) -> list[Change]:
    for one in made:
        transactions.check(one)
    heads = [
        (one.id, int(one.kind), one.reference, one.overrun_nano_usd, now_us)
        for one in sorted(made, key=lambda one: one.id)
    ]
    entries = [(one.id, account, amount) for one in made for account, amount in one.entries]
    return [(_INSERT_TRANSACTION, heads), (_INSERT_ENTRY, entries)]


def _check(changed: int, rows: Sequence[tuple[object, ...]]) -> None:
    """Raises ``LedgerError`` unless a statement changed a row for each of ``rows``."""
    if changed != len(rows):
        raise LedgerError(
            f"An account would be overdrawn, or release what it does not hold: {rows[:3]}."
        )


def _note(connection: Connection, account: str, percent: int, seen: tuple[int, int]) -> None:
    row = {
        "account_id": account,
        "percent": percent,
        "spent_nano_usd": seen[0],
        "crossed_at_us": seen[1],
    }
    # Once in a period: a correction may bring an account to the same part again.
    insert_new(connection, CROSSINGS, [row])
