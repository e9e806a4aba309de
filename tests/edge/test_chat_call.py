"""A chat call through the edge, over real sockets: answers, streams, and every way to fail."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from edge.chat import TypedModels
from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.calls import ServerCall
from runtime.errors import GatewayError
from tests.edge.endpoints.answers import FULL_ANSWER
from tests.edge.stage import (
    BODY,
    CHAT,
    KEY,
    METERED,
    MODEL,
    SERVED,
    Event,
    Stage,
    chunk,
    send,
    staged,
)
from tests.edge.wire import Answer, Client, until
from tests.openapi_oracle import CHAT_COMPLETION, faults, stream_faults
from tests.recordings import needs_specs
from tests.services.auth.ports import SteppedClock

pytestmark = pytest.mark.anyio

HI = {"role": "user", "content": "Hi"}


def chat(*lines: str, **fields: Any) -> bytes:
    """A chat request as bytes."""
    body = json.dumps({"model": MODEL, "messages": [HI], **fields}).encode()
    head = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}"]
    head += [f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


async def asked(stage: Stage, *lines: str, **fields: Any) -> Answer:
    """The answer to one chat request."""
    client = await stage.connect()
    await client.send(chat(*lines, **fields))
    return await client.answer()


def error_of(answer: Answer) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(answer.body)["error"]
    return error


def events(raw: bytes) -> list[bytes]:
    """A stream's events, comments left out."""
    blocks = raw.split(b"\n\n")
    assert blocks.pop() == b""
    return [block.removeprefix(b"data: ") for block in blocks if not block.startswith(b":")]


def refuse(reason: int, **fields: int) -> GatewayError:
    return GatewayError(reason, "Because.", **fields)  # type: ignore[arg-type]


