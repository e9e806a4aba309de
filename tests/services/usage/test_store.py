"""The store's promises, on real databases of each kind."""

import random
from collections.abc import AsyncIterator
from functools import partial
from itertools import groupby

import pytest
from sqlalchemy import Connection, select

from onegate.usage.v1 import usage_record_pb2, usage_service_pb2
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from onegate.usage.v1.usage_service_pb2 import UsageDimension
from runtime.sql import Database, open_database
from services.usage.reports.queries import Cursor, Selection
from services.usage.store import (
    COST_NANO_USD_MAX,
    COUNT_MAX,
    QUARANTINE,
    RECORDS,
    SqlStore,
    Verdict,
)
from tests.services.usage.records import NOON, attempt_id, record, summed

pytestmark = pytest.mark.anyio

INSERTED, DUPLICATE, QUARANTINED = Verdict.INSERTED, Verdict.DUPLICATE, Verdict.QUARANTINED
NOW_US = 1_795_262_400_000_000


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    opened = open_database(dsn)
    yield opened
    await opened.close()


@pytest.fixture
async def store(database: Database) -> SqlStore:
    made = SqlStore(database)
    await made.migrate(now=NOON)
    return made


async def everything(store: SqlStore) -> list[UsageRecord]:
    return await store.list_records(Selection(), after=None, count_max=10_000)


async def test_a_record_comes_back_as_it_was(store: SqlStore) -> None:
    given = record(1)
    assert await store.record([given], now_us=NOW_US) == [INSERTED]
    assert await everything(store) == [given]


async def test_the_columns_say_what_the_record_says(store: SqlStore, database: Database) -> None:
    await store.record([record(1)], now_us=NOW_US)
    row = await database.read(lambda c: dict(c.execute(select(RECORDS)).mappings().one()))
    del row["record"]
    assert row == {
        "attempt_id": attempt_id(1),
        "request_id": "req-0",
        "attempt_number": 1,
        "organization_id": "org_1",
        "project_id": "proj_1",
        "key_id": "key_1",
        "model": "openai/gpt-4o",
        "model_requested": "gpt-4o",
        "provider": "openai",
        "endpoint": "chat.completions",
        "stream": True,
        "duration_us": 1_500_000,
        "first_token_us": 250_000,
        "outcome": usage_record_pb2.OUTCOME_COMPLETED,
        "error_reason": 0,
        "upstream_status": 200,
        "cost_nano_usd": 1001,
        "price_version": "source:openai/gpt-4o:1",
        "certainty": usage_record_pb2.CERTAINTY_REPORTED,
        "end_user": "",
        "customer": "acme",
        "feature": "chat",
        "run": "",
        "upstream_request_id": "",
        "credential": "",
        "input_tokens": 100,
        "cached_input_tokens": 40,
        "cache_write_tokens": 0,
        "cache_write_1h_tokens": 0,
        "input_audio_tokens": 0,
        "input_image_tokens": 0,
        "output_tokens": 10,
        "reasoning_tokens": 4,
        "output_audio_tokens": 0,
        "output_image_tokens": 0,
        "web_searches": 0,
        "cached_input_audio_tokens": 0,
        "service_tier": "",
        "team": "search",
        "tags": '{"environment": "prod", "team": "search"}',
        "started_at_us": 1_795_262_401_000_000,
        "recorded_at_us": NOW_US,
    }


async def test_a_repeated_record_changes_nothing_however_often_it_comes(store: SqlStore) -> None:
    batch = [record(number) for number in range(5)]
    assert await store.record(batch, now_us=NOW_US) == [INSERTED] * 5
    for _ in range(3):
        assert await store.record(batch, now_us=NOW_US + 1) == [DUPLICATE] * 5
    assert await store.record([*batch, record(5)], now_us=NOW_US) == [DUPLICATE] * 5 + [INSERTED]
    assert len(await everything(store)) == 6


async def test_a_record_twice_in_one_batch_counts_once(store: SqlStore) -> None:
    batch = [record(1), record(2), record(1)]
    assert await store.record(batch, now_us=NOW_US) == [INSERTED, INSERTED, DUPLICATE]
    assert len(await everything(store)) == 2


def quarantine(connection: Connection) -> list[tuple[str, str]]:
    query = select(QUARANTINE.c.attempt_id, QUARANTINE.c.why).order_by(QUARANTINE.c.id)
    return [(attempt, why) for attempt, why in connection.execute(query)]


async def test_the_same_id_with_another_content_is_kept_aside_and_the_first_stands(
    store: SqlStore, database: Database
) -> None:
    await store.record([record(1), record(2)], now_us=NOW_US)
    other = record(1, cost_nano_usd=5)
    for _ in range(2):
        verdicts = await store.record([other, record(3)], now_us=NOW_US)
        assert verdicts[0] is QUARANTINED
    third = record(1, cost_nano_usd=6)
    assert await store.record([third], now_us=NOW_US) == [QUARANTINED]
    assert record(1) in await everything(store)
    assert len(await everything(store)) == 3
    why = "another record has this attempt id"
    assert await database.read(quarantine) == [(attempt_id(1), why)] * 2


