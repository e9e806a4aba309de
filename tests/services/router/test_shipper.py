"""From the journal to the usage service and back again, over real sockets and a real database."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import usage_service_pb2, usage_service_pb2_grpc
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.config import RpcSettings
from runtime.errors import GatewayError
from runtime.metrics import Metrics
from runtime.rpc import RpcServer, channel
from runtime.secrets import Secret
from runtime.sql import open_database
from services.router.money import shipper as module
from services.router.money.journal import Journal
from services.router.money.journal_files import Position
from services.router.money.shipper import Shipper
from services.usage.intake import Intake
from services.usage.reports.queries import Selection
from services.usage.reports.report_store import ReportStore
from services.usage.server import UsageService
from services.usage.store import SqlStore
from tests.services.usage.records import NOON, SteppedClock, attempt_id, record, summed, until

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
RPC = RpcSettings()
Fate = Callable[[], GatewayError | None]


def sealed(record: UsageRecord) -> tuple[str, bytes]:
    """A record as the journal takes it."""
    return record.attempt_id, record.SerializeToString()


class FlakyService(UsageService):
    """The real service, whose requests or answers get lost as a test says."""

    lose_request: Fate = staticmethod(lambda: None)
    lose_answer: Fate = staticmethod(lambda: None)
    sizes: list[int]

    async def RecordUsage(  # noqa: N802 - the contract's name
        self, request: usage_service_pb2.RecordUsageRequest, context: Any
    ) -> usage_service_pb2.RecordUsageResponse:
        if error := self.lose_request():
            raise error
        self.sizes.append(len(request.records))
        answer = await super().RecordUsage(request, context)
        if error := self.lose_answer():
            raise error
        return answer


class Usage:
    """A usage service that can be started, stopped and asked what it has."""

    def __init__(self, directory: Path) -> None:
        self.address = f"unix:{directory}/usage.sock"
        self.store = SqlStore(open_database(f"sqlite://{directory}/usage.db"))
        intake = Intake(self.store, SteppedClock())
        self.service = FlakyService(
            (self.store, ReportStore(self.store.database)), intake, Secret("x"), Metrics("usage")
        )
        self.service.sizes = []
        self._server: RpcServer | None = None

    async def __aenter__(self) -> Self:
        await self.store.migrate(now=NOON)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        await self.store.close()

    async def start(self) -> None:
        self._server = RpcServer(RPC, "usage")
        self._server.add(usage_service_pb2_grpc.add_UsageServiceServicer_to_server, self.service)
        await self._server.start(self.address)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(1)
            self._server = None

    async def count(self) -> int:
        (sums,) = await summed(self.store, Selection(), ())
        return int(sums.attempts)

    async def records(self) -> list[UsageRecord]:
        """Oldest first."""
        found = await self.store.list_records(Selection(), after=None, count_max=100_000)
        return found[::-1]

    async def holds(self, count: int) -> None:
        """Waits until so many records are there; more are too many."""
        there = -1
        async with asyncio.timeout(30):
            while there < count:
                await asyncio.sleep(0.005)
                there = await self.count()
        assert there == count


@pytest.fixture
async def usage(tmp_path: Path) -> AsyncIterator[Usage]:
    async with Usage(tmp_path) as made:
        yield made


@asynccontextmanager
async def shipping(
    directory: Path, usage: Usage, *, flush_s: float = 5.0
) -> AsyncIterator[tuple[Journal, Shipper]]:
    """A router's journal and shipper."""
    journal = Journal.open(directory / "journal", 64 * MIB)
    line = channel(usage.address, RPC)
    made = Shipper(journal, line, SteppedClock())
    made.start()
    try:
        yield journal, made
    finally:
        await made.close(flush_s)
        await line.close()
        journal.close()


async def test_what_is_posted_arrives_and_is_acknowledged(tmp_path: Path, usage: Usage) -> None:
    await usage.start()
    async with shipping(tmp_path, usage) as (journal, shipper):
        for number in range(50):
            journal.dispatched(*sealed(record(number)))
            shipper.post(*sealed(record(number)))
        await usage.holds(50)
        await until(lambda: not journal.unacknowledged(journal.acknowledged, 1), "the last ack")
    assert await usage.records() == [record(number) for number in range(50)]
    # Posted within one moment, they went together.
    assert len(usage.service.sizes) <= 2


async def test_a_batch_is_bounded_in_records_and_bytes(tmp_path: Path, usage: Usage) -> None:
    async with shipping(tmp_path, usage) as (_, shipper):
        for number in range(1200):
            shipper.post(*sealed(record(number)))
        for number in range(1200, 1204):
            large = record(number)
            large.tokens.extra_json = b"x" * 700_000
            shipper.post(*sealed(large))
        await usage.start()
        await usage.holds(1204)
    assert max(usage.service.sizes) <= module.BATCH_RECORDS_MAX
    assert usage.service.sizes[-3:] == [1, 1, 1]


