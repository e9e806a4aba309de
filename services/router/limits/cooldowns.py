"""What providers asked one router, all routers do: cool-downs told through Valkey.

A router that is asked to wait tells the others before it answers its own caller. They hear it
within a round trip; who was not connected reads what is in force when it comes back. A cool-down is
never shortened, by whoever tells what. While Valkey is away, every router keeps what it knows and
tells it when Valkey is back.
"""

import asyncio
import logging
from typing import Any, Final

from runtime.clock import Clock
from services.router.limits.valkey_link import Link, LinkDownError, Subscription
from services.router.routing.health import Health

RECONNECT_S: Final = 0.25
KNOWN_MAX: Final = 10_000
"""How many cool-downs are told at most to a router that comes back."""

COOL: Final = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
for index = 2, #ARGV, 2 do
  local till = string.format('%.0f', now + tonumber(ARGV[index + 1]))
  redis.call('ZADD', KEYS[1], 'GT', till, ARGV[index])
  redis.call('PUBLISH', ARGV[1], ARGV[index + 1] .. ' ' .. ARGV[index])
end
redis.call('PEXPIRE', KEYS[1], 7200000)
return {1}
"""
"""Channel; then deployment, milliseconds for each: keeps and tells them."""

IN_FORCE: Final = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local found = redis.call(
  'ZRANGEBYSCORE', KEYS[1], string.format('%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[1])
for index = 2, #found, 2 do
  found[index] = string.format('%.0f', tonumber(found[index]) - now)
end
return found
"""
"""Deployment and milliseconds left of each that is in force."""

_LOG = logging.getLogger(__name__)


class SharedCooldowns:
    """The cool-downs of all routers.

    Args:
        link: where they are told; somebody else connects it.
        subscription: where they are heard.
        health: what this router goes by.
        namespace: before the names of the key and the channel.
        clock: this router's.
    """

    def __init__(
        self, link: Link, subscription: Subscription, health: Health, namespace: str, clock: Clock
    ) -> None:
        self._link = link
        self._subscription = subscription
        self._health = health
        self._key = f"{namespace}:{{limits}}:cooling"
        self._channel = f"{namespace}:cooling"
        self._clock = clock
        self._listening: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to listen."""
        self._listening = asyncio.get_running_loop().create_task(self._listen())

    async def close(self) -> None:
        """Stops."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        self._subscription.close()

    async def tell(self, deployment: str, wait_s: float) -> None:
        """Tells all routers; at most the link's deadline."""
        await self._tell({deployment: wait_s})

    async def _tell(self, waits: dict[str, float]) -> None:
        arguments: list[str | int] = [self._channel]
        for deployment, wait_s in waits.items():
            arguments += [deployment, max(int(wait_s * 1000), 1)]
        if len(arguments) > 1 and self._link.up:
            try:
                await self._link.run(COOL, [self._key], arguments)
            except LinkDownError as error:
                _LOG.debug("a cool-down was not told: %s", error)

    async def _listen(self) -> None:
        while True:
            try:
                await self._subscription.open(self._channel)
                await self._catch_up()
                while True:
                    wait_ms, _, deployment = (await self._subscription.heard()).partition(b" ")
                    self._learn(deployment, wait_ms)
            except LinkDownError as error:
                _LOG.debug("cool-downs are not heard: %s", error)
            await self._clock.sleep(RECONNECT_S)

    async def _catch_up(self) -> None:
        """Both ways: what is in force there, and what this router knows alone."""
        known: list[Any] = await self._link.run(IN_FORCE, [self._key], [KNOWN_MAX])
        for index in range(0, len(known), 2):
            self._learn(known[index], known[index + 1])
        await self._tell(self._health.cooling(self._clock.monotonic()))

    def _learn(self, deployment: bytes, wait_ms: bytes) -> None:
        now_s = self._clock.monotonic()
        # One more, for what rounding down has lost.
        self._health.cool_down(deployment.decode(), (int(wait_ms) + 1) / 1000, now_s)
