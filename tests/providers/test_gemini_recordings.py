"""Everything that Gemini was recorded to be asked and to answer, on Google's API and on Vertex AI,
through the wire and back.

What an exchange should give is read from the recording by the few lines here, not by the wire.
"""

import base64
import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from onegate.common.v1 import error_pb2, token_usage_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.sse import SseParser
from services.router.providers.base import Exchange
from services.router.providers.gemini import WIRE
from tests import recordings
from tests.providers import accumulated, gemini_dialect
from tests.providers.feature_table import FeatureTable

pytestmark = recordings.needs_recordings

APIS = ("google.generateContent", "google.streamGenerateContent")
SPLITS = (7, 61, 1 << 20)


def recorded_exchanges() -> Iterator[dict[str, Any]]:
    for api in APIS:
        yield from recordings.exchanges(api=api)


def model_of(recorded: dict[str, Any]) -> str:
    name: str = recorded["url"].partition("/models/")[2].partition(":")[0]
    return name


def exchange(model: str) -> Exchange:
    return Exchange(request=chat_pb2.ChatRequest(), model=model, cost=lambda tokens: 0)


def chunks_of(body: str) -> list[dict[str, Any]]:
    """The pieces of a recorded stream."""
    lines = body.replace("\r", "").split("\n")
    return [json.loads(line[5:]) for line in lines if line.startswith("data:")]


def decoded(text: str) -> bytes:
    text = text.translate(str.maketrans("-_", "+/"))
    return base64.b64decode(text + "=" * (-len(text) % 4))


