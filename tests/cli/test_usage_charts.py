"""Charts of usage: bars as long as they should be, as wide as there is room, of what was spent."""

import io
from datetime import date, timedelta

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cli.charts import Pen, short_count, short_usd
from cli.usage_dashboard import Facts, dashboard, days_between
from cli.usage_groups import groups_of
from onegate.usage.v1 import usage_service_pb2 as pb
from onegate.usage.v1.usage_service_pb2 import UsageSummary

BLOCKS, PLAIN = Pen(blocks=True), Pen(blocks=False)
FIRST = date(2026, 10, 24)


@given(st.integers(0, 10**15), st.integers(1, 10**15), st.integers(1, 80))
def test_a_bar_is_as_long_as_its_share_and_never_invisible(
    value: int, most: int, width: int
) -> None:
    drawn = BLOCKS.bar(value, most, width)
    assert len(drawn) <= width
    assert bool(drawn) == (value > 0)
    eighths = 8 * drawn.count("█") + sum("▏▎▍▌▋▊▉".index(sign) + 1 for sign in drawn.strip("█"))
    assert abs(eighths - min(value, most) * width * 8 / most) <= 1
    assert len(PLAIN.bar(value, most, width)) == len(drawn)


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=20), st.integers(1, 9))
def test_columns_are_as_high_as_their_shares(values: list[int], height: int) -> None:
    lines = BLOCKS.columns(values, height, 2)
    assert {len(line) for line in lines} == {2 * len(values)}
    for number, value in enumerate(values):
        filled = [line[2 * number] for line in lines]
        eighths = sum(" ▁▂▃▄▅▆▇█".index(sign) for sign in filled)
        assert abs(eighths - value * height * 8 / max(*values, 1)) <= 1


@pytest.mark.parametrize(
    ("nano_usd", "said"),
    [
        (0, "$0.00"),
        (12_340_000_000, "$12.34"),
        (1_234_000_000, "$1.23"),
        (1_200_000, "$0.0012"),
        (12, "$1.2e-08"),
        (-5 * 10**9, "-$5.00"),
        (12_345 * 10**9, "$12.3k"),
        (2 * 10**15, "$2.0M"),
    ],
)
def test_amounts_beside_bars_are_short(nano_usd: int, said: str) -> None:
    assert short_usd(nano_usd) == said


def test_counts_are_short() -> None:
    assert [short_count(n) for n in (0, 999, 12_345, 4_500_000, 10**9)] == [
        "0",
        "999",
        "12.3k",
        "4.5M",
        "1.0G",
    ]


def row(*group: str, cost: int, attempts: int = 1) -> UsageSummary:
    return UsageSummary(
        group=group, cost_nano_usd=cost, attempts=attempts, input_tokens=10, cached_input_tokens=4
    )


def facts(days: int = 30, **fields: object) -> Facts:
    last = FIRST + timedelta(days=days - 1)
    spent = {day: (number % 7 + 1) * 10**9 for number, day in enumerate(days_between(FIRST, last))}
    total = sum(spent.values())
    models = [row(f"openai/a-rather-long-name-of-a-model-{n}", cost=10**9) for n in range(9)]
    made: dict[str, object] = {
        "first": FIRST,
        "last": last,
        "total": row(cost=total, attempts=1234),
        "before": row(cost=max(total // 2, 1)),
        "days": spent,
        "tops": {
            "model": models,
            "project": [row("proj_1", cost=total)],
            "feature": [row("", cost=total)],
            "customer": [row("東京電力", cost=total // 2), row("", cost=total // 2)],
        },
        **fields,
    }
    return Facts(**made)  # type: ignore[arg-type]


def shown(found: Facts, width: int, encoding: str = "utf-8") -> list[str]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="replace")
    out = Console(file=file, width=width, highlight=False)
    out.print(dashboard(found, out))
    file.flush()
    return raw.getvalue().decode(encoding).splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 220])
@pytest.mark.parametrize("days", [1, 2, 30, 400])
def test_charts_fit_whatever_the_width(width: int, days: int) -> None:
    lines = shown(facts(days), width)
    assert max(len(line) for line in lines) <= min(width, 120)
    text = "\n".join(lines)
    assert "24 Oct" in text
    assert "models" in text
    assert "projects" in text
    assert "customers" in text
    assert "3 others" in text
    # No feature was named by anybody.
    assert "features" not in text
    assert "100%" in text
    assert ("a bar is" in text) == (days == 400)


def test_charts_say_the_sum_exactly_and_how_it_changed() -> None:
    lines = shown(facts(total=row(cost=123_456_789_012, attempts=1234)), 100)
    assert lines[0].startswith("$123.456789012  24 Oct 2026 to 22 Nov 2026")
    assert "%" in lines[0]
    assert lines[1] == "1,234 calls · 10 in (40% cached) · 0 out"
    without = facts(before=None, total=UsageSummary(attempts=1, failures=1, uncertain_nano_usd=5))
    assert shown(without, 100)[1].startswith("1 calls · 1 not complete · 0 in (- cached)")
    assert "$0.000000005 of it uncertain" in shown(without, 100)[1]


def test_a_terminal_without_blocks_gets_plain_letters() -> None:
    text = "\n".join(shown(facts(), 80, "ascii"))
    assert "#" in text
    assert "|" in text
    assert not any(sign in text for sign in "█┤─")


def test_what_is_grouped_by_is_named_once_often_or_with_commas() -> None:
    found = groups_of(["model,team", "tag:cost.center", "model"])
    assert found.names == ("model", "team", "tag:cost.center")
    assert found.tag == "cost.center"
    assert found.dimensions == [
        pb.USAGE_DIMENSION_MODEL,
        pb.USAGE_DIMENSION_TEAM,
        pb.USAGE_DIMENSION_TAG,
    ]
    everything = ["model,provider,credential,project,key,team,feature,customer,end_user,run"]
    assert len(groups_of([*everything, "endpoint,service_tier,organization,day"]).dimensions) == 14
    for wrong in (["colour"], ["tag:"], ["tag:a;b"], ["tag:a", "tag:b"], [""]):
        with pytest.raises(typer.BadParameter):
            groups_of(wrong)
