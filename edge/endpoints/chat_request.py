"""Reads an OpenAI chat request: checks it, collects the facts that policy and metering need, and
makes the native form, which carries the caller's own bytes.

The typed form is made by :mod:`edge.endpoints.chat_typed`, only when the router asks for it.
"""

from typing import Any, Final

import msgspec

from edge.endpoints import strict_json
from edge.endpoints.chat_fields import (
    PARTS,
    AssistantMessage,
    AudioField,
    ChatFields,
    FileField,
    ImageField,
    MaxPriceField,
    ProviderField,
    ToolCallField,
    ToolChoiceField,
    VideoField,
    check,
    invalid,
    missing,
)
from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.money import NANO_PER_USD
from runtime.varint import varint

IMAGE_TOKENS_MAX: Final = 50_000
"""What one picture can cost at most, in tokens: gpt-4o-mini charges 2,833 and 5,667 for each of up
to 8 tiles (https://platform.openai.com/docs/guides/images-vision); no other model charges more.
"""
DOCUMENT_TOKENS_MAX: Final = 1_000_000
"""What one document or linked video can cost at most: as much as fits into the largest context
windows, since neither pages nor seconds are known here.
"""
BYTES_PER_MEDIA_TOKEN: Final = 16
"""Sound and video have at least as many bytes for each token that they cost: the densest, speech at
6 kbit/s, has 23 at Gemini's 32 tokens a second
(https://ai.google.dev/gemini-api/docs/audio).
"""

READY_FORMS_MAX: Final = 1024
"""How many native forms are kept ready."""
READY_BYTES_MAX: Final = 2048
"""A form with longer names of a caller's own is made each time."""
_BODY_TAG: Final = b"\x12"
_BOUND_TAG: Final = b"\x18"
_CONTEXT_TAG: Final = b"\xaa\x02"
_NATIVE_TAG: Final = b"\xb2\x02"
"""Field numbers with their wire types, as ``chat.proto`` has them: of NativeRequest its ``body``
and ``input_tokens_bound``, of ChatRequest its ``context`` and ``native``.
"""

_KINDS: Final = ("function", "custom")
_SORTS: Final = {
    "price": chat_pb2.PROVIDER_SORT_PRICE,
    "throughput": chat_pb2.PROVIDER_SORT_THROUGHPUT,
    "latency": chat_pb2.PROVIDER_SORT_LATENCY,
}
_PROVIDER_FIELDS: Final = frozenset(ProviderField.__struct_fields__)
_NO_THINKING: Final = (None, "none", "disabled")


class ChatCall(msgspec.Struct, frozen=True, kw_only=True):
    """A chat request that has passed every check.

    Attributes:
        fields: what the contract names.
        members: all that the caller wrote, as JSON values; ``fields`` has seen them.
        body: the bytes as they came.
        model: the model that is asked for first.
        input_tokens_bound: the input cannot have more tokens than this.
        features: what a model must be able to do, ascending.
    """

    fields: ChatFields
    members: dict[str, Any]
    body: bytes
    model: str
    input_tokens_bound: int
    features: list[chat_pb2.ChatFeature.ValueType]

    @property
    def stream(self) -> bool:
        """Whether the answer comes in pieces."""
        return self.fields.stream is True

    @property
    def stream_usage(self) -> bool:
        """Whether the caller wants the usage at the end of a stream."""
        options = self.fields.stream_options
        return options is not None and options.include_usage is True


def decode(body: bytes, *, depth_max: int) -> ChatCall:
    """The request in a body. Raises INVALID_REQUEST, or UNSUPPORTED_PARAMETER for a routing
    preference that the gateway does not have.

    Args:
        body: the bytes as they came.
        depth_max: how deep its JSON may nest.
    """
    members = strict_json.read_object(body, depth_max=depth_max)
    fields = check(members, ChatFields)
    if fields.tools or fields.tool_choice is not None:
        _check_named(fields)
    if fields.provider is not None:
        _check_preferences(members["provider"])
    features, bound = _facts(fields)
    return ChatCall(
        fields=fields,
        members=members,
        body=body,
        model=_models(fields)[0],
        input_tokens_bound=len(body) + bound,
        features=features,
    )


def native(call: ChatCall, context: chat_pb2.CallContext | None) -> chat_pb2.ChatRequest:
    """The call with the caller's own body."""
    request = frame(call, context)
    if call.fields.service_tier:
        request.service_tier = call.fields.service_tier
    own = request.native
    own.dialect = chat_pb2.DIALECT_OPENAI_CHAT
    own.body = call.body
    own.input_tokens_bound = call.input_tokens_bound
    if call.features:
        own.features.extend(call.features)
    return request


