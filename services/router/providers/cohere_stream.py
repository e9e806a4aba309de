"""A streamed answer of Cohere's, event by event (https://docs.cohere.com/reference/chat-stream).

``message-start``, then the plan, the content blocks, the calls and the citations as they come, then
``message-end`` with the reason and the usage. Events of unknown type are ignored.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from runtime.sse import ServerSentEvent
from services.router.providers.base import StreamState
from services.router.providers.cohere_messages import PROVIDER
from services.router.providers.cohere_outcomes import (
    FINISH_REASONS,
    annotations,
    check_finish,
    logprobs,
    usage,
)
from services.router.providers.foreign import MALFORMED, Json, protocol_error, utf8_size

_DECODER: Final = msgspec.json.Decoder()
_DONE: Final = b"[DONE]"
_NULL: Final = "null"
_Made = Sequence[chat_pb2.ChatEvent]


class CohereStream(StreamState):
    """Decodes one answer."""

    __slots__ = ("_calls", "_citations", "_handlers", "_model", "_pending")

    def __init__(self, model: str) -> None:
        """``model`` was called; an answer does not name it."""
        super().__init__()
        self._model = model
        self._calls: dict[int, int] = {}
        self._pending: dict[int, str] = {}
        self._citations: list[Json] = []
        self._handlers: Mapping[str, Callable[[Json], _Made]] = {
            "message-start": self._message_start,
            "content-start": self._content,
            "content-delta": self._content,
            "tool-plan-delta": self._plan,
            "tool-call-start": self._call_start,
            "tool-call-delta": self._call_delta,
            "tool-call-end": self._call_end,
            "citation-start": self._citation,
            "message-end": self._message_end,
        }

    def feed(self, events: Sequence[ServerSentEvent]) -> list[chat_pb2.ChatEvent]:
        """The deltas that the events hold."""
        made: list[chat_pb2.ChatEvent] = []
        for event in events:
            if self.done or event.data == _DONE:
                break
            try:
                data = _DECODER.decode(event.data)
                handler = self._handlers.get(data["type"])
                if handler is not None:
                    made += handler(data)
            except MALFORMED as exc:
                raise protocol_error(PROVIDER, "sent an event that is not its protocol's") from exc
        return made

    def end(self) -> list[chat_pb2.ChatEvent]:
        """The provider closed the stream."""
        if not self.done:
            raise protocol_error(PROVIDER, "ended the stream before the answer was complete")
        return []

    def _message_start(self, data: Json) -> _Made:
        self.upstream_id = data.get("id") or ""
        event = chat_pb2.ChatEvent()
        event.delta.id = self.upstream_id
        event.delta.model = self._model
        event.delta.choices.add(starts=True)
        return (event,)

    def _content(self, data: Json) -> _Made:
        """More text or thinking; a block's first piece may hold some already."""
        block = data["delta"]["message"]["content"]
        index = data.get("index") or 0
        gained: dict[str, Any] = {}
        if block.get("text"):
            gained["text"] = self._said(block["text"])
        elif block.get("thinking"):
            thought = self._said(block["thinking"])
            gained["thinking"] = content_pb2.ThinkingPart(text=thought)
        else:
            return ()
        if data.get("logprobs"):
            gained["logprobs"] = logprobs([data["logprobs"]])
        return _delta(part_index=index, **gained)

    def _plan(self, data: Json) -> _Made:
        """More of the plan before the calls, which is a thought."""
        plan = data["delta"]["message"]["tool_plan"]
        return _delta(thinking=content_pb2.ThinkingPart(text=self._said(plan))) if plan else ()

    def _call_start(self, data: Json) -> _Made:
        call = data["delta"]["message"]["tool_calls"]
        number = self._calls[data["index"]] = len(self._calls)
        self._pending[number] = ""
        begun = chat_pb2.ToolCallDelta(
            index=number,
            id=call["id"],
            name=self._said(call["function"]["name"]),
            kind=content_pb2.TOOL_KIND_FUNCTION,
        )
        return (*_delta(tool_calls=[begun]), *self._more(number, call["function"].get("arguments")))

    def _call_delta(self, data: Json) -> _Made:
        function = data["delta"]["message"]["tool_calls"]["function"]
        return self._more(self._calls[data["index"]], function["arguments"])

    def _call_end(self, data: Json) -> _Made:
        """A call whose arguments were nothing, or ``null``, has none."""
        number = self._calls[data["index"]]
        return self._arguments(number, "{}") if number in self._pending else ()

    def _more(self, number: int, text: str | None) -> _Made:
        """More of a call's arguments, held back as long as they may become ``null``."""
        if not text:
            return ()
        if number in self._pending:
            text = self._pending[number] + text
            if _NULL.startswith(text):
                self._pending[number] = text
                return ()
        return self._arguments(number, text)

    def _arguments(self, number: int, text: str) -> _Made:
        self._pending.pop(number, None)
        call = chat_pb2.ToolCallDelta(index=number, arguments=self._said(text))
        return _delta(tool_calls=[call])

    def _citation(self, data: Json) -> _Made:
        """Kept until the end: clients cannot join citations that come one by one."""
        self._citations.append(data["delta"]["message"]["citations"])
        return ()

    def _message_end(self, data: Json) -> _Made:
        """Why the answer ends, and its usage."""
        told = data["delta"]
        self.usage = usage(told.get("usage") or {})
        reason = str(told["finish_reason"])
        check_finish(reason, told.get("error"))
        self.finish_reason = reason
        self.done = True
        noted = annotations(self._citations)
        last = _delta(
            finish_reason=FINISH_REASONS.get(reason, chat_pb2.FINISH_REASON_STOP),
            native_finish_reason=reason,
        )
        return (*_delta(annotations=noted), *last) if noted else last

    def _said(self, text: str) -> str:
        self.started = True
        self.output_bytes += utf8_size(text)
        return text


def _delta(**gained: Any) -> _Made:
    """What the answer gained."""
    event = chat_pb2.ChatEvent()
    event.delta.choices.add(**gained)
    return (event,)
