"""The demo provider, asked by the official SDK with strict validation, and by nobody's client."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from runtime.clock import SystemClock, SystemEntropy
from services.router import demo
from services.router.demo import DemoServer

pytestmark = pytest.mark.anyio
HELLO: list[Any] = [{"role": "user", "content": "Hello, world"}]


@asynccontextmanager
async def running() -> AsyncIterator[str]:
    server = DemoServer(SystemClock(), SystemEntropy())
    url = await server.start()
    try:
        yield url
    finally:
        await server.close()


@asynccontextmanager
async def client() -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        running() as url,
        openai.AsyncOpenAI(
            base_url=url, api_key="none", max_retries=0, _strict_response_validation=True
        ) as sdk,
    ):
        yield sdk


async def test_it_says_what_it_is_how_to_leave_it_and_repeats_the_question() -> None:
    async with client() as sdk:
        answer = await sdk.chat.completions.create(model="echo", messages=HELLO)
    content = answer.choices[0].message.content or ""
    assert "onegate's built-in demo provider" in content
    assert "OPENAI_API_KEY" in content
    assert content.endswith("You said: Hello, world")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(content.split(" "))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


ODD: list[dict[str, Any]] = [
    {},
    {"n": 3},
    {"n": 10**6},
    {"max_completion_tokens": 5},
    {"max_tokens": 0},
    {"max_tokens": 3},
    {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
    {"response_format": {"type": "json_object"}, "seed": 1, "logprobs": True, "top_logprobs": 2},
    {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "mp3"}},
    {"stop": ["a"], "temperature": 0, "store": True, "metadata": {"a": "b"}, "user": "u"},
    {"messages": []},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "parts"}]}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
    {"messages": [{"role": "assistant", "content": None}, {"role": "tool", "content": 7}]},
    {"messages": [{"role": "user", "content": "long " * 10_000}]},
]


@pytest.mark.parametrize("parameters", ODD, ids=lambda p: json.dumps(p)[:40])
async def test_any_parameters_get_a_valid_answer_and_the_same_as_a_stream(
    parameters: dict[str, Any],
) -> None:
    asked = {"model": "echo", "messages": HELLO, **parameters}
    async with client() as sdk:
        answer = await sdk.chat.completions.create(**asked)
        texts = [""] * len(answer.choices)
        finishes: list[str | None] = [None] * len(answer.choices)
        usage = None
        stream = await sdk.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                finishes[choice.index] = choice.finish_reason or finishes[choice.index]
    assert texts == [choice.message.content for choice in answer.choices]
    assert finishes == [choice.finish_reason for choice in answer.choices]
    assert usage == answer.usage
    assert len(texts[0]) < len(demo.GREETING) + demo.REPEATED_CHARS_MAX + 1


async def test_a_cap_cuts_the_answer_and_says_so() -> None:
    async with client() as sdk:
        answer = await sdk.chat.completions.create(
            model="echo", messages=HELLO, max_completion_tokens=2
        )
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (
        "This is ",
        "length",
    )


async def test_usage_is_told_in_a_stream_only_to_who_asks() -> None:
    async with client() as sdk:
        stream = await sdk.chat.completions.create(model="echo", messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


async def test_it_lists_its_one_model() -> None:
    async with client() as sdk:
        assert [model.id async for model in sdk.models.list()] == ["echo"]


async def raw(url: str, data: bytes) -> bytes:
    host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    writer.write_eof()
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"GET /other HTTP/1.1\r\n\r\n", b"HTTP/1.1 404"),
        (b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 3\r\n\r\nnot", b"HTTP/1.1 400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 2\r\n\r\n[]", b"HTTP/1.1 400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}", b"HTTP/1.1 200"),
        (b"POST / HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n", b""),
        (b"POST / HTTP/1.1\r\ncontent-length: 10\r\n\r\nshort", b""),
        (b"x" * 100_000, b""),
        (b"", b""),
    ],
)
async def test_what_is_no_call_is_refused_or_hung_up_on(request_: bytes, answer: bytes) -> None:
    async with running() as url:
        assert (await raw(url, request_))[:12] == answer
