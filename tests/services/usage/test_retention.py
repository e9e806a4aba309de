"""What is removed is counted for ever, comes to nobody twice, and is needed by nothing."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import String, Text, insert, select, text

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import hold_pb2
from onegate.usage.v1 import invoice_pb2 as pb
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.clock import SystemEntropy, uuid7
from runtime.errors import GatewayError
from runtime.sql import Database, open_database, unix_micros
from services.usage.invoices.invoice_schema import INVOICES
from services.usage.invoices.invoice_store import InvoiceStore
from services.usage.ledger.ledger_schema import ENTRIES, HOLDS
from services.usage.ledger.transactions import Kind
from services.usage.reports.report_store import START, Question, ReportStore
from services.usage.reports.rollup_store import Rollups
from services.usage.reports.spans import DAY_US, HOUR_US
from services.usage.retention import partition_store
from services.usage.retention.months import REST, Month, first_id, missing, over, part_of
from services.usage.retention.retention_keeper import RetentionKeeper
from services.usage.retention.retention_store import Retention, kept_from
from services.usage.store import MIGRATIONS, RECORDS, SqlStore, Verdict
from tests.services.usage.books import KEY, MONTH, Books, books_on
from tests.services.usage.records import NOON, SteppedClock, record

NOON_US = unix_micros(NOON)
DAYS = 62
KEPT_US = (NOON_US - DAYS * DAY_US) // DAY_US * DAY_US


def test_the_months_of_a_year_follow_each_other() -> None:
    first = Month(year=2026, month=11)
    assert [first.later(n).part for n in (-11, 0, 1, 2)] == [
        "usage_records_m202512",
        "usage_records_m202611",
        "usage_records_m202612",
        "usage_records_m202701",
    ]
    assert Month.of(first.start_us) == first
    assert Month.of(first.start_us - 1) == first.later(-1)


def test_an_id_lies_in_the_month_in_which_it_was_made() -> None:
    for month in (Month(year=2026, month=2), Month(year=2026, month=12)):
        start_us, end_us = month.start_us, month.later(1).start_us
        for at_us, inside in (
            (start_us - 1000, False),
            (start_us, True),
            (end_us - 1000, True),
            (end_us, False),
        ):
            made = uuid7(at_us // 1000, SystemEntropy())
            assert (first_id(start_us) <= made < first_id(end_us)) is inside


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("usage_records_m202612", Month(year=2027, month=1)),
        ("usage_records_until_202612", Month(year=2026, month=12)),
        ("usage_records_m202613", None),
        ("usage_records_rest", None),
        ("usage_recordsXm202612", None),
    ],
)
def test_the_name_of_a_part_says_where_it_ends(name: str, before: Month | None) -> None:
    part = part_of(name)
    assert (part.before if part else None) == before


def test_parts_are_made_for_months_that_have_none() -> None:
    names = {"usage_records_until_202612", "usage_records_m202701", REST}
    assert missing(names, NOON_US, 3) == [
        Month(year=2026, month=12),
        Month(year=2027, month=2),
    ]
    assert missing({REST}, NOON_US, 0) == [Month(year=2026, month=11)]


def test_a_part_is_over_when_its_last_moment_is() -> None:
    names = {"usage_records_until_202609", "usage_records_m202609", "usage_records_m202610", REST}
    ends = Month(year=2026, month=10).start_us
    assert [p.name for p in over(names, ends)] == [
        "usage_records_until_202609",
        "usage_records_m202609",
    ]
    assert [p.name for p in over(names, ends - 1)] == ["usage_records_until_202609"]


def aged(number: int, days: float, **changes: object) -> UsageRecord:
    """A record of a call that began so many days ago, with an id as the router makes it."""
    at_us = NOON_US - int(days * DAY_US)
    made = record(number, attempt_id=uuid7(at_us // 1000, SystemEntropy()), **changes)
    made.started_at.FromMicroseconds(at_us)
    return made


@pytest.fixture
async def books(dsn: str) -> AsyncIterator[Books]:
    async with books_on(dsn) as made:
        await InvoiceStore(made.database, made.now_us).migrate(now=NOON)
        yield made


async def keep(books: Books, *records: UsageRecord) -> list[Verdict]:
    return await books.store.record(records, now_us=NOON_US)


async def forget(books: Books, days: int = DAYS) -> None:
    """Sums everything up and removes what is due."""
    await Rollups(books.database).finish(NOON_US)
    retention = Retention(books.database, days)
    await retention.prepare(NOON_US)
    while await retention.advance(NOON_US):
        pass


async def finish(database: Database) -> None:
    """Removes what is due, as one process of several."""
    retention = Retention(database, DAYS)
    while await retention.advance(NOON_US):
        pass


async def there(database: Database) -> set[str]:
    found = await database.read(lambda c: c.execute(select(RECORDS.c.attempt_id)).scalars().all())
    return set(found)


@pytest.mark.anyio
async def test_without_a_setting_records_are_kept_for_ever(books: Books) -> None:
    await keep(books, aged(1, 4000))
    await forget(books, 0)
    assert len(await there(books.database)) == 1


@pytest.mark.anyio
async def test_old_records_go_and_their_sums_stay(books: Books) -> None:
    old, young = [aged(n, 70 + n) for n in range(6)], [aged(n, n) for n in range(6)]
    await keep(books, *old, *young)
    reports = ReportStore(books.database)
    questions = [
        Question(),
        Question(groups=("key_id", START)),
        Question(from_us=KEPT_US - 10 * DAY_US + HOUR_US, groups=("customer",)),
    ]
    before = [await reports.totals(one, rows_max=100) for one in questions]
    await forget(books)
    assert await there(books.database) == {one.attempt_id for one in young}
    assert [await reports.totals(one, rows_max=100) for one in questions] == before


@pytest.mark.anyio
async def test_a_report_that_needs_what_was_removed_says_so(books: Books) -> None:
    await keep(books, aged(1, 70), aged(2, 1))
    await forget(books)
    reports = ReportStore(books.database)
    for question in (
        Question(from_us=KEPT_US - HOUR_US + 1),
        Question(from_us=KEPT_US - HOUR_US, groups=("run",)),
        Question(from_us=KEPT_US - HOUR_US, groups=(START,), unit_us=60_000_000),
    ):
        with pytest.raises(GatewayError, match="2026-09-20") as caught:
            await reports.totals(question, rows_max=100)
        assert caught.value.reason == error_pb2.ERROR_REASON_INVALID_REQUEST
    (whole,) = await reports.totals(Question(from_us=KEPT_US, groups=("run",)), rows_max=100)
    assert whole.sums["attempts"] == 1


@pytest.mark.anyio
async def test_what_was_removed_is_not_counted_when_it_comes_again(books: Books) -> None:
    old, young = aged(1, 70), aged(2, 1)
    await keep(books, old, young)
    await forget(books)
    assert await keep(books, old, young, aged(3, 2)) == [
        Verdict.QUARANTINED,
        Verdict.DUPLICATE,
        Verdict.INSERTED,
    ]
    assert await keep(books, aged(4, 62)) == [Verdict.INSERTED]
    (total,) = await ReportStore(books.database).totals(Question(), rows_max=1)
    assert total.sums["attempts"] == 4


@pytest.mark.anyio
async def test_balances_can_be_rebuilt_when_their_entries_are_gone(books: Books) -> None:
    await books.budget(10**12, period=MONTH, scope=KEY)
    for number in range(5):
        await keep(books, aged(number, 80 + number, key_id="key_1", cost_nano_usd=100 + number))
    await keep(books, aged(9, 0, key_id="key_1", cost_nano_usd=7))
    before = await books.stands()
    await forget(books)
    assert await books.stands() == before == (510 + 7, 0)
    await books.sound()
    assert await books.check.rebuild() == 0
    query = "SELECT kind, count(*) FROM ledger_transactions GROUP BY kind"
    kinds = await counts_of(books.database, query)
    assert kinds == {int(Kind.CARRIED): 1, int(Kind.POSTING): 1}
    entries = await books.database.read(lambda c: c.execute(select(ENTRIES)).all())
    assert len(entries) == 4


@pytest.mark.anyio
async def test_nothing_is_removed_before_it_is_summed_up(books: Books) -> None:
    await keep(books, aged(1, 70))
    retention = Retention(books.database, DAYS)
    assert not await retention.advance(NOON_US)
    await Rollups(books.database).finish(NOON_US)
    # One that comes late has to be added to its hour before it may go.
    await keep(books, aged(2, 75))
    while await retention.advance(NOON_US):
        pass
    assert len(await there(books.database)) == 2
    await forget(books)
    assert await there(books.database) == set()
    (total,) = await ReportStore(books.database).totals(Question(), rows_max=1)
    assert total.sums["attempts"] == 2


@pytest.mark.anyio
@pytest.mark.parametrize("state", [hold_pb2.HOLD_STATE_PENDING, hold_pb2.HOLD_STATE_UNCERTAIN])
async def test_nothing_is_removed_that_an_open_hold_is_about(books: Books, state: int) -> None:
    old, older = aged(1, 70), aged(2, 90)
    await keep(books, older)
    row = {
        "id": old.attempt_id,
        "holder": "",
        "epoch": 1,
        "request_id": "",
        "slice": False,
        "returned": False,
        "recalled": False,
        "state": int(state),
        "amount_nano_usd": 5,
        "accounts": "[]",
        "lease_expires_at_us": NOON_US,
        "created_at_us": old.started_at.ToMicroseconds(),
    }
    await books.database.write(lambda c: c.execute(insert(HOLDS).values(row)))
    await forget(books)
    assert await there(books.database) == set()
    assert await keep(books, old) == [Verdict.INSERTED]


def issued(number: int, from_day: int, before_day: int, of: str = "") -> dict[str, object]:
    return {
        "issuer": "us",
        "kind": int(pb.INVOICE_KIND_CREDIT_NOTE if of else pb.INVOICE_KIND_INVOICE),
        "sequence": number,
        "number": f"I-{number}",
        "organization_id": "org_1",
        "project_id": "",
        "customer": "",
        "from_us": NOON_US - from_day * DAY_US,
        "before_us": NOON_US - before_day * DAY_US,
        "currency": "USD",
        "total_minor": 1,
        "usage_nano_usd": 1,
        "credits_number": of,
        "whole": bool(of),
        "issued_at_us": NOON_US - before_day * DAY_US,
        "request_id": str(number),
        "request_digest": b"",
        "sha256": "",
        "document": b"",
    }


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("invoices", "gone"),
    [
        ([issued(1, 130, 100)], {110}),
        ([issued(1, 130, 100), issued(2, 100, 66)], {110, 90, 70}),
        ([issued(1, 100, 80), issued(2, 80, 10), issued(3, 100, 80, "I-1")], {110}),
        ([issued(1, 100, 80), issued(3, 100, 80, "I-1"), issued(4, 101, 10)], {110, 90, 70}),
        ([issued(1, 900, 800)], {110, 90, 70}),
    ],
)
async def test_nothing_is_removed_that_is_still_to_be_billed(
    books: Books, invoices: list[dict[str, object]], gone: set[int]
) -> None:
    given = {days: aged(days, days) for days in (110, 90, 70, 50)}
    await keep(books, *given.values())
    await books.database.write(lambda c: [c.execute(insert(INVOICES).values(i)) for i in invoices])
    await forget(books)
    left = {days for days, one in given.items() if one.attempt_id in await there(books.database)}
    assert set(given) - left == gone


async def parts_of(database: Database) -> set[str]:
    return await database.read(partition_store.parts)


async def counts_of(database: Database, query: str) -> dict[object, int]:
    """The rows of a query of two columns."""
    rows = await database.read(lambda c: c.execute(text(query)).all())
    return {row[0]: int(row[1]) for row in rows}


async def count_of(database: Database, table: str) -> int:
    query = text(f"SELECT count(*) FROM {table}")
    return await database.read(lambda c: int(c.execute(query).scalar_one()))


@pytest.mark.anyio
async def test_months_have_parts_ahead_and_lose_them_whole(postgres_dsn: str) -> None:
    async with books_on(postgres_dsn) as books:
        await InvoiceStore(books.database, books.now_us).migrate(now=NOON)
        retention = Retention(books.database, DAYS)
        past = Month.of(NOON_US).later(-4)
        for count in range(5):
            await retention.prepare(past.later(count).start_us)
        # The clock of these tests may lie before the server's, in the part of everything before.
        days = (100, 75, 45, 15, 0)
        given = [aged(n, n) for n in days]
        await keep(books, *given)
        await forget(books)
        left = {one.attempt_id for one in given[2:]}
        assert await there(books.database) == left
        assert not {
            name
            for name in await parts_of(books.database)
            if (part := part_of(name)) and part.before.start_us <= KEPT_US
        }


@pytest.mark.anyio
async def test_what_lies_in_the_rest_moves_to_its_month(postgres_dsn: str) -> None:
    async with books_on(postgres_dsn) as books:
        later_us = NOON_US + 800 * DAY_US
        ahead = [aged(n, -800 - n) for n in range(3)]
        await keep(books, *ahead)
        assert await count_of(books.database, REST) == 3
        await Retention(books.database, 0).prepare(later_us)
        found = await count_of(books.database, Month.of(later_us).part)
        left = await count_of(books.database, REST)
        assert found + left == 3
        assert found > 0
        # Known wherever it lies: a record that comes again counts once.
        assert await keep(books, *ahead) == [Verdict.DUPLICATE] * 3
        assert len(await there(books.database)) == 3


@pytest.mark.anyio
async def test_a_table_from_before_the_parts_becomes_the_first(postgres_dsn: str) -> None:
    opened = open_database(postgres_dsn)
    try:
        await opened.migrate("usage", MIGRATIONS[:4], now=NOON)
        rows = [
            {
                column.name: "" if isinstance(column.type, String | Text) else 0
                for column in RECORDS.c
            }
            | {"attempt_id": name, "stream": False, "record": b"", "started_at_us": NOON_US}
            for name in (first_id(NOON_US - 90 * DAY_US), "f" * 36)
        ]
        await opened.write(lambda c: c.execute(insert(RECORDS), rows))
        await SqlStore(opened).migrate(now=NOON)
        names = await parts_of(opened)
        (past,) = names - {REST}
        assert part_of(past) is not None
        counts = [await count_of(opened, name) for name in ("usage_records", past, REST)]
        assert counts == [2, 1, 1]
        indexes = (
            "SELECT tablename, count(*) FROM pg_indexes WHERE tablename LIKE 'usage_records%'"
            " GROUP BY tablename"
        )
        found = await counts_of(opened, indexes)
        assert len(set(found.values())) == 1
        await Retention(opened, 0).prepare(NOON_US + 60 * DAY_US)
        more = await counts_of(opened, indexes)
        assert set(more.values()) == set(found.values())
    finally:
        await opened.close()


@pytest.mark.anyio
async def test_records_that_come_while_old_ones_go_are_kept_once(postgres_dsn: str) -> None:
    clock = SteppedClock()
    async with books_on(postgres_dsn, clock) as books, books_on(postgres_dsn, clock) as other:
        await InvoiceStore(books.database, books.now_us).migrate(now=NOON)
        given = [aged(n, n) for n in range(0, 120, 3)]
        await keep(books, *given)
        await Rollups(books.database).finish(NOON_US)
        removing = asyncio.gather(*(finish(one.database) for one in (books, other)))
        fresh = [aged(n, 0.001 * n) for n in range(1, 40)]
        for one, again in zip(fresh, given, strict=False):
            await keep(other, one, again)
        await removing
        await forget(books)
        kept_us = await books.database.read(kept_from)
        assert kept_us == KEPT_US
        young = [one for one in (*given, *fresh) if one.started_at.ToMicroseconds() >= kept_us]
        assert await there(books.database) == {one.attempt_id for one in young}
        (total,) = await ReportStore(books.database).totals(Question(), rows_max=1)
        assert total.sums["attempts"] == len(given) + len(fresh)


@pytest.mark.anyio
async def test_the_keeper_removes_what_is_due_by_itself(books: Books) -> None:
    await keep(books, aged(1, 70))
    await Rollups(books.database).finish(NOON_US)
    clock = SteppedClock()
    running = asyncio.create_task(RetentionKeeper(Retention(books.database, DAYS), clock).run())
    try:
        async with asyncio.timeout(10):
            while await there(books.database):
                await clock.sleep(0.01)
    finally:
        running.cancel()
