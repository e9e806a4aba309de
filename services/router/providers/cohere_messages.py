"""The conversation and the tools in the words of Cohere's chat, version 2.

https://docs.cohere.com/reference/chat. Contents are a text or typed blocks; the plan that a model
made before it called tools stands beside the calls; a tool's answer names its call alone. Only
parts that Cohere has blocks for are said; others are refused.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from services.router.providers.foreign import (
    Json,
    given_object,
    invalid,
    sent_back,
    unsupported,
)

PROVIDER: Final = "Cohere"

ROLES: Final[Mapping[int, str]] = {
    content_pb2.ROLE_SYSTEM: "system",
    content_pb2.ROLE_DEVELOPER: "system",
    content_pb2.ROLE_USER: "user",
    content_pb2.ROLE_TOOL: "tool",
    content_pb2.ROLE_ASSISTANT: "assistant",
}

THINKS: Final = "reasoning"
"""What the name of a model holds whose earlier thoughts are sent back
(https://docs.cohere.com/docs/reasoning)."""

_NO_ARGUMENTS: Final[Json] = {"type": "object", "properties": {}}


def conversation(messages: Sequence[content_pb2.Message], model: str) -> list[Json]:
    """All messages. Raises INVALID_REQUEST or UNSUPPORTED_PARAMETER."""
    said: list[Json] = []
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
            said += _results(message, index)
        elif role == "assistant":
            said.append(_assistant(message, index, model))
        else:
            content = [
                _block(part, f"{where}.content[{number}]", pictures=role == "user")
                for number, part in enumerate(message.parts)
            ]
            said.append({"role": role, "content": _content(content)})
    return said


def tools(request: chat_pb2.ChatRequest) -> list[Json]:
    """The tools; those that the choice leaves out are not sent."""
    choice = request.tool_choice
    chosen = choice.mode in (chat_pb2.TOOL_CHOICE_MODE_ONE, chat_pb2.TOOL_CHOICE_MODE_ALLOWED)
    offered = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(request.tools)]
    return [each for each in offered if not chosen or each["function"]["name"] in choice.names]


def tool_choice(choice: chat_pb2.ToolChoice) -> str:
    """Cohere's word; empty for the model's own choice. One tool that must be called is the only one
    that is offered.
    """
    match choice.mode:
        case chat_pb2.TOOL_CHOICE_MODE_NONE:
            return "NONE"
        case chat_pb2.TOOL_CHOICE_MODE_REQUIRED | chat_pb2.TOOL_CHOICE_MODE_ONE:
            return "REQUIRED"
        case chat_pb2.TOOL_CHOICE_MODE_ALLOWED if choice.required:
            return "REQUIRED"
        case _:
            return ""


def _assistant(message: content_pb2.Message, index: int, model: str) -> Json:
    """What the model said, thought and called."""
    content: list[Json] = []
    thoughts: list[str] = []
    calls: list[Json] = []
    for number, part in enumerate(message.parts):
        where = f"messages[{index}].content[{number}]"
        match part.WhichOneof("content"):
            case "thinking":
                # A thought with a proof, or an encrypted one, is another provider's.
                if part.thinking.text and not part.thinking.signature:
                    thoughts.append(part.thinking.text)
            case "tool_call":
                calls.append(_call(part.tool_call, where, index))
            case _:
                content.append(_block(part, where, pictures=False))
    turn: Json = {"role": "assistant"}
    if THINKS in model:
        content[:0] = [{"type": "thinking", "thinking": thought} for thought in thoughts]
    elif thoughts and calls:
        turn["tool_plan"] = "".join(thoughts)
    if content or not calls:
        turn["content"] = _content(content)
    if calls:
        turn["tool_calls"] = calls
    return turn


def _results(message: content_pb2.Message, index: int) -> list[Json]:
    """The answers of tools, each a message."""
    made = []
    for part in message.parts:
        where = f"messages[{index}]"
        if not part.HasField("tool_result"):
            raise invalid(f"{where}.tool_call_id", "A tool's message must name its call.")
        result = part.tool_result
        content = [
            _block(inner, f"{where}.content[{number}]", pictures=False)
            for number, inner in enumerate(result.parts)
        ]
        call_id = result.tool_call_id or f"call_{index - 1}"
        made.append({"role": "tool", "tool_call_id": call_id, "content": _content(content)})
    return made


def _content(blocks: list[Json]) -> str | list[Json]:
    """A text alone as it is."""
    if not blocks:
        return ""
    only = blocks[0] if len(blocks) == 1 else {}
    return only["text"] if only.get("type") == "text" else blocks


def _block(part: content_pb2.Part, where: str, *, pictures: bool) -> Json:
    """A part's block."""
    for key in given_object(part.extra_json or b"{}", where):
        if key != "citations":
            raise unsupported(f"{where}.{key}", PROVIDER)
    match part.WhichOneof("content"):
        case "text":
            return {"type": "text", "text": part.text.text}
        case "refusal":
            return {"type": "text", "text": part.refusal.text}
        case "image" if pictures:
            picture: Json = {"url": _url(part.image.source, where)}
            if part.image.detail:
                picture["detail"] = part.image.detail
            return {"type": "image_url", "image_url": picture}
        case kind:
            raise unsupported(where, PROVIDER, f"It takes no {kind or 'empty'} parts here.")


def _url(source: content_pb2.MediaSource, where: str) -> str:
    """Where a picture is, or the picture itself."""
    match source.WhichOneof("source"):
        case "url":
            return source.url
        case "data" if source.media_type:
            return f"data:{source.media_type};base64,{base64.b64encode(source.data).decode()}"
        case _:
            raise invalid(where, f"`{where}` needs a URL, or data with a media type.")


def _call(call: content_pb2.ToolCall, where: str, index: int) -> Json:
    """A call that the model made. OpenAI's legacy calls have no ids."""
    if call.kind == content_pb2.TOOL_KIND_CUSTOM:
        raise unsupported(where, PROVIDER, "It has no tools with free-text input.")
    function = {"name": call.name, "arguments": call.arguments or "{}"}
    return {"id": call.id or f"call_{index}", "type": "function", "function": function}


def _tool(tool: chat_pb2.Tool, where: str) -> Json:
    """A function."""
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
