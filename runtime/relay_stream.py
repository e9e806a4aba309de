"""What both ends of a relay stream share: gathering frames into batches, and one call's flow
control and deadline.

Nothing here knows gRPC, methods or payloads; ``relay.py`` is the calling end, ``relay_server.py``
the serving one. The protocol is told in ``docs/relay.md``. Every frame of every call passes
through this module, so it makes no task, timer or future per frame: a future only where somebody
waits, one timer for all deadlines of a stream.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Final, Generic, TypeVar

from onegate.common.v1 import error_pb2, relay_service_pb2
from runtime.clock import Clock
from runtime.config import RpcSettings
from runtime.errors import GatewayError

WINDOW_BYTES: Final = 64 * 1024
"""How much a side may send on a call before it needs credit. A payload may start while any credit
is left, so at most this and one payload wait unread.
"""
CREDIT_STEP_BYTES: Final = 32 * 1024
"""How much a reader takes before it returns credit: half a window, so that a sender which the
reader keeps up with never stops, and a short call needs no CREDIT frame at all.
"""
PAYLOAD_OVERHEAD_BYTES: Final = 32
"""What a payload costs beside its own bytes, so that empty ones are not free to pile up."""

BATCH_BYTES_MAX: Final = 1 << 20
"""The most bytes in a batch of several frames; a larger payload goes alone."""
BATCH_FRAMES_MAX: Final = 512
"""The most frames in a batch: what the peer handles without a pause."""
QUEUE_BYTES_MAX: Final = 8 << 20
"""Senders wait while so much is queued: the peer, or the network, takes nothing."""

QUIET_FRAMES: Final = 4
"""So many frames in ``gather_s`` are no load: each goes at once."""

BLOCKED_S: Final = 0.005
"""A write that takes longer waited for the peer."""

DEADLINE_TICK_S: Final = 0.005
"""How late a deadline may be noticed."""

MESSAGE_OVERHEAD_BYTES: Final = 1024
"""What a batch of one payload needs beside the payload and its metadata."""

RELAY_SERVICE: Final = "onegate.common.v1.RelayService"
RELAY_METHOD: Final = f"/{RELAY_SERVICE}/Relay"

OPEN: Final = relay_service_pb2.RELAY_FRAME_KIND_OPEN
DATA: Final = relay_service_pb2.RELAY_FRAME_KIND_DATA
CREDIT: Final = relay_service_pb2.RELAY_FRAME_KIND_CREDIT
END: Final = relay_service_pb2.RELAY_FRAME_KIND_END
CANCEL: Final = relay_service_pb2.RELAY_FRAME_KIND_CANCEL
DRAIN: Final = relay_service_pb2.RELAY_FRAME_KIND_DRAIN

_FRAME_BYTES: Final = BATCH_BYTES_MAX // BATCH_FRAMES_MAX

Frame = relay_service_pb2.RelayFrame
Batch = relay_service_pb2.RelayRequest | relay_service_pb2.RelayResponse


class NotWritten(Exception):  # noqa: N818 - an answer more than an error
    """Nothing of a batch went out: the stream was over before."""


class FrameWriter:
    """Gathers frames and writes them, one batch at a time.

    A frame queued on an idle stream goes out in the same turn of the event loop, with whatever
    else that turn queued. Under load, which is more than ``QUIET_FRAMES`` in ``gather_s`` seconds,
    at least that time passes between two batches, so that the fixed cost of a message is shared
    by many calls.
    """

    __slots__ = (
        "_batch",
        "_batch_type",
        "_bytes",
        "_clock",
        "_closing",
        "_full",
        "_gather_s",
        "_sleeper",
        "_waiting",
        "add",
        "crowded",
        "loop",
        "payload_bytes_max",
        "queued_bytes",
        "tails",
    )

    def __init__(self, batch_type: type[Batch], clock: Clock, settings: RpcSettings) -> None:
        self.loop = asyncio.get_running_loop()
        self._batch_type = batch_type
        self._clock = clock
        self._gather_s = settings.relay_gather_s
        self.payload_bytes_max = settings.message_bytes_max - MESSAGE_OVERHEAD_BYTES
        self._full: deque[tuple[Batch, int]] = deque()
        self._sleeper: asyncio.Future[None] | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._closing = False
        self.crowded = False
        """So much is queued that senders should wait for :meth:`room`."""
        self.queued_bytes = 0
        """What waits in full batches."""
        self._begin()

    def _begin(self) -> None:
        """Starts an empty batch."""
        self._batch = self._batch_type()
        self._bytes = 0
        self.add: Callable[..., Frame] = self._batch.frames.add
        self.tails: dict[int, Frame] = {}
        """Each call's last DATA frame in the batch that is being gathered."""

    def frame(self, size: int) -> Callable[..., Frame]:
        """What adds one frame with ``size`` bytes of content; to be called at once.

        Frames keep their order. The caller sees to it that ``size`` is under the message maximum.
        """
        total = self._bytes + size + _FRAME_BYTES
        if total > BATCH_BYTES_MAX and self._bytes:
            self._full.append((self._batch, self._bytes))
            self.queued_bytes += self._bytes
            self.crowded = self.queued_bytes >= QUEUE_BYTES_MAX
            self._begin()
            total = size + _FRAME_BYTES
        self._bytes = total
        if self._sleeper is not None:
            self._wake()
        return self.add

    def _wake(self) -> None:
        sleeper, self._sleeper = self._sleeper, None
        if sleeper is not None and not sleeper.done():
            sleeper.set_result(None)

    async def run(self, write: Callable[[bytes], Awaitable[object]]) -> None:
        """Writes batches until :meth:`close`; raises what ``write`` raises, which is
        :class:`NotWritten` when nothing of the batch went out.
        """
        gather_s = self._gather_s
        began_s = -math.inf
        # Frames of late, beyond what would have been quiet.
        load = 0.0
        while True:
            while not (self._bytes or self._full):
                if self._closing:
                    return
                self._sleeper = self.loop.create_future()
                await self._sleeper
            passed_s = self._clock.monotonic() - began_s
            if passed_s < gather_s:
                load = max(load - QUIET_FRAMES * passed_s / gather_s, 0.0)
                if load > QUIET_FRAMES and not self._closing:
                    await self._clock.sleep(gather_s - passed_s)
            else:
                load = 0.0
            began_s = self._clock.monotonic()
            load += await self._write(write)
            while self._full:
                load += await self._write(write)

    async def _write(self, write: Callable[[bytes], Awaitable[object]]) -> int:
        """Writes the oldest batch; how many frames it had."""
        batch = self._take()
        frames = len(batch.frames)
        began_s = self._clock.monotonic()
        try:
            await write(batch.SerializeToString())
        except NotWritten:
            self._full.appendleft((batch, 0))
            raise
        if self._clock.monotonic() - began_s > BLOCKED_S:
            # What freed a blocked write may have been the end of the stream, which the reader
            # learns a moment later. Nothing more is handed over before that moment has passed.
            await self._clock.sleep(BLOCKED_S)
        return frames

    def _take(self) -> Batch:
        """The oldest batch."""
        if not self._full:
            batch = self._batch
            self._begin()
            return batch
        batch, size = self._full.popleft()
        self.queued_bytes -= size
        self.crowded = self.queued_bytes >= QUEUE_BYTES_MAX
        if not self.crowded:
            self._release()
        return batch

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
        """Every frame that was never handed to ``write``, in order; the queue is empty then."""
        batches = [batch for batch, _ in self._full]
        batches.append(self._batch)
        self._full.clear()
        self.queued_bytes = 0
        self.crowded = False
        self._begin()
        self._release()
        return (frame for batch in batches for frame in batch.frames)


