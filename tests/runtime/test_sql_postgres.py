"""What is PostgreSQL's own: several writers, processes that start at once, and a server that goes
away, hangs, fills up or takes no writes.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import Connection, select, text, update

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from runtime.settings import AuthSettings
from runtime.sql import (
    Database,
    Migration,
    SchemaError,
    announce,
    insert_new,
    open_configured,
    open_database,
    serialise,
)
from tests.postgres import PASSWORD, PostgresServer
from tests.runtime.conditions import until
from tests.runtime.test_sql import FIRST, NOW, ROWS, _add, _count

pytestmark = pytest.mark.anyio

DEADLINE_S = 30.0


@asynccontextmanager
async def opened(
    dsn: str, timeout_s: float = 10.0, connections_max: int = 8
) -> AsyncIterator[Database]:
    database = open_database(dsn, timeout_s=timeout_s, connections_max=connections_max)
    try:
        yield database
    finally:
        await database.close()


@pytest.fixture
async def database(postgres_dsn: str) -> AsyncIterator[Database]:
    async with opened(postgres_dsn) as made:
        await made.migrate("test", [FIRST], now=NOW)
        yield made


def unavailable(caught: pytest.ExceptionInfo[GatewayError]) -> bool:
    return caught.value.reason == error_pb2.ERROR_REASON_STORE_UNAVAILABLE


async def test_processes_that_start_at_once_migrate_once(postgres_dsn: str) -> None:
    steps = [
        FIRST,
        *(
            Migration(version=n, statements=(f"CREATE TABLE t{n} (id BIGINT)",))
            for n in range(2, 6)
        ),
    ]
    databases = [open_database(postgres_dsn) for _ in range(4)]
    versions = await asyncio.gather(
        *(d.migrate("test", steps, now=NOW) for d in databases for _ in range(2))
    )
    assert set(versions) == {5}
    for one in databases:
        await one.close()


async def test_a_database_in_another_encoding_is_refused(postgres: PostgresServer) -> None:
    postgres.execute(
        "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    async with opened(postgres.dsn("latin")) as database:
        with pytest.raises(SchemaError, match="ENCODING 'UTF8'"):
            await database.migrate("test", [FIRST], now=NOW)
    postgres.drop_database("latin")


async def test_a_deadlock_is_undone_and_run_again(database: Database) -> None:
    for name in ("a", "b"):
        await database.write(lambda c, name=name: _add(c, name))  # type: ignore[misc]
    both = threading.Barrier(2)
    met: list[str] = []

    def cross(first: str, second: str, connection: Connection) -> None:
        connection.execute(update(ROWS).where(ROWS.c.name == first).values(cost_nano_usd=1))
        if first not in met:
            met.append(first)
            both.wait(DEADLINE_S)
        connection.execute(update(ROWS).where(ROWS.c.name == second).values(cost_nano_usd=2))

    await asyncio.gather(
        database.write(lambda c: cross("a", "b", c)), database.write(lambda c: cross("b", "a", c))
    )
    costs = await database.read(lambda c: set(c.execute(select(ROWS.c.cost_nano_usd)).scalars()))
    assert costs in ({1, 2}, {2, 1})
    assert sorted(met) == ["a", "b"]


async def test_a_conflict_that_never_ends_is_unavailable(database: Database) -> None:
    runs: list[int] = []

    def work(connection: Connection) -> None:
        runs.append(1)
        connection.execute(
            text("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$")
        )

    with pytest.raises(GatewayError) as caught:
        await database.write(work)
    assert unavailable(caught)
    assert 1 < len(runs) < 20


async def test_writers_that_serialise_lose_nothing(database: Database, postgres_dsn: str) -> None:
    await database.write(lambda c: _add(c, "a"))

    def add_one(connection: Connection) -> None:
        serialise(connection, "counter")
        cost = connection.execute(select(ROWS.c.cost_nano_usd)).scalar_one()
        connection.execute(update(ROWS).values(cost_nano_usd=cost + 1))

    async with opened(postgres_dsn) as other:
        await asyncio.gather(*(d.write(add_one) for d in (database, other) for _ in range(30)))
    assert await database.read(lambda c: c.execute(select(ROWS.c.cost_nano_usd)).scalar_one()) == 60


async def test_rows_that_are_there_are_not_kept_again(database: Database) -> None:
    rows = [{"name": f"n{n}", "cost_nano_usd": n} for n in range(20)]

    def work(connection: Connection) -> int:
        return insert_new(connection, ROWS, rows)

    kept = await asyncio.gather(*(database.write(work) for _ in range(4)))
    assert sorted(kept) == [0, 0, 0, 20]
    assert await database.read(_count) == 20


async def test_what_is_announced_is_heard_by_other_processes_when_it_is_committed(
    database: Database, postgres_dsn: str
) -> None:
    heard = asyncio.Event()
    async with opened(postgres_dsn) as other:
        following = asyncio.ensure_future(other.follow("news", heard.set))
        await asyncio.wait_for(heard.wait(), DEADLINE_S)
        heard.clear()

        def fail(connection: Connection) -> None:
            announce(connection, "news")
            raise LookupError

        with pytest.raises(LookupError):
            await database.write(fail)
        await database.write(lambda c: announce(c, "other"))
        assert not heard.is_set()
        await database.write(lambda c: announce(c, "news"))
        await asyncio.wait_for(heard.wait(), DEADLINE_S)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_a_follower_whose_connection_broke_looks_for_what_it_missed(
    database: Database, postgres: PostgresServer, postgres_dsn: str
) -> None:
    heard = asyncio.Event()
    following = asyncio.ensure_future(database.follow("news", heard.set))
    await asyncio.wait_for(heard.wait(), DEADLINE_S)
    heard.clear()
    postgres.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
    )
    await asyncio.wait_for(heard.wait(), DEADLINE_S)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_connections_that_were_cut_are_not_noticed_by_callers(
    database: Database, postgres: PostgresServer
) -> None:
    await database.write(lambda c: _add(c, "a"))
    assert await database.read(_count) == 1
    postgres.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'onegate' AND pid <> pg_backend_pid()"
    )
    await database.write(lambda c: _add(c, "b"))
    assert await database.read(_count) == 2


async def test_a_connection_that_breaks_in_the_middle_runs_the_whole_again(
    database: Database, postgres: PostgresServer
) -> None:
    runs: list[int] = []

    def work(connection: Connection) -> None:
        runs.append(1)
        _add(connection, "a")
        if len(runs) == 1:
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            postgres.execute(f"SELECT pg_terminate_backend({pid}, 10000)")
        _add(connection, "b")

    await database.write(work)
    assert (len(runs), await database.read(_count)) == (2, 2)


async def test_a_hanging_server_costs_callers_their_deadline_and_no_thread(
    own_server: PostgresServer,
) -> None:
    async with opened(own_server.dsn("postgres"), timeout_s=1.0) as database:
        await database.migrate("test", [FIRST], now=NOW)
        own_server.signal(signal.SIGSTOP)
        try:
            for _ in range(2):
                waiting = [database.write(lambda c: _add(c, "a")) for _ in range(20)]
                for answer in await asyncio.gather(*waiting, return_exceptions=True):
                    assert isinstance(answer, GatewayError)
                    assert answer.reason == error_pb2.ERROR_REASON_STORE_UNAVAILABLE
        finally:
            own_server.signal(signal.SIGCONT)
        await works_again(database)


async def test_a_connection_that_fell_silent_is_given_up_with_the_caller(
    database: Database, postgres: PostgresServer, postgres_dsn: str
) -> None:
    # One thread writes: were it lost, nobody could write any more.
    async with opened(postgres_dsn, timeout_s=0.5, connections_max=3) as impatient:

        def who(connection: Connection) -> int:
            pid: int = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            return pid

        pid = await impatient.write(who)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(GatewayError) as caught:
                await impatient.write(lambda c: _add(c, "a"))
            assert unavailable(caught)
            await works_again(impatient)
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_a_caller_that_leaves_early_costs_no_connection_unless_it_hangs(
    postgres_dsn: str,
) -> None:
    async with opened(postgres_dsn, timeout_s=1.0, connections_max=3) as database:

        def who(connection: Connection) -> int:
            pid: int = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            return pid

        started = threading.Event()

        def dawdle(seconds: float, connection: Connection) -> None:
            started.set()
            connection.execute(text(f"SELECT pg_sleep({seconds})"))

        async def leave(seconds: float) -> None:
            started.clear()
            calling = asyncio.ensure_future(database.write(lambda c: dawdle(seconds, c)))
            assert await asyncio.to_thread(started.wait, DEADLINE_S)
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)

        pid = await database.write(who)
        await leave(0.1)
        assert await database.write(who) == pid
        os.kill(pid, signal.SIGSTOP)
        try:
            await leave(0.1)
            await works_again(database)
            assert await database.write(who) != pid
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_a_commit_whose_answer_is_lost_is_not_run_again(own_server: PostgresServer) -> None:
    async with opened(own_server.dsn("postgres")) as database:
        await database.migrate("test", [FIRST], now=NOW)
        # A commit now waits for a standby that never comes, after it was kept.
        await asyncio.to_thread(own_server.stop)
        await asyncio.to_thread(own_server.start, synchronous_standby_names="nobody")
        await works_again(database)
        runs: list[int] = []
        writing = asyncio.ensure_future(
            database.write(lambda c: (runs.append(1), _add(c, "a")))  # type: ignore[func-returns-value]
        )
        waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        await until(lambda: own_server.query(waiting), DEADLINE_S)
        ((pid,),) = own_server.query(waiting)
        own_server.execute(f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(GatewayError) as caught:
            await writing
        assert unavailable(caught)
        assert runs == [1]
        assert own_server.query("SELECT name FROM rows") == [("a",)]


async def works_again(database: Database) -> None:
    """Waits until the database takes writes."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await database.write(lambda c: c.execute(text("SELECT 1")).all())
            except GatewayError:
                await asyncio.sleep(0.05)
            else:
                return


