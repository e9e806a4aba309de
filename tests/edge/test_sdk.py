"""The official OpenAI SDK against the edge: what it sends is understood, what it gets is what it
expects.
"""

import asyncio
import json
from pathlib import Path

import openai
import pytest

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.calls import ServerCall
from runtime.errors import GatewayError
from tests.edge.endpoints.answers import FULL_ANSWER
from tests.edge.stage import KEY, METERED, MODEL, SERVED, Event, chunk, send, staged
from tests.edge.test_chat_call import typed_script

pytestmark = pytest.mark.anyio


async def test_the_async_client_gets_answers_streams_and_models(tmp_path: Path) -> None:
    async with (
        staged(tmp_path) as stage,
        openai.AsyncOpenAI(base_url=stage.base_url, api_key=KEY) as client,
    ):
        answer = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}]
        )
        assert answer.choices[0].message.content == "Hi"
        assert answer._request_id == stage.router.requests[0].context.request_id
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        pieces = [piece async for piece in stream]
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "Hello"
        assert pieces[-1].choices[0].finish_reason == "stop"
        models = [model.id async for model in client.models.list()]
        assert models == [MODEL]
        assert (await client.models.retrieve(MODEL)).id == MODEL


async def test_the_sync_client_gets_answers_and_streams(tmp_path: Path) -> None:
    def use(base_url: str) -> tuple[str | None, str, float]:
        with openai.OpenAI(base_url=base_url, api_key=KEY) as client:
            answer = client.chat.completions.with_raw_response.create(
                model=MODEL, messages=[{"role": "user", "content": "Hi"}]
            )
            stream = client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True
            )
            said = "".join(piece.choices[0].delta.content or "" for piece in stream)
            cost = float(answer.headers["x-onegate-cost"])
            return answer.parse().choices[0].message.content, said, cost

    async with staged(tmp_path) as stage:
        said = await asyncio.to_thread(use, stage.base_url)
        assert said == ("Hi", "Hello", 0.00000315)


async def test_the_client_understands_every_part_of_a_typed_answer(tmp_path: Path) -> None:
    async with (
        staged(tmp_path) as stage,
        openai.AsyncOpenAI(base_url=stage.base_url, api_key=KEY) as client,
    ):
        stage.router.script = typed_script(Event(answer=FULL_ANSWER))
        answer = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}]
        )
        message = answer.choices[0].message
        assert message.tool_calls is not None
        assert [call.type for call in message.tool_calls] == ["function", "custom"]
        assert message.annotations is not None
        assert message.annotations[0].url_citation.url == "https://x/y"
        assert message.audio is not None
        assert message.audio.id == "a1"
        assert message.model_extra is not None
        assert message.model_extra["reasoning_content"] == "Hm. sum"
        assert answer.usage is not None
        assert answer.usage.model_extra == {"cost": 0.00000315}


async def test_an_answer_that_is_sent_back_is_understood(tmp_path: Path) -> None:
    async with (
        staged(tmp_path) as stage,
        openai.AsyncOpenAI(base_url=stage.base_url, api_key=KEY) as client,
    ):
        stage.router.script = typed_script(Event(answer=FULL_ANSWER))
        first = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}]
        )
        said = first.choices[0].message.model_dump(exclude_none=True)
        await client.chat.completions.create(
            model=MODEL,
            messages=[
                {"role": "user", "content": "Hi"},
                said,  # type: ignore[list-item]
                {"role": "tool", "tool_call_id": "1", "content": "4"},
            ],
        )
        message = stage.router.requests[-1].messages[1]
        kinds = [part.WhichOneof("content") for part in message.parts]
        assert kinds == ["thinking"] * 3 + ["text", "audio", "tool_call", "tool_call"]
        assert message.parts[0].thinking.signature == "s1"
        assert message.parts[1].thinking.redacted_data == "e"
        assert message.parts[5].tool_call.thought_signature == b"\xff\xfe"


async def test_a_stream_that_breaks_raises_in_the_client(tmp_path: Path) -> None:
    async def script(call: ServerCall, _request: chat_pb2.ChatRequest) -> None:
        await send(call, Event(served=SERVED), Event(native=chunk("Hel")))
        raise GatewayError(error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL, "It broke off.")

    async with (
        staged(tmp_path) as stage,
        openai.AsyncOpenAI(base_url=stage.base_url, api_key=KEY) as client,
    ):
        stage.router.script = script
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        with pytest.raises(openai.APIError, match="It broke off"):
            async for _ in stream:
                pass


@pytest.mark.parametrize(
    ("reason", "kind", "tries"),
    [
        (error_pb2.ERROR_REASON_INVALID_REQUEST, openai.BadRequestError, 1),
        (error_pb2.ERROR_REASON_MODEL_FORBIDDEN, openai.PermissionDeniedError, 1),
        (error_pb2.ERROR_REASON_MODEL_NOT_FOUND, openai.NotFoundError, 1),
        (error_pb2.ERROR_REASON_BUDGET_EXHAUSTED, openai.RateLimitError, 1),
        (error_pb2.ERROR_REASON_UPSTREAM_ERROR, openai.InternalServerError, 1),
        (error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT, openai.InternalServerError, 1),
        (error_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED, openai.RateLimitError, 3),
        (error_pb2.ERROR_REASON_JOURNAL_FULL, openai.InternalServerError, 3),
    ],
)
async def test_the_client_tries_again_only_where_that_may_help(
    tmp_path: Path, reason: int, kind: type[openai.APIStatusError], tries: int
) -> None:
    async def script(_call: ServerCall, _request: chat_pb2.ChatRequest) -> None:
        raise GatewayError(reason, "Because.", param="model", retry_after_ms=10)

    async with (
        staged(tmp_path) as stage,
        openai.AsyncOpenAI(base_url=stage.base_url, api_key=KEY) as client,
    ):
        stage.router.script = script
        with pytest.raises(kind) as caught:
            await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Hi"}]
            )
        assert len(stage.router.requests) == tries
        assert caught.value.param == "model"
        assert "Because." in caught.value.message


async def test_a_wrong_key_is_an_authentication_error(tmp_path: Path) -> None:
    async with (
        staged(tmp_path) as stage,
        openai.AsyncOpenAI(base_url=stage.base_url, api_key="sk-og-wrong") as client,
    ):
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_usage_at_the_end_of_a_stream_has_its_cost(tmp_path: Path) -> None:
    pieces = [
        chat_pb2.ChoiceDelta(starts=True, text="Hi"),
        chat_pb2.ChoiceDelta(finish_reason=chat_pb2.FINISH_REASON_STOP),
    ]
    deltas = [Event(delta=chat_pb2.ChatDelta(choices=[piece])) for piece in pieces]
    async with (
        staged(tmp_path) as stage,
        openai.AsyncOpenAI(base_url=stage.base_url, api_key=KEY) as client,
    ):
        stage.router.script = typed_script(*deltas)
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        last = [piece async for piece in stream][-1]
        assert last.choices == []
        assert last.usage is not None
        assert last.usage.total_tokens == METERED.tokens.input_tokens + 3
        assert last.usage.model_extra == {"cost": 0.00000315}


async def test_bodies_in_any_encoding_of_text_are_understood(tmp_path: Path) -> None:
    async with (
        staged(tmp_path) as stage,
        openai.AsyncOpenAI(base_url=stage.base_url, api_key=KEY) as client,
    ):
        text = "Grüße, 世界 🌍\n\t\u0001"
        await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": text}]
        )
        body = json.loads(stage.router.requests[0].native.body)
        assert body["messages"][0]["content"] == text
