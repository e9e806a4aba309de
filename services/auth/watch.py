"""Tells watchers of every change within milliseconds of its commit, whichever process made it.

One reader follows the log for all watchers of this process: at once after a change of our own or
one that another process announces, and every 250 ms in case an announcement was lost. A watcher
has a bounded queue; one that falls behind is told to start anew instead of being buffered for.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Final, TypeAlias

from onegate.auth.v1 import grant_service_pb2
from runtime.clock import Clock, pause
from runtime.errors import GatewayError
from services.auth.records import Change, Changes, Store

POLL_S: Final = 0.25
"""How long a change that another process made may stay unseen here when its announcement is lost,
in seconds.
"""

HEARTBEAT_S: Final = 2.0
"""How long a watcher hears nothing when nothing changes, in seconds."""

QUEUED_MAX: Final = 1_000
"""How many changes wait for a slow watcher before it is told to start anew."""

CAUGHT_UP_MAX: Final = 10_000
"""How many changes a returning watcher is told; with more to say, it is told to start anew."""

_LOG = logging.getLogger(__name__)

Response: TypeAlias = grant_service_pb2.WatchGrantsResponse


class Feed:
    """The log, followed; and everybody who watches it."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._reading = asyncio.Lock()
        self._watchers: set[_Watcher] = set()
        self._begun = 0
        self._done = 0
        self._revision: int | None = None
        self._read_at = float("-inf")
        self._heard = asyncio.Event()

    async def run(self) -> None:
        """Follows the log until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._store.follow(self._heard.set))
            await self._follow()

    async def _follow(self) -> None:
        away = False
        while True:
            try:
                await self.refresh()
            except GatewayError as error:
                if not away:
                    _LOG.error("the log of changes cannot be read: %s", error.message)
                away = True
            else:
                if away:
                    _LOG.info("the log of changes can be read again")
                away = False
            await pause(self._clock, POLL_S, self._heard)
            self._heard.clear()

    async def refresh(self) -> None:
        """Reads the log: what was committed before this call is queued for every watcher when it
        returns. Raises STORE_UNAVAILABLE.
        """
        begun = self._begun
        async with self._reading:
            if self._done > begun:
                # A reading that began after this call has done its work.
                return
            self._begun += 1
            await self._read()
            self._done = self._begun

    async def _read(self) -> None:
        """One look at the log. The first only finds out where it ends."""
        first = self._revision is None
        news = await self._store.changes_after(self._revision or 0, rows_max=QUEUED_MAX)
        if not first and news.revision != self._revision:
            for watcher in self._watchers:
                watcher.put(news)
        self._revision = news.revision
        self._read_at = self._clock.monotonic()

    async def watch(self, after_revision: int) -> AsyncGenerator[Response, None]:
        """Everything after a revision, at once and as it comes. Raises STORE_UNAVAILABLE when it
        cannot be known what the watcher missed.
        """
        if self._revision is None:
            await self.refresh()
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            # The queue takes what is read from now on; what was read before is in the log.
            missed = await self._store.changes_after(after_revision, rows_max=CAUGHT_UP_MAX)
            if after_revision == 0:
                missed = Changes(revision=missed.revision, rows=(), complete=True)
            watcher.revision = missed.revision
            yield _response(missed.revision, missed.rows, reset=not missed.complete)
            while True:
                if await watcher.has_news():
                    yield watcher.take()
                elif self.age_s() <= HEARTBEAT_S:
                    yield _response(watcher.revision, ())
        finally:
            self._watchers.discard(watcher)

    def watchers(self) -> int:
        """How many watch."""
        return len(self._watchers)

    def age_s(self) -> float:
        """How long ago the log was read. When it was not read just now, a heartbeat would be a
        lie: there may be revocations that this process does not know of.
        """
        return self._clock.monotonic() - self._read_at


class _Watcher:
    """What is to be told to one watcher, up to a bound."""

    __slots__ = ("_changes", "_lost", "_newest", "_news", "revision")

    def __init__(self) -> None:
        self._changes: list[Change] = []
        self._lost = False
        self._newest = 0
        self._news = asyncio.Event()
        self.revision = 0

    def put(self, news: Changes) -> None:
        """Takes changes to be told, or takes note that they cannot all be."""
        self._newest = news.revision
        self._lost |= not news.complete or len(self._changes) + len(news.rows) > QUEUED_MAX
        if self._lost:
            self._changes.clear()
        else:
            self._changes.extend(news.rows)
        self._news.set()

    async def has_news(self) -> bool:
        """Waits for news, at most as long as a watcher may hear nothing."""
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    def take(self) -> Response:
        """The news, which are then told."""
        # What the log said when the watcher came may be in the queue once more.
        rows = [change for change in self._changes if change.revision > self.revision]
        lost, self._lost = self._lost, False
        self.revision = self._newest if lost else max(self.revision, self._newest)
        self._changes.clear()
        self._news.clear()
        return _response(self.revision, rows, reset=lost)


def _response(revision: int, rows: Sequence[Change], *, reset: bool = False) -> Response:
    changes = [
        grant_service_pb2.GrantChange(
            key_id=change.key_id, version=change.revision, revoked=change.revoked
        )
        for change in rows
    ]
    return Response(revision=revision, changes=changes, reset=reset)
