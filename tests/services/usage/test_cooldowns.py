"""What one router was asked is passed on to all, by every usage process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from onegate.usage.v1.cooldown_service_pb2 import Cooldown, TellCooldownsRequest
from runtime.clock import SystemClock
from runtime.errors import GatewayError
from runtime.sql import open_database
from services.usage.cooldowns.cooldown_board import ENTRIES_MAX, CooldownBoard
from services.usage.cooldowns.cooldown_service import COOLDOWNS_MAX, CooldownService
from services.usage.cooldowns.cooldown_store import CooldownStore
from services.usage.ledger.budget_board import BudgetBoard
from services.usage.ledger.ledger_store import shared_clock

CLOCK = SystemClock()


def left(board: CooldownBoard, now_s: float, since: int = 0) -> dict[str, int]:
    return {one.seat: one.left_ms for one in board.since(since, now_s)}


def test_an_end_is_never_brought_forward() -> None:
    board = CooldownBoard()
    assert board.take({"a/m": 30.0}, 100.0) == {"a/m": 30.0}
    assert board.take({"a/m": 5.0}, 110.0) == {}
    assert left(board, 110.0) == {"a/m": 20_001}
    assert board.take({"a/m": 25.0}, 110.0) == {"a/m": 25.0}
    assert left(board, 134.5) == {"a/m": 501}
    assert left(board, 135.0) == {}


def test_only_what_is_news_is_told_again() -> None:
    board = CooldownBoard()
    board.take({"a/m": 30.0, "b/m": 30.0}, 0.0)
    revision = board.revision
    board.take({"a/m": 10.0, "b/m": 40.0, "c/m": 0.0, "d/m": -1.0}, 0.0)
    assert left(board, 0.0, revision) == {"b/m": 40_001}


def test_what_is_asked_is_believed_up_to_an_hour_and_kept_up_to_a_bound() -> None:
    board = CooldownBoard()
    board.take({"a/m": 1e9}, 0.0)
    assert left(board, 0.0) == {"a/m": 3_600_001}
    board.take({f"{number}": 5.0 for number in range(ENTRIES_MAX)}, 0.0)
    assert len(left(board, 0.0)) == ENTRIES_MAX
    assert board.take({"late": 5.0}, 1.0) == {}
    assert board.take({"late": 5.0}, 6.0) == {"late": 5.0}
    assert left(board, 6.0).keys() == {"a/m", "late"}


@asynccontextmanager
async def processes(
    dsns: Sequence[str],
) -> AsyncIterator[list[tuple[CooldownService, BudgetBoard]]]:
    """So many usage processes, as far as cool-downs are concerned."""
    async with AsyncExitStack() as stack:
        made = []
        for dsn in dsns:
            database = open_database(dsn)
            stack.push_async_callback(database.close)
            store = CooldownStore(database, shared_clock(CLOCK))
            await store.migrate(now=CLOCK.now())
            board = BudgetBoard(CLOCK)
            service = CooldownService(store, board, CLOCK)
            await service.start()
            running = asyncio.create_task(service.run())
            stack.push_async_callback(_ended, running)
            made.append((service, board))
        yield made


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def told(service: CooldownService, **left_ms: int) -> None:
    cooldowns = [Cooldown(seat=seat, left_ms=ms) for seat, ms in left_ms.items()]
    await service.TellCooldowns(
        TellCooldownsRequest(teller="r", cooldowns=cooldowns),
        None,  # type: ignore[arg-type]
    )


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits until the condition holds."""
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def heard(board: BudgetBoard, seat: str) -> int:
    """For how many milliseconds a new watcher is told that the seat is left alone."""
    found: dict[str, int] = {}

    async def watched() -> bool:
        watch = board.watch()
        try:
            async for news in watch:
                found.update({one.seat: one.left_ms for one in news.cooldowns})
                if news.complete:
                    return seat in found
        finally:
            await watch.aclose()
        return False

    await until(watched)
    return found[seat]


@pytest.mark.anyio
async def test_all_processes_tell_what_one_was_told(postgres_dsn: str) -> None:
    async with processes([postgres_dsn] * 3) as made:
        await told(made[0][0], a=30_000, b=1)
        for _, board in made:
            assert 20_000 < await heard(board, "a") <= 30_100
        await told(made[1][0], a=10_000, c=60_000)
        for _, board in made:
            assert 50_000 < await heard(board, "c") <= 60_100
            assert 10_000 < await heard(board, "a") <= 30_100


@pytest.mark.anyio
async def test_a_process_that_starts_again_still_knows(tmp_path: Path) -> None:
    dsn = f"sqlite:///{tmp_path}/usage.db"
    async with processes([dsn]) as ((service, _),):
        await told(service, a=30_000)
        database = open_database(dsn)
        store = CooldownStore(database, shared_clock(CLOCK))

        async def kept() -> bool:
            return bool(await store.in_force())

        await until(kept)
        await database.close()
    async with processes([dsn]) as ((_, board),):
        assert 20_000 < await heard(board, "a") <= 30_100


@pytest.mark.anyio
async def test_too_much_at_once_is_refused(tmp_path: Path) -> None:
    async with processes([f"sqlite:///{tmp_path}/usage.db"]) as ((service, _),):
        with pytest.raises(GatewayError, match="at most 1,000"):
            await told(service, **{f"s{number}": 1 for number in range(COOLDOWNS_MAX + 1)})
        with pytest.raises(GatewayError, match="characters"):
            await told(service, **{"s" * 513: 1})
