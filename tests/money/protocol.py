"""The protocol of holds and settlements, as a state machine that a search can exhaust.

One account, two attempts, one router that may die, one database, and a network that loses, delays,
repeats and reorders. A state is a value; ``successors`` names everything that can happen next.
``Rules`` holds the protocol's decisions one by one: each can be replaced by the mistake that other
gateways make, so that the search can show that it would notice.

Money is in units: an attempt is bounded by ``BOUND``, the account by ``LIMIT``, so that both
attempts can run only one after the other unless the first proves cheap.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

BOUND: Final = 2
"""What an attempt sets aside, and the most that it can cost."""
LIMIT: Final = 3
"""What the account may spend."""
SLACK: Final = 1
"""How far a provider can be ahead of the progress that the journal knows."""
ATTEMPTS: Final = (0, 1)
SENT_MAX: Final = 2
"""How often the same message is sent before the model stops to repeat it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol's decisions; ``True`` is how it is meant.

    Args:
        hold_counts_held: admission looks at what is held as well as at what was spent.
        hold_is_atomic: admission checks and sets aside in one step.
        refusal_leaves_tombstone: a refused hold cannot be admitted by a late duplicate.
        void_until_acked: a hold that was given up is voided again until usage has said so.
        void_leaves_tombstone: a hold that was given up before it arrived cannot be placed later.
        journal_before_dispatch: the journal knows of an attempt before the provider does.
        lease_posts: a lease that runs out posts the hold instead of voiding it.
        settle_once: a settlement that comes again changes nothing.
        settle_corrects_lease: the truth corrects what a lease that ran out had posted.
        settle_releases_own_hold: only the settlement that posts releases the hold.
        trim_on_ack: the journal forgets an attempt when usage has acknowledged it, not sooner.
        fence_refuses_late: requests of a dead router's epoch are refused.
        fence_spares_dispatched: a new epoch voids only what the journal proves unsent.
        ambiguous_keeps_hold: an attempt that was sent is never voided.
        restart_adds_slack: an interrupted attempt is charged what may have been produced unseen.
    """

    hold_counts_held: bool = True
    hold_is_atomic: bool = True
    refusal_leaves_tombstone: bool = True
    void_until_acked: bool = True
    void_leaves_tombstone: bool = True
    journal_before_dispatch: bool = True
    lease_posts: bool = True
    settle_once: bool = True
    settle_corrects_lease: bool = True
    settle_releases_own_hold: bool = True
    trim_on_ack: bool = True
    fence_refuses_late: bool = True
    fence_spares_dispatched: bool = True
    ambiguous_keeps_hold: bool = True
    restart_adds_slack: bool = True


class Journal(NamedTuple):
    """What the router's disk knows of an attempt."""

    stage: str = "none"
    """``none``, ``dispatched``, ``final`` or ``trimmed``."""
    cost: int = 0
    """Progress while dispatched, the cost once final."""
    flagged: bool = False
    """The cost is a bound, not a report."""


class Entry(NamedTuple):
    """What the ledger says of an attempt: the sum of its entries."""

    cost: int
    why: str
    """``reported``, ``flagged`` (a restart's bound), ``lease`` or ``void``."""
    originals: int = 1
    """How many entries that are no corrections."""


class Attempt(NamedTuple):
    """One attempt, as router, journal, provider and database each see it."""

    router: str = "idle"
    """``idle``, ``asked``, ``held``, ``noted``, ``open``, ``done``, ``voiding``, ``gone``,
    and ``lost`` while the router is dead. ``unnoted`` only by mistake."""
    journal: Journal = Journal()
    produced: int | None = None
    """The provider's own tally; ``None`` when it was never called."""
    hold: str = "none"
    """``none``, ``held``, ``tombstone`` or ``settled``."""
    hold_epoch: int = 0
    posted: Entry | None = None


class Message(NamedTuple):
    """On its way; stays so, since the network may deliver it again."""

    kind: str
    attempt: int
    epoch: int = 0
    cost: int = 0
    flagged: bool = False


class State(NamedTuple):
    """Everything there is."""

    attempts: tuple[Attempt, ...]
    network: frozenset[Message]
    up: bool
    epoch: int
    crashes: int
    """How many more times the router may die."""
    losses: int
    """How many more messages may be lost."""
    balance: int
    """The account's projection of what is spent."""
    held: int
    """The account's projection of what is set aside."""


def start(*, crashes: int, losses: int) -> State:
    """Nothing has happened yet; so many crashes and losses are still to come."""
    attempts = tuple(Attempt() for _ in ATTEMPTS)
    return State(attempts, frozenset(), True, 1, crashes, losses, 0, 0)


