"""Replays what providers really answered in the OpenAI dialect through the wire, without a socket:
split at odd places, whole and streamed, typed and native, against an oracle of its own.
"""

import contextlib
import itertools
import json
from typing import Any

import pytest

from onegate.common.v1 import error_pb2, token_usage_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.sse import SseParser
from services.router.providers import PROVIDERS
from services.router.providers.base import Exchange, Stream
from services.router.providers.openai import OpenAIWire
from tests import replay_oracle as oracle
from tests.openapi_oracle import CHAT_CHUNK, CHAT_COMPLETION, faults
from tests.providers.feature_table import FeatureTable
from tests.recordings import exchanges, needs_recordings, needs_specs

API = "openai.chat.completions"
KINDS = {
    "moonshotai": "moonshot",
    "anthropic": "compatible",
    "bedrock": "compatible",
    "crusoe": "compatible",
    "google": "compatible",
    "heroku": "compatible",
    "local": "compatible",
    "snowflake": "compatible",
}
"""Kinds of the recorded providers that have another name or no row."""

FINISHES = {
    chat_pb2.FINISH_REASON_UNSPECIFIED: None,
    chat_pb2.FINISH_REASON_STOP: "stop",
    chat_pb2.FINISH_REASON_LENGTH: "length",
    chat_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    chat_pb2.FINISH_REASON_CONTENT_FILTER: "content_filter",
    chat_pb2.FINISH_REASON_FUNCTION_CALL: "function_call",
}
SPLITS = (5, 1460, 1 << 20)
COST_NANO_USD = 1_234_567
COST_USD = 0.001234567

Recorded = dict[str, Any]


def providers() -> list[str]:
    """The recorded providers; a placeholder when the recordings are absent."""
    return sorted({e["provider"] for e in exchanges("", API)}) or ["no recordings"]


def wire_of(exchange: Recorded) -> OpenAIWire:
    provider: str = exchange["provider"]
    wire = PROVIDERS[KINDS.get(provider, provider)]
    assert isinstance(wire, OpenAIWire)
    return wire


def call(*, stream: bool, native: bool = False, stream_usage: bool = True) -> Exchange:
    request = chat_pb2.ChatRequest(stream=stream, stream_usage=stream_usage)
    return Exchange(request=request, model="m", cost=lambda tokens: COST_NANO_USD, native=native)


def blank() -> dict[str, Any]:
    return {"text": "", "thinking": "", "refusal": "", "calls": [], "finish": None}


