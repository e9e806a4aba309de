"""The edge's own small HTTP: what a handler sees of a request, and what it answers with.

The server behind it is ``http_server.py`` (listening, timers, draining) and ``http_connection.py``
(one connection). It is ours because deadlines, limits, backpressure and disconnects must be exact,
and because it costs a third of the next best (``docs/decisions``). HTTP/1.1 and 1.0 only: TLS and
HTTP/2 end at the ingress.
"""

import http
import re
from collections.abc import Coroutine, Mapping, Sequence
from typing import Final, Protocol

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError

Headers = Sequence[tuple[str, str]] | str
"""Names in lower case and their values; or the lines as they go out, each with its end, by who
knows that no value holds a line break.
"""

ONE_WRITE_BYTES: Final = 64 * 1024
"""Answers up to this size are joined with their head; larger ones are not copied."""

_SPLITS: Final = re.compile(r"[\r\n\0]")
_STATUS_LINES: Final[Mapping[int, str]] = {
    **{status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in http.HTTPStatus},
    499: "HTTP/1.1 499 Client Closed Request\r\n",
}


class HttpRefusalError(GatewayError):
    """A refusal whose status is HTTP's own business and not one of the reasons'.

    Args:
        status: the HTTP status.
        message: what happened and what to do next.
        headers: what the answer's head must say.
        reason: why, where there is a word for it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        headers: Sequence[tuple[str, str]] = (),
        reason: int = error_pb2.ERROR_REASON_INVALID_REQUEST,
    ) -> None:
        super().__init__(reason, message)
        self.status = status
        self.headers = headers


class Response:
    """A whole answer. ``content-length`` and ``connection`` are added when it is written."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Headers, body: bytes = b"") -> None:
        self.status = status
        self.headers = headers
        self.body = body


class Stream(Protocol):
    """An answer that is written in pieces. Its head goes out with the first piece."""

    @property
    def paused(self) -> bool:
        """Whether 64 KiB wait to be taken by the client. Then await :meth:`drain`."""
        ...

    def write(self, data: bytes) -> None:
        """Queues a piece; does nothing once the client has left."""
        ...

    async def drain(self) -> None:
        """Waits until no more than 32 KiB wait. A client that takes nothing for
        ``stall_timeout_s`` is disconnected meanwhile, which cancels the handler.
        """
        ...

    def finish(self, data: bytes = b"") -> None:
        """The last piece. A stream whose handler ends without it is cut off, visibly."""
        ...


class Request(Protocol):
    """One request. Its handler's task is cancelled at once when the client leaves."""

    method: str
    path: bytes
    """The target up to its query, as it was sent: still percent-encoded, ASCII."""
    query: bytes
    headers: Mapping[bytes, bytes]
    """Names in lower case; values of a name that came twice are joined by a comma."""
    content_length: int | None
    """The announced length of the body; ``None`` when it comes in chunks, 0 without a body."""
    body_bytes_max: int
    """The longest body that is taken; the application may set it while it opens the request."""
    received_s: float
    """When the head was complete, on the monotonic clock."""
    note: object
    """The application's own; the server leaves it alone."""

    @property
    def client(self) -> str:
        """The peer's network address."""
        ...

    @property
    def draining(self) -> bool:
        """Whether the handler was cancelled because the process shuts down, not because the
        client has left: a last word can still be written.
        """
        ...

    async def body(self) -> bytes:
        """The whole body. Raises REQUEST_TOO_LARGE, REQUEST_TIMEOUT."""
        ...

    def stream(self, status: int, headers: Headers) -> Stream:
        """Begins an answer in pieces; the handler then returns ``None``."""
        ...


Handling = Coroutine[None, None, Response | None]


class Application(Protocol):
    """What the server serves."""

    def open(self, request: Request) -> Response | Handling:
        """Called as soon as a head is complete, before any body: an answer, which ends the matter,
        or what will make one.
        """
        ...

    def refuse(self, request: Request | None, error: GatewayError) -> Response:
        """An error as an answer; without a request when its head could not be read."""
        ...

    def failed(self, request: Request, defect: BaseException) -> Response:
        """A handler broke: the answer, if none has begun."""
        ...

    def finished(self, request: Request, status: int, sent: int) -> None:
        """A request is over: its answer was written, or broken off.

        Args:
            request: which one.
            status: the answer's status; 499 when the client left before there was one.
            sent: how many bytes of body were written.
        """
        ...


def head(status: int, headers: Headers, framing: str) -> bytes:
    """A head. What could split it is taken out of the values: a model's name, say, is its
    provider's.

    Args:
        status: the HTTP status.
        headers: names in lower case.
        framing: the header lines that say how long the answer is and what becomes of the
            connection, each with its line end.
    """
    if isinstance(headers, str):
        return f"{_STATUS_LINES[status]}{headers}{framing}\r\n".encode("latin-1", "replace")
    text = _head(status, headers, framing)
    ends = len(headers) + framing.count("\r\n") + 2
    if text.count("\n") != ends or text.count("\r") != ends or "\0" in text:
        text = _head(status, [(name, _SPLITS.sub("", value)) for name, value in headers], framing)
    return text.encode("latin-1", "replace")


def _head(status: int, headers: Sequence[tuple[str, str]], framing: str) -> str:
    lines = [f"{name}: {value}\r\n" for name, value in headers]
    return "".join((_STATUS_LINES[status], *lines, framing, "\r\n"))
