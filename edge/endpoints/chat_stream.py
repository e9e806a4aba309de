"""The hub's stream events as OpenAI's server-sent chunks
(https://platform.openai.com/docs/api-reference/chat-streaming).

A chunk is encoded once; what is the same on all chunks of a stream (id, time, model) is encoded
once a stream. The pieces of a tool call of the custom kind say ``"type": "custom"``, as OpenAI's
own do, although its published schema lists only ``function`` there.
"""

import base64
from dataclasses import replace
from typing import Final

import msgspec

from edge.endpoints.chat_response import (
    AnswerFrame,
    Json,
    annotations_json,
    finish_reason,
    image_json,
    logprobs_json,
    service_tier,
    signature_json,
    thought_json,
    with_extra,
)
from edge.endpoints.strict_json import encode
from edge.endpoints.token_usage import usage_json
from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2

DONE: Final = b"data: [DONE]\n\n"
"""Ends a stream that ended well, and no other."""
KEEP_ALIVE: Final = b": keep-alive\n\n"
"""A comment, which clients skip."""

_NOTHING: Final = ("", 0, "", "", "")
_TEXT: Final = chat_pb2.ChoiceDelta.TEXT_FIELD_NUMBER
_TEXT_OPENS: Final = b'[{"index":0,"delta":{"content":'


def event(payload: bytes) -> bytes:
    """JSON as one server-sent event."""
    return b"data: " + payload + b"\n\n"


class _Said(msgspec.Struct):
    """What all chunks of a stream say."""

    id: str = ""
    created: int = 0
    model: str = ""


class ChunkEncoder:
    """Encodes the events of one stream."""

    __slots__ = (
        "_entries",
        "_frame",
        "_head",
        "_last",
        "_said",
        "_tail",
        "_text_closes",
        "_thoughts",
    )

    def __init__(self, frame: AnswerFrame) -> None:
        self._frame = frame
        self._said: Json = {
            "id": frame.id,
            "object": "chat.completion.chunk",
            "created": frame.created_unix_s,
            "model": frame.model,
        }
        self._head = _head(self._said)
        self._tail = b',"usage":null}\n\n' if frame.stream_usage else b"}\n\n"
        self._text_closes = b'},"finish_reason":null}]' + self._tail
        self._last = _NOTHING
        self._thoughts: dict[tuple[int, int], list[str]] = {}
        self._entries: dict[tuple[int, bool], int] = {}

    def delta(self, delta: chat_pb2.ChatDelta) -> bytes:
        """One chunk. What a provider says only on its first piece is said on all that follow."""
        said = (
            delta.id,
            delta.created_unix_s,
            delta.model,
            delta.system_fingerprint,
            delta.service_tier,
        )
        if said not in (_NOTHING, self._last):
            self._describe(said)
        if len(delta.choices) == 1 and not delta.extra_json:
            fields = delta.choices[0].ListFields()
            if len(fields) == 1 and fields[0][0].number == _TEXT:
                # Nearly every piece of every stream.
                return b"".join((self._head, _TEXT_OPENS, encode(fields[0][1]), self._text_closes))
        choices = encode([self._choice(choice) for choice in delta.choices])
        if delta.extra_json:
            members = self._said | {"choices": msgspec.Raw(choices), "usage": None}
            return event(encode(with_extra(members, delta.extra_json)))
        return self._head + choices + self._tail

    @classmethod
    def after(cls, native: bytes, frame: AnswerFrame) -> "ChunkEncoder":
        """An encoder that goes on where native chunks have ended: ``native`` holds the last."""
        last = native[native.rfind(b"data: ") + 6 :]
        said = msgspec.json.decode(last, type=_Said)
        return cls(replace(frame, id=said.id, created_unix_s=said.created, model=said.model))

    def _describe(self, said: tuple[str, int, str, str, str]) -> None:
        """Takes in what the provider says of the whole answer."""
        self._last = said
        answer_id, created_unix_s, model, fingerprint, tier = said
        news = {
            "id": answer_id,
            "created": created_unix_s,
            "model": model,
            "system_fingerprint": fingerprint,
            "service_tier": service_tier(tier),
        }
        self._said |= {key: value for key, value in news.items() if value}
        self._head = _head(self._said)

    def usage(self, metered: chat_pb2.Metered) -> bytes:
        """The chunk after the last, which has no choices."""
        return self._head + b'[],"usage":' + encode(usage_json(metered)) + b"}\n\n"

    def _choice(self, choice: chat_pb2.ChoiceDelta) -> Json:
        members: Json = {
            "index": choice.index,
            "delta": self._delta(choice),
            "finish_reason": finish_reason(choice.finish_reason, self._frame),
        }
        if choice.HasField("logprobs"):
            members["logprobs"] = logprobs_json(choice.logprobs)
        if choice.native_finish_reason:
            members["native_finish_reason"] = choice.native_finish_reason
        return with_extra(members, choice.choice_extra_json)

    def _delta(self, choice: chat_pb2.ChoiceDelta) -> Json:
        members: Json = {}
        if choice.starts:
            members["role"] = "assistant"
        if choice.text or (choice.starts and not choice.tool_calls):
            members["content"] = choice.text
        if choice.refusal:
            members["refusal"] = choice.refusal
        if choice.HasField("thinking"):
            members |= self._thinking(choice)
        if choice.tool_calls:
            if self._frame.legacy_functions:
                members["function_call"] = _function_call(choice.tool_calls[0])
            else:
                members["tool_calls"] = [_tool_call(call) for call in choice.tool_calls]
        members = _rare(choice, members)
        if choice.images:
            members["images"] = [self._numbered(choice, image) for image in members["images"]]
        return members

    def _thinking(self, choice: chat_pb2.ChoiceDelta) -> Json:
        """A piece of a thought. Its proof comes last and needs the whole thought beside it, so
        that a caller can send both back without putting pieces together; pieces that their
        provider has numbered are left to the rules of that provider.
        """
        thought = choice.thinking
        members: Json = {"reasoning_content": thought.text} if thought.text else {}
        if thought.extra_json or thought.redacted_data:
            members["reasoning_details"] = [self._numbered(choice, thought_json(thought))]
            return members
        pieces = self._thoughts.setdefault((choice.index, choice.part_index), [])
        pieces.append(thought.text)
        if thought.signature:
            whole = content_pb2.ThinkingPart(text="".join(pieces), signature=thought.signature)
            members["reasoning_details"] = [self._numbered(choice, thought_json(whole))]
            pieces.clear()
        return members

    def _numbered(self, choice: chat_pb2.ChoiceDelta, entry: Json) -> Json:
        """An entry of a list that comes in several chunks: the official SDK puts such lists
        together by ``index`` and fails without one.
        """
        if "index" in entry:
            return entry
        place = (choice.index, entry["type"] == "image_url")
        number = self._entries.get(place, 0)
        self._entries[place] = number + 1
        return {**entry, "index": number}


