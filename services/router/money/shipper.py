"""Carries finals from the journal to the usage service, until it has acknowledged each of them.

Order is the journal's. In memory lies only what was posted lately; when usage is away for longer,
the rest is read back from the journal, so an outage costs disk and no memory. Nothing is given up:
the same batch is sent until an answer says that it is committed, and a batch whose answer got lost
is recognised there by its attempt ids.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Final

import grpc

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import usage_service_pb2
from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.failpoints import OFF, Failpoint, Failpoints
from runtime.rpc import unary
from services.router.money.journal import Entry, Journal
from services.router.money.journal_files import Position
from services.router.wire_format import repeated

METHOD: Final = "/onegate.usage.v1.UsageService/RecordUsage"

BATCH_RECORDS_MAX: Final = 500
BATCH_BYTES_MAX: Final = 1024 * 1024
"""What one request holds, a single larger record apart."""

READ_RECORDS_MAX: Final = 200
"""How many finals are read back from the journal at once: 2 ms of the loop's time."""

QUEUE_RECORDS_MAX: Final = 4096
"""Finals that wait in memory; more wait in the journal alone."""

GATHER_S: Final = 0.02
"""How long the first of a batch waits for others, in seconds."""

BUSY_GATHER_S: Final = 0.1
BUSY_RECORDS: Final = 20
"""How long it waits when the last batch had so many: a request and a transaction cost usage as much
as some twenty records do (measured at 1,000 calls a second: 72 µs for each call became 43 to 58).
"""

TIMEOUT_S: Final = 10.0
"""How long usage may take to answer, in seconds."""

FLUSH_S: Final = 5.0
"""How long closing waits for what is left to be taken, in seconds."""

_BACKOFF_S_MIN: Final = 0.05
_BACKOFF_S_MAX: Final = 2.0
_COMPLAIN_S: Final = 60.0
_NOWHERE: Final = Position(0, 0)
_LOG = logging.getLogger(__name__)


class Shipper:
    """Posts finals: at once into the journal, soon to usage.

    Args:
        journal: already open; what it recovered is sent first.
        channel: to usage; the caller closes it.
        clock: for pauses.
        failpoints: where a test may end this process.
    """

    def __init__(
        self,
        journal: Journal,
        channel: grpc.aio.Channel,
        clock: Clock,
        failpoints: Failpoints = OFF,
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._failpoints = failpoints
        # Records are sent as the bytes that the journal has: no message is built again.
        self._record_usage: grpc.aio.UnaryUnaryMultiCallable[
            bytes, usage_service_pb2.RecordUsageResponse
        ] = channel.unary_unary(
            METHOD, response_deserializer=usage_service_pb2.RecordUsageResponse.FromString
        )
        self._queue: deque[Entry] = deque()
        self._shipped = journal.acknowledged
        # Whether the journal holds finals behind the queue's last.
        self._behind = True
        self._wake = asyncio.Event()
        self._closing = False
        self._complained_s = float("-inf")
        self._shipping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to send, what was recovered first."""
        self._shipping = asyncio.get_running_loop().create_task(self._run())
        self._shipping.add_done_callback(_report)
        self._wake.set()

    def post(self, attempt_id: str, record: bytes) -> None:
        """Writes a final, a serialised ``UsageRecord``, into the journal and has it sent. Never
        waits, never raises: what the journal cannot take any more is sent from memory.
        """
        try:
            entry = self._journal.final(attempt_id, record)
        except GatewayError as error:
            _LOG.error("%s It is sent from memory: %s", error.message, attempt_id)
            self._queue.appendleft(Entry(record, _NOWHERE))
        else:
            if self._behind or len(self._queue) >= QUEUE_RECORDS_MAX:
                self._behind = True
            else:
                self._queue.append(entry)
        self._wake.set()

    async def close(self, flush_s: float = FLUSH_S) -> None:
        """Gives usage ``flush_s`` seconds to take what is left; the journal keeps the rest."""
        if self._shipping is None:
            return
        self._closing = True
        self._wake.set()
        await asyncio.wait((self._shipping,), timeout=flush_s)
        self._shipping.cancel()
        await asyncio.wait((self._shipping,))

    async def _run(self) -> None:
        busy = False
        while True:
            await self._wake.wait()
            self._wake.clear()
            alone = len(self._queue) < BATCH_RECORDS_MAX and not self._behind
            if alone and not self._closing:
                await self._clock.sleep(BUSY_GATHER_S if busy else GATHER_S)
            batch = await self._next()
            busy = len(batch) >= BUSY_RECORDS
            if batch:
                await self._deliver(batch)
                self._wake.set()
            elif self._closing:
                return

    async def _next(self) -> list[Entry]:
        """The next finals to send; none when there is nothing to send."""
        if not self._queue and self._behind:
            found = await self._read()
            # Fewer than could be had: that was the journal's end, and no post came in between.
            self._behind = len(found) == READ_RECORDS_MAX
            self._queue.extend(found)
        batch: list[Entry] = []
        room = BATCH_BYTES_MAX
        while self._queue and len(batch) < BATCH_RECORDS_MAX:
            room -= len(self._queue[0].record)
            if room < 0 and batch:
                break
            batch.append(self._queue.popleft())
        return batch

    async def _read(self) -> list[Entry]:
        """Finals that were not sent yet, from the journal."""
        while True:
            try:
                return self._journal.unacknowledged(self._shipped, READ_RECORDS_MAX)
            except OSError as error:
                self._complain("the journal cannot be read: %s", str(error))
                await self._clock.sleep(_BACKOFF_S_MAX)

    async def _deliver(self, batch: Sequence[Entry]) -> None:
        """Sends a batch until it is committed."""
        # A ``RecordUsageRequest``: nothing but records. To build them again takes 5 µs each.
        answer = await self._committed(repeated(entry.record for entry in batch))
        if answer.quarantined:
            _LOG.error("usage put records aside: %s", list(answer.quarantined)[:10])
        self._failpoints.hit(Failpoint.ACKED)
        self._shipped = max(self._shipped, batch[-1].position)
        self._journal.acked(self._shipped)

    async def _committed(self, request: bytes) -> usage_service_pb2.RecordUsageResponse:
        """What usage says once it has taken the request."""
        pause_s = _BACKOFF_S_MIN
        while True:
            try:
                return await unary(
                    self._record_usage,
                    request,
                    timeout_s=TIMEOUT_S,
                    away=error_pb2.ERROR_REASON_STORE_UNAVAILABLE,
                )
            except GatewayError as error:
                self._complain("usage does not take records, they wait: %s", error.message)
                await self._clock.sleep(pause_s)
                pause_s = min(2 * pause_s, _BACKOFF_S_MAX)

    def _complain(self, text: str, why: str) -> None:
        """Says what is wrong, not more often than once a minute."""
        now_s = self._clock.monotonic()
        if now_s - self._complained_s >= _COMPLAIN_S:
            self._complained_s = now_s
            _LOG.warning(text, why)


def _report(shipping: "asyncio.Task[None]") -> None:
    """The task ends when it is closed; anything else is a defect, and the journal fills."""
    if not shipping.cancelled() and (error := shipping.exception()) is not None:
        _LOG.critical("records are no longer sent to usage", exc_info=error)
