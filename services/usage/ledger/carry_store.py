"""Carries old postings forward: many become one with the same sums, so that balances can still be
rebuilt from entries when the records behind them are gone.
"""

from typing import Final

from sqlalchemy import Connection, delete, func, insert, select

from services.usage.ledger.ledger_schema import ENTRIES, TRANSACTIONS
from services.usage.ledger.transactions import Kind, Transaction, check

CARRIED_MAX: Final = 2_000
"""How many postings become one."""

_T, _E = TRANSACTIONS.c, ENTRIES.c
_PREFIX: Final = f"{Kind.POSTING.name.lower()}/"


def carried_before(connection: Connection, before_id: str, count_max: int) -> list[str]:
    """The oldest transactions that post attempts made before an attempt id."""
    query = select(_T.id).where(
        _T.id > _PREFIX, _T.id < f"{_PREFIX}{before_id}", _T.kind == int(Kind.POSTING)
    )
    return list(connection.execute(query.order_by(_T.id).limit(count_max)).scalars())


def carry(connection: Connection, before_id: str, now_us: int) -> int:
    """Makes one transaction of some; of how many. Balances stay as they are.

    Nothing that is carried may be posted again: its records are refused by now.
    """
    names = carried_before(connection, before_id, CARRIED_MAX)
    if not names:
        return 0
    sums = select(_E.account_id, func.sum(_E.amount_nano_usd)).where(_E.transaction_id.in_(names))
    entries = connection.execute(sums.group_by(_E.account_id).order_by(_E.account_id)).all()
    overrun = select(func.sum(_T.overrun_nano_usd)).where(_T.id.in_(names))
    made = Transaction(
        id=f"{Kind.CARRIED.name.lower()}/{names[0].removeprefix(_PREFIX)}",
        kind=Kind.CARRIED,
        reference=names[-1].removeprefix(_PREFIX),
        entries=tuple((account, int(amount)) for account, amount in entries),
        overrun_nano_usd=int(connection.execute(overrun).scalar_one()),
    )
    check(made)
    connection.execute(delete(ENTRIES).where(_E.transaction_id.in_(names)))
    connection.execute(delete(TRANSACTIONS).where(_T.id.in_(names)))
    row = {
        "id": made.id,
        "kind": int(made.kind),
        "reference": made.reference,
        "overrun_nano_usd": made.overrun_nano_usd,
        "posted_at_us": now_us,
    }
    connection.execute(insert(TRANSACTIONS).values(row))
    connection.execute(
        insert(ENTRIES),
        [
            {"transaction_id": made.id, "account_id": account, "amount_nano_usd": amount}
            for account, amount in made.entries
        ],
    )
    return len(names)
