"""What both ends of a relay stream share beside the writer: one call's flow control, the deadlines
of all, and large payloads while they come in.

Knows neither gRPC nor methods; ``relay.py`` is the calling end, ``relay_server.py`` the serving
one. A future is made only where somebody waits, and one timer serves all deadlines of a stream.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Generic, TypeVar

from runtime import refusals
from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.relay_frames import (
    CREDIT,
    CREDIT_STEP_BYTES,
    LARGE_AT_ONCE,
    PAYLOAD_OVERHEAD_BYTES,
    WINDOW_BYTES,
)
from runtime.relay_writer import FrameWriter

DEADLINE_TICK_S: Final = 0.005
"""How late a deadline may be noticed."""


Taker = Callable[[bytes], bool]
"""What a payload is offered to before a reader is woken for it: whether it took it. It never waits
and never raises.
"""


class RelayProtocolError(Exception):
    """The peer broke the protocol; its stream is ended."""


class Leg:
    """One call as one side of the stream sees it: payloads that came in and were not read yet,
    and how much may still be sent.
    """

    __slots__ = (
        "_consumed_bytes",
        "_reader",
        "_room_bytes",
        "_sender",
        "_taker",
        "credit_bytes",
        "deadline_s",
        "ended",
        "error",
        "inbox",
        "number",
        "writer",
    )

    def __init__(
        self,
        writer: FrameWriter,
        number: int,
        credit_bytes: int,
        deadline_s: float,
        room_bytes: int = WINDOW_BYTES,
    ) -> None:
        self.writer = writer
        self.number = number
        self.credit_bytes = credit_bytes
        self.deadline_s = deadline_s
        self.inbox: deque[bytes] = deque()
        self.ended = False
        self.error: GatewayError | None = None
        self._room_bytes = room_bytes
        self._consumed_bytes = 0
        self._reader: asyncio.Future[None] | None = None
        self._taker: Taker | None = None
        self._sender: asyncio.Future[None] | None = None

    async def receive(self, taker: Taker | None = None) -> bytes | None:
        """The next payload, ``None`` after the last; raises the call's error after the last.

        For one reader at a time. While it waits, ``taker`` is offered every payload as it comes,
        in the turn of the event loop that brings it; only one that it does not take wakes the
        reader.
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
            self._taker = taker
            try:
                await reader
            finally:
                self._reader = None
        payload = inbox.popleft()
        consumed = self._consumed_bytes + len(payload) + PAYLOAD_OVERHEAD_BYTES
        if consumed >= CREDIT_STEP_BYTES and not self.ended:
            consumed = self._return_credit(consumed)
        self._consumed_bytes = consumed
        return payload

    def _return_credit(self, consumed: int) -> int:
        """Lets the peer send as much again as was read; what is left to be returned."""
        self._room_bytes += consumed
        self.writer.frame(0)(call=self.number, kind=CREDIT, credit_bytes=consumed)
        return 0

    def arrived(self, payload: bytes) -> bool:
        """Takes in a payload; false when the peer had no credit for it."""
        room = self._room_bytes
        if room <= 0:
            return False
        size = len(payload) + PAYLOAD_OVERHEAD_BYTES
        self._room_bytes = room - size
        reader = self._reader
        if reader is None or reader.done():
            self.inbox.append(payload)
            return True
        taker = self._taker
        if taker is None or not taker(payload):
            self.inbox.append(payload)
            reader.set_result(None)
            return True
        consumed = self._consumed_bytes + size
        if consumed >= CREDIT_STEP_BYTES:
            consumed = self._return_credit(consumed)
        self._consumed_bytes = consumed
        return True

    async def clearance(self) -> None:
        """Waits until a payload may be sent; raises the call's error once it has ended."""
        while not self.ended and (self.credit_bytes <= 0 or self._held_up()):
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
            raise self.error or refusals.cancelled()

    def _held_up(self) -> bool:
        """Whether the queue, or a large payload of this call in it, must go first."""
        return self.writer.crowded or self.number in self.writer.large

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


class Assembly:
    """Large payloads of which a part has come and the last has not."""

    __slots__ = ("_bytes_max", "parts")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.parts: dict[int, list[bytes]] = {}
        """By call, in order."""

    def add(self, number: int, part: bytes) -> None:
        """Takes in a part. Raises RelayProtocolError for more than a sender may have under way."""
        parts = self.parts.setdefault(number, [])
        parts.append(part)
        if len(self.parts) > LARGE_AT_ONCE or sum(map(len, parts)) > self._bytes_max:
            raise RelayProtocolError("More of large payloads came than is allowed at a time.")

    def whole(self, number: int, last: bytes) -> bytes:
        """The payload that ends with ``last``, which may be all of it."""
        parts = self.parts.pop(number, None)
        return last if parts is None else b"".join((*parts, last))

    def drop(self, number: int) -> None:
        """The rest of a payload will not come, or nobody wants it."""
        self.parts.pop(number, None)


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
