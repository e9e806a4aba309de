"""The prices in force and to come, shipped or set by operators, ready to be told to routers.

Prices by the hour change several times a day, so sheets are made for some days ahead and once a
day for the next: a router that loses sight of usage knows the coming days.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from onegate.usage.v1 import price_pb2
from onegate.usage.v1.price_service_pb2 import ModelFacts, WatchPricesResponse
from runtime.clock import Clock, pause
from services.usage.prices.facts import FactBook, merged
from services.usage.prices.price_changes import Change, overlaid
from services.usage.prices.pricing import Catalogue

AHEAD: Final = timedelta(days=7)
"""How far sheets reach into the future."""

EXTEND_S: Final = 24 * 3600.0
"""How often they are extended, in seconds."""

HEARTBEAT_S: Final = 2.0
"""How often a watcher hears something, in seconds."""

_MESSAGE_SHEETS: Final = 200
_MODELS_AT_ONCE: Final = 25

Item = TypeVar("Item")


class Board:
    """Every sheet of every listed model, from now until :data:`AHEAD`."""

    def __init__(self, catalogue: Catalogue, facts: FactBook, clock: Clock) -> None:
        self._catalogue = catalogue
        self._facts = facts
        self._clock = clock
        self._models: Sequence[str] = catalogue.models
        self._sheets: dict[str, list[price_pb2.PriceSheet]] = {}
        self._until = datetime.min.replace(tzinfo=UTC)
        self._changes: dict[str, list[Change]] = {}
        self._revisions: dict[str, int] = {}
        self._revision = 0
        self._edition = 0
        self._making = asyncio.Lock()
        self._changed = asyncio.Event()
        self._coming: dict[str, datetime] = {}

    async def run(self) -> None:
        """Keeps the sheets in supply; the first call of :meth:`extend` is the caller's."""
        while True:
            await self._clock.sleep(EXTEND_S)
            await self.extend()

    async def extend(self) -> None:
        """Makes the sheets from now until :data:`AHEAD` from now."""
        async with self._making:
            await self._make()

    async def swap(self, catalogue: Catalogue, facts: FactBook) -> None:
        """Another version of the catalogue is in force; all watchers are told at once."""
        async with self._making:
            self._catalogue, self._facts = catalogue, facts
            self._models = sorted({*catalogue.models, *self._changes})
            if not self._sheets:
                return  # Nobody was told anything yet.
            await self._make()
            self._edition += 1
            self._tell()

    async def _make(self) -> None:
        now = self._clock.now()
        until, before = now + AHEAD, self._revision
        sheets: dict[str, list[price_pb2.PriceSheet]] = {}
        for number, model in enumerate(self._models):
            sheets[model] = self._schedule(model, now, until)
            if number % _MODELS_AT_ONCE == 0:
                # All models take half a second; nobody else shall wait for that.
                await self._clock.sleep(0)
        # What was set while these were made comes on top.
        for model, revision in self._revisions.items():
            if revision > before:
                sheets[model] = self._schedule(model, now, until)
        self._sheets, self._until = sheets, until

    def take(self, changes: Sequence[Change]) -> None:
        """Puts on what operators set; all watchers are told at once."""
        if not changes:
            return
        for change in changes:
            self._changes.setdefault(change.model, []).append(change)
        self._models = sorted({*self._models, *self._changes})
        self._replace({change.model for change in changes})

    def release(self) -> None:
        """Tells of first prices whose day has come."""
        now = self._clock.now()
        due = {model for model, start in self._coming.items() if start <= now}
        if due:
            self._replace(due)

    def _replace(self, models: set[str]) -> None:
        now = self._clock.now()
        self._revision += 1
        for model in models:
            self._coming.pop(model, None)
            self._revisions[model] = self._revision
            self._sheets[model] = self._schedule(model, now, max(self._until, now + AHEAD))
        self._tell()

    def _tell(self) -> None:
        """Wakes all watchers."""
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def models(self) -> Sequence[str]:
        """The names that are listed, in order."""
        return self._models

    def changes(self, model: str) -> Sequence[Change]:
        """What operators set for one model, oldest first."""
        return self._changes.get(model, ())

    def in_force(self, model: str) -> price_pb2.PriceSheet | None:
        """The sheet of a listed model that applies now; ``None`` when none does."""
        now = self._clock.now()
        sheets = self._sheets.get(model, [])
        started = [s for s in sheets if s is sheets[0] or s.valid_from.ToDatetime(UTC) <= now]
        return started[-1] if started else None

    def prices(self, model: str) -> list[price_pb2.PriceSheet]:
        """The sheets of any name, listed or not: in force and to come; empty when nobody knows."""
        now = self._clock.now()
        return self._schedule(model, now, now + AHEAD)

    def between(self, model: str, at: datetime, until: datetime) -> list[price_pb2.PriceSheet]:
        """The sheets of any name, as they are known now for a time, oldest first."""
        return overlaid(
            self._changes.get(model, ()),
            lambda start, end: self._catalogue.prices(model, at=start, until=end),
            at=at,
            until=until,
        )

    def facts(self, model: str) -> ModelFacts | None:
        """What is known of any name beside its price; ``None`` when nothing is."""
        return merged(self._catalogue.facts(model), self._facts.find(model))

    async def watch(self) -> AsyncGenerator[WatchPricesResponse, None]:
        """All sheets and facts, then what is added to them or replaced, and heartbeats in
        between.
        """
        edition, told, revision = -1, self._until, self._revision
        while True:
            if edition != self._edition:
                if edition >= 0:
                    yield WatchPricesResponse(restart=True)
                edition, told, revision = self._edition, self._until, self._revision
                for response in self._everything():
                    yield response
                yield WatchPricesResponse(complete=True)
            if (self._edition, self._revision) == (edition, revision) and self._until <= told:
                await self._pause()
            if edition != self._edition:
                continue
            news = [*self._replaced(revision), *self._added(told)]
            told, revision = self._until, self._revision
            for response in news or [WatchPricesResponse()]:
                yield response

    async def _pause(self) -> None:
        """Until a heartbeat is due or an operator set a price."""
        await pause(self._clock, HEARTBEAT_S, self._changed)

    def _schedule(self, model: str, at: datetime, until: datetime) -> list[price_pb2.PriceSheet]:
        """The sheets of any name from ``at`` until ``until``. A price that only begins later is not
        told before it does: who has no other would charge it.
        """
        sheets = self.between(model, at, until)
        if sheets and (start := sheets[0].valid_from.ToDatetime(UTC)) > at:
            self._coming[model] = start
            return []
        return sheets

    def _everything(self) -> Iterator[WatchPricesResponse]:
        models = self.models
        sheets = [sheet for model in self._sheets.values() for sheet in model]
        for some in _batches(sheets, _MESSAGE_SHEETS):
            yield WatchPricesResponse(prices=some)
        for names in _batches(models, _MESSAGE_SHEETS):
            yield WatchPricesResponse(facts=filter(None, map(self.facts, names)))

    def _replaced(self, revision: int) -> Iterator[WatchPricesResponse]:
        """What operators set since ``revision``."""
        models = [model for model, at in self._revisions.items() if at > revision]
        for some in _batches(models, _MESSAGE_SHEETS):
            yield WatchPricesResponse(
                replaced=some,
                prices=[sheet for model in some for sheet in self._sheets[model]],
                facts=filter(None, map(self.facts, some)),
            )

    def _added(self, told: datetime) -> Iterator[WatchPricesResponse]:
        """What :meth:`extend` added to what was told."""
        if self._until > told:
            for some in _batches(self._after(told), _MESSAGE_SHEETS):
                yield WatchPricesResponse(prices=some)

    def _after(self, moment: datetime) -> list[price_pb2.PriceSheet]:
        """The sheets that take over later than ``moment``."""
        return [
            sheet
            for sheets in self._sheets.values()
            for sheet in sheets[1:]
            if sheet.valid_from.ToDatetime(UTC) >= moment
        ]


def _batches(items: Sequence[Item], count: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + count] for start in range(0, len(items), count))
