"""Rate limits of several routers together, counted in Valkey; and what happens when it is away.

One command takes from every limit of a call or from none (``limit_scripts.py``). When it cannot be
had within the deadline, this call and all after it are judged by the router's own share
(``solo.py``) until Valkey is back and has this router among its members again. Whoever takes over,
pool or shares, starts with nothing saved up: the limit's burst is never there twice.

Calls of keys without a limit never come here.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.clock import Clock
from runtime.errors import GatewayError
from services.router.limits.limit_scripts import ADMIT, BEAT, LEAVE, SETTLE
from services.router.limits.membership import FRESH_S, Member
from services.router.limits.solo import Claim, Solo
from services.router.limits.valkey_link import Link, LinkDownError
from services.router.limits.windows import Ticket, applicable, counter_key, exceeded, tighter

BEAT_S: Final = 0.25
"""How often a router says that it lives, and how often it tries to come back."""
START_S: Final = 1.0
"""How long a starting router waits for Valkey before it serves without."""
PLACE_STALE_S: Final = 15.0
"""After how long a router that says nothing holds no places any more."""
PLACE_REFRESH_S: Final = 4.0
TRIES: Final = 3

_TAKEN = 1
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class SharedTicket(Ticket):
    """One admitted call.

    Attributes:
        decided_unix_us: when it was admitted, by the clock of who admitted it.
    """

    decided_unix_us: int = 0
    _settle: Callable[["SharedTicket", int], None] | None = None
    _claims: list[Claim] = field(default_factory=list)
    _from: "Solo | str" = ""

    def close(self, tokens: int, now_s: float) -> None:  # noqa: ARG002 - as a Ticket's
        """The call is over and used so many tokens, all its attempts together."""
        settle, self._settle = self._settle, None
        if settle is not None:
            settle(self, tokens)


@dataclass(frozen=True, slots=True)
class _Owed:
    """A correction that the pool has not heard of."""

    claim: Claim
    units: int
    fall: str


class SharedLimits:
    """The limits of this router and all others.

    Args:
        link: to Valkey, not connected yet; nobody else's.
        member: who this router is there.
        namespace: before every key's name, for installations that share a Valkey.
        clock: its monotonic time judges what Valkey does not.
    """

    def __init__(self, link: Link, member: Member, namespace: str, clock: Clock) -> None:
        self._link = link
        link.on_down = self._away
        self._member = member
        self._clock = clock
        tag = f"{namespace}:{{limits}}:"
        self._tag = tag
        self._pool = [tag + "pool", tag + "members", tag + "shares"]
        self._solo: Solo | None = Solo(member.lease_until_s, member.share)
        self._busy: dict[str, int] = {}
        self._changed: set[str] = set()
        self._owed: list[_Owed] = []
        self._owing = asyncio.Event()
        self._joining = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._was_shared: bool | None = None

    @property
    def is_shared(self) -> bool:
        """Whether Valkey counts; else every router keeps to its share."""
        return self._solo is None

    async def start(self) -> None:
        """Joins the others, or goes on without after a moment."""
        for work in (self._keep(), self._keep_settling()):
            self._tasks.append(asyncio.get_running_loop().create_task(work))
        deadline_s = self._clock.monotonic() + START_S
        while not self.is_shared and self._clock.monotonic() < deadline_s:
            await self._clock.sleep(0.01)
        if not self.is_shared and self._was_shared is None:
            self._tell_away()

    async def close(self) -> None:
        """Leaves: the others need not keep anything free for this router."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._link.up:
            try:
                await self._link.run(LEAVE, self._pool, [self._member.id])
            except LinkDownError:
                _LOG.info("Valkey did not hear that this router leaves")
        await self._link.close()

    def _away(self) -> None:
        """Valkey is lost: from here on, this router keeps to its share."""
        if self._solo is None:
            since_s = max(self._member.lease_until_s, self._clock.monotonic())
            self._solo = Solo(since_s, self._member.share)
            self._tell_away()

    async def admit(
        self, grant: grant_pb2.Grant, model: str, tokens: Callable[[], int], now_s: float
    ) -> Ticket:
        """As :meth:`Limits.admit`, for all routers together.

        Raises RATE_LIMIT_EXCEEDED; STORE_UNAVAILABLE when Valkey is away and this router was
        never told its share.
        """
        rates = applicable(grant, model)
        if not rates:
            return Ticket()
        for rate in rates:
            if rate.amount <= 0:
                raise exceeded(rate, 0)
        claims = [self._claim(grant, rate, tokens) for rate in rates]
        try:
            if self._solo is None:
                try:
                    return await self._take_shared(claims)
                except LinkDownError:
                    now_s = self._clock.monotonic()
            return self._take_alone(claims, now_s)
        except BaseException:
            self._leave_places(claims)
            raise

    def _claim(
        self, grant: grant_pb2.Grant, rate: grant_pb2.RateLimit, tokens: Callable[[], int]
    ) -> Claim:
        key = self._tag + ":".join(str(part) for part in counter_key(grant, rate))
        units = 1
        if rate.meter == grant_pb2.RATE_METER_TOKENS:
            units = min(tokens(), rate.amount)
        elif rate.meter == grant_pb2.RATE_METER_CONCURRENCY:
            # Counted at once, so that calls on their way to Valkey see each other.
            units = self._busy[key] = self._busy.get(key, 0) + 1
        return Claim(rate=rate, key=key, units=units)

    async def _take_shared(self, claims: list[Claim]) -> Ticket:
        """Raises ``LinkDownError`` when Valkey did not judge."""
        keys = [*self._pool, *(claim.key for claim in claims)]
        figures: list[str | int] = []
        for claim in claims:
            kind = "places" if claim.is_place else "units"
            window_us = max(claim.rate.window_s, 1) * 1_000_000
            figures += [kind, claim.rate.amount, window_us, claim.units]
        for _ in range(TRIES):
            epoch = self._member.epoch
            fixed = [self._member.proof, _us(FRESH_S), self._member.id, _us(PLACE_STALE_S)]
            reply = await self._link.run(ADMIT, keys, [*fixed, *figures])
            match reply[0]:
                case 1:
                    return self._taken(claims, reply)
                case 0:
                    wait_ms = -(-int(reply[2]) // 1000)
                    raise exceeded(claims[reply[1]].rate, wait_ms)
                case -1:
                    await self._beat(epoch)
                case _:
                    self._member.prove(reply[1], self._clock.monotonic())
        raise LinkDownError("the pool does not come to rest")

    def _taken(self, claims: list[Claim], reply: list[Any]) -> Ticket:
        ticket = SharedTicket(
            decided_unix_us=int(reply[2]),
            _settle=self._settled,
            _claims=claims,
            _from=reply[1].decode(),
        )
        for claim, left in zip(claims, reply[3:], strict=True):
            _show(ticket, claim, float(left), claim.rate.amount)
        return ticket

    def _take_alone(self, claims: list[Claim], now_s: float) -> Ticket:
        solo = self._solo
        if solo is None:  # Valkey came back in this very moment
            raise exceeded(claims[0].rate, 1000)
        if solo.share <= 0:
            raise GatewayError(
                error_pb2.ERROR_REASON_STORE_UNAVAILABLE,
                "The limits of this key cannot be counted: Valkey is away and has never told this "
                "router its share. Try again in a moment.",
                retry_after_ms=1000,
            )
        for claim in claims:
            wait_s = solo.wait_s(claim, now_s)
            if wait_s > 0:
                raise exceeded(claim.rate, int(wait_s * 1000) + 1)
        ticket = SharedTicket(
            decided_unix_us=int(self._clock.now().timestamp() * 1_000_000),
            _settle=self._settled,
            _claims=claims,
            _from=solo,
        )
        for claim in claims:
            left = solo.take(claim, now_s)
            _show(ticket, claim, left, claim.rate.amount * solo.share)
        return ticket

    def _settled(self, ticket: SharedTicket, tokens: int) -> None:
        """A call is over: corrects its tokens where they were taken, and frees its places."""
        now_s = self._clock.monotonic()
        for claim in ticket._claims:  # noqa: SLF001 - the ticket is this module's own
            if claim.rate.meter != grant_pb2.RATE_METER_TOKENS or tokens == claim.units:
                continue
            origin, more = ticket._from, tokens - claim.units  # noqa: SLF001
            if isinstance(origin, Solo) and origin is not self._solo:
                if more <= 0:
                    continue  # what it would be given back to is gone
                origin = ""
            if self._solo is None:
                self._owed.append(_Owed(claim, more, str(origin)))
                self._owing.set()
            elif more > 0 or origin is self._solo:
                self._solo.charge(claim, more, now_s)
        self._leave_places(ticket._claims)  # noqa: SLF001

    def _leave_places(self, claims: list[Claim]) -> None:
        for claim in claims:
            if claim.is_place:
                self._busy[claim.key] -= 1
                if self._solo is None:
                    self._changed.add(claim.key)
                    self._owing.set()
                elif not self._busy[claim.key]:
                    del self._busy[claim.key]

    async def _keep_settling(self) -> None:
        """Tells the pool what calls have really used, many in one command."""
        while True:
            await self._owing.wait()
            self._owing.clear()
            if self._solo is not None:
                continue
            owed, self._owed = self._owed[:500], self._owed[500:]
            places = list(self._changed)[:500]
            self._changed.difference_update(places)
            if self._owed or self._changed:
                self._owing.set()
            if owed or places:
                await self._settle(owed, places)

    async def _settle(self, owed: list[_Owed], places: list[str]) -> None:
        keys, figures = list(self._pool), list[str | int]()
        for one in owed:
            rate = one.claim.rate
            keys.append(one.claim.key)
            window_us = max(rate.window_s, 1) * 1_000_000
            figures += ["units", rate.amount, window_us, one.units, one.fall or "-1"]
        for key in places:
            keys.append(key)
            figures += ["places", 0, 0, self._busy.get(key, 0), "-1"]
            if not self._busy.get(key, 1):
                del self._busy[key]
        try:
            fixed = [self._member.proof, _us(FRESH_S), self._member.id]
            await self._link.run(SETTLE, keys, [*fixed, *figures])
        except LinkDownError:
            self._changed.update(places)
            now_s = self._clock.monotonic()
            for one in owed:
                if one.units > 0 and self._solo is not None:
                    self._solo.charge(one.claim, one.units, now_s)

    async def _keep(self) -> None:
        """Says that this router lives; comes back when Valkey does."""
        refresh_s = 0.0
        while True:
            try:
                if not self._link.up:
                    await self._link.connect()
                    refresh_s = 0.0
                await self._beat()
                now_s = self._clock.monotonic()
                if now_s >= refresh_s and self._busy:
                    refresh_s = now_s + PLACE_REFRESH_S
                    self._changed.update(self._busy)
                    self._owing.set()
            except LinkDownError as error:
                _LOG.debug("Valkey is away: %s", error)
            await self._clock.sleep(BEAT_S)

    async def _beat(self, lost_epoch: str = "") -> None:
        """Renews the lease; becomes a member again when the pool has forgotten this one, or when
        it was lost in ``lost_epoch`` and nobody has made it anew. Raises ``LinkDownError``.
        """
        async with self._joining:
            if lost_epoch and self._member.epoch != lost_epoch:
                return
            for _ in range(TRIES):
                now_s = self._clock.monotonic()
                if self._member.is_fresh(now_s):
                    # From here on the pool may count on this router again.
                    self._solo = None
                epoch = self._member.epoch
                reply = await self._link.run(BEAT, self._pool, self._member.beat(now_s))
                if reply[0] == _TAKEN:
                    self._member.heard(reply, self._clock.monotonic())
                    if epoch != self._member.epoch:
                        self._changed.update(self._busy)
                        self._owing.set()
                    self._tell_back()
                    return
                self._member.prove(reply[1], self._clock.monotonic())
        raise LinkDownError("Valkey answers too late")

    def _tell_away(self) -> None:
        if self._was_shared is not False:
            self._was_shared = False
            _LOG.warning(
                "Valkey is away: until it is back this router admits %.4g of every rate limit",
                self._member.share,
            )

    def _tell_back(self) -> None:
        if self._was_shared is not True:
            self._was_shared = True
            _LOG.info("rate limits are counted in Valkey, for %d routers", self._member.live)


def _show(ticket: Ticket, claim: Claim, left: float, full: float) -> None:
    """Where a limit stands, for headers."""
    rate = claim.rate
    if claim.is_place:
        return
    reset_ms = int((full - left) * rate.window_s * 1000 / max(full, 1e-9)) + 1
    status = chat_pb2.LimitStatus(
        limit=rate.amount, remaining=max(int(left + 1e-9), 0), reset_ms=reset_ms
    )
    if rate.meter == grant_pb2.RATE_METER_TOKENS:
        ticket.tokens = tighter(ticket.tokens, status)
    else:
        ticket.requests = tighter(ticket.requests, status)


def _us(seconds: float) -> str:
    return str(round(seconds * 1_000_000))
