"""Whatever happens in whatever order, a report says what the records and adjustments sum up to."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Connection, insert, select

from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.sql import Database, open_database, unix_micros
from services.usage.reports import rollup_store
from services.usage.reports.report_store import START, TAG, Question, ReportStore
from services.usage.reports.rollup_schema import ADJUSTMENTS, CUBES, LATE
from services.usage.reports.rollup_store import GRACE_US, Rollups
from services.usage.reports.spans import DAY_US, HOUR_US, Marks, Source, Span, spans
from services.usage.store import RECORDS, SqlStore
from tests.services.usage.records import NOON, record

NOON_US = unix_micros(NOON)
MINUTE_US = 60_000_000


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    opened = open_database(dsn)
    await SqlStore(opened).migrate(now=NOON)
    yield opened
    await opened.close()


def varied(chosen: random.Random, number: int, around_us: int) -> UsageRecord:
    """A record of the two days before a moment."""
    one = record(
        number,
        organization_id=chosen.choice(["org_1", "org_2"]),
        model=chosen.choice(["openai/a", "openai/b"]),
        cost_nano_usd=chosen.randrange(10**12),
        outcome=chosen.choice([1, 1, 2]),
    )
    one.started_at.FromMicroseconds(around_us - chosen.randrange(2 * DAY_US))
    one.tags["team"] = chosen.choice(["", "search"])
    one.attribution.run = chosen.choice(["", "r"])
    one.tokens.web_searches = chosen.choice([0, 2])
    return one


QUESTIONS = {
    "all": Question(),
    "key": Question(groups=("key_id", "model"), where={"organization_id": ["org_1"]}),
    "team": Question(groups=("team",)),
    "run": Question(groups=("run",)),
    "tag": Question(groups=(TAG,), tag="team"),
    "days": Question(groups=(START,)),
    "hours": Question(groups=(START, "model"), unit_us=HOUR_US),
    "minutes": Question(groups=(START,), unit_us=MINUTE_US),
    "span": Question(
        groups=("project_id",),
        from_us=NOON_US - 40 * HOUR_US + 7,
        before_us=NOON_US + 33 * HOUR_US + 7,
    ),
}


def expected(
    question: Question, given: dict[str, UsageRecord], more: Counter[str]
) -> dict[tuple[object, ...], tuple[int, int, int, int]]:
    """The attempts, failures, searches and cost of each group, from the records."""
    found: dict[tuple[object, ...], tuple[int, int, int, int]] = {}
    for one in given.values():
        at = one.started_at.ToMicroseconds()
        of = {
            START: at // question.unit_us,
            TAG: one.tags["team"],
            "key_id": one.key_id,
            "model": one.model,
            "team": one.tags["team"],
            "run": one.attribution.run,
            "project_id": one.project_id,
        }
        wanted = question.where.get("organization_id", [one.organization_id])
        if one.organization_id in wanted and question.from_us <= at < question.before_us:
            group = tuple(of[name] for name in question.groups)
            count, failures, searches, cost = found.get(group, (0, 0, 0, 0))
            cost += one.cost_nano_usd + more[one.attempt_id]
            searches += one.tokens.web_searches
            found[group] = (count + 1, failures + (one.outcome != 1), searches, cost)
    return found


async def check(
    database: Database, given: dict[str, UsageRecord], more: Counter[str], names: list[str]
) -> None:
    for name in names:
        found = await ReportStore(database).totals(QUESTIONS[name], rows_max=10_000)
        kept = ("attempts", "failures", "web_searches", "cost_nano_usd")
        sums = {one.group: tuple(one.sums[field] for field in kept) for one in found}
        wanted = expected(QUESTIONS[name], given, more)
        # A question without groups has an answer even where there is nothing.
        assert sums == (wanted or {one.group: (0, 0, 0, 0) for one in found}), name


async def adjust(database: Database, number: int, one: UsageRecord, amount: int) -> None:
    """As a change of prices does."""
    at = one.started_at.ToMicroseconds()
    row = {
        "id": f"test/{number}",
        "attempt_id": one.attempt_id,
        "started_at_us": at,
        "amount_nano_usd": amount,
        "price_version": "v",
        "recorded_at_us": NOON_US,
    }

    def write(connection: Connection) -> None:
        hours_us = rollup_store.lock(connection)
        connection.execute(insert(ADJUSTMENTS).values(row))
        rollup_store.add(connection, hours_us, [f"test/{number}"], adjusting=True)

    await database.write(write)


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(3))
async def test_reports_are_the_sums_of_the_records_after_any_history(
    database: Database, seed: int
) -> None:
    chosen = random.Random(seed)
    store, job = SqlStore(database), Rollups(database)
    given: dict[str, UsageRecord] = {}
    more: Counter[str] = Counter()
    now_us = NOON_US
    for step in range(25):
        match chosen.choice(["post", "post", "advance", "advance", "later", "adjust"]):
            case "post":
                batch = [
                    varied(chosen, 100 * step + n, now_us) for n in range(chosen.randrange(20))
                ]
                again = chosen.sample(sorted(given), min(len(given), 2))
                sent = [*batch, *(given[name] for name in again)]
                await store.record(sent, now_us=now_us)
                given.update((one.attempt_id, one) for one in batch)
            case "advance":
                for _ in range(chosen.randrange(1, 30)):
                    await job.advance(now_us)
            case "later":
                now_us += chosen.randrange(20 * HOUR_US)
            case "adjust" if given:
                one = given[chosen.choice(sorted(given))]
                amount = chosen.randrange(-one.cost_nano_usd - 1, 10**9)
                await adjust(database, step, one, amount)
                more[one.attempt_id] += amount
        await check(database, given, more, chosen.sample(sorted(QUESTIONS), 3))
    await job.finish(now_us + 3 * DAY_US)
    await check(database, given, more, sorted(QUESTIONS))
    sums = await database.read(
        lambda c: c.execute(select(CUBES[0].days.c.attempts)).scalars().all()
    )
    assert sum(sums) == len(given)
    assert await database.read(lambda c: c.execute(select(LATE)).all()) == []


@pytest.mark.anyio
async def test_processes_that_post_and_sum_up_at_once_lose_and_double_nothing(
    postgres_dsn: str,
) -> None:
    opened = [open_database(postgres_dsn) for _ in range(3)]
    try:
        await SqlStore(opened[0]).migrate(now=NOON)
        chosen = random.Random(3)
        given = [varied(chosen, number, NOON_US) for number in range(600)]

        async def post(database: Database, part: list[UsageRecord]) -> None:
            for first in range(0, len(part), 10):
                await SqlStore(database).record(part[first : first + 10], now_us=NOON_US)

        async def sum_up(database: Database) -> None:
            # The clock moves on while records of all hours still come.
            for hours in range(-48, 3):
                await Rollups(database).finish(NOON_US + hours * HOUR_US)

        await asyncio.gather(
            *(post(one, given[place::3]) for place, one in enumerate(opened)),
            *(sum_up(one) for one in opened[:2]),
        )
        kept = {one.attempt_id: one for one in given}
        await check(opened[0], kept, Counter(), sorted(QUESTIONS))
        await Rollups(opened[1]).finish(NOON_US + 2 * DAY_US)
        await check(opened[2], kept, Counter(), sorted(QUESTIONS))
    finally:
        for one in opened:
            await one.close()


@pytest.mark.anyio
async def test_what_was_summed_up_is_not_read_again(database: Database) -> None:
    store, job = SqlStore(database), Rollups(database)
    await store.record([record(number) for number in range(5)], now_us=NOON_US)
    await job.finish(NOON_US + 2 * DAY_US)
    (before,) = await ReportStore(database).totals(QUESTIONS["all"], rows_max=10)
    await database.write(lambda c: c.execute(RECORDS.delete()))
    (after,) = await ReportStore(database).totals(QUESTIONS["all"], rows_max=10)
    assert before == after
    assert before.sums["attempts"] == 5


@pytest.mark.anyio
async def test_an_hour_is_summed_up_once_it_is_over_and_what_it_began_had_time_to_end(
    database: Database,
) -> None:
    store, job = SqlStore(database), Rollups(database)
    await store.record([record(1)], now_us=NOON_US)
    end_us = NOON_US + HOUR_US
    await job.finish(end_us + GRACE_US - 1)
    hours = select(CUBES[0].hours.c.start_us)
    assert await database.read(lambda c: c.execute(hours).all()) == []
    await job.finish(end_us + GRACE_US)
    assert await database.read(lambda c: c.execute(hours).scalars().all()) == [NOON_US]


@pytest.mark.parametrize("unit_us", [MINUTE_US, HOUR_US, DAY_US])
def test_spans_cover_the_time_without_a_gap(unit_us: int) -> None:
    chosen = random.Random(1)
    for _ in range(2000):
        hours_us = chosen.randrange(100) * HOUR_US
        marks = Marks(hours_us=hours_us, days_us=hours_us // DAY_US * DAY_US)
        ends = sorted(chosen.choices([n * HOUR_US // 2 for n in range(200)], k=2))
        found = spans(ends[0], ends[1], marks, unit_us=unit_us)
        assert [one.from_us for one in found] == [ends[0], *(one.before_us for one in found)][
            : len(found)
        ]
        assert (found[-1].before_us if found else ends[0]) == ends[1]
        for one in found:
            match one.source:
                case Source.HOURS:
                    assert unit_us >= HOUR_US
                    assert one.before_us <= marks.hours_us
                    assert one.from_us % HOUR_US == one.before_us % HOUR_US == 0
                case Source.DAYS:
                    assert unit_us >= DAY_US
                    assert one.before_us <= marks.days_us
                    assert one.from_us % DAY_US == one.before_us % DAY_US == 0
                case Source.RECORDS:
                    pass


def test_a_long_time_is_read_from_days() -> None:
    marks = Marks(hours_us=100 * DAY_US + 5 * HOUR_US, days_us=100 * DAY_US)
    found = spans(70 * DAY_US + 1, 101 * DAY_US, marks, unit_us=DAY_US)
    assert Span(source=Source.DAYS, from_us=71 * DAY_US, before_us=100 * DAY_US) in found
    assert (
        sum(one.before_us - one.from_us for one in found if one.source is Source.RECORDS) < DAY_US
    )
