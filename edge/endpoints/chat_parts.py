"""Parts of an OpenAI message as parts of the hub, nothing lost.

Base64 becomes bytes. What a part has beyond the fields that the contract names goes to its
``extra_json``; a part of an unknown type, or of a known type in a form that the contract cannot
hold, is kept whole as ``opaque_json``.
"""

import binascii
import re
from collections.abc import Callable, Container, Mapping
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
    if kind not in _BUILDERS:
        return content_pb2.Part(opaque_json=strict_json.encode(members))
    build, known = _BUILDERS[kind]
    part = build(members[kind], f"{place}.{kind}")
    part.extra_json = rest(members, kind, known)
    if (hint := cache_hint(members)) is not None:
        part.cache_hint.CopyFrom(hint)
    return part


def rest(members: Mapping[str, Any], kind: str, known: frozenset[str]) -> bytes:
    """What a part has beyond what the contract names, as a JSON object; empty when it is nothing.

    Args:
        members: the part.
        kind: the member that holds what the part is about.
        known: the names in that member that the contract has a place for.
    """
    beyond = unnamed(members, {"type", kind})
    said = members[kind]
    if isinstance(said, dict) and (inner := unnamed(said, known)):
        beyond[kind] = inner
    return strict_json.encode(beyond) if beyond else b""


def unnamed(members: Mapping[str, Any], known: Container[str]) -> dict[str, Any]:
    """The members beyond those that are known. A null says nothing, and a cache breakpoint that is
    understood is said elsewhere.
    """
    beyond = {
        key: value for key, value in members.items() if value is not None and key not in known
    }
    if "cache_control" in beyond and cache_hint(members) is not None:
        del beyond["cache_control"]
    return beyond


def _text(said: Any, _place: str) -> content_pb2.Part:
    return content_pb2.Part(text=content_pb2.TextPart(text=said))


def _refusal(said: Any, _place: str) -> content_pb2.Part:
    return content_pb2.Part(refusal=content_pb2.RefusalPart(text=said))


def _image(said: Any, place: str) -> content_pb2.Part:
    where = _linked(said, place)
    detail = ""
    if isinstance(said, dict):
        detail = said.get("detail") or ""
        where.media_type = where.media_type or said.get("format") or ""
    return content_pb2.Part(image=content_pb2.ImagePart(source=where, detail=detail))


def _video(said: Any, place: str) -> content_pb2.Part:
    return content_pb2.Part(video=content_pb2.VideoPart(source=_linked(said, place)))


def _linked(said: Any, place: str) -> content_pb2.MediaSource:
    """A URL, bare or as an object's ``url``. What is no data URL stays as it is, for the provider
    to judge.
    """
    url, place = (said, place) if isinstance(said, str) else (said["url"], f"{place}.url")
    if url.startswith("data:"):
        return source(url, place)
    return content_pb2.MediaSource(url=url)


def _audio(said: Any, place: str) -> content_pb2.Part:
    where = source(said["data"], f"{place}.data")
    form = said.get("format") or ""
    return content_pb2.Part(audio=content_pb2.AudioPart(source=where, format=form))


def _file(said: Any, place: str) -> content_pb2.Part:
    data, file_id = said.get("file_data"), said.get("file_id")
    if bool(data) == bool(file_id):
        raise invalid(f"'{place}' must have either 'file_data' or 'file_id'.", place)
    where = source(data, f"{place}.file_data") if data else content_pb2.MediaSource(file_id=file_id)
    part = content_pb2.FilePart(source=where, filename=said.get("filename") or "")
    return content_pb2.Part(file=part)


_Builder = Callable[[Any, str], content_pb2.Part]

_BUILDERS: Final[Mapping[str, tuple[_Builder, frozenset[str]]]] = {
    "text": (_text, frozenset()),
    "refusal": (_refusal, frozenset()),
    "image_url": (_image, frozenset({"url", "detail", "format"})),
    "video_url": (_video, frozenset({"url"})),
    "input_audio": (_audio, frozenset({"data", "format"})),
    "file": (_file, frozenset({"file_data", "file_id", "filename"})),
}


def thoughts(message: Mapping[str, Any]) -> list[content_pb2.Part]:
    """What an assistant's message repeats of its thinking, in any of the three spellings.

    ``reasoning_details`` says what the plain texts say and has the proofs, so it wins; a plain text
    counts beside details that have none.
    """
    parts = [_thought(detail) for detail in message.get("reasoning_details") or ()]
    text = message.get("reasoning_content") or message.get("reasoning")
    if text and not any(part.thinking.text for part in parts):
        parts.insert(0, content_pb2.Part(thinking=content_pb2.ThinkingPart(text=text)))
    return parts


def _thought(detail: dict[str, Any]) -> content_pb2.Part:
    """One of OpenRouter's ``reasoning_details``. Its ``id`` and ``format`` travel along; a kind
    that the contract has no fields for travels whole.
    """
    text, signature = detail.get("text") or "", detail.get("signature") or ""
    beside: set[str] = set()
    thinking = content_pb2.ThinkingPart()
    match detail.get("type"), detail.get("data"):
        case "reasoning.text", None if isinstance(text, str) and isinstance(signature, str):
            thinking.text, thinking.signature = text, signature
            beside = {"type", "text", "signature"}
        case "reasoning.encrypted", str(data):
            thinking.redacted_data = data
            beside = {"type", "data"}
        case _:
            summary = detail.get("summary")
            thinking.text = summary if isinstance(summary, str) else ""
    if beyond := unnamed(detail, beside):
        thinking.extra_json = strict_json.encode(beyond)
    return content_pb2.Part(thinking=thinking)


def tool_call(members: dict[str, Any]) -> content_pb2.Part:
    """One of an assistant's tool calls. Its ``index`` belongs to streams, and ``parsed_arguments``
    to the official SDK, which repeats both when it sends an answer back; neither is kept.
    """
    custom = members.get("custom") is not None
    word = "custom" if custom else "function"
    called = members[word]
    call = content_pb2.ToolCall(
        id=members["id"],
        name=called["name"],
        arguments=called["input"] if custom else called["arguments"],
        kind=content_pb2.TOOL_KIND_CUSTOM if custom else content_pb2.TOOL_KIND_FUNCTION,
    )
    beyond = unnamed(members, {"id", "index", "function", "custom"})
    if beyond.get("type") == word:
        del beyond["type"]
    if inner := unnamed(called, {"name", "input", "arguments", "parsed_arguments"}):
        beyond[word] = inner
    signature = _signature(beyond.get("extra_content"))
    if signature is not None:
        call.thought_signature = signature
        del beyond["extra_content"]
    part = content_pb2.Part(tool_call=call)
    if beyond:
        part.extra_json = strict_json.encode(beyond)
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
