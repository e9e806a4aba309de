"""One provider call: journalled, sent, passed on as it comes, settled exactly once.

Settling never waits, so that no way of ending the task, a caller's cancel or the process's own
shutdown included, can lose what was consumed.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime import refusals
from runtime.calls import ServerCall
from runtime.clock import uuid7
from runtime.errors import GatewayError
from runtime.failpoints import Failpoint
from runtime.sse import SseParser
from services.router.credentials.access import Way
from services.router.forwarding import Forwarder, Notes
from services.router.limits.windows import Ticket
from services.router.money.purse import Hold
from services.router.money.settlement import Attempt, NoProgress, Progress
from services.router.parts import Parts, Provider
from services.router.providers.base import Exchange, Framing, Stream, UpstreamRequest
from services.router.retries import is_its_fault
from services.router.routing.planning import Plan
from services.router.routing.rate_headers import LIKE, used_up_s
from services.router.upstream.client import UpstreamResponse
from services.router.upstream.jobs import JobAnswer, JobPlace, JobWire
from services.router.upstream.watchdog import Watch
from services.router.wire_format import repeated

HELD_EVENTS_MAX: Final = 256
"""How many events are held back in the hope of another deployment before content has come."""
ERROR_BODY_BYTES_MAX: Final = 64 * 1024
"""How much of a provider's error is read."""

_REFUSALS: Final = 300
_EVENT_STREAM: Final = "text/event-stream"
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Line:
    """What the attempts of one call share: the caller, its deadline, and how far it got."""

    call: ServerCall
    watch: Watch
    began_unix_s: float
    began_s: float
    deadline_s: float
    ticket: Ticket
    attempts: list[error_pb2.AttemptSummary] = field(default_factory=list)
    shown: bool = False
    """The caller has seen a piece of an answer: no other attempt can follow."""
    tokens_used: int = 0
    cost_nano_usd: int = 0
    sending: bool = False
    first_token_s: float = 0.0
    """How long a stream's first content may take; 0 for what the router allows anyway."""
    stall_s: float = 0.0
    """How long a stream may pause; 0 for what the router allows anyway."""
    route: str = ""
    """Which route chose the deployment, and by what; empty when the caller did."""
    samples: bool = False
    """Times to first tokens are kept, for a route that hedges."""
    beside: int = 0
    """How many other attempts of the call are under way."""

    def follow(self, plan: Plan) -> None:
        """The call takes a route, which has deadlines of its own."""
        self.route = plan.said
        if plan.route is not None:
            self.first_token_s = plan.route.first_token_timeout_s
            self.stall_s = plan.route.stall_timeout_s
            self.samples = plan.route.hedge

    def claim(self) -> bool:
        """Whether the attempt may show its answer: always, unless another one is beside it."""
        self.shown = True
        return True

    def allow(self, seconds: float, now_s: float) -> None:
        """The next wait may last so long, within the call's own deadline."""
        self.watch.deadline_s = min(now_s + seconds, self.deadline_s)

    async def send(self, events: list[chat_pb2.ChatEvent]) -> None:
        """Events that were ready together, as one message; they are gone from the list then."""
        self.sending = True
        # A ``ChatResponse``: nothing but events.
        payload = repeated([event.SerializeToString() for event in events])
        # A caller who does not read shall hold it once.
        events.clear()
        await self.call.send(payload)
        self.sending = False


class Prepared(NamedTuple):
    """An attempt that can be sent."""

    attempt: Attempt
    provider: Provider
    way: Way
    exchange: Exchange
    outgoing: UpstreamRequest
    hold: Hold | None = None


