"""Cohere bodies as calls of the contract, and what an answer says: the tests' own reading of the
documentation, independent of the wire's.
"""

import json
from typing import Any

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2

ROLES = {
    "system": content_pb2.ROLE_SYSTEM,
    "user": content_pb2.ROLE_USER,
    "assistant": content_pb2.ROLE_ASSISTANT,
    "tool": content_pb2.ROLE_TOOL,
}
FINISH = {
    "COMPLETE": chat_pb2.FINISH_REASON_STOP,
    "STOP_SEQUENCE": chat_pb2.FINISH_REASON_STOP,
    "MAX_TOKENS": chat_pb2.FINISH_REASON_LENGTH,
    "TOOL_CALL": chat_pb2.FINISH_REASON_TOOL_CALLS,
}


def decode(body: dict[str, Any]) -> chat_pb2.ChatRequest:
    """The call that a body makes."""
    request = chat_pb2.ChatRequest(stream=bool(body.get("stream")))
    if body.get("temperature") is not None:
        request.temperature = body["temperature"]
    request.stop.extend(body.get("stop_sequences") or ())
    request.messages.extend(_message(each) for each in body["messages"])
    for each in body.get("tools") or ():
        told = each["function"]
        function = request.tools.add().function
        function.name = told["name"]
        function.description = told.get("description") or ""
        function.parameters_schema = json.dumps(told["parameters"]).encode()
    rule = {"REQUIRED": chat_pb2.TOOL_CHOICE_MODE_REQUIRED, "NONE": chat_pb2.TOOL_CHOICE_MODE_NONE}
    if body.get("tool_choice"):
        request.tool_choice.mode = rule[body["tool_choice"]]
    return request


def _message(told: dict[str, Any]) -> content_pb2.Message:
    message = content_pb2.Message(role=ROLES[told["role"]])
    content = told.get("content") or []
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    target = message.parts
    if told["role"] == "tool":
        result = message.parts.add().tool_result
        result.tool_call_id = told["tool_call_id"]
        target = result.parts
    if told.get("tool_plan"):
        message.parts.add().thinking.text = told["tool_plan"]
    for block in content:
        if block["type"] == "thinking":
            target.add().thinking.text = block["thinking"]
        else:
            target.add().text.text = block["text"]
    for call in told.get("tool_calls") or ():
        made = message.parts.add().tool_call
        made.id, made.name = call["id"], call["function"]["name"]
        made.arguments = call["function"]["arguments"]
    return message


def normal(body: dict[str, Any]) -> dict[str, Any]:
    """A body without what changes nothing."""
    body = json.loads(json.dumps(body))
    for message in body["messages"]:
        content = message.get("content")
        if not content:
            message.pop("content", None)
        elif isinstance(content, list) and [b["type"] for b in content] == ["text"]:
            message["content"] = content[0]["text"]
    return {key: value for key, value in body.items() if value not in (None, [], False)}


def oracle(message: dict[str, Any], reason: str) -> dict[str, Any]:
    """What a caller must have of an answer."""
    blocks = message.get("content") or []
    thoughts = [block["thinking"] for block in blocks if block["type"] == "thinking"]
    return {
        "text": "".join(block["text"] for block in blocks if block["type"] == "text"),
        "thinking": "".join([message.get("tool_plan") or "", *thoughts]),
        "calls": [
            (
                c["id"],
                c["function"]["name"],
                json.loads(c["function"]["arguments"] or "{}") or {},
                b"",
            )
            for c in message.get("tool_calls") or ()
        ],
        "annotations": message.get("citations") or [],
        "finish": FINISH[reason],
        "native": reason,
    }


def _called(call: dict[str, Any]) -> tuple[str, str, Any, bytes]:
    function = call["function"]
    return call["id"], function["name"], json.loads(function["arguments"] or "{}") or {}, b""


def folded(events: list[dict[str, Any]]) -> dict[str, Any]:
    """A streamed answer as a whole one."""
    message: dict[str, Any] = {"tool_plan": "", "content": [], "tool_calls": [], "citations": []}
    last: dict[str, Any] = {}
    for event in events:
        told = (event.get("delta") or {}).get("message") or {}
        if event["type"] == "content-start":
            message["content"].append({"text": "", "thinking": "", **told["content"]})
        elif event["type"] == "content-delta":
            for kind, text in told["content"].items():
                message["content"][-1][kind] += text
        elif event["type"] == "tool-plan-delta":
            message["tool_plan"] += told["tool_plan"]
        elif event["type"] == "tool-call-start":
            message["tool_calls"].append(told["tool_calls"])
        elif event["type"] == "tool-call-delta":
            function = message["tool_calls"][-1]["function"]
            function["arguments"] += told["tool_calls"]["function"]["arguments"]
        elif event["type"] == "citation-start":
            message["citations"].append(told["citations"])
        elif event["type"] == "message-end":
            last = event["delta"]
    return {"message": message, **last}
