"""One attempt's record, from dispatch to the final figures. Pure: the caller brings the times."""

from dataclasses import dataclass
from typing import Final, Protocol, cast

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from onegate.common.v1.token_usage_pb2 import TokenUsage
from onegate.router.v1 import chat_pb2
from onegate.usage.v1 import price_pb2, usage_record_pb2
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.errors import GatewayError
from runtime.money import Tariff
from services.router.limits import bounds
from services.router.limits.bounds import BYTES_PER_TOKEN
from services.router.models.catalog import Deployment
from services.router.providers.base import Cost
from services.router.routing.data_rules import FREE, CallData, DataHandling

ENDPOINT: Final = "chat.completions"
"""The API of every record that is made here."""
PROGRESS_BYTES: Final = 256 * BYTES_PER_TOKEN
"""After so many more bytes of output the journal learns how far an attempt got."""
PROGRESS_S: Final = 1.0
"""After so much time it learns it too."""

_UNKNOWN_FATE: Final = frozenset(
    {
        error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL,
        error_pb2.ERROR_REASON_UPSTREAM_TOO_LARGE,
        error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT,
        error_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
        error_pb2.ERROR_REASON_DRAINING,
        error_pb2.ERROR_REASON_INTERNAL,
    }
)
"""Failures of an answer that had begun well, after which nobody knows what the provider did."""
_REFUSALS: Final = 300
_MICRO: Final = 1_000_000
_NANO: Final = 1_000_000_000


class Progress(Protocol):
    """How far an answer got: what a whole answer and a stream have in common."""

    usage: TokenUsage | None
    finish_reason: str
    upstream_id: str
    output_bytes: int


@dataclass(slots=True)
class NoProgress:
    """Nothing came."""

    usage: TokenUsage | None = None
    finish_reason: str = ""
    upstream_id: str = ""
    output_bytes: int = 0


class Terms:
    """What is settled for a key and a model before any call: who pays, for what, at which price,
    and what holds for the data.

    Attributes:
        deployment: what serves.
        sheet: its price; ``None`` when nothing is charged.
        cost: what a usage costs at it.
        record: what all records have in common, serialised.
    """

    __slots__ = ("cost", "deployment", "record", "sheet")

    def __init__(
        self,
        grant: grant_pb2.Grant,
        model_requested: str,
        deployment: Deployment,
        sheet: price_pb2.PriceSheet | None,
        data: CallData = FREE,
    ) -> None:
        self.deployment = deployment
        self.sheet = sheet
        self.cost: Cost = _nothing if sheet is None else Tariff(sheet)
        self.record = UsageRecord(
            key_id=grant.key_id,
            project_id=grant.project_id,
            organization_id=grant.organization_id,
            model_requested=model_requested,
            model=deployment.id,
            provider=deployment.provider,
            endpoint=ENDPOINT,
            price_version=sheet.version if sheet is not None else "",
            price_model=_priced_as(deployment) if sheet is not None else "",
            data=None if data is FREE else _proof(data, deployment.data),
        ).SerializeToString()


def _priced_as(deployment: Deployment) -> str:
    """The name at which its price is found; empty where that is its id."""
    return "" if deployment.price_name == deployment.id else deployment.price_name


class Caller:
    """Whom all attempts of one call belong to, and what they have in common."""

    __slots__ = ("input_tokens_guess", "record", "request")

    def __init__(
        self, grant: grant_pb2.Grant, request: chat_pb2.ChatRequest, request_id: str
    ) -> None:
        self.request = request
        self.input_tokens_guess = bounds.input_tokens_guess(request)
        self.record = UsageRecord(request_id=request_id, stream=request.stream)
        """What the records of all attempts say of the call."""
        context = request.context
        # The call's word wins over the key's, its own tags over its metadata.
        for tags in (grant.tags, request.metadata, context.tags):
            if tags:
                self.record.tags.update(tags)
        end_user = request.end_user or request.safety_identifier
        customer, feature, run = context.customer, context.feature, context.run
        if end_user or customer or feature or run:
            self.record.attribution.end_user = end_user
            self.record.attribution.customer = customer
            self.record.attribution.feature = feature
            self.record.attribution.run = run


