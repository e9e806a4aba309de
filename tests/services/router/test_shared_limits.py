"""Limits that routers share: one count for all, and what holds when Valkey does not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from runtime.clock import SystemClock, SystemEntropy
from runtime.errors import GatewayError
from runtime.settings import LimitsSettings
from services.router.limits import shared_limits
from services.router.limits.membership import Member
from services.router.limits.shared_limits import SharedLimits, SharedTicket
from services.router.limits.solo import Claim, Solo
from tests.fake_provider import FakeProvider
from tests.services.router import limits_history
from tests.services.router.limits_history import connected, excess
from tests.services.router.rig import PRICED, hello, provider, running, settings_in, until
from tests.services.router.valkey_server import ValkeyServer

KEY = grant_pb2.RATE_SCOPE_KEY
REQUESTS = grant_pb2.RATE_METER_REQUESTS
TOKENS = grant_pb2.RATE_METER_TOKENS
CONCURRENCY = grant_pb2.RATE_METER_CONCURRENCY


def grant(key_id: str, *rates: tuple[grant_pb2.RateMeter.ValueType, int]) -> grant_pb2.Grant:
    """A key with limits in a minute."""
    return grant_pb2.Grant(
        key_id=key_id,
        organization_id="o",
        rate_limits=[
            grant_pb2.RateLimit(meter=meter, amount=amount, window_s=600, scope=KEY)
            for meter, amount in rates
        ],
    )


async def admitted(
    limits: SharedLimits, owner: grant_pb2.Grant, tokens: Callable[[], int] = lambda: 1
) -> SharedTicket:
    ticket = await limits.admit(owner, "a/m", tokens, SystemClock().monotonic())
    assert isinstance(ticket, SharedTicket)
    return ticket


async def admitted_soon(
    limits: SharedLimits, owner: grant_pb2.Grant, tokens: Callable[[], int] = lambda: 1
) -> SharedTicket:
    """Once what another call gave back, or what a new pool did not know, has arrived."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await admitted(limits, owner, tokens)
            except GatewayError as error:
                if error.reason != error_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED:
                    raise
            await asyncio.sleep(0.01)


async def refusal(
    limits: SharedLimits, owner: grant_pb2.Grant, tokens: Callable[[], int] = lambda: 1
) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await admitted(limits, owner, tokens)
    return caught.value


@asynccontextmanager
async def sharing(
    directory: Path, count: int = 2
) -> AsyncIterator[tuple[ValkeyServer, list[SharedLimits]]]:
    """A server and the limits of so many routers, which all know each other and whose buckets are
    full.
    """
    server = ValkeyServer(directory)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.close)
        await asyncio.to_thread(server.start)
        routers = []
        for index in range(count):
            place = directory / f"r{index}"
            place.mkdir()
            routers.append(await connected(server.url, place))
            stack.push_async_callback(routers[-1].close)
        await until(lambda: all(abs(r._member.share - 1 / count) < 1e-9 for r in routers), 20)
        await until(lambda: all(r.is_shared for r in routers), 20)
        await full(routers[0])
        yield server, routers


async def full(limits: SharedLimits) -> None:
    """A new pool waits a moment for somebody who remembers an older one."""
    async with asyncio.timeout(20):
        for attempt in range(1000):
            try:
                await admitted(limits, grant(f"probe-{attempt}", (REQUESTS, 1)))
            except GatewayError:
                await asyncio.sleep(0.05)
            else:
                return


@pytest.mark.anyio
async def test_two_routers_have_one_count(tmp_path: Path) -> None:
    owner = grant("k", (REQUESTS, 5))
    async with sharing(tmp_path) as (_, (one, two)):
        tickets = [await admitted(router, owner) for router in (one, two, one, two, one)]
        shown = [ticket.requests for ticket in tickets]
        assert [status.remaining for status in shown if status] == [4, 3, 2, 1, 0]
        for router in (one, two):
            told = await refusal(router, owner)
            assert told.reason == error_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED
            assert 100_000 < told.retry_after_ms <= 120_000


