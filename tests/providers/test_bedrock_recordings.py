"""Replays what Bedrock really answered, and says again what its clients really asked."""

import base64
import json
from typing import Any
from urllib.parse import unquote

import pytest

from onegate.common.v1 import error_pb2, token_usage_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers.base import Exchange
from services.router.providers.bedrock import WIRE
from services.router.providers.bedrock_stream import BedrockStream
from tests import recordings
from tests.providers import accumulated, aws_frames, bedrock_dialect, service_model
from tests.providers.feature_table import FeatureTable

pytestmark = recordings.needs_recordings

WHOLE, STREAMED = "bedrock.converse", "bedrock.converseStream"
SPLITS = (1, 7, 997, 1 << 20)
Json = dict[str, Any]


def exchange(model: str = "m", *, stream: bool = True) -> Exchange:
    request = chat_pb2.ChatRequest(stream=stream)
    return Exchange(request=request, model=model, cost=lambda tokens: 0)


def raw_stream(recorded: Json) -> bytes:
    """The body; the fixtures that are lines of JSON are put into frames."""
    body = recorded["response_body"]
    if recorded["response_body_encoding"] == "base64":
        return base64.b64decode(body)
    lines = [json.loads(line) for line in body.splitlines() if line]
    return b"".join(aws_frames.event(kind, told) for line in lines for kind, told in line.items())


def replay(raw: bytes, size: int) -> tuple[list[chat_pb2.ChatEvent], BedrockStream]:
    stream = WIRE.stream(exchange())
    parser = stream.framing()
    got: list[chat_pb2.ChatEvent] = []
    for start in range(0, len(raw), size):
        got += stream.feed(parser.feed(raw[start : start + size]))
    if not stream.done:
        got += stream.feed(parser.end())
        got += stream.end()
    return got, stream


def figures(usage: token_usage_pb2.TokenUsage | None) -> tuple[int, ...] | None:
    if usage is None:
        return None
    written = usage.cache_write_tokens + usage.cache_write_1h_tokens
    return usage.input_tokens, usage.cached_input_tokens, written, usage.output_tokens


def reported(told: Json) -> tuple[int, ...] | None:
    if not told:
        return None
    cached = told.get("cacheReadInputTokens", 0)
    written = told.get("cacheWriteInputTokens", 0)
    return told["inputTokens"] + cached + written, cached, written, told["outputTokens"]


def compared(wanted: Json, seen: Json) -> list[str]:
    return [key for key in wanted if seen[key] != wanted[key]]


def check_whole(recorded: Json) -> str:
    told = json.loads(recorded["response_body"])
    answer = WIRE.response(exchange(stream=False), recorded["response_body"].encode())
    blocks = told["output"]["message"]["content"]
    wanted = bedrock_dialect.oracle(blocks, told["stopReason"])
    faults = compared(wanted, accumulated.of_answer(answer.event.answer))
    if figures(answer.usage) != reported(told.get("usage") or {}):
        faults.append("usage")
    return ", ".join(faults)


def check_stream(recorded: Json, size: int) -> str:
    raw = raw_stream(recorded)
    blocks, last = bedrock_dialect.folded(bedrock_dialect.plain_events(raw))
    got, stream = replay(raw, size)
    wanted = bedrock_dialect.oracle(blocks, last["stopReason"])
    faults = compared(wanted, accumulated.of_events(got))
    if figures(stream.usage) != reported(last.get("usage") or {}):
        faults.append("usage")
    if not stream.done or stream.finish_reason != last["stopReason"]:
        faults.append("end")
    return ", ".join(faults)


def check_error(recorded: Json) -> str:
    body = recorded["response_body"]
    error = WIRE.error(recorded["status"], recorded["response_headers"], body.encode())
    wanted = error_pb2.ERROR_REASON_INVALID_REQUEST
    if "model identifier" in body:
        wanted = error_pb2.ERROR_REASON_MODEL_NOT_FOUND
    said = json.loads(body)["message"]
    return "" if error.reason == wanted and said[:40] in error.message else repr(error)


@pytest.mark.parametrize(("api", "least"), [(WHOLE, 257), (STREAMED, 28)])
def test_recorded_answers_carry_what_bedrock_said(
    api: str, least: int, capsys: pytest.CaptureFixture[str]
) -> None:
    table = FeatureTable(f"{api} answers")
    for recorded in recordings.exchanges(api=api):
        if recorded["status"] != 200:
            fault = check_error(recorded)
        elif api == WHOLE:
            fault = check_whole(recorded)
        else:
            faults = [check_stream(recorded, size) for size in SPLITS]
            fault = "; ".join(filter(None, faults))
        table.add(recorded["id"], recorded["features"], fault)
    with capsys.disabled():
        print(f"\n{table}")
    assert table.failed == {}
    assert table.passed["all"] >= least


def test_a_stream_that_is_cut_anywhere_is_never_taken_for_complete() -> None:
    cut = 0
    for recorded in recordings.exchanges(api=STREAMED):
        if recorded["status"] != 200:
            continue
        raw = raw_stream(recorded)
        for end in range(len(raw) - 1, 0, -max(1, len(raw) // 50)):
            stream = WIRE.stream(exchange())
            parser = stream.framing()
            stream.feed(parser.feed(raw[:end]))
            if stream.finish_reason:
                continue  # what is cut off is the usage at most
            cut += 1
            with pytest.raises(GatewayError) as raised:
                stream.feed(parser.end()) or stream.end()
            assert raised.value.reason == error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
    assert cut > 500


@recordings.needs_specs
def test_recorded_requests_come_out_as_they_were_made(capsys: pytest.CaptureFixture[str]) -> None:
    shapes = service_model.bedrock_runtime()
    table = FeatureTable("bedrock requests")
    for api, shape in ((WHOLE, "ConverseRequest"), (STREAMED, "ConverseStreamRequest")):
        for recorded in recordings.exchanges(api=api):
            body = recorded["request_body"]
            if recorded["request_body_encoding"] == "none":
                table.skip("no request was recorded")
                continue
            if recorded["request_body_encoding"] != "json":
                table.skip("the recorded request is no JSON")
                continue
            request = bedrock_dialect.decode(body, stream=api == STREAMED)
            model = unquote(recorded["model"])
            call = Exchange(request=request, model=model, cost=lambda tokens: 0)
            try:
                made = WIRE.request(call)
            except GatewayError as refused:
                table.add(recorded["id"], recorded["features"], repr(refused))
                continue
            sent = json.loads(made.body)
            wanted, got = bedrock_dialect.normal(body), bedrock_dialect.normal(sent)
            keys = sorted(wanted.keys() | got.keys())
            faults = [key for key in keys if wanted.get(key) != got.get(key)]
            if made.path != "/" + recorded["url"].split("/", 3)[3]:
                faults.append(made.path)
            faults += service_model.faults(shapes, shape, sent)
            table.add(recorded["id"], recorded["features"], ", ".join(faults))
    with capsys.disabled():
        print(f"\n{table}")
    assert table.failed == {}
    assert table.passed["all"] >= 250
