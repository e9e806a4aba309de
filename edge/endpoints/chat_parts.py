"""Parts of an OpenAI message as parts of the hub, nothing lost.

Base64 becomes bytes. What a part has beyond the fields that the contract names goes to its
``extra_json``; a part of an unknown type, or of a known type in a form that the contract cannot
hold, is kept whole as ``opaque_json``.
"""

import binascii
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from edge.endpoints import strict_json
from edge.endpoints.chat_fields import Content, invalid
from onegate.common.v1 import content_pb2

_CACHE_TTL_S: Final = {None: 0, "5m": 300, "1h": 3600}
"""Lifetimes of Anthropic's cache breakpoints, which OpenRouter and LiteLLM put on parts
(https://docs.claude.com/en/docs/build-with-claude/prompt-caching).
"""
_DATA_URL: Final = re.compile(r"(?s)data:([^,]*?)(;base64)?,(.*)\Z")
_REMOTE: Final = ("http://", "https://", "gs://", "s3://", "oss://")
_DETAIL: Final = frozenset({"type", "id", "format", "index"})
_URL_SAFE: Final = str.maketrans("-_", "+/")


def parts(content: Content, place: str) -> list[content_pb2.Part]:
    """A message's content. Raises INVALID_REQUEST for base64 that is none.

    Args:
        content: text, or parts that have been checked.
        place: where it stands in the request (``messages[0].content``).
    """
    if isinstance(content, str):
        return [content_pb2.Part(text=content_pb2.TextPart(text=content))]
    return [_part(part, f"{place}[{position}]") for position, part in enumerate(content)]


def cache_hint(holder: Mapping[str, Any]) -> content_pb2.CacheHint | None:
    """The cache breakpoint of a part, tool or message; ``None`` without one that is known."""
    control = holder.get("cache_control")
    if not isinstance(control, dict) or control.get("type") != "ephemeral":
        return None
    ttl = control.get("ttl")
    if ttl not in _CACHE_TTL_S or not control.keys() <= {"type", "ttl"}:
        return None
    return content_pb2.CacheHint(ttl_s=_CACHE_TTL_S[ttl])


def rest(members: Mapping[str, Any], known: frozenset[str]) -> bytes:
    """The members beyond those that are known, as a JSON object; empty when there are none."""
    beyond = {key: members[key] for key in members if key not in known}
    beyond = {key: value for key, value in beyond.items() if value is not None}
    if "cache_control" in beyond and cache_hint(members) is not None:
        del beyond["cache_control"]
    return strict_json.encode(beyond) if beyond else b""


def source(text: str, place: str) -> content_pb2.MediaSource:
    """Media that is written as a data URL, as another URL or as bare base64.

    Args:
        text: what the caller wrote.
        place: where, for the error when it is no base64.
    """
    if text.startswith("data:"):
        found = _DATA_URL.match(text)
        if found is None:
            raise invalid(f"Invalid data URL in '{place}': it has no comma.", place)
        data = _base64(found[3], place) if found[2] else unquote_to_bytes(found[3])
        return content_pb2.MediaSource(data=data, media_type=found[1])
    if text.startswith(_REMOTE):
        return content_pb2.MediaSource(url=text)
    return content_pb2.MediaSource(data=_base64(text, place))


