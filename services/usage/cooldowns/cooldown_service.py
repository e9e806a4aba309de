"""Takes cool-downs from routers and passes them on: at once to the routers that watch this process,
through the database to the other usage processes.

The database is behind: routers are told before it is asked, and told all the same when it is away.
"""

# ruff: noqa: N802 - methods are named as the contract names them

import asyncio
import logging
from typing import Any, Final, Protocol, TypeAlias

import grpc

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import cooldown_service_pb2 as pb
from onegate.usage.v1 import cooldown_service_pb2_grpc
from runtime.clock import Clock
from runtime.errors import GatewayError
from services.usage.cooldowns.cooldown_board import ENTRIES_MAX, LEFT_MAX_S
from services.usage.cooldowns.cooldown_store import SEAT_CHARS_MAX, CooldownStore

COOLDOWNS_MAX: Final = 1_000
"""The most of one request."""
RETRY_S: Final = 1.0
"""How long the database is left alone after it failed."""

_LOG = logging.getLogger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class Audience(Protocol):
    """Whoever watches this process. ``services/usage/ledger/budget_board.py``."""

    def cool(self, left_s: dict[str, float]) -> dict[str, float]:
        """Tells them; returns what is news."""
        ...


class CooldownService(cooldown_service_pb2_grpc.CooldownServiceServicer):
    """``onegate.usage.v1.CooldownService``, and what keeps the database and its watchers alike."""

    def __init__(self, store: CooldownStore, audience: Audience, clock: Clock) -> None:
        self._store = store
        self._audience = audience
        self._clock = clock
        self._unkept: dict[str, float] = {}
        self._told = asyncio.Event()
        self._heard = asyncio.Event()

    async def TellCooldowns(
        self, request: pb.TellCooldownsRequest, _context: Context
    ) -> pb.TellCooldownsResponse:
        """Passes on what a router was asked."""
        told = {one.seat: one.left_ms / 1000 for one in request.cooldowns}
        if len(request.cooldowns) > COOLDOWNS_MAX:
            raise _invalid(f"may hold at most {COOLDOWNS_MAX:,}")
        if any(len(seat) > SEAT_CHARS_MAX for seat in told):
            raise _invalid(f"may have names of at most {SEAT_CHARS_MAX} characters")
        news = self._audience.cool(told)
        if news:
            _LOG.info("%r was asked for quiet by %d deployments", request.teller[:64], len(news))
            now_s = self._clock.monotonic()
            for seat, left_s in news.items():
                if len(self._unkept) < ENTRIES_MAX:
                    self._unkept[seat] = now_s + left_s
            self._told.set()
        return pb.TellCooldownsResponse()

    async def start(self) -> None:
        """Takes in what was in force when this process stopped. Raises STORE_UNAVAILABLE."""
        self._audience.cool(await self._store.in_force())

    async def run(self) -> None:
        """Until it is cancelled; while the database is away, what is told here waits for it."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._store.follow(self._heard.set))
            tasks.create_task(self._keep())
            tasks.create_task(self._learn())

    async def _keep(self) -> None:
        """Writes what was told here."""
        while True:
            await self._told.wait()
            self._told.clear()
            unkept, self._unkept = self._unkept, {}
            now_s = self._clock.monotonic()
            left_s = {
                seat: min(until_s - now_s, LEFT_MAX_S)
                for seat, until_s in unkept.items()
                if until_s > now_s
            }
            try:
                if left_s:
                    await self._store.put(left_s)
            except GatewayError as error:
                _LOG.debug("cool-downs are not kept: %s", error.message)
                self._unkept = {**unkept, **self._unkept}
                self._told.set()
                await self._clock.sleep(RETRY_S)

    async def _learn(self) -> None:
        """Reads what was told elsewhere."""
        while True:
            await self._heard.wait()
            self._heard.clear()
            try:
                self._audience.cool(await self._store.in_force())
            except GatewayError as error:
                _LOG.debug("cool-downs of other processes are not known: %s", error.message)
                self._heard.set()
                await self._clock.sleep(RETRY_S)


def _invalid(what: str) -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_INVALID_REQUEST, f"`cooldowns` {what}.", param="cooldowns"
    )
