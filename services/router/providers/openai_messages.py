"""Messages of the hub as messages of the OpenAI dialect, in the words of a row.

One message of the hub may become several: every tool result is a message of its own. What a part
cannot be on this wire is refused under its place in the request.
"""

import base64
import hashlib
from collections.abc import Iterable
from typing import Any, Final, assert_never

import msgspec

from onegate.common.v1 import content_pb2
from services.router.providers.json_members import Json, embedded, extend, members
from services.router.providers.openai_parts import content, invalid, unsupported, written
from services.router.providers.openai_row import Compatible, Thoughts

_ROLES: Final = {
    content_pb2.ROLE_SYSTEM: "system",
    content_pb2.ROLE_DEVELOPER: "developer",
    content_pb2.ROLE_USER: "user",
    content_pb2.ROLE_ASSISTANT: "assistant",
    content_pb2.ROLE_TOOL: "tool",
}
_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def conversation(row: Compatible, messages: Iterable[content_pb2.Message]) -> list[Json]:
    """All messages. Raises UNSUPPORTED_PARAMETER and INVALID_REQUEST."""
    made: list[Json] = []
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        rest = []
        for part in message.parts:
            if part.HasField("tool_result"):
                made.append(_result(row, part, place))
            else:
                rest.append(part)
        if rest or not message.parts:
            made.append(_message(row, message, rest, place))
        elif message.extra_json:
            extend(made[-1], message.extra_json, place)
    return made


def _message(
    row: Compatible, message: content_pb2.Message, parts: list[content_pb2.Part], place: str
) -> Json:
    role = _ROLES.get(message.role)
    if role is None:
        raise invalid(f"{place}.role", f"`{place}` says no role; say who speaks.")
    if role == "tool":
        raise invalid(place, f"`{place}` answers no tool call; put its answer into a result.")
    if role == "developer" and not row.developer_role:
        role = "system"
    made: Json = {"role": role}
    if role == "assistant":
        _write_answer(row, made, parts, place)
    else:
        made["content"] = content(row, parts, f"{place}.content")
    if message.name:
        if not row.names:
            raise unsupported(row, f"{place}.name")
        made["name"] = message.name
    if message.extra_json:
        extend(made, message.extra_json, place)
    return made


def _write_answer(row: Compatible, made: Json, parts: list[content_pb2.Part], place: str) -> None:
    """An assistant's message. What the vendor does not take back of an earlier answer is left out
    where it is no part of the conversation (annotations, thoughts), and said as text where it is
    (refusals).
    """
    said: list[content_pb2.Part] = []
    for part in parts:
        match part.WhichOneof("content"):
            case "tool_call":
                _write_call(row, made, part, place)
            case "thinking":
                _write_thought(row, made, part, said)
            case "refusal" if "refusal" in row.answer_fields:
                made["refusal"] = made.get("refusal", "") + part.refusal.text
            case "refusal":
                text = content_pb2.TextPart(text=part.refusal.text)
                said.append(content_pb2.Part(text=text))
            case "audio":
                made["audio"] = _answered_audio(row, part, f"{place}.audio")
            case "image" if "images" in row.answer_fields:
                made.setdefault("images", []).append(written(row, part, f"{place}.images"))
            case "opaque_json" if _is_detail(part.opaque_json, place):
                _write_detail(row, made, embedded(part.opaque_json, place))
            case _:
                _write_annotations(row, made, part)
                if not part.HasField("text") or part.text.text or part.extra_json:
                    said.append(part)
    if row.thoughts_required and "tool_calls" in made:
        made.setdefault("reasoning_content", "")
    silent = not said and made.keys() & {"tool_calls", "function_call", "refusal", "audio"}
    made["content"] = None if silent else content(row, said, f"{place}.content")


def _write_call(row: Compatible, made: Json, part: content_pb2.Part, place: str) -> None:
    call = part.tool_call
    if not call.id and row.legacy_functions:
        made["function_call"] = {"name": call.name, "arguments": call.arguments}
        return
    calls = made.setdefault("tool_calls", [])
    item: Json = {"id": _call_id(row, call.id)}
    if call.kind == content_pb2.TOOL_KIND_CUSTOM:
        if not row.custom_tools:
            raise unsupported(row, f"{place}.tool_calls[{len(calls)}].custom")
        item["type"] = "custom"
        item["custom"] = {"name": call.name, "input": call.arguments}
    else:
        item["type"] = "function"
        item["function"] = {"name": call.name, "arguments": call.arguments}
    if call.thought_signature and row.thought_signatures:
        signature = base64.b64encode(call.thought_signature).decode()
        item["extra_content"] = {"google": {"thought_signature": signature}}
    if part.extra_json:
        extend(item, part.extra_json, f"{place}.tool_calls[{len(calls)}]")
    calls.append(item)


