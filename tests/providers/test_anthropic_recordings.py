"""Everything that Anthropic was recorded to be asked and to answer, through the wire and back.

What an exchange should give is read from the recording by the few lines here, not by the wire.
"""

import json
from typing import Any

import jsonschema_rs
import pytest

from onegate.common.v1 import error_pb2, token_usage_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.sse import SseParser
from services.router.providers.anthropic import WIRE
from services.router.providers.base import Exchange
from tests import recordings
from tests.providers import accumulated, anthropic_dialect
from tests.providers.feature_table import FeatureTable

pytestmark = recordings.needs_recordings

FINISHES = {
    "end_turn": chat_pb2.FINISH_REASON_STOP,
    "stop_sequence": chat_pb2.FINISH_REASON_STOP,
    "max_tokens": chat_pb2.FINISH_REASON_LENGTH,
    "compaction": chat_pb2.FINISH_REASON_LENGTH,
    "tool_use": chat_pb2.FINISH_REASON_TOOL_CALLS,
    "refusal": chat_pb2.FINISH_REASON_CONTENT_FILTER,
}
SPLITS = (7, 61, 1 << 20)


def exchange(model: str = "claude-sonnet-4-5") -> Exchange:
    return Exchange(request=chat_pb2.ChatRequest(), model=model, cost=lambda tokens: 0)


def oracle(blocks: list[dict[str, Any]], reason: str) -> dict[str, Any]:
    """What a caller should have of an answer of these blocks."""
    of = {kind: [b for b in blocks if b["type"] == kind] for kind in {b["type"] for b in blocks}}
    known = {"text", "thinking", "redacted_thinking", "tool_use"}
    citations = [c for b in of.get("text", []) for c in b.get("citations") or []]
    return {
        "text": "".join(b["text"] for b in of.get("text", [])),
        "thinking": "".join(b["thinking"] for b in of.get("thinking", [])),
        "signatures": [b["signature"] for b in of.get("thinking", []) if b["signature"]],
        "redacted": [b["data"] for b in of.get("redacted_thinking", [])],
        "calls": [(b["id"], b["name"], b["input"], b"") for b in of.get("tool_use", [])],
        "opaque": [b for b in blocks if b["type"] not in known],
        "media": [],
        "annotations": [
            url if (url := c.get("url") or c.get("source", "")).startswith("http") else c
            for c in citations
        ],
        "citations": citations,
        "finish": FINISHES[reason],
        "native": reason,
    }


def expected_usage(*reports: dict[str, Any]) -> dict[str, int]:
    """What a sequence of cumulative reports adds up to."""
    told: dict[str, Any] = {}
    for report in reports:
        told.update({key: value for key, value in report.items() if value is not None})
    runs = [told, *(i for i in told.get("iterations", []) if i["type"] == "compaction")]
    cached = sum(run.get("cache_read_input_tokens", 0) for run in runs)
    written = sum(run.get("cache_creation_input_tokens", 0) for run in runs)
    hour = sum(run.get("cache_creation", {}).get("ephemeral_1h_input_tokens", 0) for run in runs)
    return {
        "input": sum(run["input_tokens"] for run in runs) + cached + written,
        "cached": cached,
        "written": written - hour,
        "written_1h": hour,
        "output": sum(run["output_tokens"] for run in runs),
        "reasoning": told.get("output_tokens_details", {}).get("thinking_tokens", 0),
        "searches": told.get("server_tool_use", {}).get("web_search_requests", 0),
    }


def usage_of(tokens: token_usage_pb2.TokenUsage | None) -> dict[str, int]:
    assert tokens is not None
    assert not tokens.estimated
    return {
        "input": tokens.input_tokens,
        "cached": tokens.cached_input_tokens,
        "written": tokens.cache_write_tokens,
        "written_1h": tokens.cache_write_1h_tokens,
        "output": tokens.output_tokens,
        "reasoning": tokens.reasoning_tokens,
        "searches": tokens.web_searches,
    }


def messages(body: str) -> list[list[dict[str, Any]]]:
    """The streams in a recorded body: some hold the streams of several turns."""
    streams: list[list[dict[str, Any]]] = []
    for line in body.splitlines():
        if line.startswith("data:"):
            data = json.loads(line[5:])
            begun = streams and any(event["type"] == "message_start" for event in streams[-1])
            if not streams or (begun and data["type"] == "message_start"):
                streams.append([])
            streams[-1].append(data)
    return streams


def _add(block: dict[str, Any], delta: dict[str, Any]) -> None:
    """One delta of a block, but for a tool's input."""
    match delta["type"]:
        case "text_delta":
            block["text"] += delta["text"]
        case "thinking_delta":
            block["thinking"] += delta["thinking"]
        case "citations_delta":
            block["citations"] = [*block.get("citations", []), delta["citation"]]
        case "input_json_delta":
            pass
        case _:
            block.update({key: delta[key] for key in delta if key != "type"})


def whole(events: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str, list[dict[str, Any]]]:
    """The blocks, the stop reason and the usage reports of a stream."""
    blocks: dict[int, dict[str, Any]] = {}
    inputs: dict[int, str] = {}
    reports: list[dict[str, Any]] = []
    reason = ""
    for event in events:
        match event["type"]:
            case "message_start":
                reports.append(event["message"]["usage"])
                for index, block in enumerate(event["message"].get("content", [])):
                    blocks[index] = dict(block)
            case "content_block_start":
                blocks[event["index"]] = dict(event["content_block"])
                inputs[event["index"]] = ""
            case "content_block_delta":
                index, delta = event["index"], event["delta"]
                inputs[index] += delta.get("partial_json", "")
                _add(blocks[index], delta)
            case "message_delta":
                reports.append(event["usage"])
                reason = event["delta"].get("stop_reason") or reason
    for index, text in inputs.items():
        if text:
            blocks[index]["input"] = accumulated.parsed(text)
    return [blocks[index] for index in sorted(blocks)], reason, reports


