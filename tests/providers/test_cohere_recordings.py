"""Replays what Cohere really answered, and says again what its clients really asked."""

import json
from typing import Any

import pytest

from onegate.common.v1 import error_pb2, token_usage_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers.base import Exchange
from services.router.providers.cohere import WIRE
from services.router.providers.cohere_stream import CohereStream
from tests import recordings
from tests.providers import accumulated, cohere_dialect
from tests.providers.feature_table import FeatureTable

pytestmark = recordings.needs_recordings

SPLITS = (1, 7, 997, 1 << 20)
Json = dict[str, Any]


def exchange() -> Exchange:
    request = chat_pb2.ChatRequest(stream=True)
    return Exchange(request=request, model="m", cost=lambda tokens: 0)


def inapplicable(recorded: Json) -> str:
    if "writer.com" in recorded["url"]:
        return "Writer's API, which speaks OpenAI's dialect"
    if "/v1/" in recorded["url"] and recorded["status"] == 200:
        return "version 1 of the API, which the wire does not speak"
    return ""


def events_of(body: str) -> list[Json]:
    lines = [line[5:].strip() for line in body.splitlines() if line.startswith("data:")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def replay(body: str, size: int) -> tuple[list[chat_pb2.ChatEvent], CohereStream]:
    stream = WIRE.stream(exchange())
    parser = stream.framing()
    raw = body.encode()
    got: list[chat_pb2.ChatEvent] = []
    for start in range(0, len(raw), size):
        got += stream.feed(parser.feed(raw[start : start + size]))
    got += stream.feed(parser.end())
    return got + stream.end(), stream


def figures(usage: token_usage_pb2.TokenUsage | None) -> tuple[int, int] | None:
    return None if usage is None else (usage.input_tokens, usage.output_tokens)


def fault_of(told: Json, seen: Json, usage: token_usage_pb2.TokenUsage | None) -> str:
    wanted = cohere_dialect.oracle(told["message"], told["finish_reason"])
    faults = [key for key in wanted if seen[key] != wanted[key]]
    billed = told["usage"]["billed_units"]
    if figures(usage) != (billed["input_tokens"], billed["output_tokens"]):
        faults.append("usage")
    return ", ".join(faults)


def check(recorded: Json) -> str:
    body = recorded["response_body"]
    if recorded["status"] != 200:
        error = WIRE.error(recorded["status"], recorded["response_headers"], body.encode())
        return "" if error.reason == error_pb2.ERROR_REASON_MODEL_NOT_FOUND else repr(error)
    if body.lstrip().startswith("{"):
        answer = WIRE.response(exchange(), body.encode())
        seen = accumulated.of_answer(answer.event.answer)
        return fault_of(json.loads(body), seen, answer.usage)
    told = cohere_dialect.folded(events_of(body))
    faults = []
    for size in SPLITS:
        got, stream = replay(body, size)
        faults.append(fault_of(told, accumulated.of_events(got), stream.usage))
    return "; ".join(filter(None, faults))


def test_recorded_answers_carry_what_cohere_said(capsys: pytest.CaptureFixture[str]) -> None:
    table = FeatureTable("cohere answers")
    for recorded in recordings.exchanges(api="cohere.chat"):
        if why := inapplicable(recorded):
            table.skip(why)
        else:
            table.add(recorded["id"], recorded["features"], check(recorded))
    with capsys.disabled():
        print(f"\n{table}")
    assert table.failed == {}
    assert table.passed["all"] >= 43


def test_a_stream_that_is_cut_anywhere_is_never_taken_for_complete() -> None:
    cut = 0
    for recorded in recordings.exchanges(provider="cohere", api="cohere.chat"):
        raw = recorded["response_body"].encode()
        if inapplicable(recorded) or recorded["status"] != 200 or raw.lstrip().startswith(b"{"):
            continue
        for end in range(0, raw.index(b"message-end"), max(1, len(raw) // 30)):
            stream = WIRE.stream(exchange())
            parser = stream.framing()
            stream.feed(parser.feed(raw[:end]))
            cut += 1
            with pytest.raises(GatewayError) as raised:
                stream.end()
            assert raised.value.reason == error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
    assert cut > 300


def test_recorded_requests_come_out_as_they_were_made(capsys: pytest.CaptureFixture[str]) -> None:
    table = FeatureTable("cohere requests")
    for recorded in recordings.exchanges(api="cohere.chat"):
        body = recorded["request_body"]
        if why := inapplicable(recorded):
            table.skip(why)
            continue
        if recorded["request_body_encoding"] != "json" or "message" in body:
            table.skip("no request of version 2 was recorded")
            continue
        call = Exchange(
            request=cohere_dialect.decode(body), model=body["model"], cost=lambda tokens: 0
        )
        sent = json.loads(WIRE.request(call).body)
        wanted, got = cohere_dialect.normal(body), cohere_dialect.normal(sent)
        keys = sorted(wanted.keys() | got.keys())
        fault = ", ".join(key for key in keys if wanted.get(key) != got.get(key))
        table.add(recorded["id"], recorded["features"], fault)
    with capsys.disabled():
        print(f"\n{table}")
    assert table.failed == {}
    assert table.passed["all"] >= 31
