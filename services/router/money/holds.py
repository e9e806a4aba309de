"""Money set aside at usage before an attempt goes upstream, and given back when none does.

Holds are asked for together: while one request is under way the next ones gather. A hold whose
fate is unknown (usage did not answer, the caller left) is given back until usage has said so: its
lease would be posted as a cost that nobody had. Whoever was just refused is refused again for a
second without asking. What is dispatched is settled by its record, not here.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import hold_service_pb2 as pb
from onegate.usage.v1 import hold_service_pb2_grpc
from runtime.clock import Clock, Entropy, uuid7
from runtime.errors import GatewayError
from runtime.failpoints import OFF, Failpoint, Failpoints
from runtime.money import usd
from runtime.rpc import unary
from services.router.money import slices
from services.router.money.epochs import Epoch
from services.router.money.hold_stream import HoldStream
from services.router.money.slices import PayerKey, Slice, Slices

BATCH_MAX: Final = 1_000
"""Holds of one request."""
QUEUE_MAX: Final = 10_000
"""Holds that wait to be asked for; one more is refused with OVERLOADED."""
TIMEOUT_S: Final = 2.0
"""How long usage may take for an answer."""
BROKE_S: Final = 1.0
"""How long a refusal stands without asking again."""
BROKE_MAX: Final = 10_000
TEND_S: Final = 0.5
"""How often slices are looked through."""

T = TypeVar("T")

_BACKOFF_S_MIN: Final = 0.05
_BACKOFF_S_MAX: Final = 2.0
_FLUSH_S: Final = 2.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What one attempt needs set aside.

    Args:
        attempt_id: the attempt's.
        request_id: of the request that it belongs to.
        payer: who pays.
        amount_nano_usd: how much.
        least_nano_usd: what it can do with; the same as the amount for all or nothing.
        lease_ms: how long the attempt may take.
    """

    attempt_id: str
    request_id: str
    payer: pb.Payer
    amount_nano_usd: int
    least_nano_usd: int
    lease_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """What was set aside; ``slice_id`` where it was taken from a slice."""

    amount_nano_usd: int
    slice_id: str = ""


@dataclass(slots=True)
class _Asked:
    wish: Wish
    answer: "asyncio.Future[pb.HoldAnswer]"


