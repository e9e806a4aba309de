"""The shapes of answers in the OpenAI dialect, whole and streamed, and what their pieces say.

Every vendor's spelling of thoughts is read: ``reasoning_content``
(https://api-docs.deepseek.com/guides/thinking_mode), ``reasoning``
(https://console.groq.com/docs/reasoning), ``reasoning_details``
(https://openrouter.ai/docs/use-cases/reasoning-tokens) and content in parts
(https://docs.mistral.ai/capabilities/reasoning).
"""

import base64
import binascii
from typing import Annotated, Any, Final

import msgspec

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from services.router.providers.json_members import ENCODE, Json, unnamed

Part = content_pb2.Part
ThinkingPart = content_pb2.ThinkingPart

Index = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Seconds = (
    Annotated[int, msgspec.Meta(ge=0, lt=2**53)] | Annotated[float, msgspec.Meta(ge=0, lt=2**53)]
)
Octet = Annotated[int, msgspec.Meta(ge=0, le=255)]


class FunctionShape(msgspec.Struct, gc=False):
    """The function of a tool call. Some servers write arguments as an object."""

    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class CustomShape(msgspec.Struct, gc=False):
    """A custom tool's call."""

    name: str | None = None
    input: str | None = None


class CallShape(msgspec.Struct):
    """A tool call, or a piece of one."""

    index: Index | None = None
    id: str | None = None
    type: str | None = None
    function: FunctionShape | None = None
    custom: CustomShape | None = None
    extra_content: Any = None


class AudioShape(msgspec.Struct, gc=False):
    """Sound, or a piece of it."""

    id: str | None = None
    data: str | None = None
    transcript: str | None = None
    expires_at: Seconds | None = None


class MessageShape(msgspec.Struct):
    """A message, or a piece of one."""

    role: str | None = None
    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    tool_calls: list[CallShape] | None = None
    function_call: FunctionShape | None = None
    audio: AudioShape | None = None
    annotations: list[dict[str, Any]] | None = None
    images: list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[dict[str, Any]] | None = None


class ChoiceShape(msgspec.Struct):
    """A choice of a whole or a streamed answer."""

    index: Index = 0
    message: MessageShape | None = None
    delta: MessageShape | None = None
    finish_reason: str | None = None
    native_finish_reason: str | None = None
    logprobs: Any = None
    error: Any = None
    usage: Any = None


class CompletionShape(msgspec.Struct):
    """An answer, or a chunk of one."""

    id: str | None = None
    object: str | None = None
    created: Seconds | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None
    choices: list[ChoiceShape] | None = None
    usage: Any = None
    error: Any = None
    x_groq: Any = None


class LogprobShape(msgspec.Struct):
    """One token's log probability."""

    token: str
    logprob: float
    bytes: list[Octet] | None = None
    top_logprobs: list["LogprobShape"] | None = None


class LogprobsShape(msgspec.Struct):
    """Log probabilities; other forms than OpenAI's have neither member."""

    content: list[LogprobShape] | None = None
    refusal: list[LogprobShape] | None = None


NAMED: Final = frozenset(CompletionShape.__struct_fields__) - {"x_groq"}
NAMED_CHOICE: Final = frozenset(ChoiceShape.__struct_fields__)
NAMED_MESSAGE: Final = frozenset(MessageShape.__struct_fields__)
NAMED_CALL: Final = frozenset(CallShape.__struct_fields__)


def spoken_bytes(message: MessageShape) -> int:
    """How many UTF-8 bytes the model wrote, tool calls and thoughts included."""
    size = 0
    if message.content:
        size = _content_bytes(message.content)
    thought = message.reasoning_content or message.reasoning
    if thought:
        size += utf8_size(thought)
    elif message.reasoning_details:
        size += sum(utf8_size(thought.text) for thought in thoughts(message))
    if message.refusal:
        size += utf8_size(message.refusal)
    for call in message.tool_calls or ():
        size += sum(utf8_size(text) for text in call_texts(call))
    if message.function_call is not None:
        called = message.function_call
        size += utf8_size(called.name or "") + utf8_size(arguments(called))
    if message.audio is not None and message.audio.transcript:
        size += utf8_size(message.audio.transcript)
    return size


def _content_bytes(content: str | list[Json]) -> int:
    if isinstance(content, str):
        return utf8_size(content)
    parts = [content_part(piece) for piece in content]
    return sum(utf8_size(part.text.text + part.thinking.text) for part in parts)


def call_texts(call: CallShape) -> list[str]:
    """A tool call's name and arguments, or its piece of them."""
    if call.custom is not None and (call.custom.name or call.custom.input):
        return [call.custom.name or "", call.custom.input or ""]
    function = call.function or FunctionShape()
    return [function.name or "", arguments(function)]


