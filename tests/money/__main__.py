"""Searches the protocol's model deeper than the suite does, and prints what it saw."""

import argparse

from tests.money.protocol import Rules
from tests.money.search import explore


def main() -> int:
    """Prints how much was explored; 1 when an invariant was broken, with the way there."""
    parser = argparse.ArgumentParser(prog="python -m tests.money", description=__doc__)
    parser.add_argument("--crashes", type=int, default=2, help="how often the router may die")
    parser.add_argument("--losses", type=int, default=1, help="how many messages may be lost")
    given = parser.parse_args()
    explored = explore(Rules(), crashes=given.crashes, losses=given.losses)
    print(
        f"{explored.states:,} states, {explored.transitions:,} transitions, {explored.ends:,} ends"
    )
    for step in explored.violation:
        print(f"  {step}")
    return 1 if explored.violation else 0


if __name__ == "__main__":
    raise SystemExit(main())
