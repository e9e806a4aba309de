"""Readers that stop reading: what each costs in memory over all processes, and what they cost those
who go on.

The upstream pours without end, so that every buffer between it and the reader fills up.
"""

import asyncio
import socket
import statistics
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast

import uvloop

from bench.connection import Shape
from bench.gateways import alone
from bench.load import CLOSING_S, ClosedLoop, Tally, quantile
from bench.machine import Cores
from bench.plan import STREAMS
from bench.processes import Running
from bench.targets import Line

KIB_MAX: Final = 256.0
LOSS_MAX: Final = 20.0
FIRST_TIMEOUT_S: Final = 60.0
FULL_TIMEOUT_S: Final = 60.0
OPENING_AT_ONCE: Final = 50
RECEIVE_BYTES: Final = 4096
"""A small receive buffer: what a stalled reader costs shall not lie in its own kernel's."""
SETTINGS: Final[Mapping[str, Mapping[str, float]]] = {
    "edge": {"calls_max": 8000, "stall_timeout_s": 900.0, "connections_max": 20_000},
    "router": {"calls_max": 8000, "stall_timeout_s": 900.0},
    "rpc": {"calls_max": 8000},
}
"""Nobody is thrown out while we look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalled:
    """What a run gave; memory in MB by process."""

    readers: int
    live: int
    before_mb: Mapping[str, float]
    after_mb: Mapping[str, float]
    kernel_kib: float
    """Kernel buffers of all sockets of the machine, more than before, a reader."""
    alone: Tally
    beside: Tally

    def kib(self, process: str | None = None) -> float:
        """What a stalled reader costs, in KiB, in one process or in all."""
        names = self.after_mb if process is None else [process]
        grown = sum(self.after_mb[name] - self.before_mb.get(name, 0.0) for name in names)
        return grown * 1e6 / 1024 / self.readers

    def lines(self) -> list[Line]:
        """The targets, held against it."""
        return [
            Line(
                name=f"memory of a stalled reader ({self.readers:,} of them), all processes",
                value=self.kib(),
                bound=KIB_MAX,
                at_least=False,
                unit=" KiB",
            ),
            Line(
                name=f"{self.live:,} live streams beside them: first byte p99 later by",
                value=_loss(self.alone.first_bytes_s, self.beside.first_bytes_s),
                bound=LOSS_MAX,
                at_least=False,
                unit=" %",
            ),
            Line(
                name="whole stream p99 later by",
                value=_loss(self.alone.latencies_s, self.beside.latencies_s),
                bound=LOSS_MAX,
                at_least=False,
                unit=" %",
            ),
            Line(
                name="live streams that failed",
                value=self.alone.failed + self.beside.failed,
                bound=0,
                at_least=False,
                unit="",
            ),
        ]

    def text(self) -> str:
        """Figures beside the targets."""
        rows = [
            (f"{name}: RSS before, with {self.readers:,} stalled, each", _grown(self, name))
            for name in self.after_mb
        ]
        rows.append(("kernel socket buffers of the machine, each", f"{self.kernel_kib:.0f} KiB"))
        for words, tally in (("alone", self.alone), ("beside", self.beside)):
            first_s, whole_s = tally.first_bytes_s, tally.latencies_s
            figures = [f"{tally.completed:,}", *_two(first_s, "ms", 1e3), *_two(whole_s, "s", 1)]
            name = f"live streams {words}: completed; first byte p50, p99; whole p50, p99"
            rows.append((name, ", ".join(figures)))
        return "\n".join(["| figure | value |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def _grown(found: Stalled, name: str) -> str:
    before, after = found.before_mb.get(name, 0.0), found.after_mb[name]
    return f"{before:.0f} MB, {after:.0f} MB, {found.kib(name):.1f} KiB"


def _two(times_s: list[float], unit: str, scale: float) -> list[str]:
    """The median and the 99th percentile, as text."""
    return [f"{quantile(times_s, share) * scale:.2f} {unit}" for share in (0.5, 0.99)]


def _loss(before: list[float], after: list[float]) -> float | None:
    """How much later the 99th percentile is, in percent."""
    base = quantile(before, 0.99)
    return (quantile(after, 0.99) / base - 1) * 100 if base and after else None


class Reader(asyncio.Protocol):
    """Asks for a stream, takes its first bytes and reads no more."""

    def __init__(self) -> None:
        self.began: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    def ask(self, request: bytes) -> None:
        """Sends the request."""
        assert self._transport is not None
        self._transport.write(request)

    def leave(self) -> None:
        """Goes."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """The first bytes, and no more."""
        if self._transport is not None:
            self._transport.pause_reading()
        if not self.began.done():
            self.began.set_result(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Thrown out."""
        if not self.began.done():
            self.began.set_exception(exc or ConnectionError("the gateway hung up"))


async def stall(shape: Shape, readers: int) -> list[Reader]:
    """So many readers that have stopped. Raises ``RuntimeError`` when one gets no stream."""
    request = shape.request()
    free = asyncio.Semaphore(OPENING_AT_ONCE)

    async def one() -> Reader:
        async with free:
            wire = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            wire.setblocking(False)
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(wire, ("127.0.0.1", shape.port))
            _, reader = await loop.create_connection(Reader, sock=wire)
            reader.ask(request)
            async with asyncio.timeout(FIRST_TIMEOUT_S):
                first = await reader.began
            if not first.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"refused: {first[:300]!r}")
            return reader

    return list(await asyncio.gather(*(one() for _ in range(readers))))


def kernel_kib() -> float:
    """What the kernel holds in TCP buffers, of all processes of the machine, in KiB."""
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            fields = line.split()
            return int(fields[fields.index("mem") + 1]) * 4.0
    return 0.0


async def still(running: Running) -> dict[str, float]:
    """RSS by process once it no longer grows."""
    seen = [sum(running.rss_mb().values())]
    deadline = asyncio.get_running_loop().time() + FULL_TIMEOUT_S
    while asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(1.0)
        seen.append(sum(running.rss_mb().values()))
        if len(seen) > 3 and max(seen[-3:]) - min(seen[-3:]) < 0.002 * statistics.mean(seen[-3:]):
            break
    return running.rss_mb()


async def _live(shape: Shape, live: int, seconds: float) -> Tally:
    return await ClosedLoop(shape, live, seconds, answers_min=live).run()


async def _run(running: Running, readers: int, live: int, seconds: float) -> Stalled:
    slow = replace(STREAMS.shape(running), model=f"{running.model}-slow")
    endless = replace(STREAMS.shape(running), model=f"{running.model}-endless")
    by_itself = await _live(slow, live, seconds)
    before_mb, kernel = await still(running), kernel_kib()
    async with AsyncExitStack() as closing:
        stalled = await stall(endless, readers)
        for reader in stalled:
            closing.callback(reader.leave)
        after_mb = await still(running)
        grown = (kernel_kib() - kernel) / readers
        beside = await _live(slow, live, seconds)
    await asyncio.sleep(CLOSING_S)
    return Stalled(
        readers=readers,
        live=live,
        before_mb=before_mb,
        after_mb=after_mb,
        kernel_kib=grown,
        alone=by_itself,
        beside=beside,
    )


def measure_stalled(cores: Cores, readers: int, live: int, seconds: float) -> Stalled:
    """Live streams by themselves, then beside stalled readers."""
    with alone(cores, SETTINGS) as (_, running):
        return uvloop.run(_run(running, readers, live, seconds))
