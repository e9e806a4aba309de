"""Bedrock's streams: every event, and what is not its protocol."""

import base64
import json
from typing import Any

import pytest

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.sse import ServerSentEvent
from services.router.providers.base import Exchange
from services.router.providers.bedrock import WIRE
from services.router.providers.bedrock_stream import BedrockStream
from tests.providers import accumulated, aws_frames

STOP = ("messageStop", {"stopReason": "end_turn"})
USAGE = ("metadata", {"usage": {"inputTokens": 1, "outputTokens": 2}})
Told = tuple[str, dict[str, Any]]


def stream() -> BedrockStream:
    request = chat_pb2.ChatRequest(stream=True)
    return WIRE.stream(Exchange(request=request, model="m", cost=lambda tokens: 0))


def feed(decoder: BedrockStream, *events: Told) -> list[chat_pb2.ChatEvent]:
    return decoder.feed(
        [ServerSentEvent(kind.encode(), json.dumps(told).encode()) for kind, told in events]
    )


def delta(index: int, **gained: Any) -> Told:
    return ("contentBlockDelta", {"contentBlockIndex": index, "delta": gained})


def start(index: int, **told: Any) -> Told:
    return ("contentBlockStart", {"contentBlockIndex": index, "start": told})


def stop(index: int) -> Told:
    return ("contentBlockStop", {"contentBlockIndex": index})


def test_an_answer_is_done_when_reason_and_usage_have_come() -> None:
    decoder = stream()
    feed(decoder, ("messageStart", {"role": "assistant"}), delta(0, text="hei"))
    assert (decoder.started, decoder.done, decoder.output_bytes) == (True, False, 3)
    feed(decoder, stop(0), STOP)
    assert (decoder.finish_reason, decoder.done) == ("end_turn", False)
    feed(decoder, USAGE, delta(1, text="beyond"))
    assert decoder.done
    assert decoder.output_bytes == 3
    assert decoder.usage is not None
    assert decoder.usage.output_tokens == 2


def test_the_usage_may_come_first_or_never() -> None:
    decoder = stream()
    done = [bool(feed(decoder, told)) and decoder.done for told in (USAGE, STOP)]
    assert done == [False, True]
    without = stream()
    feed(without, STOP, ("metadata", {"metrics": {}}))
    assert not without.done
    assert without.end() == []
    assert (without.done, without.usage) == (True, None)


def test_a_stream_that_ends_early_is_never_complete() -> None:
    decoder = stream()
    feed(decoder, delta(0, text="half"), stop(0), USAGE)
    with pytest.raises(GatewayError) as raised:
        decoder.end()
    assert raised.value.reason == error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL


def test_tool_calls_are_numbered_from_zero_and_have_arguments() -> None:
    decoder = stream()
    got = feed(
        decoder,
        delta(0, text="two"),
        start(1, toolUse={"toolUseId": "a", "name": "f"}),
        delta(1, toolUse={"input": ""}),
        delta(1, toolUse={"input": '{"n"'}),
        delta(1, toolUse={"input": ": 1}"}),
        stop(1),
        start(2, toolUse={"toolUseId": "b", "name": "g"}),
        STOP,
    )
    seen = accumulated.of_events(got)
    assert seen["calls"] == [("a", "f", {"n": 1}, b""), ("b", "g", {}, b"")]
    assert decoder.output_bytes == len('twof{"n": 1}g{}')


def test_thoughts_come_with_their_proof_or_encrypted_and_whole() -> None:
    decoder = stream()
    hidden = [base64.b64encode(part).decode() for part in (b"En", b"c")]
    got = feed(
        decoder,
        delta(0, reasoningContent={"text": "hm"}),
        delta(0, reasoningContent={"text": ""}),
        delta(0, reasoningContent={"signature": "proof"}),
        stop(0),
        delta(1, reasoningContent={"redactedContent": hidden[0]}),
        delta(1, reasoningContent={"redactedContent": hidden[1]}),
        stop(1),
        delta(2, reasoningContent={"redactedContent": "/w=="}),
        STOP,
    )
    seen = accumulated.of_events(got)
    assert (seen["thinking"], seen["signatures"]) == ("hm", ["proof"])
    assert seen["redacted"] == ["Enc", "bedrock:/w=="]


