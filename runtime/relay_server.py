"""The serving end of the relay: every call on every stream runs its handler in a task of its own.

A handler is cancelled when its caller cancels, when the stream breaks and at the deadline; the
call counts until the handler has cleaned up. Knows nothing of what the methods mean.
"""

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from onegate.common.v1 import relay_service_pb2
from runtime import refusals
from runtime.calls import Handler
from runtime.clock import Clock
from runtime.config import RpcSettings
from runtime.errors import GatewayError
from runtime.lateness import Lateness
from runtime.relay_frames import (
    CANCEL,
    CREDIT,
    DATA,
    DRAIN,
    END,
    OPEN,
    PART,
    PAYLOAD_OVERHEAD_BYTES,
    Frame,
)
from runtime.relay_stream import Assembly, DeadlineWatch, Leg, RelayProtocolError, Taker
from runtime.relay_writer import FrameWriter

DRAIN_NOTICE_S: Final = 5.0
"""How long after DRAIN a call is still accepted, because the caller had not seen it yet."""

_LOG: Final = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
_Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
_STARTS_AT_ONCE: Final = sys.version_info >= (3, 12)
"""Whether a handler's first step runs in the turn of the event loop that brought its call, which
saves one turn for each.
"""


class RelayServerCall(Leg):
    """A call being served: the :class:`runtime.calls.ServerCall` of this transport."""

    __slots__ = ("metadata", "method", "request", "task", "timeout_s")

    def __init__(
        self, writer: FrameWriter, frame: Frame, request: bytes, now_s: float, latest_s: float
    ) -> None:
        head = frame.open
        timeout_ms = head.timeout_ms
        if timeout_ms:
            self.timeout_s: float | None = timeout_ms / 1000
            latest_s = min(latest_s, now_s + timeout_ms / 1000)
        else:
            self.timeout_s = None
        super().__init__(writer, frame.call, head.credit_bytes, latest_s)
        fields = head.metadata
        self.method = head.method
        self.metadata: Mapping[str, str] = {key.lower(): fields[key] for key in fields}
        self.request = request
        self.task: asyncio.Task[None] | None = None

    async def send(self, payload: bytes) -> None:
        """Sends one payload; waits while the caller's credit is used up.

        Raises CANCELLED when the caller has gone, REQUEST_TOO_LARGE when no message may be so
        large.
        """
        if self.ended or self.credit_bytes <= 0 or self.writer.slow:
            await self.clearance()
        self._put(payload)

    @property
    def send_now(self) -> Callable[[bytes], None] | None:
        """What sends one payload; ``None`` while that has to wait."""
        if self.ended or self.credit_bytes <= 0 or self.writer.slow:
            return None
        return self._put

    def _put(self, payload: bytes) -> None:
        size = len(payload)
        writer = self.writer
        if size > writer.part_bytes:
            self._send_large(payload)
            return
        self.credit_bytes -= size + PAYLOAD_OVERHEAD_BYTES
        frame = writer.frame(size)(call=self.number, kind=DATA, payload=payload)
        if size:
            writer.tails[self.number] = frame
        else:
            # An END with an empty payload is one without: this payload needs its own frame.
            writer.tails.pop(self.number, None)

    def _send_large(self, payload: bytes) -> None:
        size = len(payload)
        if size > self.writer.payload_bytes_max:
            raise refusals.too_large(size, self.writer.payload_bytes_max)
        self.credit_bytes -= size + PAYLOAD_OVERHEAD_BYTES
        self.writer.send_large(self.number, DATA, payload)

    async def receive(self, taker: Taker | None = None) -> bytes:
        """The caller's next payload. Raises CANCELLED when none will come."""
        payload = await super().receive(taker)
        if payload is None:
            raise refusals.cancelled()
        return payload


