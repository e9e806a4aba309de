"""Who watches for changes, and up to which of them each has confirmed: what ``wait=true`` waits
for.

A watcher (a router or an edge) is kept in the database from its first watch until it has not
watched for as long as it may go by what it knew; so every auth process knows those of all others,
and a restart forgets none. It acknowledges a revision once everything up to it is in force there.

One that does not acknowledge refuses by itself in the end. Auth tells nobody that all is well who
was not told before of what was committed more than ``TOLD_WITHIN_S`` earlier, and whoever is told
nothing trusts what he knows for no longer than he said (``trust_ms``).
"""

import asyncio
import logging
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from runtime.clock import Clock
from runtime.errors import GatewayError
from services.auth.objects import WatcherRecord
from services.auth.records import Session, Slice, Store

RENEW_S: Final = 10.0
"""How often it is noted that a watcher still watches."""
LEASE_S: Final = 30.0
"""How long it counts as watching after that."""
TOLD_WITHIN_S: Final = 4.0
"""No heartbeat follows a change by more than this without telling of it; clocks may differ."""
TRUST_MAX_S: Final = 86_400.0
NAME_CHARS_MAX: Final = 128
LOOK_S: Final = 0.1
"""How often the acknowledgements that other processes took are looked at."""
RETRY_S: Final = 1.0
WATCHERS_MAX: Final = 10_000

_LOG = logging.getLogger(__name__)


class Watchers:
    """The watchers of all auth processes; those of this one are renewed here."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._here: dict[str, WatcherRecord] = {}
        self._streams: Counter[str] = Counter()
        self._acked = asyncio.Event()

    async def run(self) -> None:
        """Notes who still watches, until it is cancelled."""
        pause_s = RENEW_S
        while True:
            await self._clock.sleep(pause_s)
            pause_s = RENEW_S
            try:
                await self._store.change(self._renew)
            except GatewayError as error:
                _LOG.warning("it cannot be noted who watches: %s", error.message)
                pause_s = RETRY_S

    async def enter(self, watcher_id: str, name: str, trust_s: float) -> None:
        """A watch begins: before it is told anything, it is known."""
        if len(watcher_id) > NAME_CHARS_MAX or len(self._here) >= WATCHERS_MAX:
            return
        trust = timedelta(seconds=min(max(trust_s, 0.0), TRUST_MAX_S))
        record = WatcherRecord(
            id=watcher_id,
            name=name[:NAME_CHARS_MAX],
            revision=0,
            trust_ms=round(trust.total_seconds() * 1000),
            refuses_by=self._until(trust),
        )
        self._here[watcher_id] = record
        self._streams[watcher_id] += 1
        try:
            await self._store.change(lambda session: self._keep(session, record))
        except GatewayError as error:
            # Nothing can be revoked either as long as nothing can be written.
            _LOG.warning("%r watches, which cannot be noted yet: %s", name, error.message)

    def now_s(self) -> float:
        """The moment from which :meth:`confirmed` counts, in monotonic seconds."""
        return self._clock.monotonic()

    def leave(self, watcher_id: str) -> None:
        """A watch ends; who watched may still go by what he knows."""
        self._streams[watcher_id] -= 1
        if self._streams[watcher_id] <= 0:  # else it has come back before its old stream ended
            del self._streams[watcher_id]
            self._here.pop(watcher_id, None)

    async def acknowledge(self, watcher_id: str, revision: int, *, leaving: bool) -> None:
        """Everything up to a revision is in force at a watcher. Raises STORE_UNAVAILABLE."""
        if leaving:
            self._here.pop(watcher_id, None)

        def noted(session: Session) -> None:
            if leaving:
                session.delete(WatcherRecord, {"id": watcher_id})
                return
            known = session.find(WatcherRecord, {"id": watcher_id})
            if known is not None and known.revision < revision:
                session.replace(replace(known, revision=revision))

        await self._store.change(noted)
        self._acked.set()

    async def confirmed(
        self, revision: int, committed_s: float, wait_max_s: float
    ) -> list[WatcherRecord]:
        """Waits until every watcher has taken in a revision, or can only refuse by now what it
        refuses.

        Args:
            revision: the change.
            committed_s: when it was surely there, in monotonic seconds.
            wait_max_s: the longest to wait.

        Returns who had not when the wait ended. Raises STORE_UNAVAILABLE.
        """
        while True:
            self._acked.clear()
            waited_s = self._clock.monotonic() - committed_s
            now = self._clock.now()
            behind = [
                watcher
                for watcher in await self._store.view(_all)
                if watcher.revision < revision
                and watcher.refuses_by > now
                and waited_s < watcher.trust_ms / 1000 + TOLD_WITHIN_S
            ]
            if not behind or waited_s >= wait_max_s:
                refused_s = [w.trust_ms / 1000 + TOLD_WITHIN_S - waited_s for w in behind]
                return [
                    replace(w, refuses_by=now + timedelta(seconds=left_s))
                    for w, left_s in zip(behind, refused_s, strict=True)
                ]
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._acked.wait()
            except TimeoutError:
                continue

    def _until(self, trust: timedelta) -> datetime:
        return self._clock.now() + timedelta(seconds=LEASE_S) + trust

    def _renew(self, session: Session) -> None:
        now = self._clock.now()
        for watcher in self._here.values():
            self._keep(session, watcher)
        for gone in _all(session):
            if gone.refuses_by < now:
                session.delete(WatcherRecord, {"id": gone.id})

    def _keep(self, session: Session, watcher: WatcherRecord) -> None:
        until = self._until(timedelta(milliseconds=watcher.trust_ms))
        known = session.find(WatcherRecord, {"id": watcher.id})
        if known is None:
            session.insert(replace(watcher, refuses_by=until))
        else:
            # What it has confirmed stays so: it goes on from there.
            session.replace(replace(watcher, revision=known.revision, refuses_by=until))


def _all(session: Session) -> list[WatcherRecord]:
    return session.select(WatcherRecord, {}, Slice(size=WATCHERS_MAX))