def test_a_picture_comes_whole() -> None:
    decoder = stream()
    got = feed(
        decoder,
        start(0, image={"format": "png"}),
        delta(0, image={"source": {"bytes": base64.b64encode(b"im").decode()}}),
        delta(0, image={"source": {"bytes": base64.b64encode(b"g").decode()}}),
        delta(0, image={"error": {"message": "?"}}),
        stop(0),
        start(1, image={"format": "png"}),
        stop(1),
    )
    assert accumulated.of_events(got)["media"] == [("image/png", b"img")]
    assert decoder.started


def test_what_bedrock_ran_itself_is_told_once_at_the_end() -> None:
    decoder = stream()
    server = {"toolUseId": "t", "name": "run", "type": "server_tool_use"}
    got = feed(
        decoder,
        start(0, toolUse=server),
        delta(0, toolUse={"input": '{"code": '}),
        stop(0),
        start(1, toolUse=server),
        stop(1),
        start(2, toolResult={"toolUseId": "t"}),
        delta(2, toolResult=[{"text": "4"}]),
        stop(2),
    )
    assert got == []
    assert decoder.started
    assert accumulated.of_events(feed(decoder, STOP))["opaque"] == [
        {"toolUse": {**server, "input": '{"code": '}},
        {"toolUse": {**server, "input": {}}},
        {"toolResult": {"toolUseId": "t", "content": [{"text": "4"}]}},
    ]


def test_sources_are_told_once_at_the_end_where_their_text_stands() -> None:
    decoder = stream()
    page = {"location": {"web": {"url": "https://a.example/", "domain": "a.example"}}}
    feed(decoder, delta(0, text="Hei "), stop(0), delta(1, text="ø!"), delta(1, citation=page))
    got = feed(decoder, delta(1, citation={"title": "b"}), STOP)
    noted = got[0].delta.choices[0].annotations
    citation = noted[0].url_citation
    assert (citation.title, citation.start_index, citation.end_index) == ("a.example", 4, 6)
    assert json.loads(noted[1].opaque_json) == {"title": "b"}


def test_what_is_told_beside_the_answer_is_passed_on() -> None:
    decoder = stream()
    last = {"stopReason": "brand_new", "additionalModelResponseFields": {"stop_sequence": "x"}}
    got = feed(decoder, ("messageStop", last))
    assert json.loads(got[0].delta.extra_json) == {
        "bedrock": {"additionalModelResponseFields": {"stop_sequence": "x"}}
    }
    assert got[0].delta.choices[0].finish_reason == chat_pb2.FINISH_REASON_STOP
    traced = {**USAGE[1], "trace": {"promptRouter": {"invokedModelId": "haiku"}}}
    (event,) = feed(decoder, ("metadata", traced))
    assert event.delta.model == "haiku"


def test_unknown_events_and_deltas_and_strange_ends_are_ignored() -> None:
    decoder = stream()
    assert feed(decoder, ("brandNew", {}), stop(9), delta(0, brandNew={}), delta(0, text="")) == []
    assert not decoder.started


@pytest.mark.parametrize(
    ("framed", "reason"),
    [
        (
            aws_frames.exception("throttlingException", {"message": "slow"}),
            error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
        ),
        (
            aws_frames.exception("modelStreamErrorException", {"originalMessage": "x"}),
            error_pb2.ERROR_REASON_UPSTREAM_ERROR,
        ),
        (
            aws_frames.exception("validationException", {"message": "Input is too long"}),
            error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
        ),
        (aws_frames.error("InternalFailure", "x"), error_pb2.ERROR_REASON_UPSTREAM_ERROR),
    ],
)
def test_an_error_inside_a_stream_is_raised(framed: bytes, reason: int) -> None:
    decoder = stream()
    parser = decoder.framing()
    with pytest.raises(GatewayError) as raised:
        decoder.feed(parser.feed(framed))
    assert (raised.value.reason, raised.value.upstream_status) == (reason, 0)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"messageStart", b"[DONE]"),
        (b"contentBlockDelta", b"[]"),
        (b"contentBlockDelta", b"{}"),
        (b"contentBlockDelta", b'{"contentBlockIndex": 0, "delta": {"text": 5}}'),
        (b"contentBlockStart", b'{"contentBlockIndex": 0, "start": {"toolUse": {}}}'),
        (b"messageStop", b"{}"),
        (
            b"contentBlockDelta",
            b'{"contentBlockIndex": 0, "delta": {"reasoningContent": {"redactedContent": "*"}}}',
        ),
    ],
)
def test_what_is_not_the_protocol_is_refused(kind: bytes, data: bytes) -> None:
    with pytest.raises(GatewayError) as raised:
        stream().feed([ServerSentEvent(kind, data)])
    assert raised.value.reason == error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
