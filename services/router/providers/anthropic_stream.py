"""A streamed answer of Anthropic's, event by event
(https://platform.claude.com/docs/en/build-with-claude/streaming).

``message_start``, then per block ``content_block_start``, ``…_delta`` and ``…_stop``, then
``message_delta`` with the reason and the usage so far, then ``message_stop``. Events of unknown
type may come at any time and are ignored, as the documentation asks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from runtime.sse import ServerSentEvent
from services.router.providers import anthropic_blocks
from services.router.providers.anthropic_models import PROVIDER
from services.router.providers.anthropic_outcomes import (
    FINISH_REASONS,
    answered_tier,
    error_event,
    extra,
)
from services.router.providers.base import StreamState
from services.router.providers.foreign import (
    MALFORMED,
    Json,
    beside,
    dump,
    protocol_error,
    utf8_size,
)

_DECODER: Final = msgspec.json.Decoder()
_BYTES_PER_TOKEN: Final = 4


@dataclass(slots=True)
class _Block:
    """A block that has begun: as it came, and what its deltas add."""

    block: Json
    tool_index: int = -1
    text_start: int = 0
    input_json: list[str] = field(default_factory=list)
    citations: list[Json] = field(default_factory=list)


class AnthropicStream(StreamState):
    """Decodes one answer.

    From ``message_start`` on ``usage`` holds the true input and, until ``message_delta`` tells,
    an ``estimated`` output.
    """

    __slots__ = (
        "_annotations",
        "_beside",
        "_blocks",
        "_handlers",
        "_model",
        "_reported",
        "_text_chars",
        "_tool_calls",
    )

    def __init__(self, model: str) -> None:
        """``model`` was called, should the answer not name it."""
        super().__init__()
        self._model = model
        self._blocks: dict[int, _Block] = {}
        self._annotations: list[content_pb2.Annotation] = []
        self._beside: dict[str, list[Json]] = {}
        self._reported: Json = {}
        self._text_chars = 0
        self._tool_calls = 0
        self._handlers: Mapping[str, Callable[[Json], Sequence[chat_pb2.ChatEvent]]] = {
            "content_block_delta": self._delta,
            "content_block_start": self._block_start,
            "content_block_stop": self._block_stop,
            "message_start": self._message_start,
            "message_delta": self._message_delta,
            "message_stop": self._message_stop,
            "error": self._error,
        }

    def feed(self, events: Sequence[ServerSentEvent]) -> list[chat_pb2.ChatEvent]:
        """The deltas that the events hold."""
        made: list[chat_pb2.ChatEvent] = []
        for event in events:
            if self.done:
                break
            try:
                data = _DECODER.decode(event.data)
                handler = self._handlers.get(data["type"])
                if handler is not None:
                    made += handler(data)
            except MALFORMED as exc:
                raise protocol_error(PROVIDER, "sent an event that is not its protocol's") from exc
        if self.usage is not None and self.usage.estimated:
            self.usage.output_tokens = self.output_bytes // _BYTES_PER_TOKEN + 1
        return made

    def end(self) -> list[chat_pb2.ChatEvent]:
        """The provider closed the stream."""
        if not self.done:
            raise protocol_error(PROVIDER, "ended the stream before the answer was complete")
        return []

    def _message_start(self, data: Json) -> Sequence[chat_pb2.ChatEvent]:
        """The answer's name and the input's usage; a resumed turn brings its first blocks along."""
        message = data["message"]
        self.upstream_id = message["id"]
        self._reported.update(message.get("usage") or {})
        self.usage = anthropic_blocks.usage(self._reported)
        if self.usage is not None:
            self.usage.estimated = True
        first = chat_pb2.ChatEvent()
        first.delta.id = message["id"]
        first.delta.model = message.get("model") or self._model
        first.delta.service_tier = answered_tier(self._reported)
        first.delta.choices.add(starts=True)
        made = [first]
        for index, block in enumerate(message.get("content") or ()):
            made += self._chunk(self._start(index, block))
            made += self._chunk(self._stop(index))
        return made

    def _block_start(self, data: Json) -> Sequence[chat_pb2.ChatEvent]:
        return self._chunk(self._start(data["index"], data["content_block"]))

    def _block_stop(self, data: Json) -> Sequence[chat_pb2.ChatEvent]:
        return self._chunk(self._stop(data["index"]))

    def _delta(self, data: Json) -> Sequence[chat_pb2.ChatEvent]:
        """More of a block."""
        index, delta = data["index"], data["delta"]
        kind = delta["type"]
        if kind == "text_delta":
            if not delta["text"]:
                return ()
            # Most events are these: the message is built in place, which is thrice as fast.
            event = chat_pb2.ChatEvent()
            event.delta.choices.add(text=self._said(delta["text"]), part_index=index)
            return (event,)
        state = self._blocks[index]
        if kind == "thinking_delta":
            return self._chunk(self._thought(index, text=delta["thinking"]))
        if kind == "signature_delta":
            return self._chunk(self._thought(index, signature=delta["signature"]))
        if kind == "input_json_delta":
            return self._chunk(self._input(index, state, delta["partial_json"]))
        if kind == "citations_delta":
            state.citations.append(delta["citation"])
        else:
            state.block.update({key: delta[key] for key in delta if key != "type"})
        return ()

    def _message_delta(self, data: Json) -> Sequence[chat_pb2.ChatEvent]:
        """Why the answer ends, and the usage so far, which is cumulative."""
        told = data["delta"]
        for key, value in (data.get("usage") or {}).items():
            if value is not None:
                self._reported[key] = value
        self.usage = anthropic_blocks.usage(self._reported)
        reason = told.get("stop_reason") or ""
        if not reason:
            return ()
        self.finish_reason = reason
        made = list(self._last_words())
        event = chat_pb2.ChatEvent()
        event.delta.extra_json = extra({**data, **told})
        event.delta.choices.add(
            finish_reason=FINISH_REASONS.get(reason, chat_pb2.FINISH_REASON_STOP),
            native_finish_reason=reason,
        )
        return [*made, event]

    def _message_stop(self, _data: Json) -> Sequence[chat_pb2.ChatEvent]:
        if not self.finish_reason:
            raise protocol_error(PROVIDER, "ended the answer without saying why")
        self.done = True
        return ()

    def _error(self, data: Json) -> Sequence[chat_pb2.ChatEvent]:
        raise error_event(data)

    def _start(self, index: int, block: Json) -> chat_pb2.ChoiceDelta | None:
        """A block begins; some come whole."""
        state = self._blocks[index] = _Block(block=block, text_start=self._text_chars)
        match block["type"]:
            case "text":
                state.citations.extend(block.get("citations") or ())
                if not block["text"]:
                    return None
                return chat_pb2.ChoiceDelta(text=self._said(block["text"]), part_index=index)
            case "thinking" | "redacted_thinking":
                part = anthropic_blocks.thinking(block)
                return self._thought(index, part.text, part.signature, part.redacted_data)
            case "tool_use":
                state.tool_index = self._tool_calls
                self._tool_calls += 1
                self._wrote(block["name"])
                call = chat_pb2.ToolCallDelta(
                    index=state.tool_index,
                    id=block["id"],
                    name=block["name"],
                    kind=content_pb2.TOOL_KIND_FUNCTION,
                )
                return chat_pb2.ChoiceDelta(tool_calls=[call], part_index=index)
            case _:
                return None

    def _stop(self, index: int) -> chat_pb2.ChoiceDelta | None:
        """A block is complete: what could not be told in pieces is told now.

        The end of a block that never began is ignored, as Anthropic's own clients do.
        """
        state = self._blocks.pop(index, None)
        if state is None:
            return None
        block = state.block
        match block["type"]:
            case "text":
                if state.citations:
                    self._beside.setdefault("citations", []).extend(state.citations)
                    self._annotations += anthropic_blocks.annotations(
                        state.citations, state.text_start, self._text_chars
                    )
                return None
            case "thinking" | "redacted_thinking":
                return None
            case "tool_use":
                return None if state.input_json else self._input(index, state, _whole(block))
            case _:
                if state.input_json:
                    block["input"] = _parsed("".join(state.input_json))
                self._beside.setdefault("parts", []).append(block)
                self.started = True
                self.output_bytes += len(dump(block))
                return None

    def _last_words(self) -> Sequence[chat_pb2.ChatEvent]:
        """What is said once, at the end: clients join lists in deltas by an ``index`` that
        citations and blocks do not have (``accumulate_delta`` of openai-python).
        """
        noted = told = None
        if self._annotations:
            noted = chat_pb2.ChoiceDelta(annotations=self._annotations)
        if self._beside:
            told = chat_pb2.ChoiceDelta(extra_json=beside(**self._beside))
        return (*self._chunk(noted), *self._chunk(told))

    def _said(self, text: str) -> str:
        self._text_chars += len(text)
        self._wrote(text)
        return text

    def _thought(
        self, index: int, text: str = "", signature: str = "", redacted_data: str = ""
    ) -> chat_pb2.ChoiceDelta | None:
        if not (text or signature or redacted_data):
            return None
        self._wrote(text)
        part = content_pb2.ThinkingPart(text=text, signature=signature, redacted_data=redacted_data)
        return chat_pb2.ChoiceDelta(thinking=part, part_index=index)

    def _input(self, index: int, state: _Block, text: str) -> chat_pb2.ChoiceDelta | None:
        """More of a tool's arguments; those of the provider's own tools wait for their end."""
        if not text:
            return None
        state.input_json.append(text)
        if state.tool_index < 0:
            return None
        self._wrote(text)
        call = chat_pb2.ToolCallDelta(index=state.tool_index, arguments=text)
        return chat_pb2.ChoiceDelta(tool_calls=[call], part_index=index)

    def _wrote(self, text: str) -> None:
        self.started = True
        self.output_bytes += utf8_size(text)

    @staticmethod
    def _chunk(choice: chat_pb2.ChoiceDelta | None) -> Sequence[chat_pb2.ChatEvent]:
        if choice is None:
            return ()
        event = chat_pb2.ChatEvent()
        event.delta.choices.append(choice)
        return (event,)


def _whole(block: Json) -> str:
    """The arguments of a call that came without deltas: a call without arguments has none."""
    return dump(block.get("input") or {}).decode()


def _parsed(text: str) -> object:
    """The input of one of the provider's own tools. One that the output limit cut is no JSON: it is
    wrapped as the documentation asks it to be sent back
    (https://platform.claude.com/docs/en/agents-and-tools/tool-use/fine-grained-tool-streaming).
    """
    try:
        return _DECODER.decode(text)
    except msgspec.DecodeError:
        return {"INVALID_JSON": text}
