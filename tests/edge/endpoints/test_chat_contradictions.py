"""Knobs that say one thing twice: a provider of the caller's dialect judges them, the hub
cannot.
"""

import json
from typing import Any

import pytest

from edge.endpoints.chat_request import decode, native
from edge.endpoints.chat_typed import typed
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError

CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "both limits": ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    "functions and tools": ({"functions": [], "tools": []}, "functions"),
    "both choices": ({"function_call": "auto", "tool_choice": "auto"}, "function_call"),
    "no output": ({"max_tokens": 0}, "max_completion_tokens"),
}


@pytest.mark.parametrize(("fields", "param"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_contradiction_is_forwarded_as_it_is_and_refused_when_translated(
    fields: dict[str, Any], param: str
) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields})
    call = decode(body.encode(), depth_max=64)
    assert native(call, chat_pb2.CallContext()).native.body == body.encode()
    with pytest.raises(GatewayError) as refused:
        typed(call, chat_pb2.CallContext())
    assert refused.value.param == param


def test_a_limit_of_zero_bounds_nothing() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":0}'
    call = decode(body, depth_max=64)
    assert not native(call, chat_pb2.CallContext()).HasField("output_tokens_max")
