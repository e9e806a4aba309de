"""A streamed answer in the OpenAI dialect as pieces of the hub's.

What differs between vendors and is evened out here: usage in the last chunk, in its own chunk, in
every chunk or under another name; roles, names and ids that are repeated; tool calls without an
index; thoughts in four spellings; errors in the middle of a 200; an end without a finish reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.sse import ServerSentEvent
from services.router.providers.base import Exchange, StreamState
from services.router.providers.json_members import ENCODE, Json, unnamed
from services.router.providers.openai_error import embedded_error, protocol_error
from services.router.providers.openai_native import DONE
from services.router.providers.openai_response import (
    check,
    finish_reason,
    finish_word,
    hides_thoughts,
    implied_finish,
    parse,
    service_tier,
    usage_of,
    with_tier,
)
from services.router.providers.openai_row import Compatible
from services.router.providers.openai_shapes import (
    NAMED,
    NAMED_CHOICE,
    NAMED_MESSAGE,
    AudioShape,
    CallShape,
    ChoiceShape,
    CompletionShape,
    MessageShape,
    annotation,
    arguments,
    call_kind,
    call_texts,
    content_part,
    decoded,
    logprobs,
    media,
    signature,
    spoken_bytes,
    thoughts,
)
from services.router.providers.openai_usage import token_usage

_EMPTY: Final = MessageShape()


@dataclass(slots=True)
class _Call:
    """A tool call that has begun."""

    id: str = ""
    named: bool = False


@dataclass(slots=True)
class _Choice:
    """A choice that has begun."""

    calls: dict[int, _Call] = field(default_factory=dict)
    ended: bool = False


class TypedStream(StreamState):
    """Decodes a streamed answer."""

    __slots__ = (
        "_choices",
        "_exchange",
        "_failure",
        "_fingerprint",
        "_headed",
        "_hidden",
        "_known",
        "_known_choice",
        "_known_delta",
        "_row",
        "_tier",
    )

    def __init__(self, row: Compatible, exchange: Exchange) -> None:
        super().__init__()
        self._row = row
        self._exchange = exchange
        self._hidden = hides_thoughts(exchange)
        self._known = NAMED | row.ignored
        self._known_choice = NAMED_CHOICE | row.ignored
        self._known_delta = NAMED_MESSAGE | row.ignored
        self._choices: dict[int, _Choice] = {}
        self._failure: GatewayError | None = None
        self._headed = False
        self._fingerprint = ""
        self._tier = ""

    def feed(self, events: Sequence[ServerSentEvent]) -> list[chat_pb2.ChatEvent]:
        """The pieces in the events. A failure after the first of them is raised by the next call,
        so that what came before it is not lost.
        """
        if self._failure is not None:
            raise self._failure
        made: list[chat_pb2.ChatEvent] = []
        try:
            for event in events:
                if self.done:
                    break
                if event.data == DONE:
                    self._close(made, said=True)
                elif event.data:
                    self._chunk(event, made)
        except GatewayError as error:
            if not made:
                raise
            self._failure = error
        return made

    def end(self) -> list[chat_pb2.ChatEvent]:
        """The provider closed the stream: well, when every choice has ended."""
        if self._failure is not None:
            raise self._failure
        if not self.done:
            self._close([], said=False)
        return []

    def _close(self, made: list[chat_pb2.ChatEvent], *, said: bool) -> None:
        """The answer is over; ``said`` means that the provider says so."""
        going_on = [index for index, choice in self._choices.items() if not choice.ended]
        if not self._choices or (going_on and not (said and self._row.done_finishes)):
            raise protocol_error(self._row, "ended its stream before the answer was complete")
        for index in going_on:
            reason = implied_finish(bool(self._choices[index].calls))
            self.finish_reason = self.finish_reason or finish_word(reason)
            last = chat_pb2.ChoiceDelta(index=index, finish_reason=reason)
            made.append(chat_pb2.ChatEvent(delta=chat_pb2.ChatDelta(choices=[last])))
        self.done = True

    def _chunk(self, event: ServerSentEvent, made: list[chat_pb2.ChatEvent]) -> None:
        row = self._row
        raw, shape = parse(row, event.data)
        usage = usage_of(shape)
        if usage:
            self.usage = token_usage(row, usage, shape.service_tier) or self.usage
        if event.event == b"error":
            raise embedded_error(row, raw)
        check(row, raw, shape)
        if shape.choices is None and not usage:
            raise protocol_error(row, "sent an event that is no chunk of an answer")
        made.append(chat_pb2.ChatEvent())
        delta = made[-1].delta
        self._write_head(delta, raw, shape)
        for choice, raw_choice in zip(shape.choices or (), raw.get("choices") or (), strict=True):
            self._write_choice(choice, raw_choice, delta.choices.add(), made)
        if not delta.ListFields():
            made.pop()

    def _write_head(self, delta: chat_pb2.ChatDelta, raw: Json, shape: CompletionShape) -> None:
        """What is said once, and what changes."""
        if not self._headed and (shape.id or shape.model):
            self._headed = True
            self.upstream_id = delta.id = shape.id or ""
            delta.created_unix_s = int(shape.created or 0)
            delta.model = shape.model or ""
        if shape.system_fingerprint and shape.system_fingerprint != self._fingerprint:
            self._fingerprint = delta.system_fingerprint = shape.system_fingerprint
        if shape.service_tier and shape.service_tier != self._tier:
            self._tier = shape.service_tier
            delta.service_tier = service_tier(self._row, self._tier)
            raw = with_tier(self._row, raw)
        if extra := unnamed(raw, self._known):
            delta.extra_json = extra

    def _write_choice(
        self,
        choice: ChoiceShape,
        raw: Mapping[str, Any],
        piece: chat_pb2.ChoiceDelta,
        made: list[chat_pb2.ChatEvent],
    ) -> None:
        """What one choice gained. A piece holds one thought: when there are several, each but the
        first becomes an event of its own.
        """
        message = choice.delta or _EMPTY
        size = spoken_bytes(message)
        if size:
            self.output_bytes += size
            self.started = True
        state = self._choices.get(choice.index)
        piece.index = choice.index
        if state is None:
            state = self._choices[choice.index] = _Choice()
            piece.starts = True
        if not self._hidden:
            for thought in _thoughts(message):
                if piece.HasField("thinking"):
                    made.append(chat_pb2.ChatEvent())
                    piece = made[-1].delta.choices.add(index=choice.index)
                piece.thinking.CopyFrom(thought)
        self._write_said(piece, message, state)
        self._write_rest(piece, choice, raw, state)

    def _write_said(
        self, piece: chat_pb2.ChoiceDelta, message: MessageShape, state: _Choice
    ) -> None:
        """What the model says in a piece."""
        content = message.content
        if isinstance(content, str):
            piece.text = content
        elif content:
            _write_parts(piece, content)
        if message.refusal:
            piece.refusal = message.refusal
        if message.tool_calls:
            piece.tool_calls.extend(_calls(message.tool_calls, state))
        if message.function_call is not None:
            _write_function_call(piece, message, state)
        if message.audio is not None:
            self.started = self.started or bool(message.audio.data)
            piece.audio.CopyFrom(_audio(message.audio))
        for item in message.annotations or ():
            piece.annotations.append(annotation(item))
        for picture in message.images or ():
            self.started = True
            match picture:
                case {"image_url": {"url": str(url)}}:
                    piece.images.append(content_pb2.ImagePart(source=media(url)))

    def _write_rest(
        self,
        piece: chat_pb2.ChoiceDelta,
        choice: ChoiceShape,
        raw: Mapping[str, Any],
        state: _Choice,
    ) -> None:
        """What stands beside the words, and the end."""
        if choice.logprobs and (found := logprobs(choice.logprobs)):
            piece.logprobs.CopyFrom(found)
        if choice.finish_reason:
            state.ended = True
            piece.finish_reason = finish_reason(self._row, choice.finish_reason)
            piece.native_finish_reason = choice.native_finish_reason or choice.finish_reason
            self.finish_reason = self.finish_reason or finish_word(piece.finish_reason)
        if extra := unnamed(raw.get("delta") or {}, self._known_delta):
            piece.extra_json = extra
        if extra := unnamed(raw, self._known_choice):
            piece.choice_extra_json = extra


def _thoughts(message: MessageShape) -> list[content_pb2.ThinkingPart]:
    """The thoughts of a piece, also those among its parts."""
    found = thoughts(message)
    if isinstance(message.content, list):
        parts = [content_part(item) for item in message.content]
        found += [part.thinking for part in parts if part.thinking.ByteSize()]
    return found


def _write_parts(piece: chat_pb2.ChoiceDelta, content: list[Json]) -> None:
    """A content list. Parts that the hub does not know are kept under ``content_parts``."""
    unknown = []
    for item in content:
        part = content_part(item)
        if part.HasField("text"):
            piece.text += part.text.text
        elif part.HasField("opaque_json"):
            unknown.append(item)
    if unknown:
        piece.extra_json = ENCODE({"content_parts": unknown})


def _calls(calls: list[CallShape], state: _Choice) -> list[chat_pb2.ToolCallDelta]:
    """Pieces of tool calls. Ids and names, which some repeat, are said once."""
    made = []
    for call in calls:
        index = call.index
        if index is None:
            index = _index(call, state)
        known = state.calls.get(index)
        name, written = call_texts(call)
        piece = chat_pb2.ToolCallDelta(index=index, arguments=written)
        if known is None:
            known = state.calls[index] = _Call()
            piece.kind = call_kind(call)
        if call.id and not known.id:
            known.id = piece.id = call.id
        if name and not known.named:
            known.named = True
            piece.name = name
        if call.extra_content:
            piece.thought_signature = signature(call.extra_content)
        made.append(piece)
    return made


def _index(call: CallShape, state: _Choice) -> int:
    """Which call a piece without an index belongs to: the one of its id; a new id, or a name
    after a call that has one, begins another; the rest goes on with the last.
    """
    last = max(state.calls, default=-1)
    for index, known in state.calls.items():
        if call.id and known.id == call.id:
            return index
    begins = bool(call.id) or last < 0 or bool(call_texts(call)[0] and state.calls[last].named)
    return last + 1 if begins else last


def _write_function_call(
    piece: chat_pb2.ChoiceDelta, message: MessageShape, state: _Choice
) -> None:
    """The legacy form of a tool call: one, without an id."""
    called = message.function_call
    if called is None or not (called.name or called.arguments):
        return
    state.calls.setdefault(0, _Call(named=True))
    piece.tool_calls.add(
        index=0,
        name=called.name or "",
        arguments=arguments(called),
        kind=content_pb2.TOOL_KIND_FUNCTION,
    )


def _audio(audio: AudioShape) -> chat_pb2.AudioDelta:
    return chat_pb2.AudioDelta(
        id=audio.id or "",
        data=decoded(audio.data) if audio.data else b"",
        transcript=audio.transcript or "",
        expires_at_unix_s=int(audio.expires_at or 0),
    )
