"""The router's copy of the prices: pushed by usage, kept when usage goes away.

Usage pushes the sheets of every listed model, days ahead; other names (dated snapshots,
deployments) are asked for once and then kept up to date. ``find`` is for the hot path and only
looks at what is known; ``get`` asks when it must. A name that usage does not know is remembered
as that for a minute.
"""

import asyncio
import bisect
import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

import grpc

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import price_service_pb2, price_service_pb2_grpc
from onegate.usage.v1.price_pb2 import PriceSheet
from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.money import counts_tokens
from runtime.rpc import unary
from services.router.following import Follower

NAMES_MAX: Final = 10_000
"""Names beside the listed ones that are kept; the one learnt first is forgotten."""

UNKNOWN_MAX: Final = 10_000
UNKNOWN_S: Final = 60.0
"""How long a name without a price is believed to have none, in seconds."""

ASKED_MAX: Final = 256
"""Names that are asked for at once; for one more the caller is told to come back."""

REFRESH_S: Final = 3600.0
"""How often names that were asked for are asked for again, in seconds: sheets come days ahead."""

TIMEOUT_S: Final = 2.0
"""How long usage may take to answer, in seconds."""

_LEARNING: Final = 16
_LOG = logging.getLogger(__name__)

T = TypeVar("T")

_Answer: TypeAlias = PriceSheet | GatewayError | None
"""What a question ends in; an error that nobody waits for any more must not be raised."""


class _Sheets:
    """The sheets of one model, by when they take over."""

    __slots__ = ("_sheets", "_starts_us")

    def __init__(self) -> None:
        self._starts_us: list[int] = []
        self._sheets: list[PriceSheet] = []

    def __len__(self) -> int:
        return len(self._sheets)

    def put(self, sheet: PriceSheet) -> None:
        """Adds a sheet; of two that start together the later told one stands. One that says
        nothing of tokens is left out: what is called here is charged by them.
        """
        if not counts_tokens(sheet):
            return
        start_us = sheet.valid_from.ToMicroseconds()
        place = bisect.bisect_left(self._starts_us, start_us)
        if place < len(self._starts_us) and self._starts_us[place] == start_us:
            self._sheets[place] = sheet
        else:
            self._starts_us.insert(place, start_us)
            self._sheets.insert(place, sheet)

    def at(self, clock: Clock) -> PriceSheet:
        """The sheet in force; the first when the clock is before them all."""
        if len(self._sheets) == 1:
            return self._sheets[0]
        now_us = int(clock.now().timestamp() * 1_000_000)
        return self._sheets[max(bisect.bisect_right(self._starts_us, now_us) - 1, 0)]


@dataclass(slots=True)
class _Listed:
    """What one full set of a watch says."""

    sheets: dict[str, _Sheets] = field(default_factory=dict)
    facts: dict[str, price_service_pb2.ModelFacts] = field(default_factory=dict)

    def put(self, news: price_service_pb2.WatchPricesResponse) -> None:
        """Takes a message in."""
        for model in news.replaced:
            self.sheets.pop(model, None)
        for sheet in news.prices:
            self.sheets.setdefault(sheet.model, _Sheets()).put(sheet)
        for facts in news.facts:
            self.facts[facts.model] = facts


