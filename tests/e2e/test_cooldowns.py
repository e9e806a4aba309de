"""A provider that asked for quiet is left alone by two routers in processes of their own."""

from pathlib import Path

import pytest

from tests.e2e.cooldown_history import LAG_MAX_S, measure


@pytest.mark.parametrize("valkey", [False, True])
def test_no_router_calls_before_the_time_that_a_429_named(tmp_path: Path, valkey: bool) -> None:
    seen = measure(tmp_path, 5.0, valkey=valkey)
    assert seen.asked >= 3
    assert seen.refused > 20
    assert seen.lag_s < LAG_MAX_S, seen
