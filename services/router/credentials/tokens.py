"""Tokens that are good for some minutes: bought ahead of time, so that no call waits for one.

A provider whose credential is :class:`~services.router.providers.base.ShortLived` gets a
:class:`TokenKeeper`. It buys a token when it starts and the next one well before the last ends; a
call only reads what is there. Sellers block, each in a thread of its own, and are loaded by name
when a provider needs one: their libraries weigh 20 MB.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from importlib import import_module
from typing import Final, NamedTuple, Protocol, cast

from onegate.common.v1 import error_pb2
from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.secrets import Secret
from services.router.providers.base import Headers, ShortLived, UpstreamRequest

SELLERS: Final = {
    "google": "services.router.credentials.google_tokens",
    "entra": "services.router.credentials.entra_tokens",
}
"""The module of each seller; it has ``seller(secret, scope) -> Buy``."""

BUY_TIMEOUT_S: Final = 20.0
RENEW_AT: Final = 0.75
"""The part of a token's life after which the next one is bought."""
RETRY_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses between failures in a row; the last goes on."""
MARGIN_S: Final = 10.0
"""A token is not used so shortly before its end."""

_LOG = logging.getLogger(__name__)


class Token(NamedTuple):
    """What was bought."""

    value: str
    lives_s: float


class TokenError(Exception):
    """The seller refused, or could not be asked. The message holds no secret."""


Buy = Callable[[], Token]
"""Buys one token; blocks. Raises ``TokenError``."""


class _SellerModule(Protocol):
    def seller(self, secret: Secret, scope: str) -> Buy: ...


def buyer_of(credential: ShortLived) -> Buy:
    """How the credential's tokens are bought. Raises INVALID_REQUEST when it cannot be one."""
    module = cast("_SellerModule", import_module(SELLERS[credential.seller]))
    return module.seller(Secret(credential.secret), credential.scope)


class TokenKeeper:
    """The token of one provider, always bought ahead."""

    def __init__(self, name: str, buy: Buy, clock: Clock) -> None:
        self._name = name
        self._buy = buy
        self._clock = clock
        self._header: Headers = ()
        self._good_until_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()

    async def start(self) -> None:
        """Begins to buy; returns after the first try, whatever became of it."""
        self._task = asyncio.create_task(self._keep())
        await self._tried.wait()

    async def close(self) -> None:
        """Buys no more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def sign(self, _url: str, _request: UpstreamRequest, _now: datetime) -> Headers:
        """The header of a call. Raises UPSTREAM_AUTH while no token is good."""
        if self._clock.monotonic() >= self._good_until_s:
            raise GatewayError(
                error_pb2.ERROR_REASON_UPSTREAM_AUTH,
                f"No token could be bought for {self._name}; the operator must check its"
                " credential (the router's log says what the seller answered).",
            )
        return self._header

    async def _keep(self) -> None:
        failures = 0
        while True:
            try:
                async with asyncio.timeout(BUY_TIMEOUT_S):
                    token = await asyncio.to_thread(self._buy)
            except (TokenError, TimeoutError) as error:
                if failures == 0:
                    why = str(error) or f"no answer within {BUY_TIMEOUT_S:g} s"
                    _LOG.error("no token for %s: %s; trying again", self._name, why)
                pause_s = RETRY_S[min(failures, len(RETRY_S) - 1)]
                failures += 1
            else:
                if failures:
                    _LOG.info("tokens for %s are sold again", self._name)
                failures = 0
                self._good_until_s = self._clock.monotonic() + token.lives_s - MARGIN_S
                self._header = (("authorization", f"Bearer {token.value}"),)
                pause_s = max(token.lives_s * RENEW_AT, RETRY_S[0])
            self._tried.set()
            await self._clock.sleep(pause_s)
