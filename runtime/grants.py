"""What a key may do, asked of auth once and then known here until auth says otherwise.

The promises, each with a test: garbage costs no look-up; a revoked key is refused from the moment
its push arrives; a grant older than a pushed version is neither used nor kept, whatever overtakes
what; while auth is away, what is known works for ``grace_s`` from the last sign of life and what
is not known is AUTH_UNAVAILABLE, never a refusal.
"""

import asyncio
import enum
import logging
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Final, TypeAlias, assert_never

import grpc

from onegate.auth.v1 import grant_pb2, grant_service_pb2, grant_service_pb2_grpc
from onegate.common.v1 import error_pb2
from runtime import apikeys
from runtime.clock import Clock, Entropy, SystemEntropy
from runtime.errors import GatewayError
from runtime.grant_acks import AckSender
from runtime.key_use import REPORT_S, TICK_S, UseReporter
from runtime.rpc import from_rpc_error, unary

GRANTS_MAX: Final = 100_000
"""How many keys are known at once; the one unused for longest is forgotten."""

UNKNOWN_MAX: Final = 10_000
"""How many digests are remembered as nobody's key."""

UNKNOWN_S: Final = 10.0
"""How long they are, in seconds."""

LOOKUPS_MAX: Final = 1_000
"""How many keys are asked for at once; for one more the caller is told to come back."""

LOOKUP_TIMEOUT_S: Final = 2.0
"""How long auth may take to answer, in seconds."""

LOOKUP_TRIES_MAX: Final = 3
"""How often a key is asked for again because a change overtook the answer."""

SILENCE_S: Final = 8.0
"""How long auth may say nothing before it counts as away; it says something every 2 s."""

FLOORS_MAX: Final = 10_000
"""How many pushed versions are remembered for answers that are still under way."""

RECONNECT_S_MAX: Final = 2.0
"""The longest pause before auth is tried again, in seconds."""

_RECONNECT_S_MIN: Final = 0.1
_RETRY_AFTER_MS: Final = 1000
_NEVER: Final = float("-inf")
_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ENTROPY: Final = SystemEntropy()
_LOG = logging.getLogger(__name__)

Change: TypeAlias = grant_service_pb2.GrantChange


class _Known:
    """A key that is known: with its grant, or revoked for good."""

    __slots__ = ("expires_at", "grant", "key_id", "told_s", "trusted_until", "used_s", "version")

    def __init__(self, grant: grant_pb2.Grant, trusted_until: float) -> None:
        self.grant: grant_pb2.Grant | None = grant
        self.key_id = grant.key_id
        self.version = grant.version
        self.trusted_until = trusted_until
        self.used_s = self.told_s = _NEVER
        self.expires_at: datetime | None = None
        if grant.disabled:
            # Refused by the check of expiry, which every look-up makes anyhow.
            self.expires_at = _LONG_AGO
        elif grant.HasField("expires_at"):
            self.expires_at = grant.expires_at.ToDatetime(UTC)


class _Miss(enum.Enum):
    """Why auth gave no grant."""

    UNKNOWN = enum.auto()
    AWAY = enum.auto()


class _Cache:
    """Known keys by digest and by id, the one unused for longest first."""

    def __init__(self) -> None:
        self.by_digest: OrderedDict[bytes, _Known] = OrderedDict()
        self._digests: dict[str, set[bytes]] = {}
        self._lost: dict[str, float] = {}

    def put(self, digest: bytes, known: _Known) -> None:
        """Keeps a key; forgets another when there are too many."""
        self.by_digest[digest] = known
        self.by_digest.move_to_end(digest)
        self._digests.setdefault(known.key_id, set()).add(digest)
        if len(self.by_digest) > GRANTS_MAX:
            self.drop(next(iter(self.by_digest)))

    def drop(self, digest: bytes) -> None:
        """Forgets a key, but not that it was used."""
        known = self.by_digest.pop(digest)
        key_id = known.key_id
        if known.used_s > known.told_s:
            self._lost[key_id] = known.used_s
        digests = self._digests[key_id]
        digests.discard(digest)
        if not digests:
            del self._digests[key_id]

    def change(self, change: Change) -> None:
        """Voids what is older than a change."""
        for digest in tuple(self._digests.get(change.key_id, ())):
            known = self.by_digest[digest]
            if change.revoked:
                known.grant = None
                known.version = max(known.version, change.version)
            elif known.version < change.version:
                self.drop(digest)

    def uses(self, now_s: float) -> dict[str, float]:
        """The uses that auth is to be told of now: each once, and none of a key that it was told
        of within ``REPORT_S``.
        """
        found, self._lost = self._lost, {}
        # What was used before this has been told: the walk ends at the first such key.
        since_s = now_s - REPORT_S - 2 * TICK_S
        for known in reversed(self.by_digest.values()):
            if _NEVER < known.used_s < since_s:
                break
            if known.used_s > known.told_s and now_s - known.told_s >= REPORT_S:
                known.told_s = now_s
                found[known.key_id] = max(known.used_s, found.get(known.key_id, _NEVER))
        return found

    def clear(self) -> None:
        """Forgets everything."""
        self.by_digest.clear()
        self._digests.clear()