def arguments(function: FunctionShape) -> str:
    """Arguments as text."""
    written = function.arguments
    return ENCODE(written).decode() if isinstance(written, dict) else written or ""


def utf8_size(text: str) -> int:
    """How many bytes the text has in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def call_kind(call: CallShape) -> content_pb2.ToolKind.ValueType:
    """The kind of a tool call. Snowflake writes an empty ``custom`` beside every function."""
    custom = call.custom is not None and (call.custom.name or call.custom.input)
    if custom or call.type == "custom":
        return content_pb2.TOOL_KIND_CUSTOM
    return content_pb2.TOOL_KIND_FUNCTION


def signature(extra: object) -> bytes:
    """Google's proof that a call follows from thinking
    (https://ai.google.dev/gemini-api/docs/thought-signatures); empty without one.
    """
    match extra:
        case {"google": {"thought_signature": str(text)}}:
            try:
                return base64.b64decode(text, validate=True)
            except binascii.Error:
                return b""
    return b""


def thoughts(message: MessageShape) -> list[content_pb2.ThinkingPart]:
    """The thoughts. ``reasoning_details`` says all that the plain texts say and has the proofs."""
    if message.reasoning_details:
        return [_thought(detail) for detail in message.reasoning_details]
    text = message.reasoning_content or message.reasoning
    return [ThinkingPart(text=text)] if text else []


def _thought(detail: Json) -> content_pb2.ThinkingPart:
    """One of OpenRouter's ``reasoning_details``. A kind without fields of its own in the hub is
    kept whole.
    """
    match detail:
        case {"type": "reasoning.encrypted", "data": str(data)}:
            known = frozenset({"type", "data"})
            return ThinkingPart(redacted_data=data, extra_json=unnamed(detail, known))
        case {"type": "reasoning.text"}:
            known = frozenset({"type", "text", "signature"})
            return ThinkingPart(
                text=_string(detail.get("text")),
                signature=_string(detail.get("signature")),
                extra_json=unnamed(detail, known),
            )
    text = _string(detail.get("summary")) or _string(detail.get("text"))
    return ThinkingPart(text=text, extra_json=ENCODE(detail))


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def content_part(piece: Json) -> content_pb2.Part:
    """One piece of a content list."""
    match piece:
        case {"type": "text", "text": str(text)}:
            return Part(text=content_pb2.TextPart(text=text))
        case {"type": "thinking", "thinking": list(inner)}:
            text = "".join(_string(item.get("text")) for item in inner if isinstance(item, dict))
            proof = _string(piece.get("signature"))
            return Part(thinking=ThinkingPart(text=text, signature=proof))
    return Part(opaque_json=ENCODE(piece))


def annotation(item: Json) -> content_pb2.Annotation:
    """Where a stretch of the text comes from."""
    match item:
        case {
            "type": "url_citation",
            "url_citation": {
                "url": str(url),
                "title": str(title),
                "start_index": int(start),
                "end_index": int(end),
                **inner,
            },
            **outer,
        } if not (inner or outer):
            return content_pb2.Annotation(
                url_citation=content_pb2.UrlCitation(
                    url=url, title=title, start_index=start, end_index=end
                )
            )
    return content_pb2.Annotation(opaque_json=ENCODE(item))


def media(url: str) -> content_pb2.MediaSource:
    """Media behind a URL; a data URL is opened."""
    head, comma, data = url.partition(",")
    if comma and head.startswith("data:") and head.endswith(";base64"):
        kind = head.removeprefix("data:").removesuffix(";base64")
        return content_pb2.MediaSource(data=decoded(data), media_type=kind)
    return content_pb2.MediaSource(url=url)


def decoded(data: str) -> bytes:
    """Base64, as far as it is some."""
    try:
        return base64.b64decode(data)
    except binascii.Error:
        return b""


def logprobs(value: object) -> chat_pb2.Logprobs | None:
    """Log probabilities in OpenAI's form; ``None`` for none and for other forms."""
    try:
        shape = msgspec.convert(value, LogprobsShape)
    except msgspec.ValidationError:
        return None
    if shape.content is None and shape.refusal is None:
        return None
    return chat_pb2.Logprobs(
        content=[_logprob(item) for item in shape.content or ()],
        refusal=[_logprob(item) for item in shape.refusal or ()],
    )


def _logprob(item: LogprobShape) -> chat_pb2.TokenLogprob:
    made = chat_pb2.TokenLogprob(token=item.token, logprob=item.logprob)
    if item.bytes is not None:
        made.utf8 = bytes(item.bytes)
    made.top.extend(_logprob(top) for top in item.top_logprobs or ())
    return made
