"""A streamed answer of ConverseStream, event by event
(https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html).

``messageStart``, then per block ``contentBlockStart`` (of tools and pictures only), ``…Delta`` and
``…Stop``, then ``messageStop`` with the reason, then ``metadata`` with the usage. The event's name
is its type; an exception among them ends the answer. Events of unknown type are ignored.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import msgspec

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from runtime.sse import ServerSentEvent
from services.router.providers import bedrock_blocks
from services.router.providers.aws_eventstream import EXCEPTION, EventStreamParser
from services.router.providers.base import Framing, StreamState
from services.router.providers.bedrock_models import PROVIDER
from services.router.providers.bedrock_outcomes import (
    FINISH_REASONS,
    answered_tier,
    extra,
    served_by,
    told_error,
)
from services.router.providers.foreign import (
    MALFORMED,
    Json,
    beside,
    dump,
    protocol_error,
    utf8_size,
)

_DECODER: Final = msgspec.json.Decoder()
_Made = Sequence[chat_pb2.ChatEvent]


@dataclass(slots=True)
class _Block:
    """A block that has begun, and what is told only at its end."""

    start: Json = field(default_factory=dict)
    tool_index: int = -1
    text_start: int = 0
    input_json: list[str] = field(default_factory=list)
    citations: list[Json] = field(default_factory=list)
    results: list[Json] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)


class BedrockStream(StreamState):
    """Decodes one answer."""

    __slots__ = (
        "_annotations",
        "_blocks",
        "_handlers",
        "_model",
        "_own",
        "_text_chars",
        "_tool_calls",
    )

    framing: ClassVar[type[Framing]] = EventStreamParser

    def __init__(self, model: str) -> None:
        """``model`` was called; an answer does not name it."""
        super().__init__()
        self._model = model
        self._blocks: dict[int, _Block] = {}
        self._annotations: list[content_pb2.Annotation] = []
        self._own: list[Json] = []
        self._text_chars = 0
        self._tool_calls = 0
        self._handlers: Mapping[bytes, Callable[[Json], _Made]] = {
            b"messageStart": self._message_start,
            b"contentBlockStart": self._block_start,
            b"contentBlockDelta": self._block_delta,
            b"contentBlockStop": self._block_stop,
            b"messageStop": self._message_stop,
            b"metadata": self._metadata,
        }

    def feed(self, events: Sequence[ServerSentEvent]) -> list[chat_pb2.ChatEvent]:
        """The deltas that the events hold."""
        made: list[chat_pb2.ChatEvent] = []
        for event in events:
            if self.done:
                break
            if event.event.startswith(EXCEPTION):
                raise told_error(event.event.removeprefix(EXCEPTION).decode(), event.data)
            handler = self._handlers.get(event.event)
            if handler is None:
                continue
            try:
                made += handler(_DECODER.decode(event.data))
            except MALFORMED as exc:
                raise protocol_error(PROVIDER, "sent an event that is not its protocol's") from exc
            self.done = bool(self.finish_reason) and self.usage is not None
        return made

    def end(self) -> list[chat_pb2.ChatEvent]:
        """The provider closed the stream: an answer that has said why it ended is complete, also
        when its usage never came.
        """
        if not self.finish_reason:
            raise protocol_error(PROVIDER, "ended the stream before the answer was complete")
        self.done = True
        return []

    def _message_start(self, _data: Json) -> _Made:
        event = chat_pb2.ChatEvent()
        event.delta.model = self._model
        event.delta.choices.add(starts=True)
        return (event,)

    def _block_start(self, data: Json) -> _Made:
        """A block begins. Only a call of a tool tells something at once."""
        index = data["contentBlockIndex"]
        state = self._block(index)
        state.start = data.get("start") or {}
        call = state.start.get("toolUse")
        if call is None or call.get("type") == bedrock_blocks.SERVER_TOOL:
            return ()
        state.tool_index = self._tool_calls
        self._tool_calls += 1
        self._wrote(call["name"])
        begun = chat_pb2.ToolCallDelta(
            index=state.tool_index,
            id=call["toolUseId"],
            name=call["name"],
            kind=content_pb2.TOOL_KIND_FUNCTION,
        )
        return _delta(tool_calls=[begun], part_index=index)

    def _block_delta(self, data: Json) -> _Made:
        """More of a block."""
        index, delta = data["contentBlockIndex"], data["delta"]
        state = self._block(index)
        if delta.get("text"):
            # Most events are these: the message is built in place, which is thrice as fast.
            text = delta["text"]
            self._text_chars += len(text)
            self._wrote(text)
            event = chat_pb2.ChatEvent()
            event.delta.choices.add(text=text, part_index=index)
            return (event,)
        if "toolUse" in delta:
            return self._input(index, state, delta["toolUse"]["input"])
        if "reasoningContent" in delta:
            return self._thought(index, state, delta["reasoningContent"])
        if "citation" in delta:
            state.citations.append(delta["citation"])
        elif "toolResult" in delta:
            state.results += delta["toolResult"]
        elif "image" in delta:
            encoded = (delta["image"].get("source") or {}).get("bytes") or ""
            state.data += base64.b64decode(encoded, validate=True)
        return ()

    def _block_stop(self, data: Json) -> _Made:
        """A block is complete: what could not be told in pieces is told now."""
        index = data["contentBlockIndex"]
        state = self._blocks.pop(index, None) or _Block()
        start = state.start
        if state.tool_index >= 0:
            return () if state.input_json else self._input(index, state, "{}")
        if "toolUse" in start:
            given = _parsed("".join(state.input_json) or "{}")
            self._keep({"toolUse": {**start["toolUse"], "input": given}})
        elif "toolResult" in start:
            self._keep({"toolResult": {**start["toolResult"], "content": state.results}})
        elif "image" in start and state.data:
            self.started = True
            made = bedrock_blocks.image(start["image"]["format"], bytes(state.data))
            return _delta(images=[made], part_index=index)
        elif state.data:
            self.started = True
            hidden = bedrock_blocks.redacted(bytes(state.data))
            thought = content_pb2.ThinkingPart(redacted_data=hidden)
            return _delta(thinking=thought, part_index=index)
        for citation in state.citations:
            self._annotations.append(
                bedrock_blocks.annotation(citation, state.text_start, self._text_chars)
            )
        return ()

    def _message_stop(self, data: Json) -> _Made:
        """Why the answer ends. What clients could not join if it came twice is said before."""
        made: list[chat_pb2.ChatEvent] = []
        for index in sorted(self._blocks):
            made += self._block_stop({"contentBlockIndex": index})
        if self._annotations:
            made += _delta(annotations=self._annotations)
        if self._own:
            made += _delta(extra_json=beside(parts=self._own))
        self.finish_reason = str(data["stopReason"])
        event = chat_pb2.ChatEvent()
        event.delta.extra_json = extra(data)
        event.delta.choices.add(
            finish_reason=FINISH_REASONS.get(self.finish_reason, chat_pb2.FINISH_REASON_STOP),
            native_finish_reason=self.finish_reason,
        )
        return [*made, event]

    def _metadata(self, data: Json) -> _Made:
        """The usage, and what is told beside the answer."""
        tier = answered_tier(data)
        self.usage = bedrock_blocks.usage(data.get("usage") or {}, tier)
        event = chat_pb2.ChatEvent()
        event.delta.model = served_by(data, "")
        event.delta.service_tier = tier
        event.delta.extra_json = extra(data)
        return (event,) if event.delta.ListFields() else ()

    def _block(self, index: int) -> _Block:
        state = self._blocks.get(index)
        if state is None:
            state = self._blocks[index] = _Block(text_start=self._text_chars)
        return state

    def _input(self, index: int, state: _Block, text: str) -> _Made:
        """More of a tool's arguments; those of Bedrock's own tools wait for their end."""
        if not text:
            return ()
        state.input_json.append(text)
        if state.tool_index < 0:
            return ()
        self._wrote(text)
        call = chat_pb2.ToolCallDelta(index=state.tool_index, arguments=text)
        return _delta(tool_calls=[call], part_index=index)

    def _thought(self, index: int, state: _Block, told: Json) -> _Made:
        """More of a thought; an encrypted one is told whole."""
        if "redactedContent" in told:
            state.data += base64.b64decode(told["redactedContent"], validate=True)
            return ()
        text, signature = told.get("text") or "", told.get("signature") or ""
        if not (text or signature):
            return ()
        self._wrote(text)
        thought = content_pb2.ThinkingPart(text=text, signature=signature)
        return _delta(thinking=thought, part_index=index)

    def _keep(self, block: Json) -> None:
        """A block that the contract has no delta for."""
        self._own.append(block)
        self.started = True
        self.output_bytes += len(dump(block))

    def _wrote(self, text: str) -> None:
        self.started = True
        self.output_bytes += utf8_size(text)


def _delta(**gained: Any) -> _Made:
    """What the answer gained."""
    event = chat_pb2.ChatEvent()
    event.delta.choices.add(**gained)
    return (event,)


def _parsed(text: str) -> object:
    """The input of one of Bedrock's own tools; as text when the output limit cut it."""
    try:
        return _DECODER.decode(text)
    except msgspec.DecodeError:
        return text
