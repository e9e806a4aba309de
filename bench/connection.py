"""One client connection of the load: raw bytes, one request at a time, as little work as can be."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

DONE: Final = b"data: [DONE]"
LAST_CHUNK: Final = b"\r\n0\r\n\r\n"
CHUNKED: Final = 1 << 62
"""What stands for the length of an answer that does not tell its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What one request looks like."""

    port: int
    model: str
    key: str
    stream: bool = False
    body_bytes: int = 600
    path: str = "/v1/chat/completions"
    headers: tuple[tuple[str, str], ...] = ()

    def request(self) -> bytes:
        """The whole request as bytes."""
        body: dict[str, object] = {
            "model": self.model,
            "messages": [{"role": "user", "content": ""}],
            "temperature": 0.7,
        }
        if self.stream:
            body["stream"] = True
        missing = max(self.body_bytes - len(json.dumps(body)), 1)
        body["messages"] = [
            {"role": "user", "content": ("tell me a story " * (missing // 16 + 1))[:missing]}
        ]
        payload = json.dumps(body).encode()
        head = [
            f"POST {self.path} HTTP/1.1",
            f"host: 127.0.0.1:{self.port}",
            f"authorization: Bearer {self.key}",
            "content-type: application/json",
            f"content-length: {len(payload)}",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        return "\r\n".join(head).encode() + b"\r\n\r\n" + payload

    def question(self, path: str) -> bytes:
        """A request without a body, such as ``/healthz``."""
        head = [f"GET {path} HTTP/1.1", f"host: 127.0.0.1:{self.port}"]
        return "\r\n".join([*head, f"authorization: Bearer {self.key}", "", ""]).encode()


@dataclass(frozen=True, slots=True)
class Answer:
    """How a request ended: ``why`` is empty, or says what was wrong (``503``, ``no [DONE]``)."""

    why: str
    sent_at_s: float
    first_byte_at_s: float
    ended_at_s: float
    retry_after: bool = False


OnEnd = Callable[["Connection", Answer], None]


class Connection(asyncio.Protocol):
    """One connection; the end of each request is told to ``on_end``."""

    def __init__(self, on_end: OnEnd, *, stream: bool) -> None:
        self.scheduled_at_s = 0.0
        self.busy = False
        self.alive = False
        self._sent_at_s = 0.0
        self._first_byte_at_s = 0.0
        self.on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._status = ""
        self._tail = b""
        self._expected = -1
        self._received = 0
        self._wants_stream = self._stream = stream

    @classmethod
    async def to(cls, shape: Shape, on_end: OnEnd) -> "Connection":
        """A connection that is open. Raises ``OSError``."""
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: cls(on_end, stream=shape.stream), "127.0.0.1", shape.port
        )
        return connection

    def send(self, request: bytes, scheduled_at_s: float) -> None:
        """Sends a request; none may be under way."""
        assert self._transport is not None
        self._head = self._tail = b""
        self._status = ""
        self._expected = -1
        self._received = 0
        self._stream = self._wants_stream
        self.busy = True
        self._first_byte_at_s = 0.0
        self.scheduled_at_s = scheduled_at_s
        self._sent_at_s = time.perf_counter()
        self._transport.write(request)

    def leave(self) -> None:
        """Ends the connection; what is under way is told to nobody."""
        self.busy = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        # uvloop's transport is one by behaviour, not by class.
        self._transport = cast("asyncio.Transport", transport)
        self.alive = True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """A request that is under way has failed."""
        self.alive = False
        self._end(self._status or "connection lost")

    def data_received(self, data: bytes) -> None:
        """Looks for the end of the answer."""
        if not self._first_byte_at_s and (not self._stream or b"data: {" in data):
            self._first_byte_at_s = time.perf_counter()
        self._received += len(data)
        self._tail = data[-64:] if len(data) >= 64 else (self._tail + data)[-64:]
        if self._expected < 0 and not self._read_head(data):
            return
        if self._received == self._expected or (
            self._expected == CHUNKED and self._tail.endswith(LAST_CHUNK)
        ):
            whole = not self._stream or DONE in self._tail
            self._end(self._status or ("" if whole else "no [DONE]"))

    def _read_head(self, data: bytes) -> bool:
        """Learns the status and how long the answer is; whether the head is complete."""
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return False
        self._head = self._head[:end].lower()
        status = self._head[9:12].decode("latin-1")
        if status != "200":
            self._status = status
            self._stream = False
        place = self._head.find(b"content-length:")
        if place < 0:
            self._expected = CHUNKED
        else:
            self._expected = end + 4 + int(self._head[place + 15 :].split(b"\r\n", 1)[0])
        return True

    def _end(self, why: str) -> None:
        if not self.busy:
            return
        self.busy = False
        now_s = time.perf_counter()
        if self.alive and b"connection: close" in self._head:
            self.alive = False
        advice = b"\nretry-after:" in self._head
        self.on_end(
            self, Answer(why, self._sent_at_s, self._first_byte_at_s or now_s, now_s, advice)
        )