@pytest.mark.anyio
async def test_a_call_takes_from_all_its_limits_or_from_none(tmp_path: Path) -> None:
    both, requests = grant("k", (REQUESTS, 3), (TOKENS, 10)), grant("k", (REQUESTS, 3))
    async with sharing(tmp_path) as (_, (one, two)):
        await admitted(one, both, lambda: 10)
        await refusal(two, both, lambda: 10)
        last = await admitted(two, requests)
        assert last.requests is not None
        assert last.requests.remaining == 1


@pytest.mark.anyio
async def test_calls_of_one_moment_share_a_round_trip_and_are_all_counted(tmp_path: Path) -> None:
    owner = grant("k", (REQUESTS, 30))
    async with sharing(tmp_path) as (_, routers):
        asked = (admitted(router, owner) for router in routers for _ in range(40))
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(outcome, SharedTicket) for outcome in outcomes) == 30


@pytest.mark.anyio
async def test_tokens_that_were_not_used_are_given_back_and_more_are_owed(tmp_path: Path) -> None:
    owner = grant("k", (TOKENS, 1000))
    async with sharing(tmp_path) as (_, (one, two)):
        first = await admitted(one, owner, lambda: 900)
        await refusal(two, owner, lambda: 900)
        first.close(100, 0.0)
        second = await admitted_soon(two, owner, lambda: 900)
        second.close(2000, 0.0)
        async with asyncio.timeout(20):
            while (await refusal(one, owner)).retry_after_ms < 600_000:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_places_are_shared_and_come_back(tmp_path: Path) -> None:
    owner = grant("k", (CONCURRENCY, 2))
    async with sharing(tmp_path) as (_, (one, two)):
        first = await admitted_soon(one, owner)
        second = await admitted(two, owner)
        assert "2 calls at the same time" in (await refusal(one, owner)).message
        second.close(0, 0.0)
        await admitted_soon(one, owner)
        await refusal(two, owner)
        first.close(0, 0.0)


@pytest.mark.anyio
async def test_places_of_a_router_that_died_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_limits, "PLACE_STALE_S", 1.0)
    monkeypatch.setattr(shared_limits, "PLACE_REFRESH_S", 0.2)
    owner = grant("k", (CONCURRENCY, 1))
    async with sharing(tmp_path) as (_, (one, two)):
        await admitted_soon(one, owner)
        await refusal(two, owner)
        for task in one._tasks:
            task.cancel()
        await admitted_soon(two, owner)


@pytest.mark.anyio
@pytest.mark.parametrize("fault", ["kill", "hang"])
async def test_without_valkey_every_router_keeps_to_its_share(tmp_path: Path, fault: str) -> None:
    owner = grant("k", (REQUESTS, 600_000))
    async with sharing(tmp_path) as (server, routers):
        await admitted(routers[0], owner)
        getattr(server, fault)()
        for router in routers:
            await until(lambda router=router: not router.is_shared)  # type: ignore[misc]
            await admitted_soon(router, owner)
            assert router._solo is not None
            assert router._solo.share == pytest.approx(0.5)
            assert not router.is_shared
        if fault == "hang":
            server.go_on()
        else:
            await asyncio.to_thread(server.start)
        await until(lambda: all(router.is_shared for router in routers), 20)


@pytest.mark.anyio
async def test_a_flush_admits_no_second_burst(tmp_path: Path) -> None:
    owner = grant("k", (REQUESTS, 6))
    async with sharing(tmp_path) as (server, (one, two)):
        for router in (one, two, one, two, one, two):
            await admitted(router, owner)
        await asyncio.to_thread(server.flush)
        for router in (one, two):
            await refusal(router, owner)
            await refusal(router, grant("other", (REQUESTS, 6)))
            assert router.is_shared


