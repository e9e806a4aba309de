"""Idempotency-Key on a whole gateway, with the official SDK: one call, one posting, however often
it is asked for, through whichever edge and router, and whatever dies.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import openai
import pytest

from tests.fake_provider import FakeProvider, Reply, running_in_thread
from tests.gateway import Gateway, running_gateway, wait_until

CONFIG = """
[[provider]]
name = "fake"
kind = "openai"
base_url = "{base_url}"
api_key_env = "FAKE_KEY"
models = ["m"]
"""
WORDS = "one two three four five six seven eight nine ten"
SLOW = Reply(text=WORDS, chunk_delay_s=0.1)
KEY = "Idempotency-Key"


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with running_in_thread(FakeProvider()) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, provider: FakeProvider) -> Iterator[Gateway]:
    config = CONFIG.format(base_url=provider.base_url)
    directory = tmp_path_factory.mktemp("idempotency")
    with running_gateway(
        directory, config, workers=2, environment={"FAKE_KEY": "fake-key"}
    ) as running:
        running.cli(
            "prices", "set", "openai/m", "--input", "0", "--output", "1000", "--source", "a test"
        )
        yield running


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(
        base_url=gateway.base_url,
        headers={"authorization": f"Bearer {gateway.api_key}"},
        timeout=60,
        # A connection a call: the workers share the port, so calls come to both edges.
        limits=httpx2.Limits(max_keepalive_connections=0),
    ) as opened:
        yield opened


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "fake/m", "messages": [{"role": "user", "content": "Hello!"}], **fields}


def calls_of(provider: FakeProvider) -> int:
    """How many calls the provider saw, by its own tally."""
    return len(provider.chats)


def rows(gateway: Gateway) -> int:
    """How many attempts were posted."""
    listed = json.loads(gateway.cli("usage", "--by", "model", "-o", "json"))
    return sum(int(row["attempts"]) for row in listed)


@pytest.mark.anyio
async def test_fifty_retries_while_the_first_streams_make_one_call_and_one_posting(
    gateway: Gateway, provider: FakeProvider, client: httpx2.AsyncClient
) -> None:
    provider.default = SLOW
    calls, posted = calls_of(provider), rows(gateway)

    async def ask() -> httpx2.Response:
        wanted = body(stream=True, stream_options={"include_usage": True})
        return await client.post("/chat/completions", json=wanted, headers={KEY: "fifty"})

    first = asyncio.create_task(ask())
    await asyncio.to_thread(wait_until, lambda: calls_of(provider) > calls, 30, "the first call")
    answers = await asyncio.gather(first, *(ask() for _ in range(50)))
    assert [answer.status_code for answer in answers] == [200] * 51
    assert len({answer.content for answer in answers}) == 1
    assert answers[0].content.endswith(b"data: [DONE]\n\n")
    replayed = [answer.headers["x-onegate-replayed"] for answer in answers]
    assert replayed == ["false", *["true"] * 50]
    original = answers[0].headers["x-request-id"]
    assert {a.headers["x-onegate-original-request-id"] for a in answers[1:]} == {original}
    assert calls_of(provider) == calls + 1
    wait_until(lambda: rows(gateway) == posted + 1, 20, "one posting")
    again = await ask()
    assert again.content == answers[0].content
    assert calls_of(provider) == calls + 1
    assert rows(gateway) == posted + 1


def test_the_official_sdk_gets_the_first_answer_again(
    gateway: Gateway, provider: FakeProvider
) -> None:
    provider.default = Reply()
    calls = calls_of(provider)
    with openai.OpenAI(base_url=gateway.base_url, api_key=gateway.api_key) as sdk:
        completions = sdk.chat.completions.with_raw_response
        messages: Any = body()["messages"]

        def ask(key: str, **fields: Any) -> Any:
            return completions.create(
                model="fake/m", messages=messages, extra_headers={KEY: key}, **fields
            )

        first, again = ask("sdk"), ask("sdk")
        assert again.content == first.content
        assert first.headers["x-onegate-replayed"] == "false"
        assert float(first.headers["x-onegate-cost"]) > 0
        assert again.headers["x-onegate-replayed"] == "true"
        assert float(again.headers["x-onegate-cost"]) == 0
        original = again.headers["x-onegate-original-request-id"]
        assert original == first.headers["x-request-id"] != again.headers["x-request-id"]
        streams = [list(ask("sdk-stream", stream=True).parse()) for _ in range(2)]
        assert streams[0] == streams[1]
        assert calls_of(provider) == calls + 2
        with pytest.raises(openai.BadRequestError) as caught:
            ask("sdk", temperature=1)
        assert caught.value.code == "idempotency_mismatch"
        with pytest.raises(openai.BadRequestError) as caught:
            ask("x" * 256)
        assert caught.value.param == "idempotency-key"
    assert calls_of(provider) == calls + 2


@pytest.mark.anyio
async def test_a_router_killed_in_mid_stream_is_billed_and_the_retry_is_a_new_call(
    gateway: Gateway, provider: FakeProvider, client: httpx2.AsyncClient
) -> None:
    provider.default = SLOW
    calls, posted = calls_of(provider), rows(gateway)
    stream, headers = body(stream=True), {KEY: "killed"}
    async with client.stream("POST", "/chat/completions", json=stream, headers=headers) as broken:
        lines = broken.aiter_lines()
        await anext(lines)
        for pid in gateway.pids_of("router"):
            os.kill(pid, signal.SIGKILL)
        rest = [line async for line in lines if line.startswith("data: ")]
    assert rest[-1] != "data: [DONE]"
    provider.default = Reply()

    async def settled() -> httpx2.Response:
        """The retry's answer, once there is a whole one: until then it is told to come back, or
        breaks off as the first did.
        """
        while True:
            answer = await client.post("/chat/completions", json=stream, headers=headers)
            if answer.content.endswith(b"data: [DONE]\n\n"):
                return answer
            if answer.status_code == 200:
                assert b'"error"' in answer.content.splitlines()[-2]
            else:
                assert answer.status_code == 503, answer.text
                assert answer.headers["retry-after"]
            await asyncio.sleep(0.2)

    async with asyncio.timeout(60):
        again = await settled()
    assert again.headers["x-onegate-replayed"] == "false"
    assert again.content.endswith(b"data: [DONE]\n\n")
    assert calls_of(provider) == calls + 2
    wait_until(lambda: rows(gateway) == posted + 2, 30, "two postings")
    assert (await settled()).content == again.content
    assert calls_of(provider) == calls + 2


@pytest.mark.anyio
async def test_while_usage_hangs_a_call_with_a_key_is_refused_and_others_are_served(
    gateway: Gateway, provider: FakeProvider, client: httpx2.AsyncClient
) -> None:
    provider.default = Reply()
    calls = calls_of(provider)
    (usage,) = gateway.pids_of("usage")
    os.kill(usage, signal.SIGSTOP)
    try:
        refused = await client.post("/chat/completions", json=body(), headers={KEY: "hung"})
        assert refused.status_code == 503, refused.text
        assert refused.json()["error"]["code"] == "store_unavailable"
        assert refused.headers["retry-after"] == "1"
        assert calls_of(provider) == calls
        served = await client.post("/chat/completions", json=body())
        assert served.status_code == 200
        assert "x-onegate-replayed" not in served.headers
    finally:
        os.kill(usage, signal.SIGCONT)


@pytest.mark.anyio
async def test_usage_killed_in_mid_stream_costs_the_retry_nothing(
    gateway: Gateway, provider: FakeProvider, client: httpx2.AsyncClient
) -> None:
    provider.default = SLOW
    calls = calls_of(provider)
    stream, headers = body(stream=True), {KEY: "usage-killed"}
    async with client.stream("POST", "/chat/completions", json=stream, headers=headers) as first:
        lines = first.aiter_lines()
        seen = [await anext(lines)]
        for pid in gateway.pids_of("usage"):
            os.kill(pid, signal.SIGKILL)
        seen += [line async for line in lines]
    assert [line for line in seen if line][-1] == "data: [DONE]"
    async with asyncio.timeout(60):
        while True:
            again = await client.post("/chat/completions", json=stream, headers=headers)
            if again.status_code == 200:
                break
            assert again.status_code == 503, again.text
            await asyncio.sleep(0.2)
    assert again.headers["x-onegate-replayed"] == "true"
    assert again.text.splitlines() == seen
    assert calls_of(provider) == calls + 1
