"""A few cells of the kill matrix; all of them: ``python -m tests.money.kills``."""

from collections.abc import Iterator

import pytest

from runtime.failpoints import Failpoint
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
