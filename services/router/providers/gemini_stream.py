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
    BLOCKS_KEY,
    MALFORMED,
    Json,
    dump,
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

    finished: bool = False
    calls: int = 0
    searches: int = 0
    text: list[str] = field(default_factory=list)


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
        made = []
        reported = self._reported
        for event in events:
            if self.done:
                break
            try:
                told = self._event(_DECODER.decode(event.data))
            except MALFORMED as exc:
                raise protocol_error(PROVIDER, "sent an event that is not its protocol's") from exc
            if told is not None:
                made.append(told)
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

    def _event(self, chunk: Json) -> chat_pb2.ChatEvent | None:
        """One event, built in place."""
        if "error" in chunk:
            raise told_error(0, {}, chunk)
        event = chat_pb2.ChatEvent()
        delta = event.delta
        if chunk.get("usageMetadata"):
            self._reported = chunk["usageMetadata"]
        if not self._candidates:
            self.upstream_id = chunk.get("responseId") or ""
            delta.id = self.upstream_id
            delta.model = chunk.get("modelVersion") or self._exchange.model
            delta.service_tier = answered_tier(self._reported)
        for position, candidate in enumerate(chunk.get("candidates") or ()):
            self._gain(delta, candidate.get("index", position), candidate)
        if blocked := (chunk.get("promptFeedback") or {}).get("blockReason"):
            self._block(delta, blocked)
        if beside := gemini_parts.told_beside(chunk):
            delta.extra_json = beside
        if "usageMetadata" in chunk:
            finished = sum(candidate.finished for candidate in self._candidates.values())
            self.done = finished >= self._expected
        return event if delta.choices or delta.extra_json else None

    def _gain(self, delta: chat_pb2.ChatDelta, index: int, candidate: Json) -> None:
        """What one answer gained: a piece for every part, and one for its end."""
        state = self._candidates.get(index)
        if state is None:
            state = self._candidates[index] = _Candidate()
            delta.choices.add(index=index, starts=True)
        for part in (candidate.get("content") or {}).get("parts") or ():
            if part.keys() == {"text"}:
                self._add_text(delta, index, state, part["text"])
                continue
            call_id = ""
            if "functionCall" in part:
                call_id = gemini_parts.made_up_id(self.upstream_id, state.calls, part)
            for made in gemini_parts.parts(part, call_id):
                self._wrote(gemini_parts.output_bytes(made))
                delta.choices.append(self._piece(index, state, made))
        if candidate.keys() & _LAST_WORDS:
            last = self._last(index, state, candidate)
            if last.ByteSize() > chat_pb2.ChoiceDelta(index=index).ByteSize():
                delta.choices.append(last)

    def _add_text(
        self, delta: chat_pb2.ChatDelta, index: int, state: _Candidate, text: str
    ) -> None:
        """Text and nothing else, which most parts are."""
        if text:
            delta.choices.add(index=index, text=text)
            self._wrote(utf8_size(text))
            state.text.append(text)

    def _last(self, index: int, state: _Candidate, candidate: Json) -> chat_pb2.ChoiceDelta:
        """What is said of the answer as a whole, and why it ends."""
        last = chat_pb2.ChoiceDelta(index=index)
        if candidate.get("logprobsResult"):
            last.logprobs.CopyFrom(gemini_parts.logprobs(candidate["logprobsResult"]))
        if candidate.get("groundingMetadata"):
            grounding = candidate["groundingMetadata"]
            last.annotations.extend(gemini_parts.annotations(grounding, "".join(state.text)))
            state.searches = gemini_parts.searches(candidate, self._exchange.model)
        if reason := candidate.get("finishReason"):
            state.finished = True
            self.finish_reason = reason
            last.finish_reason = finish(reason, calls=state.calls > 0)
            last.native_finish_reason = reason
        return last

    def _wrote(self, size: int) -> None:
        self.started = True
        self.output_bytes += size

    def _piece(self, index: int, state: _Candidate, part: content_pb2.Part) -> chat_pb2.ChoiceDelta:
        """A part as what the answer gained."""
        match part.WhichOneof("content"):
            case "text":
                state.text.append(part.text.text)
                return chat_pb2.ChoiceDelta(index=index, text=part.text.text)
            case "thinking":
                return chat_pb2.ChoiceDelta(index=index, thinking=part.thinking)
            case "tool_call":
                call = chat_pb2.ToolCallDelta(
                    index=state.calls,
                    id=part.tool_call.id,
                    name=part.tool_call.name,
                    arguments=part.tool_call.arguments,
                    kind=part.tool_call.kind,
                    thought_signature=part.tool_call.thought_signature,
                )
                state.calls += 1
                return chat_pb2.ChoiceDelta(index=index, tool_calls=[call])
            case "image":
                return chat_pb2.ChoiceDelta(index=index, images=[part.image])
            case "audio":
                audio = chat_pb2.AudioDelta(id=self.upstream_id, data=part.audio.source.data)
                return chat_pb2.ChoiceDelta(index=index, audio=audio)
            case _:
                blocks = {BLOCKS_KEY: [_DECODER.decode(part.opaque_json)]}
                return chat_pb2.ChoiceDelta(index=index, extra_json=dump(blocks))

    def _block(self, delta: chat_pb2.ChatDelta, reason: str) -> None:
        """The prompt was refused: an answer without content."""
        self._candidates.setdefault(0, _Candidate()).finished = True
        self.finish_reason = reason
        delta.choices.add(
            starts=True,
            finish_reason=chat_pb2.FINISH_REASON_CONTENT_FILTER,
            native_finish_reason=reason,
        )