async def test_while_usage_is_away_everything_waits_in_bounded_memory_and_then_arrives_once(
    tmp_path: Path, usage: Usage, caplog: pytest.LogCaptureFixture
) -> None:
    count = 2 * module.QUEUE_RECORDS_MAX
    async with shipping(tmp_path, usage) as (journal, shipper):
        for number in range(count):
            journal.dispatched(*sealed(record(number)))
            shipper.post(*sealed(record(number)))
            if number % 500 == 0:
                await asyncio.sleep(0)
        assert len(shipper._queue) <= module.QUEUE_RECORDS_MAX
        await until(lambda: "usage does not take records" in caplog.text, "a complaint")
        await usage.start()
        # Calls go on while the backlog is sent.
        for number in range(count, count + 500):
            shipper.post(*sealed(record(number)))
            await asyncio.sleep(0)
        await usage.holds(count + 500)
        await until(lambda: journal.acknowledged == journal.end or not shipper._behind, "calm")
        shipper.post(*sealed(record(count + 500)))
        await usage.holds(count + 501)
    assert sum(usage.service.sizes) == count + 501
    assert caplog.text.count("usage does not take records") == 1


async def test_a_lost_request_or_answer_makes_no_gap_and_no_double(
    tmp_path: Path, usage: Usage
) -> None:
    chosen = random.Random(3)

    def fate() -> GatewayError | None:
        if chosen.random() < 0.4:
            return GatewayError(error_pb2.ERROR_REASON_STORE_UNAVAILABLE, "lost")
        return None

    usage.service.lose_request = usage.service.lose_answer = fate
    await usage.start()
    async with shipping(tmp_path, usage) as (_, shipper):
        for number in range(300):
            shipper.post(*sealed(record(number)))
            await asyncio.sleep(0.001)
        await usage.holds(300)
    assert await usage.records() == [record(number) for number in range(300)]


async def test_a_restart_sends_what_was_left_and_what_was_interrupted(
    tmp_path: Path, usage: Usage
) -> None:
    async with shipping(tmp_path, usage, flush_s=0.05) as (journal, shipper):
        for number in range(10):
            journal.dispatched(*sealed(record(number)))
            if number != 4:
                shipper.post(*sealed(record(number)))
    await usage.start()
    async with shipping(tmp_path, usage) as (journal, shipper):
        assert len(journal.recovered) == 10
        shipper.post(*sealed(record(10)))
        await usage.holds(11)
    interrupted = [r for r in await usage.records() if r.attempt_id == attempt_id(4)]
    assert [r.outcome for r in interrupted] == [5]
    async with shipping(tmp_path, usage) as (journal, _):
        assert journal.recovered == []


async def test_closing_hands_over_what_was_just_posted(tmp_path: Path, usage: Usage) -> None:
    await usage.start()
    async with shipping(tmp_path, usage) as (_, shipper):
        shipper.post(*sealed(record(1)))
    assert await usage.count() == 1


async def test_closing_does_not_wait_for_long_when_usage_is_away(
    tmp_path: Path, usage: Usage
) -> None:
    async with asyncio.timeout(3), shipping(tmp_path, usage, flush_s=0.1) as (_, shipper):
        shipper.post(*sealed(record(1)))
    async with asyncio.timeout(3), shipping(tmp_path, usage, flush_s=0.1) as (journal, _):
        assert journal.recovered == [record(1)]


async def test_a_shipper_that_never_started_closes(tmp_path: Path, usage: Usage) -> None:
    journal = Journal.open(tmp_path / "journal", MIB)
    line = channel(usage.address, RPC)
    await Shipper(journal, line, SteppedClock()).close()
    await line.close()
    journal.close()


async def test_a_final_that_the_journal_lost_is_sent_from_memory(
    tmp_path: Path, usage: Usage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await usage.start()
    async with shipping(tmp_path, usage) as (journal, shipper):
        shipper.post(*sealed(record(1)))
        with monkeypatch.context() as patch:
            # Below the journal: no segment can be written and none can be begun.
            patch.setattr("services.router.money.journal_files._write", _no_space)
            shipper.post(*sealed(record(2)))
        shipper.post(*sealed(record(3)))
        await usage.holds(3)
        await until(lambda: journal.acknowledged > Position(1, 0), "an ack")
    assert "sent from memory" in caplog.text


def _no_space(_descriptor: int, _data: bytes, _size: int) -> None:
    raise OSError(28, "No space left on device")


async def test_a_journal_that_cannot_be_read_is_tried_again(
    tmp_path: Path, usage: Usage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with shipping(tmp_path, usage, flush_s=0.05) as (_, shipper):
        shipper.post(*sealed(record(1)))
    await usage.start()
    journal_directory = tmp_path / "journal"
    hidden = tmp_path / "hidden"
    journal = Journal.open(journal_directory, 64 * MIB)
    first = min(journal_directory.glob("*.journal"))
    first.rename(hidden)
    line = channel(usage.address, RPC)
    shipper = Shipper(journal, line, SteppedClock())
    shipper.start()
    await until(lambda: "cannot be read" in caplog.text, "a complaint")
    hidden.rename(first)
    await usage.holds(1)
    await shipper.close()
    await line.close()
    journal.close()


async def test_a_defect_of_the_shipper_is_loud(
    tmp_path: Path, usage: Usage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_batch: object) -> bytes:
        raise RuntimeError("a defect")

    monkeypatch.setattr(module, "repeated", broken)
    async with shipping(tmp_path, usage) as (_, shipper):
        shipper.post(*sealed(record(1)))
        await until(lambda: "no longer sent" in caplog.text, "an alarm")
