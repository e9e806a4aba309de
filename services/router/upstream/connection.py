"""One HTTP/1.1 connection to a provider: asyncio moves the bytes, llhttp (httptools) reads them.

It knows no pool, no deadline and no provider: ``upstream.py`` owns those. One exchange at a time.
What has arrived is handed out as it arrived, and a reader that lags stops the provider, not the
process.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Final, cast

import httptools

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError

HEAD_BYTES_MAX: Final = 64 * 1024
"""The longest status line and headers that are accepted, in bytes."""
HIGH_WATER: Final = 16 * 1024
"""Above so many unread bytes the provider is stopped; at half of it, it may go on."""
READ_BYTES: Final = 16 * 1024
"""About how much of a body is given out at once: decoded, it takes several times as much memory,
here and at the edge, and waits there when the caller has stopped reading.
"""
_RECEIVED: Final = memoryview(bytearray(32 * 1024))
"""Where the kernel's bytes go, for all connections: a buffer is in use only while they are parsed.
Without, the event loop takes up to 256 KiB at once, however little is wanted.
"""
_UNAWAITED: Final = _RECEIVED[: 16 * 1024]
"""What is taken at once when nobody waits for it."""

_FIRST_FINAL_STATUS: Final = 200
_NO_BODY_LENGTH: Final = frozenset({b"content-length", b"transfer-encoding"})


Taker = Callable[[bytes], bool]
"""What a chunk is offered to before a reader is woken for it: whether it took it. It never waits
and never raises.
"""


class Connection(asyncio.BufferedProtocol):
    """A connection: idle, or in one exchange (``send``, ``head``, ``read`` until empty)."""

    __slots__ = (
        "_chunks",
        "_complete",
        "_failure",
        "_head_bytes",
        "_head_done",
        "_keep_alive",
        "_linger",
        "_linger_timer",
        "_loop",
        "_lost",
        "_parser",
        "_paused",
        "_taker",
        "_transport",
        "_unread_bytes",
        "_waiter",
        "busy",
        "headers",
        "idle_since",
        "status",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, lost: Callable[["Connection"], None]
    ) -> None:
        self._loop = loop
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._taker: Taker | None = None
        self._chunks: list[bytes] = []
        self._unread_bytes = 0
        self._head_bytes = 0
        self._head_done = False
        self._complete = False
        self._keep_alive = False
        self._paused = False
        self._failure: GatewayError | None = None
        self._linger: Callable[[Connection], None] | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self.busy = False
        self.idle_since = 0.0
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []

    @property
    def reusable(self) -> bool:
        """Whether the exchange is over and the connection can carry another."""
        return (
            self._complete
            and self._keep_alive
            and self._failure is None
            and not self._chunks
            and self._transport is not None
            and not self._transport.is_closing()
        )

    @property
    def usable(self) -> bool:
        """Whether an idle connection is still open."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, head: bytes, body: bytes) -> None:
        """Starts an exchange. The connection must be idle."""
        self.busy = True
        self.status = 0
        self.headers = []
        self._head_bytes = 0
        self._head_done = False
        self._complete = False
        if self._transport is None or self._transport.is_closing():
            self._failure = _closed_unanswered()
        else:
            self._transport.writelines((head, body))

    async def head(self) -> None:
        """Waits for the status and the headers. Raises UPSTREAM_ERROR, UPSTREAM_PROTOCOL."""
        while not self._head_done:
            if self._failure is not None:
                raise self._failure
            await self._more()

    async def read(self, taker: Taker | None = None) -> bytes:
        """What has arrived of the body, not much more than ``READ_BYTES`` of it; empty at its end.

        While it waits, ``taker`` is offered every chunk that comes alone, in the turn of the event
        loop that brings it; what it takes does not wake the reader. Raises UPSTREAM_PROTOCOL when
        the body breaks off, after what did arrive was read.
        """
        while not self._chunks:
            if self._complete:
                return b""
            if self._failure is not None:
                raise self._failure
            self._taker = taker
            try:
                await self._more()
            finally:
                self._taker = None
        return self._taken() if self._unread_bytes <= READ_BYTES else self._some()

    def _some(self) -> bytes:
        """The first of a lot."""
        size = taken = 0
        for chunk in self._chunks:
            size += len(chunk)
            taken += 1
            if size >= READ_BYTES:
                break
        data = b"".join(self._chunks[:taken])
        del self._chunks[:taken]
        self._unread_bytes -= size
        if self._paused and self._unread_bytes <= HIGH_WATER // 2:
            self._resume()
        return data

    def _is_taken(self, taker: Taker) -> bool:
        """Whether nobody need be woken for what has come."""
        chunks, waiter = self._chunks, self._waiter
        if len(chunks) != 1 or self._complete:
            return False
        # A reader that was woken or cancelled does not wait any more.
        if waiter is None or waiter.done() or not taker(chunks[0]):
            return False
        chunks.clear()
        self._unread_bytes = 0
        return True

    def _taken(self) -> bytes:
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._chunks = []
        self._unread_bytes = 0
        if self._paused:
            self._resume()
        return data

    def rest(self, bytes_max: int) -> bytes | None:
        """The rest of the body when all of it has arrived, as that of most short answers has;
        ``None`` when it must be waited for, or is longer than ``bytes_max``.
        """
        return self._taken() if self._complete and self._unread_bytes <= bytes_max else None

    def keep_alive(self, options: Iterable[tuple[str, int]]) -> None:
        """Has the kernel probe a silent peer, so that a dead one is noticed while we wait."""
        if self._transport is None:
            return
        handle: socket.socket = self._transport.get_extra_info("socket")
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options:
            if hasattr(socket, name):  # not every platform has every knob
                handle.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    @property
    def lingering(self) -> bool:
        """Whether the end of the body is awaited that nobody reads any more."""
        return self._linger is not None

    def linger(self, complete: Callable[["Connection"], None], seconds: float) -> bool:
        """Waits for the end of the body, discarding what still comes; gives the connection to
        ``complete`` then, or closes it after ``seconds``. False when there is nothing to wait for.
        """
        if self._complete or self._failure is not None or not self.usable:
            return False
        self._discard()
        self._linger = complete
        self._linger_timer = self._loop.call_later(seconds, self.abort)
        return True

    def _discard(self) -> None:
        self._chunks = []
        self._unread_bytes = 0
        self._resume()

    def _lingered(self, linger: Callable[["Connection"], None]) -> None:
        """More has come, or nothing will."""
        self._discard()
        if self._complete or self._failure is not None or not self.usable:
            self._linger = None
            if self._linger_timer is not None:
                self._linger_timer.cancel()
            linger(self)

    def abort(self) -> None:
        """Closes at once, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def _more(self) -> asyncio.Future[None]:
        """What is done when more has come, or nothing will."""
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        elif self._linger is not None:
            self._lingered(self._linger)

    def _pause(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        # A closed transport of uvloop takes no orders.
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def _fail(self, failure: GatewayError) -> None:
        if self._failure is None:
            self._failure = failure
        self.abort()
        self._wake()

    # asyncio calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class, not a subclass

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint  # what fits is enough: the kernel keeps the rest
        return _UNAWAITED if self._waiter is None else _RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        if not self.busy or self._complete:
            # Nothing was asked: whatever this is, it must not become the next call's answer.
            self._fail(_protocol("The provider sent data that no request asked for."))
            return
        in_head = not self._head_done
        try:
            self._parser.feed_data(_RECEIVED[:nbytes])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(_protocol("The provider's answer is not HTTP/1.1."))
            return
        if in_head:
            self._head_bytes += nbytes
            if not self._head_done and self._head_bytes > HEAD_BYTES_MAX:
                self._fail(
                    _protocol(f"The provider sent more than {HEAD_BYTES_MAX} bytes of headers.")
                )
                return
        taker = self._taker
        if taker is not None and self._is_taken(taker):
            return
        if self._unread_bytes > HIGH_WATER and self._waiter is None and not self._complete:
            self._pause()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # what matters is how far the answer got, not how the socket ended
        if self.busy and not self._complete and self._failure is None:
            if not self._head_done:
                self._failure = _closed_unanswered()
            elif self._ends_with_connection():
                self._complete = True
            else:
                self._failure = _protocol("The provider's answer broke off.")
        self._keep_alive = False
        self._wake()
        self._lost(self)

    def _ends_with_connection(self) -> bool:
        """RFC 9112 §6.3: a body of unknown length lasts until the connection closes."""
        return not any(name.lower() in _NO_BODY_LENGTH for name, _ in self.headers)

    # httptools calls these.

    def on_message_begin(self) -> None:
        if self._complete:  # a second answer in the same breath: nobody asked for it
            self._keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_done:  # else a trailer, which nobody reads
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._head_done:
            return
        status = self._parser.get_status_code()
        if status < _FIRST_FINAL_STATUS:
            self.headers.clear()  # 100 Continue, 103 Early Hints: the answer comes after it
            return
        self.status = status
        self._keep_alive = self._parser.should_keep_alive()
        self._head_done = True

    def on_body(self, body: bytes) -> None:
        if self._complete:
            return
        self._chunks.append(body)
        self._unread_bytes += len(body)

    def on_message_complete(self) -> None:
        if self._head_done:
            self._complete = True


def _protocol(message: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL, message)


def _closed_unanswered() -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_UPSTREAM_ERROR,
        "The provider closed the connection before it answered.",
    )
