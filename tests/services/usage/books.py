"""A ledger with everything around it, and short words for what tests do with it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Connection

from onegate.usage.v1 import budget_pb2, usage_record_pb2
from onegate.usage.v1 import hold_service_pb2 as pb
from onegate.usage.v1.budget_pb2 import Balance, Budget, BudgetFilter
from onegate.usage.v1.usage_record_pb2 import Attribution, Reservation, UsageRecord
from runtime.clock import SystemEntropy
from runtime.errors import GatewayError
from runtime.sql import Database, open_database, unix_micros
from services.usage.ledger import ledger_schema
from services.usage.ledger.budget_service import BudgetIds
from services.usage.ledger.budget_store import BudgetStore
from services.usage.ledger.budgets import checked
from services.usage.ledger.charge_store import Charger
from services.usage.ledger.check_store import LedgerCheck
from services.usage.ledger.hold_store import HoldStore
from services.usage.ledger.holder_store import HolderStore
from services.usage.ledger.ledger_store import LedgerStore
from services.usage.store import SqlStore, Verdict
from tests.services.usage.records import SteppedClock, attempt_id

SECOND_US = 1_000_000
KEY = budget_pb2.BUDGET_SCOPE_KEY
MONTH = budget_pb2.BUDGET_PERIOD_MONTH
TOTAL = budget_pb2.BUDGET_PERIOD_TOTAL
STRICT = budget_pb2.BUDGET_MODE_STRICT
ALERT = budget_pb2.BUDGET_MODE_ALERT

PAYER = {"organization_id": "org_1", "project_id": "proj_1", "key_id": "key_1"}


class Books:
    """A usage process's stores, on one database, by one clock."""

    def __init__(self, database: Database, clock: SteppedClock) -> None:
        self.database = database
        self.clock = clock
        self.ledger = LedgerStore(self.now_us)
        self.store = SqlStore(database, Charger(self.ledger))
        self.holds = HoldStore(database, self.ledger)
        self.holders = HolderStore(database, self.ledger, self.holds)
        self.budgets = BudgetStore(database, self.ledger)
        self.check = LedgerCheck(database, self.ledger)
        self.ids = BudgetIds(clock, SystemEntropy())
        self.epoch = 0

    def now_us(self, _connection: Connection | None = None) -> int:
        return unix_micros(self.clock.now())

    async def start(self) -> None:
        await self.store.migrate(now=self.clock.now())
        await self.database.migrate("usage_ledger", ledger_schema.MIGRATIONS, now=self.clock.now())
        self.epoch = await self.open_epoch()

    async def open_epoch(self, journal_epoch: int = 0, holder: str = "router-0") -> int:
        request = pb.OpenEpochRequest(holder=holder, journal_epoch=journal_epoch)
        return (await self.holders.open_epoch(request)).epoch

    async def budget(self, limit: int, **fields: Any) -> Budget:
        """A strict budget of key_1 for ever, unless fields say otherwise."""
        given = {
            "organization_id": "org_1",
            "scope": KEY,
            "subject": "key_1",
            "period": TOTAL,
            **fields,
        }
        return await self.budgets.put(
            checked(Budget(limit_nano_usd=limit, **given)), self.ids.new()
        )

    def hold(self, number: int, amount: int, **fields: Any) -> pb.HoldRequest:
        """A request to hold, of key_1 unless fields say otherwise."""
        least, lease_ms = fields.pop("least", 0), fields.pop("lease_ms", 600_000)
        return pb.HoldRequest(
            attempt_id=attempt_id(number),
            request_id=f"req-{number}",
            payer=pb.Payer(**{**PAYER, **fields}),
            amount_nano_usd=amount,
            amount_least_nano_usd=least,
            lease_ms=lease_ms,
        )

    async def place(self, *holds: pb.HoldRequest, epoch: int = 0) -> list[pb.HoldAnswer]:
        request = pb.PlaceHoldsRequest(holder="router-0", epoch=epoch or self.epoch, holds=holds)
        (answers,) = await self.holds.place([request])
        if isinstance(answers, GatewayError):
            raise answers
        return answers

    async def raise_to(self, number: int, amount: int, least: int = 0) -> pb.HoldAnswer:
        one = pb.HoldRaise(
            attempt_id=attempt_id(number), amount_nano_usd=amount, amount_least_nano_usd=least
        )
        request = pb.RaiseHoldsRequest(holder="router-0", epoch=self.epoch, raises=[one])
        (answer,) = await self.holds.raise_holds(request)
        return answer

    async def void(self, *numbers: int) -> int:
        names = map(attempt_id, numbers)
        return await self.holds.void(
            pb.VoidHoldsRequest(holder="router-0", epoch=self.epoch, attempt_ids=names)
        )

    async def settle(self, number: int, cost: int, **fields: Any) -> Verdict:
        """Posts a record that costs so much."""
        (verdict,) = await self.store.record(
            [self.record(number, cost, **fields)], now_us=self.now_us()
        )
        return verdict

    def record(self, number: int, cost: int, **fields: Any) -> UsageRecord:
        reservation: Reservation | None = fields.pop("reservation", None)
        named = {k: v for k, v in fields.items() if k in ("customer", "feature", "run")}
        rest = {k: v for k, v in fields.items() if k not in named}
        made = UsageRecord(
            attempt_id=attempt_id(number),
            request_id=f"req-{number}",
            cost_nano_usd=cost,
            outcome=usage_record_pb2.OUTCOME_COMPLETED,
            attribution=Attribution(**named),
            **{**PAYER, **rest},
        )
        if reservation is not None:
            made.reservation.CopyFrom(reservation)
        made.started_at.FromMicroseconds(self.now_us())
        return made

    async def balances(self, subject: str = "") -> list[Balance]:
        found = await self.budgets.balances(BudgetFilter(), subject, "", 1_000)
        return [balance for _, balance in found]

    async def stands(self, subject: str = "key_1") -> tuple[int, int]:
        """What the only account of a subject has spent, and what it holds."""
        (balance,) = await self.balances(subject)
        return balance.spent_nano_usd, balance.held_nano_usd

    async def sound(self) -> None:
        """Fails unless the balances are what the entries and holds add up to."""
        found = await self.check.verify()
        assert list(found.faults) == []


@asynccontextmanager
async def books_on(dsn: str, clock: SteppedClock | None = None) -> AsyncIterator[Books]:
    """Books on an empty database."""
    database = open_database(dsn)
    books = Books(database, clock or SteppedClock())
    try:
        await books.start()
        yield books
    finally:
        await database.close()