def _head(said: Json) -> bytes:
    """What all chunks begin with, up to their choices."""
    return b"data: " + encode(said)[:-1] + b',"choices":'


def _rare(choice: chat_pb2.ChoiceDelta, members: Json) -> Json:
    """What most pieces do not have."""
    if choice.HasField("audio"):
        members["audio"] = _audio(choice.audio)
    if choice.images:
        members["images"] = [image_json(image) for image in choice.images]
    if choice.annotations:
        known, unknown = annotations_json(choice.annotations)
        if known:
            members["annotations"] = known
        if unknown:
            members["provider_specific_fields"] = {"annotations": unknown}
    return with_extra(members, choice.extra_json)


def _function_call(call: chat_pb2.ToolCallDelta) -> Json:
    """A piece of a call in the legacy form, which knows one call and no ids."""
    members: Json = {"arguments": call.arguments}
    return {"name": call.name} | members if call.name else members


def _tool_call(call: chat_pb2.ToolCallDelta) -> Json:
    custom = call.kind == content_pb2.TOOL_KIND_CUSTOM
    kind = "custom" if custom else "function"
    called = {"input" if custom else "arguments": call.arguments}
    if call.name:
        called = {"name": call.name} | called
    members: Json = {"index": call.index}
    if call.id:
        members |= {"id": call.id, "type": kind}
    members[kind] = called
    if call.thought_signature:
        members |= signature_json(call.thought_signature)
    return members


def _audio(audio: chat_pb2.AudioDelta) -> Json:
    members: Json = {}
    if audio.id:
        members["id"] = audio.id
    if audio.data:
        members["data"] = base64.b64encode(audio.data).decode()
    if audio.transcript:
        members["transcript"] = audio.transcript
    if audio.expires_at_unix_s:
        members["expires_at"] = audio.expires_at_unix_s
    return members
