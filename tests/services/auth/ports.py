"""Ports that a test owns, and the records that tests start from."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
from sqlalchemy import Connection

from onegate.auth.v1 import grant_pb2
from runtime.apikeys import KeyKind
from runtime.clock import SystemEntropy
from runtime.config import AuthSettings
from runtime.sql import open_database
from services.auth.identity import Identity, open_identity
from services.auth.policy import Policy
from services.auth.records import NewKey

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
ENTROPY = SystemEntropy()


class SteppedClock:
    """A clock whose face stands still until the test moves it; sleeping is real."""

    def __init__(self) -> None:
        self.passed_s = 0.0
        self.broken = False

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.passed_s)

    def monotonic(self) -> float:
        return 1000.0 + self.passed_s

    async def sleep(self, delay_s: float) -> None:
        if self.broken:
            raise RuntimeError("the clock is broken")
        await asyncio.sleep(delay_s)


async def until(condition: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
    """Waits until ``condition`` holds; fails when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        await asyncio.sleep(0.001)


DSN_FILE = "auth.dsn"
"""In a test's directory: the database that auth is on, when it is no SQLite file there."""


def auth_settings(directory: Path, listen: str = "") -> AuthSettings:
    """Auth on a database of its own."""
    named = directory / DSN_FILE
    return AuthSettings(
        listen=listen,
        dsn=named.read_text() if named.exists() else f"sqlite:///{directory}/auth.db",
        pepper_file=str(directory / "pepper"),
    )


@asynccontextmanager
async def opened(directory: Path, clock: SteppedClock | None = None) -> AsyncIterator[Identity]:
    """What auth works with, on the database of ``directory``."""
    identity = await open_identity(auth_settings(directory), clock or SteppedClock(), ENTROPY)
    try:
        yield identity
    finally:
        await identity.store.close()


async def run_statements(directory: Path, *statements: str) -> None:
    """Changes the database behind auth's back."""
    database = open_database(auth_settings(directory).dsn)

    def work(connection: Connection) -> None:
        for statement in statements:
            connection.exec_driver_sql(statement)

    await database.write(work)
    await database.close()


def stored_bytes(directory: Path) -> bytes:
    """Everything that the database has."""
    dsn = auth_settings(directory).dsn
    if dsn.startswith("sqlite:"):
        kept = Path(dsn.removeprefix("sqlite://"))
        return b"".join(path.read_bytes() for path in kept.parent.glob(f"{kept.name}*"))
    with psycopg.connect(dsn) as connection:
        named = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        tables = [name for (name,) in connection.execute(named)]
        rows = [
            str(row)
            for table in tables
            for row in connection.execute(f'SELECT * FROM "{table}"'.encode())
        ]
    return "\n".join(rows).encode()


def asked(
    name: str = "key",
    *,
    kind: KeyKind = grant_pb2.KEY_KIND_PROJECT,
    project_id: str = "",
    policy: Policy | None = None,
    request_id: str = "",
) -> NewKey:
    """A checked request for a key that never expires."""
    return NewKey(
        name=name,
        kind=kind,
        project_id=project_id,
        expires_in_s=None,
        policy=policy or Policy(),
        request_id=request_id,
    )
