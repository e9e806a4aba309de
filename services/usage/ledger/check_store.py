"""Rebuilds balances from what they are projections of, and compares."""

import json
from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Connection, Select, func, select, update

from onegate.usage.v1 import hold_pb2
from onegate.usage.v1 import ledger_service_pb2 as pb
from runtime.sql import Database
from services.usage.ledger.ledger_schema import ACCOUNTS, ENTRIES, HOLDS, TRANSACTIONS
from services.usage.ledger.ledger_store import LedgerStore
from services.usage.ledger.transactions import WORLD, Kind

FAULTS_MAX: Final = 1_000
_A, _E, _T = ACCOUNTS.c, ENTRIES.c, TRANSACTIONS.c


class LedgerCheck:
    """Compares what the ledger keeps with what it says."""

    def __init__(self, database: Database, ledger: LedgerStore) -> None:
        self._database = database
        self._ledger = ledger

    async def verify(self, *, ended_since_us: int = 0) -> pb.VerifyLedgerResponse:
        """Compares, in one snapshot.

        Args:
            ended_since_us: only accounts whose period has not ended before this, in microseconds
                since 1970, and only transactions from then on; 0 for all.
        """
        return await self._database.read(lambda c: self._verify(c, ended_since_us))

    async def rebuild(self) -> int:
        """Puts the balances right; how many accounts were wrong."""
        return await self._database.write(self._rebuild)

    def _verify(self, connection: Connection, since_us: int) -> pb.VerifyLedgerResponse:
        response = pb.VerifyLedgerResponse()
        response.verified_at.FromMicroseconds(self._ledger.now_us(connection))
        transactions: Select[Any] = select(func.count()).select_from(TRANSACTIONS)
        overruns = transactions.where(_T.overrun_nano_usd > 0)
        since = _T.posted_at_us >= since_us
        response.transactions = connection.execute(transactions.where(since)).scalar_one()
        response.overruns = connection.execute(overruns.where(since)).scalar_one()
        pending = HOLDS.c.state == hold_pb2.HOLD_STATE_PENDING
        query = select(func.count()).select_from(HOLDS).where(pending)
        response.holds = connection.execute(query).scalar_one()
        response.accounts = connection.execute(_accounts(since_us)).scalar_one()
        response.uncertain_nano_usd = _uncertain(connection)
        for fault in _faults(connection, since_us):
            if len(response.faults) >= FAULTS_MAX:
                break
            response.faults.append(fault)
        return response

    def _rebuild(self, connection: Connection) -> int:
        self._ledger.book(connection)
        wrong = {fault.subject for fault in _balances(connection, 0)}
        held = _held(connection)
        for name in sorted(wrong):
            posted = select(func.coalesce(func.sum(_E.amount_nano_usd), 0)).where(
                _E.account_id == name
            )
            connection.execute(
                update(ACCOUNTS)
                .where(_A.id == name)
                .values(
                    posted_nano_usd=int(connection.execute(posted).scalar_one()),
                    held_nano_usd=held.get(name, 0),
                )
            )
        return len(wrong)


def _accounts(since_us: int) -> Select[Any]:
    return (
        select(func.count())
        .select_from(ACCOUNTS)
        .where(func.coalesce(_A.period_end_us, since_us) >= since_us)
    )


def _uncertain(connection: Connection) -> int:
    kinds = (Kind.UNCERTAIN, Kind.CORRECTION)
    query = (
        select(func.coalesce(func.sum(_E.amount_nano_usd), 0))
        .join(TRANSACTIONS, _T.id == _E.transaction_id)
        .where(_T.kind.in_(kinds), _E.account_id != WORLD)
    )
    return int(connection.execute(query).scalar_one())


def _faults(connection: Connection, since_us: int) -> Iterator[pb.LedgerFault]:
    total = func.sum(_E.amount_nano_usd)
    sums = (
        select(_E.transaction_id, total)
        .join(TRANSACTIONS, _T.id == _E.transaction_id)
        .where(_T.posted_at_us >= since_us)
        .group_by(_E.transaction_id)
        .having(total != 0)
        .limit(FAULTS_MAX)
    )
    for name, amount in connection.execute(sums):
        yield pb.LedgerFault(subject=name, what="sum", rebuilt_nano_usd=int(amount))
    yield from _balances(connection, since_us)


def _balances(connection: Connection, since_us: int) -> Iterator[pb.LedgerFault]:
    held = _held(connection)
    posted = func.coalesce(func.sum(_E.amount_nano_usd), 0)
    query = (
        select(_A.id, _A.posted_nano_usd, _A.held_nano_usd, posted)
        .outerjoin(ENTRIES, _E.account_id == _A.id)
        .where(func.coalesce(_A.period_end_us, since_us) >= since_us)
        .group_by(_A.id, _A.posted_nano_usd, _A.held_nano_usd)
    )
    for name, kept, kept_held, rebuilt in connection.execute(query).all():
        for what, is_, should in (
            ("posted", kept, int(rebuilt)),
            ("held", kept_held, held.get(name, 0)),
        ):
            if is_ != should:
                yield pb.LedgerFault(
                    subject=name, what=what, kept_nano_usd=is_, rebuilt_nano_usd=should
                )


def _held(connection: Connection) -> dict[str, int]:
    """What the pending holds of each account add up to."""
    found: dict[str, int] = {}
    query = select(HOLDS.c.accounts, HOLDS.c.amount_nano_usd).where(
        HOLDS.c.state == hold_pb2.HOLD_STATE_PENDING
    )
    for accounts, amount in connection.execute(query):
        for name in json.loads(accounts):
            found[name] = found.get(name, 0) + amount
    return found
