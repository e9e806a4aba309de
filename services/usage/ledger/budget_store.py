"""Where budgets are kept, and where their accounts stand."""

from typing import Any, Final

from sqlalchemy import Connection, Row, and_, insert, or_, select, update

from onegate.common.v1 import error_pb2
from onegate.usage.v1.budget_pb2 import Balance, Budget, BudgetFilter
from runtime.errors import GatewayError
from runtime.sql import Database
from services.usage.ledger.budgets import EVERYONE, HARD, Book, account, same_place, wanted
from services.usage.ledger.ledger_schema import ACCOUNTS, BUDGETS, REVISIONS
from services.usage.ledger.ledger_store import LedgerStore, loaded

BUDGETS_MAX: Final = 100_000
_A = ACCOUNTS.c


class BudgetStore:
    """Budgets, kept in a database."""

    def __init__(self, database: Database, ledger: LedgerStore) -> None:
        self._database = database
        self._ledger = ledger

    async def put(self, budget: Budget, new_id: str) -> Budget:
        """Keeps a budget, as the contract's ``SetBudget`` says, and opens its account.

        Args:
            budget: what is set; checked.
            new_id: its id if it is new.

        Raises:
            GatewayError: NOT_FOUND, CONFLICT, or INVALID_REQUEST beyond 100,000 budgets.
        """
        return await self._database.write(lambda c: self._put(c, budget, new_id))

    async def end(self, budget_id: str, organization_id: str) -> Budget:
        """Ends a budget. Raises NOT_FOUND."""
        return await self._database.write(lambda c: self._end(c, budget_id, organization_id))

    async def load(self, known: Book) -> Book:
        """The budgets in force; ``known`` itself when nothing has changed."""

        def work(connection: Connection) -> Book:
            revision = connection.execute(select(REVISIONS.c.revision)).scalar_one()
            return known if revision == known.revision else loaded(connection, revision)

        return await self._database.read(work)

    async def balances(
        self, chosen: BudgetFilter, subject: str, after: str, count_max: int
    ) -> list[tuple[str, Balance]]:
        """Accounts of budgets in force in their current periods, by id."""

        def work(connection: Connection) -> list[tuple[str, Balance]]:
            revision = connection.execute(select(REVISIONS.c.revision)).scalar_one()
            book = loaded(connection, revision)
            some = {b.id: b for b in book.budgets.values() if wanted(b, chosen)}
            now_us = self._ledger.now_us(connection)
            query = select(ACCOUNTS).where(
                _A.budget_id.in_(sorted(some)),
                or_(_A.period_end_us.is_(None), _A.period_end_us > now_us),
                _A.id > after,
            )
            if subject:
                query = query.where(_A.subject == subject)
            rows = connection.execute(query.order_by(_A.id).limit(count_max)).all()
            found = [(row.id, _balance(some[row.budget_id], row)) for row in rows]
            there = {name for name, _ in found}
            for budget in some.values():
                if budget.subject == EVERYONE or subject not in ("", budget.subject):
                    continue
                fresh = account(budget, budget.subject, now_us)
                if fresh.id > after and fresh.id not in there:
                    found.append((fresh.id, _untouched(fresh.budget, now_us)))
            return sorted(found, key=lambda pair: pair[0])[:count_max]

        return await self._database.read(work)

    def _locked(self, connection: Connection) -> Book:
        """The budgets; nobody counts by them until the transaction ends."""
        query = select(REVISIONS.c.revision).with_for_update()
        revision = connection.execute(query).scalar_one()
        connection.execute(update(REVISIONS).values(revision=revision + 1))
        return loaded(connection, revision)

    def _put(self, connection: Connection, budget: Budget, new_id: str) -> Budget:
        book = self._locked(connection)
        now_us = self._ledger.now_us(connection)
        known = _known(book, budget)
        kept = Budget()
        kept.CopyFrom(budget)
        kept.updated_at.FromMicroseconds(now_us)
        if known is not None:
            kept.id = known.id
            kept.created_at.CopyFrom(known.created_at)
            mine = BUDGETS.c.id == kept.id
            connection.execute(update(BUDGETS).where(mine).values(budget=kept.SerializeToString()))
            running = or_(_A.period_end_us.is_(None), _A.period_end_us > now_us)
            of_it = and_(_A.budget_id == kept.id, running)
            connection.execute(
                update(ACCOUNTS).where(of_it).values(limit_nano_usd=kept.limit_nano_usd)
            )
            return kept
        if len(book.budgets) >= BUDGETS_MAX:
            raise GatewayError(
                error_pb2.ERROR_REASON_INVALID_REQUEST,
                f"There are {BUDGETS_MAX:,} budgets already. Delete some, or use a template (`*`).",
            )
        kept.id = new_id
        kept.created_at.FromMicroseconds(now_us)
        connection.execute(
            insert(BUDGETS).values(
                id=kept.id, organization_id=kept.organization_id, budget=kept.SerializeToString()
            )
        )
        if kept.subject != EVERYONE:
            # Here, and not at the first call: it may have to add a month up.
            self._ledger.open(connection, [account(kept, kept.subject, now_us)])
        return kept

    def _end(self, connection: Connection, budget_id: str, organization_id: str) -> Budget:
        book = self._locked(connection)
        known = book.budgets.get(budget_id)
        if known is None or organization_id not in ("", known.organization_id):
            raise _not_found(budget_id)
        now_us = self._ledger.now_us(connection)
        connection.execute(
            update(BUDGETS).where(BUDGETS.c.id == budget_id).values(deleted_at_us=now_us)
        )
        return known


def _known(book: Book, budget: Budget) -> Budget | None:
    """The budget that is changed; ``None`` for a new one."""
    if budget.id:
        known = book.budgets.get(budget.id)
        if known is None or known.organization_id != budget.organization_id:
            raise _not_found(budget.id)
        if not same_place(known, budget) or (known.mode in HARD) != (budget.mode in HARD):
            raise GatewayError(
                error_pb2.ERROR_REASON_CONFLICT,
                "What a budget counts cannot change. Delete it and set another one.",
            )
        return known
    if budget.mode not in HARD:
        return None
    same = (b for b in book.budgets.values() if b.mode in HARD and same_place(b, budget))
    return next(same, None)


def _not_found(budget_id: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_NOT_FOUND, f"There is no budget {budget_id[:64]!r}.")


def _balance(budget: Budget, row: Row[Any]) -> Balance:
    made = Balance(
        budget=budget,
        subject=row.subject,
        spent_nano_usd=row.posted_nano_usd,
        held_nano_usd=row.held_nano_usd,
    )
    made.period_starts_at.FromMicroseconds(row.period_start_us)
    if row.period_end_us is not None:
        made.resets_at.FromMicroseconds(row.period_end_us)
    return made


def _untouched(budget: Budget, now_us: int) -> Balance:
    """The balance of an account that nothing was counted on yet."""
    span = account(budget, budget.subject, now_us).span
    made = Balance(budget=budget, subject=budget.subject)
    made.period_starts_at.FromMicroseconds(span.start_us)
    if span.end_us is not None:
        made.resets_at.FromMicroseconds(span.end_us)
    return made
