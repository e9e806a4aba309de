"""One answer as it comes, for any number of readers: the caller that asked first and all who asked
the same again.

The first call runs on when its caller leaves: the retry is to find the answer.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2, chat_service_pb2
from runtime import refusals
from runtime.calls import ServerCall
from runtime.errors import GatewayError

METADATA_KEY: Final = "idempotency-key"
"""Where a call may bring its key beside its context."""


class Room:
    """How many bytes of answers one router keeps in memory.

    Args:
        bytes_max: of all answers together.
        answer_bytes_max: of one answer.
    """

    def __init__(self, bytes_max: int, answer_bytes_max: int) -> None:
        self.left = bytes_max
        self.answer_bytes_max = answer_bytes_max


class AnswerLog:
    """The messages of one answer.

    Args:
        claim: what usage knows the call by, a digest.
        body: the digest of what was asked.
        owner: who asked first.
        room: where the bytes are counted.
    """

    def __init__(self, claim: str, body: bytes, owner: ServerCall, room: Room) -> None:
        self.claim = claim
        self.body = body
        self.owner = owner
        self.owner_reads = True
        self.made_here = False
        """The call is made for the owner, here; else its answer comes from usage."""
        self.messages: list[bytes] = []
        self.too_large = False
        self.ended = False
        self._room = room
        self._error: error_pb2.Error | None = None
        self._bytes = 0
        self._owner_at = 0
        self._changed = asyncio.Event()

    def add(self, message: bytes) -> None:
        """One more message."""
        size = len(message)
        if self._bytes + size > self._room.answer_bytes_max or size > self._room.left:
            self.too_large = True
        self.messages.append(message)
        self._bytes += size
        self._room.left -= size
        self._wake()

    def end(self, error: GatewayError | None = None) -> None:
        """Nothing more comes."""
        self._error = error.to_proto() if error is not None else None
        self.ended = True
        self._wake()

    def free(self) -> None:
        """The log is not handed out any more."""
        self._room.left += self._bytes
        self._bytes = 0

    async def taken(self) -> None:
        """Returns when the owner has read everything, of what nobody else will. Raises CANCELLED
        when the owner has left.
        """
        while self.owner_reads and self._owner_at < len(self.messages):
            await self._change()
        if not self.owner_reads:
            raise refusals.cancelled()
        for at in range(len(self.messages)):
            self.messages[at] = b""
        self.free()

    async def tell(self, call: ServerCall, stall_s: float) -> None:
        """Sends everything, as it comes. Raises how the call failed; CONFLICT for an answer too
        large to be read twice.

        Args:
            call: who reads.
            stall_s: how long one message may wait for it.
        """
        mine = call is self.owner
        at, served = 0, False
        while True:
            while at < len(self.messages):
                if self.too_large and not mine:
                    raise too_large()
                message = self.messages[at]
                at += 1
                if not (served or (mine and self.made_here)):
                    message, served = replayed(message)
                await _send(call, message, stall_s)
                if mine:
                    self._owner_at = at
                    if self.too_large:
                        self._wake()
            if self.ended:
                break
            await self._change()
        if self._error is not None:
            raise GatewayError.from_proto(self._error)

    def left(self) -> None:
        """The owner reads no more."""
        self.owner_reads = False
        self._wake()

    async def _change(self) -> None:
        await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Recorded:
    """The first call as the router serves it: what it sends goes into the log."""

    __slots__ = ("_log", "_repetition", "_served", "metadata", "method", "request", "timeout_s")

    send_now = None
    """Its readers are waited for."""

    def __init__(
        self, log: AnswerLog, request: chat_pb2.ChatRequest, repetition: chat_pb2.Repetition
    ) -> None:
        call = log.owner
        own = chat_pb2.ChatRequest()
        own.CopyFrom(request)
        own.context.request_id = repetition.request_id
        own.context.ClearField("idempotency_key")
        own.context.ClearField("body_digest")
        self._log = log
        self._repetition = repetition
        self._served = False
        self.method: str = call.method
        self.request: bytes = own.SerializeToString()
        self.metadata: Mapping[str, str] = {
            name: value for name, value in call.metadata.items() if name != METADATA_KEY
        }
        self.timeout_s: float | None = None

    async def send(self, payload: bytes) -> None:
        """Keeps a message for all readers; waits only for one that nobody else will read."""
        if not self._served:
            response = chat_service_pb2.ChatResponse.FromString(payload)
            for event in response.events:
                if event.HasField("typed_required"):
                    await self._log.owner.send(payload)
                    return
                if event.HasField("served"):
                    event.served.repetition.CopyFrom(self._repetition)
                    self._served = True
            payload = response.SerializeToString()
        self._log.add(payload)
        if self._log.too_large:
            await self._log.taken()

    async def receive(self) -> bytes:
        """The typed form, which only the first caller is asked for."""
        return await self._log.owner.receive()


def replayed(message: bytes) -> tuple[bytes, bool]:
    """A message as a retry gets it: who served is said of the retry itself, which asked nobody and
    used nothing up. And whether it said so.
    """
    response = chat_service_pb2.ChatResponse.FromString(message)
    found = False
    for event in response.events:
        if event.HasField("served"):
            served = chat_pb2.Served(
                model=event.served.model,
                route=event.served.route,
                repetition=event.served.repetition,
            )
            served.repetition.replayed = True
            event.served.CopyFrom(served)
            found = True
    return response.SerializeToString(), found


def too_large() -> GatewayError:
    """The first call was answered; its answer is not there any more."""
    return GatewayError(
        error_pb2.ERROR_REASON_CONFLICT,
        "The first call with this Idempotency-Key was answered, and its answer was too large to "
        "be kept: it cannot be sent again, and a second call would cost again. Use another key to "
        "make one, or raise [router] idempotency_answer_bytes_max.",
        param="Idempotency-Key",
    )


async def _send(call: ServerCall, message: bytes, stall_s: float) -> None:
    try:
        async with asyncio.timeout(stall_s):
            await call.send(message)
    except TimeoutError:
        raise GatewayError(
            error_pb2.ERROR_REASON_CANCELLED, "The caller stopped reading; the call was ended."
        ) from None
