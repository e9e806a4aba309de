"""Routers that share no Valkey tell each other by way of usage who wants to be left alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import cooldown_service_pb2 as pb
from onegate.usage.v1 import cooldown_service_pb2_grpc
from runtime.clock import SystemClock
from runtime.config import RpcSettings
from runtime.errors import GatewayError
from runtime.rpc import RpcServer, channel
from services.router.limits.peer_cooldowns import PeerCooldowns
from services.router.routing.health import Health
from tests.services.router.rig import until

pytestmark = pytest.mark.anyio

CLOCK = SystemClock()


class Told(cooldown_service_pb2_grpc.CooldownServiceServicer):
    """Writes down what it is told, or refuses to hear it."""

    def __init__(self) -> None:
        self.requests: list[pb.TellCooldownsRequest] = []
        self.away = False
        self.hung = asyncio.Event()
        self.hung.set()

    async def TellCooldowns(  # noqa: N802
        self, request: pb.TellCooldownsRequest, context: Any
    ) -> pb.TellCooldownsResponse:
        await self.hung.wait()
        if self.away:
            raise GatewayError(error_pb2.ERROR_REASON_STORE_UNAVAILABLE, "away")
        self.requests.append(request)
        return pb.TellCooldownsResponse()

    @property
    def seats(self) -> dict[str, int]:
        return {one.seat: one.left_ms for said in self.requests for one in said.cooldowns}


@asynccontextmanager
async def telling(directory: Path) -> AsyncIterator[tuple[PeerCooldowns, Health, Told]]:
    """A router's end, and the usage that it tells."""
    told, health, address = Told(), Health(), f"unix:{directory}/usage.sock"
    async with AsyncExitStack() as stack:
        server = RpcServer(RpcSettings(), "usage")
        server.add(cooldown_service_pb2_grpc.add_CooldownServiceServicer_to_server, told)
        await server.start(address)
        stack.push_async_callback(server.stop, 0.0)
        line = channel(address, RpcSettings())
        stack.push_async_callback(line.close)
        peers = PeerCooldowns(line, health, CLOCK, "r")
        stack.push_async_callback(peers.close)
        yield peers, health, told


async def test_usage_has_heard_before_the_refused_call_goes_on(tmp_path: Path) -> None:
    async with telling(tmp_path) as (peers, _, told):
        async with asyncio.timeout(10):
            while not told.seats:
                await peers.tell("a/m", 30.0)
        assert 29_000 < told.seats["a/m"] <= 30_001


async def test_many_refusals_at_once_are_one_message(tmp_path: Path) -> None:
    async with telling(tmp_path) as (peers, _, told):
        told.hung.clear()
        await asyncio.gather(*(peers.tell(f"a/m{number}", 30.0) for number in range(300)))
        told.hung.set()
        await until(lambda: len(told.seats) == 300)
        assert len(told.requests) <= 2


async def test_a_usage_that_is_away_is_told_later_and_waited_for_once(tmp_path: Path) -> None:
    async with telling(tmp_path) as (peers, _, told):
        told.away = True
        await peers.tell("a/m", 60.0)
        await until(lambda: peers._away)
        await peers.tell("a/m", 30.0)
        await peers.tell("b/m", 30.0)
        told.away = False
        await until(lambda: told.seats.keys() == {"a/m", "b/m"})
        assert told.seats["a/m"] > 50_000


async def test_a_usage_that_has_forgotten_is_told_again_and_what_it_knows_is_taken_in(
    tmp_path: Path,
) -> None:
    async with telling(tmp_path) as (peers, health, told):
        health.cool_down("a/m", 60.0, CLOCK.monotonic())
        peers.heard([], anew=False)
        assert told.requests == []
        peers.heard([pb.Cooldown(seat="b/m", left_ms=30_000)], anew=True)
        assert health.cooling_s("b/m", CLOCK.monotonic()) > 25
        await until(lambda: "a/m" in told.seats)
        # An end that comes sooner says nothing.
        peers.heard([pb.Cooldown(seat="a/m", left_ms=1)], anew=False)
        assert health.cooling_s("a/m", CLOCK.monotonic()) > 50
