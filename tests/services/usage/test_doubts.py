"""What may have been spent without a record: in reports as it is in the ledger, to the nano."""

import random
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, select, text

from onegate.usage.v1 import budget_pb2
from onegate.usage.v1 import hold_service_pb2 as pb
from onegate.usage.v1.usage_record_pb2 import Reservation
from services.usage.ledger import ledger_schema
from services.usage.reports.report_store import START, TAG, Question, ReportStore
from services.usage.reports.rollup_schema import DOUBTS
from services.usage.reports.rollup_store import Rollups
from services.usage.reports.spans import DAY_US, HOUR_US
from tests.services.usage.books import PAYER, Books, books_on
from tests.services.usage.records import attempt_id

pytestmark = pytest.mark.anyio

ORGANIZATION = {"scope": budget_pb2.BUDGET_SCOPE_ORGANIZATION, "subject": "org_1"}
CUSTOMERS = {"scope": budget_pb2.BUDGET_SCOPE_CUSTOMER, "subject": "*"}


@pytest.fixture
async def books(dsn: str) -> AsyncIterator[Books]:
    async with books_on(dsn) as opened:
        yield opened
        await opened.sound()


async def reported(books: Books, *groups: str, **asked: object) -> dict[tuple[object, ...], int]:
    """What a report says of the cost, by group."""
    question = Question(groups=groups, **asked)  # type: ignore[arg-type]
    found = await ReportStore(books.database).page(question)
    return {total.group: total.sums["cost_nano_usd"] for total in found}


async def test_what_was_posted_without_a_record_costs_until_the_record_comes(books: Books) -> None:
    await books.budget(1_000, **ORGANIZATION)
    await books.budget(500, **CUSTOMERS)
    await books.place(books.hold(1, 60, customer="acme"))
    assert await reported(books) == {(): 0}
    books.clock.passed_s += 31
    assert await books.holders.sweep() == (1, 0)
    assert await reported(books) == {(): 60}
    assert await reported(books, "customer", "model") == {("acme", ""): 60}
    assert await reported(books, TAG, "run", tag="team") == {("", ""): 60}
    assert await reported(books, where={"customer": ["acme"]}) == {(): 60}
    assert await reported(books, where={"customer": ["other"]}) == {(): 0}
    assert await reported(books, where={"model": ["openai/gpt-4o"]}) == {(): 0}
    assert await reported(books, uncertain=False) == {(): 0}
    (total,) = await ReportStore(books.database).page(Question())
    assert total.sums["uncertain_nano_usd"] == 60
    assert total.sums["attempts"] == 0
    await books.settle(1, 45, customer="acme", model="openai/gpt-4o")
    assert await reported(books, "model") == {("openai/gpt-4o",): 45}
    (total,) = await ReportStore(books.database).page(Question())
    assert total.sums["uncertain_nano_usd"] == 0


async def test_it_counts_when_the_money_was_set_aside(books: Books) -> None:
    await books.budget(1_000, **ORGANIZATION)
    await books.place(books.hold(1, 60, lease_ms=1), books.hold(2, 7))
    set_aside_us = books.now_us()
    books.clock.passed_s += 3 * 24 * 3600
    assert await books.holders.sweep() == (2, 0)
    day = set_aside_us // DAY_US
    assert await reported(books, START) == {(day,): 67}
    await books.void(2)
    assert await reported(books, START) == {(day,): 60}
    span = {"from_us": set_aside_us + 1, "before_us": books.now_us()}
    assert await reported(books, **span) == {(): 0}


async def test_the_budgets_say_whose_it_was_also_when_they_have_ended(books: Books) -> None:
    await books.budget(1_000, **ORGANIZATION)
    in_project = {"project_id": "proj_1", "scope": budget_pb2.BUDGET_SCOPE_FEATURE}
    feature = await books.budget(1_000, subject="*", **in_project)
    await books.budget(1_000)
    await books.place(books.hold(1, 60, feature="chat"))
    await books.budgets.end(feature.id, "org_1")
    books.clock.passed_s += 31
    assert await books.holders.sweep() == (1, 0)
    groups = ("organization_id", "project_id", "key_id", "feature", "run")
    assert await reported(books, *groups) == {("org_1", "proj_1", "key_1", "chat", ""): 60}


async def _one_step(books: Books, chosen: random.Random, number: int) -> None:
    """Something that happens to money."""
    match chosen.randrange(7):
        case 0 | 1:
            await books.place(books.hold(number, chosen.randrange(1, 10**6)))
        case 2 | 3:
            one = chosen.randrange(number + 1)
            reservation = None
            if chosen.randrange(3) == 0:
                slice_id = attempt_id(10_000 + chosen.randrange(number + 1))
                reservation = Reservation(
                    amount_nano_usd=500, slice_id=slice_id, slice_amount_nano_usd=500
                )
            await books.settle(one, chosen.randrange(10**6), reservation=reservation)
        case 4:
            request = pb.TakeSliceRequest(
                holder="router-0",
                epoch=books.epoch,
                slice_id=attempt_id(10_000 + number),
                payer=pb.Payer(**PAYER),
                amount_nano_usd=chosen.randrange(1, 10**6),
                lease_ms=10_000,
            )
            await books.holds.take_slice(request)
        case 5:
            books.clock.passed_s += chosen.choice([1, 40, 4_000])
            await books.holders.sweep()
        case _:
            await books.void(chosen.randrange(number + 1))


@pytest.mark.parametrize("seed", range(3))
async def test_reports_sum_up_to_the_ledger_whatever_happens(books: Books, seed: int) -> None:
    chosen = random.Random(seed)
    await books.budget(10**12, **ORGANIZATION)
    await books.budget(10**12)
    rollups = Rollups(books.database)
    uncertain = 0
    for number in range(120):
        await _one_step(books, chosen, number)
        if chosen.randrange(10) == 0:
            await rollups.finish(books.now_us())
        if chosen.randrange(6) == 0:
            spent, _ = await books.stands("org_1")
            for asked in ((), ("key_id",), ("project_id", "model"), ("run",), (START,)):
                found = await reported(books, *asked, unit_us=HOUR_US)
                assert sum(found.values()) == spent
            (total,) = await ReportStore(books.database).page(Question())
            uncertain = max(uncertain, total.sums["uncertain_nano_usd"])
    assert uncertain > 0


async def test_what_was_posted_before_reports_had_it_is_taken_over(books: Books) -> None:
    await books.budget(10_000, **ORGANIZATION)
    await books.budget(10_000)
    await books.place(*(books.hold(number, 10 * number) for number in (1, 2, 3)))
    books.clock.passed_s += 31
    assert await books.holders.sweep() == (3, 0)
    await books.settle(1, 4)
    spent, _ = await books.stands("org_1")
    assert spent == 54
    (taken_over,) = ledger_schema.MIGRATIONS[1].statements

    async def doubted() -> int:
        query = select(func.sum(DOUBTS.c.amount_nano_usd))
        return int(await books.database.read(lambda c: c.execute(query).scalar_one()))

    assert await doubted() == 50
    await books.database.write(lambda c: c.execute(text("DELETE FROM usage_doubts")))
    await books.database.write(lambda c: c.execute(text(str(taken_over))))
    assert await doubted() == 50
    assert await reported(books, "organization_id") == {("org_1",): 54}
    await books.settle(2, 3)
    assert await doubted() == 30
