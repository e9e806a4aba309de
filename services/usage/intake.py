"""Where finished attempts come in: batches that arrive together share a transaction.

While one transaction is under way, what arrives waits and goes into the next. An idle service
therefore writes at once, and a busy one pays for few commits.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from onegate.common.v1 import error_pb2
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.failpoints import OFF, Failpoint, Failpoints
from runtime.sql import unix_micros
from services.usage.store import Store, Verdict

_LOG = logging.getLogger(__name__)

WAITING_MAX: Final = 20_000
"""Records that may wait for a transaction; a router that brings more is told to come back."""

TRANSACTION_RECORDS_MAX: Final = 2_000
"""About how many records share a transaction: it holds the write lock for less than 100 ms."""


class Intake:
    """Keeps records through a store, as few transactions as the load allows."""

    def __init__(self, store: Store, clock: Clock, failpoints: Failpoints = OFF) -> None:
        self._store = store
        self._failpoints = failpoints
        self._clock = clock
        self._waiting: list[tuple[Sequence[UsageRecord], asyncio.Future[list[Verdict]]]] = []
        self._waiting_count = 0
        self._writing: asyncio.Task[None] | None = None

    async def record(self, records: Sequence[UsageRecord]) -> list[Verdict]:
        """Returns when the records are committed, with a verdict for each.

        Raises STORE_UNAVAILABLE when they are not, OVERLOADED when too many wait already.
        """
        if self._waiting_count + len(records) > WAITING_MAX:
            raise GatewayError(
                error_pb2.ERROR_REASON_OVERLOADED,
                "The usage service has more records waiting than it can take. Send them again.",
                retry_after_ms=100,
            )
        loop = asyncio.get_running_loop()
        verdicts: asyncio.Future[list[Verdict]] = loop.create_future()
        self._waiting.append((records, verdicts))
        self._waiting_count += len(records)
        if self._writing is None:
            self._writing = loop.create_task(self._write())
            self._writing.add_done_callback(_report)
        return await verdicts

    async def close(self) -> None:
        """Waits for what is being written."""
        if self._writing is not None:
            await asyncio.wait((self._writing,))

    async def _write(self) -> None:
        try:
            while self._waiting:
                await self._write_some()
        except BaseException:
            # Nobody may wait for what does not come; routers send again.
            for _, waiter in self._waiting:
                waiter.cancel()
            self._waiting, self._waiting_count = [], 0
            raise
        finally:
            self._writing = None

    async def _write_some(self) -> None:
        """One transaction."""
        taken = 0
        count = 0
        while taken < len(self._waiting) and count < TRANSACTION_RECORDS_MAX:
            count += len(self._waiting[taken][0])
            taken += 1
        batch, self._waiting = self._waiting[:taken], self._waiting[taken:]
        self._waiting_count -= count
        together = [record for records, _ in batch for record in records]
        try:
            verdicts = await self._store.record(together, now_us=unix_micros(self._clock.now()))
        except GatewayError as error:
            for _, waiter in batch:
                if not waiter.done():
                    waiter.set_exception(error)
            return
        except BaseException:
            for _, waiter in batch:
                waiter.cancel()
            raise
        self._failpoints.hit(Failpoint.SHIPPED)
        for records, waiter in batch:
            own, verdicts = verdicts[: len(records)], verdicts[len(records) :]
            # A caller that left has its records kept all the same.
            if not waiter.done():
                waiter.set_result(own)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _LOG.error("records were not kept; their routers keep them", exc_info=error)
