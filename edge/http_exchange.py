"""One request and its answer on a connection, as the server keeps it."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, Protocol

from edge.http import ONE_WRITE_BYTES, Headers, Response, head
from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"


class Wire(Protocol):
    """What an exchange needs of its connection."""

    client: str
    write_paused: bool
    cut: bool

    @property
    def date_line(self) -> str:
        """The head's ``date`` line."""
        ...

    @property
    def closing(self) -> bool:
        """Whether the connection ends after this exchange, whatever the client would like."""
        ...

    def write(self, data: bytes) -> None:
        """Queues bytes for the client; does nothing once it has left."""
        ...

    async def writable(self) -> None:
        """Waits until less waits to be written."""
        ...


class Exchange:
    """A request, its body as it arrives, and how far its answer is. A ``Request`` to handlers."""

    __slots__ = (
        "_body",
        "_waiter",
        "body_began_s",
        "body_bytes_max",
        "complete",
        "content_length",
        "error",
        "expects",
        "headers",
        "is_http10",
        "keep_alive",
        "method",
        "note",
        "path",
        "query",
        "received_bytes",
        "received_s",
        "sent",
        "started_status",
        "streamed",
        "task",
        "wire",
    )

    def __init__(
        self, wire: Wire, method: str, target: bytes, headers: Mapping[bytes, bytes]
    ) -> None:
        self.wire = wire
        self.method = method
        self.path, _, self.query = target.partition(b"?")
        self.headers = headers
        self.content_length: int | None = None
        self.body_began_s = 0.0
        self.body_bytes_max = 0
        self.received_s = 0.0
        self.note: object = None
        self.keep_alive = True
        self.is_http10 = False
        self.expects = False
        self.complete = False
        self.error: GatewayError | None = None
        self.received_bytes = 0
        self.task: asyncio.Task[Any] | None = None
        self.streamed: ChunkedStream | None = None
        self.started_status = 0
        self.sent = 0
        self._body: bytes | bytearray = b""
        self._waiter: asyncio.Future[None] | None = None

    @property
    def client(self) -> str:
        """The peer's network address."""
        return self.wire.client

    @property
    def draining(self) -> bool:
        """Whether the process cut the exchange off."""
        return self.wire.cut

    async def body(self) -> bytes:
        """The whole body. Raises what made it impossible."""
        if not self.complete and self.error is None:
            if self.expects:
                self.expects = False
                self.wire.write(CONTINUE)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self.error is not None:
            raise self.error
        body, self._body = self._body, b""
        return bytes(body)

    def stream(self, status: int, headers: Headers) -> "ChunkedStream":
        """Begins an answer in pieces."""
        self.streamed = ChunkedStream(self, status, headers)
        return self.streamed

    def feed(self, piece: bytes) -> None:
        """A piece of the body has come."""
        if self.error is not None:
            return
        self.received_bytes += len(piece)
        if self.received_bytes > self.body_bytes_max:
            self.fail(too_large(self.body_bytes_max))
        elif not self._body:
            self._body = piece
        else:
            if type(self._body) is bytes:
                self._body = bytearray(self._body)
            self._body += piece

    def arrived(self) -> None:
        """The body is complete."""
        self.complete = True
        self._wake()

    def fail(self, error: GatewayError) -> None:
        """The body will not become complete."""
        self.error = error
        self._body = b""
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def respond(self, response: Response) -> None:
        """Writes a whole answer."""
        body = response.body
        framing = f"content-length: {len(body)}\r\n{self.connection_line()}"
        first = head(response.status, response.headers, framing)
        self.started_status = response.status
        if self.method == "HEAD":
            self.wire.write(first)
            return
        self.sent = len(body)
        if len(body) <= ONE_WRITE_BYTES:
            self.wire.write(first + body)
        else:
            self.wire.write(first)
            self.wire.write(body)

    def connection_line(self) -> str:
        """The time, and what becomes of the connection."""
        date = self.wire.date_line
        if not self.keep_alive or not self.complete or self.wire.closing:
            self.keep_alive = False
            return f"{date}connection: close\r\n"
        return f"{date}connection: keep-alive\r\n" if self.is_http10 else date


class ChunkedStream:
    """An answer in pieces: chunked, or ended by closing for HTTP/1.0."""

    __slots__ = ("_exchange", "_headers", "_status", "finished")

    def __init__(self, exchange: Exchange, status: int, headers: Headers) -> None:
        self._exchange = exchange
        self._status = status
        self._headers = headers
        self.finished = False

    @property
    def paused(self) -> bool:
        """Whether too much waits to be taken by the client."""
        return self._exchange.wire.write_paused

    def write(self, data: bytes) -> None:
        """Queues a piece; the first takes the head along."""
        exchange = self._exchange
        chunk = self._chunk(data)
        if not exchange.started_status:
            chunk = self._head() + chunk
        if chunk:
            exchange.wire.write(chunk)
        exchange.sent += len(data)

    async def drain(self) -> None:
        """Waits until the client has taken enough."""
        if self._exchange.wire.write_paused:
            await self._exchange.wire.writable()

    def finish(self, data: bytes = b"") -> None:
        """The last piece and the end."""
        exchange = self._exchange
        self.finished = True
        first = b"" if exchange.started_status else self._head()
        last = b"" if exchange.is_http10 else _LAST_CHUNK
        exchange.wire.write(first + self._chunk(data) + last)
        exchange.sent += len(data)

    def _head(self) -> bytes:
        exchange = self._exchange
        exchange.started_status = self._status
        framing = "transfer-encoding: chunked\r\n"
        if exchange.is_http10:
            exchange.keep_alive = False
            framing = ""
        return head(self._status, self._headers, framing + exchange.connection_line())

    def _chunk(self, data: bytes) -> bytes:
        if data and not self._exchange.is_http10:
            return b"%x\r\n%b\r\n" % (len(data), data)
        return data


def too_large(bytes_max: int) -> GatewayError:
    """The refusal of a body."""
    return GatewayError(
        error_pb2.ERROR_REASON_REQUEST_TOO_LARGE,
        f"The body is larger than {bytes_max} bytes, which is the limit of this endpoint; "
        "send less of it.",
    )
