"""A service that lives on a store: it waits for the store when it starts, and says that it is not
ready while the store is away. It goes on living: nothing is won by a restart.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from onegate.common.v1 import error_pb2
from runtime.clock import Clock, pause
from runtime.errors import GatewayError
from runtime.rpc import RpcServer

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_S: Final = 1.0
"""How often a store that is away is asked for at the start, in seconds."""

STALE_S: Final = 5.0
"""How long ago the store may have answered before the service is not ready, in seconds."""

_LOOK_S: Final = 0.5


async def when_available(
    open_store: Callable[[], Awaitable[T]], clock: Clock, stop: asyncio.Event
) -> T | None:
    """What ``open_store`` returns once it raises STORE_UNAVAILABLE no more; ``None`` when the
    process is to stop first.
    """
    waiting = False
    while not stop.is_set():
        try:
            return await open_store()
        except GatewayError as error:
            if error.reason != error_pb2.ERROR_REASON_STORE_UNAVAILABLE:
                raise
            if not waiting:
                _LOG.warning("waiting for the store: %s", error.message)
            waiting = True
        await pause(clock, RETRY_S, stop)
    return None


async def follow_store(server: RpcServer, age_s: Callable[[], float], clock: Clock) -> None:
    """Keeps the server's health as the store's: ``age_s`` says how long ago it answered. Until it
    is cancelled.
    """
    serving = True
    while True:
        await clock.sleep(_LOOK_S)
        if serving != (age_s() <= STALE_S):
            serving = not serving
            _LOG.warning("ready again" if serving else "not ready: the store does not answer")
            server.set_serving(serving)
