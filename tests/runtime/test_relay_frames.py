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

from onegate.common.v1.relay_service_pb2 import (
    RelayFrame,
    RelayOpen,
    RelayRequest,
    RelayResponse,
)
from runtime.calls import ServerCall
from runtime.clock import SystemClock
from runtime.config import RpcSettings
from runtime.relay_frames import (
    BATCH_BYTES_MAX,
    BATCH_FRAMES_MAX,
    CANCEL,
    CREDIT,
    DATA,
    END,
    LARGE_AT_ONCE,
    OPEN,
    PART,
    PART_BYTES,
    PAYLOAD_OVERHEAD_BYTES,
    QUEUE_BYTES_MAX,
    WINDOW_BYTES,
    open_field,
    open_frame,
)
from runtime.relay_server import RelayServer
from runtime.relay_stream import Assembly, RelayProtocolError
from runtime.relay_writer import FrameWriter, NotWritten

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


sizes = st.lists(st.one_of(st.integers(0, 40_000), st.integers(0, 400_000)), max_size=6)
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
        batch.frames.add(call=number, kind=CREDIT, credit_bytes=10_000_000)
    wire.incoming.put_nowait(batch.SerializeToString())
    wire.incoming.put_nowait(grpc.aio.EOF)
    async with asyncio.timeout(5):
        await serving
    return wire


def assembled(frames: list[RelayFrame]) -> list[RelayFrame]:
    """The frames with their whole payloads, without the parts."""
    assembly = Assembly(1 << 20)
    found = []
    for frame in frames:
        if frame.kind == PART:
            assembly.add(frame.call, frame.payload)
            continue
        copy = RelayFrame()
        copy.CopyFrom(frame)
        copy.payload = assembly.whole(frame.call, frame.payload)
        found.append(copy)
    return found


def check_credit(frames: list[RelayFrame], granted: dict[int, int]) -> None:
    """A payload was begun only while there was credit."""
    spent: dict[int, int] = defaultdict(int)
    for frame in assembled(frames):
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
        frames = assembled([frame for frame in wire.frames if frame.call == number])
        ends = [at for at, frame in enumerate(frames) if frame.kind == END]
        payloads = [frame.payload for frame in frames if frame.kind == DATA or frame.payload]
        expected = [bytes([at % 256]) * size for at, size in enumerate(wanted)]
        if number in cancelled:
            assert payloads == expected[: len(payloads)]
            assert len(ends) <= 1
        else:
            assert payloads == expected
            assert ends == [len(frames) - 1]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, PART_BYTES), max_size=30), st.integers(0, 1500))
def test_batches_keep_the_order_and_stay_small(payload_sizes: list[int], small: int) -> None:
    wanted = [*payload_sizes, *[1] * small]

    async def gather() -> list[bytes]:
        writer, written = recording()
        for number, size in enumerate(wanted):
            writer.frame(size)(call=number, kind=DATA, payload=bytes(size))
        writer.close()
        await writer.run(written.write)
        return written.batches

    batches = [RelayRequest.FromString(raw).frames for raw in asyncio.run(gather())]
    frames = [frame for batch in batches for frame in batch]
    assert [(frame.call, len(frame.payload)) for frame in frames] == list(enumerate(wanted))
    for batch in batches:
        assert len(batch) <= BATCH_FRAMES_MAX
        assert sum(len(frame.payload) for frame in batch) <= BATCH_BYTES_MAX


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(PART_BYTES + 1, 5 * PART_BYTES), max_size=8),
    st.lists(st.integers(0, 1000), max_size=8),
)
def test_large_payloads_take_turns_and_small_frames_do_not_wait_for_them(
    large_sizes: list[int], small_sizes: list[int]
) -> None:
    larges = [bytes([65 + at]) * size for at, size in enumerate(large_sizes)]

    async def gather() -> list[bytes]:
        writer, written = recording()
        for number, payload in enumerate(larges, 1):
            writer.send_large(number, DATA, payload)
        for number, size in enumerate(small_sizes, 101):
            writer.frame(size)(call=number, kind=DATA, payload=bytes(size))
        writer.close()
        await writer.run(written.write)
        assert writer.queued_bytes == 0
        return written.batches

    batches = [RelayRequest.FromString(raw).frames for raw in asyncio.run(gather())]
    if batches:
        first = [frame.call for frame in batches[0]]
        assert first == [*range(101, 101 + len(small_sizes)), *range(1, len(larges) + 1)[:4]]
    assembly = Assembly(8 * PART_BYTES)
    whole: dict[int, bytes] = {}
    for frame in (frame for batch in batches for frame in batch):
        if frame.kind == PART:
            assembly.add(frame.call, frame.payload)
        else:
            whole[frame.call] = assembly.whole(frame.call, frame.payload)
    assert not assembly.parts
    assert [whole[number] for number in range(1, len(larges) + 1)] == larges


@pytest.mark.parametrize(
    "parts",
    [
        [(number, 1) for number in range(LARGE_AT_ONCE + 1)],
        [(1, 500), (1, 501)],
    ],
)
def test_more_of_large_payloads_than_is_allowed_is_refused(parts: list[tuple[int, int]]) -> None:
    assembly = Assembly(1000)
    for number, size in parts[:-1]:
        assembly.add(number, bytes(size))
    with pytest.raises(RelayProtocolError):
        assembly.add(parts[-1][0], bytes(parts[-1][1]))