class ProviderCall:
    """One attempt under way."""

    def __init__(self, parts: Parts, line: Line, prepared: Prepared) -> None:
        self._parts = parts
        self._line = line
        self._attempt = prepared.attempt
        self._provider = prepared.provider
        self._way = prepared.way
        self._exchange = prepared.exchange
        self._outgoing = prepared.outgoing
        self._hold = prepared.hold
        self._seated = prepared.way.seat.id != prepared.attempt.deployment.id
        """Whether it goes out with one of several credentials."""
        self._progress: Progress = NoProgress()

    async def run(self) -> None:
        """Makes the call and passes the answer on. Raises how it failed, once it is settled.

        Raises JOURNAL_FULL when nothing may be sent.
        """
        parts, line, attempt = self._parts, self._line, self._attempt
        now_s = parts.clock.monotonic()
        now_unix_s = line.began_unix_s + (now_s - line.began_s)
        hold = self._hold
        if hold is None:
            attempt_id = uuid7(int(now_unix_s * 1000), parts.entropy)
        else:
            attempt_id, attempt.reservation = hold.attempt_id, hold.reservation
            attempt.output_tokens_cap = hold.output_tokens_cap
        attempt.begin(attempt_id, len(line.attempts) + 1 + line.beside, now_unix_s, now_s)
        try:
            parts.journal.dispatched(attempt_id, attempt.content)
        except GatewayError:
            if hold is not None:
                hold.release()
            raise
        parts.failpoints.hit(Failpoint.JOURNALLED)
        settings = parts.settings
        stream = self._exchange.request.stream
        begin_s = line.first_token_s or settings.first_byte_timeout_s
        line.allow(begin_s if stream else settings.answer_timeout_s, now_s)
        response: UpstreamResponse | JobAnswer | None = None
        seen = seat = parts.observed.of(attempt.deployment.id)
        seen.begin(now_s)
        if self._seated:
            seat = parts.observed.of(self._way.seat.id)
            seat.begin(now_s)
        try:
            if self._provider.jobs is None:
                response = await parts.upstream.open(self._way.target, self._outgoing)
            else:
                response = await self._job(self._provider.jobs, now_s)
            await self._receive(response)
        except BaseException as error:
            failure = self._meaning(error)
            self._failed(failure)
            if failure is None or not isinstance(error, asyncio.CancelledError):
                raise
            raise failure from None
        finally:
            seen.end()
            if seat is not seen:
                seat.end()
            if response is not None:
                response.close()

    async def _job(self, wire: JobWire, now_s: float) -> JobAnswer:
        """The answer of a vendor that answers with jobs."""
        return await self._parts.jobs.open(
            JobPlace(self._way.target, wire),
            self._outgoing,
            stream=self._exchange.request.stream,
            within_s=self._line.deadline_s - now_s,
        )

    async def _receive(self, response: UpstreamResponse | JobAnswer) -> None:
        attempt, wire = self._attempt, self._provider.wire
        parts = self._parts
        now_s = parts.clock.monotonic()
        attempt.first_byte(response.status, now_s)
        if self._line.route or self._seated:
            # Only where there is something to choose from.
            said = response.headers_like(LIKE)
            if said:
                wait_s = used_up_s(said, response.header("date"))
                parts.observed.of(self._way.seat.id).limited(wait_s, now_s)
        if response.status >= _REFUSALS:
            body = await response.start(ERROR_BODY_BYTES_MAX)
            raise wire.error(response.status, response.headers, body)
        if self._exchange.request.stream:
            stream = wire.stream(self._exchange)
            self._progress = stream
            # Until content comes, an end of any kind is a breaking off.
            kind = response.header("content-type").partition(";")[0].strip().lower()
            attempt.broke_off = kind == _EVENT_STREAM
            await self._pass_on(response, stream)
        else:
            self._parts.failpoints.hit(Failpoint.MID_ANSWER)
            body = await response.read(self._parts.settings.answer_bytes_max)
            answer = wire.response(self._exchange, body)
            self._parts.failpoints.hit(Failpoint.USAGE_SEEN)
            response.finish()
            now_s = self._parts.clock.monotonic()
            attempt.first_token(now_s)
            self._completed(answer, now_s)
            if not self._line.claim():
                return
            self._line.allow(self._parts.settings.stall_timeout_s, now_s)
            await self._line.send([self._served(), answer.event, self._metered()])

    async def _pass_on(self, response: UpstreamResponse | JobAnswer, stream: Stream) -> None:
        """Passes on what comes, as it comes; all that one read yields goes in one message.

        Nothing is shown before the first piece of content, so that until then another deployment
        can take over unseen.
        """
        clock, line = self._parts.clock, self._line
        stall_s = line.stall_s or self._parts.settings.stall_timeout_s
        parser, notes = (
            stream.framing(),
            Notes(self._parts.journal, self._attempt, clock.monotonic()),
        )
        taker = self._taker(stream, parser, notes, stall_s)
        held: list[chat_pb2.ChatEvent] = []
        done = False
        while not done:
            if line.shown or not line.first_token_s:
                line.allow(stall_s, clock.monotonic())
            data = await response.chunk(taker if line.shown else None)
            events = stream.feed(parser.feed(data) if data else parser.end())
            if not (data or stream.done):
                events += stream.end()
            done = stream.done or not data
            del data
            now_s = clock.monotonic()
            if not line.shown:
                held += events
                if not (stream.started or done or len(held) > HELD_EVENTS_MAX):
                    continue
                self._attempt.first_token(now_s)
                if not line.claim():
                    raise _lost()
                events = [self._served(), *held]
                held.clear()
            if done:
                self._parts.failpoints.hit(Failpoint.USAGE_SEEN)
                response.finish()
                self._completed(stream, now_s)
                events.append(self._metered())
            elif notes.take(stream, now_s):
                self._parts.failpoints.hit(Failpoint.MID_ANSWER)
                if self._hold is not None:
                    await self._hold.cover(notes.cost_nano_usd)
            if events:
                line.allow(stall_s, now_s)
                await line.send(events)

    def _taker(
        self, stream: Stream, parser: Framing, notes: Notes, stall_s: float
    ) -> Callable[[bytes], bool] | None:
        """What may take a chunk without this task; ``None`` where bytes are not forwarded."""
        if not (self._exchange.native and isinstance(parser, SseParser)):
            return None
        line = self._line
        return Forwarder(
            call=line.call,
            watch=line.watch,
            deadline_s=line.deadline_s,
            stall_s=stall_s,
            stream=stream,
            parser=parser,
            notes=notes,
            monotonic=self._parts.clock.monotonic,
        ).take

    def _served(self) -> chat_pb2.ChatEvent:
        line, attempt = self._line, self._attempt
        return chat_pb2.ChatEvent(
            served=chat_pb2.Served(
                model=attempt.deployment.id,
                attempts=len(line.attempts) + 1 + line.beside,
                upstream_us=int(attempt.first_byte_s * 1_000_000),
                requests=line.ticket.requests,
                tokens=line.ticket.tokens,
                route=line.route,
            )
        )

    def _metered(self) -> chat_pb2.ChatEvent:
        attempt, exchange = self._attempt, self._exchange
        unsaid = exchange.native and exchange.request.stream_usage and self._progress.usage is None
        return chat_pb2.ChatEvent(
            metered=chat_pb2.Metered(
                tokens=attempt.tokens, cost_nano_usd=attempt.cost_nano_usd, usage_missing=unsaid
            )
        )

    def _meaning(self, error: BaseException) -> GatewayError | None:
        """What ended the attempt; ``None`` when the caller left."""
        if isinstance(error, GatewayError):
            return error
        if not isinstance(error, asyncio.CancelledError | GeneratorExit):
            return refusals.internal()
        if not self._line.watch.caught():
            return None
        if self._line.sending:
            return GatewayError(
                error_pb2.ERROR_REASON_CANCELLED, "The caller stopped reading; the call was ended."
            )
        if self._parts.clock.monotonic() >= self._line.deadline_s:
            return refusals.expired()
        return GatewayError(
            error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT,
            "The provider stalled in mid-answer."
            if self._progress.output_bytes
            else "The provider did not begin to answer in time.",
        )

    def _completed(self, progress: Progress, now_s: float) -> None:
        attempt = self._attempt
        attempt.complete(progress, now_s)
        self._settle()
        self._parts.health.restore(self._way.seat.provider, self._way.seat.id)
        first_s = attempt.first_token_us / 1_000_000
        streamed_s = attempt.elapsed_s(now_s) - first_s if self._exchange.request.stream else 0.0
        figures = first_s, attempt.tokens.output_tokens, streamed_s, now_s
        self._parts.observed.of(attempt.deployment.id).succeeded(*figures)
        if self._seated:
            self._parts.observed.of(self._way.seat.id).succeeded(*figures)
        if self._line.samples:
            self._parts.observed.of(attempt.deployment.id).sampled(
                first_s, stream=self._exchange.request.stream
            )

    def _failed(self, failure: GatewayError | None) -> None:
        """Settles, unless the attempt was complete and only its caller is not."""
        line, attempt = self._line, self._attempt
        now_s = self._parts.clock.monotonic()
        if failure is not None:
            line.attempts.append(
                error_pb2.AttemptSummary(
                    model=attempt.deployment.id,
                    reason=failure.reason,
                    upstream_status=failure.upstream_status,
                    duration_ms=attempt.duration_ms(now_s),
                )
            )
        if attempt.finished:
            return
        if failure is None or failure.reason == error_pb2.ERROR_REASON_CANCELLED:
            attempt.abandon(self._progress, now_s)
        else:
            attempt.fail(failure, self._progress, now_s)
            if is_its_fault(failure):
                if self._seated:
                    self._parts.observed.of(attempt.deployment.id).failed(now_s)
                self._parts.observed.failed(self._way.seat.id, now_s)
        self._settle()

    def _settle(self) -> None:
        """Hands the figures to journal and ledger, before anybody is told that it is over."""
        parts, line, attempt = self._parts, self._line, self._attempt
        tokens = attempt.tokens
        parts.failpoints.hit(Failpoint.FINAL_UNWRITTEN)
        parts.shipper.post(attempt.attempt_id, attempt.content)
        parts.failpoints.hit(Failpoint.FINAL_WRITTEN)
        line.tokens_used += tokens.input_tokens + tokens.output_tokens
        line.cost_nano_usd += attempt.cost_nano_usd
        parts.meters.attempt(attempt)
        if attempt.overran():
            parts.meters.overrun()
            _LOG.warning(
                "%s reported more tokens than the call can have: attempt %s, %d in, %d out",
                attempt.deployment.id,
                attempt.attempt_id,
                tokens.input_tokens,
                tokens.output_tokens,
            )


def _lost() -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_CANCELLED, "Another attempt of the call was quicker."
    )
