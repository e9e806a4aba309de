"""The conversation and the tools in Converse's blocks.

https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ContentBlock.html. System
messages are one list of blocks beside the turns; consecutive turns of one role are one turn; tool
results belong to the user; a cache breakpoint is a block of its own. Media are bytes or objects in
S3: Bedrock fetches no other address. Only parts that Converse has blocks for are said.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from services.router.providers import bedrock_media
from services.router.providers.bedrock_models import PROVIDER, Family
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

OWN_BLOCKS: Final = frozenset(
    {"citationsContent", "guardContent", "image", "searchResult", "toolResult", "toolUse"}
)
"""Blocks without a part in the contract, or with more than it names, sent as they are."""

REDACTED: Final = "bedrock:"
"""How an encrypted thought begins that is not text once its base64 is undone, so that it comes back
as it was. Anthropic's is text, and the same as at Anthropic itself."""

_SYSTEM_BLOCKS: Final = frozenset({"cachePoint", "guardContent", "text"})
_RESULT_BLOCKS: Final = frozenset({"document", "image", "json", "searchResult", "text", "video"})
_DOCUMENT_EXTRA: Final = frozenset({"citations", "context"})
_FOREIGN_ID: Final = re.compile(r"[^a-zA-Z0-9_.:-]")
_NOT_PLAIN: Final = re.compile(r"[^a-zA-Z0-9_-]")
_ID_CHARS_MAX: Final = 64
_TTL_5M_S: Final = 300
_NO_ARGUMENTS: Final[Json] = {"type": "object", "properties": {}}


class Conversation:
    """Builds the system prompt and the turns of one call, message by message."""

    def __init__(self, family: Family) -> None:
        self.system: list[Json] = []
        self.turns: list[Json] = []
        self._family = family
        self._names = bedrock_media.Names()

    def add(self, message: content_pb2.Message, index: int) -> None:
        """Adds a message. Raises INVALID_REQUEST or UNSUPPORTED_PARAMETER."""
        where = f"messages[{index}]"
        role = ROLES.get(message.role)
        if role is None:
            raise invalid(f"{where}.role", "Every message needs a role.")
        if message.name and message.role != content_pb2.ROLE_TOOL:
            raise unsupported(f"{where}.name", PROVIDER)
        blocks = self._blocks(message, where)
        _name_legacy_calls(blocks, index)
        if role == "system":
            if any(not _SYSTEM_BLOCKS & block.keys() for block in blocks):
                raise unsupported(where, PROVIDER, "Its system prompt takes text only.")
            self.system += blocks
        elif self.turns and self.turns[-1]["role"] == role:
            self.turns[-1]["content"] += blocks
        elif blocks:
            self.turns.append({"role": role, "content": blocks})

    def _blocks(self, message: content_pb2.Message, where: str) -> list[Json]:
        """A message's blocks. Empty text is left out, which Bedrock would refuse, except where it
        is all that a user says.
        """
        blocks: list[Json] = []
        thoughts = 0
        for index, part in enumerate(message.parts):
            made = self._block(part, f"{where}.content[{index}]")
            if made is not None:
                blocks.append(made)
                thoughts += "reasoningContent" in made
            if part.HasField("cache_hint") and self._family.caches and blocks:
                blocks.append(cache_point(part.cache_hint, self._family))
        members = given_object(message.extra_json or b"{}", where)
        blocks[thoughts:thoughts] = [
            _opaque(dump(own), f"{where}.{BESIDE}", OWN_BLOCKS)
            for own in sent_back(members, where, PROVIDER)
        ]
        if message.role == content_pb2.ROLE_TOOL and any(
            not block.keys() & {"cachePoint", "toolResult"} for block in blocks
        ):
            raise invalid(
                f"{where}.tool_call_id", "A tool's message must name the call it answers."
            )
        said = [block for block in blocks if block.get("text") != ""]
        return said or (blocks if message.role == content_pb2.ROLE_USER else [])

    def _block(
        self, part: content_pb2.Part, where: str, own: frozenset[str] = OWN_BLOCKS
    ) -> Json | None:
        """A part's block; ``None`` for a thought that is not sent back."""
        kind = part.WhichOneof("content")
        match kind:
            case "text":
                block: Json = {"text": part.text.text}
            case "refusal":
                block = {"text": part.refusal.text}
            case "thinking":
                return self._thought(part.thinking)
            case "tool_call":
                block = self._call(part.tool_call, where)
            case "tool_result":
                block = self._result(part.tool_result, where)
            case "opaque_json":
                block = _opaque(part.opaque_json, where, own)
            case None:
                raise unsupported(where, PROVIDER, "It takes no empty parts.")
            case _:
                block = bedrock_media.block(part, where, self._names)
        _add_extra(block, part, where)
        return block

    def _thought(self, thought: content_pb2.ThinkingPart) -> Json | None:
        """A thought with its proof, unchanged, where the model asks for it; one without belongs to
        another provider.
        """
        if not self._family.thoughts:
            return None
        data = thought.redacted_data
        if data.startswith(REDACTED):
            return {"reasoningContent": {"redactedContent": data.removeprefix(REDACTED)}}
        if data:
            return {"reasoningContent": {"redactedContent": bedrock_media.blob(data.encode())}}
        if not thought.signature or thought.signature.startswith(GEMINI_PROOF):
            return None
        proven = {"text": thought.text, "signature": thought.signature}
        return {"reasoningContent": {"reasoningText": proven}}

    def _call(self, call: content_pb2.ToolCall, where: str) -> Json:
        """A call that the model made. Another provider's proof of its thinking is of no use here.

        Arguments that are no JSON object, as when an output limit cut them, are wrapped, as for
        Anthropic.
        """
        if call.kind == content_pb2.TOOL_KIND_CUSTOM:
            raise unsupported(where, PROVIDER, "It has no tools with free-text input.")
        return {
            "toolUse": {
                "toolUseId": self._id(call.id),
                "name": call.name,
                "input": arguments(call.arguments) or {"INVALID_JSON": call.arguments},
            }
        }

    def _id(self, call_id: str) -> str:
        """An id as the model takes it; other providers' may hold what it does not, or be longer."""
        foreign = _NOT_PLAIN if self._family.plain_ids else _FOREIGN_ID
        return foreign.sub("_", call_id)[-_ID_CHARS_MAX:]

    def _result(self, result: content_pb2.ToolResult, where: str) -> Json:
        """A tool's answer. Its status is told to models that take one."""
        content: list[Json] = []
        for index, part in enumerate(result.parts):
            block = self._block(part, f"{where}[{index}]", _RESULT_BLOCKS) or {}
            if not _RESULT_BLOCKS & block.keys():
                raise unsupported(
                    f"{where}[{index}]", PROVIDER, "No tool result holds such a part."
                )
            if block.get("text") != "":
                content.append(block)
        answer: Json = {"toolUseId": self._id(result.tool_call_id), "content": content}
        if result.is_error and self._family.statuses:
            answer["status"] = "error"
        return {"toolResult": answer}


