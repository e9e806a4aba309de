"""The shape of an OpenAI chat request: which field has which type.

Source: https://platform.openai.com/docs/api-reference/chat/create and the types of the official
SDK; fields that other vendors added to the dialect name theirs. The structs check and give quick
access; what they do not name is kept in the request's own JSON, from which the typed form is made,
so that nothing is lost. A ``null`` means that the field was left out.
"""

import re
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError

_T = TypeVar("_T", bound=msgspec.Struct)

Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Limit = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
UsdField = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
Content = str | list[dict[str, Any]]
"""A message's text, or its parts; each part is checked by its own struct in :data:`PARTS`."""


class NameField(msgspec.Struct, gc=False):
    """``{"name": …}``: a tool by name."""

    name: str


class ArgumentsField(msgspec.Struct, gc=False):
    """The function that an assistant called."""

    name: str
    arguments: str


class InputField(msgspec.Struct, gc=False):
    """The custom tool that an assistant called."""

    name: str
    input: str


class ToolCallField(msgspec.Struct):
    """One of an assistant's tool calls. Some vendors leave ``type`` out."""

    id: str
    type: str | None = None
    function: ArgumentsField | None = None
    custom: InputField | None = None


class IdField(msgspec.Struct, gc=False):
    """``{"id": …}``: an earlier answer's audio, or a custom voice."""

    id: str


class SystemMessage(msgspec.Struct, tag_field="role", tag="system"):
    """The operator speaks, older word."""

    content: Content
    name: str | None = None


class DeveloperMessage(msgspec.Struct, tag_field="role", tag="developer"):
    """The operator speaks, newer word."""

    content: Content
    name: str | None = None


class UserMessage(msgspec.Struct, tag_field="role", tag="user"):
    """The user speaks."""

    content: Content
    name: str | None = None


class AssistantMessage(msgspec.Struct, tag_field="role", tag="assistant"):
    """The model spoke.

    ``reasoning_content`` is DeepSeek's (https://api-docs.deepseek.com/guides/thinking_mode),
    ``reasoning`` and ``reasoning_details`` OpenRouter's
    (https://openrouter.ai/docs/use-cases/reasoning-tokens).
    """

    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallField] | None = None
    function_call: ArgumentsField | None = None
    audio: IdField | None = None
    annotations: list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[dict[str, Any]] | None = None


class ToolMessage(msgspec.Struct, tag_field="role", tag="tool"):
    """A tool answered."""

    content: Content
    tool_call_id: str
    name: str | None = None


class FunctionMessage(msgspec.Struct, tag_field="role", tag="function"):
    """A function answered, in the legacy form."""

    name: str
    content: Content | None = None


MessageField = (
    SystemMessage
    | DeveloperMessage
    | UserMessage
    | AssistantMessage
    | ToolMessage
    | FunctionMessage
)


class TextField(msgspec.Struct, gc=False):
    """A text part."""

    text: str


class RefusalField(msgspec.Struct, gc=False):
    """A refusal part."""

    refusal: str


class ImageUrlField(msgspec.Struct, gc=False):
    """Where a picture is. ``format`` is LiteLLM's media type for a URL that does not show it."""

    url: str
    detail: str | None = None
    format: str | None = None


class ImageField(msgspec.Struct):
    """A picture part. Mistral's form has the bare URL
    (https://docs.mistral.ai/capabilities/vision/).
    """

    image_url: ImageUrlField | str


class UrlField(msgspec.Struct, gc=False):
    """``{"url": …}``."""

    url: str


class VideoField(msgspec.Struct):
    """A video part (https://openrouter.ai/docs/features/multimodal/videos)."""

    video_url: UrlField | str


class InputAudioField(msgspec.Struct, gc=False):
    """Sound as base64."""

    data: str
    format: str | None = None


class AudioField(msgspec.Struct):
    """A sound part."""

    input_audio: InputAudioField


