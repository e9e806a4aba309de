"""Follows what a peer pushes: opens its stream, hands over what comes, and begins anew, a little
later each time, whenever it breaks or falls silent.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar, cast

import grpc

from onegate.common.v1 import error_pb2
from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.rpc import from_rpc_error

SILENCE_S: Final = 8.0
"""How long a peer may say nothing; it says something every 2 s."""

_RECONNECT_S_MIN: Final = 0.1
_RECONNECT_S_MAX: Final = 2.0
_LOG = logging.getLogger(__name__)

News = TypeVar("News")


class Follower(Generic[News]):
    """One watch, kept up for ever.

    Args:
        what: what is followed, for the log ("prices").
        open_watch: begins the stream.
        take: takes one message in; its second argument is true for a stream's first.
        clock: for pauses.
        peer: who is followed, for the log.
    """

    def __init__(
        self,
        what: str,
        open_watch: Callable[[], grpc.aio.UnaryStreamCall[Any, News]],
        take: Callable[[News, bool], Awaitable[None]],
        clock: Clock,
        *,
        peer: str = "usage",
    ) -> None:
        self._what = what
        self._peer = peer
        self._open = open_watch
        self._take = take
        self._clock = clock
        self._failures = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def away(self) -> bool:
        """Whether the peer could not be heard when it was last asked."""
        return self._failures > 0

    def start(self) -> None:
        """Begins to follow."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._report)

    async def close(self) -> None:
        """Stops following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def back(self) -> None:
        """The peer has told all that it had to: what it says is whole again."""
        if self._failures:
            _LOG.info("%s are followed again", self._what)
        self._failures = 0

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
                why = "it ended the watch"
            except GatewayError as error:
                why = error.message
            except TimeoutError:
                why = "it fell silent"
            if self._failures == 0:
                _LOG.warning(
                    "%s are the last known ones, %s is away: %s", self._what, self._peer, why
                )
            pause_s = min(_RECONNECT_S_MIN * 2**self._failures, _RECONNECT_S_MAX)
            self._failures = min(self._failures + 1, 10)
            await self._clock.sleep(pause_s)

    async def _follow(self) -> None:
        """Takes in what the peer says until it stops. Raises ``GatewayError``, ``TimeoutError``."""
        call = self._open()
        first = True
        try:
            while True:
                async with asyncio.timeout(SILENCE_S):
                    news = await call.read()
                if news is grpc.aio.EOF:
                    return
                await self._take(cast("News", news), first)
                first = False
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, away=error_pb2.ERROR_REASON_BUDGET_UNAVAILABLE) from error
        finally:
            call.cancel()

    def _report(self, task: "asyncio.Task[None]") -> None:
        """The task ends only when it is closed; anything else is a defect."""
        if not task.cancelled():
            _LOG.critical("%s are no longer followed", self._what, exc_info=task.exception())
