"""Whether there is room, and what becomes of a hold. Pure: rooms and holds in, verdicts out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from onegate.common.v1.error_pb2 import BudgetRefusal
from onegate.usage.v1 import hold_pb2
from services.usage.ledger.budgets import Account, described
from services.usage.ledger.transactions import Kind, Tally

SLICE_PART: Final = 16
"""A slice takes at most the sixteenth part of the room: routers that hold slices must not make
another's caller seem broke."""

RECALL_MS: Final = 50
"""After how long a caller that met recalled slices may try again, in milliseconds."""

OPEN: Final = frozenset({hold_pb2.HOLD_STATE_PENDING, hold_pb2.HOLD_STATE_UNCERTAIN})
"""States in which a hold still stands for money."""


@dataclass(slots=True, kw_only=True)
class Room:
    """Where an account stands, in nano-USD, as a batch of holds goes on."""

    account: Account
    limit_nano_usd: int
    posted_nano_usd: int
    held_nano_usd: int

    @property
    def left_nano_usd(self) -> int:
        """What may still be set aside."""
        return self.limit_nano_usd - self.posted_nano_usd - self.held_nano_usd


@dataclass(slots=True, kw_only=True)
class Held:
    """A hold as it is kept.

    Attributes:
        id: the attempt's or slice's id.
        amount_nano_usd: what is held, or posted as uncertain, and not settled yet.
        state: ``hold_pb2.HoldState``.
        accounts: the ids of its accounts, sorted.
        slice: calls are admitted from it by its holder.
        returned: nothing more is admitted from the slice.
    """

    id: str
    amount_nano_usd: int
    state: int
    accounts: tuple[str, ...]
    slice: bool = False
    returned: bool = False


def admit(rooms: Sequence[Room], amount: int, least: int) -> int:
    """Takes from every room, or from none.

    Returns:
        How much, in nano-USD: ``amount``, or as much between ``least`` and it as all rooms have
        (``least`` 0 stands for all of it); -1 when that is too little.
    """
    if not amount:
        # What costs nothing needs no room, not even on an account that is overdrawn.
        return 0
    taken = min(amount, min((room.left_nano_usd for room in rooms), default=amount))
    if taken < (least or amount):
        return -1
    for room in rooms:
        room.held_nano_usd += taken
    return taken


def slice_of(rooms: Sequence[Room], amount: int) -> int:
    """How much of what is asked for a slice may be, in nano-USD."""
    return min(amount, min((room.left_nano_usd for room in rooms), default=0) // SLICE_PART)


def refusal(rooms: Sequence[Room], asked: int) -> BudgetRefusal:
    """Says which room is too small: the smallest."""
    room = min(rooms, key=lambda room: room.left_nano_usd)
    budget = room.account.budget
    made = BudgetRefusal(
        budget_id=budget.id,
        account=described(budget, room.account.subject),
        limit_nano_usd=room.limit_nano_usd,
        spent_nano_usd=room.posted_nano_usd,
        held_nano_usd=room.held_nano_usd,
        asked_nano_usd=asked,
    )
    if room.account.span.end_us is not None:
        made.resets_at.FromMicroseconds(room.account.span.end_us)
    return made


def release(hold: Held, amount: int, reference: str, tally: Tally) -> int:
    """Takes a share out of a hold: releases it, or corrects what was posted in its place.

    Args:
        hold: the hold; what it holds shrinks.
        amount: the share, in nano-USD; at most what is left is taken.
        reference: names the correction for ever, where there is one.
        tally: where the accounts' changes go.

    Returns:
        What was taken, in nano-USD.
    """
    taken = min(amount, hold.amount_nano_usd) if hold.state in OPEN else 0
    if taken <= 0:
        return 0
    if hold.state == hold_pb2.HOLD_STATE_PENDING:
        tally.hold(hold.accounts, -taken)
    else:
        tally.doubt(Kind.CORRECTION, reference, (hold.id, hold.accounts), -taken)
    hold.amount_nano_usd -= taken
    return taken


def end(hold: Held, state: int, tally: Tally) -> int:
    """Releases all that is left; returns how much, in nano-USD."""
    taken = release(hold, hold.amount_nano_usd, hold.id, tally)
    if hold.state in OPEN:
        hold.state = state
    return taken


def expire(hold: Held, tally: Tally) -> None:
    """Posts what is held as uncertain: it may have been spent, and nobody says so."""
    if hold.state != hold_pb2.HOLD_STATE_PENDING:
        return
    if hold.amount_nano_usd:
        tally.hold(hold.accounts, -hold.amount_nano_usd)
        owner = (hold.id, hold.accounts)
        tally.doubt(Kind.UNCERTAIN, hold.id, owner, hold.amount_nano_usd)
    hold.state = hold_pb2.HOLD_STATE_UNCERTAIN


def settle(
    hold: Held | None,
    slice_: Held | None,
    share_nano_usd: int,
    attempt_id: str,
    tally: Tally,
) -> tuple[str, ...]:
    """Releases what was set aside for an attempt whose record came.

    Args:
        hold: the attempt's own hold, if any.
        slice_: the slice that it was admitted from, if any.
        share_nano_usd: what it took from the slice.
        attempt_id: the attempt.
        tally: where the accounts' changes go.

    Returns:
        The accounts that it was held on, each once, sorted.
    """
    accounts: set[str] = set()
    if slice_ is not None:
        accounts.update(slice_.accounts)
        release(slice_, share_nano_usd, f"{attempt_id}/{slice_.id}", tally)
        if slice_.returned and not slice_.amount_nano_usd and slice_.state in OPEN:
            slice_.state = hold_pb2.HOLD_STATE_POSTED
    if hold is not None:
        accounts.update(hold.accounts)
        release(hold, hold.amount_nano_usd, attempt_id, tally)
        hold.state = hold_pb2.HOLD_STATE_POSTED
    return tuple(sorted(accounts))


def rooms_of(rooms: Mapping[str, Room], accounts: Sequence[str]) -> list[Room]:
    """The rooms of some accounts, in their order."""
    return [rooms[account] for account in accounts]