class FileDataField(msgspec.Struct, gc=False):
    """A document as a data URL or base64, or an uploaded file's id."""

    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class FileField(msgspec.Struct):
    """A document part."""

    file: FileDataField


PARTS: Final[dict[str, type[msgspec.Struct]]] = {
    "text": TextField,
    "refusal": RefusalField,
    "image_url": ImageField,
    "video_url": VideoField,
    "input_audio": AudioField,
    "file": FileField,
}
"""The parts that are understood, by type. Other types are kept as they are."""


class FunctionField(msgspec.Struct):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class CustomField(msgspec.Struct):
    """A tool that takes free text."""

    name: str
    description: str | None = None
    format: dict[str, Any] | None = None


class ToolField(msgspec.Struct):
    """A tool. Types other than ``function`` and ``custom`` are the provider's own; without a
    type it is a function (https://docs.mistral.ai/capabilities/function_calling/).
    """

    type: str = "function"
    function: FunctionField | None = None
    custom: CustomField | None = None


class AllowedToolField(msgspec.Struct):
    """A tool that a choice allows."""

    type: Literal["function", "custom"]
    function: NameField | None = None
    custom: NameField | None = None


class AllowedToolsField(msgspec.Struct):
    """The tools that a choice allows."""

    mode: Literal["auto", "required"]
    tools: list[AllowedToolField]


class ToolChoiceField(msgspec.Struct):
    """A tool choice in its object form; without a type it is a function."""

    type: Literal["function", "custom", "allowed_tools"] = "function"
    function: NameField | None = None
    custom: NameField | None = None
    allowed_tools: AllowedToolsField | None = None


class JsonSchemaField(msgspec.Struct):
    """The schema that an answer follows."""

    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormatField(msgspec.Struct):
    """The form of the answer."""

    type: str
    json_schema: JsonSchemaField | None = None


class StreamOptionsField(msgspec.Struct, gc=False):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class VoiceField(msgspec.Struct):
    """How spoken answers sound."""

    format: str
    voice: str | IdField


class PredictionField(msgspec.Struct):
    """Text that the answer is expected to repeat."""

    type: Literal["content"]
    content: Content


class ReasoningField(msgspec.Struct, gc=False):
    """OpenRouter's knob for thinking (https://openrouter.ai/docs/use-cases/reasoning-tokens)."""

    effort: str | None = None
    max_tokens: Count | None = None
    exclude: bool | None = None
    enabled: bool | None = None


class ThinkingField(msgspec.Struct, gc=False):
    """Anthropic's knob for thinking, which DeepSeek, Z.ai and Moonshot took up
    (https://docs.claude.com/en/docs/build-with-claude/extended-thinking).
    """

    type: str | None = None
    budget_tokens: Count | None = None


class MaxPriceField(msgspec.Struct, forbid_unknown_fields=True):
    """What may be charged at most, in USD: for a million tokens, and for a request."""

    prompt: UsdField | None = None
    completion: UsdField | None = None
    request: Annotated[float, msgspec.Meta(ge=0, le=1_000)] | None = None


class ProviderField(msgspec.Struct):
    """Which provider may serve, in OpenRouter's words
    (https://openrouter.ai/docs/features/provider-routing).
    """

    order: list[str] | None = None
    only: list[str] | None = None
    ignore: list[str] | None = None
    allow_fallbacks: bool | None = None
    data_collection: Literal["allow", "deny"] | None = None
    zdr: bool | None = None
    sort: Literal["price", "throughput", "latency"] | None = None
    max_price: MaxPriceField | None = None