def replay(body: bytes, size: int) -> tuple[list[chat_pb2.ChatEvent], Any]:
    """A stream through the wire in chunks of ``size`` bytes."""
    stream, parser = WIRE.stream(exchange()), SseParser()
    events = []
    for start in range(0, len(body), size):
        events += stream.feed(parser.feed(body[start : start + size]))
    events += stream.feed(parser.end())
    return [*events, *stream.end()], stream


def check_whole(body: str) -> str:
    message = json.loads(body)
    answer = WIRE.response(exchange(), body.encode())
    faults = []
    if accumulated.of_answer(answer.event.answer) != oracle(
        message["content"], message["stop_reason"]
    ):
        faults.append("content")
    if usage_of(answer.usage) != expected_usage(message["usage"]):
        faults.append("usage")
    if (answer.upstream_id, answer.finish_reason) != (message["id"], message["stop_reason"]):
        faults.append("id or reason")
    return ", ".join(faults)


def check_stream(events: list[dict[str, Any]], size: int) -> str:
    body = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events).encode()
    blocks, reason, reports = whole(events)
    answer_id = next(e["message"]["id"] for e in events if e["type"] == "message_start")
    got, stream = replay(body, size)
    wanted = oracle(blocks, reason)
    seen = accumulated.of_events(got)
    faults = [key for key in wanted if seen[key] != wanted[key]]
    if usage_of(stream.usage) != expected_usage(*reports):
        faults.append("usage")
    if not stream.done or stream.upstream_id != answer_id:
        faults.append("end")
    return ", ".join(faults)


def is_whole(events: list[dict[str, Any]]) -> bool:
    kinds = {event["type"] for event in events}
    return kinds >= {"message_start", "message_delta", "message_stop"}


def test_recorded_answers_carry_what_anthropic_said(capsys: pytest.CaptureFixture[str]) -> None:
    table = FeatureTable("anthropic answers")
    for recorded in recordings.exchanges(api="anthropic.messages"):
        body = recorded["response_body"]
        if recorded["status"] != 200:
            error = WIRE.error(recorded["status"], recorded["response_headers"], body.encode())
            wanted = {
                400: error_pb2.ERROR_REASON_INVALID_REQUEST,
                401: error_pb2.ERROR_REASON_UPSTREAM_AUTH,
                404: error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
                429: error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
            }[recorded["status"]]
            fault = "" if error.reason == wanted else repr(error)
        elif body.lstrip().startswith("{"):
            fault = check_whole(body)
        else:
            streams = messages(body)
            for events in streams:
                if not is_whole(events):
                    table.skip("a further stream in a body, cut by whoever joined them")
            faults = [
                check_stream(events, size)
                for events in streams
                if is_whole(events)
                for size in SPLITS
            ]
            fault = "; ".join(filter(None, faults))
        table.add(recorded["id"], recorded["features"], fault)
    with capsys.disabled():
        print(f"\n{table}")
    assert table.failed == {}
    assert table.passed["all"] >= 880


def test_a_stream_that_is_cut_anywhere_is_never_taken_for_complete() -> None:
    cut = 0
    for recorded in recordings.exchanges(api="anthropic.messages")[::7]:
        body = recorded["response_body"]
        if recorded["status"] == 200 and not body.lstrip().startswith("{"):
            raw = body.encode()
            for share in (0.1, 0.5, 0.9):
                stream, parser = WIRE.stream(exchange()), SseParser()
                stream.feed(parser.feed(raw[: int(len(raw) * share)]))
                if not stream.done:
                    cut += 1
                    with pytest.raises(GatewayError) as raised:
                        stream.end()
                    assert raised.value.reason == error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
    assert cut > 60


LOWERED = {"pydantic-ai/anthropic/ab95ac67e9": "an effort that the model lacks is lowered"}


@recordings.needs_specs
def test_recorded_requests_come_out_as_they_were_made(capsys: pytest.CaptureFixture[str]) -> None:
    schemas = json.loads((recordings.SPECS / "anthropic-messages.schema.json").read_text())
    validator = jsonschema_rs.validator_for(schemas["MessageCreateParamsNonStreaming"])
    table = FeatureTable("anthropic requests")
    for recorded in recordings.exchanges(api="anthropic.messages"):
        body = recorded["request_body"]
        if recorded["request_body_encoding"] != "json":
            table.skip("no request was recorded")
            continue
        if recorded["id"] in LOWERED:
            table.skip(LOWERED[recorded["id"]])
            continue
        call = Exchange(
            request=anthropic_dialect.decode(body), model=body["model"], cost=lambda tokens: 0
        )
        sent = json.loads(WIRE.request(call).body)
        wanted, got = anthropic_dialect.normal(body), anthropic_dialect.normal(sent)
        keys = sorted(wanted.keys() | got.keys())
        fault = ", ".join(key for key in keys if wanted.get(key) != got.get(key))
        sent.pop("stream", None)
        plain = {key: value for key, value in body.items() if value is not None and key != "stream"}
        if not validator.is_valid(sent):
            if validator.is_valid(plain):
                fault += "; against the schema"
            else:
                table.skip("validation: the recorded body uses betas that the schema lacks")
        table.add(recorded["id"], recorded["features"], fault)
    with capsys.disabled():
        print(f"\n{table}")
    assert table.failed == {}
    assert table.passed["all"] >= 800
