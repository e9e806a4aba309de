"""A whole answer in the OpenAI dialect as an answer of the hub. Members that the hub does not name
are kept.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from services.router.providers.base import Answer, Exchange
from services.router.providers.json_members import ENCODE, MALFORMED, Json, unnamed
from services.router.providers.openai_error import embedded_error, failed_answer, protocol_error
from services.router.providers.openai_row import STOP, Compatible, FinishReason
from services.router.providers.openai_shapes import (
    NAMED,
    NAMED_CALL,
    NAMED_CHOICE,
    NAMED_MESSAGE,
    AudioShape,
    CallShape,
    ChoiceShape,
    CompletionShape,
    MessageShape,
    Part,
    annotation,
    arguments,
    call_kind,
    call_texts,
    content_part,
    decoded,
    logprobs,
    media,
    signature,
    spoken_bytes,
    thoughts,
)
from services.router.providers.openai_usage import token_usage

FINISH_REASONS: Final[Mapping[str, FinishReason]] = {
    "stop": STOP,
    "length": chat_pb2.FINISH_REASON_LENGTH,
    "tool_calls": chat_pb2.FINISH_REASON_TOOL_CALLS,
    "content_filter": chat_pb2.FINISH_REASON_CONTENT_FILTER,
    "function_call": chat_pb2.FINISH_REASON_FUNCTION_CALL,
}
"""OpenAI's words; a row adds its own."""

_WORDS: Final = {reason: word for word, reason in FINISH_REASONS.items()}

_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])

SERVICE_TIERS: Final = frozenset({"auto", "default", "flex", "scale", "priority", "fast"})
"""OpenAI's service tiers; another word goes under ``native_service_tier``."""


def typed_answer(row: Compatible, exchange: Exchange, body: bytes) -> Answer:
    """A whole answer. Raises UPSTREAM_PROTOCOL when it is not one, and the mapped reason when it
    is an error in spite of its status.
    """
    raw, shape = parse(row, body)
    check(row, raw, shape)
    if not shape.choices:
        raise protocol_error(row, "answered without choices")
    answer = chat_pb2.ChatAnswer(
        id=shape.id or "",
        created_unix_s=int(shape.created or 0),
        model=shape.model or "",
        system_fingerprint=shape.system_fingerprint or "",
        service_tier=service_tier(row, shape.service_tier),
        extra_json=unnamed(with_tier(row, raw), NAMED | row.ignored),
    )
    hidden = hides_thoughts(exchange)
    for choice, raw_choice in zip(shape.choices, raw["choices"], strict=True):
        answer.choices.append(_choice(row, choice, raw_choice, hidden))
    return Answer(
        event=chat_pb2.ChatEvent(answer=answer),
        usage=token_usage(row, usage_of(shape), shape.service_tier),
        finish_reason=finish_word(answer.choices[0].finish_reason),
        upstream_id=answer.id,
        output_bytes=sum(spoken_bytes(c.message or MessageShape()) for c in shape.choices),
    )


def parse(row: Compatible, body: bytes) -> tuple[Json, CompletionShape]:
    """An answer, or a chunk of one, as JSON and by its shape. Raises UPSTREAM_PROTOCOL for what
    has neither.
    """
    try:
        raw = _OBJECT.decode(body)
    except MALFORMED:
        raise protocol_error(row, "answered with something that is no JSON object") from None
    try:
        return raw, msgspec.convert(raw, CompletionShape)
    except msgspec.ValidationError:
        # An error may have members of the same names and other types.
        if is_error(raw):
            return raw, CompletionShape()
        raise protocol_error(row, "answered with something that is no chat answer") from None


def check(row: Compatible, raw: Mapping[str, Any], shape: CompletionShape) -> None:
    """Raises the mapped reason for an error inside an answer."""
    if is_error(raw):
        raise embedded_error(row, raw)
    if isinstance(shape.x_groq, dict) and shape.x_groq.get("error"):
        raise embedded_error(row, {"error": shape.x_groq["error"]})
    for choice in shape.choices or ():
        if choice.error:
            raise embedded_error(row, {"error": choice.error})
        if choice.finish_reason in row.failures:
            raise failed_answer(row, choice.finish_reason or "")


def is_error(raw: Mapping[str, Any]) -> bool:
    """Whether an object is an error: OpenAI's, or one without a wrapper."""
    return bool(raw.get("error")) or (
        "choices" not in raw and ("message" in raw or "detail" in raw or "msg" in raw)
    )


def usage_of(shape: CompletionShape) -> object:
    """The usage, wherever it stands: on top, under ``x_groq``
    (https://console.groq.com/docs/api-reference) or in the choice, as Moonshot's streams had it.
    """
    if shape.usage:
        return shape.usage
    if isinstance(shape.x_groq, dict) and shape.x_groq.get("usage"):
        return shape.x_groq["usage"]
    for choice in shape.choices or ():
        if choice.usage:
            return choice.usage
    return None