class Leg:
    """One call as one side of the stream sees it: payloads that came in and were not read yet,
    and how much may still be sent.
    """

    __slots__ = (
        "_consumed_bytes",
        "_reader",
        "_room_bytes",
        "_sender",
        "credit_bytes",
        "deadline_s",
        "ended",
        "error",
        "inbox",
        "number",
        "writer",
    )

    def __init__(
        self, writer: FrameWriter, number: int, credit_bytes: int, deadline_s: float
    ) -> None:
        self.writer = writer
        self.number = number
        self.credit_bytes = credit_bytes
        self.deadline_s = deadline_s
        self.inbox: deque[bytes] = deque()
        self.ended = False
        self.error: GatewayError | None = None
        self._room_bytes = WINDOW_BYTES
        self._consumed_bytes = 0
        self._reader: asyncio.Future[None] | None = None
        self._sender: asyncio.Future[None] | None = None

    async def receive(self) -> bytes | None:
        """The next payload, ``None`` after the last; raises the call's error after the last.

        For one reader at a time.
        """
        inbox = self.inbox
        while not inbox:
            if self.ended:
                if self.error is not None:
                    raise self.error
                return None
            if self._reader is not None:
                raise RuntimeError("two tasks read the same call")
            self._reader = reader = self.writer.loop.create_future()
            try:
                await reader
            finally:
                self._reader = None
        payload = inbox.popleft()
        consumed = self._consumed_bytes + len(payload) + PAYLOAD_OVERHEAD_BYTES
        if consumed >= CREDIT_STEP_BYTES and not self.ended:
            self._room_bytes += consumed
            self.writer.frame(0)(call=self.number, kind=CREDIT, credit_bytes=consumed)
            consumed = 0
        self._consumed_bytes = consumed
        return payload

    def arrived(self, payload: bytes) -> bool:
        """Takes in a payload; false when the peer had no credit for it."""
        if self._room_bytes <= 0:
            return False
        self._room_bytes -= len(payload) + PAYLOAD_OVERHEAD_BYTES
        self.inbox.append(payload)
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)
        return True

    async def clearance(self) -> None:
        """Waits until a payload may be sent; raises the call's error once it has ended."""
        while not self.ended and (self.credit_bytes <= 0 or self.writer.crowded):
            if self.credit_bytes > 0:
                await self.writer.room()
                continue
            if self._sender is not None:
                raise RuntimeError("two tasks send on the same call")
            self._sender = sender = self.writer.loop.create_future()
            try:
                await sender
            finally:
                self._sender = None
        if self.ended:
            raise self.error or GatewayError(
                error_pb2.ERROR_REASON_CANCELLED, "The call is over; nothing can be sent on it."
            )

    def credited(self, credit_bytes: int) -> None:
        """The peer has read so many bytes."""
        self.credit_bytes += credit_bytes
        sender = self._sender
        if sender is not None and self.credit_bytes > 0 and not sender.done():
            sender.set_result(None)

    def finish(self, error: GatewayError | None) -> None:
        """The call is over: what came in can still be read, nothing more is sent."""
        self.ended = True
        self.error = error
        self.deadline_s = math.inf
        reader, sender = self._reader, self._sender
        if reader is not None and not reader.done():
            reader.set_result(None)
        if sender is not None and not sender.done():
            sender.set_result(None)