async def test_what_was_acknowledged_survives_crashes_of_the_server_and_is_there_once(
    own_server: PostgresServer,
) -> None:
    acknowledged: set[str] = set()
    refused: list[GatewayError] = []
    stop = asyncio.Event()

    async def write(database: Database, writer: int) -> None:
        number = 0
        while not stop.is_set():
            name = f"{writer}-{number}"
            try:
                await database.write(lambda c, name=name: _add(c, name))  # type: ignore[misc]
            except GatewayError as error:
                refused.append(error)
                await asyncio.sleep(0.02)
            else:
                acknowledged.add(name)
            # A new name each time: the unique names show that no transaction ran twice.
            number += 1

    async with opened(own_server.dsn("postgres")) as one, opened(own_server.dsn("postgres")) as two:
        await one.migrate("test", [FIRST], now=NOW)
        writers = [asyncio.ensure_future(write(d, n)) for n, d in enumerate((one, two, one, two))]
        for _ in range(2):
            enough = len(acknowledged) + 100
            await until(lambda goal=enough: len(acknowledged) >= goal, DEADLINE_S)  # type: ignore[misc]
            await asyncio.to_thread(own_server.stop, signal.SIGQUIT)
            await asyncio.to_thread(own_server.start)
        await works_again(one)
        stop.set()
        await asyncio.gather(*writers)
        kept = await one.read(lambda c: list(c.execute(select(ROWS.c.name)).scalars()))
    assert refused
    assert {e.reason for e in refused} == {error_pb2.ERROR_REASON_STORE_UNAVAILABLE}
    assert len(kept) == len({*kept})
    assert acknowledged <= {*kept}


