"""Several usage processes on one PostgreSQL hammer the same budgets: never over, never phantom."""

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from onegate.usage.v1 import budget_pb2
from onegate.usage.v1 import hold_service_pb2 as pb
from onegate.usage.v1.usage_record_pb2 import Reservation
from runtime.sql import open_database
from services.usage.store import Verdict
from tests.services.usage.books import PAYER, Books, books_on
from tests.services.usage.records import SteppedClock, attempt_id

pytestmark = pytest.mark.anyio

PROCESSES, ATTEMPTS, BOUND = 3, 120, 10


async def test_no_order_of_many_processes_overdraws_or_loses(postgres_dsn: str) -> None:
    clock = SteppedClock()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(books_on(postgres_dsn, clock))
        fleet = [first]
        for number in range(1, PROCESSES):
            database = open_database(postgres_dsn)
            stack.push_async_callback(database.close)
            books = Books(database, clock)
            books.epoch = await books.open_epoch(holder=f"router-{number}")
            fleet.append(books)
        await first.budget(ATTEMPTS * BOUND // 3)
        await first.budget(
            ATTEMPTS * BOUND // 4, scope=budget_pb2.BUDGET_SCOPE_ORGANIZATION, subject="org_1"
        )
        spent = await asyncio.gather(
            *(live(books, place, number) for number, books, place in plan(fleet)),
            *(borrow(books, place, 1_000 + number) for number, books, place in plan(fleet)[::8]),
        )
        for subject in ("key_1", "org_1"):
            assert await first.stands(subject) == (sum(spent), 0)
        assert 0 < sum(spent) <= ATTEMPTS * BOUND // 4
        await first.sound()
        assert await first.holders.open_holds("", "", 10) == []


def plan(fleet: list[Books]) -> list[tuple[int, Books, int]]:
    return [(number, fleet[number % PROCESSES], number % PROCESSES) for number in range(ATTEMPTS)]


async def borrow(books: Books, place: int, number: int) -> int:
    """One slice, given back beside the attempt that was admitted from it; what that cost."""
    slice_id = attempt_id(number + 1_000)
    taking = pb.TakeSliceRequest(
        holder=f"router-{place}",
        epoch=books.epoch,
        slice_id=slice_id,
        payer=pb.Payer(**PAYER),
        amount_nano_usd=BOUND,
        lease_ms=60_000,
    )
    answer = await books.holds.take_slice(taking)
    if answer.outcome != pb.HOLD_OUTCOME_HELD:
        return 0
    share = answer.amount_nano_usd // 2
    reservation = Reservation(amount_nano_usd=share, slice_id=slice_id, slice_amount_nano_usd=share)
    returning = pb.ReturnSliceRequest(
        holder=f"router-{place}",
        epoch=books.epoch,
        slice_id=slice_id,
        amount_nano_usd=answer.amount_nano_usd - share,
    )
    await asyncio.gather(
        books.settle(number, share, reservation=reservation), books.holds.return_slice(returning)
    )
    return share


async def live(books: Books, place: int, number: int) -> int:
    """One attempt: held, perhaps twice at once, then settled twice or given back; its cost."""
    chance = random.Random(number)
    request = pb.PlaceHoldsRequest(
        holder=f"router-{place}", epoch=books.epoch, holds=[books.hold(number, BOUND)]
    )
    twice = await asyncio.gather(books.holds.place([request]), books.holds.place([request]))
    outcomes = {answers[0].outcome for ((answers),) in ((t[0],) for t in twice)}  # type: ignore[index]
    assert len(outcomes) == 1
    if outcomes == {pb.HOLD_OUTCOME_REFUSED}:
        return 0
    if chance.random() < 0.3:
        voiding = pb.VoidHoldsRequest(
            holder=f"router-{place}",
            epoch=books.epoch,
            attempt_ids=[request.holds[0].attempt_id],
        )
        await asyncio.gather(books.holds.void(voiding), books.holds.void(voiding))
        return 0
    cost = chance.randint(0, BOUND)
    reservation = Reservation(amount_nano_usd=BOUND)
    verdicts = await asyncio.gather(
        *(books.settle(number, cost, reservation=reservation) for _ in range(2))
    )
    assert verdicts.count(Verdict.INSERTED) == 1
    return cost


async def test_lives_of_a_new_router_that_open_at_once_get_an_epoch_each(postgres_dsn: str) -> None:
    clock = SteppedClock()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(books_on(postgres_dsn, clock))
        fleet = [first]
        for _ in range(1, PROCESSES):
            database = open_database(postgres_dsn)
            stack.push_async_callback(database.close)
            fleet.append(Books(database, clock))
        for number in range(20):
            opening = (books.open_epoch(holder=f"new-{number}") for books in fleet * 2)
            assert sorted(await asyncio.gather(*opening)) == [1, 2, 3, 4, 5, 6]
