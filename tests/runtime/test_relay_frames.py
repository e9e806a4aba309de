"""Properties of the relay's frames, without a network: whatever is interleaved, each call keeps
its order, its credit and exactly one end.
"""

import asyncio
import json
from collections import defaultdict
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onegate.common.v1.relay_service_pb2 import RelayFrame, RelayRequest, RelayResponse
from runtime.calls import ServerCall
from runtime.clock import SystemClock
from runtime.config import RpcSettings
from runtime.relay_server import RelayServer
from runtime.relay_stream import (
    BATCH_BYTES_MAX,
    BATCH_FRAMES_MAX,
    CANCEL,
    CREDIT,
    DATA,
    END,
    OPEN,
    PAYLOAD_OVERHEAD_BYTES,
    QUEUE_BYTES_MAX,
    WINDOW_BYTES,
    FrameWriter,
    NotWritten,
)

SETTINGS = RpcSettings(relay_gather_s=0)
METHOD = "/onegate.test.v1.TestService/Script"


class Wire:
    """A stream's context with a test at the other end."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.frames: list[RelayFrame] = []

    async def send_initial_metadata(self, _metadata: object) -> None:
        """Goes nowhere."""

    async def read(self) -> Any:
        return await self.incoming.get()

    async def write(self, raw: bytes) -> None:
        self.frames += RelayResponse.FromString(raw).frames

    async def settle(self) -> None:
        """Lets the other side do all it can."""
        for _ in range(20):
            await asyncio.sleep(0)


async def script(call: ServerCall) -> None:
    for number, size in enumerate(json.loads(call.request)):
        await call.send(bytes([number % 256]) * size)


sizes = st.lists(st.integers(0, 40_000), max_size=6)
calls = st.integers(1, 4)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("credit"), calls, st.integers(1, 100_000)),
        st.tuples(st.just("cancel"), calls, st.just(0)),
        st.tuples(st.just("flush"), calls, st.just(0)),
    ),
    max_size=25,
)


async def play(scripts: list[list[int]], steps: list[tuple[str, int, int]], window: int) -> Wire:
    """Opens a call for each script, then plays the steps, then grants what is still needed."""
    wire = Wire()
    server = RelayServer({METHOD: script}, SETTINGS, SystemClock())
    context: Any = wire
    serving = asyncio.create_task(server.serve(None, context))
    batch = RelayRequest()
    granted = dict.fromkeys(range(1, len(scripts) + 1), window)
    for number, wanted in enumerate(scripts, 1):
        frame = batch.frames.add(call=number, kind=OPEN, payload=json.dumps(wanted).encode())
        frame.open.method = METHOD
        frame.open.credit_bytes = window
    for step, number, amount in [*steps, ("flush", 0, 0)]:
        if step == "credit":
            batch.frames.add(call=number, kind=CREDIT, credit_bytes=amount)
            if number in granted:
                granted[number] += amount
        elif step == "cancel":
            batch.frames.add(call=number, kind=CANCEL)
        else:
            wire.incoming.put_nowait(batch.SerializeToString())
            batch = RelayRequest()
            await wire.settle()
            check_credit(wire.frames, granted)
    for number in granted:
        batch.frames.add(call=number, kind=CREDIT, credit_bytes=1_000_000)
    wire.incoming.put_nowait(batch.SerializeToString())
    wire.incoming.put_nowait(grpc.aio.EOF)
    async with asyncio.timeout(5):
        await serving
    return wire


def check_credit(frames: list[RelayFrame], granted: dict[int, int]) -> None:
    """A payload was begun only while there was credit."""
    spent: dict[int, int] = defaultdict(int)
    for frame in frames:
        if frame.kind == DATA or frame.payload:
            assert spent[frame.call] < granted[frame.call]
            spent[frame.call] += len(frame.payload) + PAYLOAD_OVERHEAD_BYTES


@settings(deadline=None, max_examples=150)
@given(st.lists(sizes, min_size=1, max_size=4), actions, st.sampled_from([0, 1, WINDOW_BYTES]))
def test_however_frames_interleave_each_call_keeps_order_credit_and_one_end(
    scripts: list[list[int]], steps: list[tuple[str, int, int]], window: int
) -> None:
    wire = asyncio.run(play(scripts, steps, window))
    cancelled = {number for step, number, _ in steps if step == "cancel"}
    for number, wanted in enumerate(scripts, 1):
        frames = [frame for frame in wire.frames if frame.call == number]
        ends = [at for at, frame in enumerate(frames) if frame.kind == END]
        payloads = [frame.payload for frame in frames if frame.kind == DATA or frame.payload]
        expected = [bytes([at % 256]) * size for at, size in enumerate(wanted)]
        if number in cancelled:
            assert payloads == expected[: len(payloads)]
            assert len(ends) <= 1
        else:
            assert payloads == expected
            assert ends == [len(frames) - 1]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 3 << 20), max_size=12), st.integers(0, 1500))
def test_batches_keep_the_order_and_stay_small_but_for_a_large_payload(
    payload_sizes: list[int], small: int
) -> None:
    written: list[bytes] = []

    async def write(raw: bytes) -> None:
        written.append(raw)

    async def gather() -> int:
        writer = FrameWriter(RelayRequest, SystemClock(), SETTINGS)
        number = 0
        for size in [*payload_sizes, *[1] * small]:
            number += 1
            writer.frame(size)(call=number, kind=DATA, payload=bytes(size))
        writer.close()
        await writer.run(write)
        assert writer.queued_bytes == 0
        return number

    count = asyncio.run(gather())
    batches = [RelayRequest.FromString(raw).frames for raw in written]
    assert [frame.call for batch in batches for frame in batch] == list(range(1, count + 1))
    for batch in batches:
        assert len(batch) <= BATCH_FRAMES_MAX
        assert len(batch) == 1 or sum(len(frame.payload) for frame in batch) <= BATCH_BYTES_MAX


async def timed(writer: FrameWriter, bursts: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """Queues so many frames at such times; when each batch went, and how many frames it had."""
    clock = SystemClock()
    written: list[tuple[float, int]] = []
    began = clock.monotonic()

    async def write(raw: bytes) -> None:
        frames = len(RelayRequest.FromString(raw).frames)
        written.append((round(clock.monotonic() - began, 3), frames))

    writing = asyncio.create_task(writer.run(write))
    await asyncio.sleep(0)
    for at_s, frames in bursts:
        await asyncio.sleep(max(at_s - (clock.monotonic() - began), 0))
        for _ in range(frames):
            writer.frame(1)(call=1, kind=DATA, payload=b"x")
    await asyncio.sleep(0.15)
    writer.close()
    await writing
    return written


@pytest.mark.anyio
async def test_under_load_batches_keep_their_distance_and_the_first_goes_at_once() -> None:
    writer = FrameWriter(RelayRequest, SystemClock(), RpcSettings(relay_gather_s=0.1))
    written = await timed(writer, [(0, 6), (0.01, 3), (0.02, 5), (0.3, 1)])
    assert [frames for _, frames in written] == [6, 8, 1]
    times = [at_s for at_s, _ in written]
    assert times[0] < 0.02
    assert times[1] - times[0] >= 0.095
    assert times[2] < 0.35


@pytest.mark.anyio
async def test_a_few_frames_go_at_once_each() -> None:
    writer = FrameWriter(RelayRequest, SystemClock(), RpcSettings(relay_gather_s=0.1))
    written = await timed(writer, [(0, 1), (0.01, 2), (0.02, 1)])
    assert [frames for _, frames in written] == [1, 2, 1]
    assert written[-1][0] < 0.06


@pytest.mark.anyio
async def test_a_batch_that_was_not_written_is_given_back_with_what_came_after() -> None:
    async def refuse(_raw: bytes) -> None:
        raise NotWritten

    writer = FrameWriter(RelayRequest, SystemClock(), SETTINGS)
    for size in (10, 2 << 20, 20):
        writer.frame(size)(call=size, kind=DATA, payload=bytes(size))
    with pytest.raises(NotWritten):
        await writer.run(refuse)
    writer.frame(30)(call=30, kind=DATA, payload=b"late")
    assert [frame.call for frame in writer.give_up()] == [10, 2 << 20, 20, 30]
    assert list(writer.give_up()) == []


@pytest.mark.anyio
async def test_senders_wait_while_the_peer_takes_nothing() -> None:
    gate = asyncio.Event()

    async def write(_raw: bytes) -> None:
        await gate.wait()

    writer = FrameWriter(RelayRequest, SystemClock(), SETTINGS)
    writing = asyncio.create_task(writer.run(write))
    for _ in range(10):
        writer.frame(1 << 20)(call=1, kind=DATA, payload=bytes(1 << 20))
    assert writer.crowded
    waiting = asyncio.create_task(writer.room())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    gate.set()
    async with asyncio.timeout(5):
        await waiting
    assert writer.queued_bytes < QUEUE_BYTES_MAX
    writer.close()
    await writing
