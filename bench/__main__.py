"""Measures the gateway and its peers in one run: ``make bench`` (see ``--help``).

Every measurement is repeated over all gateways in turn (A B C, A B C, …), so that a slow minute
of the machine hits all of them; the table gives medians and the spread. The gateway with all its
processes has one core, the load and the upstream the other.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvloop

from bench import report
from bench.gateways import GATEWAYS, Gateway, Running, direct
from bench.load import Shape, Tally, closed_loop, open_loop, quantile

PORT: Final = 18_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One line of the plan: what is run and what of it goes into the table."""

    name: str
    run: Callable[[Running, float], Tally]
    figures: tuple[str, ...]


def _shape(
    running: Running, *, stream: bool = False, paced: bool = False, size: int = 600
) -> Shape:
    return Shape(
        port=running.port,
        model=running.paced_model if paced else running.model,
        key=running.key,
        path=running.path,
        headers=running.headers,
        stream=stream,
        body_bytes=size,
    )


def _closed(
    connections: int, *, stream: bool = False, paced: bool = False, size: int = 600
) -> Callable[[Running, float], Tally]:
    def run(running: Running, duration_s: float) -> Tally:
        shape = _shape(running, stream=stream, paced=paced, size=size)
        return uvloop.run(closed_loop(shape, connections, duration_s))

    return run


def _open(rate: float, *, stream: bool = False) -> Callable[[Running, float], Tally]:
    def run(running: Running, duration_s: float) -> Tally:
        return uvloop.run(open_loop(_shape(running, stream=stream), rate, duration_s))

    return run


RATE: Final = ("rate", "cpu_us", "failed")
LATENCY: Final = ("p50_ms", "p99_ms", "failed")
PLAN: Final = [
    Measurement(name="requests, 32 connections", run=_closed(32), figures=RATE),
    Measurement(name="requests, 128 connections", run=_closed(128), figures=RATE),
    Measurement(
        name="64-chunk streams, 32 connections", run=_closed(32, stream=True), figures=RATE
    ),
    Measurement(
        name="paced streams, 128 at once",
        run=_closed(128, stream=True, paced=True),
        figures=("rate", "cpu_us", "first_p50_ms", "failed"),
    ),
    Measurement(name="latency at 50/s", run=_open(50), figures=LATENCY),
    Measurement(name="latency at 400/s", run=_open(400), figures=LATENCY),
    Measurement(
        name="streams at 50/s",
        run=_open(50, stream=True),
        figures=("first_p50_ms", "first_p99_ms", "failed"),
    ),
    Measurement(name="requests of 100 KB", run=_closed(32, size=100_000), figures=RATE),
    Measurement(name="requests of 1 MB", run=_closed(8, size=1_000_000), figures=RATE),
]


@dataclass(slots=True)
class Series:
    """The rounds of one measurement at one gateway: figure name to values."""

    values: dict[str, list[float]] = field(default_factory=dict)
    cpu_us_by_process: dict[str, list[float]] = field(default_factory=dict)

    def add(self, tally: Tally, cpu_s: dict[str, float]) -> None:
        """Takes one round in. CPU covers warm-up too, which the tally leaves out: hence the 1.1."""
        done = max(tally.completed * 1.1, 1)
        figures = {
            "rate": tally.rate,
            "cpu_us": sum(cpu_s.values()) / done * 1e6,
            "failed": float(tally.failed),
            "p50_ms": quantile(tally.latencies_s, 0.5) * 1e3,
            "p99_ms": quantile(tally.latencies_s, 0.99) * 1e3,
            "first_p50_ms": quantile(tally.first_bytes_s, 0.5) * 1e3,
            "first_p99_ms": quantile(tally.first_bytes_s, 0.99) * 1e3,
        }
        for name, value in figures.items():
            self.values.setdefault(name, []).append(value)
        for process, spent in cpu_s.items():
            self.cpu_us_by_process.setdefault(process, []).append(spent / done * 1e6)

    def median(self, name: str) -> float:
        """The median of a figure over the rounds."""
        return statistics.median(self.values[name])

    def spread(self, name: str) -> float:
        """(greatest - least) ÷ median over the rounds; 0 when the median is 0."""
        middle = self.median(name)
        return (max(self.values[name]) - min(self.values[name])) / middle if middle else 0.0


Results = dict[str, dict[str, Series]]
"""Measurement to gateway to its rounds."""


def _round(
    gateway: Gateway, upstream: Running, plan: list[Measurement], duration_s: float, out: Results
) -> report.Memory:
    """Starts one gateway and takes all its measurements once."""
    with (
        tempfile.TemporaryDirectory() as place,
        gateway.start(Path(place), PORT + 1, upstream.port) as running,
    ):
        idle_mb = running.rss_mb()
        for measurement in plan:
            before = running.cpu_s()
            tally = measurement.run(running, duration_s)
            after = running.cpu_s()
            spent = {name: after[name] - before.get(name, 0.0) for name in after}
            by_gateway = out.setdefault(measurement.name, {})
            by_gateway.setdefault(gateway.name, Series()).add(tally, spent)
            _progress(gateway.name, measurement, tally)
        return report.Memory(idle_mb=idle_mb, loaded_mb=running.rss_mb())


def _progress(name: str, measurement: Measurement, tally: Tally) -> None:
    troubles = f"  {tally.failures}" if tally.failed else ""
    print(
        f"  {name:12} {measurement.name:34} {tally.rate:9.0f}/s"
        f"  p50 {quantile(tally.latencies_s, 0.5) * 1e3:8.2f} ms{troubles}",
        file=sys.stderr,
        flush=True,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    names = [gateway.name for gateway in GATEWAYS]
    parser.add_argument("--only", nargs="*", default=names, metavar="NAME", help=" ".join(names))
    parser.add_argument("--rounds", type=int, default=1, help="how often the whole plan is run")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one measurement")
    parser.add_argument("--quick", action="store_true", help="only the first four measurements")
    parser.add_argument("--write", action="store_true", help="write bench/RESULTS.md and the plot")
    return parser.parse_args()


def main() -> None:
    """Runs the plan and prints the table."""
    arguments = _arguments()
    chosen = [gateway for gateway in GATEWAYS if gateway.name in arguments.only]
    missing = [gateway.name for gateway in chosen if not gateway.installed()]
    if missing:
        print(
            f"not installed, left out: {', '.join(missing)} (python -m bench.install)",
            file=sys.stderr,
        )
    plan = PLAN[:4] if arguments.quick else PLAN
    results: Results = {}
    memory: dict[str, report.Memory] = {}
    with tempfile.TemporaryDirectory() as place, direct(Path(place), PORT) as upstream:
        itself = Gateway(
            name="direct", start=lambda *_: report.already(upstream), installed=lambda: True
        )
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
            for gateway in [itself, *chosen]:
                if gateway.installed():
                    memory[gateway.name] = _round(
                        gateway, upstream, plan, arguments.seconds, results
                    )
    figures = {measurement.name: measurement.figures for measurement in plan}
    table = report.render(results, figures, memory)
    print(table)
    if arguments.write:
        report.write(table, results)


if __name__ == "__main__":
    main()
