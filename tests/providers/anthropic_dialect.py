"""Anthropic request bodies as calls of the contract, for round trips: the tests' own reading of the
documentation, independent of the wire's.
"""

import base64
import json
from typing import Any

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2

EFFORTS = {
    "low": chat_pb2.THINKING_EFFORT_LOW,
    "medium": chat_pb2.THINKING_EFFORT_MEDIUM,
    "high": chat_pb2.THINKING_EFFORT_HIGH,
    "xhigh": chat_pb2.THINKING_EFFORT_XHIGH,
    "max": chat_pb2.THINKING_EFFORT_MAX,
}
ROLES = {
    "user": content_pb2.ROLE_USER,
    "assistant": content_pb2.ROLE_ASSISTANT,
    "system": content_pb2.ROLE_SYSTEM,
}
CHOICES = {
    "auto": chat_pb2.TOOL_CHOICE_MODE_AUTO,
    "any": chat_pb2.TOOL_CHOICE_MODE_REQUIRED,
    "tool": chat_pb2.TOOL_CHOICE_MODE_ONE,
    "none": chat_pb2.TOOL_CHOICE_MODE_NONE,
}
NAMED = {
    "model",
    "messages",
    "max_tokens",
    "metadata",
    "output_config",
    "output_format",
    "service_tier",
    "stop_sequences",
    "stream",
    "system",
    "temperature",
    "thinking",
    "tool_choice",
    "tools",
    "top_k",
    "top_p",
}


def decode(body: dict[str, Any]) -> chat_pb2.ChatRequest:
    """The call that a body makes."""
    request = chat_pb2.ChatRequest(model=body["model"], stream=bool(body.get("stream")))
    for name, field in {"max_tokens": "output_tokens_max", "stop_sequences": "stop"}.items():
        if body.get(name) is not None:
            value = body[name]
            getattr(request, field).extend(value) if field == "stop" else setattr(
                request, field, value
            )
    for name in ("temperature", "top_p", "top_k", "service_tier"):
        if body.get(name) is not None:
            setattr(request, name, body[name])
    request.end_user = (body.get("metadata") or {}).get("user_id") or ""
    if body.get("system"):
        request.messages.append(message({"role": "system", "content": body["system"]}))
    request.messages.extend(message(turn) for turn in body["messages"])
    request.tools.extend(tool(each) for each in body.get("tools") or ())
    _tool_choice(body, request)
    _thinking_and_format(body, request)
    extra = {name: value for name, value in body.items() if name not in NAMED and value is not None}
    config = {
        name: value
        for name, value in (body.get("output_config") or {}).items()
        if name not in ("effort", "format")
    }
    if config:
        extra["output_config"] = config
    if extra:
        request.extra_json = json.dumps(extra).encode()
    return request


def message(turn: dict[str, Any]) -> content_pb2.Message:
    return content_pb2.Message(
        role=ROLES[turn["role"]], parts=[part(block) for block in blocks(turn["content"])]
    )


def blocks(content: Any) -> list[dict[str, Any]]:
    """Content as a list: a string is short for one text block."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())


def part(block: dict[str, Any]) -> content_pb2.Part:
    """One block; what the contract has no part for stays as it is."""
    rest = {key: value for key, value in block.items() if value is not None}
    kind = rest.pop("type")
    made = content_pb2.Part()
    control = rest.pop("cache_control", None)
    if kind == "text":
        made.text.text = rest.pop("text")
    elif kind == "thinking":
        made.thinking.text, made.thinking.signature = rest.pop("thinking"), rest.pop("signature")
    elif kind == "redacted_thinking":
        made.thinking.redacted_data = rest.pop("data")
    elif kind == "tool_use":
        arguments = json.dumps(rest.pop("input"))
        made.tool_call.id, made.tool_call.name = rest.pop("id"), rest.pop("name")
        made.tool_call.arguments = arguments
    elif kind == "tool_result":
        made.tool_result.tool_call_id = rest.pop("tool_use_id")
        made.tool_result.is_error = rest.pop("is_error", False)
        made.tool_result.parts.extend(part(inner) for inner in blocks(rest.pop("content", None)))
    elif kind in ("image", "document") and (found := source(rest["source"])) is not None:
        (made.image if kind == "image" else made.file).source.CopyFrom(found)
        del rest["source"]
        if kind == "document":
            made.file.filename = rest.pop("title", "")
    else:
        made.opaque_json = json.dumps({"type": kind, **rest}).encode()
        rest = {}
    if rest:
        made.extra_json = json.dumps(rest).encode()
    if control:
        made.cache_hint.ttl_s = {None: 0, "5m": 300, "1h": 3600}[control.get("ttl")]
        made.cache_hint.SetInParent()
    return made


def source(place: dict[str, Any]) -> content_pb2.MediaSource | None:
    match place["type"]:
        case "url":
            return content_pb2.MediaSource(url=place["url"])
        case "file":
            return content_pb2.MediaSource(file_id=place["file_id"])
        case "base64":
            data = base64.b64decode(place["data"] + "===")
            return content_pb2.MediaSource(data=data, media_type=place["media_type"])
        case "text":
            return content_pb2.MediaSource(
                data=place["data"].encode(), media_type=place["media_type"]
            )
        case _:
            return None


def tool(written: dict[str, Any]) -> chat_pb2.Tool:
    """A function when it has nothing but what functions have; else the provider's own."""
    rest = {key: value for key, value in written.items() if value is not None}
    control = rest.pop("cache_control", None)
    made = chat_pb2.Tool()
    plain = rest.keys() <= {"name", "description", "input_schema", "strict", "type"}
    if plain and rest.get("type", "custom") == "custom":
        made.function.name = rest["name"]
        made.function.description = rest.get("description", "")
        made.function.parameters_schema = json.dumps(rest["input_schema"]).encode()
        if "strict" in rest:
            made.function.strict = rest["strict"]
    else:
        made.provider_json = json.dumps(rest).encode()
    if control:
        made.cache_hint.ttl_s = {None: 0, "5m": 300, "1h": 3600}[control.get("ttl")]
        made.cache_hint.SetInParent()
    return made


