"""Says what models cost, and lets operators say it."""

# ruff: noqa: N802 - methods are named as the contract names them

import asyncio
import bisect
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import grpc

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import price_service_pb2, price_service_pb2_grpc
from onegate.usage.v1.price_pb2 import PriceSheet
from runtime.clock import Clock, pause
from runtime.errors import GatewayError
from runtime.patterns import matches
from runtime.rpc import require_operator
from runtime.secrets import Secret
from services.usage.prices.board import Board
from services.usage.prices.price_changes import CHANGES_MAX, Change, check_model, checked, in_force
from services.usage.prices.price_store import PriceStore
from services.usage.reports import queries

MODEL_CHARS_MAX: Final = 256
"""The longest name of a model that is looked up."""

REFRESH_S: Final = 1.0
"""How often a usage process looks for prices that were set through another one although it heard
of none, in seconds.
"""

_LOG = logging.getLogger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class OperatorPrices:
    """The prices that operators set, kept in a store and shown on the board."""

    def __init__(self, store: PriceStore, board: Board, clock: Clock) -> None:
        self._store = store
        self._board = board
        self._clock = clock
        self._changes: list[Change] = []
        self._lock = asyncio.Lock()
        self._heard = asyncio.Event()
        self._read_at = float("-inf")

    @property
    def changes(self) -> Sequence[Change]:
        """All changes, oldest first."""
        return self._changes

    async def refresh(self) -> None:
        """Takes in what was set since the last time. Raises STORE_UNAVAILABLE."""
        async with self._lock:
            last = self._changes[-1].number if self._changes else 0
            fresh = await self._store.after(last)
            self._changes += fresh
            self._board.take(fresh)
            self._read_at = self._clock.monotonic()

    def age_s(self) -> float:
        """How long ago the store answered, in seconds."""
        return self._clock.monotonic() - self._read_at

    async def run(self) -> None:
        """Refreshes when another process announces changes, and now and then; while the store is
        away, what is known stays.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._store.follow(self._heard.set))
            away = False
            while True:
                await pause(self._clock, REFRESH_S, self._heard)
                self._heard.clear()
                self._board.release()
                try:
                    await self.refresh()
                except GatewayError as error:
                    if not away:
                        _LOG.warning("prices set elsewhere are not known: %s", error.message)
                    away = True
                else:
                    away = False

    async def set(self, request: price_service_pb2.SetPricesRequest) -> list[PriceSheet]:
        """Keeps what is new in a request, all or none, and shows it. Raises INVALID_REQUEST."""
        if len(request.prices) + len(request.withdrawn) > CHANGES_MAX:
            raise _invalid("prices", f"may hold at most {CHANGES_MAX:,}")
        now = self._clock.now()
        sheets = [checked(sheet, now) for sheet in request.prices]
        for model in request.withdrawn:
            check_model(model)
        named = [(s.model, s.valid_from.ToNanoseconds()) for s in sheets]
        if len({*named}) < len(named) or {*request.withdrawn} & {s.model for s in sheets}:
            raise _invalid("prices", "names a model twice")
        await self.refresh()
        new = [sheet for sheet in sheets if not self._stands(sheet)]
        gone = [m for m in dict.fromkeys(request.withdrawn) if self._is_set(m, now)]
        made: list[tuple[str, PriceSheet | None, datetime]] = [
            *((sheet.model, sheet, _start(sheet)) for sheet in new),
            *((model, None, now) for model in gone),
        ]
        await self._store.add(
            [
                Change(number=0, model=model, price=price, valid_from=start, recorded_at=now)
                for model, price, start in made
            ]
        )
        await self.refresh()
        _LOG.info("%d prices were set, %d withdrawn", len(new), len(gone))
        return new

    def _stands(self, sheet: PriceSheet) -> bool:
        """Whether the very same was said already and still counts."""
        said = in_force(self._board.changes(sheet.model), _start(sheet))
        price = said.price if said is not None else None
        return price is not None and (price.version, price.source) == (sheet.version, sheet.source)

    def _is_set(self, model: str, at: datetime) -> bool:
        said = in_force(self._board.changes(model), at)
        return said is not None and said.price is not None


class PriceService(price_service_pb2_grpc.PriceServiceServicer):
    """Says what models cost."""

    def __init__(self, board: Board, prices: OperatorPrices, operator_token: Secret) -> None:
        self._board = board
        self._prices = prices
        self._operator_token = operator_token

    async def ListPrices(
        self, request: price_service_pb2.ListPricesRequest, _context: Context
    ) -> price_service_pb2.ListPricesResponse:
        """A page of the sheets in force now, by model."""
        count = queries.page_size_of(request.page_size)
        pattern = request.model or "*"
        after = queries.place_of(request.page_token, pattern)
        models = self._board.models
        start = 0 if after is None else bisect.bisect_right(models, after)
        found = [model for model in models[start:] if matches(pattern, model)]
        page = found[:count]
        return price_service_pb2.ListPricesResponse(
            prices=filter(None, map(self._board.in_force, page)),
            next_page_token=queries.token_of(page[-1], pattern) if len(found) > count else "",
        )

    async def WatchPrices(
        self, request: price_service_pb2.WatchPricesRequest, _context: Context
    ) -> AsyncGenerator[price_service_pb2.WatchPricesResponse, None]:
        """All sheets, then what is added."""
        _LOG.info("%r watches prices", request.watcher[:64])
        async with aclosing(self._board.watch()) as news:
            async for response in news:
                yield response

    async def GetPrice(
        self, request: price_service_pb2.GetPriceRequest, _context: Context
    ) -> price_service_pb2.GetPriceResponse:
        """The sheets of one name; none when nobody knows it."""
        if not 0 < len(request.model) <= MODEL_CHARS_MAX:
            raise _invalid("model", f"must be `kind/name` of at most {MODEL_CHARS_MAX} characters")
        return price_service_pb2.GetPriceResponse(
            prices=self._board.prices(request.model), facts=self._board.facts(request.model)
        )

    async def SetPrices(
        self, request: price_service_pb2.SetPricesRequest, context: Context
    ) -> price_service_pb2.SetPricesResponse:
        """Keeps prices; the answer means that they are committed and that watchers are told."""
        require_operator(context, self._operator_token.reveal())
        return price_service_pb2.SetPricesResponse(prices=await self._prices.set(request))

    async def ListPriceChanges(
        self, request: price_service_pb2.ListPriceChangesRequest, context: Context
    ) -> price_service_pb2.ListPriceChangesResponse:
        """A page of what operators set, newest first."""
        require_operator(context, self._operator_token.reveal())
        count = queries.page_size_of(request.page_size)
        pattern = request.model or "*"
        place = queries.place_of(request.page_token, pattern)
        changes = self._prices.changes
        end = (
            len(changes)
            if place is None
            else bisect.bisect_left(changes, int(place), key=lambda change: change.number)
        )
        found = [change for change in reversed(changes[:end]) if matches(pattern, change.model)]
        page = found[:count]
        more = len(found) > count
        return price_service_pb2.ListPriceChangesResponse(
            changes=[change.to_proto() for change in page],
            next_page_token=queries.token_of(str(page[-1].number), pattern) if more else "",
        )


def _start(sheet: PriceSheet) -> datetime:
    return sheet.valid_from.ToDatetime(UTC)


def _invalid(param: str, what: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, f"`{param}` {what}.", param=param)