def successors(state: State, rules: Rules) -> Iterator[tuple[str, State]]:
    """What can happen next, each with its name. States equal to ``state`` may be among them."""
    if state.up:
        for index in ATTEMPTS:
            yield from _router_steps(state, index, rules)
        if state.crashes:
            yield "crash", _crashed(state)
    else:
        yield "restart", _restarted(state, rules)
    for index, attempt in enumerate(state.attempts):
        if attempt.hold == "held":
            yield f"lease {index}", _lease_out(state, index, rules)
        if attempt.produced is not None and _can_produce(attempt):
            yield f"produce {index}", _with(state, index, produced=attempt.produced + 1)
    for message in state.network:
        yield f"deliver {message.kind} {message.attempt}", _delivered(state, message, rules)
        if state.losses:
            lost = state._replace(network=state.network - {message}, losses=state.losses - 1)
            yield f"lose {message.kind} {message.attempt}", lost


def _with(state: State, index: int, **changes: object) -> State:
    changed = state.attempts[index]._replace(**changes)  # type: ignore[arg-type]
    attempts = (*state.attempts[:index], changed, *state.attempts[index + 1 :])
    return state._replace(attempts=attempts)


def _sent(state: State, *messages: Message) -> State:
    return state._replace(network=state.network.union(messages))


def _can_produce(attempt: Attempt) -> bool:
    """A provider is at most ``SLACK`` ahead of what the journal saw; a cut one stops there."""
    produced, journal = attempt.produced or 0, attempt.journal
    if attempt.router not in {"open", "unnoted", "lost"} or journal.stage in {"final", "trimmed"}:
        return False
    return produced < min(BOUND, journal.cost + SLACK)


def _router_steps(state: State, index: int, rules: Rules) -> Iterator[tuple[str, State]]:
    attempt = state.attempts[index]
    match attempt.router:
        case "idle" | "asked":
            asked = _with(state, index, router="asked")
            yield f"ask {index}", _sent(asked, Message("hold", index, state.epoch))
        case "held":
            noted = _with(state, index, router="noted", journal=Journal("dispatched"))
            if rules.journal_before_dispatch:
                yield f"note {index}", noted
            else:
                yield f"dispatch {index}", _with(state, index, router="unnoted", produced=0)
        case "unnoted":
            yield f"note {index}", _with(state, index, router="open", journal=Journal("dispatched"))
        case "noted":
            yield f"dispatch {index}", _with(state, index, router="open", produced=0)
        case "open":
            yield from _stream_steps(state, index, rules)
        case "voiding" if rules.void_until_acked:
            yield f"void {index}", _sent(state, Message("void", index))
        case _:
            pass
    if attempt.router in {"asked", "held"}:
        voiding = _with(state, index, router="voiding")
        yield f"give up {index}", _sent(voiding, Message("void", index))
    if attempt.journal.stage == "final":
        _, cost, flagged = attempt.journal
        settling = _sent(state, Message("settle", index, 0, cost, flagged))
        if not rules.trim_on_ack:
            settling = _with(settling, index, journal=Journal("trimmed", cost, flagged))
        yield f"ship {index}", settling


def _stream_steps(state: State, index: int, rules: Rules) -> Iterator[tuple[str, State]]:
    attempt = state.attempts[index]
    produced = attempt.produced or 0
    if produced > attempt.journal.cost:
        yield f"progress {index}", _with(state, index, journal=Journal("dispatched", produced))
    final = Journal("final", produced)
    yield f"finish {index}", _with(state, index, router="done", journal=final)
    if not rules.ambiguous_keeps_hold:
        voiding = _with(state, index, router="voiding", journal=Journal("trimmed"))
        yield f"give up {index}", _sent(voiding, Message("void", index))


def _crashed(state: State) -> State:
    """Memory is gone, the disk is not; what the provider was told it keeps producing for a bit."""
    attempts = tuple(
        attempt._replace(router="lost" if attempt.router != "idle" else "idle")
        for attempt in state.attempts
    )
    return state._replace(attempts=attempts, up=False, crashes=state.crashes - 1)


def _restarted(state: State, rules: Rules) -> State:
    """The journal is read, a new epoch begins, and what it proves unsent is voided."""
    fresh = state._replace(up=True, epoch=state.epoch + 1)
    for index, attempt in enumerate(fresh.attempts):
        if attempt.router != "lost":
            continue
        journal = attempt.journal
        if journal.stage == "dispatched":
            most = journal.cost + (SLACK if rules.restart_adds_slack else 0)
            journal = Journal("final", min(most, BOUND), True)
        fresh = _with(fresh, index, router="gone", journal=journal)
        known = journal.stage != "none" and rules.fence_spares_dispatched
        # Usage can void what it holds; of a request that is still on its way it knows nothing.
        if attempt.hold != "none" and not known:
            fresh = _voided(fresh, index, rules)
    return fresh