class _Floors:
    """The least version that an answer may have, for keys that changed lately.

    An answer may be overtaken by a push of a later change. Pushed versions are kept for that, the
    latest ones; an answer that has been under way for longer than those reach back is not used.
    """

    def __init__(self) -> None:
        self._versions: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._forgotten = 0
        self.count = 0

    def put(self, change: Change) -> None:
        """Takes note of a pushed version."""
        self.count += 1
        version, _ = self._versions.pop(change.key_id, (0, 0))
        self._versions[change.key_id] = (max(version, change.version), self.count)
        if len(self._versions) > FLOORS_MAX:
            _, (_, self._forgotten) = self._versions.popitem(last=False)

    def forget(self) -> None:
        """Versions start anew: nothing that is under way may be used."""
        self.count += 1
        self._forgotten = self.count
        self._versions.clear()

    def admits(self, grant: grant_pb2.Grant, asked_at: int) -> bool:
        """Whether an answer is as new as every push, given :attr:`count` when it was asked for."""
        floor = self._versions.get(grant.key_id)
        if floor is not None:
            return grant.version >= floor[0]
        return asked_at >= self._forgotten


class GrantClient:
    """Grants of keys, for a router or an edge.

    Args:
        channel: to auth; the caller closes it.
        clock: expiry goes by its wall clock, everything else by its monotonic one.
        grace_s: how long known grants work after the last sign of life of auth.
        watcher: which process this is, for operators.
        entropy: spreads reconnects.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        clock: Clock,
        grace_s: float,
        watcher: str,
        entropy: Entropy = _ENTROPY,
    ) -> None:
        self._stub = grant_service_pb2_grpc.GrantServiceStub(channel)
        self._clock = clock
        self._grace_s = grace_s
        self._watcher = watcher
        self._watcher_id = f"{watcher[:64]}/{entropy.bytes(8).hex()}"
        self._entropy = entropy
        self._cache = _Cache()
        self._known = self._cache.by_digest
        self._digests: OrderedDict[str, bytes] = OrderedDict()
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        self._floors = _Floors()
        self._flights: dict[bytes, asyncio.Task[_Known | _Miss]] = {}
        self._revision = 0
        self._alive_at = _NEVER
        self._trusted_until = _NEVER
        self._failures = 0
        self._acks = AckSender(self._stub.AckGrants, clock, self._watcher_id)
        self._uses = UseReporter(self._stub.ReportUse, clock, self._cache.uses)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> bool:
        """Whether auth has been heard since the start. Stays true when auth goes away: that is
        answered call by call.
        """
        return self._alive_at != _NEVER

    def start(self) -> None:
        """Starts to watch auth, and to tell it which keys are used."""
        loop = asyncio.get_running_loop()
        watching, telling = loop.create_task(self._watch()), loop.create_task(self._uses.run())
        acknowledging = loop.create_task(self._acks.run())
        watching.add_done_callback(_report)
        telling.add_done_callback(_report_silence)
        acknowledging.add_done_callback(_report_silence)
        self._tasks = [watching, telling, acknowledging]

    async def report_uses(self) -> None:
        """Tells auth at once which keys were used, as far as it is time to tell."""
        await self._uses.report()

    async def close(self) -> None:
        """Stops watching and asking."""
        tasks = [*self._flights.values(), *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._cache.clear()
        self._trusted_until = _NEVER
        if self.ready and self._failures == 0:
            await self._acks.leave()

    def lookup(self, key: str) -> grant_pb2.Grant | None:
        """The grant when it is known and good now; ``None`` sends the caller to :meth:`get`.

        The message is shared: nobody may change it.
        """
        digest = self._digests.get(key)
        known = self._known.get(digest) if digest is not None else None
        if known is None or digest is None:
            return None
        now_s = self._clock.monotonic()
        if now_s > self._trusted_until and now_s > known.trusted_until:
            return None
        if known.expires_at is not None and known.expires_at <= self._clock.now():
            return None
        self._known.move_to_end(digest)
        known.used_s = now_s
        return known.grant

    async def get(self, key: str) -> grant_pb2.Grant:
        """The grant of a key that is good now.

        Raises INVALID_API_KEY for a key that is malformed, unknown or revoked, KEY_EXPIRED,
        KEY_DISABLED, AUTH_UNAVAILABLE when it is not known and auth does not answer, OVERLOADED
        when too many unknown keys are being asked for.
        """
        grant = self.lookup(key)
        if grant is not None:
            return grant
        if apikeys.kind_of(key) is None:
            raise _invalid()
        digest = apikeys.digest(key)
        known = self._trusted(digest) or await self._asked(digest)
        if known.grant is None:
            raise _invalid()
        if known.expires_at is not None and known.expires_at <= self._clock.now():
            raise _ended(known.grant)
        self._remember(key, digest)
        known.used_s = self._clock.monotonic()
        return known.grant

    def _trusted(self, digest: bytes) -> _Known | None:
        """What is known of the key and need not be asked again."""
        known = self._known.get(digest)
        if known is None:
            return None
        now_s = self._clock.monotonic()
        # Revocation is for good: no sign of life is needed to believe it.
        if known.grant is None or now_s <= max(self._trusted_until, known.trusted_until):
            return known
        return None

    def _remember(self, key: str, digest: bytes) -> None:
        """Saves the next look-up of this key its hash."""
        if len(self._digests) >= GRANTS_MAX:
            self._digests.popitem(last=False)
        self._digests[key] = digest

    async def _asked(self, digest: bytes) -> _Known:
        """What auth says. All callers that want the same key share one question."""
        if self._is_unknown(digest):
            raise _invalid()
        flight = self._flights.get(digest)
        if flight is None:
            if len(self._flights) >= LOOKUPS_MAX:
                raise GatewayError(
                    error_pb2.ERROR_REASON_OVERLOADED,
                    "Too many unknown API keys are being looked up. Try again in a moment.",
                    retry_after_ms=_RETRY_AFTER_MS,
                )
            flight = asyncio.get_running_loop().create_task(self._ask(digest))
            self._flights[digest] = flight
            flight.add_done_callback(lambda _: self._flights.pop(digest))
        match await asyncio.shield(flight):
            case _Known() as known:
                return known
            case _Miss.UNKNOWN:
                raise _invalid()
            case _Miss.AWAY:
                raise GatewayError(
                    error_pb2.ERROR_REASON_AUTH_UNAVAILABLE,
                    "The gateway cannot check this API key just now. Try again in a moment.",
                    retry_after_ms=_RETRY_AFTER_MS,
                )
            case never:
                assert_never(never)

    def _is_unknown(self, digest: bytes) -> bool:
        until = self._unknown.get(digest)
        return until is not None and self._clock.monotonic() < until

    async def _ask(self, digest: bytes) -> _Known | _Miss:
        """Asks auth until the answer is as new as every push, or time is up."""
        request = grant_service_pb2.GetGrantRequest(key_digest=digest)
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                for _ in range(LOOKUP_TRIES_MAX):
                    asked_at = self._floors.count
                    asked_s = self._clock.monotonic()
                    response = await unary(self._stub.GetGrant, request, timeout_s=LOOKUP_TIMEOUT_S)
                    known = self._taken(digest, response.grant, asked_at, asked_s)
                    if known is not None:
                        return known
        except TimeoutError:
            return _Miss.AWAY
        except GatewayError as error:
            if error.reason != error_pb2.ERROR_REASON_INVALID_API_KEY:
                if self._failures == 0:
                    _LOG.warning("auth could not answer: %s", error.message)
                return _Miss.AWAY
            self._cache_unknown(digest)
            return _Miss.UNKNOWN
        return _Miss.AWAY

    def _taken(
        self, digest: bytes, grant: grant_pb2.Grant, asked_at: int, asked_s: float
    ) -> _Known | None:
        """Keeps an answer, unless something newer has been heard since it was asked for."""
        if self._floors.admits(grant, asked_at) and not self._is_old(digest, grant):
            return self._keep(digest, grant, asked_s)
        return None

    def _is_old(self, digest: bytes, grant: grant_pb2.Grant) -> bool:
        """Whether something newer is known of the key than this answer."""
        known = self._known.get(digest)
        return known is not None and grant.version < known.version

    def _keep(self, digest: bytes, grant: grant_pb2.Grant, asked_s: float) -> _Known:
        """Keeps an answer."""
        known = self._known.get(digest)
        if known is None or known.grant is not None:
            # Auth waits for those who watch: without a watch, an answer serves those who asked.
            known = _Known(grant, min(asked_s + self._grace_s, max(self._trusted_until, asked_s)))
            self._cache.put(digest, known)
        return known

    def _cache_unknown(self, digest: bytes) -> None:
        if digest in self._known:
            self._cache.drop(digest)
        self._unknown.pop(digest, None)
        if len(self._unknown) >= UNKNOWN_MAX:
            self._unknown.popitem(last=False)
        self._unknown[digest] = self._clock.monotonic() + UNKNOWN_S

    async def _watch(self) -> None:
        """Follows auth, and comes back whenever it goes away."""
        while True:
            try:
                await self._follow()
                why = "it ended the watch"
            except GatewayError as error:
                why = error.message
            except TimeoutError:
                why = f"it said nothing for {SILENCE_S:.0f} s"
            self._trusted_until = self._alive_at + self._grace_s
            if self._failures == 0:
                _LOG.warning(
                    "lost auth: %s; known keys work for %.0f s from its last word",
                    why,
                    self._grace_s,
                )
            self._failures += 1
            await self._clock.sleep(self._pause_s())

    def _pause_s(self) -> float:
        """Longer with every failure, up to a maximum, and anything below by chance."""
        longest_s = min(RECONNECT_S_MAX, _RECONNECT_S_MIN * (1 << min(self._failures, 10)))
        return longest_s * (1 + self._entropy.bytes(1)[0]) / 256

    async def _follow(self) -> None:
        """Applies what auth says until it stops. Raises ``GatewayError`` or ``TimeoutError``."""
        call = self._stub.WatchGrants(
            grant_service_pb2.WatchGrantsRequest(
                after_revision=self._revision,
                watcher=self._watcher,
                watcher_id=self._watcher_id,
                trust_ms=int(max(self._grace_s, SILENCE_S) * 1000),
            )
        )
        try:
            fresh, first = self._revision == 0, True
            while True:
                async with asyncio.timeout(SILENCE_S):
                    news = await call.read()
                if not isinstance(news, grant_service_pb2.WatchGrantsResponse):
                    return
                stood_still = not first and self._clock.monotonic() > self._trusted_until
                self._apply(news, fresh=fresh)
                if stood_still:
                    # For longer than this process may trust what it knows: what arrives first now
                    # was said long ago. A new watch hears what is true now.
                    return
                self._hear()
                if first or news.reset or news.changes:
                    self._acks.tell(self._revision)
                fresh = first = False
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, away=error_pb2.ERROR_REASON_AUTH_UNAVAILABLE) from error
        finally:
            call.cancel()

    def _apply(self, news: grant_service_pb2.WatchGrantsResponse, *, fresh: bool) -> None:
        """Takes in what changed. ``fresh``: the first word since nothing was known; changes from
        before it are not told, so what was asked before it may be old.
        """
        if news.reset or fresh:
            self._cache.clear()
            self._unknown.clear()
            self._floors.forget()
        for change in news.changes:
            self._floors.put(change)
            self._cache.change(change)
            if not change.revoked:
                # A key that nobody had may work from now on.
                self._unknown.clear()
        self._revision = news.revision

    def _hear(self) -> None:
        """Auth lives: what is known goes on working."""
        self._alive_at = self._clock.monotonic()
        # Not "as long as the watch is up": a process that was stopped for an hour finds its watch
        # up when it goes on.
        self._trusted_until = self._alive_at + max(self._grace_s, SILENCE_S)
        if self._failures:
            _LOG.info("auth is back")
        self._failures = 0


def _report(watching: "asyncio.Task[None]") -> None:
    """A watch ends only when it is closed; anything else is a defect, and known keys will stop
    working at the end of the grace period.
    """
    if not watching.cancelled():
        _LOG.critical("the watch on auth has failed", exc_info=watching.exception())


def _report_silence(telling: "asyncio.Task[None]") -> None:
    """A defect too; calls go on without it."""
    if not telling.cancelled():
        _LOG.error("auth is not told any more what it asks for", exc_info=telling.exception())


def _ended(grant: grant_pb2.Grant) -> GatewayError:
    if grant.disabled:
        return GatewayError(
            error_pb2.ERROR_REASON_KEY_DISABLED,
            "This API key is disabled. Ask an administrator to enable it, or use another one.",
        )
    return GatewayError(
        error_pb2.ERROR_REASON_KEY_EXPIRED,
        "This API key has expired. Ask an administrator for a new one.",
    )


def _invalid() -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_INVALID_API_KEY,
        "This API key is not valid. Check that it was copied whole and has not been revoked.",
    )
