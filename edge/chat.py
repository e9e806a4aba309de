"""One chat call over the relay: the caller's bytes in, the router's events out as they come.

An answer's head is held until its first content, so that a call that fails before has a proper
status; only when a stream's caller has waited ``keepalive_comment_s`` does the head go out alone,
with comments until the first token. Whatever breaks after that is an error event, without
``[DONE]``: official SDKs take a stream that merely ends for a success.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from edge import errors
from edge.calls import Call
from edge.dispatch import common_lines
from edge.endpoints import chat_request, chat_response
from edge.endpoints.call_context import call_context
from edge.endpoints.call_headers import served_lines
from edge.endpoints.chat_request import ChatCall, NativeForms
from edge.endpoints.chat_response import AnswerFrame
from edge.endpoints.chat_stream import DONE, KEEP_ALIVE, ChunkEncoder, event
from edge.endpoints.chat_typed import typed
from edge.endpoints.plan import plan_body
from edge.http import Response, Stream
from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2, chat_service_pb2, plan_pb2
from runtime.clock import Clock
from runtime.config import EdgeSettings
from runtime.errors import GatewayError
from runtime.lone_native import unpacked
from runtime.relay import RelayCall, RelayPool

CHAT_METHOD: Final = "/onegate.router.v1.ChatService/Chat"
TYPED_MODELS_MAX: Final = 1024
TYPED_FOR_S: Final = 60.0
"""How long a model that wanted the typed form gets it at once, before the native one is tried."""

_JSON: Final = "application/json"
_EVENTS: Final = (
    "text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no"
)
"""The type of a stream, and what keeps proxies from holding it back."""


class TypedModels:
    """Models whose deployments were seen to want the typed form, the latest ones."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: OrderedDict[str, float] = OrderedDict()

    def add(self, model: str) -> None:
        """A router has asked for the typed form of a call to this model."""
        self._until.pop(model, None)
        self._until[model] = self._clock.monotonic() + TYPED_FOR_S
        if len(self._until) > TYPED_MODELS_MAX:
            self._until.popitem(last=False)

    def __contains__(self, model: str) -> bool:
        until_s = self._until.get(model)
        return until_s is not None and self._clock.monotonic() < until_s


class ChatEndpoint:
    """``POST /v1/chat/completions``."""

    def __init__(self, relay: RelayPool, settings: EdgeSettings, clock: Clock) -> None:
        self._relay = relay
        self.settings = settings
        self.clock = clock
        self.typed_models = TypedModels(clock)
        self._native = NativeForms()

    async def handle(self, call: Call) -> Response | None:
        """Serves one call."""
        request = call.request
        chat = chat_request.decode(await request.body(), depth_max=self.settings.json_depth_max)
        call.model = chat.model
        context = call_context(
            request.headers, request_id=call.request_id, client_address=request.client
        )
        if context.idempotency_key:
            # The router may get the call in either form; a retry is known by the caller's own.
            context.body_digest = hashlib.sha256(chat.body).digest()
        if chat.model in self.typed_models:
            payload = typed(chat, context).SerializeToString()
        else:
            payload = self._native.pack(chat, context)
        relayed = self._relay.call(
            CHAT_METHOD,
            payload,
            metadata={"authorization": f"Bearer {call.key}"},
            timeout_s=self.settings.call_timeout_s,
        )
        exchange = ChatExchange(self, call, chat, context, relayed)
        try:
            if context.dry_run:
                return await exchange.plan()
            if chat.stream:
                await exchange.stream()
                return None
            return await exchange.answer()
        finally:
            relayed.cancel()


