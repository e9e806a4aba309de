"""What is measured, and what becomes of the rounds: medians and spreads."""

import statistics
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

import uvloop

from bench.connection import Shape
from bench.load import Tally, closed_loop, open_loop, quantile
from bench.machine import Cores, busy_s, now_s
from bench.processes import Running

Watch = Callable[[], None]

RATE: Final = ("rate", "cpu_us", "failed")
LATENCY: Final = ("p50_ms", "p99_ms", "failed")
FIRST: Final = ("first_p50_ms", "first_p99_ms", "failed")
FULL: Final = 0.97
"""Above this share of its core's time, the load and not the gateway may be what is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One table: what is run and what of it is shown.

    Attributes:
        name: its heading.
        figures: the columns.
        connections: how many of a closed loop; 0 for an open one.
        rate: requests a second of an open loop.
        stream: whether answers are streams of 64 chunks.
        paced: whether the chunks come at a provider's pace instead of at once.
        body_bytes: how long the request's body is.
        stretch: how much longer than the others it takes.
    """

    name: str
    figures: tuple[str, ...]
    connections: int = 0
    rate: float = 0.0
    stream: bool = False
    paced: bool = False
    body_bytes: int = 600
    stretch: float = 1.0

    def shape(self, running: Running) -> Shape:
        """The request, as a gateway wants it."""
        return Shape(
            port=running.port,
            model=running.paced_model if self.paced else running.model,
            key=running.key,
            path=running.path,
            headers=running.headers,
            stream=self.stream,
            body_bytes=self.body_bytes,
        )

    def load(self, running: Running, duration_s: float, watch: Watch) -> Coroutine[Any, Any, Tally]:
        """The load itself."""
        shape = self.shape(running)
        if self.rate:
            return open_loop(shape, self.rate, duration_s * self.stretch, watch)
        return closed_loop(shape, self.connections, duration_s * self.stretch, watch)


REQUESTS_32: Final = Measurement(name="requests, 32 connections", connections=32, figures=RATE)
REQUESTS_128: Final = Measurement(name="requests, 128 connections", connections=128, figures=RATE)
STREAMS: Final = Measurement(
    name="64-chunk streams, 32 connections", connections=32, stream=True, figures=RATE
)
PACED: Final = Measurement(
    name="paced streams, 128 at once",
    connections=128,
    stream=True,
    paced=True,
    figures=("rate", "cpu_us", "first_p50_ms", "failed"),
    stretch=1.5,
)
LATENCY_50: Final = Measurement(name="latency at 50/s", rate=50, figures=LATENCY, stretch=1.5)
LATENCY_400: Final = Measurement(name="latency at 400/s", rate=400, figures=LATENCY)
FIRST_50: Final = Measurement(
    name="streams at 50/s", rate=50, stream=True, figures=FIRST, stretch=1.5
)
FIRST_400: Final = Measurement(name="streams at 400/s", rate=400, stream=True, figures=FIRST)
BODY_100K: Final = Measurement(
    name="requests of 100 KB, 32 connections", connections=32, body_bytes=100_000, figures=RATE
)
BODY_1M: Final = Measurement(
    name="requests of 1 MB, 8 connections", connections=8, body_bytes=1_000_000, figures=RATE
)
PLAN: Final = [
    REQUESTS_32,
    REQUESTS_128,
    STREAMS,
    PACED,
    LATENCY_50,
    LATENCY_400,
    FIRST_50,
    FIRST_400,
    BODY_100K,
    BODY_1M,
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One measurement of one gateway, once. Shares are of a core's time, 0 to 1."""

    tally: Tally
    cpu_s: dict[str, float]
    foreign: float
    """What others than the gateway took of its core."""
    load: float
    """How busy the load's core was."""


def measure(measurement: Measurement, running: Running, cores: Cores, duration_s: float) -> Round:
    """Takes one round; CPU time is that of the window that the tally counts."""
    seen: list[tuple[float, dict[int, float], dict[str, float]]] = []

    def watch() -> None:
        seen.append((now_s(), busy_s(cores), running.cpu_s()))

    tally = uvloop.run(measurement.load(running, duration_s, watch))
    (began_s, busy_before, own_before), (ended_s, busy_after, own_after) = seen[0], seen[-1]
    took_s = max(ended_s - began_s, 1e-9)
    own = {name: spent - own_before.get(name, 0.0) for name, spent in own_after.items()}
    busy = {core: busy_after[core] - busy_before[core] for core in busy_after}
    return Round(
        tally=tally,
        cpu_s=own,
        foreign=max(busy[cores.gateway] - sum(own.values()), 0.0) / took_s,
        load=busy[cores.load] / took_s,
    )


@dataclass(slots=True)
class Series:
    """The rounds of one measurement at one gateway: figure name to values."""

    values: dict[str, list[float]] = field(default_factory=dict)
    cpu_us: dict[str, list[float]] = field(default_factory=dict)
    """By process."""

    def add(self, taken: Round) -> None:
        """Takes one round in."""
        tally = taken.tally
        done = max(tally.completed, 1)
        figures = {
            "rate": tally.rate,
            "cpu_us": sum(taken.cpu_s.values()) / done * 1e6,
            "failed": float(tally.failed),
            "answered": float(tally.completed),
            "p50_ms": quantile(tally.latencies_s, 0.5) * 1e3,
            "p99_ms": quantile(tally.latencies_s, 0.99) * 1e3,
            "first_p50_ms": quantile(tally.first_bytes_s, 0.5) * 1e3,
            "first_p99_ms": quantile(tally.first_bytes_s, 0.99) * 1e3,
            "late_p99_ms": quantile(tally.late_s, 0.99) * 1e3,
            "foreign": taken.foreign,
            "load": taken.load,
        }
        for name, value in figures.items():
            self.values.setdefault(name, []).append(value)
        for process, spent in taken.cpu_s.items():
            self.cpu_us.setdefault(process, []).append(spent / done * 1e6)

    def median(self, name: str) -> float:
        """The median of a figure over the rounds; 0 of none."""
        return statistics.median(self.values.get(name) or [0.0])

    def spread(self, name: str) -> float:
        """(greatest - least) ÷ median over the rounds; 0 when the median is 0."""
        middle = self.median(name)
        return (max(self.values[name]) - min(self.values[name])) / middle if middle else 0.0

    @property
    def usable(self) -> bool:
        """Whether the gateway coped: nearly all it was asked was answered."""
        answered, failed = self.median("answered"), self.median("failed")
        return answered > 0 and failed <= answered / 100


Results = dict[str, dict[str, Series]]
"""Measurement to gateway to its rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of all processes of a gateway, in MB. ``idle_pss_mb`` counts shared pages once."""

    idle_mb: float
    idle_pss_mb: float
    loaded_mb: float
    by_process: dict[str, float]
