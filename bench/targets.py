"""The targets: what the project promises of itself beside its peers, and whether a run keeps it.

Ratios are of one run's medians, so that the machine cancels out. A line whose figures are not there
(a peer not installed, or one that could not keep up) says so and is neither kept nor missed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from bench.plan import (
    FIRST_400,
    LATENCY_400,
    PACED,
    REQUESTS_32,
    REQUESTS_128,
    STREAMS,
    Memory,
    Results,
    Series,
)

Verdict = Literal["kept", "missed", "unknown"]
OURS: Final = "onegate"
DIRECT: Final = "direct"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One target held against a run. ``value`` is ``None`` when it was not measured."""

    name: str
    value: float | None
    bound: float
    at_least: bool
    unit: str

    @property
    def verdict(self) -> Verdict:
        """Whether it was kept."""
        if self.value is None:
            return "unknown"
        kept = self.value >= self.bound if self.at_least else self.value <= self.bound
        return "kept" if kept else "missed"

    def text(self) -> str:
        """As a row: target, bound, figure, verdict."""
        sign = "≥" if self.at_least else "≤"
        got = "not measured" if self.value is None else f"{self.value:,.2f}{self.unit}"
        mark = {"kept": "kept", "missed": "**missed**", "unknown": "-"}[self.verdict]
        return f"| {self.name} | {sign} {self.bound:g}{self.unit} | {got} | {mark} |"


HEAD: Final = "| target | bound | measured | |\n|---|---|---|---|"

RATES: Final = [
    (REQUESTS_32, "LiteLLM", 40.0),
    (REQUESTS_32, "Portkey", 6.0),
    (REQUESTS_32, "TensorZero", 0.6),
    (REQUESTS_128, "TensorZero", 0.8),
    (STREAMS, "LiteLLM", 40.0),
    (STREAMS, "Portkey", 1.5),
    (STREAMS, "TensorZero", 1.5),
]
"""How many times a peer's rate ours is to be."""
ADDED: Final = [
    (PACED, "first_p50_ms", "first byte p50", 5.0),
    (LATENCY_400, "p50_ms", "p50", 1.0),
    (LATENCY_400, "p99_ms", "p99", 3.0),
    (FIRST_400, "first_p50_ms", "first byte p50", 1.0),
    (FIRST_400, "first_p99_ms", "first byte p99", 3.0),
]
"""How much later than a direct call, in ms."""
IDLE_RSS_MB: Final = 250.0


def lines(results: Results, memory: Mapping[str, Memory]) -> list[Line]:
    """All targets of a comparison, held against it."""
    found = [
        Line(
            name=f"{measurement.name}, times {peer}",
            value=_compared(results, measurement.name, peer, lambda a, b: a / b, "rate"),
            bound=bound,
            at_least=True,
            unit=" times",
        )
        for measurement, peer, bound in RATES
    ]
    found += [
        Line(
            name=f"{PACED.name}: completed, of direct",
            value=_compared(results, PACED.name, DIRECT, lambda a, b: a / b * 100, "rate"),
            bound=98.0,
            at_least=True,
            unit=" %",
        ),
        Line(
            name=f"{PACED.name}: CPU each, times TensorZero",
            value=_compared(results, PACED.name, "TensorZero", lambda a, b: a / b, "cpu_us"),
            bound=1.3,
            at_least=False,
            unit=" times",
        ),
    ]
    found += [
        Line(
            name=f"{measurement.name}: {words} over direct",
            value=_compared(results, measurement.name, DIRECT, lambda a, b: a - b, figure),
            bound=bound,
            at_least=False,
            unit=" ms",
        )
        for measurement, figure, words, bound in ADDED
    ]
    ours = memory.get(OURS)
    found.append(
        Line(
            name="RSS of all processes, idle",
            value=ours.idle_mb if ours else None,
            bound=IDLE_RSS_MB,
            at_least=False,
            unit=" MB",
        )
    )
    return found


def aims(results: Results) -> list[Line]:
    """What is aimed for beyond the targets."""
    found = [
        Line(
            name=f"aim: {measurement.name}, times TensorZero",
            value=_compared(results, measurement.name, "TensorZero", lambda a, b: a / b, "rate"),
            bound=1.0,
            at_least=True,
            unit=" times",
        )
        for measurement in (REQUESTS_32, REQUESTS_128)
    ]
    paced = _compared(results, PACED.name, "TensorZero", lambda a, b: a / b, "cpu_us")
    name = f"aim: {PACED.name}: CPU each, times TensorZero"
    return [*found, Line(name=name, value=paced, bound=1.0, at_least=False, unit=" times")]


def _compared(
    results: Results,
    measurement: str,
    other: str,
    compare: Callable[[float, float], float],
    figure: str,
) -> float | None:
    """Our figure against another's, if both were measured."""
    rows: Mapping[str, Series] = results.get(measurement, {})
    ours, theirs = rows.get(OURS), rows.get(other)
    if ours is None or theirs is None or not ours.usable or not theirs.usable:
        return None
    base = theirs.median(figure)
    return compare(ours.median(figure), base) if base else None
