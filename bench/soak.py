"""Memory over many calls: is it flat? Requests and streams take turns, and after each turn every
process says how much it holds.
"""

import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import uvloop

from bench.gateways import alone
from bench.load import ClosedLoop, Tally
from bench.machine import Cores
from bench.plan import REQUESTS_32, STREAMS, Measurement
from bench.processes import Running
from bench.targets import Line

TURNS: Final = 40
WARM_TURNS: Final = 8
"""The first fifth fills caches and pools, and is looked at but not held against the rest."""
TURN_S_MAX: Final = 600.0
FLAT: Final = 5.0


@dataclass(slots=True)
class Soak:
    """What a run gave: after each turn, how many calls there were, and RSS by process in MB."""

    requests: int = 0
    streams: int = 0
    failed: int = 0
    turns: list[tuple[float, int, int, Mapping[str, float]]] = field(default_factory=list)

    def lines(self) -> list[Line]:
        """The targets, held against it."""
        totals = [sum(rss.values()) for *_, rss in self.turns[WARM_TURNS:]]
        middle = statistics.median(totals) if totals else 0.0
        off = max((abs(total - middle) for total in totals), default=0.0)
        name = f"RSS of all processes over {self.requests:,} requests and {self.streams:,} streams"
        return [
            Line(
                name=f"{name}, from its median",
                value=off / middle * 100 if middle else None,
                bound=FLAT,
                at_least=False,
                unit=" %",
            ),
            Line(name="calls that failed", value=self.failed, bound=0, at_least=False, unit=""),
        ]

    def text(self) -> str:
        """RSS over time."""
        names = list(self.turns[-1][3]) if self.turns else []
        rows = [f"| s | requests | streams | {' | '.join(names)} | all, MB |"]
        rows.append("|---" * (len(names) + 4) + "|")
        rows += [_row(turn, names) for turn in self.turns]
        return "\n".join(rows)


def _row(turn: tuple[float, int, int, Mapping[str, float]], names: list[str]) -> str:
    at_s, requests, streams, rss = turn
    cells = " | ".join(f"{rss.get(name, 0.0):.1f}" for name in names)
    return f"| {at_s:.0f} | {requests:,} | {streams:,} | {cells} | {sum(rss.values()):.1f} |"


def soak(cores: Cores, requests: int, streams: int, found: Soak, turns: int = TURNS) -> None:
    """Runs it; what is seen stands in ``found`` however it ends."""
    with alone(cores) as (_, running):
        began_s = time.monotonic()
        for number in range(turns):
            for measurement, wanted in ((REQUESTS_32, requests), (STREAMS, streams)):
                tally = _some(measurement, running, -(-wanted // turns))
                found.failed += tally.failed
                if measurement.stream:
                    found.streams += tally.completed
                else:
                    found.requests += tally.completed
            running.settle()
            rss = running.rss_mb()
            found.turns.append((time.monotonic() - began_s, found.requests, found.streams, rss))
            if number == 0:
                print("| s | requests | streams | by process | all, MB |", file=sys.stderr)
            print(_row(found.turns[-1], list(rss)), file=sys.stderr, flush=True)


def _some(measurement: Measurement, running: Running, wanted: int) -> Tally:
    """So many answers at least."""

    async def run() -> Tally:
        shape = measurement.shape(running)
        loop = ClosedLoop(shape, measurement.connections, 0.05, answers_min=wanted)
        loop.longest_s = TURN_S_MAX
        return await loop.run()

    return uvloop.run(run())
