"""Several usage processes on one PostgreSQL: every attempt counts once, all know every price."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from onegate.usage.v1.price_pb2 import PriceSheet
from runtime.sql import open_database
from services.usage.prices import price_service
from services.usage.prices.price_changes import Change
from services.usage.prices.price_service import OperatorPrices
from services.usage.prices.price_store import SqlPriceStore
from services.usage.reports.queries import Selection
from services.usage.store import SqlStore, Verdict
from tests.services.usage.records import NOON, SteppedClock, record, summed, until
from tests.services.usage.test_price_service import board_on

pytestmark = pytest.mark.anyio

NOW_US = 1_795_262_400_000_000


@asynccontextmanager
async def stores(dsn: str, count: int) -> AsyncIterator[list[SqlStore]]:
    made = [SqlStore(open_database(dsn)) for _ in range(count)]
    try:
        await asyncio.gather(*(store.migrate(now=NOON) for store in made))
        yield made
    finally:
        for store in made:
            await store.close()


async def test_an_attempt_that_several_processes_are_told_of_at_once_counts_once(
    postgres_dsn: str,
) -> None:
    chosen = random.Random(5)
    async with stores(postgres_dsn, 3) as replicas:

        async def tell(store: SqlStore) -> list[Verdict]:
            batch = [record(number) for number in chosen.sample(range(120), 80)]
            chosen.shuffle(batch)
            return await store.record(batch, now_us=NOW_US)

        verdicts = await asyncio.gather(*(tell(store) for store in replicas * 4))
        told = Counter(verdict for batch in verdicts for verdict in batch)
        kept = await replicas[0].list_records(Selection(), after=None, count_max=1000)
        assert told == {Verdict.INSERTED: len(kept), Verdict.DUPLICATE: 12 * 80 - len(kept)}
        (total,) = await summed(replicas[1], Selection(), ())
        assert total.cost_nano_usd == sum(one.cost_nano_usd for one in kept)


async def test_what_contradicts_itself_at_several_processes_is_kept_aside_once(
    postgres_dsn: str,
) -> None:
    async with stores(postgres_dsn, 3) as replicas:
        await replicas[0].record([record(1)], now_us=NOW_US)
        other = record(1, cost_nano_usd=5)
        verdicts = await asyncio.gather(
            *(store.record([other], now_us=NOW_US) for store in replicas * 3)
        )
        assert verdicts == [[Verdict.QUARANTINED]] * 9
        assert await replicas[0].list_records(Selection(), after=None, count_max=9) == [record(1)]


def changes(replica: int, number: int) -> list[Change]:
    names = [f"openai/{replica}-{number}-{n}" for n in range(3)]
    return [
        Change(
            number=0,
            model=name,
            price=PriceSheet(model=name, source="a contract"),
            valid_from=NOON,
            recorded_at=NOON + timedelta(seconds=number),
        )
        for name in names
    ]


async def test_no_price_is_passed_by_however_many_processes_set_some_at_once(
    postgres_dsn: str,
) -> None:
    databases = [open_database(postgres_dsn) for _ in range(3)]
    replicas = [SqlPriceStore(database) for database in databases]
    await replicas[0].migrate(now=NOON)
    seen: list[Change] = []

    async def read() -> None:
        while len(seen) < 3 * 10 * 3:
            # As a process does: whatever is newer than the newest that it knows.
            seen.extend(await replicas[0].after(seen[-1].number if seen else 0))

    async with asyncio.timeout(60):
        await asyncio.gather(
            read(),
            *(store.add(changes(r, n)) for n in range(10) for r, store in enumerate(replicas)),
        )
    assert len({change.model for change in seen}) == 90
    for database in databases:
        await database.close()


async def test_a_price_that_another_process_set_is_heard_of_at_once(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is looked for: what is heard was announced.
    monkeypatch.setattr(price_service, "REFRESH_S", 600.0)
    clock = PatientClock()
    databases = [open_database(postgres_dsn) for _ in range(2)]
    one, two = (SqlPriceStore(database) for database in databases)
    await one.migrate(now=NOON)
    prices = OperatorPrices(two, board_on(clock), clock)
    running = asyncio.create_task(prices.run())
    await one.add(changes(0, 0))
    await until(lambda: len(prices.changes) == 3, "the prices")
    await one.add(changes(0, 1))
    await until(lambda: len(prices.changes) == 6, "the next prices")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    for database in databases:
        await database.close()


class PatientClock(SteppedClock):
    """Sleeps as long as it is told."""

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