class Recording:
    """Where a writer writes."""

    def __init__(self) -> None:
        self.batches: list[bytes] = []

    async def write(self, raw: bytes) -> None:
        self.batches.append(raw)


def recording() -> tuple[FrameWriter, Recording]:
    return FrameWriter(RelayRequest, SystemClock(), SETTINGS), Recording()


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
    writer = FrameWriter(RelayRequest, SystemClock(), RpcSettings(relay_gather_s=0.4))
    written = await timed(writer, [(0, 40), (0.01, 3), (0.02, 5), (1.0, 1)])
    assert [frames for _, frames in written] == [40, 8, 1]
    times = [at_s for at_s, _ in written]
    assert times[0] < 0.2
    assert times[1] - times[0] >= 0.395
    assert times[2] < 1.2


@pytest.mark.anyio
async def test_a_few_frames_go_at_once_each() -> None:
    writer = FrameWriter(RelayRequest, SystemClock(), RpcSettings(relay_gather_s=0.4))
    written = await timed(writer, [(0, 1), (0.02, 2), (0.04, 1)])
    assert [frames for _, frames in written] == [1, 2, 1]
    assert written[-1][0] < 0.3


@pytest.mark.anyio
async def test_bursts_that_come_seldom_are_no_load() -> None:
    writer = FrameWriter(RelayRequest, SystemClock(), RpcSettings(relay_gather_s=0.4))
    written = await timed(writer, [(0, 8), (0.02, 8), (0.04, 8)])
    assert [frames for _, frames in written] == [8, 8, 8]
    assert written[-1][0] < 0.3


@pytest.mark.anyio
async def test_a_batch_that_was_not_written_is_given_back_with_what_came_after() -> None:
    async def refuse(_raw: bytes) -> None:
        raise NotWritten

    writer = FrameWriter(RelayRequest, SystemClock(), SETTINGS)
    writer.frame(10)(call=1, kind=DATA, payload=b"first")
    writer.send_large(2, OPEN, b"n" * (PART_BYTES + 1), RelayOpen(method="large"))
    writer.send_large(3, OPEN, b"s" * (3 * PART_BYTES), RelayOpen(method="larger"))
    with pytest.raises(NotWritten):
        await writer.run(refuse)
    with pytest.raises(NotWritten):
        await writer.run(refuse)
    writer.frame(30)(call=4, kind=DATA, payload=b"late")
    given_back = [(frame.call, frame.open.method, len(frame.payload)) for frame in writer.give_up()]
    assert given_back == [
        (1, "", 5),
        (4, "", 4),
        (2, "large", PART_BYTES + 1),
        (3, "larger", 3 * PART_BYTES),
    ]
    assert list(writer.give_up()) == []


@pytest.mark.anyio
async def test_a_large_payload_whose_last_part_was_not_written_is_given_back_whole() -> None:
    written: list[bytes] = []

    async def write_once(raw: bytes) -> None:
        if written:
            raise NotWritten
        written.append(raw)

    writer = FrameWriter(RelayRequest, SystemClock(), SETTINGS)
    payload = b"n" * PART_BYTES + b"m"
    writer.send_large(2, OPEN, payload, RelayOpen(method="large"))
    with pytest.raises(NotWritten):
        await writer.run(write_once)
    (frame,) = writer.give_up()
    assert (frame.kind, frame.payload, frame.open.method) == (OPEN, payload, "large")


@pytest.mark.anyio
async def test_senders_wait_while_the_peer_takes_nothing() -> None:
    gate = asyncio.Event()

    async def write(_raw: bytes) -> None:
        await gate.wait()

    writer = FrameWriter(RelayRequest, SystemClock(), SETTINGS)
    writing = asyncio.create_task(writer.run(write))
    for _ in range(100):
        writer.frame(100_000)(call=1, kind=DATA, payload=bytes(100_000))
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


@pytest.mark.parametrize("number", [1, 127, 128, 16_383, 16_384, 2**32 - 1])
@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, 70_000])
def test_a_ready_made_open_frame_is_the_message(number: int, size: int) -> None:
    head = RelayOpen(method="/a/B", timeout_ms=600_000, credit_bytes=7, metadata={"k": "ü"})
    payload = bytes(size)
    batch = RelayRequest.FromString(open_frame(number, payload, open_field(head)))
    assert list(batch.frames) == [RelayFrame(call=number, kind=OPEN, payload=payload, open=head)]


@pytest.mark.anyio
async def test_ready_made_frames_are_written_with_the_others_and_given_up_in_order() -> None:
    writer, _ = recording()
    opening = open_field(RelayOpen(method="/a/B"))
    for number in (1, 2):
        writer.append(open_frame(number, b"p", opening))
        writer.frame(1)(call=number, kind=DATA, payload=b"x")
    given_up = [(frame.call, frame.kind) for frame in writer.give_up()]
    assert given_up == [(1, OPEN), (2, OPEN), (1, DATA), (2, DATA)]
    assert list(writer.give_up()) == []
