"""What one call sets aside before each of its attempts, where a budget counts it.

A strict budget has the most that the attempt can cost set aside, so that what is spent can never
exceed it. Where the caller names no cap of output, the router's own bounds it, and where there is
room for less, a lower one: the cap that was paid for is the cap that is sent upstream. An
estimating budget has set aside what the attempt will likely cost, and more while it runs.
"""

from dataclasses import dataclass, replace
from typing import Final

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2, token_usage_pb2
from onegate.router.v1 import chat_pb2
from onegate.usage.v1 import hold_service_pb2, price_pb2, usage_record_pb2
from runtime.clock import Clock, Entropy, uuid7
from runtime.errors import GatewayError
from runtime.money import cost_nano_usd
from services.router.limits import bounds
from services.router.money.budget_watch import BudgetWatch
from services.router.money.budgets import NO_HOLD, STRICT
from services.router.money.holds import Holds, Wish
from services.router.money.settlement import Terms

OUTPUT_TOKENS_LEAST: Final = 256
"""A cap that nobody asked for is not lower than this; below it the call is refused."""
TRIES_MAX: Final = 3
"""How often a call asks whose room lies in slices that are being called back."""
COVER: Final = 0.8
"""The part of what is set aside at which an estimating hold is raised."""
LEASE_MARGIN_S: Final = 60.0
"""How much longer than its attempt a hold may stand before it is posted as uncertain."""


class Hold:
    """Money that is set aside for one attempt.

    Attributes:
        attempt_id: the attempt that may be sent with it.
        output_tokens_cap: what must be sent upstream as the cap of each choice; 0 for what the
            request says.
        reservation: what the attempt's record says of it.
    """

    __slots__ = (
        "_holds",
        "_own_nano_usd",
        "_strict",
        "_wish",
        "attempt_id",
        "output_tokens_cap",
        "reservation",
    )

    def __init__(self, holds: Holds, wish: Wish, *, strict: bool) -> None:
        self._holds = holds
        self._strict = strict
        self._wish = wish
        self._own_nano_usd = 0
        self.attempt_id = wish.attempt_id
        self.output_tokens_cap = 0
        self.reservation = usage_record_pb2.Reservation()

    async def place(self) -> None:
        """Sets it aside. Raises BUDGET_EXHAUSTED, BUDGET_UNAVAILABLE, OVERLOADED."""
        reserved = await self._holds.place(self._wish)
        self.reservation.amount_nano_usd = reserved.amount_nano_usd
        if reserved.slice_id:
            self.reservation.slice_id = reserved.slice_id
            self.reservation.slice_amount_nano_usd = reserved.amount_nano_usd
        else:
            self._own_nano_usd = reserved.amount_nano_usd

    def release(self) -> None:
        """Nothing was sent. In the turn of the loop in which it was placed."""
        self._holds.void(self._wish, self.reservation.slice_id)

    async def cover(self, cost_nano_usd: int) -> None:
        """The attempt has cost so much by now: sets more aside where that is needed. Never under a
        strict budget: there it is bounded by the cap that was sent.

        Raises BUDGET_EXHAUSTED when there is no room for more. While usage is away the attempt
        goes on: what it costs is posted in any case.
        """
        held = self.reservation.amount_nano_usd
        if self._strict or cost_nano_usd <= held * COVER:
            return
        more = 2 * max(cost_nano_usd, held) - held
        try:
            if self._own_nano_usd:
                wanted = self._own_nano_usd + more
                own = await self._holds.raise_to(self.attempt_id, wanted)
            else:
                own = await self._holds.place_own(
                    replace(self._wish, amount_nano_usd=more, least_nano_usd=more)
                )
        except GatewayError as error:
            if error.reason == error_pb2.ERROR_REASON_BUDGET_EXHAUSTED:
                raise
        else:
            self.reservation.amount_nano_usd += own - self._own_nano_usd
            self._own_nano_usd = own


