"""Bodies of the OpenAI dialect that are forwarded as they are, both ways, with only what must
change changed: the model and the wish for usage on the way out, the cost on the way back.

Only the top level of an object is taken apart; what is nested in it keeps its very bytes. What
goes by is looked at all the same: whether it is an answer, how much it says, why it ended, what
it consumed.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from onegate.common.v1 import token_usage_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.money import usd
from runtime.sse import ServerSentEvent
from services.router.providers.base import Answer, Exchange, StreamState
from services.router.providers.json_members import (
    ENCODE,
    MALFORMED,
    foreign_members,
    members,
)
from services.router.providers.openai_error import embedded_error, protocol_error
from services.router.providers.openai_row import Compatible
from services.router.providers.openai_shapes import (
    AudioShape,
    CallShape,
    FunctionShape,
    MessageShape,
    call_texts,
    spoken_bytes,
    utf8_size,
)
from services.router.providers.openai_usage import token_usage

GATEWAY_FIELDS: Final = ("models", "provider")
"""Request fields that steer the gateway; no provider sees them."""

DONE: Final = b"[DONE]"
_OUTPUT_CAP: Final = "max_completion_tokens"
_NULL: Final = msgspec.Raw(b"null")
_NOTHING: Final = msgspec.Raw()
_LF: Final = 10
_ANY: Final = msgspec.json.Decoder()
_COST: Final = b'"cost"'
_LINE_START: Final = len(b"data: ")


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    message: MessageShape | None = None
    finish_reason: str | None = None


class _Completion(msgspec.Struct, gc=False):
    id: str | None = None
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _NOTHING
    service_tier: Any = None
    error: msgspec.Raw = _NOTHING


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[CallShape] | None = None
    function_call: FunctionShape | None = None
    audio: AudioShape | None = None


class _ChunkChoice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    id: str | None = None
    choices: list[_ChunkChoice] | None = None
    usage: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING


_ANSWER: Final = msgspec.json.Decoder(_Completion)
_CHUNK: Final = msgspec.json.Decoder(_Chunk)


def native_body(row: Compatible, exchange: Exchange) -> bytes:
    """The caller's own body for the provider. Raises INVALID_REQUEST when it is no object."""
    request = exchange.request
    body: dict[str, Any] = dict(members(request.native.body, "body"))
    for name in GATEWAY_FIELDS:
        body.pop(name, None)
    body["model"] = exchange.model
    if exchange.output_tokens_cap:
        body[_OUTPUT_CAP] = exchange.output_tokens_cap
    if request.stream and row.stream_usage:
        asked = body.get("stream_options", _NULL)
        options: dict[str, Any] = {}
        if asked != _NULL:
            options.update(members(bytes(asked), "stream_options"))
        body["stream_options"] = options | {"include_usage": True}
    return ENCODE(body)


def native_answer(row: Compatible, exchange: Exchange, body: bytes) -> Answer:
    """A whole answer as it is, its cost added. Raises UPSTREAM_PROTOCOL when it is not one."""
    try:
        shape = _ANSWER.decode(body)
    except MALFORMED:
        raise protocol_error(row, "answered with something that is no chat answer") from None
    if _said(shape.error):
        raise embedded_error(row, msgspec.json.decode(body))
    if not shape.choices:
        raise protocol_error(row, "answered without choices")
    usage = None
    if _said(shape.usage):
        usage = token_usage(row, _ANY.decode(shape.usage), shape.service_tier)
        if usage is not None:
            body = _with_cost(body, bytes(shape.usage), exchange.cost(usage))
    return Answer(
        event=chat_pb2.ChatEvent(native=body),
        usage=usage,
        finish_reason=shape.choices[0].finish_reason or "",
        upstream_id=shape.id or "",
        output_bytes=sum([spoken_bytes(c.message) for c in shape.choices if c.message is not None]),
    )