def cache_point(hint: content_pb2.CacheHint, family: Family) -> Json:
    """The breakpoint, with one of the two lifetimes that there are where the model takes one."""
    point: Json = {"type": "default"}
    if hint.ttl_s and family.lifetimes:
        point["ttl"] = "5m" if hint.ttl_s <= _TTL_5M_S else "1h"
    return {"cachePoint": point}


def tool_config(request: chat_pb2.ChatRequest, family: Family, turns: Sequence[Json]) -> Json:
    """``toolConfig``; empty when there are no tools. Raises UNSUPPORTED_PARAMETER.

    Converse cannot forbid tools but by not naming them, which it refuses when the conversation has
    used some.
    """
    choice = request.tool_choice
    if choice.mode == chat_pb2.TOOL_CHOICE_MODE_NONE:
        used = any(
            block.keys() & {"toolUse", "toolResult"} for t in turns for block in t["content"]
        )
        if used and request.tools:
            hint = "It cannot forbid tools in a conversation that has used them."
            raise unsupported("tool_choice", PROVIDER, hint)
        return {}
    offered: list[Json] = []
    for index, tool in enumerate(request.tools):
        made = _tool(tool, f"tools[{index}]")
        name = (made.get("toolSpec") or {}).get("name")
        if choice.mode == chat_pb2.TOOL_CHOICE_MODE_ALLOWED and name not in choice.names:
            continue
        offered.append(made)
        if tool.HasField("cache_hint") and family.caches_tools:
            offered.append(cache_point(tool.cache_hint, family))
    if not offered:
        return {}
    if request.HasField("parallel_tool_calls") and not request.parallel_tool_calls:
        raise unsupported("parallel_tool_calls", PROVIDER)
    config: Json = {"tools": offered}
    if rule := _choice(choice):
        config["toolChoice"] = rule
    return config


def _choice(choice: chat_pb2.ToolChoice) -> Json:
    """``toolChoice``; empty for the model's own."""
    match choice.mode:
        case chat_pb2.TOOL_CHOICE_MODE_AUTO:
            return {"auto": {}}
        case chat_pb2.TOOL_CHOICE_MODE_REQUIRED:
            return {"any": {}}
        case chat_pb2.TOOL_CHOICE_MODE_ONE:
            return {"tool": {"name": choice.names[0] if choice.names else ""}}
        case chat_pb2.TOOL_CHOICE_MODE_ALLOWED:
            return {"any": {}} if choice.required else {"auto": {}}
        case _:
            return {}


def _tool(tool: chat_pb2.Tool, where: str) -> Json:
    """A function, or one of the model's own tools (``{"systemTool": {"name": …}}``)."""
    match tool.WhichOneof("tool"):
        case "function":
            function = tool.function
            schema: Any = _NO_ARGUMENTS
            if function.parameters_schema:
                given_object(function.parameters_schema, f"{where}.function.parameters")
                schema = msgspec.Raw(function.parameters_schema)
            spec: Json = {"name": function.name, "inputSchema": {"json": schema}}
            if function.description:
                spec["description"] = function.description
            if function.strict:
                spec["strict"] = True
            return {"toolSpec": spec}
        case "provider_json":
            own = given_object(tool.provider_json, where)
            if own.keys() != {"systemTool"}:
                raise unsupported(where, PROVIDER, "It knows no such tool.")
            return own
        case _:
            raise unsupported(where, PROVIDER, "It has no tools with free-text input.")


def _add_extra(block: Json, part: content_pb2.Part, where: str) -> None:
    """Adds the fields of documents that the contract does not name."""
    for key, value in given_object(part.extra_json or b"{}", where).items():
        if key in _DOCUMENT_EXTRA and "document" in block:
            block["document"][key] = value
        elif key != "citations":
            raise unsupported(f"{where}.{key}", PROVIDER)


def _name_legacy_calls(blocks: Sequence[Json], index: int) -> None:
    """Gives OpenAI's legacy function calls, which have no ids, the number of their message; the
    result stands in the message that follows.
    """
    for block in blocks:
        for key, number in (("toolUse", index), ("toolResult", index - 1)):
            if key in block and block[key]["toolUseId"] == "":
                block[key]["toolUseId"] = f"call_{number}"


def _opaque(part: bytes, where: str, own: frozenset[str]) -> Json:
    """A block of Bedrock's that the contract does not know, verbatim."""
    block = given_object(part, where)
    if not own & block.keys():
        raise unsupported(where, PROVIDER, "It knows no such part.")
    return block
