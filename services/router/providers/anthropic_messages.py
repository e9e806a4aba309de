"""The conversation and the tools in Anthropic's blocks.

https://platform.claude.com/docs/en/api/messages. System messages are one list of blocks beside the
turns; consecutive turns of one role are one turn; tool results belong to the user. Only parts that
Anthropic has blocks for are said; others are refused.
"""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from services.router.providers.anthropic_models import PROVIDER, ModelTraits
from services.router.providers.foreign import (
    BESIDE,
    GEMINI_PROOF,
    Json,
    arguments,
    dump,
    given_object,
    invalid,
    sent_back,
    unsupported,
)

ROLES: Final[Mapping[int, str]] = {
    content_pb2.ROLE_SYSTEM: "system",
    content_pb2.ROLE_DEVELOPER: "system",
    content_pb2.ROLE_USER: "user",
    content_pb2.ROLE_TOOL: "user",
    content_pb2.ROLE_ASSISTANT: "assistant",
}

BLOCK_TYPES: Final = frozenset(
    {
        "compaction",
        "container_upload",
        "document",
        "fallback",
        "image",
        "mcp_tool_listing",
        "mcp_tool_use",
        "search_result",
        "server_tool_use",
        "tool_addition",
        "tool_reference",
        "tool_removal",
    }
)
"""Blocks without a part in the contract, sent as they are, like every ``…_tool_result``."""

PART_EXTRA: Final = frozenset({"caller", "citations", "context", "title", "toolset_name"})
"""Fields of blocks that the contract does not name and that are sent as they are."""

TOOL_CHOICES: Final[Mapping[int, str]] = {
    chat_pb2.TOOL_CHOICE_MODE_AUTO: "auto",
    chat_pb2.TOOL_CHOICE_MODE_NONE: "none",
    chat_pb2.TOOL_CHOICE_MODE_REQUIRED: "any",
    chat_pb2.TOOL_CHOICE_MODE_ONE: "tool",
}

_TTL_5M_S: Final = 300
_FOREIGN_ID: Final = re.compile(r"[^a-zA-Z0-9_-]")
_NO_ARGUMENTS: Final[Json] = {"type": "object", "properties": {}}


def conversation(
    messages: Sequence[content_pb2.Message], model: ModelTraits
) -> tuple[list[Json], list[Json]]:
    """The ``system`` blocks and the turns.

    A system message after the first turn stays in its place where the model takes it there
    (after the user, before the assistant or last); otherwise it joins the others, as Anthropic's
    own OpenAI endpoint does (https://platform.claude.com/docs/en/cli-sdks-libraries/libraries/openai-sdk).
    """
    system: list[Json] = []
    turns: list[Json] = []
    for index, message in enumerate(messages):
        role = ROLES.get(message.role)
        where = f"messages[{index}]"
        if role is None:
            raise invalid(f"{where}.role", "Every message needs a role.")
        content = _blocks(message, where)
        _name_legacy_calls(content, index)
        if role == "system" and not _stays(messages, index, turns, model):
            system += content
        elif turns and turns[-1]["role"] == role:
            turns[-1]["content"] += content
        elif content:
            turns.append({"role": role, "content": content})
    return system, turns


def tools(request: chat_pb2.ChatRequest) -> list[Json]:
    """The tools; those that an ALLOWED choice leaves out are not sent."""
    offered = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(request.tools)]
    if request.web_search_options_json:
        offered.append(_web_search(request.web_search_options_json))
    choice = request.tool_choice
    if choice.mode == chat_pb2.TOOL_CHOICE_MODE_ALLOWED:
        offered = [tool for tool in offered if tool.get("name") in choice.names]
    return offered


def tool_choice(request: chat_pb2.ChatRequest) -> Json | None:
    """The rule of the tool choice, with ``disable_parallel_tool_use`` where it can apply."""
    choice = request.tool_choice
    mode = choice.mode
    if mode == chat_pb2.TOOL_CHOICE_MODE_ALLOWED:
        kind = "any" if choice.required else "auto"
    else:
        kind = TOOL_CHOICES.get(mode, "")
    serial = request.HasField("parallel_tool_calls") and not request.parallel_tool_calls
    if not kind:
        return {"type": "auto", "disable_parallel_tool_use": True} if serial else None
    chosen: Json = {"type": kind}
    if kind == "tool":
        chosen["name"] = choice.names[0] if choice.names else ""
    if serial and kind != "none":
        chosen["disable_parallel_tool_use"] = True
    return chosen