LegT = TypeVar("LegT", bound=Leg)


class DeadlineWatch(Generic[LegT]):
    """Ends calls at their deadlines, with one timer for all calls of a stream.

    Calls that end before their deadline, nearly all, cost nothing here: the timer is set for the
    earliest deadline that was ever asked for and then looks which calls are left.
    """

    __slots__ = ("_calls", "_clock", "_expire", "_loop", "_next_s", "_timer")

    def __init__(
        self, calls: Mapping[int, LegT], clock: Clock, expire: Callable[[LegT], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls = calls
        self._clock = clock
        self._expire = expire
        self._next_s = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, deadline_s: float) -> None:
        """Some call of the stream has this deadline, on the clock's monotonic scale."""
        if deadline_s < self._next_s:
            self._arm(deadline_s)

    def _arm(self, deadline_s: float) -> None:
        self.stop()
        self._next_s = deadline_s
        delay_s = max(deadline_s - self._clock.monotonic(), DEADLINE_TICK_S)
        self._timer = self._loop.call_later(delay_s, self._look)

    def _look(self) -> None:
        now_s = self._clock.monotonic()
        self._next_s = math.inf
        for call in [call for call in self._calls.values() if call.deadline_s <= now_s]:
            self._expire(call)
        earliest_s = min((call.deadline_s for call in self._calls.values()), default=math.inf)
        if earliest_s < self._next_s:
            self._arm(earliest_s)

    def stop(self) -> None:
        """Watches no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._next_s = math.inf
