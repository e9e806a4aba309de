"""Converse bodies as calls of the contract, and what an answer says: the tests' own reading of the
documentation, independent of the wire's.
"""

import base64
import json
from typing import Any

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2

ROLES = {"user": content_pb2.ROLE_USER, "assistant": content_pb2.ROLE_ASSISTANT}
KNOBS = {"maxTokens": "output_tokens_max", "temperature": "temperature", "topP": "top_p"}
MEDIA: dict[str, tuple[str, Any]] = {
    "image": ("image", "image/{}"),
    "document": (
        "file",
        {
            "pdf": "application/pdf",
            "txt": "text/plain",
            "md": "text/markdown",
            "csv": "text/csv",
            "html": "text/html",
        },
    ),
    "video": ("video", "video/{}"),
}
DERIVED = {"thinking", "output_config", "reasoning_effort", "reasoning_config", "top_k"}
EFFORTS = {
    "low": chat_pb2.THINKING_EFFORT_LOW,
    "medium": chat_pb2.THINKING_EFFORT_MEDIUM,
    "high": chat_pb2.THINKING_EFFORT_HIGH,
}
FINISH = {
    "end_turn": chat_pb2.FINISH_REASON_STOP,
    "stop_sequence": chat_pb2.FINISH_REASON_STOP,
    "max_tokens": chat_pb2.FINISH_REASON_LENGTH,
    "tool_use": chat_pb2.FINISH_REASON_TOOL_CALLS,
    "guardrail_intervened": chat_pb2.FINISH_REASON_CONTENT_FILTER,
}


def decode(body: dict[str, Any], *, stream: bool) -> chat_pb2.ChatRequest:
    """The call that a body makes."""
    request = chat_pb2.ChatRequest(stream=stream)
    extra: dict[str, Any] = {
        key: body[key]
        for key in (
            "additionalModelResponseFieldPaths",
            "guardrailConfig",
            "performanceConfig",
            "promptVariables",
            "requestMetadata",
        )
        if key in body
    }
    for key, value in (body.get("inferenceConfig") or {}).items():
        if key == "stopSequences":
            request.stop.extend(value)
        else:
            setattr(request, KNOBS[key], value)
    if system := blocks(body.get("system") or ()):
        request.messages.append(content_pb2.Message(role=content_pb2.ROLE_SYSTEM, parts=system))
    for turn in body["messages"]:
        said = content_pb2.Message(role=ROLES[turn["role"]], parts=blocks(turn["content"]))
        request.messages.append(said)
    _tools(body.get("toolConfig") or {}, request)
    if more := _thinking(body.get("additionalModelRequestFields") or {}, request):
        extra["additionalModelRequestFields"] = more
    if schema := (body.get("outputConfig") or {}).get("textFormat"):
        told = schema["structure"]["jsonSchema"]
        request.response_format.kind = chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA
        request.response_format.name = told.get("name") or ""
        request.response_format.description = told.get("description") or ""
        request.response_format.schema = told["schema"].encode()
    request.service_tier = (body.get("serviceTier") or {}).get("type") or ""
    if extra:
        request.extra_json = json.dumps(extra).encode()
    return request


def blocks(content: Any) -> list[content_pb2.Part]:
    """The parts of a turn; a cache point belongs to the part before it."""
    parts: list[content_pb2.Part] = []
    for block in content:
        if "cachePoint" in block:
            ttl = {"5m": 300, "1h": 3600}.get(block["cachePoint"].get("ttl"), 0)
            parts[-1].cache_hint.ttl_s = ttl
            parts[-1].cache_hint.SetInParent()
        else:
            parts.append(_part(block))
    return parts


def _part(block: dict[str, Any]) -> content_pb2.Part:
    ((kind, told),) = block.items()
    part = content_pb2.Part()
    if kind == "text":
        part.text.text = told
    elif kind == "reasoningContent" and "redactedContent" in told:
        part.thinking.redacted_data = base64.b64decode(told["redactedContent"]).decode()
    elif kind == "reasoningContent":
        part.thinking.text = told["reasoningText"]["text"]
        part.thinking.signature = told["reasoningText"].get("signature") or ""
    elif kind == "toolUse" and "type" not in told:
        part.tool_call.id, part.tool_call.name = told["toolUseId"], told["name"]
        part.tool_call.arguments = json.dumps(told["input"])
    elif kind == "toolResult" and "type" not in told:
        part.tool_result.tool_call_id = told["toolUseId"]
        part.tool_result.is_error = told.get("status") == "error"
        part.tool_result.parts.extend(blocks(told["content"]))
    elif kind in MEDIA:
        name, types = MEDIA[kind]
        form = told["format"].rpartition("/")[2]
        known = types.format(form) if isinstance(types, str) else types[form]
        source = getattr(part, name).source
        source.media_type = known
        if "bytes" in told["source"]:
            source.data = base64.b64decode(told["source"]["bytes"])
        else:
            source.url = told["source"]["s3Location"]["uri"]
        if kind == "document":
            part.file.filename = told["name"]
    else:
        part.opaque_json = json.dumps(block).encode()
    return part


def _tools(config: dict[str, Any], request: chat_pb2.ChatRequest) -> None:
    for each in config.get("tools") or ():
        if "cachePoint" in each:
            request.tools[-1].cache_hint.SetInParent()
        elif "toolSpec" in each:
            spec = each["toolSpec"]
            tool = request.tools.add().function
            tool.name = spec["name"]
            tool.description = spec.get("description") or ""
            tool.parameters_schema = json.dumps(spec["inputSchema"]["json"]).encode()
            if spec.get("strict"):
                tool.strict = True
        else:
            request.tools.add(provider_json=json.dumps(each).encode())
    match config.get("toolChoice"):
        case {"auto": _}:
            request.tool_choice.mode = chat_pb2.TOOL_CHOICE_MODE_AUTO
        case {"any": _}:
            request.tool_choice.mode = chat_pb2.TOOL_CHOICE_MODE_REQUIRED
        case {"tool": tool}:
            request.tool_choice.mode = chat_pb2.TOOL_CHOICE_MODE_ONE
            request.tool_choice.names.append(tool["name"])


