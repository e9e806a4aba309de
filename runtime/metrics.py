"""Counts that cost a few additions where the work is done, and their Prometheus page.

Instruments are bound to their labels once and kept; adding to one is an attribute and a sum on
the event loop, without a lock (measured: 57 ns against 790 in ``prometheus-client``). Labels are
endpoints, statuses, providers, outcomes and kinds: never keys, callers or anything a caller can
make up. A bound keeps a mistake there from growing without end.
"""

import asyncio
import bisect
import itertools
import os
import resource
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from runtime.exposition import CONTENT_TYPE, Family, Sample, page
from runtime.process_metrics import ProcessMetrics

SERIES_MAX: Final = 1000
"""Sets of label values of one instrument; all beyond share one, labelled ``other``."""

DURATION_BUCKETS_S: Final = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)

_OTHER: Final = "other"

Cell = TypeVar("Cell", bound="Count | Durations")


class Count:
    """One number: of a counter, which only grows, or of a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def add(self, amount: int = 1) -> None:
        """Adds to it; a gauge may be added less than nothing."""
        self.value += amount


class Durations:
    """How long things took, in seconds, by bucket."""

    __slots__ = ("_bounds", "counts", "sum_s")

    def __init__(self) -> None:
        self._bounds = DURATION_BUCKETS_S
        self.counts = [0] * (len(DURATION_BUCKETS_S) + 1)
        self.sum_s = 0.0

    def observe(self, duration_s: float) -> None:
        """Counts one."""
        self.counts[bisect.bisect_left(self._bounds, duration_s)] += 1
        self.sum_s += duration_s


class Instrument(Generic[Cell]):
    """All series of one metric. :meth:`labelled` finds one; keep it where the path is hot."""

    def __init__(self, name: str, labels: Sequence[str], make: Callable[[], Cell]) -> None:
        self.name = name
        self.labels = tuple(labels)
        self._make = make
        self._cells: dict[tuple[str, ...], Cell] = {}

    def labelled(self, *values: str) -> Cell:
        """The series with these label values, in the order of ``labels``."""
        cell = self._cells.get(values)
        if cell is None:
            if len(values) != len(self.labels):
                raise ValueError(f"{self.name} has the labels {self.labels}, not {values}.")
            if len(self._cells) >= SERIES_MAX:
                values = (_OTHER,) * len(values)
            cell = self._cells.setdefault(values, self._make())
        return cell

    def labelling(self, values: Sequence[str]) -> list[tuple[str, str]]:
        """Label values with their names."""
        return list(zip(self.labels, values, strict=True))

    def series(self) -> Iterable[tuple[tuple[str, ...], Cell]]:
        """Every series with its label values."""
        return self._cells.items()


class Metrics:
    """A process's instruments, all named ``onegate_<service>_…``, and the page of them.

    Attributes:
        requests: finished requests by endpoint and status.
        durations: how long requests took, by endpoint.
        in_flight: requests under way.
        attempts: provider calls by provider and outcome.
        first_tokens: time to a provider's first token, by provider.
        tokens: tokens by kind (input, cached, output, reasoning, …).
    """

    def __init__(self, service: str) -> None:
        self._prefix = f"onegate_{service}_"
        self._families: list[Callable[[], Family]] = []
        self.requests = self.counter("requests", "Finished requests.", ("endpoint", "status"))
        self.durations = self.histogram(
            "request_duration_seconds", "How long requests took.", ("endpoint",)
        )
        self.in_flight = self.gauge("in_flight", "Requests under way.").labelled()
        self.attempts = self.counter("attempts", "Provider calls.", ("provider", "outcome"))
        self.first_tokens = self.histogram(
            "time_to_first_token_seconds", "Time to a provider's first token.", ("provider",)
        )
        self.tokens = self.counter("tokens", "Tokens that were metered.", ("kind",))
        self._process = ProcessMetrics(os.sysconf("SC_CLK_TCK"), resource.getpagesize())

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Instrument[Count]:
        """A new counter; ``_total`` is put behind its name."""
        return self._counts(f"{name}_total", "counter", text, labels)

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Instrument[Count]:
        """A new gauge."""
        return self._counts(name, "gauge", text, labels)

    def _counts(self, name: str, kind: str, text: str, labels: Sequence[str]) -> Instrument[Count]:
        instrument = Instrument(self._prefix + name, labels, Count)

        def family() -> Family:
            samples = [
                Sample(labels=instrument.labelling(values), value=cell.value)
                for values, cell in instrument.series()
            ]
            return Family(name=instrument.name, kind=kind, text=text, samples=samples)

        self._families.append(family)
        return instrument

    def histogram(self, name: str, text: str, labels: Sequence[str] = ()) -> Instrument[Durations]:
        """A new histogram of seconds."""
        instrument = Instrument(self._prefix + name, labels, Durations)
        bounds = [*(str(bound) for bound in DURATION_BUCKETS_S), "+Inf"]

        def samples() -> Iterator[Sample]:
            for values, cell in instrument.series():
                labelling = instrument.labelling(values)
                counts = list(itertools.accumulate(cell.counts))
                for bound, count in zip(bounds, counts, strict=True):
                    yield Sample(labels=[*labelling, ("le", bound)], value=count, suffix="_bucket")
                yield Sample(labels=labelling, value=counts[-1], suffix="_count")
                yield Sample(labels=labelling, value=cell.sum_s, suffix="_sum")

        def family() -> Family:
            return Family(
                name=instrument.name, kind="histogram", text=text, samples=list(samples())
            )

        self._families.append(family)
        return instrument

    def reading(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge that is asked for its value whenever the page is made."""

        def family() -> Family:
            return Family(
                name=self._prefix + name, kind="gauge", text=text, samples=[Sample(value=read())]
            )

        self._families.append(family)

    def render(self) -> bytes:
        """The page, in Prometheus' text format (:data:`CONTENT_TYPE`)."""
        families = [family() for family in self._families]
        return page([*families, *self._process.families()])


