"""One connection of the edge's HTTP server: bytes in, requests out, answers in order.

llhttp (through httptools) reads what comes; everything that it lets pass and that could be
understood in two ways is refused here. A connection has one deadline at a time, which the server's
sweep looks at, so that a request costs no timer of its own.
"""

import asyncio
import functools
import math
import sys
from collections import deque
from typing import Final, Protocol, cast

import httptools

from edge.http import Application, Handling, HttpRefusalError, Request, Response
from edge.http_exchange import Exchange, too_large
from edge.http_head import Head, origin_form
from onegate.common.v1 import error_pb2
from runtime.config import EdgeSettings
from runtime.errors import GatewayError

WRITE_HIGH_BYTES: Final = 16 * 1024
WRITE_LOW_BYTES: Final = 8 * 1024
PIPELINED_MAX: Final = 16
"""Requests that may wait behind the one being answered; a client that sends more is closed."""
LINGER_S: Final = 5.0
"""How long a client that is still sending may go on after its refusal, so that it reads it."""
BODY_RATE_MIN: Final = 1024
"""The slowest body that is accepted, in bytes a second, once it has had some time."""
BODY_RATE_GRACE_S: Final = 5.0


class Server(Protocol):
    """What a connection needs of its server."""

    settings: EdgeSettings
    application: Application
    now_s: float
    draining: bool
    date_line: str

    @property
    def full(self) -> bool:
        """Whether more clients are connected than there may be."""
        ...

    def monotonic(self) -> float:
        """The exact time; ``now_s`` is the sweep's."""
        ...

    def gone(self, connection: "Connection") -> None:
        """The connection is over."""
        ...