class NativeStream(StreamState):
    """Forwards a streamed answer, a batch of events as one piece."""

    __slots__ = ("_begun", "_ended", "_exchange", "_failure", "_row")

    def __init__(self, row: Compatible, exchange: Exchange) -> None:
        super().__init__()
        self._row = row
        self._exchange = exchange
        self._begun: set[int] = set()
        self._ended: set[int] = set()
        self._failure: GatewayError | None = None

    def feed(self, events: Sequence[ServerSentEvent]) -> list[chat_pb2.ChatEvent]:
        """The events as bytes. A failure after the first of them is raised by the next call, so
        that what came before it is not lost.
        """
        if self._failure is not None:
            raise self._failure
        pieces: list[bytes] = []
        try:
            for event in events:
                if self.done:
                    break
                data = event.data
                if data == DONE:
                    self._close()
                    break
                piece = self._chunk(event.event, data) if data else b""
                if piece:
                    pieces.append(piece)
        except GatewayError as error:
            if not pieces:
                raise
            self._failure = error
        if not pieces:
            return []
        joined = b"\n\ndata: ".join(pieces)
        return [chat_pb2.ChatEvent(native=b"data: %b\n\n" % joined)]

    def forwards(self, line: bytes) -> bool:
        """Takes a chunk in that is to go on as it is, as nearly all are: those with choices and
        without usage, an error or the mark of the end.
        """
        if self.done or self._failure is not None:
            return False
        try:
            chunk = _CHUNK.decode(line[_LINE_START:])
        except MALFORMED:
            return False
        choices = chunk.choices
        if choices is None or (chunk.error is not _NOTHING and _said(chunk.error)):
            return False
        if chunk.usage is not _NOTHING and _said(chunk.usage):
            return False
        self._count(chunk, choices)
        return True

    def end(self) -> list[chat_pb2.ChatEvent]:
        """The provider closed the stream: well, when every choice has ended."""
        if self._failure is not None:
            raise self._failure
        if not self.done:
            self._close()
        return []

    def _close(self) -> None:
        if not self._ended or self._begun - self._ended:
            raise protocol_error(self._row, "ended its stream before the answer was complete")
        self.done = True

    def _chunk(self, name: bytes, data: bytes) -> bytes:
        """Looks at one chunk; what is to be forwarded of it, empty for nothing."""
        try:
            chunk = _CHUNK.decode(data)
        except MALFORMED:
            raise protocol_error(self._row, "sent an event that is no chunk of an answer") from None
        choices = chunk.choices
        # Most chunks have neither: what stands in for a missing member is known by identity.
        if (chunk.error is not _NOTHING and _said(chunk.error)) or name == b"error":
            raise embedded_error(self._row, msgspec.json.decode(data))
        if choices is None:
            raise protocol_error(self._row, "sent an event that is no chunk of an answer")
        self._count(chunk, choices)
        if chunk.usage is not _NOTHING and _said(chunk.usage):
            data = self._metered(data, bool(choices))
        return data.replace(b"\n", b"\ndata: ") if _LF in data else data

    def _count(self, chunk: _Chunk, choices: list[_ChunkChoice]) -> None:
        """What a chunk says of how far the answer is."""
        if not self.upstream_id and chunk.id:
            self.upstream_id = chunk.id
        for choice in choices:
            delta = choice.delta
            if delta is not None:
                text = delta.content
                if text:
                    size = len(text) if text.isascii() else utf8_size(text)
                else:
                    size = _other_bytes(delta)
                if size:
                    self.output_bytes += size
                    self.started = True
            if choice.finish_reason:
                self._ended.add(choice.index)
                self.finish_reason = self.finish_reason or choice.finish_reason
            else:
                self._begun.add(choice.index)

    def _metered(self, data: bytes, has_choices: bool) -> bytes:
        """A chunk with usage: with its cost, or without the usage that nobody asked for."""
        top: dict[str, Any] = dict(foreign_members(data))
        usage = _usage(self._row, top)
        if usage is not None:
            self.usage = usage
        if not self._exchange.request.stream_usage:
            del top["usage"]
            return ENCODE(top) if has_choices else b""
        if usage is None:
            return data
        return _with_cost(data, bytes(top["usage"]), self._exchange.cost(usage))


def _said(raw: msgspec.Raw) -> bool:
    """Whether a member is there and not null."""
    return bool(raw) and raw != _NULL


def _usage(row: Compatible, top: dict[str, Any]) -> token_usage_pb2.TokenUsage | None:
    tier = top.get("service_tier")
    word = None if tier is None else msgspec.json.decode(tier)
    return token_usage(row, msgspec.json.decode(top["usage"]), word)


def _with_cost(body: bytes, usage: bytes, cost_nano_usd: int) -> bytes:
    """The object ``body`` with the cost in its member ``usage``.

    The cost is put behind the usage's last member, where the usage stands, when it stands there
    once: the same bytes cannot lie within a text, whose quotes are escaped. To take the whole
    body apart and write it anew takes half as long again, and loses the spaces between members.
    """
    cost = usd(cost_nano_usd).encode()
    if _COST not in usage and body.count(usage) == 1:
        end = body.index(usage) + len(usage) - 1
        return b'%b,"cost":%b}%b' % (body[:end].rstrip(), cost, body[end + 1 :])
    top: dict[str, Any] = dict(foreign_members(body))
    top["usage"] = foreign_members(usage) | {"cost": msgspec.Raw(cost)}
    return ENCODE(top)


def _other_bytes(delta: _Delta) -> int:
    """What a piece says beside text, in UTF-8 bytes; sound counts by what is said in it, and at
    least one.
    """
    texts: list[str] = [delta.refusal or ""]
    for call in delta.tool_calls or ():
        texts += call_texts(call)
    if delta.function_call is not None:
        texts += call_texts(CallShape(function=delta.function_call))
    size = sum(utf8_size(text) for text in texts)
    if delta.audio is not None:
        size += utf8_size(delta.audio.transcript or "") or bool(delta.audio.data)
    return size
