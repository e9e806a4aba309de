"""The router's copy of the budgets that refuse: pushed by usage, kept when usage goes away."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import grpc

from onegate.usage.v1 import budget_service_pb2 as pb
from onegate.usage.v1 import budget_service_pb2_grpc
from onegate.usage.v1.cooldown_service_pb2 import Cooldown
from runtime.clock import Clock
from services.router.following import Follower
from services.router.money.budgets import Budgets


class Cooling(Protocol):
    """What hears of cool-downs. ``services/router/limits/peer_cooldowns.py``."""

    def heard(self, cooldowns: Iterable[Cooldown], *, anew: bool) -> None:
        """Usage told of some; ``anew`` with a stream's first message, even without any."""
        ...


class BudgetWatch:
    """Follows usage. Cool-downs of other routers come on the same stream.

    Args:
        channel: to usage; the caller closes it.
        clock: for pauses.
        watcher: which process this is, for operators.
        recall: is told the slices that usage wants back.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        clock: Clock,
        watcher: str,
        recall: Callable[[Sequence[str]], None],
    ) -> None:
        self._stub = budget_service_pb2_grpc.BudgetServiceStub(channel)
        self._watcher = watcher
        self._recall = recall
        self.cooling: Cooling | None = None
        """What is told of cool-downs."""
        self._fresh = Budgets()
        self._follower = Follower("budgets", self._open, self._take, clock)
        self.current = Budgets()
        """The budgets, as far as they are known. Replaced as a whole after a new connection."""
        self.ready = False
        """Whether usage has told all of them since the start. Stays true when usage goes away."""

    def start(self) -> None:
        """Starts to watch usage."""
        self._follower.start()

    async def close(self) -> None:
        """Stops watching; what is known stays known."""
        await self._follower.close()

    def _open(self) -> grpc.aio.UnaryStreamCall[Any, pb.WatchBudgetsResponse]:
        return self._stub.WatchBudgets(pb.WatchBudgetsRequest(watcher=self._watcher))

    async def _take(self, news: pb.WatchBudgetsResponse, first: bool) -> None:
        if first:
            self._fresh = Budgets()
        if self.cooling is not None and (first or news.cooldowns):
            self.cooling.heard(news.cooldowns, anew=first)
        for budget in news.budgets:
            self._fresh.put(budget)
        for budget_id in news.deleted:
            self._fresh.drop(budget_id)
        if news.complete:
            self.current = self._fresh
            self.ready = True
            self._follower.back()
        if news.recalled_slice_ids:
            self._recall(news.recalled_slice_ids)
