"""What a recorded answer in the OpenAI dialect says, by simple code of its own: the judge of every
replay. Shares nothing with the code under test but the recordings.

An answer, whole or streamed, is folded into a plain dictionary::

    {"error": bool, "choices": {0: {"text", "thinking", "refusal", "calls", "finish"}},
     "usage": {"input", "output", "cached", "reasoning"} | None}

``expected`` then says what the gateway must make of it: OpenAI's words for finish reasons, output
that includes reasoning.
"""

import contextlib
import json
import re
from typing import Any

Folded = dict[str, Any]

OPENAI_FINISHES = {"stop", "length", "tool_calls", "content_filter", "function_call", None}
REASONING_BESIDE = {"xai", "perplexity"}
"""Providers whose ``completion_tokens`` leave out the reasoning tokens."""


def events(body: str) -> list[tuple[str, str]]:
    """Name and data of every server-sent event."""
    found = []
    for block in re.split(r"\r\n\r\n|\n\n|\r\r", body.removeprefix("\ufeff")):
        name, data = "", []
        for line in block.splitlines():
            if line.startswith("event:"):
                name = line[6:].strip()
            elif line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
        if data:
            found.append((name, "\n".join(data)))
    return found


def fold(body: str, *, stream: bool) -> Folded:
    """A whole answer or a stream."""
    return fold_stream(body) if stream else fold_whole(json.loads(body))


def fold_whole(answer: dict[str, Any]) -> Folded:
    """A whole answer."""
    folded: Folded = {"error": "error" in answer, "choices": {}, "usage": None}
    for choice in answer.get("choices") or ():
        made = folded["choices"].setdefault(choice["index"], _blank())
        _add(made, choice.get("message") or {})
        made["finish"] = choice.get("finish_reason")
    folded["usage"] = usage(answer)
    _finish(folded)
    return folded


def fold_stream(body: str) -> Folded:
    """A stream, up to its end or its first error."""
    folded: Folded = {"error": False, "choices": {}, "usage": None}
    for name, data in events(body):
        if data == "[DONE]":
            break
        chunk = json.loads(data)
        folded["usage"] = usage(chunk) or folded["usage"]
        if name == "error" or chunk.get("error"):
            folded["error"] = True
            break
        for choice in chunk["choices"]:
            made = folded["choices"].setdefault(choice["index"], _blank())
            _add(made, choice.get("delta") or {})
            made["finish"] = choice.get("finish_reason") or made["finish"]
    _finish(folded)
    return folded


def usage(answer: dict[str, Any]) -> dict[str, int] | None:
    """The usage of an answer or a chunk."""
    found = answer.get("usage") or (answer.get("x_groq") or {}).get("usage")
    if not found:
        return None
    into = found.get("prompt_tokens_details") or {}
    out = found.get("completion_tokens_details") or {}
    cached = ("cached_tokens", "num_cached_tokens", "prompt_cache_hit_tokens")
    return {
        "input": found["prompt_tokens"],
        "output": found["completion_tokens"],
        "cached": max(into.get("cached_tokens") or 0, *(found.get(name) or 0 for name in cached)),
        "reasoning": max(out.get("reasoning_tokens") or 0, found.get("reasoning_tokens") or 0),
    }


def expected(recorded: Folded, provider: str) -> Folded:
    """What the gateway must make of a recorded answer."""
    made: Folded = json.loads(json.dumps(recorded))
    made["choices"] = {int(index): choice for index, choice in made["choices"].items()}
    for choice in made["choices"].values():
        if choice["finish"] not in OPENAI_FINISHES or not choice["finish"]:
            choice["finish"] = "tool_calls" if choice["calls"] else "stop"
    if made["usage"] and provider in REASONING_BESIDE:
        made["usage"]["output"] += made["usage"]["reasoning"]
    return made


def _blank() -> dict[str, Any]:
    return {"text": "", "thinking": "", "refusal": "", "calls": [], "finish": None}


def _add(made: dict[str, Any], piece: dict[str, Any]) -> None:
    """Adds a message, or a piece of one."""
    content = piece.get("content")
    if isinstance(content, list):
        for part in content:
            made["text"] += part.get("text") or ""
            for thought in part.get("thinking") or ():
                made["thinking"] += thought["text"]
    else:
        made["text"] += content or ""
    made["refusal"] += piece.get("refusal") or ""
    made["thinking"] += _thinking(piece)
    for call in piece.get("tool_calls") or ():
        _add_call(made["calls"], call)
    called = piece.get("function_call") or {}
    if called.get("name") or called.get("arguments"):
        _add_call(made["calls"], {"index": 0, "function": called})


def _thinking(piece: dict[str, Any]) -> str:
    plain = piece.get("reasoning_content") or piece.get("reasoning")
    if plain:
        return str(plain)
    details = piece.get("reasoning_details") or ()
    return "".join(d.get("text") or d.get("summary") or "" for d in details)


def _add_call(calls: list[dict[str, Any]], call: dict[str, Any]) -> None:
    """Adds a tool call, or goes on with one: the one of its index, of its id, or the last."""
    called = call.get("function") or {}
    custom = call.get("custom") or {}
    name = custom.get("name") or called.get("name") or ""
    written = custom.get("input") or called.get("arguments") or ""
    if isinstance(written, dict):
        written = json.dumps(written, separators=(",", ":"))
    index, call_id = call.get("index"), call.get("id") or ""
    for known in calls:
        if (index is not None and known["index"] == index) or (call_id and known["id"] == call_id):
            break
    else:
        if index is None and not call_id and calls and not name:
            known = calls[-1]
        else:
            known = {"index": index, "id": "", "name": "", "arguments": ""}
            calls.append(known)
    known["id"] = known["id"] or call_id
    known["name"] = known["name"] or name
    known["arguments"] += written


def _finish(folded: Folded) -> None:
    """Indexes served their purpose; arguments are compared as JSON where they are."""
    for choice in folded["choices"].values():
        for call in choice["calls"]:
            del call["index"]
            with contextlib.suppress(ValueError):
                call["arguments"] = json.loads(call["arguments"])