async def test_two_contents_of_one_id_in_one_batch_are_told_apart(store: SqlStore) -> None:
    batch = [record(1), record(1, cost_nano_usd=5)]
    assert await store.record(batch, now_us=NOW_US) == [INSERTED, QUARANTINED]
    assert await everything(store) == [record(1)]


def absurd(tokens: int) -> UsageRecord:
    made = record(4)
    made.tokens.input_tokens = tokens
    return made


def timeless() -> UsageRecord:
    made = record(4)
    made.ClearField("started_at")
    return made


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (record(4, attempt_id=""), "the attempt id is no UUID"),
        (record(4, attempt_id="x" * 500), "the attempt id is no UUID"),
        (record(4, cost_nano_usd=-1), "its cost is absurd"),
        (record(4, cost_nano_usd=COST_NANO_USD_MAX + 1), "its cost is absurd"),
        (absurd(COUNT_MAX + 1), "its token counts are absurd"),
        (timeless(), "it does not say when it started"),
        (record(4, organization_id="o" * 65), "an id is too long"),
        (record(4, model="openai/\0"), "a text holds a NUL"),
    ],
)
async def test_what_cannot_be_a_row_is_kept_aside_and_does_not_hold_the_rest_up(
    store: SqlStore, database: Database, bad: UsageRecord, why: str
) -> None:
    verdicts = await store.record([record(1), bad, record(2)], now_us=NOW_US)
    assert verdicts == [INSERTED, QUARANTINED, INSERTED]
    assert await database.read(quarantine) == [(bad.attempt_id, why)]


async def test_a_negative_count_is_summed_as_nothing_and_stays_in_the_record(
    store: SqlStore,
) -> None:
    assert await store.record([absurd(-5)], now_us=NOW_US) == [INSERTED]
    (total,) = await summed(store, Selection(), ())
    assert (total.input_tokens, total.output_tokens) == (0, 10)
    assert await everything(store) == [absurd(-5)]


async def test_the_same_tags_in_another_order_are_the_same_record(store: SqlStore) -> None:
    pairs = [(f"tag{number}", "x" * number) for number in range(40)]
    first, again = record(1), record(1)
    for name, value in pairs:
        first.tags[name] = value
    for name, value in reversed(pairs):
        again.tags[name] = value
    await store.record([first], now_us=NOW_US)
    assert await store.record([again], now_us=NOW_US) == [DUPLICATE]


async def test_pages_hold_every_record_once_newest_first(store: SqlStore) -> None:
    # Many start in the same moment: the attempt's id decides.
    given = [record(number) for number in range(100)]
    for one in given[20:60]:
        one.started_at.CopyFrom(given[20].started_at)
    chosen = random.Random(1)
    chosen.shuffle(given)
    await store.record(given, now_us=NOW_US)
    found: list[UsageRecord] = []
    after = None
    while page := await store.list_records(Selection(), after=after, count_max=7):
        found += page
        last = page[-1]
        after = Cursor(started_at_us=last.started_at.ToMicroseconds(), attempt_id=last.attempt_id)
    expected = sorted(given, key=lambda r: (r.started_at.ToMicroseconds(), r.attempt_id))
    assert found == expected[::-1]


async def test_an_attempt_id_that_cannot_be_stored_is_kept_aside(
    store: SqlStore, database: Database
) -> None:
    bad = record(4, attempt_id="\0" * 36)
    assert await store.record([record(1), bad], now_us=NOW_US) == [INSERTED, QUARANTINED]
    assert await database.read(quarantine) == [("\ufffd" * 36, "a text holds a NUL")]


@pytest.mark.parametrize(
    ("selection", "numbers"),
    [
        (Selection(), range(12)),
        (Selection(key_id="key_1"), [1, 4, 7, 10]),
        (Selection(project_id="proj_0"), [0, 2, 4, 6, 8, 10]),
        (Selection(request_id="req-2"), [4, 5]),
        (Selection(model="openai/gpt-4o", key_id="key_0"), [0, 3, 6, 9]),
        (Selection(model="openai/gpt"), []),
        (Selection(organization_id="org_2"), []),
        (Selection(from_us=NOW_US + 3_000_000, before_us=NOW_US + 6_000_000), [3, 4, 5]),
        (Selection(from_us=NOW_US, before_us=NOW_US), []),
    ],
)
async def test_a_selection_means_the_same_for_lists_and_sums(
    store: SqlStore, selection: Selection, numbers: range | list[int]
) -> None:
    await store.record([record(number) for number in range(12)], now_us=NOW_US)
    found = await store.list_records(selection, after=None, count_max=100)
    assert [one.attempt_id for one in found] == [attempt_id(n) for n in reversed(numbers)]
    (total,) = await summed(store, selection, ())
    assert total.attempts == len(numbers)
    assert total.cost_nano_usd == sum(1000 + number for number in numbers)


