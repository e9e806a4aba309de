"""The ledger's tables: budgets, accounts, transactions and their entries, holds and their holders.

Transactions and entries are only ever inserted; those of forgotten records are carried forward
(:mod:`services.usage.ledger.carry_store`). Accounts carry balances, which are projections:
``posted`` is the sum of an account's entries, ``held`` that of its pending holds.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.schema import CreateIndex, CreateTable

from runtime.sql import Migration

_METADATA = MetaData()

REVISIONS = Table(
    "budget_revisions",
    _METADATA,
    # One row; whoever changes a budget locks it, so that nobody counts by an older book meanwhile.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
)

BUDGETS = Table(
    "budgets",
    _METADATA,
    Column("id", String(64), primary_key=True),
    Column("organization_id", String(64), nullable=False),
    Column("budget", LargeBinary, nullable=False),
    # When it ended; its accounts stay.
    Column("deleted_at_us", BigInteger, nullable=True),
)

ACCOUNTS = Table(
    "ledger_accounts",
    _METADATA,
    Column("id", Text, primary_key=True),
    Column("budget_id", String(64), nullable=False),
    Column("subject", Text, nullable=False),
    Column("period_start_us", BigInteger, nullable=False),
    Column("period_end_us", BigInteger, nullable=True),
    Column("limit_nano_usd", BigInteger, nullable=False),
    Column("posted_nano_usd", BigInteger, nullable=False),
    Column("held_nano_usd", BigInteger, nullable=False),
    CheckConstraint("held_nano_usd >= 0", name="nothing_is_released_twice"),
)

TRANSACTIONS = Table(
    "ledger_transactions",
    _METADATA,
    Column("id", Text, primary_key=True),
    Column("kind", Integer, nullable=False),
    Column("reference", Text, nullable=False),
    Column("overrun_nano_usd", BigInteger, nullable=False),
    Column("posted_at_us", BigInteger, nullable=False),
)

ENTRIES = Table(
    "ledger_entries",
    _METADATA,
    Column("transaction_id", Text, primary_key=True),
    Column("account_id", Text, primary_key=True),
    Column("amount_nano_usd", BigInteger, nullable=False),
)

HOLDERS = Table(
    "ledger_holders",
    _METADATA,
    Column("holder", String(128), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("lease_us", BigInteger, nullable=False),
    Column("lease_expires_at_us", BigInteger, nullable=False),
)

HOLDS = Table(
    "ledger_holds",
    _METADATA,
    # The attempt's id, or the slice's.
    Column("id", String(36), primary_key=True),
    # Empty once the holder's journal is known to be lost: only a record can settle it then.
    Column("holder", String(128), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("slice", Boolean, nullable=False),
    Column("returned", Boolean, nullable=False),
    Column("recalled", Boolean, nullable=False),
    Column("state", Integer, nullable=False),
    # What is held, or posted as uncertain, and not settled yet.
    Column("amount_nano_usd", BigInteger, nullable=False),
    # The accounts' ids, sorted, as a JSON list.
    Column("accounts", Text, nullable=False),
    Column("period_end_us", BigInteger, nullable=True),
    Column("lease_expires_at_us", BigInteger, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    CheckConstraint("amount_nano_usd >= 0", name="no_hold_is_below_zero"),
)

CROSSINGS = Table(
    "budget_crossings",
    _METADATA,
    Column("account_id", Text, primary_key=True),
    Column("percent", Integer, primary_key=True, autoincrement=False),
    Column("spent_nano_usd", BigInteger, nullable=False),
    Column("crossed_at_us", BigInteger, nullable=False),
    # When people were told; absent until they are.
    Column("told_at_us", BigInteger, nullable=True),
)

TABLES: Final = (
    REVISIONS,
    BUDGETS,
    ACCOUNTS,
    TRANSACTIONS,
    ENTRIES,
    HOLDERS,
    HOLDS,
    CROSSINGS,
)

_INDEXES: Final = (
    Index("ledger_accounts_by_budget", ACCOUNTS.c.budget_id, ACCOUNTS.c.period_end_us),
    Index("ledger_entries_by_account", ENTRIES.c.account_id),
    Index("ledger_holds_by_state", HOLDS.c.state, HOLDS.c.lease_expires_at_us),
    Index("budget_crossings_untold", CROSSINGS.c.told_at_us),
)

_ONE_ENTRY: Final = (
    " FROM ledger_transactions t JOIN ledger_entries e ON e.transaction_id = t.id"
    " AND e.account_id = (SELECT min(o.account_id) FROM ledger_entries o"
    " WHERE o.transaction_id = t.id AND o.account_id <> 'world')"
    " JOIN ledger_accounts a ON a.id = e.account_id JOIN budgets b ON b.id = a.budget_id"
)
_OLD_DOUBTS: Final = (
    "INSERT INTO usage_doubts (id, hold_id, started_at_us, amount_nano_usd, organization_id,"
    " project_id, key_id, customer, feature, run) SELECT t.id, substr(t.reference, 1, 36),"
    " t.posted_at_us, e.amount_nano_usd, b.organization_id, '', '', '', '', ''"
    f"{_ONE_ENTRY} WHERE t.kind IN (3, 4)"
)
"""What was posted as uncertain before reports had it: one of its entries says how much. Who it was
is not known any more; a correction counts when it was posted.
"""

MIGRATIONS: Final = (
    Migration(
        version=1,
        statements=(
            *map(CreateTable, TABLES),
            *map(CreateIndex, _INDEXES),
            "INSERT INTO budget_revisions (id, revision) VALUES (1, 0)",
        ),
    ),
    Migration(version=2, statements=(_OLD_DOUBTS,)),
)