def _base64(text: str, place: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise invalid(f"Invalid base64 in '{place}'.", place) from None


def _part(members: dict[str, Any], place: str) -> content_pb2.Part:
    kind = members["type"]
    build = _BUILDERS.get(kind)
    part = build(members, place) if build else None
    if part is None:
        return content_pb2.Part(opaque_json=strict_json.encode(members))
    part.extra_json = rest(members, frozenset({"type", kind}))
    if (hint := cache_hint(members)) is not None:
        part.cache_hint.CopyFrom(hint)
    return part


def _text(members: dict[str, Any], place: str) -> content_pb2.Part | None:  # noqa: ARG001
    return content_pb2.Part(text=content_pb2.TextPart(text=members["text"]))


def _refusal(members: dict[str, Any], place: str) -> content_pb2.Part | None:  # noqa: ARG001
    return content_pb2.Part(refusal=content_pb2.RefusalPart(text=members["refusal"]))


def _image(members: dict[str, Any], place: str) -> content_pb2.Part | None:
    image = members["image_url"]
    if isinstance(image, str):
        image = {"url": image}
    if not image.keys() <= {"url", "detail", "format"}:
        return None
    where = _url(image["url"], f"{place}.image_url.url")
    if image.get("format") and not where.media_type:
        where.media_type = image["format"]
    detail = image.get("detail") or ""
    return content_pb2.Part(image=content_pb2.ImagePart(source=where, detail=detail))


def _video(members: dict[str, Any], place: str) -> content_pb2.Part | None:
    video = members["video_url"]
    if isinstance(video, str):
        video = {"url": video}
    if not video.keys() <= {"url"}:
        return None
    where = _url(video["url"], f"{place}.video_url.url")
    return content_pb2.Part(video=content_pb2.VideoPart(source=where))


def _url(text: str, place: str) -> content_pb2.MediaSource:
    """A URL field: whatever is no data URL stays as it is, for the provider to judge."""
    if text.startswith("data:"):
        return source(text, place)
    return content_pb2.MediaSource(url=text)


def _audio(members: dict[str, Any], place: str) -> content_pb2.Part | None:
    audio = members["input_audio"]
    if not audio.keys() <= {"data", "format"}:
        return None
    where = source(audio["data"], f"{place}.input_audio.data")
    part = content_pb2.AudioPart(source=where, format=audio.get("format") or "")
    return content_pb2.Part(audio=part)


def _file(members: dict[str, Any], place: str) -> content_pb2.Part | None:
    file = members["file"]
    data, file_id = file.get("file_data"), file.get("file_id")
    if not file.keys() <= {"file_data", "file_id", "filename"} or (data and file_id):
        return None
    part = content_pb2.FilePart(filename=file.get("filename") or "")
    if data:
        part.source.CopyFrom(source(data, f"{place}.file.file_data"))
    elif file_id:
        part.source.file_id = file_id
    else:
        return None
    return content_pb2.Part(file=part)


_BUILDERS: Final = {
    "text": _text,
    "refusal": _refusal,
    "image_url": _image,
    "video_url": _video,
    "input_audio": _audio,
    "file": _file,
}


def thoughts(message: Mapping[str, Any]) -> list[content_pb2.Part]:
    """What an assistant's message repeats of its thinking, in any of the three spellings.

    ``reasoning_details`` says all that the plain texts say and has the signatures, so it wins.
    """
    details = message.get("reasoning_details")
    if details:
        return [_thought(detail) for detail in details]
    text = message.get("reasoning_content") or message.get("reasoning")
    if not text:
        return []
    return [content_pb2.Part(thinking=content_pb2.ThinkingPart(text=text))]


def _thought(detail: dict[str, Any]) -> content_pb2.Part:
    """One of OpenRouter's ``reasoning_details``. Its ``id``, ``format`` and ``index`` say how
    OpenRouter itself put the answer together and mean nothing to a provider.
    """
    text, signature, data = (detail.get(key) or "" for key in ("text", "signature", "data"))
    texts_only = all(isinstance(value, str) for value in (text, signature, data))
    match detail.get("type"):
        case "reasoning.text" if texts_only:
            known = _DETAIL | {"text", "signature"}
            thinking = content_pb2.ThinkingPart(text=text, signature=signature)
        case "reasoning.encrypted" if texts_only:
            known = _DETAIL | {"data"}
            thinking = content_pb2.ThinkingPart(redacted_data=data)
        case _:
            return content_pb2.Part(opaque_json=strict_json.encode(detail))
    return content_pb2.Part(thinking=thinking, extra_json=rest(detail, known))


def tool_call(members: dict[str, Any]) -> content_pb2.Part:
    """One of an assistant's tool calls. Its ``index``, which belongs to streams, is not kept."""
    if members.get("custom") is not None:
        kind, called = content_pb2.TOOL_KIND_CUSTOM, members["custom"]
        arguments = called["input"]
    else:
        kind, called = content_pb2.TOOL_KIND_FUNCTION, members["function"]
        arguments = called["arguments"]
    call = content_pb2.ToolCall(
        id=members["id"], name=called["name"], arguments=arguments, kind=kind
    )
    known = {"id", "index", "function", "custom"}
    if members.get("type") in ("function", "custom"):
        known.add("type")
    signature = _signature(members.get("extra_content"))
    if signature is not None:
        call.thought_signature = signature
        known.add("extra_content")
    part = content_pb2.Part(tool_call=call, extra_json=rest(members, frozenset(known)))
    if (hint := cache_hint(members)) is not None:
        part.cache_hint.CopyFrom(hint)
    return part


def _signature(extra: object) -> bytes | None:
    """Gemini's thought signature in its OpenAI dialect, ``{"google": {"thought_signature": …}}``
    (https://ai.google.dev/gemini-api/docs/thought-signatures); ``None`` for anything else.
    """
    match extra:
        case {"google": {"thought_signature": str(text), **inner}, **outer} if not (inner or outer):
            try:
                return binascii.a2b_base64(text.translate(_URL_SAFE), strict_mode=True)
            except ValueError:
                return None
        case _:
            return None
