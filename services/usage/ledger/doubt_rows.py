"""Says reports what the ledger posts as uncertain: whose it is, as far as its budgets say, and when
the money was set aside. The same transaction writes both, so that their sums are one.
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, literal, select
from sqlalchemy import insert as insert_into

from onegate.usage.v1 import budget_pb2
from onegate.usage.v1.budget_pb2 import Budget
from services.usage.ledger.ledger_schema import ACCOUNTS, BUDGETS, HOLDS
from services.usage.ledger.transactions import Doubt
from services.usage.reports.rollup_schema import DOUBTS

_NAMED_BY: Final = {
    budget_pb2.BUDGET_SCOPE_PROJECT: "project_id",
    budget_pb2.BUDGET_SCOPE_KEY: "key_id",
    budget_pb2.BUDGET_SCOPE_CUSTOMER: "customer",
    budget_pb2.BUDGET_SCOPE_FEATURE: "feature",
    budget_pb2.BUDGET_SCOPE_RUN: "run",
}
_WHO: Final = ("organization_id", "project_id", "key_id", "customer", "feature", "run")


def write_doubts(connection: Connection, doubts: Sequence[Doubt], now_us: int) -> None:
    """Keeps what is in doubt now, and takes back what no longer is."""
    for doubt in doubts:
        if doubt.amount_nano_usd > 0:
            _begin(connection, doubt, now_us)
        else:
            _take_back(connection, doubt)


def _begin(connection: Connection, doubt: Doubt, now_us: int) -> None:
    created = select(HOLDS.c.created_at_us).where(HOLDS.c.id == doubt.hold_id)
    started_at_us = connection.execute(created).scalar()
    connection.execute(
        insert_into(DOUBTS).values(
            id=doubt.id,
            hold_id=doubt.hold_id,
            started_at_us=now_us if started_at_us is None else started_at_us,
            amount_nano_usd=doubt.amount_nano_usd,
            **_who(connection, doubt.accounts),
        )
    )


def _take_back(connection: Connection, doubt: Doubt) -> None:
    """In the same place and time as what is taken back."""
    same = [DOUBTS.c[name] for name in ("hold_id", "started_at_us", *_WHO)]
    first = DOUBTS.c.hold_id == doubt.hold_id, DOUBTS.c.id == f"uncertain/{doubt.hold_id}"
    query = select(literal(doubt.id), literal(doubt.amount_nano_usd), *same).where(*first)
    names = ["id", "amount_nano_usd", *(column.name for column in same)]
    connection.execute(insert_into(DOUBTS).from_select(names, query))


def _who(connection: Connection, accounts: Sequence[str]) -> dict[str, str]:
    """What the budgets of some accounts say of who was charged, also when they have ended."""
    found = dict.fromkeys(_WHO, "")
    query = select(ACCOUNTS.c.subject, BUDGETS.c.budget).join(
        BUDGETS, BUDGETS.c.id == ACCOUNTS.c.budget_id
    )
    for subject, kept in connection.execute(query.where(ACCOUNTS.c.id.in_(accounts))):
        budget = Budget.FromString(kept)
        found["organization_id"] = budget.organization_id
        found["project_id"] = found["project_id"] or budget.project_id
        name = _NAMED_BY.get(budget.scope)
        if name is not None:
            found[name] = subject
    return found
