"""Every state that the money protocol can reach, and every mistake that would be noticed.

Longer: ``python -m tests.money --crashes 3 --losses 2`` visits some millions of states.
"""

import pytest

from tests.money.protocol import Rules
from tests.money.search import explore

MISTAKES = {
    "hold_counts_held": "B1",
    "hold_is_atomic": "B1",
    "refusal_leaves_tombstone": "U2",
    "void_until_acked": "U2",
    "void_leaves_tombstone": "U2",
    "journal_before_dispatch": "B3",
    "lease_posts": "B3",
    "settle_once": "U1",
    "settle_corrects_lease": "U2",
    "settle_releases_own_hold": "L1",
    "trim_on_ack": "U2",
    "fence_refuses_late": "U2",
    "fence_spares_dispatched": "B3",
    "ambiguous_keeps_hold": "B3",
    "restart_adds_slack": "B3",
}
"""Each rule of the protocol, and the invariant that its absence breaks first."""


@pytest.mark.parametrize(("crashes", "losses"), [(3, 0), (1, 1)])
def test_no_order_of_events_breaks_an_invariant(crashes: int, losses: int) -> None:
    explored = explore(Rules(), crashes=crashes, losses=losses)

    assert explored.violation == ()
    assert explored.ends > 1_000
    assert explored.transitions > 400_000


def test_every_rule_has_its_mistake() -> None:
    assert set(MISTAKES) == set(Rules.__dataclass_fields__)


@pytest.mark.parametrize(("rule", "invariant"), MISTAKES.items())
def test_a_protocol_without_the_rule_is_caught(rule: str, invariant: str) -> None:
    explored = explore(Rules(**{rule: False}), crashes=1, losses=1)

    assert explored.violation
    assert explored.violation[-1].startswith(invariant), explored.violation
