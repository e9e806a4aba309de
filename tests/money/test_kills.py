"""A few cells of the kill matrix and a few bad endings; all of them: ``python -m
tests.money.kills`` and ``python -m tests.money.endings``.
"""

from collections.abc import Iterator

import pytest

from runtime.failpoints import Failpoint
from tests.money.endings import ENDINGS, Replies, run_ending
from tests.money.kills import Cell, World, run_cell, world


@pytest.fixture(scope="module")
def there() -> Iterator[World]:
    with world("sqlite") as made:
        yield made


@pytest.mark.parametrize(
    ("point", "victim", "mode"),
    [
        (Failpoint.HOLD_PLACED, "router", "plain"),
        (Failpoint.JOURNALLED, "router", "stream"),
        (Failpoint.SENT, "router", "plain"),
        (Failpoint.MID_ANSWER, "edge", "stream"),
        (Failpoint.MID_ANSWER, "router", "stream"),
        (Failpoint.FINAL_UNWRITTEN, "router", "stream"),
        (Failpoint.RECORD_UNCOMMITTED, "database", "plain"),
        (Failpoint.SHIPPED, "usage", "plain"),
        (Failpoint.HALF_REPLAYED, "router", "stream"),
    ],
)
def test_a_process_killed_at_a_point_costs_nobody_money(
    there: World, point: Failpoint, victim: str, mode: str
) -> None:
    assert run_cell(there, Cell(point=point, victim=victim, mode=mode)).faults == []


@pytest.fixture
def replies(there: World) -> Iterator[Replies]:
    before, made = there.provider.choose, Replies()
    there.provider.choose = made.choose
    yield made
    there.provider.choose = before


FEW = ("leaves.0", "leaves.8", "CLOSE.16", "RESET.plain", "missing.True", "says.0.True")


@pytest.mark.parametrize("name", FEW)
def test_an_answer_that_ends_badly_is_billed_as_the_tally_says_or_flagged(
    there: World, replies: Replies, name: str
) -> None:
    (ending,) = (one for one in ENDINGS if one.name == name)
    assert run_ending(there, ending, replies)[1] == []
