"""The relay's protocol, with a peer on the other end that is not ours: what may be said, and what
becomes of who says anything else.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from onegate.common.v1 import error_pb2
from onegate.common.v1.relay_service_pb2 import RelayRequest, RelayResponse
from runtime.config import RpcSettings
from runtime.errors import GatewayError
from runtime.relay_frames import (
    CANCEL,
    CREDIT,
    CREDIT_STEP_BYTES,
    DATA,
    END,
    LARGE_AT_ONCE,
    PART,
    PAYLOAD_OVERHEAD_BYTES,
    WINDOW_BYTES,
)
from tests.runtime.calls_raw import (
    frames_until,
    hear_nothing,
    opening,
    raw_server,
    raw_stream,
    relay_pool_of,
)
from tests.runtime.calls_transports import (
    Seen,
    collect,
    handlers,
    keep_the_loop,
    loop_of_the_module,
    opened,
    refusal,
    relay_pool,
    serving,
    until,
)

pytestmark = pytest.mark.anyio

# gRPC hands late events to the loop that asked for them: one loop outlives the tests of a module.
anyio_backend = pytest.fixture(scope="module")(loop_of_the_module)
one_loop = pytest.fixture(scope="module", autouse=True)(keep_the_loop)

SETTINGS = RpcSettings()


@pytest.fixture
def target(tmp_path: Path) -> str:
    return f"unix:{tmp_path / 'one.sock'}"


async def test_a_server_that_ends_a_stream_early_fails_its_calls(target: str) -> None:
    async def leave(_requests: object, context: Any) -> None:
        await context.send_initial_metadata(())
        await context.read()

    async with relay_pool_of(target) as pool, raw_server(target, leave):
        await until(lambda: pool.ready, "the target is up")
        error = await refusal(opened(pool, "Echo", b"x"))
        assert error.reason == error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE


async def test_a_server_that_sends_more_than_the_credit_loses_the_call(target: str) -> None:
    async def flood(_requests: object, context: Any) -> None:
        await context.send_initial_metadata(())
        opening = RelayRequest.FromString(await context.read()).frames[0]
        batch = RelayResponse()
        for _ in range(3):
            batch.frames.add(call=opening.call, kind=DATA, payload=bytes(WINDOW_BYTES))
        await context.write(batch.SerializeToString())
        dropped = RelayRequest.FromString(await context.read()).frames[0]
        assert (dropped.call, dropped.kind) == (opening.call, CANCEL)
        seen.release.set()
        await asyncio.Event().wait()

    seen = Seen()
    async with relay_pool_of(target) as pool, raw_server(target, flood):
        await until(lambda: pool.ready, "the target is up")
        error = await refusal(opened(pool, "Echo", b"x"))
        assert error.reason == error_pb2.ERROR_REASON_INTERNAL
        async with asyncio.timeout(2):
            await seen.release.wait()


def twice(number: int) -> RelayRequest:
    batch = opening(number, "Hold")
    batch.frames.add().CopyFrom(batch.frames[0])
    return batch


def without_credit() -> RelayRequest:
    batch = opening(1, "Deaf")
    for _ in range(3):
        batch.frames.add(call=1, kind=DATA, payload=bytes(WINDOW_BYTES))
    return batch


def backwards() -> RelayRequest:
    batch = opening(1, "Hold")
    batch.frames.add(call=1, kind=END)
    return batch


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xff\xff not a batch",
        opening(0, "Echo").SerializeToString(),
        twice(7).SerializeToString(),
        without_credit().SerializeToString(),
        backwards().SerializeToString(),
    ],
    ids=["garbage", "number 0", "number taken", "no credit", "END from the caller"],
)
async def test_a_client_that_breaks_the_protocol_loses_its_stream_and_harms_no_other(
    target: str, raw: bytes
) -> None:
    seen = Seen()
    async with serving(target, SETTINGS, handlers(seen)), relay_pool(SETTINGS, target) as pool:
        held = opened(pool, "Hold")
        assert await held.receive() == b"held"
        async with raw_stream(target) as stream:
            await stream.write(raw)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await frames_until(stream, lambda _: False)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await until(lambda: seen.running == 1, "its handlers are gone")
        seen.release.set()
        assert await collect(held) == [b"released"]


async def test_frames_for_a_call_that_is_over_are_ignored(target: str) -> None:
    async with (
        serving(target, SETTINGS, handlers(Seen())),
        raw_stream(target) as stream,
    ):
        await stream.write(opening(1, "Echo", b"x").SerializeToString())
        frames = await frames_until(stream, lambda frame: frame.kind == END)
        batch = RelayRequest()
        for number in (1, 99):
            batch.frames.add(call=number, kind=CREDIT, credit_bytes=10)
            batch.frames.add(call=number, kind=DATA, payload=b"late")
            batch.frames.add(call=number, kind=CANCEL)
        batch.MergeFrom(opening(2, "Echo", b"y"))
        await stream.write(batch.SerializeToString())
        frames += await frames_until(stream, lambda frame: frame.kind == END)
        assert [(frame.call, frame.payload) for frame in frames] == [(1, b"x"), (2, b"y")]


async def test_the_server_itself_refuses_calls_beyond_the_limit(target: str) -> None:
    settings = RpcSettings(calls_max=3)
    async with serving(target, settings, handlers(Seen())), raw_stream(target) as stream:
        batch = RelayRequest()
        for number in range(1, 5):
            batch.MergeFrom(opening(number, "Hold"))
        await stream.write(batch.SerializeToString())
        frames = await frames_until(stream, lambda frame: frame.kind == END)
        ends = [(frame.call, frame.error.reason) for frame in frames if frame.kind == END]
        assert ends == [(4, error_pb2.ERROR_REASON_OVERLOADED)]


async def test_the_server_itself_ends_a_call_at_its_deadline(target: str) -> None:
    seen = Seen()
    async with serving(target, SETTINGS, handlers(seen)), raw_stream(target) as stream:
        batch = opening(1, "Hold")
        batch.frames[0].open.timeout_ms = 50
        await stream.write(batch.SerializeToString())
        *_, end = await frames_until(stream, lambda frame: frame.kind == END)
        assert end.error.reason == error_pb2.ERROR_REASON_DEADLINE_EXCEEDED
        await until(lambda: seen.cleaned_up == 1, "the handler has cleaned up")


async def test_a_client_that_says_no_more_still_gets_its_answers(target: str) -> None:
    seen = Seen()
    async with serving(target, SETTINGS, handlers(seen)), raw_stream(target) as stream:
        await stream.write(opening(1, "Hold").SerializeToString())
        await stream.done_writing()
        await frames_until(stream, lambda frame: frame.payload == b"held")
        seen.release.set()
        await frames_until(stream, lambda frame: frame.payload == b"released")
        assert not await stream.read()


async def test_a_client_that_breaks_off_takes_its_handlers_with_it(target: str) -> None:
    seen = Seen()
    async with serving(target, SETTINGS, handlers(seen)):
        async with raw_stream(target) as stream:
            for number in range(1, 4):
                await stream.write(opening(number, "Hold").SerializeToString())
            await until(lambda: seen.running == 3, "the handlers run")
        await until(lambda: seen.cleaned_up == 3, "the handlers have cleaned up")


async def test_parts_of_a_request_that_is_given_up_are_forgotten(target: str) -> None:
    async with serving(target, SETTINGS, handlers(Seen())), raw_stream(target) as stream:
        batch = RelayRequest()
        for number in range(1, 3 * LARGE_AT_ONCE):
            batch.frames.add(call=number, kind=PART, payload=b"part")
            batch.frames.add(call=number, kind=CANCEL)
        batch.frames.add(call=99, kind=PART, payload=b"par")
        batch.MergeFrom(opening(99, "Echo", b"ty"))
        await stream.write(batch.SerializeToString())
        (frame,) = await frames_until(stream, lambda frame: frame.kind == END)
        assert (frame.call, frame.payload) == (99, b"party")


async def test_parts_of_an_answer_that_fails_are_forgotten(target: str) -> None:
    async def fail(_requests: object, context: Any) -> None:
        await context.send_initial_metadata(())
        while isinstance(raw := await context.read(), bytes):
            batch = RelayResponse()
            for frame in RelayRequest.FromString(raw).frames:
                batch.frames.add(call=frame.call, kind=PART, payload=b"part")
                error = GatewayError(error_pb2.ERROR_REASON_CONFLICT, "no").to_proto()
                batch.frames.add(call=frame.call, kind=END, error=error)
            await context.write(batch.SerializeToString())

    async with relay_pool_of(target) as pool, raw_server(target, fail):
        await until(lambda: pool.ready, "the target is up")
        for _ in range(3 * LARGE_AT_ONCE):
            with pytest.raises(GatewayError) as refused:
                await opened(pool, "Echo", b"x").receive()
            assert refused.value.reason == error_pb2.ERROR_REASON_CONFLICT


async def test_a_large_request_that_is_cancelled_leaves_the_queue(target: str) -> None:
    async with raw_server(target, hear_nothing), relay_pool(SETTINGS, target) as pool:
        calls = [opened(pool, "Echo", bytes(4 << 20)) for _ in range(6)]
        assert pool._ready[0].writer.queued_bytes == 24 << 20
        for call in calls:
            call.cancel()
        assert pool._ready[0].writer.queued_bytes == 0


async def test_a_large_answer_to_a_caller_that_leaves_leaves_the_queue(target: str) -> None:
    async with serving(target, SETTINGS, handlers(Seen())) as server, raw_stream(target) as stream:
        await stream.write(opening(1, "Script", b"[30000000]").SerializeToString())
        assert server._relay is not None
        (serving_stream,) = server._relay._streams
        await until(lambda: serving_stream.writer.large, "the answer is on its way")
        cancel = RelayRequest()
        cancel.frames.add(call=1, kind=CANCEL)
        await stream.write(cancel.SerializeToString())
        await until(lambda: not serving_stream.writer.large, "the answer is dropped", 2)


async def test_an_error_of_a_newer_peer_becomes_internal(target: str) -> None:
    async def fail(_requests: object, context: Any) -> None:
        await context.send_initial_metadata(())
        number = RelayRequest.FromString(await context.read()).frames[0].call
        batch = RelayResponse()
        frame = batch.frames.add(call=number, kind=END)
        frame.error.reason = error_pb2.ErrorReason.ValueType(9999)
        frame.error.message = "from the future"
        await context.write(batch.SerializeToString())
        await asyncio.Event().wait()

    async with relay_pool_of(target) as pool, raw_server(target, fail):
        await until(lambda: pool.ready, "the target is up")
        error = await refusal(opened(pool, "Echo", b"x"))
        assert error.reason == error_pb2.ERROR_REASON_INTERNAL
        assert error.message == "from the future"


async def test_credit_is_returned_when_it_is_read_and_not_for_short_calls(target: str) -> None:
    async with serving(target, SETTINGS, handlers(Seen())), raw_stream(target) as stream:
        batch = opening(1, "Dialogue", b"hello")
        await stream.write(batch.SerializeToString())
        frames = await frames_until(stream, lambda _: True)
        assert [(frame.kind, frame.payload) for frame in frames] == [(DATA, b"hello")]
        size = CREDIT_STEP_BYTES // 4
        again = RelayRequest()
        for payload in (*[b"x" * size] * 4, b"last"):
            again.frames.add(call=1, kind=DATA, payload=payload)
        await stream.write(again.SerializeToString())
        frames = await frames_until(stream, lambda frame: frame.payload == b"last")
        credit = [frame.credit_bytes for frame in frames if frame.kind == CREDIT]
        assert credit == [4 * (size + PAYLOAD_OVERHEAD_BYTES)]


async def test_a_pool_knows_how_late_its_targets_say_they_are(target: str) -> None:
    async def late(_requests: object, context: Any) -> None:
        await context.send_initial_metadata(())
        await context.write(RelayResponse(late_ms=70).SerializeToString())
        await asyncio.Event().wait()

    async with relay_pool_of(target) as pool, raw_server(target, late):
        await until(lambda: pool.late_s == 0.07, "the target has said it")
        await until(lambda: pool.late_s == 0, "its word is old")


async def test_a_server_says_how_late_it_is(target: str) -> None:
    async with serving(target, SETTINGS, handlers(Seen())), raw_stream(target) as stream:
        late_ms = 0
        async with asyncio.timeout(20):
            for number in range(1, 1000):
                time.sleep(0.1)  # noqa: ASYNC251 - a loop that is held up is what is told
                await stream.write(opening(number, "Echo", b"x").SerializeToString())
                raw = await stream.read()
                assert isinstance(raw, bytes)
                late_ms = RelayResponse.FromString(raw).late_ms
                if late_ms:
                    break
        assert late_ms >= 10
