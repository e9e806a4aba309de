"""The hub's answers as OpenAI chat completions
(https://platform.openai.com/docs/api-reference/chat/object).

Only words that OpenAI's own types know are used where they list them (finish reasons, service
tiers, annotation types). Thinking is said as DeepSeek and OpenRouter say it: ``reasoning_content``
and, where a provider wants proof back, ``reasoning_details``. What has no place in the dialect is
in ``provider_specific_fields``, LiteLLM's name for that.
"""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from edge.endpoints.strict_json import encode
from edge.endpoints.token_usage import usage_json
from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2

FINISH_REASONS: Final = {
    chat_pb2.FINISH_REASON_UNSPECIFIED: None,
    chat_pb2.FINISH_REASON_STOP: "stop",
    chat_pb2.FINISH_REASON_LENGTH: "length",
    chat_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    chat_pb2.FINISH_REASON_CONTENT_FILTER: "content_filter",
    chat_pb2.FINISH_REASON_FUNCTION_CALL: "function_call",
}
_TIERS: Final = {
    **{tier: tier for tier in ("auto", "default", "flex", "scale", "priority", "fast")},
    # Anthropic's and Groq's words for the ordinary tier.
    "standard": "default",
    "on_demand": "default",
}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFrame:
    """What an answer says when its provider did not, and in which form the caller wants it.

    Attributes:
        id: the answer's id.
        created_unix_s: when it was made, in Unix seconds.
        model: the model that serves.
        legacy_functions: tool calls are said as ``function_call``.
        stream_usage: a stream ends with the usage.
    """

    id: str
    created_unix_s: int
    model: str
    legacy_functions: bool = False
    stream_usage: bool = False


def body(
    answer: chat_pb2.ChatAnswer, metered: chat_pb2.Metered | None, frame: AnswerFrame
) -> bytes:
    """A whole answer. ``metered`` is ``None`` when the call ended without it."""
    completion: Json = {
        "id": answer.id or frame.id,
        "object": "chat.completion",
        "created": answer.created_unix_s or frame.created_unix_s,
        "model": answer.model or frame.model,
        "choices": [_choice(choice, frame) for choice in answer.choices],
    }
    if answer.system_fingerprint:
        completion["system_fingerprint"] = answer.system_fingerprint
    if tier := service_tier(answer.service_tier):
        completion["service_tier"] = tier
    if metered is not None:
        completion["usage"] = usage_json(metered)
    return encode(with_extra(completion, answer.extra_json))


def service_tier(word: str) -> str | None:
    """A provider's service tier in OpenAI's words; ``None`` when there is none."""
    return _TIERS.get(word)


def with_extra(members: Json, extra: bytes) -> Json:
    """The members and what came beside them, which replaces none of them."""
    if not extra:
        return members
    beside: Json = msgspec.json.decode(extra, type=Json)
    return beside | members


def finish_reason(reason: chat_pb2.FinishReason.ValueType, frame: AnswerFrame) -> str | None:
    """Why a choice ended; ``None`` when it has not, or nobody said."""
    if frame.legacy_functions and reason == chat_pb2.FINISH_REASON_TOOL_CALLS:
        return "function_call"
    return FINISH_REASONS[reason]


def logprobs_json(logprobs: chat_pb2.Logprobs) -> Json:
    """Log probabilities by token."""
    return {
        "content": [_token(token) for token in logprobs.content] or None,
        "refusal": [_token(token) for token in logprobs.refusal] or None,
    }


def _token(token: chat_pb2.TokenLogprob) -> Json:
    return {**_top_token(token), "top_logprobs": [_top_token(top) for top in token.top]}


def _top_token(token: chat_pb2.TokenLogprob) -> Json:
    utf8 = list(token.utf8) if token.HasField("utf8") else None
    return {"token": token.token, "logprob": token.logprob, "bytes": utf8}


def annotations_json(annotations: Iterable[content_pb2.Annotation]) -> tuple[list[Json], list[Any]]:
    """Citations in OpenAI's form, and those that it has no form for, as their provider wrote
    them.
    """
    known: list[Json] = []
    others: list[Any] = []
    for annotation in annotations:
        if annotation.HasField("url_citation"):
            cited = annotation.url_citation
            known.append(
                {
                    "type": "url_citation",
                    "url_citation": {
                        "url": cited.url,
                        "title": cited.title,
                        "start_index": cited.start_index,
                        "end_index": cited.end_index,
                    },
                }
            )
        else:
            others.append(msgspec.Raw(annotation.opaque_json))
    return known, others


