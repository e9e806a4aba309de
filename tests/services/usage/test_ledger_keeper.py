"""What happens to the ledger by itself."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from runtime.metrics import Metrics
from services.usage.ledger.budget_board import BudgetBoard
from services.usage.ledger.ledger_keeper import LedgerKeeper
from tests.services.usage.books import Books, books_on

pytestmark = pytest.mark.anyio


@pytest.fixture
async def books(dsn: str) -> AsyncIterator[Books]:
    async with books_on(dsn) as opened:
        yield opened


def keeper_of(books: Books, board: BudgetBoard, metrics: Metrics) -> LedgerKeeper:
    stores = (books.budgets, books.holders, books.check)
    return LedgerKeeper(stores, board, books.clock, metrics)


async def test_leases_end_and_balances_are_compared(
    books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    board, metrics = BudgetBoard(books.clock), Metrics("usage")
    keeper = keeper_of(books, board, metrics)
    budget = await books.budget(100)
    await books.place(books.hold(1, 60, lease_ms=1))
    await keeper.start()
    assert list(board.book.budgets) == [budget.id]
    books.clock.passed_s += 1
    await keeper.round()
    assert await books.stands() == (60, 0)
    spoil = text("UPDATE ledger_accounts SET posted_nano_usd = 7")
    await books.database.write(lambda c: c.execute(spoil))
    with caplog.at_level(logging.CRITICAL):
        await keeper.round()
        assert "adds up" not in caplog.text
        books.clock.passed_s += 3_600
        await keeper.round()
    assert "is kept as 7 and adds up to 60" in caplog.text
    page = metrics.render().decode()
    assert 'leases_ended_total{into="uncertain"} 1' in page
    assert "ledger_faults 1" in page


async def test_a_start_spares_holders_that_could_not_speak(books: Books) -> None:
    await books.budget(100)
    await books.place(books.hold(1, 60))
    books.clock.passed_s += 3_000
    keeper = keeper_of(books, BudgetBoard(books.clock), Metrics("usage"))
    await books.place(books.hold(2, 10, lease_ms=600_000))
    await keeper.start()
    await keeper.round()
    assert await books.stands() == (60, 10)


async def test_a_budget_set_through_another_process_is_noticed(books: Books) -> None:
    board = BudgetBoard(books.clock)
    keeper = keeper_of(books, board, Metrics("usage"))
    await keeper.start()
    running = asyncio.create_task(keeper.run())
    try:
        watch = board.watch()
        assert (await anext(watch)).complete
        budget = await books.budget(100)
        async with asyncio.timeout(10):
            news = await anext(watch)
            while not news.budgets:
                news = await anext(watch)
        assert [one.id for one in news.budgets] == [budget.id]
        await watch.aclose()
    finally:
        running.cancel()