def cache_control(hint: content_pb2.CacheHint) -> Json:
    """The breakpoint with one of the two lifetimes that there are, 5 minutes and one hour."""
    if not hint.ttl_s:
        return {"type": "ephemeral"}
    return {"type": "ephemeral", "ttl": "5m" if hint.ttl_s <= _TTL_5M_S else "1h"}


def _stays(
    messages: Sequence[content_pb2.Message],
    index: int,
    turns: Sequence[Json],
    model: ModelTraits,
) -> bool:
    """Whether a system message may stand among the turns."""
    if not turns or not model.system_turns or turns[-1]["role"] == "assistant":
        return False
    rest = (ROLES.get(message.role) for message in messages[index + 1 :])
    return next((role for role in rest if role != "system"), "assistant") == "assistant"


def _blocks(message: content_pb2.Message, where: str) -> list[Json]:
    """A message's blocks. Empty text is left out, which Anthropic would refuse, except where it is
    all that a user says.
    """
    if message.name and message.role != content_pb2.ROLE_TOOL:
        raise unsupported(f"{where}.name", PROVIDER)
    blocks = [
        block
        for index, part in enumerate(message.parts)
        if (block := _block(part, f"{where}.content[{index}]")) is not None
    ]
    thoughts = sum(block["type"] in ("thinking", "redacted_thinking") for block in blocks)
    members = given_object(message.extra_json or b"{}", where)
    blocks[thoughts:thoughts] = [
        own
        for block in sent_back(members, where, PROVIDER)
        if (own := _opaque(dump(block), f"{where}.{BESIDE}")) is not None
    ]
    if message.role == content_pb2.ROLE_TOOL and any(b["type"] != "tool_result" for b in blocks):
        raise invalid(f"{where}.tool_call_id", "A tool's message must name the call it answers.")
    spoken = [block for block in blocks if block["type"] != "text" or block["text"]]
    return spoken or (blocks if message.role == content_pb2.ROLE_USER else [])


def _name_legacy_calls(content: Sequence[Json], index: int) -> None:
    """Gives OpenAI's legacy function calls, which have no ids, the number of their message; the
    result stands in the message that follows.
    """
    for block in content:
        if block.get("id") == "":
            block["id"] = f"call_{index}"
        elif block.get("tool_use_id") == "":
            block["tool_use_id"] = f"call_{index - 1}"


def _block(part: content_pb2.Part, where: str) -> Json | None:
    """A part's block; ``None`` for a thought without the proof that Anthropic asks for."""
    kind = part.WhichOneof("content")
    encode = _ENCODERS.get(kind or "")
    if encode is None:
        raise unsupported(where, PROVIDER, f"It takes no {kind or 'empty'} parts.")
    block = encode(getattr(part, kind or ""), where)
    if block is None:
        return None
    if part.extra_json and kind != "thinking":
        for key, value in given_object(part.extra_json, where).items():
            if key not in PART_EXTRA:
                raise unsupported(f"{where}.{key}", PROVIDER)
            block[key] = value
    if part.HasField("cache_hint"):
        block["cache_control"] = cache_control(part.cache_hint)
    return block


def _text(part: content_pb2.TextPart | content_pb2.RefusalPart, _where: str) -> Json:
    """Text; a refusal is text that was said before."""
    return {"type": "text", "text": part.text}


def _image(part: content_pb2.ImagePart, where: str) -> Json:
    """A picture, always looked at closely: only ``low`` asks for something else."""
    if part.detail == "low":
        raise unsupported(f"{where}.image_url.detail", PROVIDER)
    return {"type": "image", "source": _source(part.source, where)}


def _file(part: content_pb2.FilePart, where: str) -> Json:
    """A PDF or plain text as a document; a picture in a file is a picture."""
    source = part.source
    if source.media_type.startswith("image/"):
        return {"type": "image", "source": _source(source, where)}
    block: Json = {"type": "document"}
    if source.media_type.startswith("text/") and source.WhichOneof("source") == "data":
        try:
            text = source.data.decode()
        except UnicodeDecodeError:
            raise invalid(where, f"`{where}` is not UTF-8 text.") from None
        block["source"] = {"type": "text", "media_type": "text/plain", "data": text}
    else:
        block["source"] = _source(source, where)
    if part.filename:
        block["title"] = part.filename
    return block


def _source(source: content_pb2.MediaSource, where: str) -> Json:
    """Where media comes from."""
    match source.WhichOneof("source"):
        case "url":
            return {"type": "url", "url": source.url}
        case "file_id":
            return {"type": "file", "file_id": source.file_id}
        case "data" if source.media_type:
            data = base64.b64encode(source.data).decode()
            return {"type": "base64", "media_type": source.media_type, "data": data}
        case _:
            raise invalid(where, f"`{where}` needs a URL, or data with a media type.")


