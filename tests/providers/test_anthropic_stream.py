"""Anthropic's streams: every event, and what is not its protocol."""

import json
from typing import Any

import pytest

from onegate.common.v1 import content_pb2, error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.sse import ServerSentEvent
from services.router.providers.anthropic import WIRE
from services.router.providers.anthropic_stream import AnthropicStream
from services.router.providers.base import Exchange, Stream

START: dict[str, Any] = {
    "type": "message_start",
    "message": {"id": "m", "usage": {"input_tokens": 10, "output_tokens": 1}},
}
DELTA: dict[str, Any] = {
    "type": "message_delta",
    "delta": {"stop_reason": "end_turn"},
    "usage": {"output_tokens": 5, "input_tokens": None},
}
STOP = {"type": "message_stop"}


def stream() -> AnthropicStream:
    request = chat_pb2.ChatRequest(stream=True)
    return WIRE.stream(Exchange(request=request, model="claude-x", cost=lambda tokens: 0))


def feed(decoder: Stream, *events: dict[str, Any]) -> list[chat_pb2.ChatDelta]:
    made = decoder.feed([ServerSentEvent(b"", json.dumps(event).encode()) for event in events])
    return [event.delta for event in made]


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def test_usage_is_estimated_until_anthropic_tells() -> None:
    decoder = stream()
    feed(decoder, START)
    assert decoder.usage is not None
    assert (decoder.usage.input_tokens, decoder.usage.estimated) == (10, True)
    assert (decoder.started, decoder.done) == (False, False)
    feed(decoder, *block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": "x" * 40}))
    assert decoder.started
    assert (decoder.usage.output_tokens, decoder.output_bytes) == (11, 40)
    feed(decoder, DELTA, STOP)
    assert (decoder.usage.output_tokens, decoder.usage.estimated) == (5, False)
    assert (decoder.done, decoder.finish_reason, decoder.upstream_id) == (True, "end_turn", "m")
    assert decoder.end() == []


def test_a_stream_without_usage_says_so() -> None:
    decoder = stream()
    feed(decoder, {"type": "message_start", "message": {"id": "m"}})
    feed(decoder, {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, STOP)
    assert decoder.usage is None


def test_a_delta_without_a_reason_ends_nothing() -> None:
    decoder = stream()
    early = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 2}}
    assert feed(decoder, START, early)[1:] == []
    with pytest.raises(GatewayError, match="without saying why"):
        feed(decoder, STOP)


def test_tool_calls_are_numbered_from_zero_and_have_arguments() -> None:
    decoder = stream()
    deltas = feed(
        decoder,
        START,
        *block(0, {"type": "text", "text": "two"}, {"type": "text_delta", "text": ""}),
        *block(
            1,
            {"type": "tool_use", "id": "a", "name": "f", "input": {}},
            {"type": "input_json_delta", "partial_json": ""},
            {"type": "input_json_delta", "partial_json": '{"n"'},
            {"type": "input_json_delta", "partial_json": ": 1}"},
        ),
        *block(2, {"type": "tool_use", "id": "b", "name": "g", "input": {}}),
        *block(3, {"type": "tool_use", "id": "c", "name": "h", "input": {"k": 2}}),
    )
    calls = [call for delta in deltas for choice in delta.choices for call in choice.tool_calls]
    assert [(c.index, c.id, c.name, c.arguments) for c in calls] == [
        (0, "a", "f", ""),
        (0, "", "", '{"n"'),
        (0, "", "", ": 1}"),
        (1, "b", "g", ""),
        (1, "", "", "{}"),
        (2, "c", "h", ""),
        (2, "", "", '{"k":2}'),
    ]
    assert calls[0].kind == content_pb2.TOOL_KIND_FUNCTION


def test_the_providers_own_blocks_come_whole_and_once() -> None:
    decoder = stream()
    search = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    deltas = feed(
        decoder,
        START,
        *block(0, search, {"type": "input_json_delta", "partial_json": '{"q": 1}'}),
        *block(1, search, {"type": "input_json_delta", "partial_json": '{"q": '}),
        *block(2, {"type": "compaction"}, {"type": "compaction_delta", "content": "short"}),
    )
    assert (decoder.started, len(deltas)) == (True, 1)
    told, _ = feed(decoder, DELTA)
    assert json.loads(told.choices[0].extra_json)["provider_specific_fields"]["parts"] == [
        {**search, "input": {"q": 1}},
        {**search, "input": {"INVALID_JSON": '{"q": '}},
        {"type": "compaction", "content": "short"},
    ]


