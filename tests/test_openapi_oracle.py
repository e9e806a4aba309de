"""The oracle objects to what it should, and to nothing that OpenAI itself sends."""

import json
from typing import Any

from tests.openapi_oracle import CHAT_COMPLETION, ERROR, faults, stream_faults
from tests.recordings import exchanges, needs_recordings, needs_specs

pytestmark = [needs_specs, needs_recordings]


def test_openais_own_answers_pass() -> None:
    failed: list[list[str]] = []
    seen = 0
    for exchange in exchanges("openai", "openai.chat.completions"):
        body = exchange["response_body"]
        if exchange["status"] != 200 or not isinstance(body, str):
            continue
        body = body.replace("\r\n", "\n")
        if body.startswith("data:"):
            failed.append(stream_faults(body.encode()))
        elif body.startswith("{"):
            failed.append(faults(CHAT_COMPLETION, json.loads(body)))
        seen += 1
    assert seen > 700
    # One of them is Azure's first chunk, whose `object` is empty.
    assert len([found for found in failed if found]) == 1


def test_a_word_that_is_not_in_the_list_is_a_fault() -> None:
    answer: dict[str, Any] = {"choices": [{"finish_reason": "eos"}], "service_tier": "on_demand"}
    assert len(faults(CHAT_COMPLETION, answer)) == 2
    assert faults(CHAT_COMPLETION, {"choices": [{"finish_reason": None}]}) == []
    assert faults(ERROR, {"error": {"code": 3}})
    assert stream_faults(b"data: {}\n\n") == ["the stream does not end with [DONE]"]