class ChatFields(msgspec.Struct):
    """A chat request. ``top_k`` and ``min_p`` are vLLM's and OpenRouter's, ``models`` and
    ``provider`` are the gateway's own and never reach a provider.
    """

    messages: Annotated[list[MessageField], msgspec.Meta(min_length=1)]
    model: Name | None = None
    models: Annotated[list[Name], msgspec.Meta(max_length=16)] | None = None
    provider: ProviderField | None = None
    stream: bool | None = None
    stream_options: StreamOptionsField | None = None
    max_tokens: Limit | None = None
    max_completion_tokens: Limit | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int32 | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Int64 | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None
    tools: list[ToolField] | None = None
    tool_choice: Literal["none", "auto", "required", "any"] | ToolChoiceField | None = None
    parallel_tool_calls: bool | None = None
    functions: list[FunctionField] | None = None
    function_call: Literal["none", "auto"] | NameField | None = None
    response_format: ResponseFormatField | None = None
    reasoning_effort: str | None = None
    reasoning: ReasoningField | None = None
    thinking: ThinkingField | None = None
    modalities: list[Literal["text", "audio", "image"]] | None = None
    audio: VoiceField | None = None
    prediction: PredictionField | None = None
    web_search_options: dict[str, Any] | None = None
    service_tier: str | None = None
    store: bool | None = None
    verbosity: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: (
        Annotated[
            dict[
                Annotated[str, msgspec.Meta(max_length=64)],
                Annotated[str, msgspec.Meta(max_length=512)],
            ],
            msgspec.Meta(max_length=16),
        ]
        | None
    ) = None


def check(value: object, shape: type[_T], *, at: str = "") -> _T:
    """The value as ``shape``. Raises INVALID_REQUEST that names the field at fault.

    Args:
        value: JSON as Python values.
        shape: one of the structs above.
        at: where the value stands in the request (``messages[0].content[1]``); empty at the top.
    """
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as exc:
        raise _refusal(str(exc), at) from None


def invalid(message: str, param: str) -> GatewayError:
    """A request that is refused for one field."""
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, message, param=param)


def missing(param: str) -> GatewayError:
    """A request that lacks a field."""
    return invalid(f"Missing required parameter: '{param}'.", param)


_PLACE: Final = re.compile(r" - at (?:`key` in )?`\$(.*)`\Z")
_MISSING: Final = re.compile(r"Object missing required field `(.*)`")
_INVALID: Final = re.compile(r"(?s)Invalid (?:enum )?value (.*)")
_EXPECTED: Final = re.compile(r"Expected `(.*?)`(?:, got `(.*)`)?(.*)")
_ALLOWED: Final = {
    "role": "'system', 'developer', 'user', 'assistant', 'tool' or 'function'",
    "tool_choice": "'none', 'auto', 'required' or an object",
    "function_call": "'none', 'auto' or an object",
    "mode": "'auto' or 'required'",
}
_WORDS: Final = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
    "null": "null",
}


def _refusal(text: str, at: str) -> GatewayError:
    """The checker's complaint in the words that users of OpenAI's API know."""
    found = _PLACE.search(text)
    complaint = text[: found.start()] if found else text
    param = (at + found[1].replace("[...]", "") if found else at).removeprefix(".")
    if field := _MISSING.match(complaint):
        return missing(".".join(filter(None, (param, field[1]))))
    if value := _INVALID.match(complaint):
        allowed = _ALLOWED.get(param.rpartition(".")[2])
        supported = f" Supported values are: {allowed}." if allowed else ""
        return invalid(f"Invalid value for '{param}': {value[1][:100]}.{supported}", param)
    if expected := _EXPECTED.match(complaint):
        kinds = [_WORDS.get(kind, kind) for kind in expected[1].split(" | ")]
        wanted = " or ".join(kind for kind in kinds if kind != "null") + expected[3]
        if expected[2] is None:
            return invalid(f"Invalid value for '{param}': expected {wanted}.", param)
        got = _WORDS.get(expected[2], expected[2])
        return invalid(f"Invalid type for '{param}': expected {wanted}, but got {got}.", param)
    return invalid(f"Invalid value for '{param}': {complaint}.", param)
