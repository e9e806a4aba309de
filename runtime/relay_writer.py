"""The sending half of a relay stream: gathers the frames of all calls into batches.

Knows nothing of gRPC, nor of what a call is. Every frame of every call passes through here, so it
makes no task, timer or future per frame.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeAlias, cast

from onegate.common.v1 import error_pb2, relay_service_pb2
from onegate.common.v1.relay_service_pb2 import RelayResponse
from runtime.clock import Clock
from runtime.config import RpcSettings
from runtime.lateness import Lateness
from runtime.relay_frames import (
    BATCH_BYTES_MAX,
    BATCH_FRAMES_MAX,
    END,
    LARGE_AT_ONCE,
    MESSAGE_OVERHEAD_BYTES,
    OPEN,
    PART,
    PART_BYTES,
    QUEUE_BYTES_MAX,
    Batch,
    Frame,
)

QUIET_FRAMES: Final = 1.25
"""So many frames in ``gather_s`` are no load, on the average of late: each goes at once."""

LATE_WINDOWS: Final = 25
"""What is "of late": an average that forgets over so many times ``gather_s``, so that calls which
come by chance at the same moment are not taken for load.
"""

BLOCKED_S: Final = 0.05
"""A write that takes longer waits for a peer that takes nothing."""

SETTLE_S: Final = 0.005

Kind: TypeAlias = relay_service_pb2.RelayFrameKind.ValueType


class NotWritten(Exception):  # noqa: N818 - an answer more than an error
    """Nothing of a batch went out: the stream was over before."""


@dataclass(slots=True, kw_only=True)
class Large:
    """A payload that goes in parts; the last of them is a frame of ``kind``."""

    number: int
    kind: Kind
    payload: bytes
    head: relay_service_pb2.RelayOpen | None
    error: error_pb2.Error | None = None
    """What an END after the payload says."""
    sent_bytes: int = 0

    def frame(self) -> Frame:
        """The whole payload in one frame, for a stream that has seen nothing of it."""
        return Frame(call=self.number, kind=self.kind, payload=self.payload, open=self.head)


class FrameWriter:
    """Gathers frames and writes them, one batch at a time.

    A frame queued on an idle stream goes out in the same turn of the event loop, with whatever
    else that turn queued. Under load, which is more than ``QUIET_FRAMES`` in ``gather_s`` seconds
    for a while, at least that time passes between two batches, so that the fixed cost of a message
    is shared by many calls.
    """

    __slots__ = (
        "_batch",
        "_batch_bytes_max",
        "_batch_type",
        "_bytes",
        "_clock",
        "_closing",
        "_frame_bytes",
        "_full",
        "_full_bytes",
        "_gather_s",
        "_in_flight",
        "_large_bytes",
        "_raw",
        "_sleeper",
        "_waiting",
        "add",
        "crowded",
        "large",
        "lateness",
        "loop",
        "part_bytes",
        "payload_bytes_max",
        "slow",
        "tails",
    )

    def __init__(self, batch_type: type[Batch], clock: Clock, settings: RpcSettings) -> None:
        self.loop = asyncio.get_running_loop()
        self.payload_bytes_max = settings.message_bytes_max - MESSAGE_OVERHEAD_BYTES
        self._batch_type = batch_type
        self.part_bytes = min(PART_BYTES, settings.message_bytes_max // 8)
        self._batch_bytes_max = min(BATCH_BYTES_MAX, settings.message_bytes_max // 4)
        self._frame_bytes = self._batch_bytes_max // BATCH_FRAMES_MAX
        self._clock = clock
        self._gather_s = settings.relay_gather_s
        self._full: deque[tuple[Batch, list[bytes], int]] = deque()
        self._in_flight: list[Large] = []
        self._sleeper: asyncio.Future[None] | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._closing = False
        self.large: dict[int, Large] = {}
        """Payloads that go in parts, by call: one a call, the oldest first."""
        self._full_bytes = 0
        self._large_bytes = 0
        self.crowded = False
        """So many full batches wait that senders should wait for :meth:`room`."""
        self.lateness: Lateness | None = None
        """What every batch says of how late this process is."""
        self.slow = False
        """Something is in the way of some senders: they ask before they send."""
        self._begin()

    @property
    def queued_bytes(self) -> int:
        """What waits in full batches and large payloads."""
        return self._full_bytes + self._large_bytes

    def _begin(self) -> None:
        """Starts an empty batch."""
        self._batch = self._batch_type()
        self._raw: list[bytes] = []
        self._bytes = 0
        self.add: Callable[..., Frame] = self._batch.frames.add
        self.tails: dict[int, Frame] = {}
        """Each call's last DATA frame in the batch that is being gathered."""

    def frame(self, size: int) -> Callable[..., Frame]:
        """What adds one frame with ``size`` bytes of content; to be called at once.

        Frames keep their order. ``size`` is at most ``part_bytes`` and some metadata. Makes room
        in a new batch if need be, and wakes the writer.
        """
        total = self._bytes + size + self._frame_bytes
        if total > self._batch_bytes_max and self._bytes:
            self._full.append((self._batch, self._raw, self._bytes))
            self._full_bytes += self._bytes
            self._begin()
            self._weigh()
            total = size + self._frame_bytes
        self._bytes = total
        if self._sleeper is not None:
            self._wake()
        return self.add

    def append(self, frame: bytes) -> None:
        """Adds one frame that is made already. It goes before what :meth:`frame` adds to the same
        batch, so that only a call's first frame may come this way.
        """
        self.frame(len(frame))
        self._raw.append(frame)

    def send_large(
        self,
        number: int,
        kind: Kind,
        payload: bytes,
        head: relay_service_pb2.RelayOpen | None = None,
    ) -> None:
        """Queues a payload of more than ``part_bytes``; further ones of the same call must wait
        until it is gone from ``large``.
        """
        self.large[number] = Large(number=number, kind=kind, payload=payload, head=head)
        self._large_bytes += len(payload)
        self._weigh()
        self._wake()

    def forget(self, number: int) -> None:
        """Sends no more of a call's large payload."""
        large = self.large.pop(number, None)
        if large is not None:
            self._large_bytes -= len(large.payload)
            self._weigh()

    def _weigh(self) -> None:
        """Something was queued or went away."""
        self.crowded = self._full_bytes >= QUEUE_BYTES_MAX
        self.slow = self.crowded or bool(self.large)
        if self._waiting and not self.crowded:
            self._release()

    def _wake(self) -> None:
        sleeper, self._sleeper = self._sleeper, None
        if sleeper is not None and not sleeper.done():
            sleeper.set_result(None)

    async def run(self, write: Callable[[bytes], Awaitable[object]]) -> None:
        """Writes batches until :meth:`close`; raises what ``write`` raises, which is
        :class:`NotWritten` when nothing of the batch went out.
        """
        gather_s, monotonic = self._gather_s, self._clock.monotonic
        late_s = LATE_WINDOWS * gather_s or math.inf
        busy = LATE_WINDOWS * QUIET_FRAMES
        began_s = -math.inf
        # Frames, each the less the longer ago.
        load = 0.0
        while True:
            while not (self._bytes or self._full or self.large):
                if self._closing:
                    return
                self._sleeper = self.loop.create_future()
                await self._sleeper
            now_s = monotonic()
            if load > busy and now_s - began_s < gather_s and not self._closing:
                await self._clock.sleep(gather_s - (now_s - began_s))
                now_s = monotonic()
            load *= math.exp((began_s - now_s) / late_s)
            began_s = now_s
            load += await self._write(write, now_s)
            while self._full:
                load += await self._write(write, monotonic())

    async def _write(self, write: Callable[[bytes], Awaitable[object]], now_s: float) -> int:
        """Writes the oldest batch; how many frames it had."""
        if self.large and not self._full:
            self._add_parts()
        batch, raw = self._take()
        lateness = self.lateness
        if lateness is not None and lateness.late_s >= 0.001:
            cast("RelayResponse", batch).late_ms = int(lateness.late_s * 1000)
        frames = len(batch.frames) + len(raw)
        message = batch.SerializeToString()
        if raw:
            # Messages put together are one message: its repeated fields follow each other.
            message = b"".join((*raw, message))
        try:
            await write(message)
        except NotWritten:
            self._full.appendleft((batch, raw, 0))
            raise
        if self._in_flight:
            self._in_flight = []
        if self._clock.monotonic() - now_s > BLOCKED_S:
            # What freed a blocked write may have been the end of the stream, which the reader
            # learns a moment later. Nothing more is handed over before that moment has passed.
            await self._clock.sleep(SETTLE_S)
        return frames

    def _add_parts(self) -> None:
        """Puts a part of each of the oldest large payloads into the batch."""
        for large in list(islice(self.large.values(), LARGE_AT_ONCE)):
            begin = large.sent_bytes
            part = large.payload[begin : begin + self.part_bytes]
            large.sent_bytes += len(part)
            if large.sent_bytes < len(large.payload):
                self.add(call=large.number, kind=PART, payload=part)
                continue
            last = self.add(call=large.number, kind=large.kind, payload=part)
            if large.head is not None:
                last.open.CopyFrom(large.head)
            if large.error is not None:
                self.add(call=large.number, kind=END, error=large.error)
            self._in_flight.append(large)
            self.forget(large.number)

    def _take(self) -> tuple[Batch, list[bytes]]:
        """The oldest batch: its messages, and the frames before them."""
        if not self._full:
            batch, raw = self._batch, self._raw
            self._begin()
            return batch, raw
        batch, raw, size = self._full.popleft()
        self._full_bytes -= size
        self._weigh()
        return batch, raw

    async def room(self) -> None:
        """Returns when the queue may have room again, or is given up."""
        waiter = self.loop.create_future()
        self._waiting.append(waiter)
        await waiter

    def _release(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """Lets :meth:`run` return once everything is written."""
        self._closing = True
        self._wake()

    def give_up(self) -> Iterator[Frame]:
        """Every frame whose call the peer cannot have heard of from it, in order: what was never
        handed to ``write``, large payloads whole. The queue is empty then.
        """
        batches = []
        for batch, raw, _ in (*self._full, (self._batch, self._raw, 0)):
            batches += [self._batch_type.FromString(b"".join(raw)), batch]
        whole = {large.number: large for large in self._in_flight if large.kind == OPEN}
        larges = list(self.large.values())
        self._full.clear()
        self.large.clear()
        self._full_bytes = self._large_bytes = 0
        self._begin()
        self._weigh()
        for batch in batches:
            for frame in batch.frames:
                if frame.kind == OPEN and frame.call in whole:
                    frame.payload = whole[frame.call].payload
                if frame.kind != PART:
                    yield frame
        for large in larges:
            yield large.frame()
