"""Asks every provider for its own list of models, at the start and then now and again.

A list that cannot be had is no misfortune: the last one stays, and one line says so, once.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Final

from runtime.clock import Clock, pause
from runtime.errors import GatewayError, reason_name
from services.router.models.catalog import Catalog
from services.router.parts import Prices, Provider
from services.router.providers.base import ListedModel, UpstreamRequest, Wire
from services.router.upstream.client import Target, Upstream

TIMEOUT_S: Final = 10.0
"""How long one list may take."""
LIST_BYTES_MAX: Final = 8 * 1024 * 1024
"""The longest list; the longest seen, OpenRouter's, is below 1 MiB."""

_REFUSALS: Final = 300
_LOG = logging.getLogger(__name__)


class Discovery:
    """Keeps the catalogue up to date, provider by provider."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        catalog: Catalog,
        prices: Prices,
        upstream: Upstream,
        clock: Clock,
    ) -> None:
        self._providers = providers
        self._catalog = catalog
        self._prices = prices
        self._upstream = upstream
        self._clock = clock
        self._failing: set[str] = set()

    async def run(self, interval_s: float, changed: asyncio.Event) -> None:
        """Asks all providers at once, again and again, and when ``changed`` says that one is new.
        Ends when it is cancelled.
        """
        while True:
            changed.clear()
            await self.refresh()
            await pause(self._clock, interval_s, changed)

    async def refresh(self) -> None:
        """Asks all providers once, each for itself."""
        present = [one for one in self._providers.values() if not one.retired]
        await asyncio.gather(*(self._refresh_one(one) for one in present))

    async def _refresh_one(self, provider: Provider) -> None:
        request = provider.wire.models_request()
        lists = provider.lists or ([(provider.target, request)] if request is not None else [])
        if not lists:
            return
        try:
            async with asyncio.timeout(TIMEOUT_S):
                found = [
                    model
                    for target, asked in lists
                    for model in await listed(self._upstream, provider.wire, target, asked)
                ]
            self._catalog.discovered(provider.name, found)
            await self._prices.learn(self._catalog.unpriced(provider.name))
        except TimeoutError:
            self._failed(provider, f"it took longer than {TIMEOUT_S:g} s")
        except GatewayError as error:
            self._failed(provider, f"{reason_name(error.reason)}: {error.message}")
        else:
            if provider.name in self._failing:
                self._failing.discard(provider.name)
                _LOG.info("%s lists its models again", provider.name)

    def _failed(self, provider: Provider, why: str) -> None:
        if provider.name not in self._failing:
            self._failing.add(provider.name)
            _LOG.warning("%s does not list its models (%s); those known stay", provider.name, why)


async def listed(
    upstream: Upstream, wire: Wire, target: Target, request: UpstreamRequest
) -> Sequence[ListedModel]:
    """One list. Raises ``GatewayError``."""
    response = await upstream.open(target, request)
    try:
        body = await response.read(LIST_BYTES_MAX)
    finally:
        response.close()
    if response.status >= _REFUSALS:
        raise wire.error(response.status, response.headers, body)
    return wire.models(body)
