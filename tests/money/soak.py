"""The soak: budgets under load while processes are killed at random, and then the books.

    python -m tests.money.soak --minutes 20

Two edges and four routers serve streams and plain answers, some of them given up by their callers,
to three keys: one with plenty of money, in bursts so that routers borrow slices; one that runs
out of a strict budget; one that runs out of an estimating one. Every 0.5 to 5 s some process gets
SIGKILL and is started again. In the end nothing may be lost, doubled or overspent, nor held.
"""

import argparse
import asyncio
import contextlib
import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from onegate.usage.v1 import budget_pb2
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.errors import GatewayError
from tests.fake_provider import FakeProvider, Reply, Tally, running_in_thread
from tests.money.fleet import Books, Fleet, running_fleet
from tests.money.oracle import Verdict, compared

DOLLAR = 1_000_000_000
REPLY = Reply(
    text=" ".join("x" * 47 for _ in range(12)), first_byte_delay_s=0.02, chunk_delay_s=0.01
)
CAP = 200
PLENTY = 1_000_000 * DOLLAR
STRICT = budget_pb2.BUDGET_MODE_STRICT
ESTIMATE = budget_pb2.BUDGET_MODE_ESTIMATE
HELD_S = 30.0
"""How soon after the end nothing may be held any more."""


@dataclass(frozen=True, slots=True)
class Account:
    """A key with a budget of its own."""

    key_id: str
    secret: str
    mode: int
    limit_nano_usd: int


@dataclass(slots=True)
class Seen:
    """What was noticed on the way."""

    statuses: Counter[str] = field(default_factory=Counter)
    killed: Counter[str] = field(default_factory=Counter)
    looks: int = 0
    faults: list[str] = field(default_factory=list)
    calls: int = 0


class Soak:
    """One run."""

    def __init__(self, fleet: Fleet, accounts: Sequence[Account], seed: int) -> None:
        self.fleet = fleet
        self.books = Books(fleet.data_dir)
        self.seen = Seen()
        self._accounts = accounts
        self._random = random.Random(seed)
        self._over = threading.Event()

    def run(self, minutes: float, calls_per_s: float) -> None:
        """Load, deaths and looks, for so long."""
        beside = [
            threading.Thread(target=self._kill_now_and_then),
            threading.Thread(target=self._look_now_and_then),
        ]
        for thread in beside:
            thread.start()
        try:
            asyncio.run(self._load(minutes * 60, calls_per_s))
        finally:
            self._over.set()
            for thread in beside:
                thread.join()
        self.fleet.until_ready()

    async def _load(self, seconds: float, calls_per_s: float) -> None:
        until = time.monotonic() + seconds
        running: set[asyncio.Task[None]] = set()
        limits = httpx2.Limits(max_connections=400)
        async with httpx2.AsyncClient(timeout=30, limits=limits) as client:
            while time.monotonic() < until:
                burst = 40 if self._random.random() < 0.02 else 1
                account = self._accounts[0] if burst > 1 else self._random.choice(self._accounts)
                for _ in range(burst):
                    task = asyncio.create_task(self._call(client, account))
                    running.add(task)
                    task.add_done_callback(running.discard)
                await asyncio.sleep(burst / calls_per_s / 1.5)
            await asyncio.gather(*running)

    async def _call(self, client: httpx2.AsyncClient, account: Account) -> None:
        self.seen.calls += 1
        body = {
            "model": "fake/m",
            "messages": [{"role": "user", "content": "Hello!"}],
            "max_completion_tokens": CAP,
            "user": f"call-{self.seen.calls}",
            "stream": self._random.random() < 0.6,
        }
        leaves = body["stream"] and self._random.random() < 0.1
        edge = self._random.choice(list(self.fleet.edges))
        try:
            async with client.stream(
                "POST",
                f"{self.fleet.url(edge)}/v1/chat/completions",
                json=body,
                headers={"authorization": f"Bearer {account.secret}"},
            ) as answer:
                async for _ in answer.aiter_raw():
                    if leaves and answer.status_code == 200:
                        self.seen.statuses["left"] += 1
                        return
                self.seen.statuses[str(answer.status_code)] += 1
        except httpx2.HTTPError:
            self.seen.statuses["broken off"] += 1

    def _kill_now_and_then(self) -> None:
        chance = random.Random(self._random.random())
        while not self._over.wait(chance.uniform(0.5, 5)):
            name = chance.choice(self.fleet.names)
            self.fleet.kill(name)
            self.seen.killed[name.partition("-")[0]] += 1
            self.fleet.keep()

    def _look_now_and_then(self) -> None:
        while not self._over.wait(1.0):
            with contextlib.suppress(GatewayError):
                self.look()

    def look(self) -> int:
        """Holds every strict budget to its limit; what is held in all."""
        balances = self.books.balances()
        self.seen.looks += 1
        for one in balances:
            used = one.spent_nano_usd + one.held_nano_usd
            if one.budget.mode == STRICT and used > one.budget.limit_nano_usd:
                self.seen.faults.append(f"overshoot: {one.subject} has used {used}")
        return sum(one.held_nano_usd for one in balances)

    def until_nothing_is_held(self) -> float:
        """How long that took, in seconds."""
        began = time.monotonic()
        while time.monotonic() - began < 4 * HELD_S:
            with contextlib.suppress(GatewayError):
                if not self.look() and not self.books.holds():
                    break
            time.sleep(0.1)
        took = time.monotonic() - began
        if took > HELD_S:
            self.seen.faults.append(f"held after {took:.1f} s: {list(self.books.holds())[:3]}")
        return took

    def audit(self, tally: Tally) -> Verdict:
        """Compares ledger, records and tally."""
        records = self.books.records()
        verdict = compared(records, tally.read())
        self.seen.faults += verdict.faults
        for one in self.books.balances():
            own = [r for r in records if one.subject in (r.key_id, r.project_id)]
            on_record = sum(record.cost_nano_usd for record in own)
            if one.spent_nano_usd != on_record:
                self.seen.faults.append(
                    f"{one.subject} was charged {one.spent_nano_usd}, its records {on_record}"
                )
            if one.budget.mode == ESTIMATE and one.spent_nano_usd > one.budget.limit_nano_usd:
                print(f"estimating budget: {_usd(one.spent_nano_usd)}: {_over(own, one)}")
        return verdict


