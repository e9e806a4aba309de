"""What a caller has of an answer in the end, whole or streamed, as plain values."""

import json
from collections.abc import Iterable
from typing import Any

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2


def of_answer(answer: chat_pb2.ChatAnswer, index: int = 0) -> dict[str, Any]:
    """One choice of a whole answer."""
    seen = _empty()
    choice = answer.choices[index]
    for part in choice.message.parts:
        _add_part(seen, part)
    seen["finish"] = choice.finish_reason
    seen["native"] = choice.native_finish_reason
    return seen


def of_events(events: Iterable[chat_pb2.ChatEvent], index: int = 0) -> dict[str, Any]:
    """One choice of a streamed answer, put together as a client would who looks at the first choice
    of a chunk alone.
    """
    seen = _empty()
    calls: dict[int, dict[str, Any]] = {}
    for event in events:
        assert len(event.delta.choices) <= 1
        for choice in event.delta.choices:
            if choice.index != index:
                continue
            seen["text"] += choice.text
            seen["thinking"] += choice.thinking.text
            if choice.thinking.signature:
                seen["signatures"].append(choice.thinking.signature)
            if choice.thinking.redacted_data:
                seen["redacted"].append(choice.thinking.redacted_data)
            for call in choice.tool_calls:
                known = calls.setdefault(call.index, {"arguments": ""})
                if call.id:
                    known.update(id=call.id, name=call.name, proof=call.thought_signature)
                known["arguments"] += call.arguments
            for image in choice.images:
                seen["media"].append((image.source.media_type, image.source.data))
            if choice.audio.data:
                seen["media"].append(("audio", choice.audio.data))
            seen["annotations"] += [_annotation(each) for each in choice.annotations]
            if choice.extra_json:
                beside = json.loads(choice.extra_json)["provider_specific_fields"]
                seen["opaque"] += beside.get("parts", [])
                seen["citations"] += beside.get("citations", [])
            if choice.finish_reason:
                seen["finish"] = choice.finish_reason
                seen["native"] = choice.native_finish_reason
    seen["calls"] = [
        (call["id"], call["name"], parsed(call["arguments"]), call["proof"])
        for _, call in sorted(calls.items())
    ]
    return seen


def parsed(arguments: str) -> object:
    """Arguments as a value; as text when the output limit cut them."""
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _empty() -> dict[str, Any]:
    return {
        "text": "",
        "thinking": "",
        "signatures": [],
        "redacted": [],
        "calls": [],
        "opaque": [],
        "media": [],
        "annotations": [],
        "citations": [],
        "finish": 0,
        "native": "",
    }


def _add_part(seen: dict[str, Any], part: content_pb2.Part) -> None:
    match part.WhichOneof("content"):
        case "text":
            seen["text"] += part.text.text
            seen["annotations"] += [_annotation(each) for each in part.text.annotations]
            if part.extra_json:
                seen["citations"] += json.loads(part.extra_json)["citations"]
        case "thinking":
            seen["thinking"] += part.thinking.text
            if part.thinking.signature:
                seen["signatures"].append(part.thinking.signature)
            if part.thinking.redacted_data:
                seen["redacted"].append(part.thinking.redacted_data)
        case "tool_call":
            call = part.tool_call
            arguments = parsed(call.arguments)
            seen["calls"].append((call.id, call.name, arguments, call.thought_signature))
        case "image":
            seen["media"].append((part.image.source.media_type, part.image.source.data))
        case "audio":
            seen["media"].append(("audio", part.audio.source.data))
        case _:
            seen["opaque"].append(json.loads(part.opaque_json))


def _annotation(annotation: content_pb2.Annotation) -> object:
    if annotation.HasField("url_citation"):
        return annotation.url_citation.url
    return json.loads(annotation.opaque_json)
