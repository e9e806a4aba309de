"""A call costs at most a tenth more than it did: counted, so that a slow machine is no excuse."""

import pytest

from tests.guard.counting import BLOCKS_MAX, MORE_MAX, Counted, baseline, count, grown

HOW = "make it cheaper, or say in the commit why it is worth it and run `make guard-baseline`"


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Counted:
    """Counted once; counted again, and the lesser taken, when something seems to have grown: what
    a machine's bad minute adds is not there twice.
    """
    found = count(tmp_path_factory.mktemp("guard"))
    if grown(*_asked(found)):
        again = count(tmp_path_factory.mktemp("guard"))
        for name, figure in again.figures.items():
            found.figures[name] = min(found.figures[name], figure)
    return found


def _asked(found: Counted) -> tuple[dict[str, float], dict[str, float], float]:
    held, more_max = baseline()
    return held, found.figures, more_max


def test_no_call_costs_a_tenth_more_than_it_did(counted: Counted) -> None:
    assert grown(*_asked(counted)) == [], HOW


def test_every_figure_is_held(counted: Counted) -> None:
    assert set(counted.figures) == set(baseline()[0]), "run `make guard-baseline`"


def test_a_call_leaves_nothing_behind(counted: Counted) -> None:
    assert {name: left for name, left in counted.blocks.items() if left > BLOCKS_MAX} == {}


@pytest.mark.parametrize(("now", "refused"), [(9e3, 0), (10e3, 0), (11_039, 0), (11_041, 1)])
def test_more_than_a_tenth_more_is_refused(now: float, refused: int) -> None:
    assert len(grown({"edge request": 10e3}, {"edge request": now})) == refused


@pytest.mark.parametrize(
    ("version", "exact"), [("3.11", True), ("3.12", True), ("3.13", True), ("3.99", False)]
)
def test_a_version_without_a_baseline_is_held_against_the_newest(version: str, exact: bool) -> None:
    held, more_max = baseline(version)
    assert (more_max == MORE_MAX) is exact
    assert exact or held == baseline("3.13")[0]


def test_a_refusal_says_what_grew_and_by_how_much() -> None:
    (said,) = grown({"edge request": 1000.0}, {"edge request": 1150.0})
    assert said == "edge request: 1,150 instructions, +15.0% (baseline 1,000)"
