"""What every test shares."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import PostgresServer


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Tests marked ``anyio`` run on the loop that the processes use."""
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; one for each worker of the tests, started for the first that asks."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def postgres_dsn(postgres: PostgresServer) -> Iterator[str]:
    """An empty database of the test's own."""
    name = postgres.make_database()
    yield postgres.dsn(name)
    postgres.drop_database(name)


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server that the test may break."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def dsn(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of the test's own, in turn of each kind that onegate knows."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path / 'state' / 'test.db'}"
    found: str = request.getfixturevalue("postgres_dsn")
    return found
