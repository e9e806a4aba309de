"""Two attempts of one call at a time, of which the caller sees one.

Each runs in a task of its own, with deadlines of its own, and is journalled, held for and settled
by itself like any other. The first that has content to show wins, and ends the other at that
moment: what that had consumed by then is on its own record. As long as neither has shown
anything, the one goes on when the other fails.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from services.router.exchange import Line, Prepared, ProviderCall
from services.router.parts import Parts
from services.router.upstream.watchdog import Watch

GRACE_S: Final = 5.0
"""How much longer than its attempts the call itself is watched: they end by their own deadlines."""


class Leg(Line):
    """What one of the two attempts goes by: the call's line, with its own watch."""

    __slots__ = ("_race",)

    def __init__(self, race: "Race", line: Line, watch: Watch) -> None:
        super().__init__(
            call=line.call,
            watch=watch,
            began_unix_s=line.began_unix_s,
            began_s=line.began_s,
            deadline_s=line.deadline_s,
            ticket=line.ticket,
            attempts=line.attempts,
            first_token_s=line.first_token_s,
            stall_s=line.stall_s,
            route=line.route,
            samples=line.samples,
        )
        self._race = race

    def claim(self) -> bool:
        """Whether this attempt may show its answer: it may when it is the first that asks."""
        self.shown = self._race.decide(self)
        return self.shown


@dataclass(slots=True)
class _Runner:
    """One of the two."""

    prepared: Prepared
    task: "asyncio.Task[None]"
    leg: Leg | None = None
    noted: bool = False
    unwanted: bool = False

    def stop(self) -> None:
        """Ends it. One whose task has not begun begins first: only so is what was set aside for it
        settled.
        """
        if self.leg is None:
            self.unwanted = True
        else:
            self.task.cancel()

    def failure(self) -> GatewayError | None:
        """How it failed; ``None`` when it did not, or has not ended, or was ended."""
        if not self.task.done() or self.task.cancelled():
            return None
        error = self.task.exception()
        return error if isinstance(error, GatewayError) else None


class Race:
    """The two attempts of one call.

    Args:
        parts: of the router.
        line: the call's own.
        learn: takes note of the failure of an attempt that the call does not end with.
    """

    def __init__(
        self,
        parts: Parts,
        line: Line,
        learn: Callable[[Prepared, GatewayError], Awaitable[object]],
    ) -> None:
        self._parts = parts
        self._line = line
        self._learn = learn
        self._runners: list[_Runner] = []
        self._winner: Leg | None = None

    async def run(
        self, first: Prepared, delay_s: float, second: Callable[[], Awaitable[Prepared | None]]
    ) -> None:
        """Makes the first attempt, and after ``delay_s`` without content the second beside it.

        Args:
            first: the attempt.
            delay_s: how long it may be silent.
            second: the other attempt, once it is wanted; ``None`` for none.

        Raises how the first failed when neither succeeded, or how the one failed that the caller
        has seen.
        """
        line = self._line
        line.watch.deadline_s = line.deadline_s + GRACE_S
        try:
            runner = self._start(first)
            await asyncio.wait({runner.task}, timeout=delay_s)
            if self._is_open(runner):
                other = await second()
                line.watch.deadline_s = line.deadline_s + GRACE_S
                if other is not None and self._is_open(runner):
                    self._start(other)
                elif other is not None and other.hold is not None:
                    other.hold.release()
            pending = {one.task for one in self._runners}
            while pending:
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                if len(self._runners) > 1:
                    await self._note()
                    line.watch.deadline_s = line.deadline_s + GRACE_S
        finally:
            await self._end()
        self._judge()

    def decide(self, leg: Leg) -> bool:
        """Whether the attempt is the first that has something to show; the other ends now."""
        if self._winner is None:
            self._winner = leg
            for runner in self._runners:
                if runner.leg is not leg:
                    runner.stop()
        return self._winner is leg

    def _is_open(self, runner: _Runner) -> bool:
        return self._winner is None and not runner.task.done()

    def _start(self, prepared: Prepared) -> _Runner:
        for other in self._runners:
            if other.leg is not None and not other.task.done():
                other.leg.beside = 1
        runner = _Runner(prepared, asyncio.get_running_loop().create_task(self._attempt(prepared)))
        self._runners.append(runner)
        return runner

    async def _attempt(self, prepared: Prepared) -> None:
        with self._parts.watchdog.watch(self._line.deadline_s) as watch:
            leg = Leg(self, self._line, watch)
            for runner in self._runners:
                if runner.prepared is prepared:
                    runner.leg = leg
                    if runner.unwanted:
                        runner.task.cancel()
                elif not runner.task.done():
                    leg.beside = 1
            await ProviderCall(self._parts, leg, prepared).run()

    async def _end(self) -> None:
        """Waits until both are settled, which takes a turn of the loop once they are cancelled."""
        for runner in self._runners:
            runner.stop()
        await asyncio.gather(*(one.task for one in self._runners), return_exceptions=True)
        for runner in self._runners:
            if runner.leg is not None:
                self._line.tokens_used += runner.leg.tokens_used
                self._line.cost_nano_usd += runner.leg.cost_nano_usd
                self._line.shown = self._line.shown or runner.leg.shown

    async def _note(self) -> None:
        """Learns from attempts that have failed, at once: the other one may go on for long."""
        for runner in self._runners:
            failure = runner.failure()
            if runner.noted or failure is None or runner.leg is self._winner:
                continue
            runner.noted = True
            if failure.reason != error_pb2.ERROR_REASON_CANCELLED:
                await self._learn(runner.prepared, failure)

    def _judge(self) -> None:
        """Raises how the call failed, if it did."""
        ends = self._runners[0]
        for runner in self._runners:
            if runner.leg is not None and runner.leg is self._winner:
                ends = runner
            if not runner.task.cancelled():
                error = runner.task.exception()
                if error is not None and not isinstance(error, GatewayError):
                    raise error  # a defect
        failure = ends.failure()
        if failure is not None:
            raise failure