def opened(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tool calls with arguments as JSON where they are."""
    for made in calls:
        with contextlib.suppress(ValueError):
            made["arguments"] = json.loads(made["arguments"])
    return calls


def folded_answer(answer: chat_pb2.ChatAnswer) -> dict[int, Any]:
    """The hub's answer in the oracle's form."""
    choices = {}
    for choice in answer.choices:
        made = blank()
        for part in choice.message.parts:
            made["text"] += part.text.text
            made["thinking"] += part.thinking.text
            made["refusal"] += part.refusal.text
            if part.HasField("tool_call"):
                tool = part.tool_call
                made["calls"].append(
                    {"id": tool.id, "name": tool.name, "arguments": tool.arguments}
                )
        made["finish"] = FINISHES[choice.finish_reason]
        opened(made["calls"])
        choices[choice.index] = made
    return choices


def folded_deltas(events: list[chat_pb2.ChatEvent]) -> dict[int, Any]:
    """The hub's pieces in the oracle's form."""
    choices: dict[int, Any] = {}
    tools: dict[tuple[int, int], dict[str, Any]] = {}
    for event in events:
        for piece in event.delta.choices:
            assert piece.starts == (piece.index not in choices)
            made = choices.setdefault(piece.index, blank())
            made["text"] += piece.text
            made["thinking"] += piece.thinking.text
            made["refusal"] += piece.refusal
            made["finish"] = FINISHES[piece.finish_reason] or made["finish"]
            for tool in piece.tool_calls:
                known = tools.get((piece.index, tool.index))
                if known is None:
                    known = {"id": "", "name": "", "arguments": ""}
                    tools[piece.index, tool.index] = known
                    made["calls"].append(known)
                known["id"] += tool.id
                known["name"] += tool.name
                known["arguments"] += tool.arguments
    for made in choices.values():
        opened(made["calls"])
    return choices


def folded_usage(usage: token_usage_pb2.TokenUsage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    return {
        "input": usage.input_tokens,
        "output": usage.output_tokens,
        "cached": usage.cached_input_tokens,
        "reasoning": usage.reasoning_tokens,
    }


def feed(stream: Stream, body: bytes, size: int) -> tuple[list[chat_pb2.ChatEvent], bool]:
    """What the stream makes of the body in pieces of ``size`` bytes, and whether it failed."""
    parser = SseParser()
    events: list[chat_pb2.ChatEvent] = []
    try:
        for start in range(0, len(body), size):
            events += stream.feed(parser.feed(body[start : start + size]))
        events += stream.feed(parser.end())
        events += stream.end()
    except GatewayError:
        return events, True
    return events, False


def words(choices: dict[int, Any]) -> int:
    """How many bytes all choices say, tool calls apart."""
    texts = [c[key] for c in choices.values() for key in ("text", "thinking", "refusal")]
    return sum(len(text.encode()) for text in texts)


def fault_of_answer(exchange: Recorded) -> str:
    """What is wrong with the hub's form of a whole answer; empty when nothing is."""
    wire, body = wire_of(exchange), exchange["response_body"]
    expected = oracle.expected(oracle.fold(body, stream=False), exchange["provider"])
    try:
        answer = wire.response(call(stream=False), body.encode())
    except GatewayError as error:
        # Azure answers 200 to a prompt that its filter refused.
        filtered = error.reason == error_pb2.ERROR_REASON_CONTENT_POLICY
        return "" if expected["error"] and filtered else repr(error)
    first = expected["choices"][0]["finish"]
    return (
        differs("choices", folded_answer(answer.event.answer), expected["choices"])
        or differs("usage", folded_usage(answer.usage), expected["usage"])
        or differs("finish", answer.finish_reason, first)
        or differs("id", answer.upstream_id, json.loads(body)["id"])
        or differs("size", answer.output_bytes >= words(expected["choices"]), True)
        or differs("error", expected["error"], False)
    )


def fault_of_stream(exchange: Recorded) -> str:
    """The same for a stream, at every split."""
    wire, body = wire_of(exchange), exchange["response_body"]
    expected = oracle.expected(oracle.fold(body, stream=True), exchange["provider"])
    said = {index: choice | {"finish": None} for index, choice in expected["choices"].items()}
    for size in SPLITS:
        stream = wire.stream(call(stream=True))
        events, failed = feed(stream, body.encode(), size)
        choices = folded_deltas(events)
        if failed:
            choices = {index: choice | {"finish": None} for index, choice in choices.items()}
        fault = (
            differs("failed", failed, expected["error"])
            or differs("choices", choices, said if failed else expected["choices"])
            or differs("usage", folded_usage(stream.usage), expected["usage"])
            or differs("size", stream.output_bytes >= words(expected["choices"]), True)
            or differs("started", stream.started, any(map(speaks, said.values())))
            or differs("done", stream.done, not failed)
            or differs("finish", failed or stream.finish_reason, failed or first_finish(expected))
        )
        if fault:
            return f"in pieces of {size}: {fault}"
    return ""


def fault_of_forwarded(exchange: Recorded) -> str:
    """What is wrong with a whole answer that is forwarded."""
    body = exchange["response_body"]
    answer = wire_of(exchange).response(call(stream=False, native=True), body.encode())
    forwarded, given = json.loads(answer.event.native), json.loads(body)
    cost = forwarded["usage"].pop("cost")
    return (
        differs("cost", (cost, b'"cost":0.001234567' in answer.event.native), (COST_USD, True))
        or differs("body", forwarded, given)
        or differs("usage", folded_usage(answer.usage), oracle.usage(given))
        or differs("id", answer.upstream_id, given["id"])
        or differs("finish", answer.finish_reason, given["choices"][0]["finish_reason"])
    )


def fault_of_forwarded_stream(exchange: Recorded) -> str:
    """The same for a stream, at every split, with usage and without."""
    body = exchange["response_body"]
    given = [json.loads(data) for _, data in oracle.events(body)[:-1]]
    folded = oracle.fold(body, stream=True)
    for size, asked in itertools.product(SPLITS, (True, False)):
        stream = wire_of(exchange).stream(call(stream=True, native=True, stream_usage=asked))
        events, failed = feed(stream, body.encode(), size)
        text = b"".join(event.native for event in events).decode()
        forwarded = [json.loads(data) for _, data in oracle.events(text)]
        costs = [chunk["usage"].pop("cost") for chunk in forwarded if chunk.get("usage")]
        wanted = given if asked else [chunk for chunk in given if not chunk.get("usage")]
        fault = (
            differs("failed", failed, False)
            or differs("chunks", forwarded, wanted)
            or differs("costs", set(costs) <= {COST_USD}, True)
            or differs("usage", folded_usage(stream.usage), folded["usage"])
            or differs("finish", stream.finish_reason, first_finish(folded))
            or differs("done", stream.done, True)
        )
        if fault:
            return f"in pieces of {size}, usage {asked}: {fault}"
    return ""


def differs(what: str, got: object, wanted: object) -> str:
    return "" if got == wanted else f"{what}: {str(got)[:300]} instead of {str(wanted)[:300]}"


def speaks(choice: dict[str, Any]) -> bool:
    return bool(choice["calls"]) or words({0: choice}) > 0


def first_finish(folded: dict[str, Any]) -> str:
    return str(next(iter(folded["choices"].values()))["finish"])


@needs_recordings
@pytest.mark.parametrize("provider", providers())
def test_what_a_provider_answered_is_what_the_caller_has(provider: str) -> None:
    table = FeatureTable(provider)
    for exchange in exchanges(provider, API):
        if exchange["status"] != 200:
            table.skip("a refusal; see the test of refusals")
            continue
        judge = fault_of_stream if "stream" in exchange["features"] else fault_of_answer
        table.add(exchange["id"], exchange["features"], judge(exchange))
    print(table)
    assert not table.failed
    assert table.passed


@needs_recordings
def test_what_is_forwarded_changes_only_by_its_cost() -> None:
    """OpenAI's recordings stand for the demo too, whose row is the same."""
    table = FeatureTable("openai, forwarded")
    for exchange in exchanges("openai", API):
        if exchange["status"] == 200:
            streams = "stream" in exchange["features"]
            judge = fault_of_forwarded_stream if streams else fault_of_forwarded
            table.add(exchange["id"], exchange["features"], judge(exchange))
    print(table)
    assert not table.failed
    assert table.passed


@needs_recordings
def test_every_recorded_refusal_has_a_reason() -> None:
    reasons = {
        400: error_pb2.ERROR_REASON_INVALID_REQUEST,
        401: error_pb2.ERROR_REASON_UPSTREAM_AUTH,
        404: error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
        429: error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
    }
    seen = set()
    for exchange in exchanges("", API):
        if exchange["status"] == 200:
            continue
        body = exchange["response_body"]
        error = wire_of(exchange).error(exchange["status"], {}, body.encode())
        given = json.loads(body)["error"]
        assert error.reason == reasons[exchange["status"]], exchange["id"]
        assert error.upstream_status == exchange["status"]
        assert error.param == (given.get("param") or "")
        if exchange["status"] == 400:
            assert given["message"] in error.message
        seen.add(exchange["status"])
    assert seen == reasons.keys()


@needs_recordings
@needs_specs
def test_only_answers_that_are_openais_untouched_are_forwarded() -> None:
    """``native`` rests on what the recordings say under OpenAI's own schema."""
    faulty: dict[str, set[str]] = {}
    for exchange in exchanges("", API):
        if exchange["status"] != 200 or b'"error"' in exchange["response_body"].encode():
            continue
        found = faulty.setdefault(KINDS.get(exchange["provider"], exchange["provider"]), set())
        if "stream" in exchange["features"]:
            chunks = [json.loads(d) for _, d in oracle.events(exchange["response_body"])[:-1]]
            found.update(f for chunk in chunks for f in faults(CHAT_CHUNK, chunk))
        else:
            found.update(faults(CHAT_COMPLETION, json.loads(exchange["response_body"])))
    natives = {kind for kind, wire in PROVIDERS.items() if wire.native}
    assert natives == {"openai", "demo"}
    # One cassette of Azure's is filed under OpenAI.
    assert faulty["openai"] == {'object: "" is not one of "chat.completion.chunk"'}
    named = {"azure", "groq", "mistral", "openrouter", "perplexity", "together", "compatible"}
    assert {kind for kind, found in faulty.items() if found} - {"openai"} == named