class RelayServer:
    """Serves handlers by method name over any number of relay streams."""

    def __init__(
        self, handlers: Mapping[str, Handler], settings: RpcSettings, clock: Clock
    ) -> None:
        self.handlers = handlers
        self.settings = settings
        self.clock = clock
        self.draining_since_s: float | None = None
        self.lateness = Lateness(clock)
        self._streams: set[_ServerStream] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def calls(self) -> int:
        """How many calls are under way."""
        return sum(len(stream.calls) for stream in self._streams)

    async def serve(self, _requests: object, context: Context) -> None:
        """Serves one stream until the peer closes or breaks it: the handler of ``Relay``."""
        if self.draining_since_s is not None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "This process is shutting down.")
        stream = _ServerStream(self)
        if not self._streams:
            self.lateness.start()
        self._streams.add(stream)
        self._empty.clear()
        try:
            await context.send_initial_metadata(())
            await stream.run(context)
        except (RelayProtocolError, DecodeError) as error:
            _LOG.warning("a relay stream was ended: %s", error)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self.lateness.close()
                self._empty.set()

    def drain(self) -> None:
        """Tells every peer to open no more calls here; those under way go on."""
        if self.draining_since_s is None:
            self.draining_since_s = self.clock.monotonic()
            for stream in self._streams:
                stream.writer.frame(0)(kind=DRAIN)

    async def closed(self) -> None:
        """Returns when every peer has finished its calls and closed its stream."""
        await self._empty.wait()

    def cut(self) -> None:
        """Ends every call that is left with DRAINING, and every stream with them."""
        for stream in self._streams:
            stream.cut()


