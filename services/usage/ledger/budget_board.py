"""What everybody is told about budgets: which are in force, and which slices are called back. On
the same stream routers are told which deployments are left alone.

"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from onegate.usage.v1.budget_pb2 import Budget
from onegate.usage.v1.budget_service_pb2 import WatchBudgetsResponse
from runtime.clock import Clock, pause
from services.usage.cooldowns.cooldown_board import CooldownBoard
from services.usage.ledger.budgets import HARD, Book

HEARTBEAT_S: Final = 2.0
"""How often a watcher hears something, in seconds."""

_MESSAGE_BUDGETS: Final = 500
_MESSAGE_COOLDOWNS: Final = 1_000


class BudgetBoard:
    """The budgets that routers must hold money for, and whoever watches them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.book = Book()
        self._hard: Mapping[str, Budget] = {}
        self._recalled: frozenset[str] = frozenset()
        self._cooldowns = CooldownBoard()
        self._changed = asyncio.Event()

    def cool(self, left_s: Mapping[str, float]) -> dict[str, float]:
        """Takes for how many seconds deployments are left alone, and tells watchers; returns what
        of it is news.
        """
        news = self._cooldowns.take(left_s, self._clock.monotonic())
        if news:
            self._tell()
        return news

    def show(self, book: Book, recalled: Sequence[str] | None = None) -> None:
        """Takes the budgets in force, and the slices that are called back; watchers are told."""
        slices = self._recalled if recalled is None else frozenset(recalled)
        if book.revision == self.book.revision and slices <= self._recalled:
            self._recalled = slices
            return
        if book.revision >= self.book.revision:
            self.book = book
            self._hard = {b.id: _bare(b) for b in book.budgets.values() if b.mode in HARD}
        self._recalled = slices
        self._tell()

    async def watch(self) -> AsyncGenerator[WatchBudgetsResponse, None]:
        """All budgets, then changes, and heartbeats in between."""
        told: Mapping[str, Budget] = {}
        recalled: frozenset[str] = frozenset()
        complete = False
        cooled = 0
        while True:
            changed, now, slices = self._changed, self._hard, self._recalled
            news = list(_news(told, now, slices - recalled))
            news += self._cooling(cooled)
            told, recalled, cooled = now, slices, self._cooldowns.revision
            if not complete:
                news.append(WatchBudgetsResponse(complete=True))
                complete = True
            for response in news or [WatchBudgetsResponse()]:
                yield response
            if changed is self._changed:
                await pause(self._clock, HEARTBEAT_S, changed)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _cooling(self, told: int) -> Iterator[WatchBudgetsResponse]:
        if told == self._cooldowns.revision:
            return
        left = self._cooldowns.since(told, self._clock.monotonic())
        while some := list(islice(left, _MESSAGE_COOLDOWNS)):
            yield WatchBudgetsResponse(cooldowns=some)


def _news(
    told: Mapping[str, Budget], now: Mapping[str, Budget], slices: frozenset[str]
) -> Iterator[WatchBudgetsResponse]:
    if told is not now:
        set_ = (budget for name, budget in now.items() if told.get(name) != budget)
        while some := list(islice(set_, _MESSAGE_BUDGETS)):
            yield WatchBudgetsResponse(budgets=some)
        gone = iter(told.keys() - now.keys())
        while names := list(islice(gone, _MESSAGE_BUDGETS)):
            yield WatchBudgetsResponse(deleted=names)
    if slices:
        yield WatchBudgetsResponse(recalled_slice_ids=sorted(slices))


def _bare(budget: Budget) -> Budget:
    """Without what only concerns people."""
    made = Budget()
    made.CopyFrom(budget)
    made.ClearField("alert")
    return made