def thinking_json(thoughts: Sequence[content_pb2.ThinkingPart]) -> Json:
    """Thoughts: the text, and their proofs where there are any."""
    members: Json = {}
    if text := "".join(thought.text for thought in thoughts):
        members["reasoning_content"] = text
    if any(map(_has_proof, thoughts)):
        members["reasoning_details"] = [thought_json(thought) for thought in thoughts]
    return members


def _has_proof(thought: content_pb2.ThinkingPart) -> bool:
    return bool(thought.signature or thought.redacted_data or thought.extra_json)


def thought_json(thought: content_pb2.ThinkingPart) -> Json:
    """A thought with its proof, or an encrypted one, as OpenRouter says it. What came beside it
    may name another type, and is then the whole of it.
    """
    extra: Json = msgspec.json.decode(thought.extra_json, type=Json) if thought.extra_json else {}
    if "type" in extra:
        return extra
    if thought.redacted_data:
        return {"type": "reasoning.encrypted", "data": thought.redacted_data, **extra}
    detail = {"type": "reasoning.text", "text": thought.text, **extra}
    return detail | {"signature": thought.signature} if thought.signature else detail


def image_json(image: content_pb2.ImagePart) -> Json:
    """A picture that the model made, as OpenRouter says it
    (https://openrouter.ai/docs/features/multimodal/image-generation).
    """
    source = image.source
    if source.WhichOneof("source") == "data":
        data = base64.b64encode(source.data).decode()
        url = f"data:{source.media_type or 'application/octet-stream'};base64,{data}"
    else:
        url = source.url
    return {"type": "image_url", "image_url": {"url": url}}


def signature_json(signature: bytes) -> Json:
    """Gemini's proof that a tool call follows from its thinking, in its own OpenAI dialect
    (https://ai.google.dev/gemini-api/docs/thought-signatures).
    """
    text = base64.b64encode(signature).decode()
    return {"extra_content": {"google": {"thought_signature": text}}}


def _choice(choice: chat_pb2.Choice, frame: AnswerFrame) -> Json:
    members: Json = {
        "index": choice.index,
        "message": _message(choice.message, frame),
        "logprobs": logprobs_json(choice.logprobs) if choice.HasField("logprobs") else None,
        "finish_reason": finish_reason(choice.finish_reason, frame),
    }
    if choice.native_finish_reason:
        members["native_finish_reason"] = choice.native_finish_reason
    return with_extra(members, choice.extra_json)


def _message(message: content_pb2.Message, frame: AnswerFrame) -> Json:
    parts = message.parts
    texts = [part.text for part in parts if part.HasField("text")]
    refusals = [part.refusal.text for part in parts if part.HasField("refusal")]
    calls = [part for part in parts if part.HasField("tool_call")]
    others: Json = {}
    members: Json = {
        "role": "assistant",
        "content": "".join(text.text for text in texts)
        if texts or not (calls or refusals)
        else None,
        "refusal": "".join(refusals) if refusals else None,
    }
    known, unknown = annotations_json(item for text in texts for item in text.annotations)
    if known:
        members["annotations"] = known
    if unknown:
        others["annotations"] = unknown
    members |= thinking_json([part.thinking for part in parts if part.HasField("thinking")])
    if calls and frame.legacy_functions:
        called = calls[0].tool_call
        members["function_call"] = {"name": called.name, "arguments": called.arguments}
    elif calls:
        members["tool_calls"] = [_tool_call(part) for part in calls]
    if images := [image_json(part.image) for part in parts if part.HasField("image")]:
        members["images"] = images
    for part in parts:
        if part.HasField("audio"):
            members["audio"] = _audio(part.audio)
        elif part.HasField("opaque_json"):
            others.setdefault("parts", []).append(msgspec.Raw(part.opaque_json))
    if others:
        members["provider_specific_fields"] = others
    return with_extra(members, message.extra_json)


def _tool_call(part: content_pb2.Part) -> Json:
    call = part.tool_call
    if call.kind == content_pb2.TOOL_KIND_CUSTOM:
        custom = {"name": call.name, "input": call.arguments}
        members: Json = {"id": call.id, "type": "custom", "custom": custom}
    else:
        function = {"name": call.name, "arguments": call.arguments}
        members = {"id": call.id, "type": "function", "function": function}
    if call.thought_signature:
        members |= signature_json(call.thought_signature)
    return with_extra(members, part.extra_json)


def _audio(audio: content_pb2.AudioPart) -> Json:
    return {
        "id": audio.audio_id,
        "data": base64.b64encode(audio.source.data).decode(),
        "expires_at": audio.expires_at_unix_s,
        "transcript": audio.transcript,
    }