class ChatExchange:
    """One call under way."""

    __slots__ = (
        "_answer",
        "_body",
        "_call",
        "_chat",
        "_clock",
        "_context",
        "_encoder",
        "_metered",
        "_native",
        "_owner",
        "_pieces",
        "_relayed",
        "_served",
        "_stream",
        "_timer",
    )

    def __init__(
        self,
        owner: ChatEndpoint,
        call: Call,
        chat: ChatCall,
        context: chat_pb2.CallContext,
        relayed: RelayCall,
    ) -> None:
        self._owner = owner
        self._clock = owner.clock
        self._call = call
        self._chat = chat
        self._context = context
        self._relayed = relayed
        self._served: chat_pb2.Served | None = None
        self._metered: chat_pb2.Metered | None = None
        self._answer: chat_pb2.ChatAnswer | None = None
        self._body: bytes | None = None
        self._native = b""
        self._pieces: list[bytes] = []
        self._stream: Stream | None = None
        self._encoder: ChunkEncoder | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def answer(self) -> Response:
        """The whole answer. Raises what the router raised."""
        relayed = self._relayed
        while (payload := await relayed.receive()) is not None:
            for happened in chat_service_pb2.ChatResponse.FromString(payload).events:
                if native := happened.native:
                    self._body = native
                elif happened.HasField("answer"):
                    self._answer = happened.answer
                elif self._wants_typed(happened):
                    await self._send_typed()
            if relayed.ended and not relayed.inbox and relayed.error is None:
                break
        if self._answer is not None:
            self._body = chat_response.body(self._answer, self._metered, self._frame())
        if self._body is None:
            raise _no_answer()
        return Response(200, self._headers(_JSON), self._body)

    async def plan(self) -> Response:
        """What would happen to the call, which is not made."""
        plan: plan_pb2.Plan | None = None
        while (payload := await self._relayed.receive()) is not None:
            for happened in chat_service_pb2.ChatResponse.FromString(payload).events:
                if happened.HasField("plan"):
                    plan = happened.plan
                elif self._wants_typed(happened):
                    await self._send_typed()
                else:
                    raise _no_answer()  # a call was made: the router is older than dry runs
        if plan is None:
            raise _no_answer()
        return Response(200, self._headers(_JSON), plan_body(plan))

    async def stream(self) -> None:
        """Writes the answer as it comes; what has come meanwhile goes out in one write."""
        relayed = self._relayed
        taker: Callable[[bytes], bool] | None = None
        self._arm()
        try:
            while (payload := await relayed.receive(taker)) is not None:
                await self._take(payload)
                if not relayed.inbox and not relayed.ended:
                    await self._write()
                    if self._call.first_byte_s is not None:
                        taker = self._forward
            self._finish()
        except GatewayError as error:
            self._fail(error)
        except asyncio.CancelledError:
            if self._stream is None or not self._call.request.draining:
                raise
            self._fail(_cut_off())
        finally:
            self._disarm()

    def _forward(self, payload: bytes) -> bool:
        """Writes a payload that is native bytes and nothing else, in the turn that brings it.
        Everything before it is written: it is offered only while the stream's task waits for it.
        """
        stream = self._stream
        if stream is None or stream.paused:
            return False
        native = unpacked(payload)
        if not native:
            return False
        self._native = native
        stream.write(native)
        return True

    async def _take(self, payload: bytes) -> None:
        """Takes in events that came together."""
        for happened in chat_service_pb2.ChatResponse.FromString(payload).events:
            if native := happened.native:
                self._native = native
                self._pieces.append(native)
            elif happened.HasField("delta"):
                self._pieces.append(self._encode(happened.delta))
            elif self._wants_typed(happened):
                await self._send_typed()

    def _wants_typed(self, happened: chat_pb2.ChatEvent) -> bool:
        """Takes in an event that is no content; whether the router asks for the typed form."""
        if happened.HasField("served"):
            self._served = happened.served
        elif happened.HasField("metered"):
            self._metered = happened.metered
        elif happened.HasField("typed_required"):
            return True
        elif happened.HasField("error"):
            raise GatewayError.from_proto(happened.error)
        else:
            raise _no_answer()
        return False

    async def _send_typed(self) -> None:
        """The request once more, in the hub's words."""
        self._owner.typed_models.add(self._chat.model)
        request = typed(self._chat, self._context)
        await self._relayed.send(request.SerializeToString())

    def _encode(self, delta: chat_pb2.ChatDelta) -> bytes:
        if self._encoder is None:
            self._encoder = ChunkEncoder(self._frame())
        return self._encoder.delta(delta)

    async def _write(self) -> None:
        """Writes what was taken in; waits while the caller does not take it."""
        if self._pieces:
            stream = self._begin()
            stream.write(self._taken())
            if stream.paused:
                await stream.drain()

    def _taken(self) -> bytes:
        """What was taken in and not written yet; from the first of it on, no comments are due."""
        pieces, self._pieces = self._pieces, []
        if pieces and self._call.first_byte_s is None:
            self._disarm()
            self._call.began(self._clock.monotonic())
        return b"".join(pieces)

    def _begin(self) -> Stream:
        """The stream, whose head may be out already."""
        if self._stream is None:
            self._stream = self._call.request.stream(200, self._headers(_EVENTS))
        return self._stream

    def _finish(self) -> None:
        """The call ended well."""
        rest = self._taken()
        if self._call.first_byte_s is None:
            raise _no_answer()
        last = DONE
        metered = self._metered
        if metered is not None and self._chat.stream_usage:
            if self._encoder is None and metered.usage_missing:
                self._encoder = ChunkEncoder.after(self._native, self._frame())
            if self._encoder is not None:
                last = self._encoder.usage(metered) + DONE
        self._begin().finish(rest + last)

    def _fail(self, error: GatewayError) -> None:
        """The call failed: with a status, or with an event when it is too late for one."""
        rest = self._taken()
        if self._stream is None and not rest:
            raise error
        self._begin().finish(rest + event(errors.error_body(error)))

    def _arm(self) -> None:
        """Sends a comment if nothing comes for a while."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._owner.settings.keepalive_comment_s, self._comment)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _comment(self) -> None:
        stream = self._begin()
        if not stream.paused:
            stream.write(KEEP_ALIVE)
        self._arm()

    def _headers(self, content_type: str) -> str:
        """The head's lines, with what is known by now."""
        elapsed_s = self._clock.monotonic() - self._call.request.received_s
        lines = common_lines(content_type, self._call.request_id, elapsed_s)
        if self._served is None:
            return lines
        return lines + served_lines(self._served, self._metered, elapsed_s)

    def _frame(self) -> AnswerFrame:
        fields = self._chat.fields
        request_id, created_unix_s = self._call.request_id, int(self._clock.now().timestamp())
        if self._served is not None and self._served.repetition.request_id:
            # Every retry gets what the first call got, to the byte.
            repetition = self._served.repetition
            request_id, created_unix_s = repetition.request_id, repetition.created_unix_s
        return AnswerFrame(
            id=f"chatcmpl-{request_id.removeprefix('req_')}",
            created_unix_s=created_unix_s,
            model=self._served.model if self._served is not None else self._chat.model,
            legacy_functions=fields.functions is not None,
            stream_usage=self._chat.stream_usage,
        )


def _no_answer() -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_INTERNAL,
        "The router ended the call without an answer, which is a defect; run the same version of "
        "onegate everywhere.",
    )


def _cut_off() -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_DRAINING,
        "The gateway is shutting down and cut this answer off; send the request again.",
    )
