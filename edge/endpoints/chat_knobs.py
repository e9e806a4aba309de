"""Tools, tool choice, the answer's form and thinking, from OpenAI's words into the hub's.

What the hub has no word for is left in ``extra``, which reaches providers of the same dialect
verbatim.
"""

from collections.abc import Mapping
from typing import Any, Final

from edge.endpoints import chat_parts, strict_json
from edge.endpoints.chat_fields import (
    AllowedToolsField,
    ChatFields,
    NameField,
    ToolChoiceField,
    invalid,
)
from edge.endpoints.chat_parts import cache_hint
from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2

EFFORTS: Final = {
    "none": chat_pb2.THINKING_EFFORT_NONE,
    "minimal": chat_pb2.THINKING_EFFORT_MINIMAL,
    "low": chat_pb2.THINKING_EFFORT_LOW,
    "medium": chat_pb2.THINKING_EFFORT_MEDIUM,
    "high": chat_pb2.THINKING_EFFORT_HIGH,
    "xhigh": chat_pb2.THINKING_EFFORT_XHIGH,
    "max": chat_pb2.THINKING_EFFORT_MAX,
}
_THINKING_TYPES: Final = {None: None, "enabled": True, "adaptive": True, "disabled": False}
_MODALITIES: Final = {
    "text": chat_pb2.OUTPUT_MODALITY_TEXT,
    "audio": chat_pb2.OUTPUT_MODALITY_AUDIO,
    "image": chat_pb2.OUTPUT_MODALITY_IMAGE,
}
_TOOL_CHOICES: Final = {
    "auto": chat_pb2.TOOL_CHOICE_MODE_AUTO,
    "none": chat_pb2.TOOL_CHOICE_MODE_NONE,
    "required": chat_pb2.TOOL_CHOICE_MODE_REQUIRED,
    # Mistral's word for `required` (https://docs.mistral.ai/capabilities/function_calling/).
    "any": chat_pb2.TOOL_CHOICE_MODE_REQUIRED,
}
_FORMATS: Final = {
    "text": chat_pb2.RESPONSE_FORMAT_KIND_TEXT,
    "json_object": chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT,
}


def set_tools(
    fields: ChatFields, members: Mapping[str, Any], request: chat_pb2.ChatRequest
) -> None:
    """The tools; one in a form that the contract cannot hold is kept whole."""
    for function in members.get("functions") or ():
        tool = _function(function)
        request.tools.append(tool or chat_pb2.Tool(provider_json=strict_json.encode(function)))
    for field, written in zip(fields.tools or (), members.get("tools") or (), strict=True):
        tool = None
        if written.keys() <= {"type", "function", "custom", "cache_control"}:
            if field.type == "function":
                tool = _function(written["function"])
            elif field.type == "custom":
                tool = _custom(written["custom"])
        if tool is None:
            tool = chat_pb2.Tool(provider_json=strict_json.encode(written))
        elif (hint := cache_hint(written)) is not None:
            tool.cache_hint.CopyFrom(hint)
        request.tools.append(tool)


def _function(members: Mapping[str, Any]) -> chat_pb2.Tool | None:
    if not members.keys() <= {"name", "description", "parameters", "strict", "cache_control"}:
        return None
    schema = members.get("parameters")
    function = chat_pb2.FunctionTool(
        name=members["name"],
        description=members.get("description") or "",
        parameters_schema=b"" if schema is None else strict_json.encode(schema),
        strict=members.get("strict"),
    )
    return chat_pb2.Tool(function=function, cache_hint=cache_hint(members))


def _custom(members: Mapping[str, Any]) -> chat_pb2.Tool | None:
    if not members.keys() <= {"name", "description", "format"}:
        return None
    form = members.get("format")
    return chat_pb2.Tool(
        custom=chat_pb2.CustomTool(
            name=members["name"],
            description=members.get("description") or "",
            format_json=b"" if form is None else strict_json.encode(form),
        )
    )


def set_tool_choice(fields: ChatFields, request: chat_pb2.ChatRequest) -> None:
    """Whether and which tool must be called, in the current or the legacy form."""
    target = request.tool_choice
    match fields.tool_choice if fields.function_call is None else fields.function_call:
        case str(word):
            target.mode = _TOOL_CHOICES[word]
        case ToolChoiceField(type="allowed_tools", allowed_tools=AllowedToolsField() as allowed):
            target.mode = chat_pb2.TOOL_CHOICE_MODE_ALLOWED
            target.required = allowed.mode == "required"
            named = [getattr(tool, tool.type) for tool in allowed.tools]
            target.names.extend(tool.name for tool in named)
        case ToolChoiceField(type="custom", custom=NameField(name=name)):
            target.mode = chat_pb2.TOOL_CHOICE_MODE_ONE
            target.names.append(name)
            target.kind = content_pb2.TOOL_KIND_CUSTOM
        case ToolChoiceField(function=NameField(name=name)) | NameField(name=name):
            target.mode = chat_pb2.TOOL_CHOICE_MODE_ONE
            target.names.append(name)
            target.kind = content_pb2.TOOL_KIND_FUNCTION
        case _:
            request.ClearField("tool_choice")