class _StopError(Exception):
    """Raised out of a parser's callback: nothing more is read from this connection."""


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_answered",
        "_chunk_bytes",
        "_deaf",
        "_feeding",
        "_flushed",
        "_handling",
        "_head",
        "_lingering",
        "_parser",
        "_progress_s",
        "_refusal",
        "_resuming",
        "_server",
        "_transport",
        "_upgrading",
        "_writable",
        "_written",
        "client",
        "current",
        "cut",
        "deadline_s",
        "queue",
        "reading",
        "write_paused",
    )

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self.client = ""
        self.current: Exchange | None = None
        self.reading: Exchange | None = None
        self.queue: deque[Exchange] = deque()
        self.cut = False
        self.deadline_s = server.now_s + server.settings.head_timeout_s
        self.write_paused = False
        self._writable: asyncio.Future[None] | None = None
        self._written = 0
        self._flushed = 0
        self._progress_s = server.now_s
        self._head = Head(server.settings.head_bytes_max, server.settings.headers_max)
        self._chunk_bytes = 0
        self._feeding = False
        self._deaf = False
        self._lingering = False
        self._upgrading = False
        self._resuming = False
        self._answered: Response | None = None
        self._handling: Handling | None = None
        self._refusal: GatewayError | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The client is there."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES, low=WRITE_LOW_BYTES)
        peer = transport.get_extra_info("peername")
        self.client = peer[0] if isinstance(peer, tuple) else ""
        if self._server.full:
            self._refuse(
                GatewayError(
                    error_pb2.ERROR_REASON_OVERLOADED,
                    "Too many clients are connected; try again in a moment.",
                )
            )

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._deaf:
            return
        self._feeding = True
        self._chunk_bytes = len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            self._resume(data[exc.args[0] :])
        except httptools.HttpParserCallbackError as exc:
            if not isinstance(exc.__context__, _StopError):
                raise
        except httptools.HttpParserError as exc:
            self._malformed(str(exc))
        finally:
            self._feeding = False
        if self._head.open and (refusal := self._head.fed(len(data))) is not None:
            self._refuse(refusal)
        current = self.current
        if current is None:
            return
        if (handling := self._handling) is not None:
            self._handling = None
            self._start(current, handling)
        elif (answered := self._answered) is not None:
            self._answered = None
            self._answer(current, answered)

    def eof_received(self) -> None:
        """The client has closed its side. No client of an API does that and still reads: it is how
        one leaves.
        """

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The client is gone."""
        self._transport = None
        self._deaf = True
        self._resume_waiter()
        if self._handling is not None:
            self._handling.close()
        current, self.current = self.current, None
        if current is not None:
            if current.task is not None:
                current.task.cancel()
            self._account(current)
        self.queue.clear()
        self._server.gone(self)

    def pause_writing(self) -> None:
        """Too much waits to be written."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """The client has taken enough."""
        self.write_paused = False
        self._resume_waiter()

    # What llhttp calls.

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if self._deaf:
            raise _StopError
        if self._resuming:
            return
        self._head.begin()
        self.deadline_s = self._server.now_s + self._server.settings.head_timeout_s

    def on_url(self, piece: bytes) -> None:
        """A piece of the target."""
        if not self._resuming:
            self._head.target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; a trailer is not kept."""
        if self._head.open:
            self._head.lines.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is complete."""
        if self._resuming:
            return
        parser = self._parser
        method, version = parser.get_method().decode("ascii"), parser.get_http_version()
        refusal = self._head.complete(version, method, self._chunk_bytes)
        if refusal is not None:
            self._refuse(refusal)
            raise _StopError
        exchange = self._exchange(method)
        exchange.is_http10 = version == "1.0"
        self.reading = exchange
        self._upgrading = parser.should_upgrade()
        self._await_body(exchange)
        if self.current is None:
            self._open(exchange)
        else:
            self._enqueue(exchange)

    def on_body(self, piece: bytes) -> None:
        """A piece of the body."""
        if self.reading is not None:
            self.reading.feed(piece)

    def on_message_complete(self) -> None:
        """The request is complete."""
        if self._upgrading:
            # llhttp stops before the body of a request that offers an upgrade; see _resume.
            return
        self._resuming = False
        reading, self.reading = self.reading, None
        self.deadline_s = math.inf
        if reading is None:
            return
        if not reading.keep_alive:
            self._deaf = True
        reading.arrived()
        if self.current is None:
            self._idle()

    # Reading.

    def _exchange(self, method: str) -> Exchange:
        headers = self._head.headers
        exchange = Exchange(self, method, origin_form(self._head.target), headers)
        exchange.keep_alive = self._parser.should_keep_alive()
        exchange.expects = b"expect" in headers
        exchange.body_bytes_max = self._server.settings.body_bytes_max
        length = headers.get(b"content-length")
        if length is not None:
            exchange.content_length = int(length)
        elif b"transfer-encoding" not in headers:
            exchange.content_length = 0
        return exchange

    def _await_body(self, exchange: Exchange) -> None:
        """The body's time begins."""
        exchange.body_began_s = self._server.now_s
        self.deadline_s = self._server.now_s + self._server.settings.body_timeout_s

    def _malformed(self, why: str) -> None:
        """What came is not HTTP: nothing after it can be trusted."""
        error = HttpRefusalError(400, f"The request is not valid HTTP: {why}.")
        if self.reading is None:
            self._refuse(error)
        else:
            self._deaf = True
            self.reading.fail(error)

    def _resume(self, rest: bytes) -> None:
        """Goes on after a request that offers another protocol (``Upgrade: h2c``), which is
        answered as if it did not: a fresh parser is told the framing and gets the body.
        """
        self._upgrading = False
        self._resuming = True
        self._parser = httptools.HttpRequestParser(self)
        headers = self._head.headers
        framing = [
            b"%b: %b\r\n" % (name, headers[name])
            for name in (b"content-length", b"transfer-encoding")
            if name in headers
        ]
        self.data_received(b"".join((b"POST / HTTP/1.1\r\n", *framing, b"\r\n", rest)))

    # Answering.

    def _open(self, exchange: Exchange) -> None:
        """Hands a request to the application. Whatever comes of it waits until the bytes at hand
        are read: the body is usually among them.
        """
        self.current = exchange
        exchange.received_s = self._server.monotonic()
        application = self._server.application
        request = cast("Request", exchange)
        opened: Response | Handling
        try:
            opened = application.open(request)
        except Exception as defect:  # noqa: BLE001 - as a task's: it costs its request, no more
            opened = application.failed(request, defect)
        length = exchange.content_length
        if not isinstance(opened, Response):
            if length is None or length <= exchange.body_bytes_max:
                if self._feeding:
                    self._handling = opened
                else:
                    self._start(exchange, opened)
                return
            opened.close()
            opened = application.refuse(request, too_large(exchange.body_bytes_max))
        if self._feeding:
            self._answered = opened
        else:
            self._answer(exchange, opened)

    def _start(self, exchange: Exchange, handling: Handling) -> None:
        """Runs a handler up to its first wait, and its answer is written where it returns: two
        turns of the event loop less for each request, from Python 3.12 on.
        """
        loop = asyncio.get_running_loop()
        if sys.version_info >= (3, 12):
            task = asyncio.Task(self._handle(exchange, handling), loop=loop, eager_start=True)
            exchange.task = task
        else:
            # A task that is cancelled before its first step would never reach the handler.
            exchange.task = loop.create_task(handling)
            exchange.task.add_done_callback(functools.partial(self._done, exchange))

    async def _handle(self, exchange: Exchange, handling: Handling) -> None:
        """A handler with the end of its request."""
        application = self._server.application
        request = cast("Request", exchange)
        try:
            response = await handling
        except GatewayError as error:
            response = application.refuse(request, error)
        except asyncio.CancelledError:
            response = application.refuse(request, _draining())
        except Exception as defect:  # noqa: BLE001 - the top of a request's task
            response = application.failed(request, defect)
        self._handled(exchange, response)

    def _enqueue(self, exchange: Exchange) -> None:
        """A request that came before the one before it was answered waits its turn."""
        if len(self.queue) >= PIPELINED_MAX:
            self.reading = None
            self._deaf = True
            self.queue[-1].keep_alive = False
            raise _StopError
        self.queue.append(exchange)
        if self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()

    def _done(self, exchange: Exchange, task: asyncio.Task[Response | None]) -> None:
        """A handler has ended that has a task of its own."""
        application = self._server.application
        request = cast("Request", exchange)
        response: Response | None
        if task.cancelled():
            response = application.refuse(request, _draining())
        elif (error := task.exception()) is None:
            response = task.result()
        elif isinstance(error, GatewayError):
            response = application.refuse(request, error)
        else:
            response = application.failed(request, error)
        self._handled(exchange, response)

    def _handled(self, exchange: Exchange, response: Response | None) -> None:
        """A handler has ended: its answer, or ``None`` when it has written one."""
        if self.current is not exchange:
            # The client has left, and what came of its request is nobody's any more.
            return
        if exchange.started_status:
            if exchange.streamed is None or not exchange.streamed.finished:
                self.abort()
                return
            self._finish(exchange)
        elif response is None:
            self.abort()
        else:
            self._answer(exchange, response)

    def _answer(self, exchange: Exchange, response: Response) -> None:
        exchange.respond(response)
        self._finish(exchange)

    def _finish(self, exchange: Exchange) -> None:
        """An answer is written: on to the next request, or the connection ends."""
        self.current = None
        self._account(exchange)
        if not exchange.keep_alive or self._server.draining:
            self._leave(linger=not exchange.complete)
        elif self.queue:
            following = self.queue.popleft()
            if not self.queue:
                self._listen()
            self._open(following)
        elif self._refusal is not None:
            self._write_refusal(self._refusal)
        elif self.reading is None:
            self._idle()

    def _idle(self) -> None:
        """Nothing is going on: the client may come with another request for a while."""
        if not self._deaf:
            self._listen()
            if not self._head.open:
                self.deadline_s = self._server.now_s + self._server.settings.keepalive_timeout_s

    def _listen(self) -> None:
        """Reads on; what is awaited gets its full time again."""
        if self._transport is None or self._transport.is_reading():
            return
        self._transport.resume_reading()
        if self._head.open:
            self.deadline_s = self._server.now_s + self._server.settings.head_timeout_s
        elif self.reading is not None:
            self._await_body(self.reading)

    def _account(self, exchange: Exchange) -> None:
        status = exchange.started_status or 499
        request = cast("Request", exchange)
        self._server.application.finished(request, status, exchange.sent)

    def _refuse(self, error: GatewayError) -> None:
        """The connection ends with an error, after the requests that came before it."""
        self._deaf = True
        self._head.open = False
        self._refusal = error
        if self.current is None:
            self._write_refusal(error)

    def _write_refusal(self, error: GatewayError) -> None:
        exchange = Exchange(self, "", b"", {})
        exchange.respond(self._server.application.refuse(None, error))
        self._leave(linger=True)

    # Ending.

    @property
    def date_line(self) -> str:
        """The head's ``date`` line."""
        return self._server.date_line

    @property
    def closing(self) -> bool:
        """Whether the connection ends after the exchange that is under way."""
        return self._server.draining

    @property
    def busy(self) -> bool:
        """Whether a request is being read or answered."""
        return self.current is not None or self.reading is not None or self._head.open

    def close(self) -> None:
        """Ends the connection once what is written has been taken."""
        if self._transport is not None:
            self._deaf = True
            self._transport.close()

    def cut_off(self) -> None:
        """Ends what is under way; its handler may still say so."""
        self.cut = True
        self._deaf = True
        if self.current is not None and self.current.task is not None:
            self.current.task.cancel()
        else:
            self.close()

    def _leave(self, *, linger: bool) -> None:
        """Ends the connection. A client that is still sending would get a reset instead of the
        answer, so that its bytes are taken for a while.
        """
        self._deaf = True
        transport = self._transport
        if transport is None:
            return
        if not linger:
            transport.close()
            return
        self._lingering = True
        self.deadline_s = self._server.now_s + LINGER_S
        if not transport.is_reading():
            transport.resume_reading()
        transport.write_eof()

    def abort(self) -> None:
        """Ends the connection now, whatever waits."""
        if self._transport is not None:
            self._transport.abort()

    def check(self, now_s: float) -> None:
        """The sweep: is a deadline past, does the client take what is written?"""
        transport = self._transport
        if transport is None:
            return
        if transport.is_reading() and (now_s >= self.deadline_s or self._crawls(now_s)):
            self._expire()
        waiting = transport.get_write_buffer_size()
        flushed = self._written - waiting
        if not waiting or flushed != self._flushed:
            self._flushed = flushed
            self._progress_s = now_s
        elif now_s - self._progress_s > self._server.settings.stall_timeout_s:
            transport.abort()

    def _crawls(self, now_s: float) -> bool:
        """Whether a body comes too slowly."""
        reading = self.reading
        if reading is None or reading.error is not None:
            return False
        elapsed_s = now_s - reading.body_began_s
        return elapsed_s > BODY_RATE_GRACE_S and reading.received_bytes < elapsed_s * BODY_RATE_MIN

    def _expire(self) -> None:
        """The deadline of whatever is being waited for is past."""
        self.deadline_s = math.inf
        if self._lingering:
            self.abort()
        elif self.reading is not None:
            self._deaf = True
            self.reading.fail(_timeout("body", self._server.settings.body_timeout_s))
        elif self._head.open:
            self._refuse(_timeout("head", self._server.settings.head_timeout_s))
        else:
            self.close()

    # Writing.

    def write(self, data: bytes) -> None:
        """Queues bytes; does nothing once the client has left."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            self._written += len(data)
            transport.write(data)

    async def writable(self) -> None:
        """Waits until the client has taken enough, or has left."""
        if self.write_paused and self._transport is not None:
            self._writable = asyncio.get_running_loop().create_future()
            await self._writable

    def _resume_waiter(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)


def _timeout(part: str, limit_s: float) -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_REQUEST_TIMEOUT,
        f"The request's {part} did not arrive within {limit_s:g} s, or arrived too slowly; "
        "send it again.",
    )


def _draining() -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_DRAINING,
        "The gateway is shutting down and cut this request off; send it again.",
    )
