"""Processes killed in mid-stream: the client is told, the gateway recovers, the call is on
record.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from tests.fake_provider import FakeProvider, Outcome, Reply, running_in_thread
from tests.gateway import Gateway, running_gateway, wait_until

CONFIG = """
[[provider]]
name = "fake"
kind = "openai"
base_url = "{base_url}"
api_key_env = "FAKE_KEY"
models = ["slow"]
free = true
"""
MODEL = "fake/slow"
HELLO: Any = [{"role": "user", "content": "Hello!"}]
SLOW = Reply(text="word " * 400, chunk_delay_s=0.02)


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with running_in_thread(FakeProvider()) as running:
        yield running


@pytest.fixture
def gateway(tmp_path_factory: pytest.TempPathFactory, provider: FakeProvider) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("crash")
    config = CONFIG.format(base_url=provider.base_url)
    with running_gateway(directory, config, environment={"FAKE_KEY": "fake-key"}) as running:
        yield running


def rows_of(gateway: Gateway, request_id: str) -> list[dict[str, Any]]:
    """The request's usage rows; none while usage is not back yet."""
    try:
        return list(json.loads(gateway.cli("usage", "--request", request_id, "-o", "json")))
    except subprocess.CalledProcessError:
        return []


def kill_in_mid_stream(gateway: Gateway, service: str) -> tuple[str, Exception | None]:
    """Streams, kills the service after a few chunks; gives the request's id and how the stream
    ended.
    """
    with openai.OpenAI(
        base_url=gateway.base_url, api_key=gateway.api_key, max_retries=0, timeout=20
    ) as client:
        stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        request_id = stream.response.headers["x-request-id"]
        try:
            for number, _ in enumerate(stream):
                if number == 5:
                    os.kill(gateway.pids_of(service)[0], signal.SIGKILL)
        except (openai.APIError, httpx2.HTTPError) as error:
            return request_id, error
    return request_id, None


def answers_again(gateway: Gateway, provider: FakeProvider) -> None:
    """One call succeeds again within a few seconds."""
    provider.script(Reply(), Reply(), Reply())

    def answered() -> bool:
        try:
            with openai.OpenAI(
                base_url=gateway.base_url, api_key=gateway.api_key, max_retries=0, timeout=5
            ) as client:
                return bool(client.chat.completions.create(model=MODEL, messages=HELLO).choices)
        except openai.APIError:
            return False

    wait_until(answered, 15, "an answer after the crash")


def test_a_killed_router_ends_the_stream_with_an_error_and_the_call_is_on_record(
    gateway: Gateway, provider: FakeProvider
) -> None:
    provider.script(SLOW)
    request_id, ended_with = kill_in_mid_stream(gateway, "router")
    assert ended_with is not None, "the stream ended as if it were complete"
    answers_again(gateway, provider)
    wait_until(lambda: rows_of(gateway, request_id), what="the usage row of the killed call")
    (row,) = rows_of(gateway, request_id)
    assert row["outcome"] == "interrupted"
    assert row["certainty"] == "uncertain"


def test_a_killed_edge_ends_the_stream_with_an_error_and_stops_the_provider(
    gateway: Gateway, provider: FakeProvider
) -> None:
    provider.script(SLOW)
    request_id, ended_with = kill_in_mid_stream(gateway, "edge")
    assert ended_with is not None, "the stream ended as if it were complete"
    wait_until(
        lambda: provider.chats[0].outcome == Outcome.ABANDONED, 2, "the provider to be left alone"
    )
    answers_again(gateway, provider)
    wait_until(lambda: rows_of(gateway, request_id), what="the usage row of the killed call")
    (row,) = rows_of(gateway, request_id)
    assert row["outcome"] == "cancelled"
    assert row["output_tokens"] > 0


@pytest.mark.parametrize("service", ["auth", "usage"])
def test_a_killed_leaf_harms_no_stream_and_loses_no_row(
    gateway: Gateway, provider: FakeProvider, service: str
) -> None:
    provider.script(Reply(text="word " * 40, chunk_delay_s=0.02))
    request_id, ended_with = kill_in_mid_stream(gateway, service)
    assert ended_with is None
    wait_until(lambda: rows_of(gateway, request_id), 20, what="the usage row")
    (row,) = rows_of(gateway, request_id)
    assert row["outcome"] == "completed"


def test_a_caller_who_leaves_stops_the_provider_within_a_second_and_is_billed(
    gateway: Gateway, provider: FakeProvider
) -> None:
    provider.script(SLOW)
    with openai.OpenAI(base_url=gateway.base_url, api_key=gateway.api_key) as client:
        stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        request_id = stream.response.headers["x-request-id"]
        for number, _ in enumerate(stream):
            if number == 10:
                break
        stream.close()
    wait_until(
        lambda: provider.chats[0].outcome == Outcome.ABANDONED, 1, "the provider to be left alone"
    )
    wait_until(lambda: rows_of(gateway, request_id), what="the usage row")
    (row,) = rows_of(gateway, request_id)
    assert row["outcome"] == "cancelled"
    assert row["certainty"] == "estimated"
    assert row["output_tokens"] >= 10
