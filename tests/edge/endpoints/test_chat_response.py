"""What the hub's answers look like in OpenAI's words."""

import json
from typing import Any

import pytest

from edge.endpoints.chat_response import AnswerFrame, body, service_tier
from edge.endpoints.token_usage import usage_json
from onegate.common.v1 import content_pb2, token_usage_pb2
from onegate.router.v1 import chat_pb2
from runtime.money import usd
from tests.edge.endpoints.answers import FULL_ANSWER, METERED
from tests.openapi_oracle import CHAT_COMPLETION, faults
from tests.recordings import needs_specs

FRAME = AnswerFrame(id="chatcmpl-0", created_unix_s=7, model="openai/m")


def answered(answer: chat_pb2.ChatAnswer, frame: AnswerFrame = FRAME) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(body(answer, METERED, frame))
    return made


def saying(*parts: content_pb2.Part) -> dict[str, Any]:
    """The message of an answer with these parts."""
    message = content_pb2.Message(role=content_pb2.ROLE_ASSISTANT, parts=parts)
    answer = chat_pb2.ChatAnswer(choices=[chat_pb2.Choice(message=message)])
    made: dict[str, Any] = answered(answer)["choices"][0]["message"]
    return made


FIRST_CHOICE = {
    "index": 0,
    "finish_reason": "tool_calls",
    "native_finish_reason": "tool_use",
    "content_filter_results": {},
    "logprobs": {
        "content": [
            {
                "token": "S",
                "logprob": -0.5,
                "bytes": [83],
                "top_logprobs": [{"token": "T", "logprob": -1.0, "bytes": None}],
            }
        ],
        "refusal": None,
    },
    "message": {
        "role": "assistant",
        "content": "See there.",
        "refusal": None,
        "prefix": True,
        "reasoning_content": "Hm. sum",
        "reasoning_details": [
            {"type": "reasoning.text", "text": "Hm. ", "signature": "s1"},
            {"type": "reasoning.encrypted", "data": "e", "id": "r1"},
            {"type": "reasoning.summary", "summary": "sum"},
        ],
        "annotations": [
            {
                "type": "url_citation",
                "url_citation": {
                    "url": "https://x/y",
                    "title": "X",
                    "start_index": 0,
                    "end_index": 3,
                },
            }
        ],
        "provider_specific_fields": {
            "annotations": [{"type": "file"}],
            "parts": [{"type": "server_tool_use"}],
        },
        "images": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
            {"type": "image_url", "image_url": {"url": "https://x/z.png"}},
            {
                "type": "image_url",
                "image_url": {"url": "data:application/octet-stream;base64,eA=="},
            },
        ],
        "audio": {"id": "a1", "data": "UklGRg==", "expires_at": 9, "transcript": "la"},
        "tool_calls": [
            {
                "index": 0,
                "id": "1",
                "type": "function",
                "function": {"name": "f", "arguments": "{}"},
                "extra_content": {"google": {"thought_signature": "//4="}},
            },
            {"id": "2", "type": "custom", "custom": {"name": "c", "input": "x"}},
        ],
    },
}

USAGE = {
    "inference_geo": "eu",
    "prompt_tokens": 100,
    "completion_tokens": 50,
    "total_tokens": 150,
    "prompt_tokens_details": {
        "cached_tokens": 10,
        "audio_tokens": 3,
        "cache_write_tokens": 7,
        "image_tokens": 4,
    },
    "completion_tokens_details": {
        "reasoning_tokens": 20,
        "audio_tokens": 1,
        "accepted_prediction_tokens": 7,
        "rejected_prediction_tokens": 8,
        "image_tokens": 6,
    },
    "cost": 1.23456789,
}


def test_everything_that_an_answer_has_is_said() -> None:
    made = answered(FULL_ANSWER)
    choices, usage = made.pop("choices"), made.pop("usage")
    assert made == {
        "mood": 1,
        "id": "chatcmpl-9",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o",
        "system_fingerprint": "fp_1",
        "service_tier": "default",
    }
    assert choices[0] == FIRST_CHOICE
    assert choices[1]["message"]["refusal"] == "No."
    assert choices[1]["message"]["content"] is None
    assert choices[1]["logprobs"]["content"] is None
    assert choices[1]["finish_reason"] == "content_filter"
    assert choices[2]["message"]["content"] == ""
    assert choices[2]["finish_reason"] == "length"
    assert choices[3]["finish_reason"] is None
    assert usage == USAGE


@needs_specs
@pytest.mark.parametrize("legacy", [False, True])
def test_a_full_answer_is_what_openais_description_says(legacy: bool) -> None:
    frame = AnswerFrame(id="c", created_unix_s=7, model="m", legacy_functions=legacy)
    assert faults(CHAT_COMPLETION, answered(FULL_ANSWER, frame)) == []


def test_what_a_provider_does_not_say_is_said_by_the_gateway() -> None:
    made = json.loads(body(chat_pb2.ChatAnswer(), None, FRAME))
    assert made == {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 7,
        "model": "openai/m",
        "choices": [],
    }


def test_the_legacy_form_has_one_function_call() -> None:
    frame = AnswerFrame(id="c", created_unix_s=7, model="m", legacy_functions=True)
    choice = answered(FULL_ANSWER, frame)["choices"][0]
    assert choice["message"]["function_call"] == {"name": "f", "arguments": "{}"}
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "function_call"


def test_a_thought_without_a_proof_is_only_text() -> None:
    thought = content_pb2.Part(thinking=content_pb2.ThinkingPart(text="Hm."))
    made = saying(thought, content_pb2.Part(text=content_pb2.TextPart(text="a")))
    assert made["reasoning_content"] == "Hm."
    assert "reasoning_details" not in made
    encrypted = content_pb2.Part(thinking=content_pb2.ThinkingPart(redacted_data="e"))
    assert "reasoning_content" not in saying(encrypted)


@pytest.mark.parametrize(
    ("word", "said"),
    [("priority", "priority"), ("on_demand", "default"), ("batch", None), ("", None)],
)
def test_service_tiers_are_openais_words(word: str, said: str | None) -> None:
    assert service_tier(word) == said


@pytest.mark.parametrize(
    ("nano_usd", "text"),
    [
        (0, "0"),
        (1, "0.000000001"),
        (1_250, "0.00000125"),
        (10**9, "1"),
        (120 * 10**9, "120"),
        (9_007_199_254_740_993, "9007199.254740993"),
    ],
)
def test_costs_are_exact_decimals(nano_usd: int, text: str) -> None:
    assert usd(nano_usd) == text
    metered = chat_pb2.Metered(cost_nano_usd=nano_usd)
    assert bytes(usage_json(metered)["cost"]).decode() == text


def test_usage_without_more_has_the_details_that_openai_always_has() -> None:
    made = usage_json(chat_pb2.Metered(tokens=token_usage_pb2.TokenUsage(extra_json=b"[]")))
    assert made["prompt_tokens_details"] == {"cached_tokens": 0, "audio_tokens": 0}
    assert "image_tokens" not in made["completion_tokens_details"]
