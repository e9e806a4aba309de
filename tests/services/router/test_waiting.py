"""Waiting for room under a rate limit: in a fair order, never longer than allowed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from runtime.clock import SystemClock
from runtime.errors import GatewayError, reason_name
from services.router.limits.waiting import Waiting
from services.router.limits.windows import Ticket
from tests.fake_provider import FakeProvider
from tests.services.router.rig import PRICED, hello, provider, running, settings_in

PLACE = ("proj", "a/m")


class Gate:
    """A limit that lets through as many as it is told."""

    def __init__(self) -> None:
        self.room = 0
        self.order: list[str] = []

    async def admit(self, name: str) -> Ticket:
        if self.room <= 0:
            raise GatewayError(error_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED, "full", retry_after_ms=5)
        self.room -= 1
        self.order.append(name)
        return Ticket()


def enter(
    waiting: Waiting, gate: Gate, name: str, *, priority: int = 0, left_s: float = 20.0
) -> "asyncio.Task[Ticket]":
    """A call of key ``name[0]``."""

    async def call() -> Ticket:
        return await waiting.admitted(lambda: gate.admit(name), PLACE, name[0], priority, left_s)

    return asyncio.create_task(call())


@asynccontextmanager
async def all_in(waiting: Waiting, count: int) -> AsyncIterator[None]:
    async with asyncio.timeout(10):
        while waiting.count < count:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    yield


@pytest.mark.anyio
async def test_keys_take_turns_however_many_calls_one_has() -> None:
    waiting, gate = Waiting(SystemClock(), 30.0, 100), Gate()
    calls = [enter(waiting, gate, f"a{n}") for n in range(4)]
    async with all_in(waiting, 4):
        calls += [enter(waiting, gate, "b0"), enter(waiting, gate, "b1")]
    async with all_in(waiting, 6):
        gate.room = 6
    await asyncio.gather(*calls)
    assert gate.order == ["a0", "b0", "a1", "b1", "a2", "a3"]
    assert (waiting.count, waiting._queues) == (0, {})


@pytest.mark.anyio
async def test_the_highest_priority_goes_first() -> None:
    waiting, gate = Waiting(SystemClock(), 30.0, 100), Gate()
    calls = [enter(waiting, gate, "a0"), enter(waiting, gate, "b0", priority=5)]
    async with all_in(waiting, 2):
        calls.append(enter(waiting, gate, "c0", priority=1))
    async with all_in(waiting, 3):
        gate.room = 3
    await asyncio.gather(*calls)
    assert gate.order == ["b0", "c0", "a0"]


@pytest.mark.anyio
async def test_who_comes_later_does_not_overtake_those_who_wait() -> None:
    waiting, gate = Waiting(SystemClock(), 30.0, 100), Gate()
    first = enter(waiting, gate, "a0")
    async with all_in(waiting, 1):
        gate.room = 2
        second = enter(waiting, gate, "b0")
    await asyncio.gather(first, second)
    assert gate.order == ["a0", "b0"]


@pytest.mark.anyio
async def test_a_wait_ends_with_the_refusal_when_its_time_is_over() -> None:
    waiting, gate = Waiting(SystemClock(), 30.0, 100), Gate()
    calls = [enter(waiting, gate, name, left_s=0.1) for name in ("a0", "b0")]
    for call in calls:
        with pytest.raises(GatewayError) as raised:
            await call
        assert reason_name(raised.value.reason) == "rate_limit_exceeded"
        assert raised.value.retry_after_ms > 0
    assert (waiting.count, waiting._queues) == (0, {})


@pytest.mark.anyio
@pytest.mark.parametrize(("wait_max_s", "calls_max"), [(0.0, 100), (30.0, 0)])
async def test_without_room_to_wait_a_call_is_refused_at_once(
    wait_max_s: float, calls_max: int
) -> None:
    waiting = Waiting(SystemClock(), wait_max_s, calls_max)
    with pytest.raises(GatewayError):
        await enter(waiting, Gate(), "a0")


@pytest.mark.anyio
async def test_a_caller_that_goes_makes_room() -> None:
    waiting, gate = Waiting(SystemClock(), 30.0, 100), Gate()
    first, second = enter(waiting, gate, "a0"), enter(waiting, gate, "b0")
    async with all_in(waiting, 2):
        first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    gate.room = 1
    await second
    assert gate.order == ["b0"]


@pytest.mark.anyio
async def test_a_router_lets_calls_wait_where_it_is_told_to(tmp_path: Path) -> None:
    limit = grant_pb2.RateLimit(meter=grant_pb2.RATE_METER_REQUESTS, amount=2, window_s=1)
    async with FakeProvider() as a:
        settings = settings_in(tmp_path, provider("a", a), queue_wait_s=20.0)
        async with running(settings, PRICED) as rig:
            key = rig.add_key(rate_limits=[limit])
            said = await asyncio.gather(*(rig.chat(hello("a/m"), key=key) for _ in range(5)))
            assert [one.reason for one in said] == [""] * 5
            assert len(a.chats) == 5
