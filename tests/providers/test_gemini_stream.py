"""Gemini's streams: every kind of piece, and what is not its protocol."""

import json
from typing import Any

import pytest

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.sse import ServerSentEvent
from services.router.providers.base import Exchange
from services.router.providers.gemini import WIRE
from services.router.providers.gemini_stream import GeminiStream

USAGE = {"promptTokenCount": 4, "candidatesTokenCount": 2}


def stream(choices: int | None = None, model: str = "gemini-2.5-flash") -> GeminiStream:
    request = chat_pb2.ChatRequest(stream=True, choices=choices)
    return WIRE.stream(Exchange(request=request, model=model, cost=lambda tokens: 0))


def feed(decoder: GeminiStream, *chunks: dict[str, Any]) -> list[chat_pb2.ChatDelta]:
    made = decoder.feed([ServerSentEvent(b"", json.dumps(chunk).encode()) for chunk in chunks])
    return [event.delta for event in made]


def piece(*parts: dict[str, Any], reason: str = "", **more: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": parts}}
    if reason:
        candidate["finishReason"] = reason
    return {"candidates": [candidate], **more}


def test_an_answer_is_done_when_it_said_why_and_what_it_cost() -> None:
    decoder = stream()
    feed(decoder, piece({"text": "Hi"}, responseId="r"))
    assert (decoder.started, decoder.done, decoder.usage) == (True, False, None)
    feed(decoder, piece(reason="STOP", usageMetadata=USAGE), piece({"text": "ignored"}))
    assert (decoder.done, decoder.finish_reason, decoder.upstream_id) == (True, "STOP", "r")
    assert decoder.output_bytes == 2
    assert decoder.usage is not None
    assert (decoder.usage.input_tokens, decoder.usage.output_tokens) == (4, 2)
    assert decoder.end() == []


def test_an_answer_without_usage_is_complete_when_the_stream_ends() -> None:
    decoder = stream()
    feed(decoder, piece({"text": "Hi"}, reason="STOP"))
    assert decoder.done is False
    assert decoder.end() == []
    assert (decoder.done, decoder.usage) == (True, None)


def test_usage_grows_with_the_answer() -> None:
    decoder = stream()
    feed(decoder, piece({"text": "a"}, usageMetadata=USAGE))
    feed(decoder, piece({"text": "b"}, usageMetadata={**USAGE, "candidatesTokenCount": 9}))
    assert decoder.usage is not None
    assert decoder.usage.output_tokens == 9


def test_several_answers_come_side_by_side() -> None:
    decoder = stream(choices=2)
    first = {
        "candidates": [
            {"index": 0, "content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"},
            {"index": 1, "content": {"parts": [{"functionCall": {"name": "f"}}]}},
        ],
        "usageMetadata": USAGE,
    }
    deltas = feed(decoder, first)
    assert [delta.choices[0].index for delta in deltas] == [0, 0, 1]
    assert [delta.choices[0].starts for delta in deltas] == [True, False, True]
    assert decoder.done is False
    with pytest.raises(GatewayError):
        decoder.end()
    last = {"candidates": [{"index": 1, "finishReason": "STOP"}], "usageMetadata": USAGE}
    (delta,) = feed(decoder, last)
    assert delta.choices[0].finish_reason == chat_pb2.FINISH_REASON_TOOL_CALLS
    assert decoder.done is True


def test_calls_media_and_own_parts_come_as_they_are_made() -> None:
    decoder = stream()
    deltas = feed(
        decoder,
        piece(
            {"functionCall": {"name": "f", "args": {"n": 1}}, "thoughtSignature": "AAE="},
            {"functionCall": {"name": "g", "id": "own"}},
            {"inlineData": {"mimeType": "image/png", "data": "AA=="}},
            {"inlineData": {"mimeType": "audio/L16;rate=24000", "data": "AAE="}},
            {"executableCode": {"code": "1"}},
            {"text": "so", "thoughtSignature": "dHg="},
            {"thought": True},
            responseId="r",
        ),
    )
    made = [delta.choices[0] for delta in deltas]
    calls = [call for choice in made for call in choice.tool_calls]
    assert [(c.index, c.id, c.name, c.arguments, c.thought_signature) for c in calls] == [
        (0, "gemini-r-0", "f", '{"n":1}', b"\x00\x01"),
        (1, "own", "g", "{}", b""),
    ]
    assert made[2].images[0].source.data == b"\x00"
    assert (made[3].audio.id, made[3].audio.data) == ("r", b"\x00\x01")
    assert (made[4].text, made[5].thinking.signature) == ("so", "gemini:dHg=")
    assert [choice.part_index for choice in made] == [0, 0, 1, 2, 3, 3]
    beside, _ = feed(decoder, piece(reason="STOP"))
    told = json.loads(beside.choices[0].extra_json)["provider_specific_fields"]
    assert told == {"parts": [{"executableCode": {"code": "1"}}]}


def test_a_blocked_prompt_ends_the_stream() -> None:
    decoder = stream()
    blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": USAGE}
    (delta,) = feed(decoder, blocked)
    assert delta.choices[0].finish_reason == chat_pb2.FINISH_REASON_CONTENT_FILTER
    assert (decoder.done, decoder.finish_reason, decoder.started) == (True, "SAFETY", False)
    assert delta.model == "gemini-2.5-flash"


def test_an_answer_without_parts_still_begins() -> None:
    (delta,) = feed(stream(), piece())
    assert delta.choices[0].starts is True
    (delta,) = feed(stream(), piece(reason="STOP"))
    assert (delta.choices[0].starts, delta.choices[0].part_index) == (True, 0)


def test_what_is_told_beside_an_answer_needs_no_piece() -> None:
    decoder = stream()
    feed(decoder, piece({"text": "a"}))
    rated = {"candidates": [{"safetyRatings": [{"category": "X"}]}]}
    (delta,) = feed(decoder, rated)
    assert not delta.choices
    assert json.loads(delta.extra_json)["google"]["candidates"]


def test_log_probabilities_come_with_their_piece() -> None:
    decoder = stream()
    tokens = {"chosenCandidates": [{"token": "a", "logProbability": -1}]}
    chunk = piece({"text": "a"}, {"text": "", "thoughtSignature": "dHg="})
    chunk["candidates"][0]["logprobsResult"] = tokens
    *_, delta = feed(decoder, chunk)
    assert delta.choices[0].logprobs.content[0].token == "a"
    assert delta.choices[0].finish_reason == chat_pb2.FINISH_REASON_UNSPECIFIED


def test_a_proof_alone_belongs_to_the_part_before_it() -> None:
    deltas = feed(
        stream(),
        piece({"text": "hm", "thought": True}, {"text": "so", "thoughtSignature": "dHg="}),
    )
    told = [delta.choices[0] for delta in deltas]
    assert [(each.part_index, each.thinking.signature) for each in told] == [
        (0, ""),
        (1, ""),
        (1, "gemini:dHg="),
    ]


def test_a_chunk_that_says_nothing_makes_nothing() -> None:
    decoder = stream()
    feed(decoder, piece({"text": "a"}))
    assert feed(decoder, {"usageMetadata": USAGE}, piece({"text": ""})) == []


def test_searches_are_counted_once_and_charged_as_the_model_charges() -> None:
    grounding = {"groundingMetadata": {"webSearchQueries": ["a", "", "b", "a"]}}
    counted = []
    for model in ("gemini-2.5-flash", "gemini-3-flash-preview"):
        decoder = stream(model=model)
        chunk = {"candidates": [grounding], "usageMetadata": USAGE}
        feed(decoder, chunk, {**chunk, "usageMetadata": {**USAGE}})
        assert decoder.usage is not None
        counted.append(decoder.usage.web_searches)
    assert counted == [1, 2]


def test_an_error_inside_a_stream_is_raised() -> None:
    failed = {"error": {"code": 503, "status": "UNAVAILABLE", "message": "busy"}}
    with pytest.raises(GatewayError) as raised:
        feed(stream(), piece({"text": "a"}), failed)
    assert raised.value.reason == error_pb2.ERROR_REASON_UPSTREAM_ERROR
    assert "while it answered" in raised.value.message


@pytest.mark.parametrize(
    "data",
    [
        b"[DONE]",
        b"[]",
        b'{"candidates": [5]}',
        b'{"candidates": [{"content": {"parts": [{"text": 5}]}}]}',
        b'{"candidates": [{"content": {"parts": [{"functionCall": {"partialArgs": []}}]}}]}',
        json.dumps(piece({"functionCall": {"name": "f"}, "thoughtSignature": "a"})).encode(),
    ],
)
def test_what_is_not_the_protocol_is_refused(data: bytes) -> None:
    with pytest.raises(GatewayError) as raised:
        stream().feed([ServerSentEvent(b"", data)])
    assert raised.value.reason == error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL


@pytest.mark.parametrize("chunks", [[], [piece({"text": "half"}, usageMetadata=USAGE)]])
def test_a_stream_that_ends_early_is_never_complete(chunks: list[dict[str, Any]]) -> None:
    decoder = stream()
    feed(decoder, *chunks)
    with pytest.raises(GatewayError) as raised:
        decoder.end()
    assert raised.value.reason == error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