def test_citations_come_once_and_say_what_they_back() -> None:
    decoder = stream()
    cited = {"type": "web_search_result_location", "url": "https://a.example/", "title": None}
    deltas = feed(
        decoder,
        START,
        *block(0, {"type": "text", "text": "Hei "}),
        *block(
            1,
            {"type": "text", "text": "", "citations": []},
            {"type": "citations_delta", "citation": cited},
            {"type": "text_delta", "text": "ø!"},
        ),
        DELTA,
    )
    noted, beside, _ = (delta.choices[0] for delta in deltas[-3:])
    citation = noted.annotations[0].url_citation
    assert (citation.url, citation.start_index, citation.end_index) == ("https://a.example/", 4, 6)
    assert json.loads(beside.extra_json) == {"provider_specific_fields": {"citations": [cited]}}


def test_thoughts_come_with_their_proof_or_encrypted() -> None:
    decoder = stream()
    deltas = feed(
        decoder,
        START,
        *block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "hm"},
            {"type": "thinking_delta", "thinking": ""},
            {"type": "signature_delta", "signature": "proof"},
        ),
        *block(1, {"type": "redacted_thinking", "data": "enc"}),
    )
    thoughts = [delta.choices[0].thinking for delta in deltas[1:]]
    assert [(t.text, t.signature, t.redacted_data) for t in thoughts] == [
        ("hm", "", ""),
        ("", "proof", ""),
        ("", "", "enc"),
    ]


def test_a_resumed_turn_brings_its_first_blocks_along() -> None:
    decoder = stream()
    held = [
        {"type": "tool_use", "id": "a", "name": "f", "input": {"n": 1}},
        {"type": "text", "text": ""},
    ]
    start = {"type": "message_start", "message": {"id": "m", "content": held}}
    _, *deltas = feed(decoder, start)
    assert [delta.choices[0].tool_calls[0].arguments for delta in deltas] == ["", '{"n":1}']


def test_the_end_of_a_block_that_never_began_is_ignored() -> None:
    assert feed(stream(), {"type": "content_block_stop", "index": 9}) == []


def test_an_answer_ends_with_what_is_told_beside_it() -> None:
    decoder = stream()
    cut = {"stop_reason": "model_context_window_exceeded", "container": {"id": "c"}}
    deltas = feed(decoder, START, {"type": "message_delta", "delta": cut, "usage": {}})
    assert deltas[-1].choices[0].finish_reason == chat_pb2.FINISH_REASON_LENGTH
    assert json.loads(deltas[-1].extra_json) == {"anthropic": {"container": {"id": "c"}}}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("overloaded_error", error_pb2.ERROR_REASON_UPSTREAM_ERROR),
        ("rate_limit_error", error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED),
        ("brand_new_error", error_pb2.ERROR_REASON_UPSTREAM_ERROR),
    ],
)
def test_an_error_inside_a_stream_is_raised(kind: str, reason: int) -> None:
    with pytest.raises(GatewayError) as raised:
        feed(stream(), START, {"type": "error", "error": {"type": kind, "message": "x"}})
    assert (raised.value.reason, raised.value.upstream_status) == (reason, 0)


@pytest.mark.parametrize(
    "data",
    [
        b"[DONE]",
        b"[]",
        b"{}",
        b'{"type": "content_block_delta", "index": 0}',
        b'{"type": "content_block_delta", "index": 5, "delta": {"type": "thinking_delta"}}',
        b'{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": 5}}',
        b'{"type": "message_start", "message": {}}',
    ],
)
def test_what_is_not_the_protocol_is_refused(data: bytes) -> None:
    with pytest.raises(GatewayError) as raised:
        stream().feed([ServerSentEvent(b"", data)])
    assert raised.value.reason == error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL


def test_a_stream_that_ends_early_is_never_complete() -> None:
    decoder = stream()
    feed(decoder, START, *block(0, {"type": "text", "text": "half"}), DELTA)
    with pytest.raises(GatewayError) as raised:
        decoder.end()
    assert raised.value.reason == error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
