"""What Replicate answers: predictions, the events of their streams, and errors.

https://replicate.com/docs/topics/predictions/lifecycle,
https://replicate.com/docs/reference/streaming.

A prediction ends as ``succeeded``, ``failed``, ``canceled`` (by somebody, or beyond its deadline)
or ``aborted`` (beyond its deadline before it ran). Its ``output`` is a string, or a list of pieces
of one. Official language models say in ``metrics`` how many tokens went in and out; of others only
the time is known, and the tokens are counted here.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from onegate.common.v1 import content_pb2, error_pb2, token_usage_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.sse import ServerSentEvent
from services.router.providers.base import Answer, Exchange, StreamState
from services.router.providers.foreign import (
    MALFORMED,
    STATUS_REASONS,
    Json,
    count,
    dump,
    protocol_error,
    read_object,
    retry_after_ms,
    upstream_error,
    utf8_size,
)
from services.router.providers.replicate_inputs import PROVIDER

OVER: Final = frozenset({"succeeded", "failed", "canceled", "aborted"})
SUCCEEDED: Final = "succeeded"
PREDICTION: Final = b"prediction"
"""The event that the gateway itself adds to a stream, or gives in the place of one: the prediction
as it ended. Replicate's own are ``output``, ``logs``, ``error`` and ``done``."""

_LAST: Final = frozenset({b"done", b"error"})
_SENSITIVE: Final = re.compile(r"sensitive|E005|safety|content polic", re.IGNORECASE)
_CONTEXT_LENGTH: Final = re.compile(
    r"context (?:length|window)|too many (?:input )?tokens|(?:prompt|input) (?:is )?too long",
    re.IGNORECASE,
)


class ReplicateStream(StreamState):
    """Decodes one answer: pieces of text, then how the prediction ended."""

    __slots__ = ("_began", "_cap", "_ended", "_model", "_said")

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self._model = exchange.model
        self._cap = exchange.request.output_tokens_max
        self._began = False
        self._ended = False
        self._said: list[str] = []

    def feed(self, events: Sequence[ServerSentEvent]) -> list[chat_pb2.ChatEvent]:
        """The deltas that the events hold."""
        made: list[chat_pb2.ChatEvent] = []
        for event in events:
            if self.done:
                break
            match event.event:
                case b"output":
                    made += self._more(_utf8(event.data))
                case b"error":
                    raise failure(_said_of(event.data))
                case b"done":
                    self._ended = True
                    _check_done(event.data)
                case name if name == PREDICTION:
                    made += self._settle(read_object(event.data, PROVIDER))
                case _:
                    pass
        return made

    def end(self) -> list[chat_pb2.ChatEvent]:
        """The stream is over. Where its last event came, only what it cost stays unsaid."""
        if not self._ended:
            raise protocol_error(PROVIDER, "ended the stream before the answer was complete")
        return [] if self.done else self._finish(SUCCEEDED)

    def _more(self, text: str) -> list[chat_pb2.ChatEvent]:
        made = [] if self._began else [self._beginning()]
        if text:
            self.started = True
            self.output_bytes += utf8_size(text)
            self._said.append(text)
            made.append(_delta(text=text))
        return made

    def _beginning(self) -> chat_pb2.ChatEvent:
        self._began = True
        event = chat_pb2.ChatEvent()
        event.delta.model = self._model
        event.delta.choices.add(starts=True)
        return event

    def _settle(self, told: Json) -> list[chat_pb2.ChatEvent]:
        """How it ended, and what of the text no event brought."""
        check(told)
        self.upstream_id = str(told.get("id") or "")
        self.usage = usage(told)
        whole, said = text_of(told), "".join(self._said)
        rest = whole[len(said) :] if whole.startswith(said) else ""
        return [*self._more(rest), *self._finish(str(told["status"]))]

    def _finish(self, status: str) -> list[chat_pb2.ChatEvent]:
        self.done = True
        self.finish_reason = status
        finish = finish_of(self.usage, self._cap)
        return [_delta(finish_reason=finish, native_finish_reason=status)]


def is_last(event: ServerSentEvent) -> bool:
    """Whether no other event of the stream follows."""
    return event.event in _LAST


