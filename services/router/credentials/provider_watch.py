"""Follows the providers that auth keeps, as the operator, and tells the roster of them."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from onegate.auth.v1 import provider_service_pb2 as pb
from onegate.auth.v1 import provider_service_pb2_grpc
from runtime.clock import Clock
from runtime.rpc import OPERATOR_KEY
from services.router.credentials.roster import Roster
from services.router.following import Follower

FIRST_WAIT_S = 2.0
"""How long a starting router waits for the providers that auth keeps before it serves without."""


class ProviderWatch:
    """Follows auth.

    Args:
        channel: to auth; the caller closes it.
        clock: for pauses.
        watcher: which process this is, for operators.
        roster: is told what auth keeps.
        token: the operator's token; empty where this process has none, which follows nothing then.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        clock: Clock,
        watcher: str,
        roster: Roster,
        token: Callable[[], str],
    ) -> None:
        self._stub = provider_service_pb2_grpc.ProviderServiceStub(channel)
        self._watcher = watcher
        self._roster = roster
        self._token = token
        self._follower = Follower("providers", self._open, self._take, clock, peer="auth")
        self._heard = asyncio.Event()

    async def start(self) -> None:
        """Begins to follow; returns once auth has told what it keeps, or a little later without."""
        if not self._token():
            return
        self._follower.start()
        try:
            async with asyncio.timeout(FIRST_WAIT_S):
                await self._heard.wait()
        except TimeoutError:
            return

    async def close(self) -> None:
        """Stops following."""
        await self._follower.close()

    def _open(self) -> grpc.aio.UnaryStreamCall[Any, pb.WatchProvidersResponse]:
        request = pb.WatchProvidersRequest(watcher=self._watcher)
        return self._stub.WatchProviders(request, metadata=((OPERATOR_KEY, self._token()),))

    async def _take(self, news: pb.WatchProvidersResponse, _first: bool) -> None:
        if news.complete:
            await self._roster.take(list(news.providers))
            self._follower.back()
            self._heard.set()
