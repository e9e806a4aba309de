"""A provider that asked one router for quiet is left alone by all of them until its time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from onegate.auth.v1 import grant_pb2
from runtime.settings import LimitsSettings
from tests.fake_provider import FakeProvider, Reply
from tests.services.router.rig import PRICED, Rig, hello, provider, running, settings_in, until
from tests.services.router.valkey_server import ValkeyServer

BUSY_REASON = "upstream_rate_limited"
BUSY = Reply(
    status=429, body=b'{"error": {"message": "slow down"}}', headers=(("retry-after", "30"),)
)


@asynccontextmanager
async def two_routers(
    directory: Path, fake: FakeProvider
) -> AsyncIterator[tuple[ValkeyServer, list[Rig]]]:
    """Two routers over one Valkey that call the same provider."""
    server = ValkeyServer(directory)
    await asyncio.to_thread(server.start)
    limits = LimitsSettings(valkey_url=server.url)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.close)
        rigs = []
        for name in ("r1", "r2"):
            (directory / name).mkdir()
            own = settings_in(directory / name, provider("a", fake), name=name, attempts_max=1)
            rigs.append(
                await stack.enter_async_context(running(replace(own, limits=limits), PRICED))
            )
        yield server, rigs


async def listening(rigs: list[Rig], server: ValkeyServer) -> None:
    """Returns once both hear of cool-downs."""
    await until(lambda: server.subscribers("onegate:cooling") == len(rigs), 20)


@pytest.mark.anyio
async def test_what_one_router_was_asked_all_routers_do(tmp_path: Path) -> None:
    async with FakeProvider() as fake, two_routers(tmp_path, fake) as (server, (one, two)):
        await listening([one, two], server)
        fake.script(BUSY)
        assert (await one.chat(hello())).reason == BUSY_REASON
        for _ in range(20):
            for rig in (two, one):
                said = await rig.chat(hello())
                assert said.error is not None
                assert said.reason == BUSY_REASON
                assert 20_000 < said.error.retry_after_ms <= 30_100
        assert len(fake.chats) == 1


@pytest.mark.anyio
async def test_a_router_that_was_away_learns_what_it_missed_and_tells_what_it_knows(
    tmp_path: Path,
) -> None:
    async with FakeProvider() as fake, two_routers(tmp_path, fake) as (server, (one, two)):
        await listening([one, two], server)
        server.kill()
        fake.script(BUSY)
        assert (await one.chat(hello())).reason == BUSY_REASON
        await asyncio.to_thread(server.start)
        await listening([one, two], server)
        async with asyncio.timeout(20):
            while (await two.chat(hello())).reason != BUSY_REASON:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@pytest.mark.anyio
async def test_a_call_that_waited_is_stopped_when_its_deployment_was_asked_for_quiet(
    tmp_path: Path,
) -> None:
    limit = grant_pb2.RateLimit(
        meter=grant_pb2.RATE_METER_CONCURRENCY, amount=1, scope=grant_pb2.RATE_SCOPE_KEY
    )
    async with FakeProvider() as fake:
        own = settings_in(tmp_path, provider("a", fake), queue_wait_s=20.0)
        async with running(own, PRICED) as rig:
            key = rig.add_key(rate_limits=[limit])
            fake.script(replace(BUSY, first_byte_delay_s=0.5))
            first = asyncio.create_task(rig.chat(hello(), key=key))
            await fake.until(lambda: len(fake.chats) == 1)
            second = asyncio.create_task(rig.chat(hello(), key=key))
            assert [(await one).reason for one in (first, second)] == [BUSY_REASON] * 2
            assert len(fake.chats) == 1