def _over(own: Sequence[UsageRecord], one: budget_pb2.Balance) -> str:
    under = sum(max(r.cost_nano_usd - r.reservation.amount_nano_usd, 0) for r in own)
    over = one.spent_nano_usd - one.budget.limit_nano_usd
    return f"{_usd(over)} over, {_usd(under)} underestimated"


def main() -> int:
    """Prints the figures; 1 when one of them is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.money.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--calls-per-s", type=float, default=15)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    print(f"seed {given.seed}, {given.minutes:g} minutes", flush=True)
    with soaking(given.seed) as (soak, tally):
        soak.run(given.minutes, given.calls_per_s)
        took = soak.until_nothing_is_held()
        verdict = soak.audit(tally)
        print(soak.fleet.cli("ledger", "verify"))
    report(soak.seen, verdict, took)
    return 1 if soak.seen.faults else 0


@contextlib.contextmanager
def soaking(seed: int) -> Iterator[tuple[Soak, Tally]]:
    """Everything that a run needs."""
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="og-tally-")))
        tally = Tally(place / "tally")
        stack.callback(tally.close)
        provider = stack.enter_context(running_in_thread(FakeProvider(tally=tally)))
        provider.default = REPLY
        fleet = stack.enter_context(running_fleet(provider.base_url, (4, 2), {}))
        yield Soak(fleet, _accounts(fleet), seed), tally


def _accounts(fleet: Fleet) -> list[Account]:
    books, first = Books(fleet.data_dir), fleet.key()
    place = {"organization_id": first["organization_id"]}
    project = budget_pb2.BUDGET_SCOPE_PROJECT
    books.limit(PLENTY, scope=project, subject=first["project_id"], **place)
    accounts = []
    for name, mode, limit in (
        ("plenty", STRICT, PLENTY),
        ("strict", STRICT, 20 * DOLLAR),
        ("estimate", ESTIMATE, 20 * DOLLAR),
    ):
        made = json.loads(fleet.cli("keys", "create", "--name", name, "-o", "json"))
        books.limit(
            limit, scope=budget_pb2.BUDGET_SCOPE_KEY, subject=made["id"], mode=mode, **place
        )
        accounts.append(Account(made["id"], made["value"], mode, limit))
    return accounts


def report(seen: Seen, verdict: Verdict, took: float) -> None:
    """Prints what was seen."""
    exact = verdict.charged_nano_usd - verdict.flagged_nano_usd
    said = verdict.produced_nano_usd - verdict.flagged_produced_nano_usd
    print(f"{seen.calls} calls: {dict(seen.statuses)}")
    print(f"{sum(seen.killed.values())} killed: {dict(seen.killed)}")
    print(
        f"{verdict.attempts} attempts on record: {verdict.exact} as reported,"
        f" {verdict.flagged} flagged, {verdict.unsent} never sent"
    )
    print(f"as reported: ledger {_usd(exact)}, provider's tally {_usd(said)}")
    print(
        f"flagged: ledger {_usd(verdict.flagged_nano_usd)},"
        f" provider's tally {_usd(verdict.flagged_produced_nano_usd)}"
    )
    print(f"nothing held {took:.1f} s after the end; {seen.looks} looks at the balances")
    print(f"{len(seen.faults)} faults")
    for fault in seen.faults[:20]:
        print(f"  {fault}")


def _usd(nano_usd: int) -> str:
    return f"${nano_usd / DOLLAR:.9f}"


if __name__ == "__main__":
    raise SystemExit(main())
