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
from services.router.providers.foreign import BLOCKS_KEY, MALFORMED, Json, dump, protocol_error
from services.router.providers.gemini_models import PROVIDER
from services.router.providers.gemini_outcomes import answered_tier, finish, told_error

_DECODER: Final = msgspec.json.Decoder()


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
                delta = self._delta(_DECODER.decode(event.data))
            except MALFORMED as exc:
                raise protocol_error(PROVIDER, "sent an event that is not its protocol's") from exc
            if delta is not None:
                made.append(chat_pb2.ChatEvent(delta=delta))
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

    def _delta(self, chunk: Json) -> chat_pb2.ChatDelta | None:
        """One event."""
        if "error" in chunk:
            raise told_error(0, {}, chunk)
        delta = chat_pb2.ChatDelta(extra_json=gemini_parts.told_beside(chunk))
        if chunk.get("usageMetadata"):
            self._reported = chunk["usageMetadata"]
        if not self._candidates:
            self.upstream_id = chunk.get("responseId") or ""
            delta.id = self.upstream_id
            delta.model = chunk.get("modelVersion") or self._exchange.model
            delta.service_tier = answered_tier(self._reported)
        for position, candidate in enumerate(chunk.get("candidates") or ()):
            delta.choices.extend(self._pieces(candidate.get("index", position), candidate))
        blocked = (chunk.get("promptFeedback") or {}).get("blockReason")
        if blocked:
            delta.choices.append(self._blocked(blocked))
        finished = sum(candidate.finished for candidate in self._candidates.values())
        self.done = finished >= self._expected and "usageMetadata" in chunk
        return delta if delta.choices or delta.extra_json else None

    def _pieces(self, index: int, candidate: Json) -> list[chat_pb2.ChoiceDelta]:
        """What one answer gained: a piece for every part, and one for its end."""
        state = self._candidates.get(index)
        pieces = []
        if state is None:
            state = self._candidates[index] = _Candidate()
            pieces.append(chat_pb2.ChoiceDelta(index=index, starts=True))
        for part in (candidate.get("content") or {}).get("parts") or ():
            pieces += self._part(index, state, part)
        last = chat_pb2.ChoiceDelta(index=index)
        if candidate.get("logprobsResult"):
            last.logprobs.CopyFrom(gemini_parts.logprobs(candidate["logprobsResult"]))
        if candidate.get("groundingMetadata"):
            grounding = candidate["groundingMetadata"]
            last.annotations.extend(gemini_parts.annotations(grounding, "".join(state.text)))
            state.searches = gemini_parts.searches(candidate, self._exchange.model)
        if reason := candidate.get("finishReason"):
            self._finish(state, last, reason)
        if last.ListFields() != chat_pb2.ChoiceDelta(index=index).ListFields():
            pieces.append(last)
        return pieces

    def _part(self, index: int, state: _Candidate, part: Json) -> list[chat_pb2.ChoiceDelta]:
        """One part."""
        call_id = ""
        if "functionCall" in part:
            call_id = gemini_parts.made_up_id(self.upstream_id, state.calls, part)
        pieces = []
        for made in gemini_parts.parts(part, call_id):
            self.started = True
            self.output_bytes += gemini_parts.output_bytes(made)
            pieces.append(self._piece(index, state, made))
        return pieces

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

    def _blocked(self, reason: str) -> chat_pb2.ChoiceDelta:
        """The prompt was refused: an answer without content."""
        self._candidates.setdefault(0, _Candidate()).finished = True
        self.finish_reason = reason
        return chat_pb2.ChoiceDelta(
            starts=True,
            finish_reason=chat_pb2.FINISH_REASON_CONTENT_FILTER,
            native_finish_reason=reason,
        )

    def _finish(self, state: _Candidate, last: chat_pb2.ChoiceDelta, reason: str) -> None:
        state.finished = True
        self.finish_reason = reason
        last.finish_reason = finish(reason, calls=state.calls > 0)
        last.native_finish_reason = reason