def set_answer_form(
    members: Mapping[str, Any], request: chat_pb2.ChatRequest, extra: dict[str, Any]
) -> None:
    """What the answer is made of and how it is laid out."""
    request.output_modalities.extend(_MODALITIES[name] for name in members.get("modalities") or ())
    if (written := members.get("response_format")) is not None:
        form = _response_format(written)
        if form is None:
            extra["response_format"] = written
        else:
            request.response_format.CopyFrom(form)
    if (audio := members.get("audio")) is not None:
        output = _audio_output(audio)
        if output is None:
            extra["audio"] = audio
        else:
            request.audio_output.CopyFrom(output)
    if (prediction := members.get("prediction")) is not None:
        request.prediction.extend(chat_parts.parts(prediction["content"], "prediction.content"))
    options = members.get("stream_options") or {}
    if beyond := {
        key: options[key] for key in options if key != "include_usage" and options[key] is not None
    }:
        extra["stream_options"] = beyond


def _audio_output(written: Mapping[str, Any]) -> chat_pb2.AudioOutput | None:
    match written:
        case {"format": str(form), "voice": str(voice), **beyond} if not beyond:
            return chat_pb2.AudioOutput(format=form, voice=voice)
        case {"format": str(form), "voice": {"id": str(voice), **inner}, **beyond} if not (
            inner or beyond
        ):
            return chat_pb2.AudioOutput(format=form, voice_id=voice)
        case _:
            return None


def _response_format(written: Mapping[str, Any]) -> chat_pb2.ResponseFormat | None:
    match written:
        case {"type": "text" | "json_object" as kind, **beyond} if not beyond:
            return chat_pb2.ResponseFormat(kind=_FORMATS[kind])
        case {"type": "json_schema", "json_schema": dict(schema), **beyond} if not beyond and (
            schema.keys() <= {"name", "description", "schema", "strict"}
        ):
            body = schema.get("schema")
            return chat_pb2.ResponseFormat(
                kind=chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA,
                name=schema.get("name") or "",
                description=schema.get("description") or "",
                schema=b"" if body is None else strict_json.encode(body),
                strict=schema.get("strict"),
            )
        case _:
            return None


def set_thinking(
    members: Mapping[str, Any], request: chat_pb2.ChatRequest, extra: dict[str, Any]
) -> None:
    """The knobs for thinking, in any of the three spellings. Raises INVALID_REQUEST when two of
    them contradict each other.
    """
    found: dict[str, Any] = {}
    for name, read in (
        ("reasoning_effort", _effort),
        ("reasoning", _reasoning),
        ("thinking", _anthropic_thinking),
    ):
        written = members.get(name)
        if written is None:
            continue
        knobs = read(written)
        if knobs is None:
            extra[name] = written
            continue
        for knob, value in knobs.items():
            if value is not None and found.setdefault(knob, value) != value:
                raise invalid(f"'{name}' contradicts another field; send one of them.", name)
    for knob, value in found.items():
        setattr(request.thinking, knob, value)


def _effort(written: str) -> dict[str, Any] | None:
    return {"effort": EFFORTS[written]} if written in EFFORTS else None


def _reasoning(written: Mapping[str, Any]) -> dict[str, Any] | None:
    """OpenRouter's object."""
    effort = written.get("effort")
    if not written.keys() <= {"effort", "max_tokens", "exclude", "enabled"} or (
        effort is not None and effort not in EFFORTS
    ):
        return None
    exclude = written.get("exclude")
    return {
        "effort": None if effort is None else EFFORTS[effort],
        "budget_tokens": written.get("max_tokens"),
        "include_thoughts": None if exclude is None else not exclude,
        "enabled": written.get("enabled"),
    }


def _anthropic_thinking(written: Mapping[str, Any]) -> dict[str, Any] | None:
    """Anthropic's object."""
    kind = written.get("type")
    if not written.keys() <= {"type", "budget_tokens"} or kind not in _THINKING_TYPES:
        return None
    return {
        "enabled": _THINKING_TYPES[kind],
        "budget_tokens": written.get("budget_tokens"),
    }