async def test_a_server_that_takes_no_writes_still_answers_reads(
    own_server: PostgresServer,
) -> None:
    async with opened(own_server.dsn("postgres")) as database:
        await database.migrate("test", [FIRST], now=NOW)
        await database.write(lambda c: _add(c, "a"))
        own_server.stop()
        own_server.start(default_transaction_read_only="on")
        with pytest.raises(GatewayError) as caught:
            await database.write(lambda c: _add(c, "b"))
        assert unavailable(caught)
        assert await database.read(_count) == 1
        own_server.stop()
        own_server.start()
        await works_again(database)
        await database.write(lambda c: _add(c, "b"))


async def test_a_row_that_stays_locked_and_a_statement_that_takes_too_long_are_unavailable(
    database: Database, postgres_dsn: str
) -> None:
    await database.write(lambda c: _add(c, "a"))
    inside, leave = threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        connection.execute(update(ROWS).values(cost_nano_usd=1))
        inside.set()
        assert leave.wait(DEADLINE_S)

    holding = asyncio.ensure_future(database.write(hold))
    assert await asyncio.to_thread(inside.wait, DEADLINE_S)
    async with opened(postgres_dsn, timeout_s=0.5) as other:
        for work in (
            lambda c: c.execute(update(ROWS).values(cost_nano_usd=2)),
            lambda c: c.execute(text("SELECT pg_sleep(60)")),
        ):
            with pytest.raises(GatewayError) as caught:
                await other.write(work)
            assert unavailable(caught)
        # Its threads are free again.
        assert await other.read(_count) == 1
    leave.set()
    await holding


async def test_a_value_that_cannot_be_kept_is_the_caller_s_fault(database: Database) -> None:
    for name in ("x" * 41, "a\0b"):
        with pytest.raises(GatewayError) as caught:
            await database.write(lambda c, name=name: _add(c, name))  # type: ignore[misc]
        assert caught.value.reason == error_pb2.ERROR_REASON_INVALID_REQUEST


async def test_a_password_works_and_shows_nowhere(
    postgres: PostgresServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    name = postgres.make_database()
    postgres.execute(f"CREATE ROLE owner LOGIN PASSWORD '{PASSWORD}'")
    postgres.execute(f"GRANT CREATE, CONNECT ON DATABASE {name} TO owner")
    postgres.execute("GRANT CREATE ON SCHEMA public TO owner", name)
    file = tmp_path / "dsn"
    file.write_text(postgres.network_dsn(name) + "\n")
    file.chmod(0o600)
    database = open_configured(AuthSettings(dsn_file=str(file)))
    await database.migrate("test", [FIRST], now=NOW)
    await database.write(lambda c: _add(c, "a"))
    await database.close()
    said = [repr(database)]
    for dsn in (
        postgres.network_dsn(name, password="canary wrong"),
        postgres.network_dsn("nowhere"),
        postgres.network_dsn(name).replace(f":{postgres.port}", ":1"),
    ):
        async with opened(dsn) as refused:
            with pytest.raises(GatewayError) as caught:
                await refused.read(_count)
            assert unavailable(caught)
            said.append(f"{caught.value} {caught.value.message} {refused!r}")
    everything = " ".join([caplog.text, *said])
    for secret in (PASSWORD, quote(PASSWORD, safe=""), "canary"):
        assert secret not in everything
    postgres.drop_database(name)
    postgres.execute("DROP ROLE owner")
