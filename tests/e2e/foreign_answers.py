"""What providers with wires of their own said in a recording, told in OpenAI's words by a few lines
of separate code.
"""

import json
from typing import Any

from tests.providers import bedrock_dialect, cohere_dialect

ANTHROPIC_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
    "compaction": "length",
}
ANTHROPIC_INPUTS = (
    "input_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
)
BEDROCK_FINISH = {
    "end_turn": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "guardrail_intervened": "content_filter",
}
COHERE_FINISH = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "MAX_TOKENS": "length",
    "TOOL_CALL": "tool_calls",
}
GEMINI_LENGTH = {"MAX_TOKENS"}
GEMINI_FILTERED = {
    "SAFETY",
    "RECITATION",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "IMAGE_SAFETY",
    "LANGUAGE",
    "MODEL_ARMOR",
    "UNEXPECTED_TOOL_CALL",
}


def events_of(body: str) -> list[dict[str, Any]]:
    """The JSON values of a stream's data lines."""
    return [
        json.loads(line.partition(":")[2])
        for line in body.splitlines()
        if line.startswith("data:") and line.partition(":")[2].strip() != "[DONE]"
    ]


def parsed(arguments: str) -> Any:
    """Arguments as a value; as text where the output limit cut them."""
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def anthropic(raw: bytes) -> dict[str, Any]:
    """Text, tool calls, finish and tokens of a Messages answer, whole or streamed."""
    body = raw.decode()
    if not body.lstrip().startswith("{"):
        message = _anthropic_folded(events_of(body))
    else:
        message = json.loads(body)
    blocks = message["content"]
    # The report leaves out what compacting the conversation took before the answer.
    runs = [message["usage"]]
    runs += [run for run in runs[0].get("iterations") or () if run["type"] == "compaction"]
    return {
        "text": "".join(block["text"] for block in blocks if block["type"] == "text"),
        "calls": [(b["name"], b["input"]) for b in blocks if b["type"] == "tool_use"],
        "finish": ANTHROPIC_FINISH[message["stop_reason"]],
        "tokens": (
            sum(run.get(name) or 0 for run in runs for name in ANTHROPIC_INPUTS),
            sum(run["output_tokens"] for run in runs),
        ),
    }


def _anthropic_folded(events: list[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"content": [], "usage": {}}
    for event in events:
        match event["type"]:
            case "message_stop":
                break
            case "message_start":
                said = [*message["content"], *event["message"]["content"]]
                message = {**event["message"], "content": said}
            case "content_block_start":
                block = {**event["content_block"], "json": ""}
                message["content"].append(block)
            case "content_block_delta":
                block = message["content"][-1]
                delta = event["delta"]
                if delta["type"] == "text_delta":
                    block["text"] += delta["text"]
                elif delta["type"] == "input_json_delta":
                    block["json"] += delta["partial_json"]
            case "message_delta":
                message["stop_reason"] = event["delta"]["stop_reason"]
                told = {k: v for k, v in event.get("usage", {}).items() if v is not None}
                message["usage"] = {**message["usage"], **told}
    for block in message["content"]:
        if block["type"] == "tool_use" and block.get("json"):
            block["input"] = parsed(block["json"])
    return message


def gemini(raw: bytes) -> dict[str, Any]:
    """Text, tool calls, finish and tokens of a generateContent answer, whole or streamed."""
    body = raw.decode()
    whole = body.lstrip().startswith("{")
    pieces = [json.loads(body)] if whole else events_of(body)
    text, reason, blocked = "", "", False
    calls: list[Any] = []
    usage: dict[str, Any] = {}
    for piece in pieces:
        usage = piece.get("usageMetadata") or usage
        blocked = blocked or bool((piece.get("promptFeedback") or {}).get("blockReason"))
        for candidate in (piece.get("candidates") or [])[:1]:
            reason = candidate.get("finishReason") or reason
            for part in (candidate.get("content") or {}).get("parts") or []:
                if part.get("thought"):
                    continue
                text += part.get("text") or ""
                if "functionCall" in part:
                    call = part["functionCall"]
                    calls.append((call["name"], call.get("args") or {}))
    if reason in GEMINI_FILTERED or blocked:
        finish = "content_filter"
    elif reason in GEMINI_LENGTH:
        finish = "length"
    else:
        finish = "tool_calls" if calls else "stop"
    prompt = (usage.get("promptTokenCount") or 0) + (usage.get("toolUsePromptTokenCount") or 0)
    output = (usage.get("candidatesTokenCount") or 0) + (usage.get("thoughtsTokenCount") or 0)
    return {"text": text, "calls": calls, "finish": finish, "tokens": (prompt, output)}


def bedrock(raw: bytes) -> dict[str, Any]:
    """The same of a Converse answer, whole or streamed. A few fixtures tell no tokens."""
    if raw.lstrip().startswith(b"{"):
        told = json.loads(raw)
        blocks = told["output"]["message"]["content"]
    else:
        blocks, told = bedrock_dialect.folded(bedrock_dialect.plain_events(raw))
    calls = [block["toolUse"] for block in blocks if "toolUse" in block]
    said: dict[str, Any] = {
        "text": "".join(block.get("text") or "" for block in blocks),
        "calls": [
            (call["name"], call["input"]) for call in calls if call.get("type") != "server_tool_use"
        ],
        "finish": BEDROCK_FINISH[told["stopReason"]],
    }
    if usage := told.get("usage"):
        cached = usage.get("cacheReadInputTokens", 0) + usage.get("cacheWriteInputTokens", 0)
        said["tokens"] = (usage["inputTokens"] + cached, usage["outputTokens"])
    return said


def cohere(raw: bytes) -> dict[str, Any]:
    """The same of a chat answer of version 2, whole or streamed; what is billed is the usage."""
    body = raw.decode()
    whole = body.lstrip().startswith("{")
    told = json.loads(body) if whole else cohere_dialect.folded(events_of(body))
    seen = cohere_dialect.oracle(told["message"], told["finish_reason"])
    billed = told["usage"]["billed_units"]
    return {
        "text": seen["text"],
        "calls": [(name, arguments) for _, name, arguments, _ in seen["calls"]],
        "finish": COHERE_FINISH[told["finish_reason"]],
        "tokens": (billed["input_tokens"], billed["output_tokens"]),
    }


def ollama(raw: bytes) -> dict[str, Any]:
    """The same of Ollama's own chat, whole or streamed. Older servers leave a count out."""
    lines = [json.loads(line) for line in raw.splitlines() if line]
    said: dict[str, Any] = {
        "text": "".join(line["message"]["content"] for line in lines),
        "calls": [],
        "finish": lines[-1]["done_reason"],
    }
    if "prompt_eval_count" in lines[-1]:
        said["tokens"] = (lines[-1]["prompt_eval_count"], lines[-1]["eval_count"])
    return said
