"""What Ollama's own chat answers, whole and in pieces (https://docs.ollama.com/api/chat).

A streamed answer is one JSON value a line, each a piece of the message, the last with ``done``, the
reason and the counts. A call of a tool comes whole.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final

import msgspec

from onegate.common.v1 import content_pb2, error_pb2, token_usage_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.sse import ServerSentEvent
from services.router.providers.base import Framing, StreamState
from services.router.providers.foreign import (
    MALFORMED,
    STATUS_REASONS,
    Json,
    count,
    dump,
    protocol_error,
    retry_after_ms,
    upstream_error,
    utf8_size,
)
from services.router.providers.json_lines import JsonLinesParser
from services.router.providers.ollama_native_messages import PROVIDER

FINISH_REASONS: Final[Mapping[str, chat_pb2.FinishReason.ValueType]] = {
    "stop": chat_pb2.FINISH_REASON_STOP,
    "length": chat_pb2.FINISH_REASON_LENGTH,
}
"""By ``done_reason``; one that is not listed counts as STOP, and its own word is kept."""

_COUNTS: Final = frozenset({"prompt_eval_count", "eval_count"})
_CONTEXT_LENGTH: Final = ("context length", "context window", "prompt too long")
_ID_CHARS: Final = 16
_DECODER: Final = msgspec.json.Decoder()


class OllamaStream(StreamState):
    """Decodes one answer."""

    __slots__ = ("_began", "_calls", "_model")

    framing: ClassVar[type[Framing]] = JsonLinesParser

    def __init__(self, model: str) -> None:
        """``model`` was called, should the answer not name it."""
        super().__init__()
        self._model = model
        self._began = False
        self._calls = 0

    def feed(self, events: Sequence[ServerSentEvent]) -> list[chat_pb2.ChatEvent]:
        """The deltas that the events hold."""
        made: list[chat_pb2.ChatEvent] = []
        for event in events:
            if self.done:
                break
            try:
                made += self._pieces(_DECODER.decode(event.data))
            except MALFORMED as exc:
                raise protocol_error(PROVIDER, "sent a line that is not its protocol's") from exc
        return made

    def end(self) -> list[chat_pb2.ChatEvent]:
        """The provider closed the stream."""
        if not self.done:
            raise protocol_error(PROVIDER, "ended the stream before the answer was complete")
        return []

    def _pieces(self, told: Json) -> list[chat_pb2.ChatEvent]:
        """One line."""
        if told.get("error"):
            raise error(0, {}, dump(told))
        made: list[chat_pb2.ChatEvent] = []
        if not self._began:
            self._began = True
            first = chat_pb2.ChatEvent()
            first.delta.model = told.get("model") or self._model
            first.delta.created_unix_s = created(told)
            first.delta.choices.add(starts=True)
            made.append(first)
        message = told.get("message") or {}
        if message.get("thinking"):
            thought = self._said(message["thinking"])
            made += _delta(thinking=content_pb2.ThinkingPart(text=thought))
        if message.get("content"):
            made += _delta(text=self._said(message["content"]), logprobs=logprobs(told))
        for call in message.get("tool_calls") or ():
            made += self._call(told, call)
        for picture in message.get("images") or ():
            self.started = True
            made += _delta(images=[image(picture)])
        return [*made, *self._end(told)] if told["done"] else made

    def _call(self, told: Json, call: Json) -> Sequence[chat_pb2.ChatEvent]:
        """A call of a tool, whole."""
        made = tool_call(told, call, self._calls)
        self._said(made.name + made.arguments)
        delta = chat_pb2.ToolCallDelta(
            index=self._calls,
            id=made.id,
            name=made.name,
            arguments=made.arguments,
            kind=made.kind,
        )
        self._calls += 1
        return _delta(tool_calls=[delta])

    def _end(self, told: Json) -> Sequence[chat_pb2.ChatEvent]:
        self.done = True
        self.usage = usage(told)
        self.finish_reason = told.get("done_reason") or "stop"
        return _delta(
            finish_reason=finish(self.finish_reason, calls=self._calls > 0),
            native_finish_reason=self.finish_reason,
        )

    def _said(self, text: str) -> str:
        self.started = True
        self.output_bytes += utf8_size(text)
        return text


def parts(told: Json) -> list[content_pb2.Part]:
    """The parts of a whole answer."""
    message = told["message"]
    made: list[content_pb2.Part] = []
    if message.get("thinking"):
        thought = content_pb2.ThinkingPart(text=message["thinking"])
        made.append(content_pb2.Part(thinking=thought))
    if message["content"]:
        made.append(content_pb2.Part(text=content_pb2.TextPart(text=message["content"])))
    calls = enumerate(message.get("tool_calls") or ())
    made += [content_pb2.Part(tool_call=tool_call(told, call, n)) for n, call in calls]
    made += [content_pb2.Part(image=image(each)) for each in message.get("images") or ()]
    return made


def tool_call(told: Json, call: Json, number: int) -> content_pb2.ToolCall:
    """A call; older servers give it no id."""
    function = call["function"]
    given = dump(function.get("arguments") or {}).decode()
    name = function["name"]
    call_id = call.get("id")
    if not call_id:
        mark = f"{told.get('created_at')}/{number}/{name}/{given}".encode()
        call_id = f"call_{hashlib.sha256(mark).hexdigest()[:_ID_CHARS]}"
    return content_pb2.ToolCall(
        id=call_id, name=name, arguments=given, kind=content_pb2.TOOL_KIND_FUNCTION
    )


def image(encoded: str) -> content_pb2.ImagePart:
    """A picture that the model made."""
    source = content_pb2.MediaSource(
        data=base64.b64decode(encoded, validate=True), media_type="image/png"
    )
    return content_pb2.ImagePart(source=source)


def finish(reason: str, *, calls: bool) -> chat_pb2.FinishReason.ValueType:
    """Why an answer ended; Ollama stops for calls like for anything else."""
    known = FINISH_REASONS.get(reason, chat_pb2.FINISH_REASON_STOP)
    if calls and known == chat_pb2.FINISH_REASON_STOP:
        return chat_pb2.FINISH_REASON_TOOL_CALLS
    return known


def usage(told: Json) -> token_usage_pb2.TokenUsage | None:
    """The usage; ``None`` when a count is missing, as older servers' is for a prompt that was
    cached: no count is no zero.
    """
    if not told.keys() >= _COUNTS:
        return None
    return token_usage_pb2.TokenUsage(
        input_tokens=count(told["prompt_eval_count"]), output_tokens=count(told["eval_count"])
    )


def logprobs(told: Json) -> chat_pb2.Logprobs | None:
    """Log probabilities by token; ``None`` when there are none."""
    listed = told.get("logprobs")
    return chat_pb2.Logprobs(content=[_token(each) for each in listed]) if listed else None


def created(told: Json) -> int:
    """When the answer was made, in Unix seconds; 0 when it does not say."""
    try:
        return max(0, int(datetime.fromisoformat(told["created_at"]).timestamp()))
    except (KeyError, TypeError, ValueError):
        return 0


def error(status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
    """What an error means: its status, and its ``error``."""
    try:
        told = msgspec.json.decode(body)
    except msgspec.DecodeError:
        told = None
    said = told.get("error") if isinstance(told, dict) else ""
    reason = STATUS_REASONS.get(status, error_pb2.ERROR_REASON_UPSTREAM_ERROR)
    if status == 404:
        reason = error_pb2.ERROR_REASON_MODEL_NOT_FOUND
    elif any(words in str(said).lower() for words in _CONTEXT_LENGTH):
        reason = error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED
    return upstream_error(
        PROVIDER, reason, status=status, said=said, retry_ms=retry_after_ms(headers)
    )


def _token(told: Json) -> chat_pb2.TokenLogprob:
    made = chat_pb2.TokenLogprob(
        token=told["token"],
        logprob=told["logprob"],
        top=[_token(each) for each in told.get("top_logprobs") or ()],
    )
    if told.get("bytes"):
        made.utf8 = bytes(told["bytes"])
    return made


def _delta(**gained: Any) -> Sequence[chat_pb2.ChatEvent]:
    """What the answer gained."""
    event = chat_pb2.ChatEvent()
    event.delta.choices.add(**gained)
    return (event,)
