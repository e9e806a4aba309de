"""The tables and the plot of a benchmark run."""

import contextlib
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final, Protocol

from matplotlib.figure import Figure

from bench.gateways import Running
from bench.install import NODE_PEERS, PYTHON_PEERS

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


class Rounds(Protocol):
    """What a table needs to know of a series."""

    cpu_us_by_process: dict[str, list[float]]

    def median(self, name: str) -> float:
        """The median of a figure."""
        ...

    def spread(self, name: str) -> float:
        """Its relative spread."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident memory of all processes of a gateway, in MB."""

    idle_mb: float
    loaded_mb: float


@contextlib.contextmanager
def already(running: Running) -> Iterator[Running]:
    """A gateway that runs anyway."""
    yield running


def render(
    results: Mapping[str, Mapping[str, Rounds]],
    figures: Mapping[str, Sequence[str]],
    memory: Mapping[str, Memory],
) -> str:
    """All tables as Markdown."""
    parts = [_table(name, figures[name], by_gateway) for name, by_gateway in results.items()]
    lines = ["### Memory", "", "| gateway | idle MB | after load MB |", "|---|---|---|"]
    lines += [f"| {name} | {m.idle_mb:.0f} | {m.loaded_mb:.0f} |" for name, m in memory.items()]
    parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _table(name: str, figures: Sequence[str], rows: Mapping[str, Rounds]) -> str:
    heads = ["gateway", *(HEADS[figure] for figure in figures), "spread", "CPU µs by process"]
    lines = [f"### {name}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for gateway, rounds in rows.items():
        cells = [_number(rounds.median(figure)) for figure in figures]
        cells.append(f"±{rounds.spread(figures[0]) / 2:.0%}")
        shares = {
            process: sorted(values)[len(values) // 2]
            for process, values in rounds.cpu_us_by_process.items()
        }
        cells.append(", ".join(f"{process} {us:.0f}" for process, us in shares.items() if us >= 1))
        lines.append(f"| {gateway} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def machine() -> str:
    """What the run was made on."""
    model = "unknown processor"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    parts = ["grpcio", "protobuf", "uvloop", "httptools", "msgspec"]
    ours = ", ".join(f"{part} {version(part)}" for part in parts)
    peers = ", ".join([*(pins[0] for pins in PYTHON_PEERS.values()), *NODE_PEERS.values()])
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=PLACE,
        check=False,
    ).stdout.strip()
    return (
        f"{model}, Linux {platform.release()}, Python {platform.python_version()}, commit {commit};"
        f" {ours}; peers: {peers}"
    )


def write(table: str, results: Mapping[str, Mapping[str, Rounds]]) -> None:
    """Writes ``RESULTS.md`` and ``results.png`` beside this file."""
    (PLACE / "RESULTS.md").write_text(
        "# Results\n\n"
        "Made by `make bench ARGS=--write`. Gateway with all its processes on one core, load and\n"
        "upstream on the other; medians over the rounds. Trust the ratios of one run: the machine\n"
        "is small and shared.\n\n"
        f"{machine()}\n\n![requests and streams a second](results.png)\n\n{table}\n"
    )
    plot(results, PLACE / "results.png")


def plot(results: Mapping[str, Mapping[str, Rounds]], path: Path) -> None:
    """Draws requests and streams a second of every gateway but the direct call, to scale."""
    shown = [name for name in results if "rate" in name or "connections" in name or "paced" in name]
    figure = Figure(figsize=(4 * len(shown), 4), layout="constrained")
    for place, name in enumerate(shown, 1):
        rows = {gateway: rounds for gateway, rounds in results[name].items() if gateway != "direct"}
        axes = figure.add_subplot(1, len(shown), place)
        axes.bar(list(rows), [rounds.median("rate") for rounds in rows.values()], color="#2a6f97")
        axes.set_title(f"{name}, per second", fontsize=9)
        axes.tick_params(axis="x", labelrotation=30, labelsize=8)
    figure.savefig(path, dpi=110)
