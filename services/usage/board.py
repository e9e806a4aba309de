"""The prices in force and to come, ready to be told to routers.

Prices by the hour change several times a day, so sheets are made for some days ahead and once a
day for the next: a router that loses sight of usage knows the coming days.
"""

from collections.abc import AsyncGenerator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from onegate.usage.v1 import price_pb2
from onegate.usage.v1.price_service_pb2 import ModelFacts, WatchPricesResponse
from runtime.clock import Clock
from services.usage.facts import FactBook, merged
from services.usage.pricing import Catalogue

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
        self._sheets: dict[str, list[price_pb2.PriceSheet]] = {}
        self._until = datetime.min.replace(tzinfo=UTC)

    async def run(self) -> None:
        """Keeps the sheets in supply; the first call of :meth:`extend` is the caller's."""
        while True:
            await self._clock.sleep(EXTEND_S)
            await self.extend()

    async def extend(self) -> None:
        """Makes the sheets from now until :data:`AHEAD` from now."""
        now = self._clock.now()
        until = now + AHEAD
        sheets: dict[str, list[price_pb2.PriceSheet]] = {}
        for number, model in enumerate(self._catalogue.models):
            sheets[model] = self._catalogue.prices(model, at=now, until=until)
            if number % _MODELS_AT_ONCE == 0:
                # All models take half a second; nobody else shall wait for that.
                await self._clock.sleep(0)
        self._sheets, self._until = sheets, until

    @property
    def models(self) -> Sequence[str]:
        """The names that are listed, in order."""
        return self._catalogue.models

    def in_force(self, model: str) -> price_pb2.PriceSheet:
        """The sheet of a listed model that applies now."""
        now = self._clock.now()
        sheets = self._sheets[model]
        return [s for s in sheets if s is sheets[0] or s.valid_from.ToDatetime(UTC) <= now][-1]

    def prices(self, model: str) -> list[price_pb2.PriceSheet]:
        """The sheets of any name, listed or not: in force and to come; empty when nobody knows."""
        now = self._clock.now()
        return self._catalogue.prices(model, at=now, until=now + AHEAD)

    def facts(self, model: str) -> ModelFacts | None:
        """What is known of any name beside its price; ``None`` when nothing is."""
        return merged(self._catalogue.facts(model), self._facts.find(model))

    async def watch(self) -> AsyncGenerator[WatchPricesResponse, None]:
        """All sheets and facts, then what is added to them, and heartbeats in between."""
        told = self._until
        for response in self._everything():
            yield response
        yield WatchPricesResponse(complete=True)
        while True:
            await self._clock.sleep(HEARTBEAT_S)
            if self._until > told:
                added = self._after(told)
                told = self._until
                for sheets in _batches(added, _MESSAGE_SHEETS):
                    yield WatchPricesResponse(prices=sheets)
            else:
                yield WatchPricesResponse()

    def _everything(self) -> Iterator[WatchPricesResponse]:
        sheets = [sheet for model in self._sheets.values() for sheet in model]
        for some in _batches(sheets, _MESSAGE_SHEETS):
            yield WatchPricesResponse(prices=some)
        for models in _batches(self.models, _MESSAGE_SHEETS):
            yield WatchPricesResponse(facts=filter(None, map(self.facts, models)))

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