class Attempt:
    """One provider call, its price pinned. Finished exactly once, whatever happens.

    Its record is kept in two serialised parts, which make one message when they are put behind
    each other (https://protobuf.dev/programming-guides/encoding/#last-one-wins): who and what,
    known from the start, and the figures. So nothing is written twice, and no message with 25
    fields is built on the way.
    """

    __slots__ = (
        "_caller",
        "_figures",
        "_started_s",
        "_who",
        "attempt_id",
        "broke_off",
        "certainty",
        "cost",
        "cost_nano_usd",
        "credential",
        "deployment",
        "error_reason",
        "finished",
        "first_byte_s",
        "first_token_us",
        "outcome",
        "output_tokens_cap",
        "reservation",
        "terms",
        "tokens",
        "upstream_status",
    )

    def __init__(self, caller: Caller, terms: Terms) -> None:
        self._caller = caller
        self._started_s = 0.0
        self._who = b""
        self._figures = b""
        self.terms = terms
        self.deployment = terms.deployment
        self.cost: Cost = terms.cost
        self.attempt_id = ""
        self.credential = ""
        """Which of the provider's credentials it goes out with; empty where it has only one."""
        self.reservation: usage_record_pb2.Reservation | None = None
        """What is set aside for it; ``None`` when no budget counts it."""
        self.output_tokens_cap = 0
        """What is sent as the cap of each choice where the caller names none; 0 for nothing."""
        self.tokens = TokenUsage()
        self.cost_nano_usd = 0
        self.outcome = usage_record_pb2.OUTCOME_UNSPECIFIED
        self.certainty = usage_record_pb2.CERTAINTY_UNSPECIFIED
        self.error_reason = 0
        self.upstream_status = 0
        self.first_token_us = 0
        self.first_byte_s = 0.0
        self.broke_off = False
        self.finished = False

    @property
    def content(self) -> bytes:
        """The record, serialised."""
        return self._who + self._figures

    @property
    def record(self) -> UsageRecord:
        """The record, to be looked at."""
        return UsageRecord.FromString(self.content)

    def begin(self, attempt_id: str, number: int, now_unix_s: float, now_s: float) -> None:
        """The attempt is about to be sent: writes what the journal must know before.

        Args:
            attempt_id: a UUIDv7.
            number: from 1 within the call.
            now_unix_s: the wall clock.
            now_s: the monotonic clock.
        """
        self.attempt_id = attempt_id
        self._started_s = now_s
        caller = self._caller
        record = caller.record
        record.attempt_id = attempt_id
        record.attempt_number = number
        seconds = int(now_unix_s)
        started_at = record.started_at
        started_at.seconds = seconds
        started_at.nanos = int((now_unix_s - seconds) * _NANO)
        self._who = self.terms.record + record.SerializeToString()
        # What stands in if this process dies before it knows more.
        tokens = TokenUsage(input_tokens=caller.input_tokens_guess, estimated=True)
        if self.reservation is not None:
            self._add_unseen(tokens)
        cost_nano_usd = max(self.cost(tokens), self._set_aside())
        self._figures = UsageRecord(
            tokens=tokens,
            cost_nano_usd=cost_nano_usd,
            reservation=self.reservation,
            credential=self.credential,
        ).SerializeToString()

    def first_byte(self, status: int, now_s: float) -> None:
        """The provider has begun to answer, with this HTTP status."""
        self.upstream_status = status
        self.first_byte_s = now_s - self._started_s

    def first_token(self, now_s: float) -> None:
        """The first piece of content has come."""
        self.first_token_us = max(int((now_s - self._started_s) * _MICRO), 1)

    def elapsed_s(self, now_s: float) -> float:
        """How long it has been under way, in seconds."""
        return now_s - self._started_s

    def duration_ms(self, now_s: float) -> int:
        """How long it has been under way."""
        return int((now_s - self._started_s) * 1000)

    def so_far(self, progress: Progress) -> TokenUsage:
        """What has been consumed by now, as well as can be known in mid-stream.

        A usage that came before the end counts what was produced by then: what was seen to come
        since stands in for the rest.
        """
        guess = -(-progress.output_bytes // BYTES_PER_TOKEN)
        tokens = TokenUsage(estimated=True)
        if progress.usage is None or _is_absurd(progress.usage):
            tokens.input_tokens = self._caller.input_tokens_guess
            tokens.output_tokens = guess
        else:
            tokens.CopyFrom(progress.usage)
            tokens.estimated = True
            tokens.output_tokens = max(tokens.output_tokens, guess)
        return tokens

    def at_least(self, progress: Progress) -> TokenUsage:
        """What stands in for the figures if this process dies now. Where money is set aside, what
        may have been produced unseen is in it: a budget must not forget it.
        """
        tokens = self.so_far(progress)
        if self.reservation is not None:
            self._add_unseen(tokens)
        return tokens

    def _add_unseen(self, tokens: TokenUsage) -> None:
        unseen = PROGRESS_BYTES // BYTES_PER_TOKEN
        most = bounds.output_tokens_bound(self._caller.request, self.output_tokens_cap)
        tokens.output_tokens += unseen
        if most is not None:
            tokens.output_tokens = min(tokens.output_tokens, most)

    def overran(self) -> bool:
        """Whether the provider reported more than the call can have: the truth is posted, and
        somebody should look.
        """
        tokens = self.tokens
        return self.certainty == usage_record_pb2.CERTAINTY_REPORTED and bounds.exceeds(
            self._caller.request, tokens.input_tokens, tokens.output_tokens
        )

    def complete(self, progress: Progress, now_s: float) -> None:
        """The answer came whole."""
        usage = progress.usage
        if usage is None or _is_absurd(usage):
            usage = self.so_far(progress)
        self.outcome = usage_record_pb2.OUTCOME_COMPLETED
        self._finish(progress, usage, now_s)

    def fail(self, failure: GatewayError, progress: Progress, now_s: float) -> None:
        """The provider failed, refused, or broke off."""
        self.error_reason = failure.reason
        if progress.output_bytes:
            self.outcome = usage_record_pb2.OUTCOME_TRUNCATED
        else:
            self.outcome = usage_record_pb2.OUTCOME_FAILED
        if progress.output_bytes or progress.usage is not None:
            self._finish(progress, self.so_far(progress), now_s)
        elif _did_nothing(failure, self.upstream_status):
            self._finish(progress, TokenUsage(), now_s)
        else:
            self._finish_unseen(progress, now_s)

    def abandon(self, progress: Progress, now_s: float) -> None:
        """The caller left. Where money is set aside and nothing has come yet, what the provider
        did is not known: a budget must not forget it.
        """
        self.outcome = usage_record_pb2.OUTCOME_CANCELLED
        self.error_reason = error_pb2.ERROR_REASON_CANCELLED
        if self.reservation is None or progress.output_bytes or progress.usage is not None:
            self._finish(progress, self.so_far(progress), now_s)
        else:
            self._finish_unseen(progress, now_s)

    def _finish_unseen(self, progress: Progress, now_s: float) -> None:
        """It was sent, and nothing has come: the provider may have done all that was paid for."""
        self.certainty = usage_record_pb2.CERTAINTY_UNCERTAIN
        self._finish(progress, self.at_least(progress), now_s, self._set_aside())

    def _set_aside(self) -> int:
        """How much, in nano-USD."""
        return 0 if self.reservation is None else self.reservation.amount_nano_usd

    def _finish(
        self, progress: Progress, tokens: TokenUsage, now_s: float, least_nano_usd: int = 0
    ) -> None:
        self.tokens = tokens
        self.cost_nano_usd = max(self.cost(tokens), least_nano_usd)
        if not self.certainty:
            self.certainty = (
                usage_record_pb2.CERTAINTY_ESTIMATED
                if tokens.estimated
                else usage_record_pb2.CERTAINTY_REPORTED
            )
        self._figures = UsageRecord(
            duration_us=int((now_s - self._started_s) * _MICRO),
            first_token_us=self.first_token_us,
            outcome=self.outcome,
            error_reason=cast("error_pb2.ErrorReason.ValueType", self.error_reason),
            upstream_status=self.upstream_status,
            tokens=tokens,
            cost_nano_usd=self.cost_nano_usd,
            certainty=self.certainty,
            upstream_request_id=progress.upstream_id,
            finish_reason=progress.finish_reason,
            reservation=self.reservation,
            credential=self.credential,
        ).SerializeToString()
        self.finished = True


def _proof(data: CallData, handling: DataHandling) -> usage_record_pb2.DataProof:
    """Under what the call was let through, and what was known of the deployment then."""
    return usage_record_pb2.DataProof(
        policy_version=data.version,
        data_class=data.data_class,
        regions=handling.regions,
        retention_days=handling.retention_days,
        training=handling.training,
    )


def _did_nothing(failure: GatewayError, status: int) -> bool:
    """Whether the provider certainly billed nothing, given the HTTP status of its answer, or 0:
    it was not reached, refused by status, or reported an error itself before any content.
    """
    if failure.reason == error_pb2.ERROR_REASON_UPSTREAM_UNREACHABLE or status >= _REFUSALS:
        return True
    return status > 0 and failure.reason not in _UNKNOWN_FATE


def _is_absurd(usage: TokenUsage) -> bool:
    """A count below zero is no count."""
    return usage.input_tokens < 0 or usage.output_tokens < 0


def _nothing(_tokens: TokenUsage) -> int:
    return 0