def _call_id(row: Compatible, call_id: str) -> str:
    """The call's id in the vendor's form; another vendor's id always gives the same one."""
    chars = row.call_id_chars
    if not chars or (len(call_id) == chars and call_id.isascii() and call_id.isalnum()):
        return call_id
    value = int.from_bytes(hashlib.sha256(call_id.encode()).digest(), "big")
    made = ""
    for _ in range(chars):
        value, digit = divmod(value, len(_DIGITS))
        made += _DIGITS[digit]
    return made


def _write_thought(
    row: Compatible, made: Json, part: content_pb2.Part, said: list[content_pb2.Part]
) -> None:
    text = part.thinking.text
    match row.thoughts:
        case Thoughts.OMITTED:
            pass
        case Thoughts.CONTENT | Thoughts.REASONING as where:
            if text:
                made[where.value] = made.get(where.value, "") + text
        case Thoughts.PARTS:
            if text:
                said.append(part)
        case Thoughts.DETAILS:
            _write_detail(row, made, _detail(part))
        case Thoughts.AS_GIVEN:
            thought = part.thinking
            if thought.signature or thought.redacted_data or thought.extra_json or part.extra_json:
                _write_detail(row, made, _detail(part))
            elif text:
                made["reasoning_content"] = made.get("reasoning_content", "") + text
        case _ as never:
            assert_never(never)


def _write_detail(row: Compatible, made: Json, detail: Any) -> None:
    """Adds one of OpenRouter's ``reasoning_details`` where they are known."""
    if row.thoughts in (Thoughts.DETAILS, Thoughts.AS_GIVEN):
        made.setdefault("reasoning_details", []).append(detail)


def _detail(part: content_pb2.Part) -> Json:
    """A thought as one of OpenRouter's ``reasoning_details``; one that says its own type is
    complete.
    """
    thought = part.thinking
    detail: Json = {}
    for extra in (thought.extra_json, part.extra_json):
        if extra:
            detail |= members(extra, "reasoning_details")
    if "type" in detail:
        return detail
    if thought.redacted_data:
        return {"type": "reasoning.encrypted", "data": thought.redacted_data} | detail
    detail = {"type": "reasoning.text", "text": thought.text} | detail
    if thought.signature:
        detail["signature"] = thought.signature
    return detail


def _write_annotations(row: Compatible, made: Json, part: content_pb2.Part) -> None:
    if part.text.annotations and "annotations" in row.answer_fields:
        annotations = made.setdefault("annotations", [])
        annotations.extend(_annotation(item) for item in part.text.annotations)


def _answered_audio(row: Compatible, part: content_pb2.Part, place: str) -> Json:
    if "audio" not in row.answer_fields or not part.audio.audio_id:
        raise unsupported(row, place, "Send what was said as text.")
    audio: Json = {"id": part.audio.audio_id}
    if part.extra_json:
        extend(audio, part.extra_json, place)
    return audio


def _result(row: Compatible, part: content_pb2.Part, place: str) -> Json:
    """A tool's answer. A result without a call's id answers a legacy function."""
    result = part.tool_result
    parts = list(result.parts)
    if parts and part.HasField("cache_hint"):
        # The dialect has breakpoints after parts of the answer only.
        parts[-1] = content_pb2.Part()
        parts[-1].CopyFrom(result.parts[-1])
        parts[-1].cache_hint.CopyFrom(part.cache_hint)
    said = content(row, parts, f"{place}.content")
    if result.is_error:
        said = _failed(said)
    made: Json
    if not result.tool_call_id and row.legacy_functions:
        made = {"role": "function", "name": result.name, "content": said}
    else:
        made = {"role": "tool", "tool_call_id": _call_id(row, result.tool_call_id)}
        made["content"] = said
        if result.name and row.names:
            made["name"] = result.name
    if part.extra_json:
        extend(made, part.extra_json, place)
    return made


def _failed(said: str | list[Any]) -> str | list[Any]:
    """A failed tool's answer: the dialect has no flag for it, so its first words say so."""
    if isinstance(said, str):
        return said if said[:5].lower() == "error" else f"Error: {said}"
    return [{"type": "text", "text": "Error:"}, *said]


def _annotation(annotation: content_pb2.Annotation) -> Any:
    if annotation.HasField("opaque_json"):
        return embedded(annotation.opaque_json, "annotations")
    citation = annotation.url_citation
    return {
        "type": "url_citation",
        "url_citation": {
            "url": citation.url,
            "title": citation.title,
            "start_index": citation.start_index,
            "end_index": citation.end_index,
        },
    }


class _Typed(msgspec.Struct, gc=False):
    type: str = ""


def _is_detail(raw: bytes, place: str) -> bool:
    """Whether an opaque part is one of OpenRouter's ``reasoning_details``."""
    try:
        return msgspec.json.decode(raw, type=_Typed).type.startswith("reasoning.")
    except msgspec.DecodeError:
        raise invalid(place, f"`{place}` has a part that is no JSON object.") from None
