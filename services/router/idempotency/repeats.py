"""Calls with an idempotency key: made once, answered as often as they come.

Usage says who is first, and keeps the answer sealed. The first call is made in a task of its own,
which its caller's leaving does not end; every caller, the first one too, reads the answer's log. A
call that fails leaves nothing behind: the next one with its key is a new call. When usage cannot
say who is first, the call is refused: nothing is made twice for want of an answer.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, Protocol

import grpc

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from onegate.usage.v1 import idempotency_service_pb2 as pb
from onegate.usage.v1 import idempotency_service_pb2_grpc
from runtime import refusals
from runtime.calls import ServerCall
from runtime.clock import Clock, Entropy, uuid7
from runtime.config import RouterSettings
from runtime.errors import GatewayError
from runtime.networks import is_inside
from runtime.rpc import unary
from services.router.idempotency.answer_log import (
    METADATA_KEY,
    AnswerLog,
    Recorded,
    Room,
    too_large,
)
from services.router.idempotency.answer_seal import AnswerCipher, AnswerSeal

TIMEOUT_S: Final = 2.0
"""How long usage may take for an answer."""
LEASE_MS: Final = 20_000
KEEP_S: Final = 5.0
"""How often usage hears which claims this router is at."""
SETTLED_CHECK_S: Final = 0.2
"""How often a starting router looks whether usage has taken what the last one left."""
AWAY_S: Final = 1.0
"""How long to wait before a usage that did not answer hears it again."""
CALLS_MAX: Final = 10_000
"""Calls with a key that one router is at: usage hears of all of them in one message."""
UNSURE_S: Final = 60.0
"""How long usage goes on hearing so after a claim whose fate is unknown."""
SHIP_S: Final = 0.1
"""How often usage gets what has come of an answer."""
SHIP_TRIES: Final = 30
"""How often the end of an answer is offered to a usage that is away."""
POLL_S: Final = 0.1
"""How often an answer that another router makes is looked for."""
ROOM_BYTES: Final = 256 * 1024 * 1024
"""Answers in memory, all together."""
PIECE_BYTES_MAX: Final = 1024 * 1024
"""Of an answer, in one piece; a longer message is one all the same."""

_LOG = logging.getLogger(__name__)

Run = Callable[[ServerCall], Awaitable[None]]


class RepeatJournal(Protocol):
    """What the journal knows of former lives. ``services/router/money/journal.py``."""

    @property
    def settled(self) -> bool:
        """Whether usage has taken all that they left."""
        ...


class Asked(NamedTuple):
    """One call with an idempotency key, and how it is made."""

    call: ServerCall
    request: chat_pb2.ChatRequest
    grant: grant_pb2.Grant
    request_id: str
    run: Run


class Repeats:
    """One router's calls with idempotency keys.

    Args:
        channel: to usage; the caller closes it.
        journal: of this router.
        settings: of this router.
        ports: clock, for leases and pauses; entropy, for ids.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        journal: RepeatJournal,
        settings: RouterSettings,
        ports: tuple[Clock, Entropy],
    ) -> None:
        self._stub = idempotency_service_pb2_grpc.IdempotencyServiceStub(channel)
        self._journal = journal
        self._settings = settings
        self._clock, self._entropy = ports
        self._life = self._uuid()
        self._logs: dict[str, AnswerLog] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._claims: set[str] = set()
        self._unsure_until_s = 0.0
        self._room = Room(ROOM_BYTES, settings.idempotency_answer_bytes_max)
        self._keeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to tell usage of this life."""
        self._keeping = asyncio.get_running_loop().create_task(self._keep())
        self._keeping.add_done_callback(_report)

    async def close(self) -> None:
        """Ends calls that nobody waits for any more; they are settled as far as they came."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    async def serve(self, api_key: str, asked: Asked) -> None:
        """Answers one call. Raises IDEMPOTENCY_MISMATCH, STORE_UNAVAILABLE when nobody can say
        whether it is the first, CONFLICT for an answer that was too large, and how the call failed.
        """
        call, request = asked.call, asked.request
        _check_address(asked.grant, request.context.client_address)
        key = request.context.idempotency_key or call.metadata.get(METADATA_KEY, "")
        seal = AnswerSeal(api_key, key)
        log = self._log_of(seal, seal.body(request), asked)
        limit_s = self._settings.call_timeout_s
        try:
            async with asyncio.timeout(min(call.timeout_s or limit_s, limit_s)):
                await log.tell(call, self._settings.stall_timeout_s)
        except TimeoutError:
            raise refusals.expired() from None
        finally:
            if call is log.owner:
                log.left()

    def _log_of(self, seal: AnswerSeal, body: bytes, asked: Asked) -> AnswerLog:
        """The answer's log; the call is begun or looked for where there is none."""
        log = self._logs.get(seal.id)
        if log is not None:
            if log.body != body:
                raise _mismatch()
            return log
        if len(self._logs) >= min(self._settings.calls_max, CALLS_MAX):
            raise refusals.overloaded()
        log = self._logs[seal.id] = AnswerLog(seal.id, body, asked.call, self._room)
        task = asyncio.get_running_loop().create_task(self._fill(log, seal, asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_report)
        return log

    async def _fill(self, log: AnswerLog, seal: AnswerSeal, asked: Asked) -> None:
        """Brings the answer into the log, from the provider or from usage."""
        failure: GatewayError | None = refusals.internal()
        try:
            claim = await self._claimed(log, seal, asked.request_id)
            cipher = seal.cipher(claim.claim_id)
            if claim.state == pb.CLAIM_STATE_FIRST:
                await self._make(log, cipher, claim.claim_id, asked)
            else:
                await self._fetch(log, cipher, claim.claim_id)
            failure = None
        except GatewayError as error:
            failure = error
        except asyncio.CancelledError:
            failure = refusals.draining()
            raise
        finally:
            if not log.ended:
                log.end(failure)
            self._forget(log)

    def _forget(self, log: AnswerLog) -> None:
        """Nobody else gets the log; who has it reads on."""
        if self._logs.get(log.claim) is log:
            del self._logs[log.claim]
            log.free()

    async def _claimed(
        self, log: AnswerLog, seal: AnswerSeal, request_id: str
    ) -> pb.ClaimAnswerResponse:
        """How usage says the call stands: FIRST, RUNNING or DONE. Raises why it cannot be
        answered.
        """
        claim_id = self._uuid()
        self._claims.add(claim_id)
        request = pb.ClaimAnswerRequest(
            id=seal.id,
            body=log.body,
            claim_id=claim_id,
            request_id=request_id,
            owner=self._settings.name,
            life=self._life,
            lease_ms=LEASE_MS,
            window_ms=int(self._settings.idempotency_window_s * 1000),
        )
        try:
            claim = await unary(self._stub.ClaimAnswer, request, timeout_s=TIMEOUT_S)
        except GatewayError as error:
            self._let_go(claim_id, sure=False)
            raise _unknown() from error
        except asyncio.CancelledError:
            self._let_go(claim_id, sure=False)
            raise
        if claim.state == pb.CLAIM_STATE_FIRST:
            return claim
        self._let_go(claim_id, sure=True)
        if claim.state == pb.CLAIM_STATE_MISMATCH:
            raise _mismatch()
        _check_readable(claim.state)
        return claim

    async def _make(
        self, log: AnswerLog, cipher: AnswerCipher, claim_id: str, asked: Asked
    ) -> None:
        """Makes the call, and gives usage what comes of it as it comes."""
        log.made_here = True
        repetition = chat_pb2.Repetition(
            request_id=asked.request_id, created_unix_s=int(self._clock.now().timestamp())
        )
        making = asyncio.ensure_future(asked.run(Recorded(log, asked.request, repetition)))
        shipment = _Shipment(self._stub, log, cipher, claim_id)
        try:
            while not making.done():
                await asyncio.wait((making,), timeout=SHIP_S)
                await shipment.send()
        except asyncio.CancelledError:
            making.cancel()
            await asyncio.wait((making,))
            await self._over(shipment, pb.CLAIM_STATE_GONE)
            raise
        failure = _failure_of(making)
        if failure is not None:
            end = pb.CLAIM_STATE_GONE
        else:
            end = pb.CLAIM_STATE_TOO_LARGE if log.too_large else pb.CLAIM_STATE_DONE
        await self._over(shipment, end)
        log.end(failure)
        if failure is not None:
            self._forget(log)
        tries = 1
        while not shipment.over and tries < SHIP_TRIES:
            tries += 1
            await self._clock.sleep(TIMEOUT_S)
            await shipment.send(end)
        self._let_go(claim_id, sure=shipment.over)

    async def _over(self, shipment: "_Shipment", end: pb.ClaimState.ValueType) -> None:
        """Usage hears the end before a caller does, unless it is away."""
        await shipment.send(end)
        if shipment.over:
            self._let_go(shipment.claim_id, sure=True)

    async def _fetch(self, log: AnswerLog, cipher: AnswerCipher, claim_id: str) -> None:
        """Reads the answer from usage until it is whole. Raises why it never will be."""
        sequence, failures = 0, 0
        while True:
            request = pb.ReadAnswerRequest(claim_id=claim_id, sequence=sequence)
            try:
                answer = await unary(self._stub.ReadAnswer, request, timeout_s=TIMEOUT_S)
            except GatewayError as error:
                failures += 1
                if failures >= SHIP_TRIES:
                    raise _unknown() from error
                await self._clock.sleep(POLL_S * failures)
                continue
            failures = 0
            _check_readable(answer.state)
            for chunk in answer.chunks:
                log.add(cipher.open(sequence, chunk))
                sequence += 1
                if log.too_large:
                    raise too_large()
            if sequence < answer.count:
                continue
            if answer.state == pb.CLAIM_STATE_DONE:
                return
            await self._clock.sleep(POLL_S)

    async def _keep(self) -> None:
        """Tells usage which claims this router is at, for as long as there are any."""
        told = away = False
        while True:
            settled = self._journal.settled
            due = self._claims or self._clock.monotonic() < self._unsure_until_s
            if due or (settled and not told):
                request = pb.KeepClaimsRequest(
                    owner=self._settings.name,
                    life=self._life,
                    claim_ids=sorted(self._claims),
                    lease_ms=LEASE_MS,
                    former_settled=settled,
                )
                try:
                    await unary(self._stub.KeepClaims, request, timeout_s=TIMEOUT_S)
                    told, away = told or settled, False
                except GatewayError as error:
                    if not away:
                        _LOG.warning("usage does not hear of claims: %s", error.message)
                    away = True
            await self._clock.sleep(AWAY_S if away else KEEP_S if told else SETTLED_CHECK_S)

    def _let_go(self, claim_id: str, *, sure: bool) -> None:
        """This router is not at the claim any more; when usage may not know, it is told."""
        self._claims.discard(claim_id)
        if not sure:
            self._unsure_until_s = self._clock.monotonic() + UNSURE_S

    def _uuid(self) -> str:
        return uuid7(int(self._clock.now().timestamp() * 1000), self._entropy)


class _Shipment:
    """One answer on its way to usage; what usage has not acknowledged is sent again as it was."""

    def __init__(
        self,
        stub: idempotency_service_pb2_grpc.IdempotencyServiceStub,
        log: AnswerLog,
        cipher: AnswerCipher,
        claim_id: str,
    ) -> None:
        self._stub = stub
        self._log = log
        self._cipher = cipher
        self.claim_id = claim_id
        self._at = 0
        self._sequence = 0
        self._pending: pb.AppendAnswerRequest | None = None
        self.over = False
        """Usage knows how it ended, or wants no more."""

    async def send(self, end: pb.ClaimState.ValueType = pb.CLAIM_STATE_UNSPECIFIED) -> None:
        """Sends what has come; with ``end``, everything."""
        while not self.over:
            if end in (pb.CLAIM_STATE_GONE, pb.CLAIM_STATE_TOO_LARGE):
                self._pending = pb.AppendAnswerRequest(claim_id=self.claim_id, end=end)
            elif self._pending is None:
                self._pending = self._next(end)
            if self._pending is None:
                return
            try:
                await unary(self._stub.AppendAnswer, self._pending, timeout_s=TIMEOUT_S)
            except GatewayError as error:
                self.over = error.reason == error_pb2.ERROR_REASON_CONFLICT
                _LOG.warning("an answer could not be kept: %s", error.message)
                return
            self.over = bool(self._pending.end)
            self._pending = None

    def _next(self, end: pb.ClaimState.ValueType) -> pb.AppendAnswerRequest | None:
        """The next piece, if there is one."""
        log = self._log
        if log.too_large:
            return None
        taken, size = self._at, 0
        while taken < len(log.messages) and size < PIECE_BYTES_MAX:
            size += len(log.messages[taken])
            taken += 1
        if taken == self._at and not end:
            return None
        # Messages hold nothing but repeated events: one after another they are one message.
        piece = b"".join(log.messages[self._at : taken])
        request = pb.AppendAnswerRequest(
            claim_id=self.claim_id,
            sequence=self._sequence,
            chunk=self._cipher.seal(self._sequence, piece) if piece else b"",
        )
        if taken == len(log.messages):
            request.end = end
        self._at = taken
        self._sequence += 1 if piece else 0
        return request


def _failure_of(making: "asyncio.Future[None]") -> GatewayError | None:
    """How a call ended that was made in a task of its own."""
    if making.cancelled():
        return refusals.draining()
    error = making.exception()
    if error is None or isinstance(error, GatewayError):
        return error
    _LOG.error("a call with an idempotency key hit a defect", exc_info=error)
    return refusals.internal()


def _check_address(grant: grant_pb2.Grant, client_address: str) -> None:
    """An answer is given where the key works. Raises ADDRESS_FORBIDDEN."""
    if grant.networks_allowed and not is_inside(client_address, grant.networks_allowed):
        raise GatewayError(
            error_pb2.ERROR_REASON_ADDRESS_FORBIDDEN,
            f"This key does not work from {client_address or 'an unknown address'}.",
        )


def _check_readable(state: pb.ClaimState.ValueType) -> None:
    """Raises why an answer in this state cannot be read."""
    match state:
        case pb.CLAIM_STATE_RUNNING | pb.CLAIM_STATE_DONE:
            return
        case pb.CLAIM_STATE_TOO_LARGE:
            raise too_large()
        case pb.CLAIM_STATE_ABANDONED:
            raise GatewayError(
                error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE,
                "The router that made the first call with this Idempotency-Key has gone, and what "
                "the call came to is not known yet: try again in a moment. Another key makes a new "
                "call at its own cost.",
                retry_after_ms=1000,
            )
        case _:
            raise GatewayError(
                error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE,
                "The first call with this Idempotency-Key failed; sent again, this is a new call.",
                retry_after_ms=100,
            )


def _mismatch() -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_IDEMPOTENCY_MISMATCH,
        "This Idempotency-Key came with another body before: a key belongs to one request. Use a "
        "new key for a new request.",
        param="Idempotency-Key",
    )


def _unknown() -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_STORE_UNAVAILABLE,
        "Nobody can say at the moment whether this call was made before with its Idempotency-Key; "
        "try again in a moment. Without the header it is served, and not protected.",
        retry_after_ms=1000,
    )


def _report(task: "asyncio.Task[None]") -> None:
    """Tasks end by themselves or are cancelled; anything else is a defect."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _LOG.critical("a call with an idempotency key was dropped", exc_info=error)