HEAD_BYTES_MAX: Final = 8 * 1024
READ_TIMEOUT_S: Final = 5.0
WRITE_TIMEOUT_S: Final = 5.0
CONNECTIONS_MAX: Final = 16

_STATUS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class MetricsServer:
    """Answers ``GET /metrics`` over HTTP/1.1 and nothing else: one request a connection."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, address: str) -> int:
        """Listens on ``host:port`` and gives the port. Raises ``OSError`` when it is taken."""
        host, _, port = address.rpartition(":")
        self._server = await asyncio.start_server(
            self._accept, host.strip("[]"), int(port), limit=HEAD_BYTES_MAX
        )
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Stops listening and cuts what is under way."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        full = len(self._connections) >= CONNECTIONS_MAX
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer, full=full))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, full: bool
    ) -> None:
        try:
            async with asyncio.timeout(READ_TIMEOUT_S + WRITE_TIMEOUT_S):
                writer.write(_response(503) if full else await self._answer(reader))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except TimeoutError:
            return _response(408)
        except asyncio.LimitOverrunError:
            return _response(431)
        except asyncio.IncompleteReadError:
            return b""
        match head.split(b"\r\n", 1)[0].split(b" "):
            case [b"GET", target, version] if version.startswith(b"HTTP/1."):
                found = target.split(b"?", 1)[0] == b"/metrics"
                return _response(200, self._metrics.render()) if found else _response(404)
            case [_, _, version] if version.startswith(b"HTTP/1."):
                return _response(405)
            case _:
                return _response(400)


def _response(status: int, body: bytes = b"") -> bytes:
    allow = "Allow: GET\r\n" if status == 405 else ""
    return (
        f"HTTP/1.1 {status} {_STATUS[status]}\r\nContent-Type: {CONTENT_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\n{allow}Connection: close\r\n\r\n"
    ).encode() + body


async def serve_metrics(address: str, metrics: Metrics) -> MetricsServer:
    """Serves ``/metrics`` on ``host:port``. Raises ``OSError`` when the port is taken."""
    server = MetricsServer(metrics)
    await server.start(address)
    return server
