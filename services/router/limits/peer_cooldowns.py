"""What providers asked one router, all routers do, with no Valkey needed: told to usage, which
passes it on to whoever follows budgets.

It costs nothing while nobody is asked for quiet. When somebody is, one message tells usage, however
many calls were refused at once, and one tells every other router; what those have under way by then
is let finish. Usage keeps what is in force, so a router that starts or comes back hears it before
it serves; what usage has not heard is told when it is back.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

import grpc

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import cooldown_service_pb2_grpc
from onegate.usage.v1.cooldown_service_pb2 import Cooldown, TellCooldownsRequest
from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.rpc import unary
from services.router.parts import SharedCooldowns
from services.router.routing.health import Health

WAIT_S: Final = 0.05
"""How long the call that was refused waits at most for usage to have heard of it."""
TIMEOUT_S: Final = 1.0
RETRY_S: Final = 0.25
PENDING_MAX: Final = 10_000
"""How many cool-downs wait to be told at most."""

_MESSAGE_COOLDOWNS: Final = 1_000
_LOG = logging.getLogger(__name__)


class PeerCooldowns:
    """The cool-downs of all routers, by way of usage.

    Args:
        channel: to usage; the caller closes it.
        health: what this router goes by.
        clock: this router's.
        teller: which process this is, for operators.
    """

    def __init__(
        self, channel: grpc.aio.Channel, health: Health, clock: Clock, teller: str
    ) -> None:
        self._stub = cooldown_service_pb2_grpc.CooldownServiceStub(channel)
        self._health = health
        self._clock = clock
        self._teller = teller
        self._pending: dict[str, float] = {}
        self._telling: asyncio.Task[None] | None = None
        self._away = False

    async def close(self) -> None:
        """Tells nothing more."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)

    async def tell(self, deployment: str, wait_s: float) -> None:
        """Tells all routers; waits for that a moment at most, and not at all while usage is
        away.
        """
        self._add({deployment: wait_s})
        if self._telling is not None and not self._away:
            await asyncio.wait({self._telling}, timeout=WAIT_S)

    def heard(self, cooldowns: Iterable[Cooldown], *, anew: bool) -> None:
        """Usage has told what other routers were asked.

        Args:
            cooldowns: what it told.
            anew: the stream has just begun: it is told what is known here, in case it has
            forgotten.
        """
        now_s = self._clock.monotonic()
        if anew:
            self._add(self._health.cooling(now_s))
        for one in cooldowns:
            self._health.cool_down(one.seat, one.left_ms / 1000, now_s)

    def _add(self, left_s: dict[str, float]) -> None:
        now_s = self._clock.monotonic()
        for seat, wait_s in left_s.items():
            if len(self._pending) < PENDING_MAX or seat in self._pending:
                self._pending[seat] = max(self._pending.get(seat, 0.0), now_s + wait_s)
        if self._pending and (self._telling is None or self._telling.done()):
            self._telling = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        """Until everything is told or over."""
        while self._pending:
            told = dict(list(self._pending.items())[:_MESSAGE_COOLDOWNS])
            for seat in told:
                del self._pending[seat]
            now_s = self._clock.monotonic()
            left = {seat: until_s - now_s for seat, until_s in told.items() if until_s > now_s}
            try:
                if left:
                    await self._send(left)
            except GatewayError as error:
                if not self._away:
                    _LOG.warning("other routers are not told of cool-downs: %s", error.message)
                self._away = True
                for seat, until_s in told.items():
                    self._pending[seat] = max(self._pending.get(seat, 0.0), until_s)
                await self._clock.sleep(RETRY_S)
            else:
                self._away = False

    async def _send(self, left_s: dict[str, float]) -> None:
        cooldowns = [
            Cooldown(seat=seat, left_ms=int(wait_s * 1000) + 1) for seat, wait_s in left_s.items()
        ]
        await unary(
            self._stub.TellCooldowns,
            TellCooldownsRequest(teller=self._teller, cooldowns=cooldowns),
            timeout_s=TIMEOUT_S,
            away=error_pb2.ERROR_REASON_BUDGET_UNAVAILABLE,
        )


class EveryWay:
    """Cool-downs that are told in several ways at once: who is cut off from one hears the other."""

    def __init__(self, ways: tuple[SharedCooldowns, ...]) -> None:
        self._ways = ways

    async def tell(self, deployment: str, wait_s: float) -> None:
        """Tells all routers."""
        await asyncio.gather(*(way.tell(deployment, wait_s) for way in self._ways))