async def test_a_native_answer_passes_untouched_with_its_headers(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        answer = await asked(stage, "x-onegate-tags: team=search", "X-Request-Id: mine")
        assert (answer.status, answer.body) == (200, BODY)
        headers = answer.headers
        assert headers["content-type"] == "application/json"
        assert headers["x-request-id"].startswith("req_")
        assert len(headers["x-request-id"]) == 36
        assert headers["x-onegate-model"] == MODEL
        assert headers["x-onegate-attempts"] == "2"
        assert headers["x-onegate-cost"] == "0.00000315"
        assert headers["x-ratelimit-remaining-requests"] == "99"
        assert headers["x-ratelimit-reset-tokens"] == "1m1.5s"
        assert "upstream;dur=1.50" in headers["server-timing"]
        assert int(headers["openai-processing-ms"]) >= 0
        assert headers["date"].endswith("GMT")
        request = stage.router.requests[0]
        assert request.context.request_id == headers["x-request-id"]
        assert dict(request.context.tags) == {"team": "search"}
        assert request.context.client_address == "127.0.0.1"
        assert stage.router.metadata[0]["authorization"] == f"Bearer {KEY}"


async def test_a_native_stream_passes_piece_by_piece(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def script(call: ServerCall, _request: chat_pb2.ChatRequest) -> None:
        await send(call, Event(served=SERVED), Event(native=chunk("Hel")))
        await gate.wait()
        await send(call, Event(native=chunk("lo")), Event(native=chunk("", '"stop"')))
        await send(call, Event(metered=METERED))

    async with staged(tmp_path) as stage:
        stage.router.script = script
        client = await stage.connect()
        await client.send(chat(stream=True))
        status, headers = await client.head()
        assert status == 200
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["x-accel-buffering"] == "no"
        assert headers["cache-control"] == "no-cache"
        assert headers["x-onegate-model"] == MODEL
        assert "x-onegate-cost" not in headers
        assert await client.chunk() == chunk("Hel")
        gate.set()
        assert await _rest(client) == chunk("lo") + chunk("", '"stop"') + b"data: [DONE]\n\n"
        await client.send(chat())
        assert (await client.answer()).status == 200


def typed_script(*answers: Event) -> Any:
    """A router whose deployment speaks another dialect."""

    async def script(call: ServerCall, request: chat_pb2.ChatRequest) -> None:
        if request.HasField("native"):
            await send(call, Event(typed_required=chat_pb2.TypedRequired()))
            request = chat_pb2.ChatRequest.FromString(await call.receive())
        assert not request.HasField("native")
        assert request.messages[0].parts[0].text.text == "Hi"
        await send(call, Event(served=SERVED), *answers, Event(metered=METERED))

    return script


async def test_a_router_may_ask_for_the_typed_form_and_gets_it_at_once_next_time(
    tmp_path: Path,
) -> None:
    async with staged(tmp_path) as stage:
        stage.router.script = typed_script(Event(answer=FULL_ANSWER))
        for _ in range(2):
            answer = await asked(stage)
            made = json.loads(answer.body)
            assert made["choices"][0]["message"]["content"] == "See there."
            assert made["usage"]["cost"] == 0.00000315
        assert [request.HasField("native") for request in stage.router.requests] == [True, False]
        await asked(stage, model="another")
        assert stage.router.requests[-1].HasField("native")


@needs_specs
async def test_typed_answers_and_streams_are_what_openais_description_says(
    tmp_path: Path,
) -> None:
    pieces = [
        chat_pb2.ChoiceDelta(starts=True),
        chat_pb2.ChoiceDelta(text="Hi"),
        chat_pb2.ChoiceDelta(finish_reason=chat_pb2.FINISH_REASON_STOP),
    ]
    deltas = [Event(delta=chat_pb2.ChatDelta(choices=[piece])) for piece in pieces]
    async with staged(tmp_path) as stage:
        stage.router.script = typed_script(Event(answer=FULL_ANSWER))
        answer = await asked(stage)
        assert faults(CHAT_COMPLETION, json.loads(answer.body)) == []
        stage.router.script = typed_script(*deltas)
        answer = await asked(stage, stream=True, stream_options={"include_usage": True})
        assert stream_faults(answer.body) == []
        last = json.loads(events(answer.body)[-2])
        assert last["choices"] == []
        assert last["usage"]["total_tokens"] == 12
        request_id = answer.headers["x-request-id"]
        assert last["id"] == f"chatcmpl-{request_id.removeprefix('req_')}"
        assert last["model"] == MODEL
        assert "usage" not in json.loads(events((await asked(stage, stream=True)).body)[-2])


async def test_the_gateway_tells_the_usage_of_a_native_stream_whose_provider_does_not(
    tmp_path: Path,
) -> None:
    async def script(call: ServerCall, _request: chat_pb2.ChatRequest) -> None:
        await send(call, Event(served=SERVED), Event(native=chunk("Hi", '"stop"')))
        metered = chat_pb2.Metered(tokens=METERED.tokens, cost_nano_usd=5, usage_missing=True)
        await send(call, Event(metered=metered))

    async with staged(tmp_path) as stage:
        stage.router.script = script
        answer = await asked(stage, stream=True, stream_options={"include_usage": True})
        first, usage, done = events(answer.body)
        assert json.loads(usage)["id"] == json.loads(first)["id"]
        assert json.loads(usage)["usage"]["cost"] == 0.000000005
        assert done == b"[DONE]"
        assert len(events((await asked(stage, stream=True)).body)) == 2


async def test_a_typed_form_that_cannot_be_made_is_the_callers_fault(tmp_path: Path) -> None:
    part = {"type": "input_audio", "input_audio": {"data": "no base64", "format": "wav"}}
    async with staged(tmp_path) as stage:
        stage.router.script = typed_script(Event(answer=FULL_ANSWER))
        answer = await asked(stage, messages=[{"role": "user", "content": [part]}])
        assert answer.status == 400
        assert error_of(answer)["param"] == "messages[0].content[0].input_audio.data"
        await until(lambda: stage.router.cancelled == 1)


async def test_legacy_callers_get_the_legacy_form(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.router.script = typed_script(Event(answer=FULL_ANSWER))
        answer = await asked(stage, functions=[{"name": "f"}])
        assert json.loads(answer.body)["choices"][0]["message"]["function_call"]["name"] == "f"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_before_any_content_has_its_status(tmp_path: Path, stream: bool) -> None:
    async def script(call: ServerCall, _request: chat_pb2.ChatRequest) -> None:
        await send(call, Event(served=SERVED))
        error = refuse(
            error_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED, retry_after_ms=1500, upstream_status=429
        )
        error.attempts = [error_pb2.AttemptSummary(model=MODEL)]
        raise error

    async with staged(tmp_path) as stage:
        stage.router.script = script
        answer = await asked(stage, stream=stream)
        assert answer.status == 429
        assert answer.headers["retry-after"] == "2"
        assert answer.headers["retry-after-ms"] == "1500"
        assert answer.headers["x-should-retry"] == "true"
        error = error_of(answer)
        assert error["code"] == "rate_limit_exceeded"
        assert error["metadata"]["attempts"][0]["model"] == MODEL


async def test_a_failure_in_mid_stream_is_an_error_event_without_done(tmp_path: Path) -> None:
    async def script(call: ServerCall, _request: chat_pb2.ChatRequest) -> None:
        await send(call, Event(served=SERVED), Event(native=chunk("Hel")))
        raise refuse(error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL)

    async with staged(tmp_path) as stage:
        stage.router.script = script
        answer = await asked(stage, stream=True)
        assert answer.status == 200
        first, last = events(answer.body)
        assert first == events(chunk("Hel"))[0]
        assert json.loads(last)["error"]["code"] == "upstream_protocol"


async def test_what_came_together_goes_out_together(tmp_path: Path) -> None:
    async def script(call: ServerCall, _request: chat_pb2.ChatRequest) -> None:
        await send(call, Event(served=SERVED))
        for _ in range(50):
            await send(call, Event(native=chunk("x")))

    async with staged(tmp_path) as stage:
        stage.router.script = script
        client = await stage.connect()
        await client.send(chat(stream=True))
        await client.head()
        pieces = []
        while piece := await client.chunk():
            pieces.append(piece)
        assert b"".join(pieces) == chunk("x") * 50 + b"data: [DONE]\n\n"
        assert len(pieces) < 25


async def test_an_error_right_behind_content_does_not_swallow_it(tmp_path: Path) -> None:
    async def script(call: ServerCall, _request: chat_pb2.ChatRequest) -> None:
        failure = refuse(error_pb2.ERROR_REASON_UPSTREAM_ERROR).to_proto()
        await send(call, Event(served=SERVED), Event(native=chunk("Hel")), Event(error=failure))

    async with staged(tmp_path) as stage:
        stage.router.script = script
        answer = await asked(stage, stream=True)
        assert answer.status == 200
        first, last = events(answer.body)
        assert first == events(chunk("Hel"))[0]
        assert json.loads(last)["error"]["code"] == "upstream_error"


async def test_an_error_event_of_the_router_counts_as_its_error(tmp_path: Path) -> None:
    async def script(call: ServerCall, _request: chat_pb2.ChatRequest) -> None:
        failure = refuse(error_pb2.ERROR_REASON_MODEL_NOT_FOUND)
        await send(call, Event(error=failure.to_proto()))

    async with staged(tmp_path) as stage:
        stage.router.script = script
        assert (await asked(stage)).status == 404


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("said", [[], [Event(served=SERVED)], [Event()]])
async def test_a_router_that_answers_nothing_is_a_defect(
    tmp_path: Path, stream: bool, said: list[Event]
) -> None:
    async def script(call: ServerCall, _request: chat_pb2.ChatRequest) -> None:
        if said:
            await send(call, *said)

    async with staged(tmp_path) as stage:
        stage.router.script = script
        answer = await asked(stage, stream=stream)
        assert answer.status == 500
        assert answer.headers["x-should-retry"] == "false"


async def test_a_router_that_dies_in_mid_stream_leaves_an_error_event(tmp_path: Path) -> None:
    async def script(call: ServerCall, _request: chat_pb2.ChatRequest) -> None:
        await send(call, Event(served=SERVED), Event(native=chunk("Hel")))
        await asyncio.Event().wait()

    async with staged(tmp_path) as stage:
        stage.router.script = script
        client = await stage.connect()
        await client.send(chat(stream=True))
        assert (await client.head())[0] == 200
        assert await client.chunk() == chunk("Hel")
        await stage.router.leave()
        event = await client.chunk()
        assert b'"error"' in event
        assert b"[DONE]" not in event
        assert await client.chunk() == b""


async def test_without_a_router_calls_are_refused_and_readiness_says_so(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await stage.router.leave()
        await until(lambda: not stage.edge.checks()["router"])
        answer = await asked(stage)
        assert answer.status == 503
        assert error_of(answer)["code"] == "router_unavailable"
        assert answer.headers["retry-after"]
        client = await stage.connect()
        await client.send(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        ready = await client.answer()
        assert ready.status == 503
        assert json.loads(ready.body)["checks"]["router"] == "missing"
        await client.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.answer()).status == 200


async def test_a_waiting_stream_is_kept_alive_by_comments(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def script(call: ServerCall, _request: chat_pb2.ChatRequest) -> None:
        await gate.wait()
        await send(call, Event(served=SERVED), Event(native=chunk("Hi")))
        await asyncio.sleep(0.3)
        await send(call, Event(metered=METERED))

    async with staged(tmp_path, keepalive_comment_s=0.1) as stage:
        stage.router.script = script
        client = await stage.connect()
        await client.send(chat(stream=True))
        status, headers = await client.head()
        assert status == 200
        assert "x-onegate-model" not in headers
        assert headers["x-request-id"].startswith("req_")
        assert [await client.chunk() for _ in range(3)] == [b": keep-alive\n\n"] * 3
        gate.set()
        comments, opens, rest = (await _rest(client)).partition(b"data: ")
        assert comments.replace(b": keep-alive\n\n", b"") == b""
        assert opens + rest == chunk("Hi") + b"data: [DONE]\n\n"


async def _rest(client: Client) -> bytes:
    rest = b""
    while piece := await client.chunk():
        rest += piece
    return rest


async def test_a_failure_after_a_comment_is_an_error_event(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def script(_call: ServerCall, _request: chat_pb2.ChatRequest) -> None:
        await gate.wait()
        raise refuse(error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT)

    async with staged(tmp_path, keepalive_comment_s=0.1) as stage:
        stage.router.script = script
        client = await stage.connect()
        await client.send(chat(stream=True))
        assert (await client.head())[0] == 200
        assert await client.chunk() == b": keep-alive\n\n"
        gate.set()
        (event,) = events(await _rest(client))
        assert json.loads(event)["error"]["code"] == "upstream_timeout"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_that_leaves_is_gone_for_the_router_too(
    tmp_path: Path, stream: bool
) -> None:
    async def script(call: ServerCall, _request: chat_pb2.ChatRequest) -> None:
        if stream:
            await send(call, Event(served=SERVED), Event(native=chunk("Hel")))
        await asyncio.Event().wait()

    async with staged(tmp_path) as stage:
        stage.router.script = script
        client = await stage.connect()
        await client.send(chat(stream=stream))
        await until(lambda: len(stage.router.requests) == 1)
        if stream:
            await client.head()
        began_s = asyncio.get_running_loop().time()
        await client.leave()
        await until(lambda: stage.router.cancelled == 1)
        assert asyncio.get_running_loop().time() - began_s < 5.0


async def test_a_caller_that_does_not_read_stops_the_router(tmp_path: Path) -> None:
    sent = 0

    async def script(call: ServerCall, _request: chat_pb2.ChatRequest) -> None:
        nonlocal sent
        await send(call, Event(served=SERVED))
        while True:
            await send(call, Event(native=chunk("x" * 4000)))
            sent += 4000

    async with staged(tmp_path, stall_timeout_s=1.0) as stage:
        stage.router.script = script
        client = await stage.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(chat(stream=True))
        seen = -1
        while seen != sent or not sent:
            seen = sent
            await asyncio.sleep(0.1)
        assert sent < 4_000_000
        await until(lambda: stage.router.cancelled == 1)


async def test_a_call_has_a_deadline(tmp_path: Path) -> None:
    async def script(_call: ServerCall, _request: chat_pb2.ChatRequest) -> None:
        await asyncio.Event().wait()

    async with staged(tmp_path, call_timeout_s=0.2) as stage:
        stage.router.script = script
        answer = await asked(stage)
        assert answer.status == 504
        assert error_of(answer)["code"] == "deadline_exceeded"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_outlasts_the_drain_is_told_so(tmp_path: Path, stream: bool) -> None:
    async def script(call: ServerCall, _request: chat_pb2.ChatRequest) -> None:
        if stream:
            await send(call, Event(served=SERVED), Event(native=chunk("Hel")))
        await asyncio.Event().wait()

    async with staged(tmp_path) as stage:
        stage.router.script = script
        client = await stage.connect()
        await client.send(chat(stream=stream))
        await until(lambda: len(stage.router.requests) == 1)
        if stream:
            assert (await client.head())[0] == 200
            assert await client.chunk() == chunk("Hel")
        await stage.edge.drain()
        if stream:
            (event,) = events(await client.chunk())
            assert json.loads(event)["error"]["code"] == "draining"
            assert await client.chunk() == b""
        else:
            answer = await client.answer()
            assert answer.status == 503
            assert error_of(answer)["code"] == "draining"
        await until(lambda: stage.router.cancelled == 1)


async def test_a_request_that_is_wrong_reaches_no_router(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        answer = await asked(stage, messages=[])
        assert answer.status == 400
        assert error_of(answer)["param"] == "messages"
        answer = await asked(stage, "x-onegate-max-cost: lots")
        assert error_of(answer)["param"] == "x-onegate-max-cost"
        assert stage.router.requests == []


async def test_two_routers_share_the_calls(tmp_path: Path) -> None:
    async with staged(tmp_path, routers=2) as stage:
        await until(lambda: len(stage.edge._relay._ready) == 2)
        for _ in range(8):
            assert (await asked(stage)).status == 200
        assert all(router.requests for router in stage.routers)
        await stage.routers[0].leave()
        await until(lambda: len(stage.edge._relay._ready) == 1)
        assert (await asked(stage)).status == 200


async def test_the_method_is_the_plain_rpcs(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        assert CHAT == "/onegate.router.v1.ChatService/Chat"
        await asked(stage)
        assert stage.router.requests[0].native.dialect == chat_pb2.DIALECT_OPENAI_CHAT


def test_typed_models_are_forgotten_in_time_and_in_number() -> None:
    clock = SteppedClock()
    models = TypedModels(clock)
    models.add("a")
    assert "a" in models
    assert "b" not in models
    clock.passed_s = 61
    assert "a" not in models
    for index in range(2000):
        models.add(f"m{index}")
    assert "m0" not in models
    assert "m1999" in models
