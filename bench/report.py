"""What a run says: Markdown for people, JSON for programs.

Every mode keeps its own section in ``results.json``; ``RESULTS.md`` is made of all that are there,
so that one of them can be run again by itself.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.compare import Comparison
from bench.install import versions
from bench.machine import Cores, describe
from bench.plan import FULL, PLAN, Measurement, Memory, Results, Series
from bench.targets import DIRECT, HEAD, Line, aims, lines

PLACE: Final = Path(__file__).resolve().parent
HEADS: Final = {
    "rate": "per second",
    "cpu_us": "CPU µs each",
    "failed": "failed",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "first_p50_ms": "first byte p50 ms",
    "first_p99_ms": "first byte p99 ms",
}
TITLES: Final = {
    "compare": "Beside its peers",
    "stalled": "Stalled readers",
    "overload": "Overload",
    "soak": "Memory over time",
}
"""The sections of ``RESULTS.md``, in order."""
PREFACE: Final = """\
Made by `make bench-results`. The gateway with all its processes has one core, load and upstream
another; keys, limits, prices and metering are on for onegate. Trust the ratios of one run more than
figures of two."""
CAVEAT: Final = """\
Envoy is a plain proxy, and TensorZero checks no key: neither does what the others do."""
QUIET: Final = 0.05
"""The share of foreign work on the gateway's core above which a figure is marked."""


def render(found: Comparison) -> str:
    """A comparison as Markdown: targets, then every table."""
    parts = ["\n".join([HEAD, *(line.text() for line in _all_lines(found))])]
    shown = [measurement for measurement in PLAN if measurement.name in found.results]
    parts += [_table(measurement, found.results[measurement.name]) for measurement in shown]
    parts.append(_memory(found.memory))
    busiest = _foreign(found.results)
    parts.append(
        f"{found.rounds} rounds. Spread: half the range over the median. Others than the gateway"
        f" took {busiest:.1%} of its core (median of all measurements)."
        " ‡: the load's core was full, the gateway could do more."
        f" *: more than {QUIET:.0%} foreign work."
    )
    if found.notes:
        parts.append("\n".join(f"- {note}" for note in found.notes))
    return "\n\n".join(parts)


def verdicts(found: Sequence[Line]) -> str:
    """How many targets were kept, in words."""
    kept = sum(line.verdict == "kept" for line in found)
    missed = sum(line.verdict == "missed" for line in found)
    unknown = len(found) - kept - missed
    return f"{kept} targets kept, {missed} missed, {unknown} not measured"


def _all_lines(found: Comparison) -> list[Line]:
    return [*lines(found.results, found.memory), *aims(found.results)]


def _foreign(results: Results) -> float:
    shares = [
        series.median("foreign")
        for rows in results.values()
        for name, series in rows.items()
        if name != DIRECT
    ]
    return statistics.median(shares or [0.0])


def _table(measurement: Measurement, rows: Mapping[str, Series]) -> str:
    figures = measurement.figures
    added = [figure for figure in figures if figure.endswith("_ms")]
    heads = ["gateway", *(HEADS[figure] for figure in figures)]
    heads += [f"added {HEADS[figure]}" for figure in added]
    heads += ["spread", "CPU µs by process"]
    table = [f"### {measurement.name}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    direct = rows.get(DIRECT)
    for name, series in rows.items():
        cells = [number(series.median(figure)) for figure in figures]
        for figure in added:
            base = direct.median(figure) if direct is not None else 0.0
            cells.append("" if name == DIRECT else number(series.median(figure) - base))
        cells.append(f"±{series.spread(figures[0]) / 2:.0%}")
        shares = {process: statistics.median(us) for process, us in series.cpu_us.items()}
        cells.append(", ".join(f"{process} {us:,.0f}" for process, us in shares.items() if us >= 1))
        table.append(f"| {name}{_marks(name, series)} | {' | '.join(cells)} |")
    if measurement.rate:
        table += ["", f"Who is not here cannot do {measurement.rate:g}/s on one core."]
    return "\n".join(table)


def _marks(name: str, series: Series) -> str:
    full = series.median("load") >= FULL and name != DIRECT
    return ("‡" if full else "") + ("*" if series.median("foreign") > QUIET else "")


def _memory(memory: Mapping[str, Memory]) -> str:
    table = [
        "### Memory",
        "",
        "| gateway | idle RSS MB | idle, shared pages once | after load RSS MB | idle by process |",
        "|---|---|---|---|---|",
    ]
    for name, taken in memory.items():
        shares = ", ".join(f"{process} {mb:.0f}" for process, mb in taken.by_process.items())
        table.append(
            f"| {name} | {taken.idle_mb:.0f} | {taken.idle_pss_mb:.0f} | {taken.loaded_mb:.0f}"
            f" | {shares} |"
        )
    return "\n".join(table)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def figures(found: Comparison) -> dict[str, Any]:
    """A comparison's every round, for programs."""
    return {
        measurement: {
            name: {"values": series.values, "cpu_us": series.cpu_us}
            for name, series in rows.items()
        }
        for measurement, rows in found.results.items()
    }


def write(mode: str, text: str, cores: Cores, values: Mapping[str, Any]) -> None:
    """Keeps a mode's section and writes ``RESULTS.md`` anew."""
    kept = PLACE / "results.json"
    sections: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    sections[mode] = {
        "when": datetime.now(UTC).date().isoformat(),
        "machine": describe(cores),
        "text": text,
        "figures": values,
    }
    kept.write_text(json.dumps(sections, indent=1) + "\n")
    parts = ["# Results", PREFACE, f"Peers: {versions()}. {CAVEAT}"]
    for name, title in TITLES.items():
        if name in sections:
            section = sections[name]
            parts.append(f"## {title}\n\n{section['when']}. {section['machine']}.")
            if name == "compare":
                parts.append("![The comparison](results.png)")
            parts.append(section["text"])
    (PLACE / "RESULTS.md").write_text("\n\n".join(parts) + "\n")
