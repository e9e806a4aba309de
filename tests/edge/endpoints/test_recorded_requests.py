"""Every chat request that was ever recorded is understood, and its typed form becomes the same
request again on the wire of the provider that it was sent to.
"""

import json
from typing import Any

import pytest

from edge.endpoints.chat_request import decode, native
from edge.endpoints.chat_typed import typed
from onegate.router.v1 import chat_pb2
from services.router.providers import PROVIDERS
from services.router.providers.base import Exchange
from tests.recordings import exchanges, needs_recordings

Json = dict[str, Any]

CONTEXT = chat_pb2.CallContext()
KINDS = {"moonshotai": "moonshot"}
REQUESTS = [
    exchange
    for exchange in exchanges(api="openai.chat.completions")
    if exchange["request_body"] is not None
]
PROVIDERS_SEEN = sorted({exchange["provider"] for exchange in REQUESTS})


def plain(body: Json) -> Json:
    """A request without what says nothing, and with one spelling of what has several."""
    made = {key: spelled(value) for key, value in body.items()}
    made = {key: value for key, value in made.items() if value not in (None, [])}
    for silent in ("stream_options", "provider", "models"):
        made.pop(silent, None)
    for key, harmless in (("stream", False), ("n", 1)):
        if made.get(key) == harmless:
            del made[key]
    if isinstance(made.get("stop"), str):
        made["stop"] = [made["stop"]]
    if made.get("tool_choice") == "any":
        made["tool_choice"] = "required"
    if isinstance(made.get("reasoning"), dict) and made["reasoning"].keys() == {"effort"}:
        made["reasoning_effort"] = made.pop("reasoning")["effort"]
    made["messages"] = [message(entry) for entry in made["messages"]]
    return made


def message(members: Json) -> Json:
    """A message without thoughts: a vendor takes its own spelling of them back, or none."""
    thoughts = ("reasoning", "reasoning_content", "reasoning_details")
    made = {key: value for key, value in members.items() if key not in thoughts}
    content = made.get("content")
    if isinstance(content, list) and len(content) == 1 and content[0].keys() == {"type", "text"}:
        made["content"] = content[0]["text"]
    if made.get("tool_calls") == []:
        del made["tool_calls"]
    if not made.get("content") and "tool_calls" in made:
        made.pop("content", None)
    if made.get("annotations") == []:
        del made["annotations"]
    return made


def spelled(value: Any) -> Any:
    if isinstance(value, list):
        return [spelled(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    made = {key: spelled(inner) for key, inner in value.items() if inner is not None}
    if made.get("description") == "":
        del made["description"]
    if isinstance(made.get("function"), dict):
        made.setdefault("type", "function")
        made.pop("index", None)
    return made


@needs_recordings
@pytest.mark.parametrize("provider", PROVIDERS_SEEN)
def test_every_recorded_request_survives_the_hub(provider: str) -> None:
    wire = PROVIDERS.get(KINDS.get(provider, provider), PROVIDERS["openai"])
    if wire.dialect != chat_pb2.DIALECT_OPENAI_CHAT:
        # Anthropic's and Google's own endpoints of the dialect were recorded.
        wire = PROVIDERS["openai"]
    changed: dict[str, Json] = {}
    seen = 0
    for exchange in REQUESTS:
        if exchange["provider"] != provider:
            continue
        seen += 1
        body = exchange["request_body"]
        raw = json.dumps(body).encode()
        call = decode(raw, depth_max=64)
        assert native(call, CONTEXT).native.body == raw
        hub = typed(call, CONTEXT)
        sent = wire.request(Exchange(request=hub, model=body["model"], cost=lambda _: 0))
        before, after = plain(body), plain(json.loads(sent.body))
        if before != after:
            keys = {key for key in before | after if before.get(key) != after.get(key)}
            changed[exchange["id"]] = {key: (before.get(key), after.get(key)) for key in keys}
    assert changed == {}
    assert seen > 0


@needs_recordings
def test_there_are_recordings_of_every_large_vendor() -> None:
    assert len(REQUESTS) > 1100
    assert len(PROVIDERS_SEEN) >= 18
