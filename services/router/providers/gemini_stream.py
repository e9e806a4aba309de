"""A streamed answer of Gemini's: every event is a piece of a GenerateContentResponse
(https://ai.google.dev/api/generate-content#method:-models.streamgeneratecontent).

There is no last event: an answer is complete when every candidate has said why it ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from runtime.sse import ServerSentEvent
from services.router.providers import gemini_parts
from services.router.providers.base import Exchange, StreamState
from services.router.providers.foreign import (
    MALFORMED,
    Json,
    beside,
    protocol_error,
    utf8_size,
)
from services.router.providers.gemini_models import PROVIDER
from services.router.providers.gemini_outcomes import answered_tier, finish, told_error

_DECODER: Final = msgspec.json.Decoder()
_LAST_WORDS: Final = frozenset({"finishReason", "groundingMetadata", "logprobsResult"})


@dataclass(slots=True)
class _Candidate:
    """How far one of the answers has come."""

    index: int
    finished: bool = False
    pieces: int = 0
    kind: str = ""
    part_index: int = -1
    calls: int = 0
    searches: int = 0
    text: list[str] = field(default_factory=list)
    own: list[Json] = field(default_factory=list)
    annotations: list[content_pb2.Annotation] = field(default_factory=list)


class GeminiStream(StreamState):
    """Decodes one answer."""

    __slots__ = ("_candidates", "_exchange", "_expected", "_reported")

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self._exchange = exchange
        self._expected = exchange.request.choices or 1
        self._candidates: dict[int, _Candidate] = {}
        self._reported: Json = {}

    def feed(self, events: Sequence[ServerSentEvent]) -> list[chat_pb2.ChatEvent]:
        """The deltas that the events hold."""
        made: list[chat_pb2.ChatEvent] = []
        reported = self._reported
        for event in events:
            if self.done:
                break
            try:
                made += self._events(_DECODER.decode(event.data))
            except MALFORMED as exc:
                raise protocol_error(PROVIDER, "sent an event that is not its protocol's") from exc
        if self._reported is not reported:
            searches = sum(candidate.searches for candidate in self._candidates.values())
            self.usage = gemini_parts.usage(self._reported, searches)
        return made

    def end(self) -> list[chat_pb2.ChatEvent]:
        """The provider closed the stream."""
        finished = [candidate.finished for candidate in self._candidates.values()]
        if not finished or not all(finished):
            raise protocol_error(PROVIDER, "ended the stream before the answer was complete")
        self.done = True
        return []

    def _events(self, chunk: Json) -> list[chat_pb2.ChatEvent]:
        """What one event holds, a piece at a time: callers look at the first choice alone."""
        if "error" in chunk:
            raise told_error(0, {}, chunk)
        made: list[chat_pb2.ChatEvent] = []
        if chunk.get("usageMetadata"):
            self._reported = chunk["usageMetadata"]
        is_first = not self._candidates
        if is_first:
            self.upstream_id = chunk.get("responseId") or ""
        for position, candidate in enumerate(chunk.get("candidates") or ()):
            self._gain(made, candidate.get("index", position), candidate)
        if blocked := (chunk.get("promptFeedback") or {}).get("blockReason"):
            self._block(made, blocked)
        if told := gemini_parts.told_beside(chunk):
            if not made:
                made.append(chat_pb2.ChatEvent())
            made[-1].delta.extra_json = told
        if is_first and made:
            head = made[0].delta
            head.id = self.upstream_id
            head.model = chunk.get("modelVersion") or self._exchange.model
            head.service_tier = answered_tier(self._reported)
        if "usageMetadata" in chunk:
            finished = sum(candidate.finished for candidate in self._candidates.values())
            self.done = finished >= self._expected
        return made

    def _gain(self, made: list[chat_pb2.ChatEvent], index: int, candidate: Json) -> None:
        """What one answer gained: a piece for every part, and one for its end."""
        state = self._candidates.get(index)
        if state is None:
            state = self._candidates[index] = _Candidate(index=index)
        for part in (candidate.get("content") or {}).get("parts") or ():
            if part.keys() == {"text"}:
                if part["text"]:
                    _piece(made, state, "text").text = self._said(state, part["text"])
                continue
            call_id = ""
            if "functionCall" in part:
                call_id = gemini_parts.made_up_id(self.upstream_id, state.calls, part)
            for each in gemini_parts.parts(part, call_id):
                self._add(made, state, each)
        if candidate.keys() & _LAST_WORDS:
            self._end(made, state, candidate)
        if not state.pieces:
            _piece(made, state, "text")

    def _end(self, made: list[chat_pb2.ChatEvent], state: _Candidate, candidate: Json) -> None:
        """What is said of the answer as a whole, and why it ends.

        Sources and Gemini's own parts are said once: clients join lists in deltas by an ``index``
        that these do not have (``accumulate_delta`` of openai-python).
        """
        if grounding := candidate.get("groundingMetadata"):
            state.annotations = gemini_parts.annotations(grounding, "".join(state.text))
            found = gemini_parts.searches(candidate, self._exchange.model)
            state.searches = max(state.searches, found)
        if tokens := candidate.get("logprobsResult"):
            piece = _piece(made, state, state.kind)
            piece.logprobs.CopyFrom(gemini_parts.logprobs(tokens))
        if reason := candidate.get("finishReason"):
            if state.own:
                _piece(made, state, state.kind).extra_json = beside(parts=state.own)
            state.finished = True
            self.finish_reason = reason
            last = _piece(made, state, state.kind)
            last.annotations.extend(state.annotations)
            last.finish_reason = finish(reason, calls=state.calls > 0)
            last.native_finish_reason = reason

    def _add(
        self, made: list[chat_pb2.ChatEvent], state: _Candidate, part: content_pb2.Part
    ) -> None:
        """A part as what the answer gained."""
        self._wrote(gemini_parts.output_bytes(part))
        kind = part.WhichOneof("content") or ""
        if kind == "opaque_json":
            state.own.append(_DECODER.decode(part.opaque_json))
            return
        # A proof without a thought belongs to the part before it.
        alone = kind == "thinking" and not part.thinking.text
        piece = _piece(made, state, state.kind if alone else kind)
        match kind:
            case "text":
                state.text.append(part.text.text)
                piece.text = part.text.text
            case "thinking":
                piece.thinking.CopyFrom(part.thinking)
            case "tool_call":
                piece.tool_calls.add(
                    index=state.calls,
                    id=part.tool_call.id,
                    name=part.tool_call.name,
                    arguments=part.tool_call.arguments,
                    kind=part.tool_call.kind,
                    thought_signature=part.tool_call.thought_signature,
                )
                state.calls += 1
            case "image":
                piece.images.append(part.image)
            case _:
                piece.audio.id = self.upstream_id
                piece.audio.data = part.audio.source.data

    def _block(self, made: list[chat_pb2.ChatEvent], reason: str) -> None:
        """The prompt was refused: an answer without content."""
        state = self._candidates.setdefault(0, _Candidate(index=0))
        state.finished = True
        self.finish_reason = reason
        piece = _piece(made, state, "text")
        piece.finish_reason = chat_pb2.FINISH_REASON_CONTENT_FILTER
        piece.native_finish_reason = reason

    def _said(self, state: _Candidate, text: str) -> str:
        self._wrote(utf8_size(text))
        state.text.append(text)
        return text

    def _wrote(self, size: int) -> None:
        self.started = True
        self.output_bytes += size


def _piece(made: list[chat_pb2.ChatEvent], state: _Candidate, kind: str) -> chat_pb2.ChoiceDelta:
    """A new piece of an answer. Pieces of one kind in a row are one part."""
    kind = kind or "text"
    if kind != state.kind:
        state.kind = kind
        state.part_index += 1
    event = chat_pb2.ChatEvent()
    made.append(event)
    piece = event.delta.choices.add(index=state.index, part_index=state.part_index)
    if not state.pieces:
        piece.starts = True
    state.pieces += 1
    return piece