class _ServerStream:
    """One peer's stream and the calls on it."""

    def __init__(self, server: RelayServer) -> None:
        settings = server.settings
        self._server = server
        self._handlers = server.handlers
        self._clock = server.clock
        self._calls_max = settings.calls_max
        self._timeout_max_s = settings.call_timeout_max_s
        self._spawn = _spawner()
        self._settled = asyncio.Event()
        self.calls: dict[int, RelayServerCall] = {}
        self.writer = FrameWriter(relay_service_pb2.RelayResponse, self._clock, settings)
        self.writer.lateness = server.lateness
        self._deadlines = DeadlineWatch(self.calls, self._clock, self._expire)
        self._assembly = Assembly(settings.message_bytes_max)

    async def run(self, context: Context) -> None:
        """Reads batches until the peer half-closes, then lets the calls end; whatever happens,
        no handler outlives this.
        """
        writing = asyncio.create_task(self.writer.run(context.write))
        reading = asyncio.create_task(self._read(context))
        try:
            await asyncio.wait((writing, reading), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
                while self.calls:
                    self._settled.clear()
                    await self._settled.wait()
                self.writer.close()
            await writing
        finally:
            for task in (writing, reading):
                task.cancel()
            await self._abandon()
            await asyncio.gather(writing, reading, return_exceptions=True)

    async def _read(self, context: Context) -> None:
        while (raw := await context.read()) is not grpc.aio.EOF:
            self._deliver(raw)

    def _deliver(self, raw: bytes) -> None:
        """Hands every frame of a batch to its call."""
        now_s = self._clock.monotonic()
        assembly = self._assembly
        for frame in relay_service_pb2.RelayRequest.FromString(raw).frames:
            kind = frame.kind
            if kind == OPEN:
                self._open(frame, now_s)
                continue
            number = frame.call
            if kind == PART:
                assembly.add(number, frame.payload)
                continue
            call = self.calls.get(number)
            if kind == DATA:
                payload = assembly.whole(number, frame.payload)
                if call is not None and not call.ended and not call.arrived(payload):
                    raise RelayProtocolError("A payload came without credit for it.")
            elif kind == CANCEL:
                assembly.drop(number)
                # The handler may be done while its last payload still waits.
                self.writer.forget(number)
                if call is not None:
                    self._drop(call)
            elif kind == CREDIT:
                if call is not None:
                    call.credited(frame.credit_bytes)
            else:
                raise RelayProtocolError(f"A frame of kind {kind} is not for the serving side.")

    def _open(self, frame: Frame, now_s: float) -> None:
        """Starts a call, or refuses it."""
        number = frame.call
        if number in self.calls or not number:
            raise RelayProtocolError(f"The call number {number} is taken.")
        request = frame.payload
        if self._assembly.parts:
            request = self._assembly.whole(number, request)
        call = RelayServerCall(self.writer, frame, request, now_s, now_s + self._timeout_max_s)
        handler = self._handlers.get(call.method)
        if handler is None:
            self._end(call, refusals.unknown_method())
            return
        if len(self.calls) >= self._calls_max:
            self._end(call, refusals.overloaded())
            return
        if self._late(now_s):
            self._end(call, refusals.draining())
            return
        self.calls[number] = call
        self._deadlines.watch(call.deadline_s)
        call.task = self._spawn(self._serve(call, handler))
        if not _STARTS_AT_ONCE:
            # A task that is cancelled before its first step never reaches its ``finally``.
            call.task.add_done_callback(partial(self._forget, call))

    def _late(self, now_s: float) -> bool:
        """Whether the caller has had time to see DRAIN."""
        since_s = self._server.draining_since_s
        return since_s is not None and now_s > since_s + DRAIN_NOTICE_S

    async def _serve(self, call: RelayServerCall, handler: Handler) -> None:
        """Runs one handler; its outcome is the call's END."""
        try:
            await handler(call)
        except GatewayError as error:
            self._end(call, error)
        except Exception:  # noqa: BLE001 - the top of a handler's task
            _LOG.exception("the handler of %s failed", call.method)
            self._end(call, refusals.internal())
        else:
            self._end(call, None)
        finally:
            self._forget(call)

    def _forget(self, call: RelayServerCall, _task: object = None) -> None:
        """The handler is done and has cleaned up."""
        self.calls.pop(call.number, None)
        if not self.calls:
            self._settled.set()

    def _end(self, call: RelayServerCall, error: GatewayError | None) -> None:
        """Ends a call once, on both sides."""
        if call.ended:
            return
        number = call.number
        writer = self.writer
        large = writer.large.get(number)
        if error is not None:
            proto = error.to_proto()
            if large is not None:
                large.error = proto
            else:
                writer.frame(proto.ByteSize())(call=number, kind=END, error=proto)
        elif large is not None:
            large.kind = END
        elif (tail := writer.tails.get(number)) is not None:
            tail.kind = END
        else:
            writer.frame(0)(call=number, kind=END)
        call.finish(error)

    def _drop(self, call: RelayServerCall) -> None:
        """The caller has lost interest: nothing more is sent, the handler is cancelled, once, so
        that its cleaning up is not.
        """
        if not call.ended:
            call.finish(refusals.cancelled())
            if call.task is not None:
                call.task.cancel()

    def _stop(self, call: RelayServerCall, error: GatewayError) -> None:
        """Ends a call against its handler's will."""
        if not call.ended:
            self.writer.forget(call.number)
            self._end(call, error)
            if call.task is not None:
                call.task.cancel()

    def _expire(self, call: RelayServerCall) -> None:
        self._stop(call, refusals.expired())

    def cut(self) -> None:
        """Ends every call with DRAINING and takes no more."""
        for call in list(self.calls.values()):
            self._stop(call, refusals.draining())
        self.writer.close()

    async def _abandon(self) -> None:
        """Cancels every handler and waits until all have cleaned up."""
        self._deadlines.stop()
        for call in list(self.calls.values()):
            self._drop(call)
        while tasks := [call.task for call in self.calls.values() if call.task is not None]:
            await asyncio.wait(tasks)


def _spawner() -> _Spawn:
    """How handlers become tasks."""
    loop = asyncio.get_running_loop()
    if sys.version_info >= (3, 12):
        return partial(asyncio.Task, loop=loop, eager_start=True)
    return loop.create_task
