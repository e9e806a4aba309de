"""The calling end of the relay: many concurrent calls on one long-lived stream per target.

``RelayPool`` keeps a stream to each target, connects again with growing pauses, and puts each
call on the ready stream with the fewest calls under way. A call whose frames were still waiting
when its stream broke moves to another target; one that was sent fails with ROUTER_UNAVAILABLE,
because nobody can know how far it got. The protocol is told in ``docs/relay.md``.
"""

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from onegate.common.v1 import error_pb2, relay_service_pb2
from onegate.common.v1.relay_service_pb2 import RelayOpen
from runtime import refusals
from runtime.clock import Clock, Entropy, SystemEntropy
from runtime.config import RpcSettings
from runtime.errors import GatewayError
from runtime.relay_frames import (
    ANSWER_WINDOW_BYTES,
    CANCEL,
    CREDIT,
    DATA,
    DRAIN,
    END,
    OPEN,
    PART,
    PAYLOAD_OVERHEAD_BYTES,
    RELAY_METHOD,
    WINDOW_BYTES,
    Frame,
    open_field,
    open_frame,
)
from runtime.relay_stream import Assembly, DeadlineWatch, Leg, RelayProtocolError
from runtime.relay_targets import FOLLOW_INTERVAL_S, Lookup, Targets, look_up
from runtime.relay_writer import FrameWriter, NotWritten
from runtime.rpc import channel
from runtime.rpc_server import RELAY_LOOKAHEAD_BYTES
from runtime.rpc_status import received

CONNECT_TIMEOUT_S: Final = 5.0
CLOSE_TIMEOUT_S: Final = 1.0
OPENINGS_MAX: Final = 1024
"""How many heads of calls are kept ready."""
BACKOFF_FIRST_S: Final = 0.05
BACKOFF_MAX_S: Final = 2.0
QUEUED_MESSAGES_MAX: Final = 4
"""A stream takes no new calls while more than so many of the largest messages wait on it."""
FRAMES_AT_ONCE: Final = 32
"""How many frames are handed out in one turn of the event loop: those whom they wake have work to
do, and everybody else waits meanwhile.
"""
SAID_S: Final = 1.0
"""How long a target's word on how late it is holds: an idle one says nothing."""
COMPLAIN_AFTER_S: Final = 3.0
"""How long a target may be away before the log says so."""
STEADY_S: Final = 5.0
"""A stream that lived so long was no failed attempt: the pauses start small again."""

_NUMBER_MAX: Final = 2**32 - 1
_LOG: Final = logging.getLogger(__name__)

_BREAKS: Final = (
    TimeoutError,
    DecodeError,
    RelayProtocolError,
    grpc.RpcError,
    grpc.aio.BaseError,
)
"""What the end of a stream may look like."""

_GrpcCall = grpc.aio.StreamStreamCall[bytes, Any]


class RelayCall(Leg):
    """One call under way.

    Whoever opened it calls ``await receive()`` until it gives ``None`` or raises (the error that
    the handler raised, with all its fields; ROUTER_UNAVAILABLE when the stream broke;
    DEADLINE_EXCEEDED; CANCELLED), or gives up with :meth:`cancel`, which does nothing to a call
    that is over and so belongs into a ``finally``.
    """

    __slots__ = ("_stream",)

    _stream: "_Stream"

    async def send(self, payload: bytes) -> None:
        """Sends a further payload; waits while the serving side's credit is used up.

        Raises REQUEST_TOO_LARGE, or the call's error once it is over.
        """
        if self.ended or self.credit_bytes <= 0 or self.writer.slow:
            await self.clearance()
        size = len(payload)
        writer = self.writer
        if size > writer.payload_bytes_max:
            raise refusals.too_large(size, writer.payload_bytes_max)
        self.credit_bytes -= size + PAYLOAD_OVERHEAD_BYTES
        if size > writer.part_bytes:
            writer.send_large(self.number, DATA, payload)
        else:
            writer.frame(size)(call=self.number, kind=DATA, payload=payload)

    def cancel(self) -> None:
        """Gives the call up: its handler is cancelled, and nothing more is received."""
        if not self.ended:
            self._stream.drop(self, refusals.cancelled())
            self.inbox.clear()

    def bind(self, stream: "_Stream", number: int) -> None:
        """Puts the call on a stream."""
        self._stream = stream
        self.writer = stream.writer
        self.number = number