def _voided(state: State, index: int, rules: Rules) -> State:
    """Nothing was sent: the hold is released, or what its lease had posted is taken back."""
    attempt = state.attempts[index]
    match attempt.hold:
        case "none":
            if not rules.void_leaves_tombstone:
                return state
            return _with(state, index, hold="tombstone")
        case "held":
            released = state._replace(held=state.held - BOUND)
            return _with(released, index, hold="tombstone")
        case "settled" if attempt.posted is not None and attempt.posted.why == "lease":
            corrected = state._replace(balance=state.balance - attempt.posted.cost)
            return _with(corrected, index, posted=attempt.posted._replace(cost=0, why="void"))
        case _:
            return state


def _lease_out(state: State, index: int, rules: Rules) -> State:
    released = state._replace(held=state.held - BOUND)
    if not rules.lease_posts:
        return _with(released, index, hold="tombstone")
    posted = released._replace(balance=released.balance + BOUND)
    return _with(posted, index, hold="settled", posted=Entry(BOUND, "lease"))


def _delivered(state: State, message: Message, rules: Rules) -> State:
    match message.kind:
        case "hold":
            return _hold_arrived(state, message, rules)
        case "checked":
            checked = state.attempts[message.attempt].hold == "none"
            return _placed(state, message) if checked else state
        case "void":
            voided = _voided(state, message.attempt, rules)
            return _sent(voided, Message("voided", message.attempt))
        case "settle":
            settled = _settled(state, message, rules)
            return _sent(settled, Message("ack", message.attempt))
        case _:
            return _answered(state, message) if state.up else state


def _answered(state: State, message: Message) -> State:
    """The router hears of what it asked; an answer that it does not wait for changes nothing."""
    index, journal = message.attempt, state.attempts[message.attempt].journal
    current = message.epoch == state.epoch
    match message.kind, state.attempts[index].router:
        case "held", "asked" if current:
            return _with(state, index, router="held")
        case "refused", "asked" if current:
            return _with(state, index, router="gone")
        case "voided", "voiding":
            return _with(state, index, router="gone")
        case "ack", _ if journal.stage == "final":
            return _with(state, index, journal=journal._replace(stage="trimmed"))
        case _:
            return state


def _hold_arrived(state: State, message: Message, rules: Rules) -> State:
    index, epoch = message.attempt, message.epoch
    attempt = state.attempts[index]
    if rules.fence_refuses_late and epoch < state.epoch:
        return state
    match attempt.hold:
        case "none":
            used = state.balance + (state.held if rules.hold_counts_held else 0)
            if used + BOUND > LIMIT:
                refused = _sent(state, Message("refused", index, epoch))
                if rules.refusal_leaves_tombstone:
                    return _with(refused, index, hold="tombstone")
                return refused
            if rules.hold_is_atomic:
                return _placed(state, message)
            return _sent(state, Message("checked", index, epoch))
        case "held":
            return _sent(state, Message("held", index, epoch))
        case "tombstone":
            return _sent(state, Message("refused", index, epoch))
        case _:
            return state


def _placed(state: State, message: Message) -> State:
    held = state._replace(held=state.held + BOUND)
    held = _with(held, message.attempt, hold="held", hold_epoch=message.epoch)
    return _sent(held, Message("held", message.attempt, message.epoch))


def _settled(state: State, message: Message, rules: Rules) -> State:
    index, cost = message.attempt, message.cost
    attempt = state.attempts[index]
    why = "flagged" if message.flagged else "reported"
    posted = attempt.posted
    if posted is None:
        held = state.held - (BOUND if attempt.hold == "held" else 0)
        settled = state._replace(balance=state.balance + cost, held=held)
        return _with(settled, index, hold="settled", posted=Entry(cost, why))
    if posted.why == "lease" and rules.settle_corrects_lease:
        settled = state._replace(balance=state.balance + cost - posted.cost)
        return _with(settled, index, posted=posted._replace(cost=cost, why=why))
    if not rules.settle_releases_own_hold:
        state = state._replace(held=state.held - BOUND)
    if not rules.settle_once and posted.originals < SENT_MAX:
        doubled = posted._replace(cost=posted.cost + cost, originals=posted.originals + 1)
        return _with(state._replace(balance=state.balance + cost), index, posted=doubled)
    return state
