"""What ``onegate usage`` shows to people: spend by day, and who and what it went to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from rich.cells import cell_len
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from cli.charts import Pen, short_count, short_usd
from cli.usage_view import usd
from onegate.usage.v1.usage_service_pb2 import UsageSummary

TOPS: Final = (
    ("model", "models"),
    ("project", "projects"),
    ("feature", "features"),
    ("customer", "customers"),
)
"""What is shown beside the days, where there is any, and its heading."""

WIDTH_MAX: Final = 120
"""A chart is no wider, however wide the terminal is, in letters."""
ROWS_MAX: Final = 6
HEIGHT: Final = 7

_TWO_BESIDE: Final = 96
"""From how many letters on two lists of bars stand beside each other."""
_APART: Final = 4
_AXIS: Final = 8
_NAME_MAX: Final = 30
_STYLES: Final = {"model": "cyan", "project": "green", "feature": "magenta", "customer": "yellow"}
_PERCENT: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is shown.

    Attributes:
        first, last: the days, both included.
        total: all of it.
        before: the same number of days before; ``None`` where nobody asked.
        days: what was spent on each day on which anything was, in nano-USD.
        tops: sums by what is in :data:`TOPS`, dearest first.
    """

    first: date
    last: date
    total: UsageSummary
    before: UsageSummary | None
    days: Mapping[date, int]
    tops: Mapping[str, Sequence[UsageSummary]]


def dashboard(facts: Facts, out: Console) -> Group:
    """The charts, as wide as there is room."""
    width = min(out.width, WIDTH_MAX)
    pen = Pen(blocks="utf" in out.encoding.lower())
    lists = [
        _tops(name, heading, facts, pen, _list_width(width))
        for name, heading in TOPS
        if any(row.group[0] for row in facts.tops.get(name, ()))
    ]
    return Group(_headline(facts), Text(), _days(facts, pen, width), Text(), _beside(lists, width))


def days_between(first: date, last: date) -> list[date]:
    """All days, both ends included."""
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]


def today(now: datetime) -> date:
    """The day in UTC, as everything here is counted."""
    return now.astimezone(UTC).date()


def _headline(facts: Facts) -> Text:
    total = facts.total
    made = Text()
    made.append(f"${usd(total.cost_nano_usd)}", style="bold")
    made.append(f"  {_day(facts.first)} to {_day(facts.last)}", style="dim")
    if facts.before is not None and facts.before.cost_nano_usd > 0:
        change = total.cost_nano_usd - facts.before.cost_nano_usd
        percent = change * _PERCENT / facts.before.cost_nano_usd
        style = "red" if change > 0 else "green"
        made.append(f"  {percent:+,.0f} % on the period before", style=style)
    parts = [f"{total.attempts:,} calls"]
    if total.failures:
        parts.append(f"{total.failures:,} not complete")
    cached = f" ({_share(total.cached_input_tokens, total.input_tokens)} cached)"
    parts.append(f"{short_count(total.input_tokens)} in{cached}")
    parts.append(f"{short_count(total.output_tokens)} out")
    if total.uncertain_nano_usd:
        parts.append(f"${usd(total.uncertain_nano_usd)} of it uncertain")
    return made.append("\n" + " · ".join(parts))


def _days(facts: Facts, pen: Pen, width: int) -> Text:
    """Bars upright with an axis of money and one of time. Where days are more than fit, a bar is
    some of them.
    """
    days = days_between(facts.first, facts.last)
    room = max(width - _AXIS - 2, 8)
    together = -(-len(days) // room)
    groups = [days[at : at + together] for at in range(0, len(days), together)]
    spent = [sum(facts.days.get(day, 0) for day in group) for group in groups]
    wide = max(min(room // len(groups), 6), 1)
    gap = 1 if wide > 1 else 0
    lines = pen.columns(spent, HEIGHT, wide - gap)
    made = Text()
    most = max(spent, default=0)
    for number, line in enumerate(lines):
        label = short_usd(most) if number == 0 and most > 0 else ""
        if number == HEIGHT // 2 and most > 0:
            label = short_usd(most * (HEIGHT - number) // HEIGHT)
        made.append(f"{label:>{_AXIS}} ", style="dim")
        made.append("┤" if label and pen.blocks else "|" if not pen.blocks else "│", style="dim")
        cells = [line[at : at + wide - gap] for at in range(0, len(line), wide - gap)]
        made.append((" " * gap).join(cells).rstrip(), style="cyan")
        made.append("\n")
    corner, rule = ("┴", "─") if pen.blocks else ("+", "-")
    made.append(" " * _AXIS + " " + corner + rule * (wide * len(groups)) + "\n", style="dim")
    made.append(" " * (_AXIS + 2) + _ticks(groups, wide), style="dim")
    if together > 1:
        made.append(f"\n{' ' * (_AXIS + 2)}a bar is {together} days", style="dim")
    return made


def _ticks(groups: Sequence[Sequence[date]], wide: int) -> str:
    """Days below the bars, as many as have room."""
    line = ""
    for number, group in enumerate(groups):
        at, text = number * wide, f"{group[0].day} {group[0]:%b}"
        if at >= len(line) + 2 or not line:
            line = line.ljust(at) + text
    return line


def _list_width(width: int) -> int:
    return (width - 2 * _APART) // 2 if width >= _TWO_BESIDE else width


def _tops(name: str, heading: str, facts: Facts, pen: Pen, width: int) -> Group:
    """One list of bars; what does not fit is one more row."""
    rows = sorted(facts.tops[name], key=lambda row: row.cost_nano_usd, reverse=True)
    shown = [(row.group[0] or "(none)", row.cost_nano_usd) for row in rows[:ROWS_MAX]]
    if len(rows) > ROWS_MAX:
        rest = sum(row.cost_nano_usd for row in rows[ROWS_MAX:])
        shown.append((f"{len(rows) - ROWS_MAX:,} others", rest))
    most = max((cost for _, cost in shown), default=0)
    longest = max(cell_len(label) for label, _ in shown)
    names = min(longest, _NAME_MAX, max(width // 3, 8))
    bars = max(width - names - 18, 4)
    lines = [Text(heading, style="bold")]
    for label, cost in shown:
        bar = pen.bar(cost, most, bars)
        line = Text(label, no_wrap=True)
        line.truncate(names, overflow="ellipsis", pad=True)
        line.append(f" {bar:<{bars}} ", style=_STYLES[name])
        line.append(f"{short_usd(cost):>9}")
        line.append(f" {_share(cost, facts.total.cost_nano_usd):>5}", style="dim")
        lines.append(line)
    return Group(*lines)


def _beside(lists: Sequence[Group], width: int) -> Group:
    columns = 2 if width >= _TWO_BESIDE else 1
    parts: list[Table | Text] = []
    for at in range(0, len(lists), columns):
        row = Table.grid(padding=(0, _APART if columns > 1 else 0, 0, 0))
        for _ in range(columns):
            row.add_column(no_wrap=True)
        row.add_row(*lists[at : at + columns])
        parts += [row, Text()]
    return Group(*parts)


def _share(part: int, whole: int) -> str:
    if whole <= 0:
        return "-"
    percent = part * _PERCENT / whole
    return f"{percent:.0f}%" if percent >= 1 or percent <= 0 else "<1%"


def _day(day: date) -> str:
    return f"{day.day} {day:%b %Y}"