class RelayPool:
    """Calls to any number of targets that serve the same methods."""

    def __init__(
        self,
        targets: Sequence[str],
        settings: RpcSettings,
        clock: Clock,
        entropy: Entropy | None = None,
        lookup: Lookup = look_up,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.entropy = entropy or SystemEntropy()
        self._targets = Targets(targets, lookup)
        self._calls_max = settings.calls_max
        self._queue_bytes_max = QUEUED_MESSAGES_MAX * settings.message_bytes_max
        self._ready: list[_Stream] = []
        self._openings: dict[tuple[object, ...], bytes] = {}
        self._turn = 0
        self._following: asyncio.Task[None] | None = None
        self._links: dict[str, asyncio.Task[None]] = {}
        self._streams: dict[asyncio.Task[None], _Stream] = {}

    @property
    def ready(self) -> bool:
        """Whether a call can be opened now."""
        return bool(self._ready)

    @property
    def calls(self) -> int:
        """How many calls are under way on streams that take new ones."""
        return sum(len(stream.calls) for stream in self._ready)

    @property
    def late_s(self) -> float:
        """How late the readiest target is that calls can go to, by its own word; 0 when none has
        said anything of late. In seconds.
        """
        since_s = self.clock.monotonic() - SAID_S
        return min((s.late_s if s.said_s > since_s else 0.0 for s in self._ready), default=0.0)

    async def start(self) -> None:
        """Begins to connect to every target, and to keep at it; does not wait for any."""
        self._link()
        if self._targets.change:
            self._following = asyncio.create_task(self._follow(), name="relay targets")

    def _link(self) -> None:
        """Keeps a stream to every address that has none."""
        for address in self._targets.addresses - self._links.keys():
            link = asyncio.create_task(self._keep(address), name=f"relay to {address}")
            self._links[address] = link

    async def _follow(self) -> None:
        """Looks up again and again what the targets' names stand for."""
        while True:
            await self._targets.refresh()
            self._link()
            await self.clock.sleep(FOLLOW_INTERVAL_S)

    async def close(self) -> None:
        """Ends every call with CANCELLED and every stream, in good order where the target still
        answers.
        """
        self._ready.clear()
        keepers = [*self._links.values(), *filter(None, [self._following])]
        for keeper in keepers:
            keeper.cancel()
        for task, stream in self._streams.items():
            stream.abandon()
            if not stream.connected:
                task.cancel()
        streams = list(self._streams)
        if streams:
            await asyncio.wait(streams, timeout=CLOSE_TIMEOUT_S)
        for task in streams:
            task.cancel()
        await asyncio.gather(*keepers, *streams, return_exceptions=True)

    def call(
        self, method: str, payload: bytes, *, metadata: Mapping[str, str], timeout_s: float
    ) -> RelayCall:
        """Opens a call; ``payload`` is its first message. Metadata keys are in lower case.

        Raises ROUTER_UNAVAILABLE when no target is connected, OVERLOADED when all have as many
        calls as they take, REQUEST_TOO_LARGE.
        """
        stream = self._pick()
        writer = stream.writer
        size = len(payload) + len(method)
        for key, value in metadata.items():
            size += len(key) + 4 * len(value)
        if size > writer.payload_bytes_max:
            raise refusals.too_large(size, writer.payload_bytes_max)
        deadline_s = self.clock.monotonic() + timeout_s
        call = RelayCall(writer, 0, WINDOW_BYTES, deadline_s, ANSWER_WINDOW_BYTES)
        if 0 < len(payload) <= writer.part_bytes:
            opening = self._opening(method, metadata, timeout_s)
            stream.adopt(call)
            writer.append(open_frame(call.number, payload, opening))
            return call
        head = _head(method, metadata, timeout_s)
        stream.adopt(call)
        if payload:
            writer.send_large(call.number, OPEN, payload, head)
        else:
            writer.frame(size)(call=call.number, kind=OPEN, open=head)
        return call

    def _opening(self, method: str, metadata: Mapping[str, str], timeout_s: float) -> bytes:
        """The head of an OPEN frame. Callers come again and again with the same one."""
        known = (method, timeout_s, *metadata.items())
        opening = self._openings.get(known)
        if opening is None:
            if len(self._openings) >= OPENINGS_MAX:
                self._openings.clear()
            opening = open_field(_head(method, metadata, timeout_s))
            self._openings[known] = opening
        return opening

    def _pick(self) -> "_Stream":
        """The ready stream with the fewest calls; equals take turns."""
        streams = self._ready
        if not streams:
            raise GatewayError(
                error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE,
                "No router is reachable, so nothing was sent; try again in a moment.",
            )
        if len(streams) == 1:
            best = streams[0]
        else:
            self._turn = turn = (self._turn + 1) % len(streams)
            best = streams[turn]
            for stream in streams:
                if len(stream.calls) < len(best.calls):
                    best = stream
        if len(best.calls) >= self._calls_max or best.writer.queued_bytes > self._queue_bytes_max:
            raise refusals.overloaded()
        return best

    def move(self, call: RelayCall, frames: Sequence[Frame]) -> None:
        """Puts a call that was never sent on another stream. Raises as :meth:`call` does."""
        stream = self._pick()
        stream.adopt(call)
        remaining_s = call.deadline_s - self.clock.monotonic()
        for frame in frames:
            frame.call = call.number
            if frame.kind == OPEN:
                frame.open.timeout_ms = _timeout_ms(remaining_s)
            if len(frame.payload) > stream.writer.part_bytes:
                head = frame.open if frame.kind == OPEN else None
                stream.writer.send_large(call.number, frame.kind, frame.payload, head)
            else:
                stream.writer.frame(frame.ByteSize())().CopyFrom(frame)

    def opened(self, stream: "_Stream") -> None:
        """A stream takes calls."""
        self._ready.append(stream)

    def retired(self, stream: "_Stream") -> None:
        """A stream takes no more calls."""
        if stream in self._ready:
            self._ready.remove(stream)

    async def _keep(self, address: str) -> None:
        """Keeps one stream to an address that takes calls, for as long as a target stands for it
        or the stream lives.
        """
        pause_s = BACKOFF_FIRST_S
        complain_s = self.clock.monotonic() + COMPLAIN_AFTER_S
        while address in self._targets.addresses:
            began_s = self.clock.monotonic()
            stream = _Stream(self, address)
            task = asyncio.create_task(stream.run(), name=f"relay stream to {address}")
            self._streams[task] = stream
            task.add_done_callback(self._streams.pop)
            await stream.over.wait()
            now_s = self.clock.monotonic()
            if stream.connected:
                complain_s = now_s + COMPLAIN_AFTER_S
            elif now_s > complain_s:
                _LOG.warning("there is no relay to %s: %s", address, stream.why)
                complain_s = math.inf
            if now_s - began_s >= STEADY_S:
                pause_s = BACKOFF_FIRST_S
            await self.clock.sleep(pause_s * (0.5 + self.entropy.bytes(1)[0] / 510))
            pause_s = min(2 * pause_s, BACKOFF_MAX_S)
        del self._links[address]


class _Stream:
    """One stream to one target, from connecting to its end."""

    def __init__(self, pool: RelayPool, target: str) -> None:
        self._pool = pool
        self._target = target
        self._number = 0
        self._draining = False
        self.connected = False
        self.late_s = 0.0
        self.said_s = -math.inf
        """When the target last said how late it is."""
        self.why = "it ended the stream"
        self.over = asyncio.Event()
        """Set when the stream takes no more calls, although some may go on."""
        self.calls: dict[int, RelayCall] = {}
        self.writer = FrameWriter(relay_service_pb2.RelayRequest, pool.clock, pool.settings)
        self._deadlines = DeadlineWatch(self.calls, pool.clock, self._expire)
        self._assembly = Assembly(pool.settings.message_bytes_max)

    def adopt(self, call: RelayCall) -> None:
        """Gives a call a number on this stream."""
        number = self._number % _NUMBER_MAX + 1
        while number in self.calls:
            number = number % _NUMBER_MAX + 1
        self._number = number
        call.bind(self, number)
        self.calls[number] = call
        self._deadlines.watch(call.deadline_s)

    def drop(self, call: RelayCall, error: GatewayError) -> None:
        """Ends a call from this side."""
        self.writer.forget(call.number)
        self.writer.frame(0)(call=call.number, kind=CANCEL)
        self._finish(call, error)

    def _expire(self, call: RelayCall) -> None:
        self.drop(call, refusals.expired())

    def _finish(self, call: RelayCall, error: GatewayError | None) -> None:
        del self.calls[call.number]
        call.finish(error)
        if self._assembly.parts:
            self._assembly.drop(call.number)
        if self._draining and not self.calls:
            self.writer.close()

    async def run(self) -> None:
        """Connects, serves calls until the stream breaks or has drained, and accounts for every
        call that is left.
        """
        link = channel(self._target, self._pool.settings, lookahead_bytes=RELAY_LOOKAHEAD_BYTES)
        try:
            await self._exchange(link.stream_stream(RELAY_METHOD)())
        except _BREAKS as error:
            self._explain(error)
        finally:
            self._pool.retired(self)
            self.over.set()
            self._deadlines.stop()
            if self.connected and not self._draining:
                _LOG.warning("the relay to %s broke: %s", self._target, self.why)
            self._settle()
            await link.close()

    async def _exchange(self, call: _GrpcCall) -> None:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await call.initial_metadata()
        if not call.done():
            _LOG.info("connected to %s", self._target)
            self.connected = True
            self._pool.opened(self)
        writing = asyncio.create_task(self._write(call))
        try:
            while True:
                raw = await call.read()
                if not isinstance(raw, bytes):
                    return
                batch = relay_service_pb2.RelayResponse.FromString(raw)
                frames = batch.frames
                self.late_s = batch.late_ms / 1000
                if self.late_s:
                    self.said_s = self._pool.clock.monotonic()
                if len(frames) <= FRAMES_AT_ONCE:
                    self._deliver(frames)
                    continue
                for start in range(0, len(frames), FRAMES_AT_ONCE):
                    if start:
                        # Those who were woken work first, and sockets get their turn.
                        await self._pool.clock.sleep(0)
                    self._deliver(frames[start : start + FRAMES_AT_ONCE])
        finally:
            call.cancel()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, call: _GrpcCall) -> None:
        async def write(raw: bytes) -> None:
            if call.done():
                raise NotWritten
            await call.write(raw)

        try:
            await self.writer.run(write)
            await call.done_writing()
        except (NotWritten, grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            # The reader learns the same and says why.
            call.cancel()

    def _deliver(self, frames: Sequence[Frame]) -> None:
        """Hands every frame to its call."""
        calls = self.calls
        assembly = self._assembly
        for frame in frames:
            kind = frame.kind
            call = calls.get(frame.call)
            if kind == DATA and call is not None and not assembly.parts:
                if not call.arrived(frame.payload):
                    self._distrust(call)
            elif call is None:
                if kind == DRAIN:
                    self._drain()
            elif kind == CREDIT:
                call.credited(frame.credit_bytes)
            elif kind == PART:
                assembly.add(call.number, frame.payload)
            else:
                payload = frame.payload
                # An END with a payload has no error.
                failed = not payload and kind == END and frame.HasField("error")
                if assembly.parts and not failed:
                    payload = assembly.whole(call.number, payload)
                if (payload or kind == DATA) and not call.arrived(payload):
                    self._distrust(call)
                elif kind == END:
                    self._finish(call, received(frame.error) if failed else None)

    def _distrust(self, call: RelayCall) -> None:
        """The target sent more of a call than it had credit for."""
        _LOG.error("%s sent more than a call's credit; the call is dropped", self._target)
        self.drop(call, refusals.internal())

    def _drain(self) -> None:
        """The target takes no more calls: close when those under way are done."""
        _LOG.info("%s is shutting down; its calls go on, new ones go elsewhere", self._target)
        self._draining = True
        self._pool.retired(self)
        self.over.set()
        if not self.calls:
            self.writer.close()

    def abandon(self) -> None:
        """Ends every call from this side, then the stream."""
        for call in list(self.calls.values()):
            self.drop(call, refusals.cancelled())
        self._draining = True
        self.writer.close()

    def _settle(self) -> None:
        """Moves every call that was never sent, and fails the rest."""
        unsent: dict[int, list[Frame]] = {}
        for frame in self.writer.give_up():
            if frame.kind == OPEN:
                unsent[frame.call] = [frame]
            elif frame.call in unsent:
                unsent[frame.call].append(frame)
        for call in list(self.calls.values()):
            frames = unsent.get(call.number)
            del self.calls[call.number]
            try:
                if frames is None:
                    raise _lost()
                self._pool.move(call, frames)
            except GatewayError as error:
                call.finish(error)

    def _explain(self, error: BaseException) -> None:
        """Keeps in words why the stream broke, or could not be opened."""
        self.why = str(error)
        if isinstance(error, grpc.aio.AioRpcError):
            self.why = f"{error.code().name}: {error.details()}"
        elif isinstance(error, TimeoutError):
            self.why = f"no answer within {CONNECT_TIMEOUT_S:.0f} s"


def _head(method: str, metadata: Mapping[str, str], timeout_s: float) -> RelayOpen:
    """What opens a call. Raises ``TypeError`` or ``ValueError`` for text that is none."""
    return RelayOpen(
        method=method,
        timeout_ms=_timeout_ms(timeout_s),
        credit_bytes=ANSWER_WINDOW_BYTES,
        metadata=metadata,
    )


def _timeout_ms(timeout_s: float) -> int:
    """What remains, on the wire; 0 would mean no deadline."""
    timeout_ms = int(timeout_s * 1000)
    return timeout_ms if 0 < timeout_ms <= _NUMBER_MAX else max(1, min(timeout_ms, _NUMBER_MAX))


def _lost() -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE,
        "The router that served this call went away before the call was done; how far it got is "
        "unknown. Send it again if doing it twice is harmless.",
    )