def _tool_choice(body: dict[str, Any], request: chat_pb2.ChatRequest) -> None:
    choice = body.get("tool_choice")
    if choice:
        request.tool_choice.mode = CHOICES[choice["type"]]
        if choice["type"] == "tool":
            request.tool_choice.names.append(choice["name"])
        if "disable_parallel_tool_use" in choice:
            request.parallel_tool_calls = not choice["disable_parallel_tool_use"]


def _thinking_and_format(body: dict[str, Any], request: chat_pb2.ChatRequest) -> None:
    thinking = body.get("thinking")
    config = body.get("output_config") or {}
    if thinking:
        request.thinking.enabled = thinking["type"] != "disabled"
        if "budget_tokens" in thinking:
            request.thinking.budget_tokens = thinking["budget_tokens"]
        if thinking.get("display"):
            request.thinking.include_thoughts = thinking["display"] == "summarized"
    elif config.get("effort"):
        request.thinking.enabled = False
    if config.get("effort"):
        request.thinking.effort = EFFORTS[config["effort"]]
    form = config.get("format") or body.get("output_format")
    if form:
        request.response_format.kind = chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA
        request.response_format.schema = json.dumps(form["schema"]).encode()


def normal(body: dict[str, Any]) -> dict[str, Any]:
    """A body in the one form among those that mean the same: nulls and defaults left out, content
    as lists, turns of one role joined, empty text and unsigned thoughts dropped.
    """
    made = _without_nulls(body)
    if made.get("stream") is False:
        del made["stream"]
    form = made.pop("output_format", None)
    if form:
        made["output_config"] = {"format": form}
    if made.get("system"):
        made["system"] = _content(made["system"])
    made["messages"] = _turns(made["messages"])
    tools = [_tool(tool) for tool in made.pop("tools", ())]
    choice = made.pop("tool_choice", None)
    if tools:
        made["tools"] = tools
        if choice:
            if choice.get("disable_parallel_tool_use") is False:
                del choice["disable_parallel_tool_use"]
            made["tool_choice"] = choice
    if made.get("thinking") == {"type": "disabled"}:
        del made["thinking"]
    return {key: value for key, value in made.items() if value not in ([], {}, "")}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _turns(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    joined: list[dict[str, Any]] = []
    for turn in turns:
        content = _content(turn["content"])
        if joined and joined[-1]["role"] == turn["role"]:
            joined[-1]["content"] += content
        elif content:
            joined.append({"role": turn["role"], "content": content})
    return joined


def _content(content: Any) -> list[dict[str, Any]]:
    return [
        _block(block)
        for block in blocks(content)
        if block.get("text") != "" and not (block["type"] == "thinking" and not block["signature"])
    ]


def _block(block: dict[str, Any]) -> dict[str, Any]:
    if block["type"] == "tool_result":
        block = {**block, "content": _content(block.get("content"))}
        if not block.get("is_error"):
            block.pop("is_error", None)
        if not block["content"]:
            del block["content"]
    return block


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in tool.items() if v != "" and (k, v) != ("type", "custom")}