def _tool_call(part: content_pb2.ToolCall, where: str) -> Json:
    """A call that the model made. Another provider's proof of its thinking is of no use here.

    Arguments that are no JSON object are wrapped, as Anthropic asks
    (https://platform.claude.com/docs/en/agents-and-tools/tool-use/fine-grained-tool-streaming).
    """
    if part.kind == content_pb2.TOOL_KIND_CUSTOM:
        raise unsupported(where, PROVIDER, "It has no tools with free-text input.")
    return {
        "type": "tool_use",
        "id": _tool_id(part.id),
        "name": part.name,
        "input": arguments(part.arguments) or {"INVALID_JSON": part.arguments},
    }


def _tool_result(part: content_pb2.ToolResult, where: str) -> Json:
    """A tool's answer, first in the user's turn."""
    block: Json = {"type": "tool_result", "tool_use_id": _tool_id(part.tool_call_id)}
    content = [_block(inner, f"{where}[{index}]") for index, inner in enumerate(part.parts)]
    said = [inner for inner in content if inner and inner.get("text") != ""]
    if said:
        block["content"] = said
    if part.is_error:
        block["is_error"] = True
    return block


def _thinking(part: content_pb2.ThinkingPart, _where: str) -> Json | None:
    """A thought with its proof, unchanged; one without belongs to another provider."""
    if part.redacted_data:
        return {"type": "redacted_thinking", "data": part.redacted_data}
    if not part.signature or part.signature.startswith(GEMINI_PROOF):
        return None
    return {"type": "thinking", "thinking": part.text, "signature": part.signature}


def _opaque(part: bytes, where: str) -> Json | None:
    """A block of Anthropic's that the contract does not know, verbatim; another provider's summary
    of its thoughts is left out.
    """
    block = given_object(part, where)
    kind = block.get("type")
    if kind == "reasoning.summary":
        return None
    if kind not in BLOCK_TYPES and not str(kind).endswith("_tool_result"):
        raise unsupported(where, PROVIDER, "It knows no such part.")
    return block


def _tool_id(call_id: str) -> str:
    """An id as Anthropic allows it: other providers' ids may hold dots and colons."""
    return _FOREIGN_ID.sub("_", call_id)


def _tool(tool: chat_pb2.Tool, where: str) -> Json:
    """A function, or one of Anthropic's own tools, verbatim."""
    match tool.WhichOneof("tool"):
        case "function":
            function = tool.function
            block: Json = {"name": function.name, "input_schema": _schema(function, where)}
            if function.description:
                block["description"] = function.description
            if function.HasField("strict"):
                block["strict"] = function.strict
        case "provider_json":
            block = given_object(tool.provider_json, where)
            if "function" in block or not block.keys() & {"type", "input_schema"}:
                raise unsupported(where, PROVIDER, "It knows no such tool.")
        case _:
            raise unsupported(where, PROVIDER, "It has no tools with free-text input.")
    if tool.HasField("cache_hint"):
        block["cache_control"] = cache_control(tool.cache_hint)
    return block


def _schema(function: chat_pb2.FunctionTool, where: str) -> object:
    """The schema of a function's arguments, verbatim; one without arguments has an empty one."""
    if not function.parameters_schema:
        return _NO_ARGUMENTS
    given_object(function.parameters_schema, f"{where}.function.parameters")
    return msgspec.Raw(function.parameters_schema)


def _web_search(raw: bytes) -> Json:
    """OpenAI's web search options as Anthropic's own search tool
    (https://platform.claude.com/docs/en/agents-and-tools/tool-use/web-search-tool).
    """
    options = given_object(raw, "web_search_options")
    if options.pop("search_context_size", None) not in (None, "medium"):
        raise unsupported("web_search_options.search_context_size", PROVIDER)
    tool: Json = {"type": "web_search_20250305", "name": "web_search"}
    match options.pop("user_location", None):
        case None:
            pass
        case {"approximate": {**place}}:
            tool["user_location"] = {"type": "approximate", **place}
        case _:
            raise invalid("web_search_options.user_location", "The location must be approximate.")
    for key in options:
        raise unsupported(f"web_search_options.{key}", PROVIDER)
    return tool


_ENCODERS: Final[Mapping[str, Callable[[Any, str], Json | None]]] = {
    "text": _text,
    "image": _image,
    "file": _file,
    "tool_call": _tool_call,
    "tool_result": _tool_result,
    "thinking": _thinking,
    "refusal": _text,
    "opaque_json": _opaque,
}
