"""Questions that arrive together share a transaction.

While one transaction is under way, what arrives waits and goes into the next: an idle service
answers at once, and a busy one pays for few commits.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError

_LOG = logging.getLogger(__name__)

WAITING_MAX: Final = 2_000
"""Questions that may wait; one more is told to come back."""

TOGETHER_MAX: Final = 200
"""Questions that share a transaction."""

Q = TypeVar("Q")
A = TypeVar("A")


class Gathering(Generic[Q, A]):
    """Answers questions together.

    Args:
        work: answers some of them, in order; an answer that is an exception is raised.
    """

    def __init__(
        self, work: Callable[[Sequence[Q]], Awaitable[Sequence[A | GatewayError]]]
    ) -> None:
        self._work = work
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._working: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> A:
        """The answer. Raises OVERLOADED when too many wait, and what the work raises."""
        if len(self._waiting) >= WAITING_MAX:
            raise GatewayError(
                error_pb2.ERROR_REASON_OVERLOADED,
                "The usage service has more to do than it can. Ask again.",
                retry_after_ms=100,
            )
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[A] = loop.create_future()
        self._waiting.append((question, answer))
        if self._working is None:
            self._working = loop.create_task(self._run())
            self._working.add_done_callback(_report)
        return await answer

    async def close(self) -> None:
        """Waits for what is under way."""
        if self._working is not None:
            await asyncio.wait((self._working,))

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:TOGETHER_MAX], self._waiting[TOGETHER_MAX:]
                await self._answer(batch)
        finally:
            # Nobody may wait for what does not come.
            for _, waiter in self._waiting:
                waiter.cancel()
            self._waiting = []
            self._working = None

    async def _answer(self, batch: Sequence[tuple[Q, asyncio.Future[A]]]) -> None:
        try:
            answers = await self._work([question for question, _ in batch])
        except GatewayError as error:
            answers = [error] * len(batch)
        except BaseException:
            for _, waiter in batch:
                waiter.cancel()
            raise
        for (_, waiter), answer in zip(batch, answers, strict=True):
            if waiter.done():
                continue
            if isinstance(answer, GatewayError):
                waiter.set_exception(answer)
            else:
                waiter.set_result(answer)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _LOG.error("questions were not answered; they will be asked again", exc_info=error)
