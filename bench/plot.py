"""A run as a picture: one panel a measurement, each to its own scale. Needs matplotlib, which only
the benchmark brings.
"""

from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from bench.plan import PLAN, Results
from bench.report import HEADS, number
from bench.targets import DIRECT, OURS

COLOURS: Final = {OURS: "#c1440e"}


def draw(results: Results, path: Path) -> None:
    """Draws what each gateway does a second, and what it adds to a call, each to its own scale."""
    shown = [measurement for measurement in PLAN if measurement.name in results]
    columns = min(5, max(len(shown), 1))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.2 * max(rows, 1)), layout="constrained")
    for place, measurement in enumerate(shown, 1):
        axes = figure.add_subplot(rows, columns, place)
        name = measurement.figures[0]
        by_gateway = results[measurement.name]
        direct = by_gateway.get(DIRECT)
        added = bool(measurement.rate)
        base = direct.median(name) if added and direct is not None else 0.0
        bars = {
            gateway: series.median(name) - base
            for gateway, series in by_gateway.items()
            if gateway != DIRECT
        }
        spreads = [by_gateway[gateway].spread(name) / 2 * abs(bars[gateway]) for gateway in bars]
        colours = [COLOURS.get(gateway, "#7a8a99") for gateway in bars]
        drawn = axes.bar(list(bars), list(bars.values()), yerr=spreads, color=colours, capsize=3)
        axes.bar_label(drawn, labels=[number(value) for value in bars.values()], fontsize=7)
        what = f"added {HEADS[name]}" if added else "per second"
        axes.set_title(f"{measurement.name}\n{what}", fontsize=8)
        axes.tick_params(axis="x", labelrotation=35, labelsize=7)
        axes.tick_params(axis="y", labelsize=7)
    figure.savefig(path, dpi=110)
