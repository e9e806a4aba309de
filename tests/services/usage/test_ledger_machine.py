"""Ledger, holds and budgets against a reference, in any order that hypothesis can think of."""

import asyncio
import tempfile
from collections.abc import Awaitable
from typing import TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from onegate.usage.v1 import budget_pb2, hold_pb2
from onegate.usage.v1 import hold_service_pb2 as pb
from onegate.usage.v1.usage_record_pb2 import Reservation
from runtime.sql import Database, open_database
from services.usage.store import Verdict
from tests.services.usage.books import Books
from tests.services.usage.ledger_reference import HELD, POSTED, VOIDED, Reference
from tests.services.usage.records import SteppedClock

T = TypeVar("T")

SCOPES = {
    "org_1": budget_pb2.BUDGET_SCOPE_ORGANIZATION,
    "key_1": budget_pb2.BUDGET_SCOPE_KEY,
    "acme": budget_pb2.BUDGET_SCOPE_CUSTOMER,
    "run-7": budget_pb2.BUDGET_SCOPE_RUN,
}
STATES = {
    hold_pb2.HOLD_STATE_POSTED: "posted",
    hold_pb2.HOLD_STATE_VOIDED: "voided",
    hold_pb2.HOLD_STATE_UNCERTAIN: "uncertain",
}
NUMBERS = st.integers(0, 5)
AMOUNTS = st.integers(0, 40)
CALLS = st.fixed_dictionaries(
    {},
    optional={
        "key_id": st.sampled_from(["key_1", "key_2"]),
        "customer": st.sampled_from(["acme", "other"]),
        "run": st.sampled_from(["run-7", "run-8"]),
    },
)


def names_of(call: dict[str, str]) -> frozenset[str]:
    """Whom a call counts on; it is key_1's unless it says otherwise."""
    return frozenset({"org_1", call.get("key_id", "key_1"), *call.values()})


class LedgerMachine(RuleBasedStateMachine):
    """Every rule does the same to both."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.reference = Reference()
        self.calls: dict[int, dict[str, str]] = {}
        self.database: Database = self.do(self._open())
        self.books = Books(self.database, SteppedClock())
        self.do(self.books.start())

    async def _open(self) -> Database:
        return open_database(f"sqlite://{self.directory.name}/usage.db")

    def do(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return self.runner.run(wait())

    def teardown(self) -> None:
        self.do(self.database.close())
        self.runner.close()
        self.directory.cleanup()

    def call_of(self, number: int, call: dict[str, str]) -> dict[str, str]:
        """An attempt's facts never change."""
        return self.calls.setdefault(number, call)

    @initialize(limits=st.tuples(st.integers(20, 90), st.integers(20, 90)))
    def begin(self, limits: tuple[int, int]) -> None:
        """Two budgets that every call of key_1 counts on, so that most calls meet one."""
        self._set_budget("org_1", limits[0])
        self._set_budget("key_1", limits[1])

    @rule(subject=st.sampled_from(sorted(SCOPES)), limit=st.integers(0, 100))
    def set_budget(self, subject: str, limit: int) -> None:
        self._set_budget(subject, limit)

    def _set_budget(self, subject: str, limit: int) -> None:
        self.do(self.books.budget(limit, scope=SCOPES[subject], subject=subject))
        self.reference.set_budget(subject, limit)

    @rule(
        numbers=st.lists(NUMBERS, min_size=1, max_size=4),
        amount=AMOUNTS,
        least=st.integers(0, 10),
        call=CALLS,
    )
    def place(self, numbers: list[int], amount: int, least: int, call: dict[str, str]) -> None:
        least = min(least, amount)
        asked = [self.books.hold(n, amount, least=least, **self.call_of(n, call)) for n in numbers]
        answers = self.do(self.books.place(*asked))
        for number, answer in zip(numbers, answers, strict=True):
            names = names_of(self.calls[number])
            expected = self.reference.place(number, names, amount, least)
            match answer.outcome:
                case pb.HOLD_OUTCOME_HELD:
                    assert expected == HELD
                    assert answer.amount_nano_usd == self.reference.attempts[number].amount
                case pb.HOLD_OUTCOME_REFUSED:
                    assert expected == "refused"
                case pb.HOLD_OUTCOME_ALREADY:
                    assert expected == STATES[answer.state]
                case _:
                    assert expected == ""

    @rule(number=NUMBERS, amount=AMOUNTS)
    def raise_hold(self, number: int, amount: int) -> None:
        self.do(self.books.raise_to(number, amount))
        self.reference.raise_to(number, amount)

    @rule(number=NUMBERS)
    def void(self, number: int) -> None:
        self.do(self.books.void(number))
        self.reference.end(number, VOIDED)

    @rule(number=NUMBERS, cost=AMOUNTS, call=CALLS)
    def record(self, number: int, cost: int, call: dict[str, str]) -> None:
        facts = self.call_of(number, call)
        known = self.reference.attempts.get(number)
        reservation = Reservation(amount_nano_usd=known.amount) if known else None
        verdict = self.do(self.books.settle(number, cost, reservation=reservation, **facts))
        assert (verdict is Verdict.INSERTED) == (number not in self.reference.recorded)
        self.reference.record(number, names_of(facts), cost)

    @precondition(lambda self: any(a.state == HELD for a in self.reference.attempts.values()))
    @rule()
    def fall_silent(self) -> None:
        """All leases run out; the router speaks again afterwards."""
        self.books.clock.passed_s += 31
        self.do(self.books.holders.sweep())
        for number in self.reference.attempts:
            if number in self.reference.recorded:
                # It was placed after its record: the sweeper finds that and lets it go.
                self.reference.end(number, VOIDED)
            else:
                self.reference.expire(number)
        self.do(
            self.books.holders.renew(
                pb.RenewLeasesRequest(holder="router-0", epoch=self.books.epoch)
            )
        )

    @rule()
    def restart(self) -> None:
        """The router dies and has its journal; nothing was dispatched that is not recorded."""
        self.books.epoch = self.do(self.books.open_epoch(journal_epoch=self.books.epoch))
        self.do(
            self.books.holders.close_epochs(
                pb.CloseEpochsRequest(holder="router-0", epoch=self.books.epoch)
            )
        )
        for number in self.reference.attempts:
            self.reference.end(number, VOIDED)

    @invariant()
    def the_balances_are_the_same(self) -> None:
        found = {b.subject: b for b in self.do(self.books.balances())}
        assert found.keys() == self.reference.limits.keys()
        for subject, balance in found.items():
            assert balance.spent_nano_usd == self.reference.spent[subject]
            assert balance.held_nano_usd == self.reference.held(subject)
        self.do(self.books.sound())

    @invariant()
    def what_ended_holds_nothing(self) -> None:
        holds = self.do(self.books.holders.open_holds("", "", 100))
        open_ = [a for a in self.reference.attempts.values() if a.state not in (POSTED, VOIDED)]
        assert sum(h.amount_nano_usd for h in holds) == sum(a.amount for a in open_)


LedgerMachine.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=30,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
test_the_ledger_does_what_the_reference_does = LedgerMachine.TestCase
