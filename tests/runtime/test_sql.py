"""The SQL port: transactions, migrations, types, and what is said when the database is away; the
same on every database.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    String,
    Table,
    exc,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.schema import CreateTable

from onegate.common.v1 import error_pb2
from runtime import sql, sql_lane
from runtime.errors import GatewayError
from runtime.sql import Database, Migration, SchemaError, open_database

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)
METADATA = MetaData()
ROWS = Table(
    "rows",
    METADATA,
    Column("number", sql.RowNumber, primary_key=True),
    Column("name", String(40), unique=True),
    Column("cost_nano_usd", sql.NanoUsd),
    Column("at_us", sql.Timestamp),
)
FIRST = Migration(version=1, statements=(CreateTable(ROWS),))
SECOND = Migration(version=2, statements=("ALTER TABLE rows ADD COLUMN note VARCHAR(10)",))


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    opened = open_database(dsn)
    await opened.migrate("test", [FIRST], now=NOW)
    yield opened
    await opened.close()


def _count(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(ROWS)).scalar_one()


def _add(connection: Connection, name: str, cost: int = 0) -> None:
    connection.execute(insert(ROWS).values(name=name, cost_nano_usd=cost, at_us=NOW))


async def test_a_transaction_that_returns_is_committed(database: Database) -> None:
    await database.write(lambda c: _add(c, "a"))
    assert await database.read(_count) == 1


async def test_a_transaction_that_raises_leaves_nothing(database: Database) -> None:
    def work(connection: Connection) -> None:
        _add(connection, "a")
        raise LookupError

    with pytest.raises(LookupError):
        await database.write(work)
    assert await database.read(_count) == 0


async def test_a_reader_cannot_write(database: Database) -> None:
    with pytest.raises(GatewayError) as caught:
        await database.read(lambda c: _add(c, "a"))
    assert caught.value.reason == error_pb2.ERROR_REASON_STORE_UNAVAILABLE
    assert await database.read(_count) == 0


async def test_a_reader_sees_one_snapshot_while_a_writer_commits(database: Database) -> None:
    started, written = threading.Event(), threading.Event()

    def read(connection: Connection) -> tuple[int, int]:
        before = _count(connection)
        started.set()
        assert written.wait(5)
        return before, _count(connection)

    reading = asyncio.ensure_future(database.read(read))
    assert await asyncio.to_thread(started.wait, 5)
    await database.write(lambda c: _add(c, "a"))
    written.set()
    assert await reading == (0, 0)


async def test_parallel_read_modify_writes_lose_nothing(database: Database) -> None:
    await database.write(lambda c: _add(c, "a"))

    def add_one(connection: Connection) -> None:
        cost = connection.execute(select(ROWS.c.cost_nano_usd).with_for_update()).scalar_one()
        connection.execute(ROWS.update().values(cost_nano_usd=cost + 1))

    await asyncio.gather(*(database.write(add_one) for _ in range(50)))
    assert await database.read(lambda c: c.execute(select(ROWS.c.cost_nano_usd)).scalar_one()) == 50


async def test_a_defect_in_a_statement_is_not_called_unavailable(database: Database) -> None:
    with pytest.raises((exc.OperationalError, exc.ProgrammingError)):
        await database.read(lambda c: c.execute(text("SELECT * FROM nowhere")).all())


async def test_a_broken_constraint_reaches_the_store(database: Database) -> None:
    await database.write(lambda c: _add(c, "a"))
    with pytest.raises(exc.IntegrityError):
        await database.write(lambda c: _add(c, "a"))


async def test_a_full_queue_refuses_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_lane, "PENDING_MAX", 2)
    leave = threading.Event()
    held = [asyncio.ensure_future(database.write(lambda c: leave.wait(5))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(GatewayError) as caught:
        await database.write(_count)
    leave.set()
    await asyncio.gather(*held)
    assert caught.value.reason == error_pb2.ERROR_REASON_STORE_UNAVAILABLE
    assert await database.write(_count) == 0


async def test_a_caller_waits_no_longer_than_its_deadline(dsn: str) -> None:
    database = open_database(dsn, timeout_s=0.1)
    leave = threading.Event()
    with pytest.raises(GatewayError) as caught:
        await database.write(lambda c: leave.wait(5))
    leave.set()
    await database.close()
    assert caught.value.reason == error_pb2.ERROR_REASON_STORE_UNAVAILABLE


async def test_a_closed_database_is_unavailable(dsn: str) -> None:
    database = open_database(dsn)
    await database.close()
    with pytest.raises(GatewayError) as caught:
        await database.read(_count)
    assert caught.value.reason == error_pb2.ERROR_REASON_STORE_UNAVAILABLE


async def test_closing_gives_up_on_work_that_never_ends(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = open_database(dsn, timeout_s=0.1)
    leave = threading.Event()
    with pytest.raises(GatewayError):
        await database.read(lambda c: leave.wait(5))
    await database.close()
    leave.set()
    assert "still busy" in caplog.text


async def test_migrations_run_once_and_in_order(database: Database) -> None:
    assert await database.migrate("test", [FIRST, SECOND], now=NOW) == 2
    assert await database.migrate("test", [FIRST, SECOND], now=NOW) == 2
    steps = await database.read(
        lambda c: c.execute(
            text("SELECT service, version, applied_at_us FROM schema_version")
        ).all()
    )
    at = sql.unix_micros(NOW)
    assert [tuple(step) for step in steps] == [("test", 1, at), ("test", 2, at)]


async def test_services_in_one_file_count_for_themselves(database: Database) -> None:
    other = Migration(version=1, statements=("CREATE TABLE other (id BIGINT)",))
    assert await database.migrate("other", [other], now=NOW) == 1


async def test_a_failed_migration_leaves_the_schema_as_it_was(database: Database) -> None:
    broken = Migration(version=2, statements=("CREATE TABLE half (id BIGINT)", "NONSENSE"))
    with pytest.raises((exc.OperationalError, exc.ProgrammingError)):
        await database.migrate("test", [FIRST, broken], now=NOW)
    assert await database.migrate("test", [FIRST], now=NOW) == 1
    with pytest.raises((exc.OperationalError, exc.ProgrammingError)):
        await database.read(lambda c: c.execute(text("SELECT * FROM half")).all())


async def test_a_database_ahead_of_the_program_is_refused(database: Database) -> None:
    await database.migrate("test", [FIRST, SECOND], now=NOW)
    with pytest.raises(SchemaError, match="version 2; this program knows 1"):
        await database.migrate("test", [FIRST], now=NOW)


async def test_migrations_with_a_gap_are_a_defect(database: Database) -> None:
    with pytest.raises(ValueError, match="without a gap"):
        await database.migrate("test", [SECOND], now=NOW)


@pytest.mark.parametrize(
    "moment",
    [
        NOW,
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))),
    ],
)
async def test_moments_come_back_exact(database: Database, moment: datetime) -> None:
    await database.write(lambda c: c.execute(insert(ROWS).values(at_us=moment)))
    stored = await database.read(lambda c: c.execute(select(ROWS.c.at_us)).scalar_one())
    assert stored == moment
    assert stored.tzinfo is UTC


async def test_money_comes_back_exact_at_the_edge_of_64_bits(database: Database) -> None:
    amount = 2**63 - 1
    await database.write(lambda c: c.execute(insert(ROWS).values(cost_nano_usd=amount)))
    stored = await database.read(lambda c: c.execute(select(ROWS.c.cost_nano_usd)).scalar_one())
    assert stored == amount


@pytest.mark.parametrize("amount", [0.1, "1", True, 2**63])
async def test_money_that_is_no_whole_number_is_refused(database: Database, amount: object) -> None:
    with pytest.raises((exc.StatementError, TypeError, ValueError), match="nano-USD"):
        await database.write(lambda c: c.execute(insert(ROWS).values(cost_nano_usd=amount)))


async def test_unset_moments_and_amounts_stay_unset(database: Database) -> None:
    unset = {"name": "a", "cost_nano_usd": None, "at_us": None}
    await database.write(lambda c: c.execute(insert(ROWS).values(unset)))
    row = await database.read(lambda c: c.execute(select(ROWS)).one())
    assert tuple(row) == (1, "a", None, None)


def test_a_naive_moment_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        sql.unix_micros(datetime(2026, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize(
    ("dsn", "complaint"),
    [
        ("sqlite:relative.db", "absolute path"),
        ("sqlite://relative.db", "absolute path"),
        ("sqlite://", "absolute path"),
        ("sqlite:///", "absolute path"),
        ("mysql://localhost/x", "absolute path"),
        ("", "absolute path"),
        ("postgresql://gateway:canary%pass@localhost/onegate", "are written as %3A"),
        ("postgresql://localhost/onegate?canary=1", "are written as %3A"),
    ],
)
def test_a_dsn_that_is_not_known_is_refused(dsn: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        open_database(dsn)
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
