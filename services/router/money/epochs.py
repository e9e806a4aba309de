"""This life of the router as usage knows it: its epoch, its lease, and the end of former lives."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import grpc

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import hold_service_pb2 as pb
from onegate.usage.v1 import hold_service_pb2_grpc
from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.failpoints import OFF, Failpoint, Failpoints
from runtime.rpc import unary

LEASE_MS: Final = 30_000
"""How long the router may be silent before its holds are posted as uncertain."""
RENEW_S: Final = LEASE_MS / 3000
TIMEOUT_S: Final = 5.0
SETTLED_CHECK_S: Final = 0.2
"""How often a starting router looks whether usage has taken what the last one left."""

_BACKOFF_S_MIN: Final = 0.1
_BACKOFF_S_MAX: Final = 2.0
_LOG = logging.getLogger(__name__)


class EpochJournal(Protocol):
    """What the journal knows of epochs. ``services/router/money/journal.py``."""

    @property
    def known_epoch(self) -> int:
        """The last epoch that was written down; 0 for an empty journal."""
        ...

    @property
    def settled(self) -> bool:
        """Whether usage has taken all that former lives left."""
        ...

    def opened(self, epoch: int) -> None:
        """Writes the epoch down, before anything is held under it."""
        ...


class Epoch:
    """Opened once, kept alive until it is closed.

    Args:
        holder: the router's name; one journal, one holder.
        journal: where the epoch is written down.
        channel: to usage; the caller closes it.
        clock: for pauses.
        failpoints: where a test may end this process.

    Attributes:
        recall: is told the slices that usage wants back; nobody is before it is set.
    """

    def __init__(
        self,
        holder: str,
        journal: EpochJournal,
        channel: grpc.aio.Channel,
        clock: Clock,
        failpoints: Failpoints = OFF,
    ) -> None:
        self.holder = holder
        self.recall: Callable[[Sequence[str]], None] = lambda _: None
        self._failpoints = failpoints
        self._journal = journal
        self._stub = hold_service_pb2_grpc.HoldServiceStub(channel)
        self._clock = clock
        self._number = 0
        self._fenced = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to ask for the epoch, and then keeps it."""
        self._task = asyncio.get_running_loop().create_task(self._live())
        self._task.add_done_callback(_report)

    async def close(self) -> None:
        """Renews no more; what is dispatched is settled by its records."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def number(self) -> int:
        """The epoch. Raises BUDGET_UNAVAILABLE before it is open and after it was fenced."""
        if self._fenced:
            raise _unavailable(
                f"another router has taken the name {self.holder}; the operator must give each"
                " its own [router] name."
            )
        if not self._number:
            raise _unavailable("usage has not been heard since the router started.")
        return self._number

    def fenced(self) -> None:
        """Usage says that a newer epoch of this name is open: nothing may be held any more."""
        if not self._fenced:
            self._fenced = True
            _LOG.critical(
                "another router uses the name %s: calls with budgets are refused here until each"
                " router has a name of its own ([router] name) and is started again",
                self.holder,
            )

    async def _live(self) -> None:
        await self._open()
        self._failpoints.hit(Failpoint.EPOCH_OPENED)
        closed, renew_s = False, self._clock.monotonic() + RENEW_S
        while not self._fenced:
            if not closed and self._journal.settled:
                closed = await self._close_former()
            now_s = self._clock.monotonic()
            if now_s >= renew_s:
                renew_s = now_s + RENEW_S
                await self._renew()
            await self._clock.sleep(RENEW_S if closed else SETTLED_CHECK_S)

    async def _open(self) -> None:
        request = pb.OpenEpochRequest(
            holder=self.holder, journal_epoch=self._journal.known_epoch, lease_ms=LEASE_MS
        )
        answer = await self._answered(request)
        self._journal.opened(answer.epoch)
        self._number = answer.epoch
        if answer.uncertain:
            _LOG.warning(
                "%d holds of a life that the journal does not know are posted as uncertain",
                answer.uncertain,
            )

    async def _answered(self, request: pb.OpenEpochRequest) -> pb.OpenEpochResponse:
        pause_s = _BACKOFF_S_MIN
        while True:
            try:
                return await unary(self._stub.OpenEpoch, request, timeout_s=TIMEOUT_S)
            except GatewayError:
                await self._clock.sleep(pause_s)
                pause_s = min(2 * pause_s, _BACKOFF_S_MAX)

    async def _close_former(self) -> bool:
        request = pb.CloseEpochsRequest(holder=self.holder, epoch=self._number)
        try:
            await unary(self._stub.CloseEpochs, request, timeout_s=TIMEOUT_S)
        except GatewayError as error:
            self._refused(error)
            return False
        return True

    async def _renew(self) -> None:
        request = pb.RenewLeasesRequest(holder=self.holder, epoch=self._number)
        try:
            answer = await unary(self._stub.RenewLeases, request, timeout_s=TIMEOUT_S)
        except GatewayError as error:
            self._refused(error)
        else:
            if answer.recalled_slice_ids:
                self.recall(answer.recalled_slice_ids)

    def _refused(self, error: GatewayError) -> None:
        if error.reason == error_pb2.ERROR_REASON_CONFLICT:
            self.fenced()


def _unavailable(why: str) -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_BUDGET_UNAVAILABLE,
        f"The budget of this call cannot be checked: {why}",
        retry_after_ms=1000,
    )


def _report(task: "asyncio.Task[None]") -> None:
    """The task ends when it is closed, or fenced; anything else is a defect."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _LOG.critical("the router's epoch is no longer kept", exc_info=error)
