"""The conversation and the tools as Ollama's own chat has them.

https://docs.ollama.com/api/chat. A message is a text with pictures beside it; thoughts stand
beside the text; arguments are objects; a tool's answer names the tool.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from services.router.providers.foreign import (
    Json,
    arguments,
    given_object,
    invalid,
    sent_back,
    unsupported,
)

PROVIDER: Final = "Ollama"

ROLES: Final[Mapping[int, str]] = {
    content_pb2.ROLE_SYSTEM: "system",
    content_pb2.ROLE_DEVELOPER: "system",
    content_pb2.ROLE_USER: "user",
    content_pb2.ROLE_TOOL: "tool",
    content_pb2.ROLE_ASSISTANT: "assistant",
}

_CHOICES: Final = frozenset(
    {
        chat_pb2.TOOL_CHOICE_MODE_UNSPECIFIED,
        chat_pb2.TOOL_CHOICE_MODE_AUTO,
        chat_pb2.TOOL_CHOICE_MODE_NONE,
        chat_pb2.TOOL_CHOICE_MODE_ALLOWED,
    }
)
_NO_ARGUMENTS: Final[Json] = {"type": "object", "properties": {}}


def conversation(messages: Sequence[content_pb2.Message]) -> list[Json]:
    """All messages. Raises INVALID_REQUEST or UNSUPPORTED_PARAMETER."""
    said: list[Json] = []
    names: dict[str, str] = {}
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = ROLES.get(message.role)
        if role is None:
            raise invalid(f"{where}.role", "Every message needs a role.")
        if message.name and role != "tool":
            raise unsupported(f"{where}.name", PROVIDER)
        if sent_back(given_object(message.extra_json or b"{}", where), where, PROVIDER):
            raise unsupported(where, PROVIDER, "It takes no other provider's parts.")
        if role == "tool":
            said += _results(message, where, names)
        else:
            said.append(_turn(message, where, role, names))
    return said


def tools(request: chat_pb2.ChatRequest) -> list[Json]:
    """The tools that may be called. Ollama leaves it to the model whether it calls any: a choice
    that forces it is refused.
    """
    choice = request.tool_choice
    if choice.mode not in _CHOICES or choice.required:
        raise unsupported("tool_choice", PROVIDER, "It cannot force a call.")
    if choice.mode == chat_pb2.TOOL_CHOICE_MODE_NONE:
        return []
    offered = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(request.tools)]
    if choice.mode == chat_pb2.TOOL_CHOICE_MODE_ALLOWED:
        offered = [tool for tool in offered if tool["function"]["name"] in choice.names]
    if offered and request.HasField("parallel_tool_calls") and not request.parallel_tool_calls:
        raise unsupported("parallel_tool_calls", PROVIDER)
    return offered


def _turn(message: content_pb2.Message, where: str, role: str, names: dict[str, str]) -> Json:
    """A message that is no tool's answer."""
    texts: list[str] = []
    thoughts: list[str] = []
    images: list[str] = []
    calls: list[Json] = []
    for number, part in enumerate(message.parts):
        place = f"{where}.content[{number}]"
        _refuse_extra(part, place)
        match part.WhichOneof("content"):
            case "text":
                texts.append(part.text.text)
            case "refusal":
                texts.append(part.refusal.text)
            case "image":
                images.append(_image(part.image, place))
            case "thinking":
                # A thought with a proof, or an encrypted one, is another provider's.
                if part.thinking.text and not part.thinking.signature:
                    thoughts.append(part.thinking.text)
            case "tool_call":
                names[part.tool_call.id] = part.tool_call.name
                calls.append(_call(part.tool_call, place))
            case kind:
                raise unsupported(place, PROVIDER, f"It takes no {kind or 'empty'} parts here.")
    turn: Json = {"role": role, "content": "\n".join(texts)}
    for key, value in (("images", images), ("tool_calls", calls)):
        if value:
            turn[key] = value
    if thoughts:
        turn["thinking"] = "".join(thoughts)
    return turn


def _results(message: content_pb2.Message, where: str, names: Mapping[str, str]) -> list[Json]:
    """The answers of tools, each a message."""
    made = []
    for part in message.parts:
        if not part.HasField("tool_result"):
            raise invalid(f"{where}.tool_call_id", "A tool's message must name its call.")
        result = part.tool_result
        for number, inner in enumerate(result.parts):
            if not inner.HasField("text"):
                raise unsupported(f"{where}.content[{number}]", PROVIDER, "Its tools answer text.")
        text = "\n".join(inner.text.text for inner in result.parts)
        answer: Json = {"role": "tool", "content": text}
        if name := result.name or names.get(result.tool_call_id):
            answer["tool_name"] = name
        if result.tool_call_id:
            answer["tool_call_id"] = result.tool_call_id
        made.append(answer)
    return made


def _refuse_extra(part: content_pb2.Part, where: str) -> None:
    """Citations that come back say nothing new; nothing else is known."""
    for key in given_object(part.extra_json or b"{}", where):
        if key != "citations" and not part.HasField("thinking"):
            raise unsupported(f"{where}.{key}", PROVIDER)


def _image(part: content_pb2.ImagePart, where: str) -> str:
    """A picture, in base64: Ollama fetches none."""
    if part.source.WhichOneof("source") != "data":
        raise unsupported(where, PROVIDER, "It fetches no pictures: send the data itself.")
    return base64.b64encode(part.source.data).decode()


def _call(call: content_pb2.ToolCall, where: str) -> Json:
    """A call that the model made; arguments that were cut are wrapped."""
    if call.kind == content_pb2.TOOL_KIND_CUSTOM:
        raise unsupported(where, PROVIDER, "It has no tools with free-text input.")
    given = arguments(call.arguments) or {"INVALID_JSON": call.arguments}
    made: Json = {"function": {"name": call.name, "arguments": given}}
    if call.id:
        made["id"] = call.id
    return made


def _tool(tool: chat_pb2.Tool, where: str) -> Json:
    """A function. Nothing makes arguments follow their schema exactly."""
    if not tool.HasField("function"):
        raise unsupported(where, PROVIDER, "It has functions only.")
    function = tool.function
    told: Json = {"name": function.name, "parameters": _NO_ARGUMENTS}
    if function.description:
        told["description"] = function.description
    if function.parameters_schema:
        given_object(function.parameters_schema, f"{where}.function.parameters")
        told["parameters"] = msgspec.Raw(function.parameters_schema)
    return {"type": "function", "function": told}
