"""What is SQLite's own: the write lock, the files, and what a connection is set up with."""

import asyncio
import os
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from runtime.sql import Database, open_database
from tests.runtime.test_sql import FIRST, NOW, _add, _count

pytestmark = pytest.mark.anyio


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = open_database(f"sqlite://{tmp_path / 'state' / 'test.db'}")
    await opened.migrate("test", [FIRST], now=NOW)
    yield opened
    await opened.close()


def _pragma(connection: Connection, name: str) -> object:
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("synchronous", 1), ("foreign_keys", 1), ("busy_timeout", 5000)],
)
async def test_every_connection_is_set_up(database: Database, pragma: str, value: object) -> None:
    assert await database.write(lambda c: _pragma(c, pragma)) == value
    assert await database.read(lambda c: _pragma(c, pragma)) == value


async def test_a_writer_takes_the_lock_before_it_reads(database: Database, tmp_path: Path) -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        inside.set()
        assert leave.wait(5)

    held = asyncio.ensure_future(database.write(hold))
    assert await asyncio.to_thread(inside.wait, 5)
    other = open_database(f"sqlite://{tmp_path / 'state' / 'test.db'}", timeout_s=0.2)
    with pytest.raises(GatewayError) as caught:
        await other.write(_count)
    leave.set()
    await held
    await other.close()
    assert caught.value.reason == error_pb2.ERROR_REASON_STORE_UNAVAILABLE
    assert caught.value.retryable


async def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "broken.db"
    path.write_bytes(b"not a database, by any means, at all" * 100)
    database = open_database(f"sqlite://{path}")
    with pytest.raises(GatewayError) as caught:
        await database.read(lambda c: c.exec_driver_sql("SELECT 1").scalar_one())
    await database.close()
    assert caught.value.reason == error_pb2.ERROR_REASON_STORE_UNAVAILABLE


async def test_closing_folds_the_log_into_the_file(tmp_path: Path) -> None:
    path = tmp_path / "whole.db"
    database = open_database(f"sqlite://{path}")
    await database.migrate("test", [FIRST], now=NOW)
    await database.read(_count)
    await database.write(lambda c: _add(c, "a"))
    await database.close()
    assert os.listdir(tmp_path) == ["whole.db"]  # noqa: PTH208


async def test_files_are_for_their_owner_alone(database: Database, tmp_path: Path) -> None:
    await database.write(lambda c: _add(c, "a"))
    directory = tmp_path / "state"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in directory.iterdir()} == {0o600}


async def test_the_path_of_a_dsn_is_taken_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a %20?b#c.db"
    database = open_database(f"sqlite://{path}")
    await database.migrate("test", [FIRST], now=NOW)
    await database.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(1,)]
    connection.close()
