"""Batches that arrive together, on a real SQLite file."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from onegate.common.v1 import error_pb2
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.errors import GatewayError
from runtime.sql import open_database
from services.usage.intake import TRANSACTION_RECORDS_MAX, WAITING_MAX, Intake
from services.usage.reports.queries import Selection
from services.usage.store import SqlStore, Verdict
from tests.services.usage.records import NOON, SteppedClock, record, summed

pytestmark = pytest.mark.anyio


class CountingStore(SqlStore):
    """The real store; counts its transactions and can be made to fail before one."""

    transactions = 0
    failure: BaseException | None = None

    async def record(self, records: Sequence[UsageRecord], *, now_us: int) -> list[Verdict]:
        self.transactions += 1
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        return await super().record(records, now_us=now_us)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[CountingStore]:
    made = CountingStore(open_database(f"sqlite://{tmp_path / 'usage.db'}"))
    await made.migrate(now=NOON)
    yield made
    await made.close()


async def total(store: SqlStore) -> int:
    (sums,) = await summed(store, Selection(), ())
    return int(sums.attempts)


async def test_batches_that_arrive_together_share_transactions(store: CountingStore) -> None:
    intake = Intake(store, SteppedClock())
    answers = await asyncio.gather(
        *(intake.record([record(2 * n), record(2 * n + 1), record(0)]) for n in range(50))
    )
    assert answers[0] == [Verdict.INSERTED, Verdict.INSERTED, Verdict.DUPLICATE]
    assert answers[1:] == [[Verdict.INSERTED, Verdict.INSERTED, Verdict.DUPLICATE]] * 49
    assert await total(store) == 100
    assert store.transactions <= 2
    await intake.close()


async def test_a_transaction_has_a_size(store: CountingStore) -> None:
    intake = Intake(store, SteppedClock())
    size = TRANSACTION_RECORDS_MAX // 2
    batches = [[record(b * size + n) for n in range(size)] for b in range(5)]
    await asyncio.gather(*(intake.record(batch) for batch in batches))
    assert store.transactions == 3
    assert await total(store) == 5 * size


async def test_more_than_may_wait_is_refused_and_comes_in_later(store: CountingStore) -> None:
    intake = Intake(store, SteppedClock())
    first = asyncio.gather(*(intake.record([record(n)] * 1000) for n in range(WAITING_MAX // 1000)))
    await asyncio.sleep(0)
    with pytest.raises(GatewayError) as refused:
        await intake.record([record(1)])
    assert refused.value.reason == error_pb2.ERROR_REASON_OVERLOADED
    await first
    assert await intake.record([record(1)]) == [Verdict.DUPLICATE]


async def test_when_the_store_is_away_every_waiter_learns_it_and_the_next_one_succeeds(
    store: CountingStore,
) -> None:
    intake = Intake(store, SteppedClock())
    store.failure = GatewayError(error_pb2.ERROR_REASON_STORE_UNAVAILABLE, "away")
    answers = await asyncio.gather(
        *(intake.record([record(n)]) for n in range(3)), return_exceptions=True
    )
    assert all(isinstance(answer, GatewayError) for answer in answers)
    assert await intake.record([record(0)]) == [Verdict.INSERTED]


async def test_a_defect_leaves_nobody_waiting(
    store: CountingStore, caplog: pytest.LogCaptureFixture
) -> None:
    intake = Intake(store, SteppedClock())
    store.failure = RuntimeError("a defect")
    answers = await asyncio.gather(
        *(intake.record([record(n)] * 900) for n in range(5)), return_exceptions=True
    )
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers)
    assert await intake.record([record(0)]) == [Verdict.INSERTED]
    assert "a defect" in caplog.text


async def test_a_caller_that_leaves_has_its_records_kept(store: CountingStore) -> None:
    intake = Intake(store, SteppedClock())
    leaving = asyncio.create_task(intake.record([record(1)]))
    staying = asyncio.create_task(intake.record([record(2)]))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == [Verdict.INSERTED]
    await intake.close()
    assert await total(store) == 2


async def test_closing_waits_for_what_is_being_written(store: CountingStore) -> None:
    intake = Intake(store, SteppedClock())
    await intake.close()
    writing = asyncio.create_task(intake.record([record(1)]))
    await asyncio.sleep(0)
    await intake.close()
    assert await total(store) == 1
    assert await writing == [Verdict.INSERTED]
