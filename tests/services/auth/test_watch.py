"""How watchers learn of changes."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from onegate.auth.v1 import grant_service_pb2
from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from runtime.sql import open_database
from services.auth import watch
from services.auth.identity import Identity
from services.auth.records import Change, Changes, Founding
from services.auth.store import SqlStore
from services.auth.watch import Feed
from tests.services.auth.ports import NOON, SteppedClock, asked, auth_settings, opened, until
from tests.services.auth.serving import auth

pytestmark = pytest.mark.anyio

Response = grant_service_pb2.WatchGrantsResponse


class ShakyStore(SqlStore):
    """A store whose log cannot be read for a while."""

    away = False

    async def changes_after(self, revision: int, *, rows_max: int) -> Changes:
        if self.away:
            raise GatewayError(error_pb2.ERROR_REASON_STORE_UNAVAILABLE, "the store is away")
        return await super().changes_after(revision, rows_max=rows_max)


class Log:
    """A log to write to and a feed on it that looks when it is told to."""

    def __init__(self, identity: Identity, store: ShakyStore, clock: SteppedClock) -> None:
        self.identity = identity
        self.store = store
        self.clock = clock
        self.feed = Feed(store, clock)

    async def write(self, count: int = 1) -> int:
        """Makes so many changes; gives the newest revision."""
        key = None
        for _ in range(count):
            key, _ = await self.store.add_key(self.identity.mint(asked(), None)[1])
        assert key is not None
        return key.version


@asynccontextmanager
async def log(directory: Path, *, changes_kept: int = 10_000) -> AsyncIterator[Log]:
    """A founded store with a feed that nobody drives."""
    clock = SteppedClock()
    async with opened(directory, clock) as identity:
        store = ShakyStore(open_database(auth_settings(directory).dsn), changes_kept=changes_kept)
        founding = Founding(
            organization_id="org_1", project_id="proj_1", name="x", keys=(), now=NOON
        )
        await store.found(founding)
        try:
            yield Log(identity, store, clock)
        finally:
            await store.close()


async def told(news: AsyncGenerator[Response, None], timeout_s: float = 5.0) -> Response:
    """What a watcher is told next."""
    async with asyncio.timeout(timeout_s):
        return await anext(news)


def versions(response: Response) -> list[int]:
    return [change.version for change in response.changes]


async def test_a_new_watcher_is_told_where_the_log_stands(tmp_path: Path) -> None:
    async with log(tmp_path) as at:
        newest = await at.write(3)
        async with aclosing(at.feed.watch(0)) as news:
            assert await told(news) == Response(revision=newest)


async def test_a_returning_watcher_is_told_what_it_missed(tmp_path: Path) -> None:
    async with log(tmp_path) as at:
        newest = await at.write(5)
        async with aclosing(at.feed.watch(newest - 3)) as news:
            first = await told(news)
            assert versions(first) == [newest - 2, newest - 1, newest]
            assert (first.revision, first.reset) == (newest, False)


@pytest.mark.parametrize("behind", [6, 100, -1])
async def test_a_watcher_that_cannot_be_caught_up_starts_anew(tmp_path: Path, behind: int) -> None:
    async with log(tmp_path, changes_kept=5) as at:
        newest = await at.write(150)
        async with aclosing(at.feed.watch(newest - behind)) as news:
            assert await told(news) == Response(revision=newest, reset=True)


async def test_a_watcher_too_far_behind_to_be_told_in_one_word_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "CAUGHT_UP_MAX", 2)
    async with log(tmp_path) as at:
        newest = await at.write(5)
        async with aclosing(at.feed.watch(newest - 2)) as news:
            assert len((await told(news)).changes) == 2
        async with aclosing(at.feed.watch(newest - 3)) as news:
            assert (await told(news)).reset


async def test_changes_are_told_in_order_and_once(tmp_path: Path) -> None:
    async with log(tmp_path) as at, aclosing(at.feed.watch(0)) as news:
        start = (await told(news)).revision
        seen: list[int] = []
        for count in (1, 3, 2):
            await at.write(count)
            await at.feed.refresh()
            response = await told(news)
            seen += versions(response)
            assert response.revision == seen[-1]
        assert seen == list(range(start + 1, start + 7))


async def test_several_readings_are_told_in_one_word(tmp_path: Path) -> None:
    async with log(tmp_path) as at, aclosing(at.feed.watch(0)) as news:
        start = (await told(news)).revision
        for _ in range(3):
            await at.write()
            await at.feed.refresh()
        assert versions(await told(news)) == [start + 1, start + 2, start + 3]


async def test_what_a_watcher_missed_is_not_told_again_from_the_queue(tmp_path: Path) -> None:
    async with log(tmp_path) as at:
        await at.feed.refresh()
        newest = await at.write(2)
        async with aclosing(at.feed.watch(newest - 2)) as news:
            assert versions(await told(news)) == [newest - 1, newest]
            await at.feed.refresh()
            later = await at.write()
            await at.feed.refresh()
            assert versions(await told(news)) == [later]


async def test_a_slow_watcher_is_told_to_start_anew_and_then_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "QUEUED_MAX", 4)
    async with (
        log(tmp_path) as at,
        aclosing(at.feed.watch(0)) as slow,
        aclosing(at.feed.watch(0)) as quick,
    ):
        await told(slow)
        await told(quick)
        newest = 0
        for _ in range(3):
            newest = await at.write(2)
            await at.feed.refresh()
            assert len((await told(quick)).changes) == 2
        assert await told(slow) == Response(revision=newest, reset=True)
        later = await at.write()
        await at.feed.refresh()
        assert versions(await told(slow)) == [later]


async def test_more_changes_at_once_than_a_queue_holds_start_every_watcher_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "QUEUED_MAX", 4)
    async with log(tmp_path) as at, aclosing(at.feed.watch(0)) as news:
        await told(news)
        newest = await at.write(5)
        await at.feed.refresh()
        assert await told(news) == Response(revision=newest, reset=True)


async def test_a_watcher_that_left_is_not_kept(tmp_path: Path) -> None:
    async with log(tmp_path) as at:
        async with aclosing(at.feed.watch(0)) as news:
            await told(news)
            assert at.feed.watchers() == 1
        assert at.feed.watchers() == 0


async def test_a_quiet_log_is_a_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "HEARTBEAT_S", 0.05)
    async with log(tmp_path) as at, aclosing(at.feed.watch(0)) as news:
        revision = (await told(news)).revision
        for _ in range(3):
            assert await told(news) == Response(revision=revision)


async def test_there_is_no_heartbeat_while_the_log_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "HEARTBEAT_S", 0.05)
    async with log(tmp_path) as at, aclosing(at.feed.watch(0)) as news:
        await told(news)
        at.clock.passed_s += 1
        waiting = asyncio.ensure_future(anext(news))
        done, _ = await asyncio.wait([waiting], timeout=0.5)
        assert not done
        await at.feed.refresh()
        await asyncio.wait_for(waiting, 5)


async def test_a_watch_cannot_start_while_the_log_cannot_be_read(tmp_path: Path) -> None:
    async with log(tmp_path) as at:
        at.store.away = True
        for _ in range(2):
            with pytest.raises(GatewayError):
                await told(at.feed.watch(0))
            at.store.away = False
            await at.feed.refresh()
            at.store.away = True
        assert at.feed.watchers() == 0


async def test_following_survives_a_store_that_goes_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with log(tmp_path) as at, aclosing(at.feed.watch(0)) as news:
        caplog.set_level("INFO")
        await told(news)
        following = asyncio.create_task(at.feed.run())
        at.store.away = True
        await until(lambda: "cannot be read" in caplog.text, "the notice")
        newest = await at.write()
        at.store.away = False
        assert versions(await told(news)) == [newest]
        await until(lambda: "can be read again" in caplog.text, "the second notice")
        assert caplog.text.count("cannot be read") == 1
        following.cancel()
        await asyncio.wait([following])


async def test_readings_that_are_asked_for_together_are_shared(tmp_path: Path) -> None:
    async with log(tmp_path) as at, aclosing(at.feed.watch(0)) as news:
        await told(news)
        newest = await at.write()
        begun = at.feed._begun
        await asyncio.gather(*(at.feed.refresh() for _ in range(50)))
        assert at.feed._begun - begun <= 2
        assert versions(await told(news)) == [newest]


async def test_a_change_of_our_own_is_told_without_waiting_for_the_next_look(
    tmp_path: Path,
) -> None:
    async with auth(tmp_path, follows=False) as at:
        call = at.grants.WatchGrants(grant_service_pb2.WatchGrantsRequest(watcher="t"))
        await call.read()
        _, made = await at.create()
        ended = await at.revoke(made.id)
        async with asyncio.timeout(1):
            first, second = await call.read(), await call.read()
        assert isinstance(first, Response)
        assert isinstance(second, Response)
        assert versions(first) + versions(second) == [made.version, ended.version]
        call.cancel()


async def test_a_change_made_by_another_process_is_told_within_a_second(tmp_path: Path) -> None:
    async with auth(tmp_path) as at, opened(tmp_path) as other:
        call = at.grants.WatchGrants(grant_service_pb2.WatchGrantsRequest(watcher="t"))
        await call.read()
        key, _ = await other.store.add_key(other.mint(asked(), None)[1])
        async with asyncio.timeout(1):
            response = await call.read()
        assert isinstance(response, Response)
        assert versions(response) == [key.version]
        call.cancel()


async def test_a_watcher_that_does_not_read_is_told_to_start_anew(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        call = at.grants.WatchGrants(grant_service_pb2.WatchGrantsRequest(watcher="t"))
        await call.read()
        watcher = next(iter(at.feed._watchers))
        key, _ = await at.identity.store.add_key(at.identity.mint(asked(), None)[1])
        # What the socket and gRPC buffer is not ours; beyond it the queue fills and is let go.
        rows = [Change(revision=n, key_id=key.id, revoked=False) for n in range(999)]
        for n in range(1_000):
            if watcher._lost:
                break
            watcher.put(Changes(revision=1_000_000 + n, rows=rows, complete=True))
            await asyncio.sleep(0)
        assert watcher._lost
        assert len(watcher._changes) == 0
        async with asyncio.timeout(10):
            response = await call.read()
            while isinstance(response, Response) and not response.reset:
                response = await call.read()
        assert isinstance(response, Response)
        call.cancel()
