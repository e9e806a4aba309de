"""Cohere's streams: every event, and what is not its protocol."""

import json
from typing import Any

import pytest

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.sse import ServerSentEvent
from services.router.providers.base import Exchange
from services.router.providers.cohere import WIRE
from services.router.providers.cohere_stream import CohereStream
from tests.providers import accumulated

START: dict[str, Any] = {"type": "message-start", "id": "m", "delta": {"message": {}}}
END: dict[str, Any] = {
    "type": "message-end",
    "delta": {
        "finish_reason": "COMPLETE",
        "usage": {"billed_units": {"input_tokens": 1, "output_tokens": 2}},
    },
}


def stream() -> CohereStream:
    request = chat_pb2.ChatRequest(stream=True)
    return WIRE.stream(Exchange(request=request, model="m", cost=lambda tokens: 0))


def feed(decoder: CohereStream, *events: dict[str, Any]) -> list[chat_pb2.ChatEvent]:
    return decoder.feed([ServerSentEvent(b"", json.dumps(event).encode()) for event in events])


def told(kind: str, index: int = 0, **message: Any) -> dict[str, Any]:
    return {"type": kind, "index": index, "delta": {"message": message}}


def start(index: int, name: str, arguments: str | None = "") -> dict[str, Any]:
    function = {"name": name} | ({} if arguments is None else {"arguments": arguments})
    return told("tool-call-start", index, tool_calls={"id": f"id-{name}", "function": function})


def more(index: int, arguments: str) -> dict[str, Any]:
    return told("tool-call-delta", index, tool_calls={"function": {"arguments": arguments}})


def end(index: int) -> dict[str, Any]:
    return {"type": "tool-call-end", "index": index}


def test_an_answer_is_done_with_its_reason_and_usage() -> None:
    decoder = stream()
    feed(decoder, START, told("content-delta", content={"text": "hei"}))
    assert (decoder.started, decoder.done, decoder.upstream_id) == (True, False, "m")
    feed(decoder, END, told("content-delta", content={"text": "beyond"}))
    assert (decoder.done, decoder.finish_reason, decoder.output_bytes) == (True, "COMPLETE", 3)
    assert decoder.usage is not None
    assert decoder.usage.output_tokens == 2
    assert decoder.end() == []
    assert decoder.feed([ServerSentEvent(b"", b"[DONE]")]) == []


def test_a_stream_that_ends_early_is_never_complete() -> None:
    decoder = stream()
    feed(decoder, START, told("content-delta", content={"text": "half"}))
    assert decoder.feed([ServerSentEvent(b"", b"[DONE]")]) == []
    with pytest.raises(GatewayError) as raised:
        decoder.end()
    assert raised.value.reason == error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL


def test_calls_follow_their_plan_and_always_have_arguments() -> None:
    decoder = stream()
    got = feed(
        decoder,
        START,
        told("tool-plan-delta", tool_plan="I "),
        told("tool-plan-delta", tool_plan=""),
        told("tool-plan-delta", tool_plan="look."),
        start(0, "a"),
        more(0, '{"n"'),
        more(0, ": 1}"),
        end(0),
        start(1, "b", None),
        end(1),
        start(2, "c"),
        more(2, "nu"),
        more(2, "ll"),
        end(2),
        start(3, "d", '{"x": 2}'),
        end(3),
        END,
    )
    seen = accumulated.of_events(got)
    assert seen["thinking"] == "I look."
    assert [(name, arguments) for _, name, arguments, _ in seen["calls"]] == [
        ("a", {"n": 1}),
        ("b", {}),
        ("c", {}),
        ("d", {"x": 2}),
    ]


def test_sources_are_told_once_at_the_end() -> None:
    decoder = stream()
    cited = {"start": 0, "end": 3, "sources": []}
    got = feed(
        decoder,
        START,
        told("content-start", content={"type": "text", "text": "hei"}),
        told("citation-start", citations=cited),
        {"type": "citation-end", "index": 0},
        END,
    )
    assert [len(event.delta.choices[0].annotations) for event in got] == [0, 0, 1, 0]
    assert accumulated.of_events(got)["annotations"] == [cited]


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("ERROR", error_pb2.ERROR_REASON_UPSTREAM_ERROR),
        ("TIMEOUT", error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT),
    ],
)
def test_an_answer_that_failed_is_an_error_and_keeps_its_usage(finish: str, reason: int) -> None:
    decoder = stream()
    failed = {"type": "message-end", "delta": {**END["delta"], "finish_reason": finish}}
    with pytest.raises(GatewayError) as raised:
        feed(decoder, START, failed)
    assert raised.value.reason == reason
    assert decoder.usage is not None
    assert not decoder.done


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"type": "content-delta"}',
        b'{"type": "content-delta", "delta": {"message": {"content": {"text": 5}}}}',
        json.dumps(more(3, "x")).encode(),
        b'{"type": "message-end", "delta": {}}',
    ],
)
def test_what_is_not_the_protocol_is_refused(data: bytes) -> None:
    with pytest.raises(GatewayError) as raised:
        stream().feed([ServerSentEvent(b"", data)])
    assert raised.value.reason == error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL


def test_an_empty_piece_says_nothing() -> None:
    assert feed(stream(), told("content-delta", content={"text": ""}), {"type": "new"}) == []