def _thinking(more: dict[str, Any], request: chat_pb2.ChatRequest) -> dict[str, Any]:
    """Sets what the contract names; returns the rest."""
    thinking = more.get("thinking") or {}
    if thinking.get("type") == "enabled":
        request.thinking.budget_tokens = thinking["budget_tokens"]
    elif thinking:
        request.thinking.enabled = True
    effort = (more.get("output_config") or {}).get("effort")
    effort = effort or more.get("reasoning_effort") or more.get("reasoning_config")
    if effort:
        request.thinking.effort = EFFORTS[effort]
    top_k = more.get("top_k") or (more.get("inferenceConfig") or {}).get("topK")
    if top_k:
        request.top_k = top_k
    return {k: v for k, v in more.items() if k not in DERIVED and k != "inferenceConfig"}


def normal(body: dict[str, Any]) -> dict[str, Any]:
    """A body without what changes nothing."""
    body = json.loads(json.dumps(body))
    turns: list[Any] = []
    for turn in body.get("messages", ()):
        content = [_normal_block(block) for block in turn["content"]]
        if turns and turns[-1]["role"] == turn["role"]:
            turns[-1]["content"] += content
        else:
            turns.append({"role": turn["role"], "content": content})
    body["messages"] = turns
    for spec in (body.get("toolConfig") or {}).get("tools") or ():
        if not (spec.get("toolSpec") or {"description": 1}).get("description", 1):
            del spec["toolSpec"]["description"]
    schema = (body.get("outputConfig") or {}).get("textFormat")
    if schema:
        told = schema["structure"]["jsonSchema"]
        told["schema"] = json.loads(told["schema"])
    return {key: value for key, value in body.items() if value not in (None, [], {})}


def _normal_block(block: dict[str, Any]) -> dict[str, Any]:
    result = block.get("toolResult")
    if result and result.get("status") == "success" and "type" not in result:
        del result["status"]
    for inner in (result or {}).get("content", ()):
        _normal_block(inner)
    for kind in ("image", "video"):
        if kind in block:
            block[kind]["format"] = block[kind]["format"].rpartition("/")[2]
    return block


def oracle(content: list[dict[str, Any]], reason: str) -> dict[str, Any]:
    """What a caller must have of an answer."""
    seen: dict[str, Any] = {
        "text": "",
        "thinking": "",
        "signatures": [],
        "redacted": [],
        "calls": [],
        "opaque": [],
        "finish": FINISH[reason],
        "native": reason,
    }
    for block in content:
        thought = block.get("reasoningContent") or {}
        seen["text"] += block.get("text") or ""
        seen["thinking"] += (thought.get("reasoningText") or {}).get("text") or ""
        if signature := (thought.get("reasoningText") or {}).get("signature"):
            seen["signatures"].append(signature)
        if "redactedContent" in thought:
            seen["redacted"].append(base64.b64decode(thought["redactedContent"]).decode())
        call = block.get("toolUse") or {}
        if call.get("type") == "server_tool_use" or "toolResult" in block:
            seen["opaque"].append(block)
        elif call:
            seen["calls"].append((call["toolUseId"], call["name"], call["input"], b""))
    return seen


def plain_events(raw: bytes) -> list[tuple[str, dict[str, Any]]]:
    """The events of a body, by a few lines of separate code."""
    found = []
    while raw:
        total, headers = (int.from_bytes(raw[i : i + 4]) for i in (0, 4))
        named = raw[12 : 12 + headers].split(b":event-type\x07", 1)[1]
        kind = named[2 : 2 + int.from_bytes(named[:2])].decode()
        told = json.loads(raw[12 + headers : total - 4])
        told.pop("p", None)
        found.append((kind, told))
        raw = raw[total:]
    return found


def folded(events: list[tuple[str, dict[str, Any]]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The blocks of a streamed answer, and what its last events say."""
    made: dict[int, dict[str, Any]] = {}
    last: dict[str, Any] = {}
    for kind, told in events:
        if kind in ("messageStop", "metadata"):
            last |= told
        if "contentBlockIndex" not in told:
            continue
        block = made.setdefault(told["contentBlockIndex"], {})
        for name, start in (told.get("start") or {}).items():
            block[name] = dict(start)
        for name, delta in (told.get("delta") or {}).items():
            _join(block, name, delta)
    for block in made.values():
        if "toolUse" in block:
            block["toolUse"]["input"] = json.loads(block["toolUse"].get("input") or "{}")
    return [made[index] for index in sorted(made)], last


def _join(block: dict[str, Any], name: str, delta: Any) -> None:
    """Adds a delta to its block."""
    if name == "text":
        block["text"] = block.get("text", "") + delta
    elif name == "toolUse":
        call = block["toolUse"]
        call["input"] = call.get("input", "") + delta["input"]
    elif name == "toolResult":
        block["toolResult"].setdefault("content", []).extend(delta)
    elif "redactedContent" in delta:
        block["reasoningContent"] = delta
    else:
        thought = block.setdefault("reasoningContent", {"reasoningText": {}})
        for key, value in delta.items():
            said = thought["reasoningText"]
            said[key] = said.get(key, "") + value