@dataclass(frozen=True, slots=True, kw_only=True)
class Purse:
    """One call's.

    Attributes:
        holds: where money is set aside.
        payer: who pays.
        strict: whether any of its budgets is strict.
        output_tokens_cap: of each choice, where nobody else names one.
    """

    holds: Holds
    payer: hold_service_pb2.Payer
    strict: bool
    output_tokens_cap: int
    clock: Clock
    entropy: Entropy

    async def reserve(
        self, request: chat_pb2.ChatRequest, request_id: str, terms: Terms, left_s: float
    ) -> Hold | None:
        """Sets aside what one attempt needs; ``None`` when it costs nothing, or when no budget
        counts it any more.

        Args:
            request: the call.
            request_id: its id.
            terms: what the attempt is made on.
            left_s: how long the attempt may take.

        Raises INVALID_REQUEST for a call that nothing bounds, BUDGET_EXHAUSTED,
        BUDGET_UNAVAILABLE and OVERLOADED.
        """
        if terms.sheet is None or terms.sheet.free:
            return None
        cap, amount, least = self._amounts(request, terms, terms.sheet)
        hold = await self._placed(request_id, (amount, least), left_s)
        held = hold.reservation.amount_nano_usd
        if amount and not held:
            return None
        if self.strict:
            hold.output_tokens_cap = cap
            if held < amount:
                window = terms.deployment.context_tokens_max
                most = bounds.output_tokens_for(request, terms.sheet, held, window)
                hold.output_tokens_cap = max(most, 1)
        return hold

    async def _placed(self, request_id: str, amounts: tuple[int, int], left_s: float) -> Hold:
        """A hold of what is wanted, or at least of what will do."""
        amount, least = amounts
        tries_left = TRIES_MAX
        while True:
            tries_left -= 1
            now_ms = int(self.clock.now().timestamp() * 1000)
            wish = Wish(
                attempt_id=uuid7(now_ms, self.entropy),
                request_id=request_id,
                payer=self.payer,
                amount_nano_usd=amount,
                least_nano_usd=least,
                lease_ms=int((left_s + LEASE_MARGIN_S) * 1000),
            )
            hold = Hold(self.holds, wish, strict=self.strict)
            try:
                await hold.place()
            except GatewayError as error:
                wait_ms = error.budget.retry_after_ms if error.budget is not None else 0
                if not (wait_ms and tries_left):
                    raise
                await self.clock.sleep(wait_ms / 1000)
            else:
                return hold

    def _amounts(
        self, request: chat_pb2.ChatRequest, terms: Terms, sheet: price_pb2.PriceSheet
    ) -> tuple[int, int, int]:
        """The cap to send, 0 for none; what to set aside; and the least that will do."""
        deployment = terms.deployment
        if not self.strict:
            tokens = token_usage_pb2.TokenUsage(
                input_tokens=bounds.input_tokens_guess(request),
                output_tokens=bounds.output_tokens_guess(request),
            )
            amount = cost_nano_usd(sheet, tokens)
            return 0, amount, amount
        if request.output_tokens_max:
            amount = _bound(request, terms, deployment.output_tokens_max)
            return 0, amount, amount
        model_max = deployment.output_tokens_max or self.output_tokens_cap
        cap = min(model_max, self.output_tokens_cap)
        amount = _bound(request, terms, cap)
        least = _bound(request, terms, min(cap, OUTPUT_TOKENS_LEAST))
        return cap, amount, least


class Purses:
    """Makes the purse of each call that budgets count.

    Args:
        watch: the budgets.
        holds: where money is set aside.
        ports: for attempts' ids and pauses.
        output_tokens_cap: of each choice under a strict budget, where nobody names one.
    """

    def __init__(
        self,
        watch: BudgetWatch,
        holds: Holds,
        ports: tuple[Clock, Entropy],
        output_tokens_cap: int,
    ) -> None:
        self._watch = watch
        self._holds = holds
        self._clock, self._entropy = ports
        self._output_tokens_cap = output_tokens_cap

    @property
    def ready(self) -> bool:
        """Whether the budgets have been heard since the start."""
        return self._watch.ready

    def of(self, grant: grant_pb2.Grant, request: chat_pb2.ChatRequest) -> Purse | None:
        """The purse of a call; ``None`` when no budget that refuses counts it."""
        budgets = self._watch.current
        if not budgets.concern(grant.organization_id):
            return None
        context = request.context
        payer = hold_service_pb2.Payer(
            organization_id=grant.organization_id,
            project_id=grant.project_id,
            key_id=grant.key_id,
            customer=context.customer,
            feature=context.feature,
            run=context.run,
        )
        mode = budgets.mode_of(payer)
        if mode == NO_HOLD:
            return None
        return Purse(
            holds=self._holds,
            payer=payer,
            strict=mode == STRICT,
            output_tokens_cap=self._output_tokens_cap,
            clock=self._clock,
            entropy=self._entropy,
        )


def _bound(request: chat_pb2.ChatRequest, terms: Terms, output_tokens_max: int) -> int:
    deployment = terms.deployment
    bound = bounds.cost_bound(
        request, terms.sheet, output_tokens_max, deployment.context_tokens_max
    )
    if bound is None:
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            f"Nothing bounds what this call to {deployment.id} can cost, and its budget is strict:"
            " web searches have no known number. Call it without them, or with another key.",
        )
    return bound
