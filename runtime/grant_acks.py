"""Tells auth which changes are in force here, so that whoever revokes a key can wait for it."""

import asyncio
import logging
from typing import Any, Final

from onegate.auth.v1 import grant_service_pb2
from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.rpc import unary

ACK_TIMEOUT_S: Final = 2.0
"""How long auth may take to note an acknowledgement, in seconds."""
RETRY_S: Final = 0.25

_LOG = logging.getLogger(__name__)


class AckSender:
    """Acknowledges revisions, the latest one when several came meanwhile.

    Args:
        method: ``AckGrants``.
        clock: spaces repetitions.
        watcher_id: who acknowledges.
    """

    def __init__(self, method: Any, clock: Clock, watcher_id: str) -> None:
        self._method = method
        self._clock = clock
        self._watcher_id = watcher_id
        self._revision = 0
        self._news = asyncio.Event()

    def tell(self, revision: int) -> None:
        """Everything up to a revision is in force here."""
        self._revision = revision
        self._news.set()

    async def run(self) -> None:
        """Sends acknowledgements until it is cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self._send(leaving=False)
            except GatewayError as error:
                _LOG.debug("auth did not take an acknowledgement: %s", error.message)
                self._news.set()
                await self._clock.sleep(RETRY_S)

    async def leave(self) -> None:
        """Nothing is admitted here any more: nobody need wait for this process."""
        try:
            await self._send(leaving=True)
        except GatewayError as error:
            _LOG.debug("auth did not hear that this watcher ends: %s", error.message)

    async def _send(self, *, leaving: bool) -> None:
        request = grant_service_pb2.AckGrantsRequest(
            watcher_id=self._watcher_id, revision=self._revision, leaving=leaving
        )
        await unary(self._method, request, timeout_s=ACK_TIMEOUT_S)