class Holds:
    """One router's holds.

    Args:
        channel: to usage; the caller closes it.
        epoch: this life of the router.
        clock: for pauses and leases.
        entropy: for the ids of slices.
        failpoints: where a test may end this process.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        epoch: Epoch,
        clock: Clock,
        entropy: Entropy,
        failpoints: Failpoints = OFF,
    ) -> None:
        self._stub = hold_service_pb2_grpc.HoldServiceStub(channel)
        self._stream = HoldStream(self._stub)
        self._epoch = epoch
        self._clock = clock
        self._entropy = entropy
        self._failpoints = failpoints
        self._queue: list[_Asked] = []
        self._asking: asyncio.Task[None] | None = None
        self._voids: dict[str, None] = {}
        self._voiding = asyncio.Event()
        self._broke: OrderedDict[PayerKey, tuple[float, int, GatewayError]] = OrderedDict()
        self._slices = Slices()
        self._tasks: set[asyncio.Task[None]] = set()
        self._keeping: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to give back what must be."""
        loop = asyncio.get_running_loop()
        self._keeping = [loop.create_task(self._void_all()), loop.create_task(self._tend())]
        for task in self._keeping:
            task.add_done_callback(_report)

    async def close(self) -> None:
        """Gives back what is held for nothing, for at most two seconds."""
        self._slices.close()
        for task in self._keeping[1:]:
            task.cancel()
        try:
            async with asyncio.timeout(_FLUSH_S):
                await self._return_slices()
                # What is under way goes on; a slice that was still asked for comes, and goes back.
                while self._tasks:
                    await asyncio.wait(self._tasks)
                    self._slices.close()
                    await self._return_slices()
                while self._voids:
                    await self._clock.sleep(_BACKOFF_S_MIN)
        except TimeoutError:
            _LOG.warning("usage was not told of %d holds that nobody needs", len(self._voids))
        pending = [*self._keeping, *self._tasks, *([self._asking] if self._asking else [])]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        self._stream.close()

    def recall(self, slice_ids: Sequence[str]) -> None:
        """Usage wants slices back; they go with the next round."""
        self._slices.recall(frozenset(slice_ids), self._clock.monotonic())
        self._later(self._return_slices())

    async def place(self, wish: Wish) -> Reserved:
        """Sets money aside. Raises BUDGET_EXHAUSTED, BUDGET_UNAVAILABLE, OVERLOADED.

        An amount of 0 in the answer means that no budget applies any more.
        """
        now_s = self._clock.monotonic()
        key = payer_key(wish.payer)
        if slice_id := self._slices.take(key, wish.amount_nano_usd, now_s):
            return Reserved(amount_nano_usd=wish.amount_nano_usd, slice_id=slice_id)
        self._check_broke(key, wish, now_s)
        amount = await self.place_own(wish)
        if amount:
            self._want_slice(key, wish)
        return Reserved(amount_nano_usd=amount)

    async def place_own(self, wish: Wish) -> int:
        """Sets money aside under the attempt's own id; how much. Raises as :meth:`place`."""
        answer = await self._ask(wish)
        match answer.outcome:
            case pb.HOLD_OUTCOME_HELD:
                return int(answer.amount_nano_usd)
            case pb.HOLD_OUTCOME_NOT_NEEDED:
                return 0
            case pb.HOLD_OUTCOME_REFUSED:
                refusal = exhausted(answer.refusal, self._clock.now().timestamp())
                if not answer.refusal.retry_after_ms:
                    self._remember(payer_key(wish.payer), wish, refusal)
                raise refusal
            case _:
                raise _unavailable("the usage service gave no clear answer.")

    async def raise_to(self, attempt_id: str, amount_nano_usd: int) -> int:
        """Sets more aside for an attempt under way; what is held now.

        Raises BUDGET_EXHAUSTED when there is no room, BUDGET_UNAVAILABLE.
        """
        one = pb.HoldRaise(
            attempt_id=attempt_id,
            amount_nano_usd=amount_nano_usd,
            amount_least_nano_usd=amount_nano_usd,
        )
        request = pb.RaiseHoldsRequest(
            holder=self._epoch.holder, epoch=self._epoch.number(), raises=[one]
        )
        (answer,) = (await self._call(self._stub.RaiseHolds, request)).answers
        if answer.outcome == pb.HOLD_OUTCOME_REFUSED:
            raise exhausted(answer.refusal, self._clock.now().timestamp())
        return int(answer.amount_nano_usd)

    def void(self, wish: Wish, slice_id: str = "") -> None:
        """Nothing was sent: gives the hold back. One of a slice only in the turn of its taking."""
        if slice_id:
            self._slices.give_back(payer_key(wish.payer), slice_id, wish.amount_nano_usd)
            return
        self._voids[wish.attempt_id] = None
        self._voiding.set()

    def _check_broke(self, key: PayerKey, wish: Wish, now_s: float) -> None:
        known = self._broke.get(key)
        if known is None:
            return
        until_s, asked, refusal = known
        if now_s >= until_s:
            del self._broke[key]
        elif wish.least_nano_usd >= asked:
            again = GatewayError.from_proto(refusal.to_proto())
            raise again

    def _remember(self, key: PayerKey, wish: Wish, refusal: GatewayError) -> None:
        until_s = self._clock.monotonic() + BROKE_S
        self._broke[key] = (until_s, wish.least_nano_usd, refusal)
        if len(self._broke) > BROKE_MAX:
            self._broke.popitem(last=False)

    async def _ask(self, wish: Wish) -> pb.HoldAnswer:
        if len(self._queue) >= QUEUE_MAX:
            raise GatewayError(
                error_pb2.ERROR_REASON_OVERLOADED,
                "Too many calls wait for their budgets. Try again in a moment.",
                retry_after_ms=1000,
            )
        loop = asyncio.get_running_loop()
        asked = _Asked(wish, loop.create_future())
        self._queue.append(asked)
        if self._asking is None:
            self._asking = loop.create_task(self._ask_all())
            self._asking.add_done_callback(_report)
        try:
            return await asked.answer
        except asyncio.CancelledError:
            if asked in self._queue:
                self._queue.remove(asked)
            else:
                # It is on its way, or there: nobody will use it.
                self.void(wish)
            raise

    async def _ask_all(self) -> None:
        """Asks for what waits, a batch at a time, until nothing does."""
        try:
            while self._queue:
                batch, self._queue = self._queue[:BATCH_MAX], self._queue[BATCH_MAX:]
                await self._ask_batch(batch)
        finally:
            self._asking = None

    async def _ask_batch(self, batch: Sequence[_Asked]) -> None:
        self._failpoints.hit(Failpoint.HOLD_ASKED)
        try:
            request = pb.PlaceHoldsRequest(
                holder=self._epoch.holder,
                epoch=self._epoch.number(),
                holds=[_request(asked.wish) for asked in batch],
            )
            answers = (
                await self._answered(self._stream.place(request, timeout_s=TIMEOUT_S))
            ).answers
        except GatewayError as error:
            for asked in batch:
                # Whether it was placed is not known.
                self.void(asked.wish)
                if not asked.answer.done():
                    asked.answer.set_exception(GatewayError.from_proto(error.to_proto()))
            return
        self._failpoints.hit(Failpoint.HOLD_ANSWERED)
        for asked, answer in zip(batch, answers, strict=True):
            if not asked.answer.done():
                asked.answer.set_result(answer)

    def _want_slice(self, key: PayerKey, wish: Wish) -> None:
        amount = self._slices.wanted(key, wish.amount_nano_usd, self._clock.monotonic())
        if amount:
            self._later(self._take_slice(key, wish, amount))

    async def _take_slice(self, key: PayerKey, wish: Wish, amount: int) -> None:
        slice_id = uuid7(int(self._clock.now().timestamp() * 1000), self._entropy)
        asked_s = self._clock.monotonic()
        request = pb.TakeSliceRequest(
            holder=self._epoch.holder,
            epoch=self._epoch.number(),
            slice_id=slice_id,
            payer=wish.payer,
            amount_nano_usd=amount,
            amount_least_nano_usd=amount // slices.CALLS * slices.CALLS_LEAST,
            lease_ms=int(slices.LEASE_S * 1000),
        )
        try:
            answer = (await self._call(self._stub.TakeSlice, request)).answer
        except GatewayError:
            # Perhaps it was given: then it goes back, whole.
            self._slices.refused(key, self._clock.monotonic())
            await self._return_until_known(
                Slice(id=slice_id, left_nano_usd=amount, good_until_s=0, used_s=0)
            )
            return
        now_s = self._clock.monotonic()
        if answer.outcome != pb.HOLD_OUTCOME_HELD:
            self._slices.refused(key, now_s)
            return
        good_s = slices.LEASE_S
        if answer.HasField("period_ends_at"):
            left_s = answer.period_ends_at.ToMicroseconds() / 1e6 - self._clock.now().timestamp()
            good_s = min(good_s, left_s)
        given = Slice(
            id=slice_id,
            left_nano_usd=answer.amount_nano_usd,
            good_until_s=asked_s + good_s - slices.MARGIN_S,
            used_s=now_s,
        )
        self._slices.put(key, given)

    async def _tend(self) -> None:
        while True:
            await self._clock.sleep(TEND_S)
            # In a task of its own: what is on its way back must not be lost when this one ends.
            self._later(self._return_slices())

    async def _return_slices(self) -> None:
        done = self._slices.returnable(self._clock.monotonic())
        await asyncio.gather(*map(self._return_until_known, done))

    async def _return_until_known(self, done: Slice) -> None:
        """Tells usage what is left of a slice; its lease ends the matter when usage stays away."""
        until_s = self._clock.monotonic() + slices.LEASE_S
        pause_s = _BACKOFF_S_MIN
        while self._clock.monotonic() < until_s:
            request = pb.ReturnSliceRequest(
                holder=self._epoch.holder,
                epoch=self._epoch.number(),
                slice_id=done.id,
                amount_nano_usd=done.left_nano_usd,
            )
            try:
                await self._call(self._stub.ReturnSlice, request)
            except GatewayError:
                await self._clock.sleep(pause_s)
                pause_s = min(2 * pause_s, _BACKOFF_S_MAX)
            else:
                return

    async def _void_all(self) -> None:
        """Gives back what is held for nothing, until usage has said so."""
        pause_s = _BACKOFF_S_MIN
        while True:
            await self._voiding.wait()
            self._voiding.clear()
            while self._voids:
                batch = list(self._voids)[:BATCH_MAX]
                try:
                    request = pb.VoidHoldsRequest(
                        holder=self._epoch.holder,
                        epoch=self._epoch.number(),
                        attempt_ids=batch,
                    )
                    await self._call(self._stub.VoidHolds, request)
                except GatewayError:
                    await self._clock.sleep(pause_s)
                    pause_s = min(2 * pause_s, _BACKOFF_S_MAX)
                    continue
                pause_s = _BACKOFF_S_MIN
                for attempt_id in batch:
                    self._voids.pop(attempt_id, None)

    async def _call(self, method: Any, request: Any) -> Any:
        """One question. Raises BUDGET_UNAVAILABLE for whatever goes wrong with it."""
        return await self._answered(
            unary(
                method,
                request,
                timeout_s=TIMEOUT_S,
                away=error_pb2.ERROR_REASON_BUDGET_UNAVAILABLE,
            )
        )

    async def _answered(self, asking: Awaitable[T]) -> T:
        try:
            return await asking
        except GatewayError as error:
            if error.reason == error_pb2.ERROR_REASON_CONFLICT:
                self._epoch.fenced()
            raise _unavailable("the usage service does not answer.") from error

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_report)