class NativeForms:
    """Native requests as they go out. Calls differ in their bodies and contexts; what else they say
    is kept ready, which makes one in half the time. Concatenated, the pieces are one message
    (https://protobuf.dev/programming-guides/encoding/#last-one-wins).
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], bytes] = {}

    def pack(self, call: ChatCall, context: chat_pb2.CallContext) -> bytes:
        """What :func:`native` makes, as bytes."""
        fields = call.fields
        bound = call.input_tokens_bound
        if (
            bound < 0
            or fields.metadata
            or fields.models
            or fields.provider
            or fields.user
            or fields.safety_identifier
            or fields.prompt_cache_key
        ):
            return native(call, context).SerializeToString()
        key = (
            call.model,
            fields.stream,
            call.stream_usage,
            fields.max_tokens,
            fields.max_completion_tokens,
            fields.n,
            fields.service_tier,
            *call.features,
        )
        ready = self._known.get(key)
        if ready is None:
            ready = self._keep(key, call)
        body = call.body
        rest = b"".join((_BODY_TAG, varint(len(body)), body, _BOUND_TAG, varint(bound)))
        caller = context.SerializeToString()
        return b"".join(
            (ready, _CONTEXT_TAG, varint(len(caller)), caller, _NATIVE_TAG, varint(len(rest)), rest)
        )

    def _keep(self, key: tuple[object, ...], call: ChatCall) -> bytes:
        request = native(call, None)
        request.native.ClearField("body")
        request.native.ClearField("input_tokens_bound")
        ready = request.SerializeToString()
        if len(self._known) >= READY_FORMS_MAX:
            self._known.clear()
        if len(ready) <= READY_BYTES_MAX:
            self._known[key] = ready
        return ready


def frame(call: ChatCall, context: chat_pb2.CallContext | None) -> chat_pb2.ChatRequest:
    """What both forms have: the fields that policy, routing and metering read."""
    fields = call.fields
    request = chat_pb2.ChatRequest(
        model=call.model,
        stream=call.stream,
        stream_usage=call.stream_usage,
        output_tokens_max=fields.max_completion_tokens or fields.max_tokens or None,
        choices=fields.n,
        legacy_output_tokens_max=fields.max_tokens is not None,
        context=context,
    )
    if fields.metadata:
        request.metadata.update(fields.metadata)
    if fields.user:
        request.end_user = fields.user
    if fields.safety_identifier:
        request.safety_identifier = fields.safety_identifier
    if fields.prompt_cache_key:
        request.prompt_cache_key = fields.prompt_cache_key
    if fields.models or fields.provider:
        request.routing.CopyFrom(_routing(fields))
    return request


def _models(fields: ChatFields) -> list[str]:
    """The models in the order in which they are to be tried."""
    models = [fields.model] if fields.model else []
    if fields.models is None and models:
        return models
    models += [model for model in fields.models or () if model not in models]
    if not models:
        raise missing("model")
    return models


def _routing(fields: ChatFields) -> chat_pb2.RoutingPreferences:
    provider = fields.provider
    routing = chat_pb2.RoutingPreferences(fallback_models=_models(fields)[1:])
    if provider is not None:
        routing.provider_order.extend(provider.order or ())
        routing.provider_only.extend(provider.only or ())
        routing.provider_ignore.extend(provider.ignore or ())
        if provider.allow_fallbacks is not None:
            routing.allow_fallbacks = provider.allow_fallbacks
        routing.no_training = provider.data_collection == "deny"
        routing.zero_retention = provider.zdr is True
        if provider.sort is not None:
            routing.sort = _SORTS[provider.sort]
        if provider.max_price is not None:
            _bound_rates(routing, provider.max_price)
    return routing


def _bound_rates(routing: chat_pb2.RoutingPreferences, most: MaxPriceField) -> None:
    if most.prompt is not None:
        routing.input_rate_max_nano_usd = round(most.prompt * NANO_PER_USD)
    if most.completion is not None:
        routing.output_rate_max_nano_usd = round(most.completion * NANO_PER_USD)
    if most.request is not None:
        # Rates are kept for a million; a request's price is for one.
        routing.request_rate_max_nano_usd = round(most.request * NANO_PER_USD * 1_000_000)


def _check_preferences(provider: dict[str, Any]) -> None:
    """Refuses routing preferences that the gateway does not have: to ignore one could send data
    where the caller forbade it.
    """
    for name, value in provider.items():
        if name not in _PROVIDER_FIELDS and value is not None:
            raise GatewayError(
                error_pb2.ERROR_REASON_UNSUPPORTED_PARAMETER,
                f"The gateway has no routing preference '{name[:100]}'; remove it. "
                f"It has: {', '.join(sorted(_PROVIDER_FIELDS))}.",
                param=f"provider.{name[:100]}",
            )


def _check_named(fields: ChatFields) -> None:
    """Refuses tools and choices of a kind whose own member is missing."""
    for index, tool in enumerate(fields.tools or ()):
        if tool.type in _KINDS and getattr(tool, tool.type) is None:
            raise missing(f"tools[{index}].{tool.type}")
    choice = fields.tool_choice
    if isinstance(choice, ToolChoiceField):
        if getattr(choice, choice.type) is None:
            raise missing(f"tool_choice.{choice.type}")
        allowed = choice.allowed_tools.tools if choice.allowed_tools else ()
        for index, allowed_tool in enumerate(allowed):
            if getattr(allowed_tool, allowed_tool.type) is None:
                raise missing(f"tool_choice.allowed_tools.tools[{index}].{allowed_tool.type}")


def _facts(fields: ChatFields) -> tuple[list[chat_pb2.ChatFeature.ValueType], int]:
    """The features of a request, and what must be added to its length to bound its tokens.

    A token has at least one byte, and the JSON around a message is longer than what models add to
    it; so the body's length bounds all but media, whose base64 is taken off again.
    """
    features: set[chat_pb2.ChatFeature.ValueType] = set()
    bound = 0
    for index, message in enumerate(fields.messages):
        content = message.content
        if type(content) is list:
            bound += _parts_facts(content, f"messages[{index}].content", features)
        if type(message) is AssistantMessage and message.tool_calls:
            _check_tool_calls(message.tool_calls, f"messages[{index}].tool_calls")
    if fields.prediction is not None and type(fields.prediction.content) is list:
        bound += _parts_facts(fields.prediction.content, "prediction.content", features)
    if fields.tools or fields.functions:
        features.add(chat_pb2.CHAT_FEATURE_TOOLS)
    if fields.response_format is not None and fields.response_format.type == "json_schema":
        features.add(chat_pb2.CHAT_FEATURE_JSON_SCHEMA)
    if fields.modalities and "audio" in fields.modalities:
        features.add(chat_pb2.CHAT_FEATURE_AUDIO_OUTPUT)
    if _thinks(fields):
        features.add(chat_pb2.CHAT_FEATURE_THINKING)
    return sorted(features) if features else [], bound


def _check_tool_calls(calls: list[ToolCallField], place: str) -> None:
    """Refuses a call that calls nothing."""
    for position, call in enumerate(calls):
        if call.custom is None and call.function is None:
            kind = "custom" if call.type == "custom" else "function"
            raise missing(f"{place}[{position}].{kind}")


def _thinks(fields: ChatFields) -> bool:
    """Whether the caller asks for thinking."""
    if fields.reasoning_effort not in _NO_THINKING:
        return True
    reasoning, thinking = fields.reasoning, fields.thinking
    if reasoning is not None and (
        reasoning.enabled or reasoning.max_tokens or reasoning.effort not in _NO_THINKING
    ):
        return True
    return thinking is not None and thinking.type not in _NO_THINKING


def _parts_facts(
    parts: list[dict[str, Any]], place: str, features: set[chat_pb2.ChatFeature.ValueType]
) -> int:
    return sum(
        _part_facts(part, f"{place}[{position}]", features) for position, part in enumerate(parts)
    )


def _part_facts(
    part: dict[str, Any], place: str, features: set[chat_pb2.ChatFeature.ValueType]
) -> int:
    """Checks a part, notes its feature and returns its share of the bound."""
    kind = part.get("type")
    if type(kind) is not str:
        if kind is None:
            raise missing(f"{place}.type")
        raise invalid(f"Invalid type for '{place}.type': expected a string.", f"{place}.type")
    shape = PARTS.get(kind)
    if shape is None:
        return 0
    match check(part, shape, at=place):
        case ImageField(image_url=image):
            features.add(chat_pb2.CHAT_FEATURE_IMAGE_INPUT)
            return IMAGE_TOKENS_MAX - _inline(image if isinstance(image, str) else image.url)
        case AudioField(input_audio=audio):
            features.add(chat_pb2.CHAT_FEATURE_AUDIO_INPUT)
            return len(audio.data) // BYTES_PER_MEDIA_TOKEN - len(audio.data)
        case VideoField(video_url=video):
            features.add(chat_pb2.CHAT_FEATURE_VIDEO_INPUT)
            inline = _inline(video if isinstance(video, str) else video.url)
            return (inline // BYTES_PER_MEDIA_TOKEN if inline else DOCUMENT_TOKENS_MAX) - inline
        case FileField(file=file):
            features.add(chat_pb2.CHAT_FEATURE_FILE_INPUT)
            return DOCUMENT_TOKENS_MAX - len(file.file_data or "")
        case _:
            return 0


def _inline(url: str) -> int:
    """How many characters of a URL are data."""
    return len(url) if url.startswith("data:") else 0
