"""One attempt's record, from dispatch to the final figures. Pure: the caller brings the times."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2, token_usage_pb2
from onegate.router.v1 import chat_pb2
from onegate.usage.v1 import price_pb2, usage_record_pb2
from runtime.errors import GatewayError
from runtime.money import cost_nano_usd
from services.router import bounds
from services.router.bounds import BYTES_PER_TOKEN
from services.router.catalog import Deployment
from services.router.data_rules import FREE, CallData, DataHandling
from services.router.providers.base import Cost

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

    usage: token_usage_pb2.TokenUsage | None
    finish_reason: str
    upstream_id: str
    output_bytes: int


@dataclass(slots=True)
class NoProgress:
    """Nothing came."""

    usage: token_usage_pb2.TokenUsage | None = None
    finish_reason: str = ""
    upstream_id: str = ""
    output_bytes: int = 0


class Caller:
    """Whom all attempts of one call belong to, and what they have in common."""

    __slots__ = ("data", "grant", "input_tokens_guess", "request", "request_id", "tags")

    def __init__(
        self,
        grant: grant_pb2.Grant,
        request: chat_pb2.ChatRequest,
        request_id: str,
        data: CallData = FREE,
    ) -> None:
        self.data = data
        self.grant = grant
        self.request = request
        self.request_id = request_id
        self.input_tokens_guess = bounds.input_tokens_guess(request)
        # The call's word wins over the key's, its own tags over its metadata.
        self.tags: Mapping[str, str] = {
            **grant.tags,
            **request.metadata,
            **request.context.tags,
        }


class PinnedPrice:
    """What a usage costs at one sheet. The wire asks to tell the caller and the record asks again
    to bill: the second answer is remembered.
    """

    __slots__ = ("_cost_nano_usd", "_sheet", "_tokens")

    def __init__(self, sheet: price_pb2.PriceSheet) -> None:
        self._sheet = sheet
        self._tokens: bytes | None = None
        self._cost_nano_usd = 0

    def __call__(self, tokens: token_usage_pb2.TokenUsage) -> int:
        """In nano-USD."""
        said = tokens.SerializeToString()
        if said != self._tokens:
            self._tokens, self._cost_nano_usd = said, cost_nano_usd(self._sheet, tokens)
        return self._cost_nano_usd


class Attempt:
    """One provider call, its price pinned. Finished exactly once, whatever happens."""

    __slots__ = (
        "_caller",
        "_sheet",
        "_started_s",
        "broke_off",
        "cost",
        "deployment",
        "finished",
        "first_byte_s",
        "record",
    )

    def __init__(
        self,
        caller: Caller,
        deployment: Deployment,
        sheet: price_pb2.PriceSheet | None,
    ) -> None:
        self._caller = caller
        self._sheet = sheet
        self._started_s = 0.0
        self.deployment = deployment
        self.cost: Cost = _nothing if sheet is None else PinnedPrice(sheet)
        self.first_byte_s = 0.0
        self.broke_off = False
        self.finished = False
        self.record = usage_record_pb2.UsageRecord()

    def begin(self, attempt_id: str, number: int, now_unix_s: float, now_s: float) -> None:
        """The attempt is about to be sent: fills what the journal must know before.

        Args:
            attempt_id: a UUIDv7.
            number: from 1 within the call.
            now_unix_s: the wall clock.
            now_s: the monotonic clock.
        """
        self._started_s = now_s
        caller, deployment = self._caller, self.deployment
        grant, request, context = caller.grant, caller.request, caller.request.context
        record = self.record = usage_record_pb2.UsageRecord(
            attempt_id=attempt_id,
            request_id=caller.request_id,
            attempt_number=number,
            key_id=grant.key_id,
            project_id=grant.project_id,
            organization_id=grant.organization_id,
            model_requested=request.model,
            model=deployment.id,
            provider=deployment.provider,
            endpoint=ENDPOINT,
            stream=request.stream,
            price_version=self._sheet.version if self._sheet is not None else "",
        )
        # What stands in if this process dies before it knows more.
        record.tokens.input_tokens = caller.input_tokens_guess
        record.tokens.estimated = True
        record.cost_nano_usd = self.cost(record.tokens)
        seconds = int(now_unix_s)
        record.started_at.seconds = seconds
        record.started_at.nanos = int((now_unix_s - seconds) * _NANO)
        if caller.data is not FREE:
            record.data.CopyFrom(_proof(caller.data, deployment.data))
        if caller.tags:
            record.tags.update(caller.tags)
        end_user = request.end_user or request.safety_identifier
        if end_user or context.customer or context.feature or context.run:
            record.attribution.end_user = end_user
            record.attribution.customer = context.customer
            record.attribution.feature = context.feature
            record.attribution.run = context.run

    def first_byte(self, status: int, now_s: float) -> None:
        """The provider has begun to answer, with this HTTP status."""
        self.record.upstream_status = status
        self.first_byte_s = now_s - self._started_s

    def first_token(self, now_s: float) -> None:
        """The first piece of content has come."""
        self.record.first_token_us = max(int((now_s - self._started_s) * _MICRO), 1)

    def duration_ms(self, now_s: float) -> int:
        """How long it has been under way."""
        return int((now_s - self._started_s) * 1000)

    def so_far(self, progress: Progress) -> token_usage_pb2.TokenUsage:
        """What has been consumed by now, as well as can be known in mid-stream.

        A usage that came before the end counts what was produced by then: what was seen to come
        since stands in for the rest.
        """
        guess = -(-progress.output_bytes // BYTES_PER_TOKEN)
        tokens = token_usage_pb2.TokenUsage(estimated=True)
        if progress.usage is None or _is_absurd(progress.usage):
            tokens.input_tokens = self._caller.input_tokens_guess
            tokens.output_tokens = guess
        else:
            tokens.CopyFrom(progress.usage)
            tokens.estimated = True
            tokens.output_tokens = max(tokens.output_tokens, guess)
        return tokens

    def overran(self) -> bool:
        """Whether the provider reported more than the call can have: the truth is posted, and
        somebody should look.
        """
        tokens = self.record.tokens
        return not tokens.estimated and bounds.exceeds(
            self._caller.request, tokens.input_tokens, tokens.output_tokens
        )

    def complete(self, progress: Progress, now_s: float) -> None:
        """The answer came whole."""
        usage = progress.usage
        if usage is None or _is_absurd(usage):
            usage = self.so_far(progress)
        self.record.outcome = usage_record_pb2.OUTCOME_COMPLETED
        self._finish(progress, usage, now_s)

    def fail(self, failure: GatewayError, progress: Progress, now_s: float) -> None:
        """The provider failed, refused, or broke off."""
        record = self.record
        record.error_reason = failure.reason
        if progress.output_bytes:
            record.outcome = usage_record_pb2.OUTCOME_TRUNCATED
        else:
            record.outcome = usage_record_pb2.OUTCOME_FAILED
        if progress.output_bytes or progress.usage is not None:
            self._finish(progress, self.so_far(progress), now_s)
        elif _did_nothing(failure, record.upstream_status):
            self._finish(progress, token_usage_pb2.TokenUsage(), now_s)
        else:
            self._finish(progress, self.so_far(progress), now_s)
            record.certainty = usage_record_pb2.CERTAINTY_UNCERTAIN

    def abandon(self, progress: Progress, now_s: float) -> None:
        """The caller left."""
        self.record.outcome = usage_record_pb2.OUTCOME_CANCELLED
        self.record.error_reason = error_pb2.ERROR_REASON_CANCELLED
        self._finish(progress, self.so_far(progress), now_s)

    def _finish(self, progress: Progress, tokens: token_usage_pb2.TokenUsage, now_s: float) -> None:
        record = self.record
        record.tokens.CopyFrom(tokens)
        record.cost_nano_usd = self.cost(tokens)
        record.certainty = (
            usage_record_pb2.CERTAINTY_ESTIMATED
            if tokens.estimated
            else usage_record_pb2.CERTAINTY_REPORTED
        )
        record.duration_us = int((now_s - self._started_s) * _MICRO)
        record.finish_reason = progress.finish_reason
        record.upstream_request_id = progress.upstream_id
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


def _is_absurd(usage: token_usage_pb2.TokenUsage) -> bool:
    """A count below zero is no count."""
    return usage.input_tokens < 0 or usage.output_tokens < 0


def _nothing(_tokens: token_usage_pb2.TokenUsage) -> int:
    return 0
