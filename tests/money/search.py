"""Searches every state that the protocol can reach, and says what must hold in each."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.money.protocol import BOUND, LIMIT, Attempt, Rules, State, start, successors

_FAULTS: Final = ("crash", "lose")
"""What may happen but need not: a state is final although these could still come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """What a search saw.

    Args:
        states: how many different states.
        transitions: how many steps between them.
        ends: how many states in which nothing more happens by itself.
        violation: what was untrue, and the steps that led there; empty when nothing was.
    """

    states: int
    transitions: int
    ends: int
    violation: tuple[str, ...]


def explore(rules: Rules, *, crashes: int, losses: int) -> Explored:
    """Visits every reachable state, breadth first; stops at the first untruth."""
    first = start(crashes=crashes, losses=losses)
    came_from: dict[State, tuple[State, str] | None] = {first: None}
    queue = deque([first])
    transitions = ends = 0
    while queue:
        state = queue.popleft()
        moves = False
        for step, after in successors(state, rules):
            transitions += 1
            if after == state:
                continue
            moves = moves or not step.startswith(_FAULTS)
            if after not in came_from:
                came_from[after] = (state, step)
                queue.append(after)
                for untruth in untruths(after):
                    steps = (*_way(after, came_from), untruth)
                    return _explored(came_from, transitions, ends, steps)
        if not moves:
            ends += 1
            for untruth in end_untruths(state):
                return _explored(came_from, transitions, ends, (*_way(state, came_from), untruth))
    return _explored(came_from, transitions, ends, ())


def untruths(state: State) -> Iterator[str]:
    """What must never be untrue (``money.md``: B1, B2, B3, U1, L1)."""
    if state.balance + state.held > LIMIT:
        yield "B1: spent and held exceed the limit"
    if sum(attempt.produced or 0 for attempt in state.attempts) > LIMIT:
        yield "B2: the provider's bill exceeds the limit"
    if any(_covered(attempt) < (attempt.produced or 0) for attempt in state.attempts):
        yield "B3: something dispatched is covered by neither a hold nor a posting"
    entries = [attempt.posted for attempt in state.attempts if attempt.posted is not None]
    if any(entry.originals > 1 for entry in entries):
        yield "U1: an attempt is posted twice"
    if state.balance != sum(entry.cost for entry in entries):
        yield "L1: the balance is not the sum of its entries"
    if state.held != sum(BOUND for attempt in state.attempts if attempt.hold == "held"):
        yield "L1: what is held is not the sum of the holds"


def end_untruths(state: State) -> Iterator[str]:
    """What must hold once nothing more happens (U2, U3)."""
    if state.held:
        yield "U3: something is held although nothing runs"
    for attempt in state.attempts:
        posted = attempt.posted
        cost = 0 if posted is None else posted.cost
        if attempt.journal.stage == "none":
            if cost:
                yield "U2: an attempt that was never dispatched costs something"
        elif posted is None:
            yield "U2: an attempt that was dispatched has no posting"
        elif posted.why == "reported" and cost != attempt.produced:
            yield "U2: the posting is not what the provider reported"
        elif posted.why == "lease":
            yield "U2: the truth is known and the posting is still the lease's"


def _covered(attempt: Attempt) -> int:
    posted = 0 if attempt.posted is None else attempt.posted.cost
    return posted + (BOUND if attempt.hold == "held" else 0)


def _way(state: State, came_from: dict[State, tuple[State, str] | None]) -> tuple[str, ...]:
    steps = []
    before = came_from[state]
    while before is not None:
        state, step = before
        steps.append(step)
        before = came_from[state]
    return tuple(reversed(steps))


def _explored(
    seen: dict[State, tuple[State, str] | None], transitions: int, ends: int, way: tuple[str, ...]
) -> Explored:
    return Explored(states=len(seen), transitions=transitions, ends=ends, violation=way)