def service_tier(row: Compatible, tier: str | None) -> str:
    """The tier in OpenAI's word; empty when it has none."""
    for ours, theirs in row.service_tiers.items():
        if tier == theirs:
            return ours
    return tier if tier in SERVICE_TIERS else ""


def with_tier(row: Compatible, raw: Json) -> Json:
    """The members of an answer, a tier that OpenAI does not know under another name."""
    tier = raw.get("service_tier")
    if tier and not service_tier(row, tier):
        return raw | {"native_service_tier": tier}
    return raw


def hides_thoughts(exchange: Exchange) -> bool:
    """Whether the caller does not want to see thoughts; they are metered all the same."""
    wish = exchange.request.thinking
    return wish.HasField("include_thoughts") and not wish.include_thoughts


def finish_reason(row: Compatible, word: str) -> FinishReason:
    """The reason behind a word. A word that nobody documents still ends the answer."""
    return FINISH_REASONS.get(word) or row.finish_reasons.get(word) or STOP


def finish_word(reason: FinishReason) -> str:
    """OpenAI's word for a reason; empty for none."""
    return _WORDS.get(reason, "")


def implied_finish(has_calls: bool) -> FinishReason:
    """Why a complete answer ended whose provider does not say."""
    return chat_pb2.FINISH_REASON_TOOL_CALLS if has_calls else STOP


def _choice(
    row: Compatible, choice: ChoiceShape, raw: Mapping[str, Any], hidden: bool
) -> chat_pb2.Choice:
    message = choice.message or MessageShape()
    raw_message = raw.get("message") or {}
    parts = list(_parts(message, raw_message, hidden))
    if choice.finish_reason:
        reason = finish_reason(row, choice.finish_reason)
    else:
        reason = implied_finish(any(part.HasField("tool_call") for part in parts))
    made = chat_pb2.Choice(
        index=choice.index,
        finish_reason=reason,
        native_finish_reason=choice.native_finish_reason or choice.finish_reason or "",
        logprobs=logprobs(choice.logprobs),
        extra_json=unnamed(raw, NAMED_CHOICE | row.ignored),
    )
    made.message.role = content_pb2.ROLE_ASSISTANT
    made.message.parts.extend(parts)
    made.message.extra_json = unnamed(raw_message, NAMED_MESSAGE)
    return made


def _parts(
    message: MessageShape, raw: Mapping[str, Any], hidden: bool
) -> Iterable[content_pb2.Part]:
    """What the model said, in the order in which models say it."""
    if not hidden:
        yield from (Part(thinking=thought) for thought in thoughts(message))
    yield from _content(message, hidden)
    if message.refusal:
        yield Part(refusal=content_pb2.RefusalPart(text=message.refusal))
    if message.audio is not None and (message.audio.id or message.audio.data):
        yield Part(audio=_audio(message.audio))
    for picture in message.images or ():
        yield _picture(picture)
    for call, raw_call in zip(message.tool_calls or (), raw.get("tool_calls") or (), strict=True):
        yield _call(call, raw_call)
    called = message.function_call
    if called is not None and called.name:
        yield Part(
            tool_call=content_pb2.ToolCall(
                name=called.name,
                arguments=arguments(called),
                kind=content_pb2.TOOL_KIND_FUNCTION,
            )
        )


def _content(message: MessageShape, hidden: bool) -> Iterable[content_pb2.Part]:
    """The content, the annotations at its first text."""
    notes = [annotation(item) for item in message.annotations or ()]
    content = message.content
    if isinstance(content, list):
        for piece in content:
            part = content_part(piece)
            if part.HasField("thinking") and (hidden or not part.thinking.ByteSize()):
                continue
            if part.HasField("text"):
                part.text.annotations.extend(notes)
                notes = []
            yield part
        content = None
    if content or notes:
        yield Part(text=content_pb2.TextPart(text=content or "", annotations=notes))


def _audio(audio: AudioShape) -> content_pb2.AudioPart:
    made = content_pb2.AudioPart(
        audio_id=audio.id or "",
        transcript=audio.transcript or "",
        expires_at_unix_s=int(audio.expires_at or 0),
    )
    if audio.data:
        made.source.data = decoded(audio.data)
    return made


def _picture(picture: Json) -> content_pb2.Part:
    """A picture that the model made
    (https://openrouter.ai/docs/features/multimodal/image-generation).
    """
    match picture:
        case {"image_url": {"url": str(url)}}:
            return Part(image=content_pb2.ImagePart(source=media(url)))
    return Part(opaque_json=ENCODE(picture))


def _call(call: CallShape, raw: Mapping[str, Any]) -> content_pb2.Part:
    name, written = call_texts(call)
    proof = signature(call.extra_content)
    known = NAMED_CALL - {"extra_content"} if call.extra_content and not proof else NAMED_CALL
    return Part(
        tool_call=content_pb2.ToolCall(
            id=call.id or "",
            name=name,
            arguments=written,
            kind=call_kind(call),
            thought_signature=proof,
        ),
        extra_json=unnamed(raw, known),
    )