@pytest.mark.anyio
async def test_a_router_that_was_never_a_member_admits_nothing_and_says_why(
    tmp_path: Path,
) -> None:
    limits = await connected(f"unix://{tmp_path}/nobody.sock", tmp_path)
    try:
        told = await refusal(limits, grant("k", (REQUESTS, 6)))
        assert told.reason == error_pb2.ERROR_REASON_STORE_UNAVAILABLE
        unlimited = await limits.admit(grant("free"), "a/m", lambda: 1, 0.0)
        assert not isinstance(unlimited, SharedTicket)
    finally:
        await limits.close()


@pytest.mark.anyio
async def test_a_router_that_is_started_again_takes_its_own_place(tmp_path: Path) -> None:
    async with sharing(tmp_path) as (_, (one, two)):
        for task in one._tasks:  # it dies without leaving
            task.cancel()
        again = Member.open(tmp_path / "r0", SystemEntropy(), 0.0)
        assert again.id == one._member.id
        assert again.share == pytest.approx(0.5)
        assert two._member.id != one._member.id


@pytest.mark.anyio
async def test_two_routers_serve_one_limit_together(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path)
    await asyncio.to_thread(server.start)
    limits = LimitsSettings(valkey_url=server.url)
    rate = grant_pb2.RateLimit(meter=REQUESTS, amount=4, window_s=600, scope=KEY)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.close)
        fake = await stack.enter_async_context(FakeProvider())
        rigs = []
        for name in ("r1", "r2"):
            (tmp_path / name).mkdir()
            own = settings_in(tmp_path / name, provider("a", fake), name=name)
            rigs.append(
                await stack.enter_async_context(running(replace(own, limits=limits), PRICED))
            )
        keys = [rig.add_key(key_id="key_shared", rate_limits=[rate]) for rig in rigs]
        outcomes: list[str] = []
        async with asyncio.timeout(30):
            while not outcomes or outcomes.count("rate_limit_exceeded") < 4 or "" not in outcomes:
                rig, key = rigs[len(outcomes) % 2], keys[len(outcomes) % 2]
                outcomes.append((await rig.chat(hello(), key=key)).reason)
        assert 1 <= outcomes.count("") <= 4


def test_an_interval_that_admits_too_much_is_found() -> None:
    second = 1_000_000
    fine = [(at * second, 1) for at in range(10)]
    assert excess(fine, amount=1, window_s=1) <= 0
    assert excess([*fine, (9 * second + 1, 1)], amount=1, window_s=1) == pytest.approx(1, abs=1e-5)
    assert excess([(0, 1)] * 5, amount=5, window_s=60) <= 0
    assert excess([(0, 1)] * 6, amount=5, window_s=60) == pytest.approx(1)


@settings(max_examples=200, deadline=None)
@given(
    history=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 9), st.integers(0, 9)), max_size=80),
    amount=st.integers(1, 40),
    share=st.sampled_from([1.0, 0.5, 1 / 3, 0.25]),
)
def test_alone_no_interval_admits_more_than_the_share(
    history: list[tuple[float, int, int]], amount: int, share: float
) -> None:
    rate = grant_pb2.RateLimit(meter=TOKENS, amount=amount, window_s=10, scope=KEY)
    solo, now_s = Solo(100.0, share), 99.0
    taken: list[tuple[int, int]] = []
    for gap_s, units, used in history:
        now_s += gap_s
        claim = Claim(rate=rate, key="k", units=min(units, int(amount * share)))
        if claim.units and solo.wait_s(claim, now_s) <= 0:
            solo.take(claim, now_s)
            actual = min(used, claim.units)
            solo.charge(claim, actual - claim.units, now_s)
            taken.append((round(now_s * 1e6), actual))
            assert now_s >= 100.0
    assert excess(taken, amount * share, 10) <= 1e-4


def test_every_interval_of_four_routers_keeps_the_limits(tmp_path: Path) -> None:
    rows = limits_history.run(tmp_path, rounds=1, seconds=1.0)
    for row in rows:
        assert float(row["worst_excess"]) <= limits_history.EPSILON, row
        assert float(row["admitted"]) > 10, row
        assert float(row.get("used", 1)) > 0.5, row
