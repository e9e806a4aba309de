"""What must happen to the ledger by itself: leases end, budgets set elsewhere are noticed, slices
are called back, and once an hour the balances are rebuilt and compared.
"""

import asyncio
import logging
from typing import Final, Protocol

from onegate.usage.v1.ledger_service_pb2 import VerifyLedgerResponse
from runtime.clock import Clock, pause
from runtime.errors import GatewayError
from runtime.metrics import Metrics
from runtime.sql import unix_micros
from services.usage.ledger.budget_board import BudgetBoard
from services.usage.ledger.budget_service import alarm
from services.usage.ledger.budget_store import BudgetStore
from services.usage.ledger.holder_store import LEASE_MS, HolderStore
from services.usage.ledger.transactions import LedgerError

_LOG = logging.getLogger(__name__)

ROUND_S: Final = 0.5
"""How often slices that are called back and budgets set elsewhere are looked for, in seconds."""

SWEEP_S: Final = 1.0
"""How often leases that ran out are looked for, in seconds."""

CHECK_S: Final = 3600.0
"""How often balances are compared, in seconds."""

CHECKED_US: Final = 2 * 24 * 3600 * 1_000_000
"""How far back the hourly comparison looks, in microseconds; `onegate ledger verify` looks at
everything."""


class Check(Protocol):
    """Compares kept and rebuilt balances."""

    async def verify(self, *, ended_since_us: int = 0) -> VerifyLedgerResponse:
        """See :class:`services.usage.ledger.check_store.LedgerCheck`."""
        ...


class LedgerKeeper:
    """Runs beside the services of one usage process."""

    def __init__(
        self,
        stores: tuple[BudgetStore, HolderStore, Check],
        board: BudgetBoard,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._budgets, self._holders, self._check = stores
        self._board = board
        self._clock = clock
        self._sweep_at = self._check_at = clock.monotonic()
        counter = metrics.counter("leases_ended", "Holds whose lease ran out.", ("into",))
        self._uncertain = counter.labelled("uncertain")
        self._released = counter.labelled("released")
        faults = metrics.gauge("ledger_faults", "What did not fit at the last comparison.")
        self._faults = faults.labelled()
        self.wake = asyncio.Event()
        """Set when slices were called back: their holders are to hear of it now."""

    async def start(self) -> None:
        """Before anything is served: nobody could renew a lease while usage was away."""
        await self._holders.spare(LEASE_MS * 1000)
        self._board.show(await self._budgets.load(self._board.book))

    async def run(self) -> None:
        """Until it is cancelled; while the store is away, everything waits."""
        while True:
            await pause(self._clock, ROUND_S, self.wake)
            self.wake.clear()
            try:
                await self.round()
            except GatewayError as error:
                _LOG.warning("the ledger is not looked after: %s", error.message)
            except LedgerError as error:
                # Nothing was written; holds stay held, which refuses calls but loses no money.
                _LOG.critical("a lease could not be ended: %s", error)

    async def round(self) -> None:
        """What is due now. Raises STORE_UNAVAILABLE."""
        book = await self._budgets.load(self._board.book)
        recalled = await self._holders.recalled() if book.revision else []
        self._board.show(book, recalled)
        now_s = self._clock.monotonic()
        if now_s >= self._sweep_at:
            self._sweep_at = now_s + SWEEP_S
            await self._sweep()
        if now_s >= self._check_at:
            self._check_at = now_s + CHECK_S
            since_us = unix_micros(self._clock.now()) - CHECKED_US
            found = await self._check.verify(ended_since_us=since_us)
            self._faults.value = len(found.faults)
            alarm(found)
            await self._holders.forget()

    async def _sweep(self) -> None:
        while any(ended := await self._holders.sweep()):
            uncertain, released = ended
            self._uncertain.add(uncertain)
            self._released.add(released)
            if uncertain:
                _LOG.warning(
                    "%d holds were posted as uncertain: their leases ran out before their records"
                    " came",
                    uncertain,
                )