def answer(exchange: Exchange, body: bytes) -> Answer:
    """A prediction that is over. Raises what it failed with."""
    told = read_object(body, PROVIDER)
    check(told)
    text, used, status = text_of(told), usage(told), str(told["status"])
    part = content_pb2.Part(text=content_pb2.TextPart(text=text))
    choice = chat_pb2.Choice(
        message=content_pb2.Message(role=content_pb2.ROLE_ASSISTANT, parts=[part] if text else ()),
        finish_reason=finish_of(used, exchange.request.output_tokens_max),
        native_finish_reason=status,
    )
    identity = str(told.get("id") or "")
    made = chat_pb2.ChatAnswer(id=identity, model=exchange.model, choices=[choice])
    return Answer(
        event=chat_pb2.ChatEvent(answer=made),
        usage=used,
        finish_reason=status,
        upstream_id=identity,
        output_bytes=utf8_size(text),
    )


def check(told: Json) -> None:
    """Raises what a prediction failed with."""
    match told.get("status"):
        case "succeeded":
            return
        case "failed":
            raise failure(told.get("error"))
        case "canceled" | "aborted":
            raise upstream_error(
                PROVIDER, error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT, status=0, said=""
            )
        case _:
            raise protocol_error(PROVIDER, "answered with a prediction that is not over")


def text_of(told: Json) -> str:
    """A prediction's output. Raises UPSTREAM_PROTOCOL for one that is no text."""
    match told.get("output"):
        case None:
            return ""
        case str(text):
            return text
        case [*pieces] if all(isinstance(piece, str) for piece in pieces):
            return "".join(map(str, pieces))
        case _:
            raise protocol_error(PROVIDER, "answered with an output that is no text")


def usage(told: Json) -> token_usage_pb2.TokenUsage | None:
    """What was read and written; ``None`` where only the time is known, which is kept beside."""
    metrics = told.get("metrics")
    if not isinstance(metrics, dict) or "output_token_count" not in metrics:
        return None
    return token_usage_pb2.TokenUsage(
        input_tokens=_whole(metrics.get("input_token_count")),
        output_tokens=_whole(metrics["output_token_count"]),
        extra_json=dump({"metrics": metrics}),
    )


def finish_of(used: token_usage_pb2.TokenUsage | None, cap: int) -> chat_pb2.FinishReason.ValueType:
    """Why the answer ends, which Replicate does not say: one that is as long as it may be was
    cut.
    """
    cut = used is not None and 0 < cap <= used.output_tokens
    return chat_pb2.FINISH_REASON_LENGTH if cut else chat_pb2.FINISH_REASON_STOP


def failure(said: object) -> GatewayError:
    """What a failed prediction means; its ``error`` is a sentence."""
    text = str(said or "")
    reason = error_pb2.ERROR_REASON_UPSTREAM_ERROR
    if _CONTEXT_LENGTH.search(text):
        reason = error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED
    elif _SENSITIVE.search(text):
        reason = error_pb2.ERROR_REASON_CONTENT_POLICY
    return upstream_error(PROVIDER, reason, status=0, said=text)


def error(status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
    """What a refused request means: its status, and its ``detail``
    (https://replicate.com/docs/reference/http).
    """
    try:
        told = msgspec.json.decode(body)
    except msgspec.DecodeError:
        told = None
    said = told.get("detail") or told.get("title") if isinstance(told, dict) else ""
    reason = STATUS_REASONS.get(status, error_pb2.ERROR_REASON_UPSTREAM_ERROR)
    if status == 404:
        reason = error_pb2.ERROR_REASON_MODEL_NOT_FOUND
    return upstream_error(
        PROVIDER, reason, status=status, said=said, retry_ms=retry_after_ms(headers)
    )


def _check_done(data: bytes) -> None:
    """``done`` says why, where it is not that the answer is complete."""
    match _object(data).get("reason"):
        case "canceled":
            raise upstream_error(
                PROVIDER, error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT, status=0, said=""
            )
        case "error":
            raise failure("")
        case _:
            pass


def _said_of(data: bytes) -> str:
    """An error event's sentence: in ``detail``, or alone."""
    return str(_object(data).get("detail") or data.decode(errors="replace"))


def _object(data: bytes) -> Json:
    try:
        value = msgspec.json.decode(data)
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except MALFORMED as exc:
        raise protocol_error(PROVIDER, "sent text that is not UTF-8") from exc


def _whole(value: object) -> int:
    """A count; metrics are numbers with or without a point."""
    return count(int(value) if isinstance(value, float) and value.is_integer() else value)


def _delta(**gained: Any) -> chat_pb2.ChatEvent:
    event = chat_pb2.ChatEvent()
    event.delta.choices.add(**gained)
    return event