class PriceBook:
    """Prices by ``kind/model``, the provider's own name of the model.

    Args:
        channel: to usage; the caller closes it.
        clock: sheets go by its wall clock, everything else by its monotonic one.
        watcher: which process this is, for operators.
    """

    def __init__(self, channel: grpc.aio.Channel, clock: Clock, watcher: str) -> None:
        self._stub = price_service_pb2_grpc.PriceServiceStub(channel)
        self._clock = clock
        self._watcher = watcher
        self._listed = _Listed()
        self._named: OrderedDict[str, _Sheets] = OrderedDict()
        self._named_facts: OrderedDict[str, price_service_pb2.ModelFacts] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._asked: dict[str, asyncio.Task[_Answer]] = {}
        self._heard = False
        self._fresh = _Listed()
        self._follower = Follower("prices", self._open_watch, self._take, clock)
        self._refreshing: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether usage has been heard since the start. Stays true when usage goes away."""
        return self._heard

    def start(self) -> None:
        """Starts to watch usage."""
        self._follower.start()
        self._refreshing = asyncio.get_running_loop().create_task(self._refresh())
        self._refreshing.add_done_callback(_report)

    async def close(self) -> None:
        """Stops watching and asking; what is known stays known."""
        await self._follower.close()
        tasks: list[asyncio.Task[Any]] = [*self._asked.values()]
        if self._refreshing is not None:
            tasks.append(self._refreshing)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def find(self, model: str) -> PriceSheet | None:
        """The sheet in force as far as it is known here; ``None`` sends the caller to
        :meth:`get`. The message is shared: nobody may change it.
        """
        sheets = self._listed.sheets.get(model) or self._named.get(model)
        return sheets.at(self._clock) if sheets is not None else None

    async def get(self, model: str) -> PriceSheet | None:
        """The sheet in force; ``None`` when there is no price.

        Raises BUDGET_UNAVAILABLE when it is not known here and usage does not answer, OVERLOADED
        when too many unknown names are being asked for.
        """
        sheet = self.find(model)
        if sheet is not None or self._unknown.get(model, 0.0) > self._clock.monotonic():
            return sheet
        flight = self._asked.get(model)
        if flight is None:
            if len(self._asked) >= ASKED_MAX:
                raise GatewayError(
                    error_pb2.ERROR_REASON_OVERLOADED,
                    "Too many models are being looked up. Try again in a moment.",
                    retry_after_ms=1000,
                )
            flight = asyncio.get_running_loop().create_task(self._ask(model))
            self._asked[model] = flight
            flight.add_done_callback(lambda _: self._asked.pop(model))
        # All callers share one question; one that leaves does not take the answer along.
        answer = await asyncio.shield(flight)
        if isinstance(answer, GatewayError):
            raise answer
        return answer

    async def learn(self, models: Iterable[str]) -> None:
        """Asks for all of ``models`` that are not known, so that :meth:`find` knows them; stops
        when usage does not answer.
        """
        wanted = iter([model for model in models if self.find(model) is None])

        async def ask() -> None:
            for model in wanted:
                await self.get(model)

        results = await asyncio.gather(*(ask() for _ in range(_LEARNING)), return_exceptions=True)
        for result in results:
            if isinstance(result, GatewayError):
                _LOG.warning("prices of some models are not known yet: %s", result.message)
                return

    def names(self, kind: str) -> Sequence[str]:
        """The listed models of a kind that have a price, without the kind."""
        prefix = f"{kind}/"
        return [m.removeprefix(prefix) for m in self._listed.sheets if m.startswith(prefix)]

    def facts(self, model: str) -> price_service_pb2.ModelFacts | None:
        """What is known beside the price; ``None`` for names neither listed nor asked for."""
        return self._listed.facts.get(model) or self._named_facts.get(model)

    async def _ask(self, model: str) -> _Answer:
        """What usage says about a name, kept."""
        request = price_service_pb2.GetPriceRequest(model=model)
        sheets = _Sheets()
        try:
            answer = await unary(self._stub.GetPrice, request, timeout_s=TIMEOUT_S)
            for sheet in answer.prices:
                sheets.put(sheet)
            if answer.HasField("facts"):
                _keep(self._named_facts, model, answer.facts)
        except GatewayError as error:
            # A name that cannot be one has no price; any other refusal says nothing about it.
            if error.reason != error_pb2.ERROR_REASON_INVALID_REQUEST:
                return _away(model)
        if not sheets:
            self._has_none(model)
            return None
        _keep(self._named, model, sheets)
        return sheets.at(self._clock)

    def _has_none(self, model: str) -> None:
        self._named.pop(model, None)
        self._unknown[model] = self._clock.monotonic() + UNKNOWN_S
        self._unknown.move_to_end(model)
        if len(self._unknown) > UNKNOWN_MAX:
            self._unknown.popitem(last=False)

    async def _refresh(self) -> None:
        """Keeps the names that were asked for up to date."""
        while True:
            await self._clock.sleep(REFRESH_S)
            await self._ask_again()

    async def _ask_again(self) -> None:
        for model in list(self._named):
            # One that was forgotten meanwhile stays so. When usage is away, what is known stays.
            if model in self._named and isinstance(await self._ask(model), GatewayError):
                return

    def _open_watch(self) -> grpc.aio.UnaryStreamCall[Any, price_service_pb2.WatchPricesResponse]:
        return self._stub.WatchPrices(price_service_pb2.WatchPricesRequest(watcher=self._watcher))

    async def _take(self, news: price_service_pb2.WatchPricesResponse, first: bool) -> None:
        """Takes in what usage says; a full set replaces the last one when it is complete."""
        if first or news.restart:
            self._fresh = _Listed()
        self._fresh.put(news)
        for model in news.replaced:
            self._named.pop(model, None)
            self._unknown.pop(model, None)
        if news.complete and self._fresh is not self._listed:
            await self._replace(self._fresh)

    async def _replace(self, fresh: _Listed) -> None:
        """A full set takes the place of the last one; other names are asked for anew, since usage
        may have learnt other prices in between.
        """
        self._listed = fresh
        self._unknown.clear()
        if not self._heard:
            _LOG.info("prices of %d models are known", len(fresh.sheets))
        self._heard = True
        self._follower.back()
        await self._ask_again()


def _keep(known: "OrderedDict[str, T]", model: str, value: T) -> None:
    """Remembers; what was learnt first is forgotten for what is too much."""
    known[model] = value
    if len(known) > NAMES_MAX:
        known.popitem(last=False)


def _away(model: str) -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_BUDGET_UNAVAILABLE,
        f"The price of {model} is not known here and the usage service does not answer."
        " Try again in a moment.",
        retry_after_ms=1000,
    )


def _report(task: "asyncio.Task[None]") -> None:
    """The tasks end only when they are closed; anything else is a defect."""
    if not task.cancelled():
        _LOG.critical("prices are no longer followed", exc_info=task.exception())