def oracle(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """What a caller should have of an answer that came in these pieces."""
    candidates = [candidate for chunk in chunks for candidate in chunk.get("candidates", [])]
    parts = [part for c in candidates for part in c.get("content", {}).get("parts", [])]
    calls = [part for part in parts if "functionCall" in part]
    said = [part for part in parts if "text" in part]
    media = [
        part["inlineData"]
        for part in parts
        if part.get("inlineData", {}).get("mimeType", "").startswith("image/")
    ]
    known = {"functionCall", "text", "inlineData", "thoughtSignature", "thought"}
    reasons = [c["finishReason"] for c in candidates if "finishReason" in c]
    blocked = [c["promptFeedback"]["blockReason"] for c in chunks if "promptFeedback" in c]
    native = (reasons or blocked)[-1]
    finish = {
        "STOP": chat_pb2.FINISH_REASON_TOOL_CALLS if calls else chat_pb2.FINISH_REASON_STOP,
        "MAX_TOKENS": chat_pb2.FINISH_REASON_LENGTH,
    }.get(native, chat_pb2.FINISH_REASON_CONTENT_FILTER)
    return {
        "text": "".join(part["text"] for part in said if not part.get("thought")),
        "thinking": "".join(part["text"] for part in said if part.get("thought")),
        "signatures": [
            f"gemini:{part['thoughtSignature']}"
            for part in parts
            if "thoughtSignature" in part and not part.keys() - {"text", "thought"} - known
            and "functionCall" not in part
        ],
        "redacted": [],
        "calls": [
            (
                part["functionCall"].get("id"),
                part["functionCall"]["name"],
                part["functionCall"].get("args", {}),
                decoded(part.get("thoughtSignature", "")),
            )
            for part in calls
        ],
        "opaque": [part for part in parts if part.keys() - known],
        "media": [(data["mimeType"], decoded(data["data"])) for data in media],
        "annotations": pages(candidates),
        "citations": [],
        "finish": finish,
        "native": native,
    }  # fmt: skip


def pages(candidates: list[dict[str, Any]]) -> list[str]:
    """The addresses that grounding names: once for every stretch, once if for none."""
    made = []
    for candidate in candidates:
        grounding = candidate.get("groundingMetadata", {})
        addresses = [c.get("web", {}).get("uri") for c in grounding.get("groundingChunks", [])]
        cited = [
            index
            for support in grounding.get("groundingSupports", [])
            for index in support.get("groundingChunkIndices", [])
        ]
        made += [addresses[index] for index in cited]
        made += [a for index, a in enumerate(addresses) if index not in cited]
    return [address for address in made if address]


def same(seen: dict[str, Any], wanted: dict[str, Any], answer_id: str) -> list[str]:
    """What differs; a call that Gemini gave no id has one of ours, each its own."""
    ids = [call[0] for call in seen["calls"]]
    faults = [] if len(set(ids)) == len(ids) and all(ids) else ["ids"]
    calls = [
        (None, *call[1:]) if wanted_id is None and call[0].startswith("gemini-") else call
        for call, (wanted_id, *_) in zip(seen["calls"], wanted["calls"], strict=False)
    ]
    if answer_id and any(i.startswith("gemini-") and answer_id not in i for i in ids):
        faults.append("made-up ids")
    seen = {**seen, "calls": calls + seen["calls"][len(calls) :]}
    return faults + [key for key in wanted if seen[key] != wanted[key]]


def expected_usage(chunks: list[dict[str, Any]], model: str) -> dict[str, int]:
    told = [chunk["usageMetadata"] for chunk in chunks if "usageMetadata" in chunk][-1]
    queries = {
        query
        for chunk in chunks
        for candidate in chunk.get("candidates", [])
        for query in candidate.get("groundingMetadata", {}).get("webSearchQueries", [])
        if query
    }

    def modality(name: str, kind: str) -> int:
        return sum(d.get("tokenCount", 0) for d in told.get(name, []) if d["modality"] == kind)

    thoughts = told.get("thoughtsTokenCount", 0)
    return {
        "input": told.get("promptTokenCount", 0) + told.get("toolUsePromptTokenCount", 0),
        "cached": told.get("cachedContentTokenCount", 0),
        "output": told.get("candidatesTokenCount", 0) + thoughts,
        "reasoning": thoughts,
        "audio_in": modality("promptTokensDetails", "AUDIO"),
        "image_in": modality("promptTokensDetails", "IMAGE"),
        "image_out": modality("candidatesTokensDetails", "IMAGE"),
        "total": told.get("totalTokenCount", 0),
        "searches": len(queries) if "gemini-3" in model else bool(queries),
    }


def usage_of(tokens: token_usage_pb2.TokenUsage | None) -> dict[str, int]:
    assert tokens is not None
    return {
        "input": tokens.input_tokens,
        "cached": tokens.cached_input_tokens,
        "output": tokens.output_tokens,
        "reasoning": tokens.reasoning_tokens,
        "audio_in": tokens.input_audio_tokens,
        "image_in": tokens.input_image_tokens,
        "image_out": tokens.output_image_tokens,
        "total": tokens.input_tokens + tokens.output_tokens,
        "searches": tokens.web_searches,
    }


def check_whole(body: str, model: str) -> str:
    response = json.loads(body)
    answer = WIRE.response(exchange(model), body.encode())
    wanted = oracle([response])
    seen = accumulated.of_answer(answer.event.answer)
    faults = same(seen, wanted, response.get("responseId", ""))
    faults += usage_faults(answer.usage, [response], model)
    if (answer.upstream_id, answer.finish_reason) != (
        response.get("responseId", ""),
        wanted["native"],
    ):
        faults.append("id or reason")
    return ", ".join(faults)


def usage_faults(
    tokens: token_usage_pb2.TokenUsage | None, chunks: list[dict[str, Any]], model: str
) -> list[str]:
    got, wanted = usage_of(tokens), expected_usage(chunks, model)
    return [f"usage {key}: {got[key]}, not {wanted[key]}" for key in got if got[key] != wanted[key]]


def check_stream(body: str, model: str, size: int) -> str:
    raw, chunks = body.encode(), chunks_of(body)
    stream, parser = WIRE.stream(exchange(model)), SseParser()
    events = []
    for start in range(0, len(raw), size):
        events += stream.feed(parser.feed(raw[start : start + size]))
    events += stream.feed(parser.end())
    events += stream.end()
    answer_id = chunks[0].get("responseId", "")
    faults = same(accumulated.of_events(events), oracle(chunks), answer_id)
    faults += usage_faults(stream.usage, chunks, model)
    if not stream.done or stream.upstream_id != answer_id:
        faults.append("end")
    return ", ".join(faults)


def reason_not_to_replay(recorded: dict[str, Any]) -> str:
    body = recorded["response_body"]
    if "serverContent" in body:
        return "a WebSocket session of the Live API, not generateContent"
    if "partialArgs" in body:
        return "function calls in pieces: only Vertex AI sends them, and only when asked to"
    return ""


def fault_of(recorded: dict[str, Any]) -> str:
    body, model = recorded["response_body"], model_of(recorded)
    if recorded["status"] != 200:
        error = WIRE.error(recorded["status"], recorded["response_headers"], body.encode())
        bad_key = "API_KEY_INVALID" in body
        wanted = {
            400: error_pb2.ERROR_REASON_UPSTREAM_AUTH
            if bad_key
            else error_pb2.ERROR_REASON_INVALID_REQUEST,
            404: error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
            429: error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
        }[recorded["status"]]
        return "" if error.reason == wanted else repr(error)
    if body.lstrip().startswith("{"):
        return check_whole(body, model)
    return "; ".join(filter(None, (check_stream(body, model, size) for size in SPLITS)))


@pytest.mark.parametrize("provider", ["google", "vertexai"])
def test_recorded_answers_carry_what_gemini_said(
    provider: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = FeatureTable(f"{provider} answers")
    for recorded in recorded_exchanges():
        if recorded["provider"] != provider:
            continue
        if why := reason_not_to_replay(recorded):
            table.skip(why)
        else:
            table.add(recorded["id"], recorded["features"], fault_of(recorded))
    with capsys.disabled():
        print(f"\n{table}")
    assert table.failed == {}
    assert table.passed["all"] >= {"google": 555, "vertexai": 131}[provider]


@recordings.needs_specs
@pytest.mark.parametrize("provider", ["google", "vertexai"])
def test_recorded_requests_come_out_as_they_were_made(
    provider: str, capsys: pytest.CaptureFixture[str]
) -> None:
    schemas = json.loads((recordings.SPECS / "gemini-types.schema.json").read_text())
    validator = jsonschema_rs.validator_for(schemas["Content"])
    table = FeatureTable(f"{provider} requests")
    for recorded in recorded_exchanges():
        if recorded["provider"] != provider:
            continue
        if recorded["request_body_encoding"] != "json":
            table.skip("no request was recorded")
            continue
        body = gemini_dialect.camel(recorded["request_body"])
        stream = recorded["api"] == "google.streamGenerateContent"
        call = Exchange(
            request=gemini_dialect.decode(body, stream=stream),
            model=model_of(recorded),
            cost=lambda tokens: 0,
        )
        made = WIRE.request(call)
        sent = json.loads(made.body)
        wanted, got = gemini_dialect.normal(body), gemini_dialect.normal(sent)
        keys = sorted(wanted.keys() | got.keys())
        faults = [key for key in keys if wanted.get(key) != got.get(key)]
        faults += [
            f"contents[{index}] against the schema"
            for index, content in enumerate(sent["contents"])
            if not validator.is_valid(content)
        ]
        if made.path.partition("?")[0].rpartition("/")[2] not in recorded["url"]:
            faults.append(made.path)
        table.add(recorded["id"], recorded["features"], ", ".join(faults))
    with capsys.disabled():
        print(f"\n{table}")
    assert table.failed == {}
    assert table.passed["all"] >= {"google": 549, "vertexai": 131}[provider]


def test_a_stream_that_is_cut_anywhere_is_never_taken_for_complete() -> None:
    cut = 0
    for recorded in recordings.exchanges(api="google.streamGenerateContent"):
        raw = recorded["response_body"].encode()
        if recorded["status"] != 200 or reason_not_to_replay(recorded):
            continue
        for share in (0.1, 0.5, 0.9):
            stream, parser = WIRE.stream(exchange(model_of(recorded))), SseParser()
            stream.feed(parser.feed(raw[: int(len(raw) * share)]))
            if not stream.done:
                cut += 1
                with pytest.raises(GatewayError) as raised:
                    stream.end()
                assert raised.value.reason == error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
    assert cut > 150