FIELDS = {
    usage_service_pb2.USAGE_DIMENSION_MODEL: lambda r: r.model,
    usage_service_pb2.USAGE_DIMENSION_KEY: lambda r: r.key_id,
    usage_service_pb2.USAGE_DIMENSION_PROJECT: lambda r: r.project_id,
    usage_service_pb2.USAGE_DIMENSION_PROVIDER: lambda r: r.provider,
    usage_service_pb2.USAGE_DIMENSION_DAY: lambda r: r.started_at.seconds // 86_400,
    usage_service_pb2.USAGE_DIMENSION_FEATURE: lambda r: r.attribution.feature,
    usage_service_pb2.USAGE_DIMENSION_CUSTOMER: lambda r: r.attribution.customer,
}


def varied(chosen: random.Random, number: int) -> UsageRecord:
    made = record(
        number,
        model=chosen.choice(["openai/a", "openai/b", "anthropic/c"]),
        provider=chosen.choice(["openai", "anthropic"]),
        outcome=chosen.choice([1, 1, 1, 2, 3]),
        cost_nano_usd=chosen.randrange(10**14),
    )
    made.started_at.seconds += chosen.randrange(5) * 40_000
    made.attribution.feature = chosen.choice(["", "chat", "search"])
    made.attribution.customer = chosen.choice(["", "acme"])
    made.tokens.input_tokens = chosen.randrange(10**11)
    return made


@pytest.mark.parametrize(
    "dimensions",
    [(), *((one,) for one in FIELDS), tuple(FIELDS), (5, 1)],
    ids=lambda dimensions: ",".join(UsageDimension.Name(d)[16:].lower() for d in dimensions),
)
async def test_sums_are_exact_and_the_dearest_comes_first(
    store: SqlStore, dimensions: tuple[UsageDimension.ValueType, ...]
) -> None:
    chosen = random.Random(7)
    given = [varied(chosen, number) for number in range(300)]
    await store.record(given, now_us=NOW_US)

    def group(one: UsageRecord) -> tuple[object, ...]:
        return tuple(FIELDS[dimension](one) for dimension in dimensions)

    expected = {}
    for key, members in groupby(sorted(given, key=lambda r: str(group(r))), key=group):
        rows = list(members)
        expected[key] = (
            len(rows),
            sum(r.tokens.input_tokens for r in rows),
            sum(r.tokens.cached_input_tokens for r in rows),
            sum(r.tokens.output_tokens for r in rows),
            sum(r.cost_nano_usd for r in rows),
            sum(r.outcome != usage_record_pb2.OUTCOME_COMPLETED for r in rows),
        )
    found = await summed(store, Selection(), dimensions)
    assert {
        s.group: (
            s.attempts,
            s.input_tokens,
            s.cached_input_tokens,
            s.output_tokens,
            s.cost_nano_usd,
            s.failures,
        )
        for s in found
    } == expected
    costs = [s.cost_nano_usd for s in found]
    assert costs == sorted(costs, reverse=True)


async def test_an_empty_table_sums_to_nothing(store: SqlStore) -> None:
    (total,) = await summed(store, Selection(), ())
    assert (total.attempts, total.cost_nano_usd, total.failures) == (0, 0, 0)
    by_model = (usage_service_pb2.USAGE_DIMENSION_MODEL,)
    assert await summed(store, Selection(), by_model) == []


async def test_a_report_of_a_key_or_a_time_does_not_read_the_whole_table(
    store: SqlStore, database: Database, dsn: str
) -> None:
    await store.record([record(1)], now_us=NOW_US)
    is_sqlite = dsn.startswith("sqlite:")

    def plan(where: str, connection: Connection) -> str:
        if not is_sqlite:
            # One row is always read quickest as it lies.
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        explain = "EXPLAIN QUERY PLAN" if is_sqlite else "EXPLAIN"
        rows = connection.exec_driver_sql(
            f"{explain} SELECT SUM(cost_nano_usd) FROM usage_records WHERE {where}"
        )
        return " ".join(str(row) for row in rows).upper()

    for where in (
        "key_id = 'k' AND started_at_us > 5",
        "project_id = 'p' AND started_at_us > 5",
        "model = 'm' AND started_at_us > 5",
        "organization_id = 'o' AND started_at_us > 5",
        "request_id = 'r'",
        "started_at_us > 5",
    ):
        found = await database.read(partial(plan, where))
        assert "USING INDEX" in found or "INDEX SCAN" in found
