"""The whole gateway on PostgreSQL, and what its callers notice when that crashes: nothing."""

import signal
from pathlib import Path
from typing import Any

import openai

from tests.gateway import Gateway, running_gateway, wait_until
from tests.postgres import PASSWORD, PostgresServer

HELLO: Any = [{"role": "user", "content": "Hello!"}]


def call(gateway: Gateway) -> None:
    """One model call that has to go well."""
    with openai.OpenAI(
        base_url=gateway.base_url, api_key=gateway.api_key, max_retries=0, timeout=30
    ) as client:
        assert client.chat.completions.create(model="demo/echo", messages=HELLO).choices


def rows(server: PostgresServer) -> int:
    """How many attempts are kept, each once."""
    ((found,),) = server.query("SELECT count(*) FROM usage_records", "gateway")
    assert isinstance(found, int)
    return found


def test_calls_go_on_while_the_database_is_down_and_all_are_on_record_afterwards(
    tmp_path: Path, own_server: PostgresServer
) -> None:
    own_server.execute(f"CREATE ROLE owner LOGIN PASSWORD '{PASSWORD}'")
    own_server.execute("CREATE DATABASE gateway OWNER owner TEMPLATE template0")
    dsn = own_server.network_dsn("gateway")
    environment = {"ONEGATE_AUTH_DSN": dsn, "ONEGATE_USAGE_DSN": dsn}
    with running_gateway(tmp_path, environment=environment) as gateway:
        call(gateway)
        wait_until(lambda: rows(own_server) == 1, 30, "the first row")
        own_server.stop(signal.SIGQUIT)
        for _ in range(5):
            call(gateway)
        own_server.start()
        wait_until(lambda: rows(own_server) == 6, 60, "the rows of the time without a database")
        call(gateway)
        wait_until(lambda: rows(own_server) == 7, 30, "the last row")
    said = gateway.log.read_text()
    assert "is unavailable" in said
    assert "canary" not in said
