"""A chat call as an OpenAI request, in the words of a row: every field of the hub is renamed,
derived or refused.

Refuses silently dropping anything: a field that the vendor has no knob for is
UNSUPPORTED_PARAMETER, unless its value asks for what happens anyway (:data:`HARMLESS`) or the
gateway itself keeps it (:data:`KEPT`).
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from services.router.providers.base import Exchange
from services.router.providers.json_members import ENCODE, Json, embedded, extend, merge, put
from services.router.providers.openai_messages import conversation
from services.router.providers.openai_parts import cache_control, content, invalid, unsupported
from services.router.providers.openai_row import (
    ALLOWED,
    AUTO,
    NONE,
    ONE,
    REQUIRED,
    Compatible,
    ThinkingKnobs,
)


class Rule(enum.Enum):
    """What becomes of a field of the hub that has no field of its own on the wire."""

    DERIVED = enum.auto()
    """Said in another form, below."""
    GATEWAY = enum.auto()
    """For the gateway; no provider sees it."""


FIELDS: Final[Mapping[str, str | Rule]] = {
    "model": Rule.DERIVED,
    "messages": "messages",
    "tools": Rule.DERIVED,
    "tool_choice": Rule.DERIVED,
    "parallel_tool_calls": "parallel_tool_calls",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "stop": "stop",
    "logit_bias": "logit_bias",
    "output_tokens_max": "max_completion_tokens",
    "choices": "n",
    "response_format": "response_format",
    "thinking": Rule.DERIVED,
    "logprobs": "logprobs",
    "top_logprobs": "top_logprobs",
    "output_modalities": "modalities",
    "audio_output": "audio",
    "stream": "stream",
    "stream_usage": Rule.GATEWAY,
    "service_tier": "service_tier",
    "store": "store",
    "verbosity": "verbosity",
    "prediction": "prediction",
    "web_search_options_json": "web_search_options",
    "prompt_cache_key": "prompt_cache_key",
    "prompt_cache_retention": "prompt_cache_retention",
    "metadata": "metadata",
    "end_user": "user",
    "safety_identifier": "safety_identifier",
    "extra_json": Rule.DERIVED,
    "routing": Rule.GATEWAY,
    "context": Rule.GATEWAY,
    "native": Rule.GATEWAY,
    "legacy_output_tokens_max": Rule.DERIVED,
    "legacy_functions": Rule.DERIVED,
}
"""OpenAI's name of every field of ``ChatRequest``, or what else becomes of it. A row's ``fields``
go before. Of the usage of a stream the gateway always asks, whatever ``stream_usage`` says."""

HARMLESS: Final[Mapping[str, tuple[object, ...]]] = {
    "choices": (1,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "min_p": (0,),
    "parallel_tool_calls": (True,),
    "presence_penalty": (0,),
    "prompt_cache_retention": ("in_memory",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
}
"""Values that ask for what happens anyway."""

KEPT: Final = frozenset({"metadata", "end_user", "safety_identifier", "prompt_cache_key"})
"""Fields that a provider without them need not see: the first three are kept with the usage row;
the last only helps a cache to find what it would look for anyway."""

_EFFORTS: Final[Mapping[int, str]] = {
    chat_pb2.THINKING_EFFORT_MINIMAL: "minimal",
    chat_pb2.THINKING_EFFORT_LOW: "low",
    chat_pb2.THINKING_EFFORT_MEDIUM: "medium",
    chat_pb2.THINKING_EFFORT_HIGH: "high",
    chat_pb2.THINKING_EFFORT_XHIGH: "xhigh",
    chat_pb2.THINKING_EFFORT_MAX: "max",
}
_BUDGETS: Final[Mapping[str, int]] = {"minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
"""Tokens for an effort, as Google's OpenAI dialect has them
(https://ai.google.dev/gemini-api/docs/openai#thinking); more effort has no bound."""

_MODALITIES: Final[Mapping[int, str]] = {
    chat_pb2.OUTPUT_MODALITY_TEXT: "text",
    chat_pb2.OUTPUT_MODALITY_AUDIO: "audio",
    chat_pb2.OUTPUT_MODALITY_IMAGE: "image",
}
_FORMATS: Final[Mapping[int, str]] = {
    chat_pb2.RESPONSE_FORMAT_KIND_TEXT: "text",
    chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT: "json_object",
    chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA: "json_schema",
}
_CHOICES: Final[Mapping[int, str]] = {AUTO: "auto", NONE: "none", REQUIRED: "required"}


def typed_body(row: Compatible, exchange: Exchange) -> bytes:
    """The request. Raises UNSUPPORTED_PARAMETER for what the vendor cannot do and INVALID_REQUEST
    for what is no JSON.
    """
    request = exchange.request
    body: Json = {"model": exchange.model}
    for descriptor, value in request.ListFields():
        name = descriptor.name
        default = FIELDS[name]
        target = row.fields.get(name, default)
        if target is None:
            if name not in KEPT and value not in HARMLESS.get(name, ()):
                raise unsupported(row, default if isinstance(default, str) else name)
        elif isinstance(target, str):
            convert = _CONVERT.get(name)
            body[target] = value if convert is None else convert(row, value)
    if request.legacy_output_tokens_max and "max_completion_tokens" in body:
        body["max_tokens"] = body.pop("max_completion_tokens")
    _write_tools(row, request, body)
    if request.HasField("thinking"):
        _write_thinking(row, request.thinking, body)
    if request.stream and row.stream_usage:
        body["stream_options"] = {"include_usage": True}
    if request.extra_json:
        extend(body, request.extra_json, "extra_json")
    return ENCODE(body)


def _prediction(row: Compatible, value: Any) -> Json:
    return {"type": "content", "content": content(row, value, "prediction.content")}


def _logit_bias(_row: Compatible, value: Any) -> Json:
    """Whole numbers are written as such: OpenAI takes no others."""
    return {token: int(bias) if bias.is_integer() else bias for token, bias in value.items()}


def _modalities(_row: Compatible, value: Any) -> list[str]:
    return [_MODALITIES[modality] for modality in value]


def _audio(_row: Compatible, value: Any) -> Json:
    voice = {"id": value.voice_id} if value.voice_id else value.voice
    return {"format": value.format, "voice": voice}


def _web_search(_row: Compatible, value: Any) -> Any:
    return embedded(value, "web_search_options")


def _service_tier(row: Compatible, value: Any) -> str:
    return row.service_tiers.get(value, value)


def _response_format(row: Compatible, value: Any) -> Json:
    kind = _FORMATS.get(value.kind)
    if kind is None:
        raise invalid("response_format", "`response_format` says no form; choose one.")
    if kind not in row.response_formats:
        raise unsupported(row, f"response_format.{kind}")
    if kind != "json_schema":
        return {"type": kind}
    schema: Json = {"name": value.name}
    if value.description:
        schema["description"] = value.description
    if value.schema:
        schema["schema"] = embedded(value.schema, "response_format.json_schema.schema")
    if value.HasField("strict"):
        schema["strict"] = value.strict
    return {"type": kind, "json_schema": schema}


_CONVERT: Final[Mapping[str, Callable[[Compatible, Any], Any]]] = {
    "messages": conversation,
    "stop": lambda _, value: list(value),
    "logit_bias": _logit_bias,
    "response_format": _response_format,
    "output_modalities": _modalities,
    "audio_output": _audio,
    "prediction": _prediction,
    "web_search_options_json": _web_search,
    "metadata": lambda _, value: dict(value),
    "service_tier": _service_tier,
}
"""Fields whose values need more than a name."""


def _write_tools(row: Compatible, request: chat_pb2.ChatRequest, body: Json) -> None:
    """The tools and the choice among them. A rule that the vendor does not know is derived from
    those that it knows: fewer tools, or none.
    """
    if request.legacy_functions and not row.legacy_functions:
        raise unsupported(row, "functions", "Use `tools` instead.")
    tools: Sequence[chat_pb2.Tool] = request.tools
    choice = request.tool_choice
    mode = choice.mode
    known = row.tool_choices
    if mode == ONE and not choice.names:
        raise invalid("tool_choice", "`tool_choice` names no tool; name the one to call.")
    if mode == ALLOWED and ALLOWED not in known:
        tools = _chosen(tools, set(choice.names))
        mode = REQUIRED if choice.required else AUTO
    elif mode == ONE and ONE not in known and REQUIRED in known:
        tools = _chosen(tools, set(choice.names))
        mode = REQUIRED
    if mode == NONE and NONE not in known:
        return
    if mode in (REQUIRED, ONE) and mode not in known:
        raise unsupported(row, "tool_choice")
    if request.legacy_functions:
        _write_functions(row, request, body)
        return
    if tools:
        body["tools"] = [_tool(row, tool) for tool in tools]
    if mode in _CHOICES and mode in known:
        body["tool_choice"] = _CHOICES[mode]
    elif mode == ONE:
        body["tool_choice"] = _named(choice.names[0], choice.kind)
    elif mode == ALLOWED:
        custom = {tool.custom.name for tool in tools if tool.HasField("custom")}
        body["tool_choice"] = _allowed(choice, custom)


def _chosen(tools: Sequence[chat_pb2.Tool], names: set[str]) -> list[chat_pb2.Tool]:
    """The tools with these names."""
    return [tool for tool in tools if {tool.function.name, tool.custom.name} & names]


def _named(name: str, kind: int) -> Json:
    word = "custom" if kind == content_pb2.TOOL_KIND_CUSTOM else "function"
    return {"type": word, word: {"name": name}}


def _allowed(choice: chat_pb2.ToolChoice, custom: set[str]) -> Json:
    """The tools that alone may be called, each under its own kind."""
    kinds = (content_pb2.TOOL_KIND_FUNCTION, content_pb2.TOOL_KIND_CUSTOM)
    allowed: Json = {
        "mode": "required" if choice.required else "auto",
        "tools": [_named(name, kinds[name in custom]) for name in choice.names],
    }
    return {"type": "allowed_tools", "allowed_tools": allowed}


def _tool(row: Compatible, tool: chat_pb2.Tool) -> Json | Any:
    match tool.WhichOneof("tool"):
        case "function":
            written: Json = {"type": "function", "function": _function(tool.function)}
        case "custom":
            if not row.custom_tools:
                raise unsupported(row, "tools.custom", "Use a function tool instead.")
            custom: Json = {"name": tool.custom.name}
            if tool.custom.description:
                custom["description"] = tool.custom.description
            if tool.custom.format_json:
                custom["format"] = embedded(tool.custom.format_json, "tools.custom.format")
            written = {"type": "custom", "custom": custom}
        case "provider_json":
            return embedded(tool.provider_json, "tools")
        case _:
            raise invalid("tools", "A tool says nothing; make it a function or a custom tool.")
    if tool.HasField("cache_hint") and row.cache_control:
        written["cache_control"] = cache_control(tool.cache_hint)
    return written


def _function(function: chat_pb2.FunctionTool) -> Json:
    written: Json = {"name": function.name}
    if function.description:
        written["description"] = function.description
    if function.parameters_schema:
        written["parameters"] = embedded(function.parameters_schema, "tools.function.parameters")
    if function.HasField("strict"):
        written["strict"] = function.strict
    return written


def _write_functions(row: Compatible, request: chat_pb2.ChatRequest, body: Json) -> None:
    """The legacy form: ``functions`` and ``function_call``."""
    if any(not tool.HasField("function") for tool in request.tools):
        raise unsupported(row, "functions", "Use `tools` for tools that are no functions.")
    if request.tools:
        body["functions"] = [_function(tool.function) for tool in request.tools]
    choice = request.tool_choice
    if choice.mode == ONE:
        body["function_call"] = {"name": choice.names[0]}
    elif choice.mode in (AUTO, NONE):
        body["function_call"] = _CHOICES[choice.mode]
    elif choice.mode:
        raise unsupported(row, "tool_choice", "Use `tools` instead of `functions`.")


def _write_thinking(row: Compatible, wish: chat_pb2.Thinking, body: Json) -> None:
    """How much to think. Of an effort and a budget, the one that the vendor has a knob for is
    said, the budget first; where it has only the other, that is derived.
    """
    knobs = row.thinking
    if wish.include_thoughts and (knobs is None or not knobs.shown):
        raise unsupported(row, "reasoning.exclude", "Its thoughts are never shown.")
    effort = _EFFORTS.get(wish.effort, "")
    off = wish.effort == chat_pb2.THINKING_EFFORT_NONE
    off = off or (wish.HasField("enabled") and not wish.enabled)
    off = off or (wish.HasField("budget_tokens") and not wish.budget_tokens)
    if not (off or wish.enabled or effort or wish.budget_tokens):
        return
    if knobs is None or (off and knobs.off is None):
        raise unsupported(row, "reasoning_effort", "Its models decide whether to think.")
    if off:
        merge(body, knobs.off or {})
        return
    if wish.enabled or not knobs.effort:
        merge(body, knobs.on)
    _write_effort(knobs, effort, wish.budget_tokens, body)


def _write_effort(knobs: ThinkingKnobs, effort: str, budget: int, body: Json) -> None:
    """An effort or a budget, under the knob that the vendor has."""
    if not effort and not budget:
        return
    if budget and knobs.budget:
        put(body, knobs.budget, budget)
    elif knobs.effort:
        word = effort or _effort_of(budget)
        put(body, knobs.effort, knobs.words.get(word, word))
    elif effort in _BUDGETS:
        put(body, knobs.budget, _BUDGETS[effort])


def _effort_of(budget: int) -> str:
    """The effort that a budget in tokens asks for."""
    if budget <= _BUDGETS["low"]:
        return "low"
    return "medium" if budget <= _BUDGETS["medium"] else "high"
