"""Rate limits: at most so many requests or tokens in any window, and so many calls at once.

A sliding window in a bounded number of slots. Events of one slot leave the window together, when
the last of them may: in every interval of length t no more than ``amount + amount·t/window`` is
admitted (and in any window no more than ``amount``); what is given up for bounded memory is at most
a ``1/SLOTS`` of the window by which room comes back late.

Tokens are reserved by an estimate and corrected when the provider has counted: too much is given
back, too little is added afterwards, beyond the limit if need be, and waited for by later calls.

Pure: the caller brings the time, in monotonic seconds.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.patterns import matches

SLOTS: Final = 64
"""Into how many slots a window is divided."""
COUNTERS_MAX: Final = 100_000
"""How many limits are counted at once; beyond it, those that are at rest are forgotten."""

# What a call of a language model counts; images and audio count where they are served.
_UNITS: Final = {
    grant_pb2.RATE_METER_REQUESTS: "requests",
    grant_pb2.RATE_METER_TOKENS: "tokens",
    grant_pb2.RATE_METER_CONCURRENCY: "calls at the same time",
}
_OWNERS: Final = {
    grant_pb2.RATE_SCOPE_UNSPECIFIED: "key",
    grant_pb2.RATE_SCOPE_KEY: "key",
    grant_pb2.RATE_SCOPE_PROJECT: "project",
    grant_pb2.RATE_SCOPE_ORGANIZATION: "organisation",
}
_BUSY_RETRY_MS: Final = 1000
"""What a caller is told to wait when all its places are taken; nobody knows when one is free."""

Key = tuple[int, str, int, int, str]


@dataclass(slots=True)
class _Slot:
    """Events that leave the window together."""

    first_s: float
    last_s: float
    amount: int


class SlidingWindow:
    """What was admitted within the last window."""

    __slots__ = ("_slots", "used", "window_s")

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self.used = 0
        self._slots: deque[_Slot] = deque()

    def expire(self, now_s: float) -> None:
        """Forgets what has left the window."""
        while self._slots and self._slots[0].last_s + self.window_s <= now_s:
            slot = self._slots.popleft()
            self.used -= slot.amount
            slot.amount = 0

    def add(self, amount: int, now_s: float) -> _Slot:
        """Admits. The caller has asked :meth:`wait_s` before, or means to overdraw."""
        slot = self._slots[-1] if self._slots else None
        if slot is None or now_s - slot.first_s >= self.window_s / SLOTS:
            slot = _Slot(now_s, now_s, 0)
            self._slots.append(slot)
        slot.last_s = now_s
        slot.amount += amount
        self.used += amount
        return slot

    def give_back(self, slot: _Slot, amount: int) -> None:
        """Returns what was admitted into the slot and not used; nothing once it has left."""
        amount = min(amount, slot.amount)
        slot.amount -= amount
        self.used -= amount

    def wait_s(self, amount: int, limit: int, now_s: float) -> float:
        """How long until ``amount`` fits; 0 when it fits now. ``amount`` must not exceed
        ``limit``.
        """
        excess = self.used + amount - limit
        for slot in self._slots:
            if excess <= 0:
                return 0.0
            excess -= slot.amount
            if excess <= 0:
                return slot.last_s + self.window_s - now_s
        return 0.0

    def status(self, limit: int, now_s: float) -> chat_pb2.LimitStatus:
        """Where the limit stands, for headers."""
        empty_s = self._slots[-1].last_s + self.window_s - now_s if self._slots else 0.0
        return chat_pb2.LimitStatus(
            limit=limit, remaining=max(limit - self.used, 0), reset_ms=_ms(empty_s)
        )


@dataclass(slots=True)
class Ticket:
    """One admitted call: what it holds of each limit. Give it back exactly once."""

    requests: chat_pb2.LimitStatus | None = None
    tokens: chat_pb2.LimitStatus | None = None
    _reserved: list[tuple[SlidingWindow, _Slot, int]] = field(default_factory=list)
    _places: list[list[int]] = field(default_factory=list)

    def close(self, tokens: int, now_s: float) -> None:
        """The call is over and used so many tokens, all its attempts together."""
        for window, slot, reserved in self._reserved:
            window.expire(now_s)
            if tokens > reserved:
                window.add(tokens - reserved, now_s)
            else:
                window.give_back(slot, reserved - tokens)
        self._reserved.clear()
        for place in self._places:
            place[0] -= 1
        self._places.clear()


class Limits:
    """Every limit that is being counted, in this process."""

    def __init__(self) -> None:
        self._windows: dict[Key, SlidingWindow] = {}
        self._busy: dict[Key, list[int]] = {}

    def admit(
        self, grant: grant_pb2.Grant, model: str, tokens: Callable[[], int], now_s: float
    ) -> Ticket:
        """Takes a place in every limit that applies, or in none.

        Args:
            grant: whose limits.
            model: ``provider/model``.
            tokens: estimates the call's tokens; asked only when a limit counts them.
            now_s: monotonic seconds.

        Raises RATE_LIMIT_EXCEEDED, with the time after which the call would be admitted.
        """
        ticket = Ticket()
        if not grant.rate_limits:
            return ticket
        rates = applicable(grant, model)
        if not rates:
            return ticket
        asked = _Asked(self, grant, tokens, now_s)
        for rate in rates:
            asked.check(rate)
        for rate in rates:
            asked.take(rate, ticket)
        return ticket

    def window(self, key: Key, window_s: float, now_s: float) -> SlidingWindow:
        """The counter of one limit."""
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= COUNTERS_MAX:
                self._forget(now_s)
            window = self._windows[key] = SlidingWindow(window_s)
        window.expire(now_s)
        return window

    def busy(self, key: Key) -> list[int]:
        """How many calls are under way, as the one element of a list."""
        if len(self._busy) >= COUNTERS_MAX:
            self._busy = {k: count for k, count in self._busy.items() if count[0]}
        return self._busy.setdefault(key, [0])

    def _forget(self, now_s: float) -> None:
        for window in self._windows.values():
            window.expire(now_s)
        self._windows = {key: window for key, window in self._windows.items() if window.used}


class _Asked:
    """One call before its limits."""

    def __init__(
        self,
        limits: Limits,
        grant: grant_pb2.Grant,
        tokens: Callable[[], int],
        now_s: float,
    ) -> None:
        self._limits = limits
        self._grant = grant
        self._estimate = tokens
        self._now_s = now_s
        self._tokens: int | None = None

    def check(self, rate: grant_pb2.RateLimit) -> None:
        """Raises when there is no room."""
        if rate.meter == grant_pb2.RATE_METER_CONCURRENCY:
            if self._limits.busy(counter_key(self._grant, rate))[0] >= rate.amount:
                raise exceeded(rate, _BUSY_RETRY_MS)
            return
        window = self._limits.window(counter_key(self._grant, rate), rate.window_s, self._now_s)
        wait_s = window.wait_s(self._amount(rate), rate.amount, self._now_s)
        if wait_s > 0 or rate.amount <= 0:
            raise exceeded(rate, _ms(wait_s))

    def take(self, rate: grant_pb2.RateLimit, ticket: Ticket) -> None:
        """Takes the place that was found."""
        if rate.meter == grant_pb2.RATE_METER_CONCURRENCY:
            place = self._limits.busy(counter_key(self._grant, rate))
            place[0] += 1
            ticket._places.append(place)  # noqa: SLF001 - the ticket is this module's own
            return
        window = self._limits.window(counter_key(self._grant, rate), rate.window_s, self._now_s)
        amount = self._amount(rate)
        slot = window.add(amount, self._now_s)
        status = window.status(rate.amount, self._now_s)
        if rate.meter == grant_pb2.RATE_METER_TOKENS:
            ticket._reserved.append((window, slot, amount))  # noqa: SLF001
            ticket.tokens = tighter(ticket.tokens, status)
        else:
            ticket.requests = tighter(ticket.requests, status)

    def _amount(self, rate: grant_pb2.RateLimit) -> int:
        """How much the call takes; never more than the whole limit, or it could never run."""
        if rate.meter != grant_pb2.RATE_METER_TOKENS:
            return 1
        if self._tokens is None:
            self._tokens = self._estimate()
        return min(self._tokens, rate.amount)


def applicable(grant: grant_pb2.Grant, model: str) -> list[grant_pb2.RateLimit]:
    """The limits of a grant that count a call of ``provider/model``."""
    return [
        rate
        for rate in grant.rate_limits
        if rate.meter in _UNITS and (not rate.model or matches(rate.model, model))
    ]


def counter_key(grant: grant_pb2.Grant, rate: grant_pb2.RateLimit) -> Key:
    """What shares one counter."""
    owner = grant.key_id
    if rate.scope == grant_pb2.RATE_SCOPE_PROJECT:
        owner = grant.project_id
    elif rate.scope == grant_pb2.RATE_SCOPE_ORGANIZATION:
        owner = grant.organization_id
    return (rate.scope, owner, rate.meter, rate.window_s, rate.model)


def tighter(one: chat_pb2.LimitStatus | None, other: chat_pb2.LimitStatus) -> chat_pb2.LimitStatus:
    """Whichever leaves less room."""
    return other if one is None or other.remaining < one.remaining else one


def exceeded(rate: grant_pb2.RateLimit, wait_ms: int) -> GatewayError:
    """What a caller is told whose limit is used up."""
    unit = _UNITS.get(rate.meter, "requests")
    per = "" if rate.meter == grant_pb2.RATE_METER_CONCURRENCY else f" in {rate.window_s} s"
    of = f" of {rate.model}" if rate.model else ""
    return GatewayError(
        error_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED,
        f"The {_OWNERS.get(rate.scope, 'key')}'s limit of {rate.amount} {unit}{of}{per} is used up;"
        f" try again in {wait_ms / 1000:g} s.",
        retry_after_ms=wait_ms,
    )


def _ms(seconds: float) -> int:
    """Milliseconds, rounded up: who waits so long is not refused again."""
    return max(-int(-seconds * 1000 // 1), 0)