def payer_key(payer: pb.Payer) -> PayerKey:
    """Whose budgets a call counts on, as a key."""
    return (
        payer.organization_id,
        payer.project_id,
        payer.key_id,
        payer.customer,
        payer.feature,
        payer.run,
    )


def exhausted(refusal: error_pb2.BudgetRefusal, now_unix_s: float) -> GatewayError:
    """A budget has no room: which, how it stands, and when it begins anew."""
    when, wait_ms = "", refusal.retry_after_ms
    if refusal.HasField("resets_at"):
        when = f" It begins anew at {refusal.resets_at.ToJsonString()}."
        wait_ms = wait_ms or max(int(refusal.resets_at.ToMilliseconds() - now_unix_s * 1000), 1)
    error = GatewayError(
        error_pb2.ERROR_REASON_BUDGET_EXHAUSTED,
        f"The budget of {refusal.account} has no room for this call: its limit is"
        f" {usd(refusal.limit_nano_usd)} USD, {usd(refusal.spent_nano_usd)} are spent,"
        f" {usd(refusal.held_nano_usd)} are set aside for calls under way, and"
        f" {usd(refusal.asked_nano_usd)} were asked for.{when}",
        retry_after_ms=wait_ms,
    )
    error.budget = refusal
    return error


def _request(wish: Wish) -> pb.HoldRequest:
    return pb.HoldRequest(
        attempt_id=wish.attempt_id,
        request_id=wish.request_id,
        payer=wish.payer,
        amount_nano_usd=wish.amount_nano_usd,
        amount_least_nano_usd=wish.least_nano_usd,
        lease_ms=wish.lease_ms,
    )


def _unavailable(why: str) -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_BUDGET_UNAVAILABLE,
        f"The budget of this call cannot be checked: {why}",
        retry_after_ms=1000,
    )


def _report(task: "asyncio.Task[None]") -> None:
    """Nothing here ends by a failure of usage; anything else is a defect."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _LOG.critical("holds are no longer kept", exc_info=error)
