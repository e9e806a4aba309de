"""The load: raw connections that send the same request and time the answer.

Closed loop: every connection sends again as soon as it has its answer; gives throughput. Open
loop: requests start on a schedule whatever the answers do, and their latency counts from the
scheduled moment, so that a slow answer cannot hide the wait of those behind it.
"""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

DONE: Final = b"data: [DONE]"
CONNECTIONS_MAX: Final = 2000
FINISH_STEPS: Final = 3000
FINISH_STEP_S: Final = 0.01


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


@dataclass(slots=True)
class Tally:
    """What a run gave; times in seconds."""

    duration_s: float = 0.0
    completed: int = 0
    failed: int = 0
    latencies_s: list[float] = field(default_factory=list)
    first_bytes_s: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)

    def fail(self, why: str) -> None:
        """Counts one failure."""
        self.failed += 1
        self.failures[why] = self.failures.get(why, 0) + 1

    @property
    def rate(self) -> float:
        """Completed requests a second."""
        return self.completed / self.duration_s if self.duration_s else 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the values lie; 0 of none."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, on_end: Callable[["Connection", str], None]) -> None:
        self.sent_at = 0.0
        self.first_byte_at = 0.0
        self.scheduled_at = 0.0
        self.busy = False
        self.alive = False
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes] = []
        self._expected = -1
        self._received = 0
        self._stream = False

    def send(self, request: bytes, *, stream: bool, scheduled_at: float) -> None:
        """Sends; the end is told to ``on_end`` with the reason of a failure or an empty text."""
        assert self._transport is not None
        self._pieces = []
        self._expected = -1
        self._received = 0
        self._stream = stream
        self.busy = True
        self.first_byte_at = 0.0
        self.scheduled_at = scheduled_at
        self.sent_at = time.perf_counter()
        self._transport.write(request)

    def close(self) -> None:
        """Closes the connection."""
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
        if self.busy:
            self._end("connection lost")

    def data_received(self, data: bytes) -> None:
        """Looks for the end of the answer."""
        if not self.first_byte_at and (not self._stream or b"data: {" in data):
            self.first_byte_at = time.perf_counter()
        self._received += len(data)
        if self._expected < 0:
            self._pieces.append(data)
            joined = b"".join(self._pieces)
            end = joined.find(b"\r\n\r\n")
            if end < 0:
                return
            head = joined[:end].lower()
            if not joined.startswith(b"HTTP/1.1 200"):
                self._end(joined[9:12].decode("latin-1"))
                self.close()
                return
            place = head.find(b"content-length:")
            if place >= 0:
                self._expected = end + 4 + int(head[place + 15 :].split(b"\r\n", 1)[0])
            else:
                self._expected = 1 << 62
            self._pieces = [joined[-64:]]
        else:
            self._pieces = [(self._pieces[-1] + data)[-64:]]
        if self._received == self._expected or (
            self._expected == 1 << 62 and self._pieces[-1].endswith(b"\r\n0\r\n\r\n")
        ):
            complete = not self._stream or DONE in self._pieces[-1]
            self._end("" if complete else "no [DONE]")

    def _end(self, why: str) -> None:
        if self.busy:
            self.busy = False
            self._on_end(self, why)


async def closed_loop(shape: Shape, connections: int, duration_s: float) -> Tally:
    """Throughput with a fixed number of connections; a tenth of the time goes first, unmeasured."""
    request = shape.request()
    tally = Tally()
    start = time.perf_counter() + duration_s / 10
    stop = start + duration_s
    over = asyncio.get_running_loop().create_future()

    def ended(connection: Connection, why: str) -> None:
        now = time.perf_counter()
        if start <= now < stop:
            if why:
                tally.fail(why)
            else:
                tally.completed += 1
                tally.latencies_s.append(now - connection.sent_at)
                tally.first_bytes_s.append(connection.first_byte_at - connection.sent_at)
        if now < stop and connection.alive and not why:
            connection.send(request, stream=shape.stream, scheduled_at=now)
        elif now >= stop and not over.done():
            over.set_result(None)

    opened = [await _connect(shape.port, ended) for _ in range(connections)]
    for connection in opened:
        connection.send(request, stream=shape.stream, scheduled_at=time.perf_counter())
    try:
        await asyncio.wait_for(over, duration_s * 2 + 30)
    except TimeoutError:
        tally.fail("stuck")
    tally.duration_s = duration_s
    for connection in opened:
        connection.busy = False
        connection.close()
    return tally


async def open_loop(shape: Shape, rate: float, duration_s: float) -> Tally:
    """Latency at a fixed rate, from the scheduled moment; a tenth of the time goes first,
    unmeasured.
    """
    request = shape.request()
    tally = Tally()
    idle: list[Connection] = []
    everyone: list[Connection] = []
    begin = time.perf_counter()
    start = begin + duration_s / 10

    def ended(connection: Connection, why: str) -> None:
        if connection.scheduled_at >= start:
            if why:
                tally.fail(why)
            else:
                tally.completed += 1
                tally.latencies_s.append(time.perf_counter() - connection.scheduled_at)
                tally.first_bytes_s.append(connection.first_byte_at - connection.scheduled_at)
        if connection.alive and not why:
            idle.append(connection)

    for number in range(int(rate * duration_s * 1.1)):
        due = begin + number / rate
        delay = due - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        connection = idle.pop() if idle else None
        if connection is None or not connection.alive:
            if len(everyone) >= CONNECTIONS_MAX:
                tally.fail("too many connections")
                continue
            connection = await _connect(shape.port, ended)
            everyone.append(connection)
        connection.send(request, stream=shape.stream, scheduled_at=due)
    tally.duration_s = duration_s
    await _finish(everyone, tally)
    return tally


async def _finish(connections: Sequence[Connection], tally: Tally) -> None:
    """Waits for what is still under way, then closes everything."""
    for _ in range(FINISH_STEPS):
        if not any(connection.busy for connection in connections):
            break
        await asyncio.sleep(FINISH_STEP_S)
    for connection in connections:
        if connection.busy:
            connection.busy = False
            tally.fail("stuck")
        connection.close()


async def _connect(port: int, ended: Callable[[Connection, str], None]) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: Connection(ended), "127.0.0.1", port
    )
    return connection
