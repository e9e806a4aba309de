"""Ollama's own wire: golden exchanges, recordings, requests, answers, errors, models."""

import json
from typing import Any

import pytest

from onegate.common.v1 import content_pb2, error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.sse import ServerSentEvent
from services.router.providers import PROVIDERS
from services.router.providers.base import Exchange, ListedModel
from services.router.providers.foreign import HARMLESS, Rule
from services.router.providers.ollama_native import FIELDS, WIRE
from services.router.providers.ollama_native_answers import OllamaStream
from tests import recordings
from tests.providers import accumulated, goldens
from tests.providers.calls import body_of, call, exchange, message, refusal_of, set_field, text
from tests.providers.feature_table import FeatureTable

UNSUPPORTED = error_pb2.ERROR_REASON_UNSUPPORTED_PARAMETER
INVALID = error_pb2.ERROR_REASON_INVALID_REQUEST
PROTOCOL = error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
FAILED = error_pb2.ERROR_REASON_UPSTREAM_ERROR
MODEL = "llama3.1"
ASSISTANT, TOOL = content_pb2.ROLE_ASSISTANT, content_pb2.ROLE_TOOL
Json = dict[str, Any]


def sent(request: chat_pb2.ChatRequest, model: str = MODEL) -> Json:
    return body_of(WIRE, request, model)


def refusal(request: chat_pb2.ChatRequest) -> GatewayError:
    return refusal_of(WIRE, request, MODEL)


def function(name: str = "f", **fields: Any) -> chat_pb2.Tool:
    return chat_pb2.Tool(function=chat_pb2.FunctionTool(name=name, **fields))


def called(**fields: Any) -> content_pb2.Part:
    return content_pb2.Part(tool_call=content_pb2.ToolCall(name="f", **fields))


def answered(*parts: content_pb2.Part, **fields: Any) -> content_pb2.Part:
    return content_pb2.Part(tool_result=content_pb2.ToolResult(parts=parts, **fields))


def stream() -> OllamaStream:
    request = chat_pb2.ChatRequest(stream=True)
    return WIRE.stream(Exchange(request=request, model="m", cost=lambda tokens: 0))


def feed(decoder: OllamaStream, *lines: Json) -> list[chat_pb2.ChatEvent]:
    return decoder.feed([ServerSentEvent(b"", json.dumps(line).encode()) for line in lines])


@pytest.mark.parametrize("golden", goldens.load("ollama-native"))
def test_a_golden_exchange_comes_out_as_written(golden: Json) -> None:
    goldens.check(WIRE, golden)


def oracle(lines: list[Json]) -> tuple[Json, tuple[int, int] | None]:
    """What a caller must have of an answer in one line or many."""
    last = lines[-1]
    counts = (last.get("prompt_eval_count"), last.get("eval_count"))
    said = {
        "text": "".join(line["message"]["content"] for line in lines),
        "finish": chat_pb2.FINISH_REASON_STOP,
        "native": last["done_reason"],
    }
    return said, None if None in counts else counts  # type: ignore[return-value]


def check(recorded: Json, size: int) -> str:
    raw = recorded["response_body"].encode()
    lines = [json.loads(line) for line in recorded["response_body"].splitlines() if line]
    wanted, counts = oracle(lines)
    if "stream" in recorded["features"]:
        ended: Any = stream()
        parser = ended.framing()
        got: list[chat_pb2.ChatEvent] = []
        for start in range(0, len(raw), size):
            got += ended.feed(parser.feed(raw[start : start + size]))
        seen = accumulated.of_events(got + ended.feed(parser.end()) + ended.end())
    else:
        ended = WIRE.response(exchange(call(), "m"), raw)
        seen = accumulated.of_answer(ended.event.answer)
    faults = [key for key in wanted if seen[key] != wanted[key]]
    usage = ended.usage
    if (usage and (usage.input_tokens, usage.output_tokens)) != counts:
        faults.append("usage")
    return ", ".join(faults)


@recordings.needs_recordings
def test_recorded_answers_carry_what_ollama_said(capsys: pytest.CaptureFixture[str]) -> None:
    table = FeatureTable("ollama native answers")
    for recorded in recordings.exchanges(api="ollama.chat"):
        faults = [check(recorded, size) for size in (1, 7, 997)]
        table.add(recorded["id"], recorded["features"], "; ".join(filter(None, faults)))
    with capsys.disabled():
        print(f"\n{table}")
    assert table.failed == {}
    assert table.passed["all"] == 6


@recordings.needs_recordings
def test_recorded_requests_come_out_as_they_were_made() -> None:
    for recorded in recordings.exchanges(api="ollama.chat"):
        body = recorded["request_body"]
        request = chat_pb2.ChatRequest(stream=body["stream"])
        for told in body["messages"]:
            if told["role"] == "tool":
                part = answered(text(told["content"]))
                request.messages.append(message(part, role=TOOL))
                continue
            role = ASSISTANT if told["role"] == "assistant" else content_pb2.ROLE_USER
            parts = [text(told["content"])]
            for each in told.get("tool_calls", ()):
                arguments = json.dumps(each["function"]["arguments"])
                made = content_pb2.ToolCall(name=each["function"]["name"], arguments=arguments)
                parts.append(content_pb2.Part(tool_call=made))
            request.messages.append(message(*parts, role=role))
        made_body = sent(request, body["model"])
        for answer in made_body["messages"]:
            answer.pop("tool_name", None)
        assert made_body == {key: value for key, value in body.items() if value} | {
            "stream": body["stream"]
        }


def test_a_recorded_stream_that_is_cut_is_never_complete() -> None:
    decoder = stream()
    half = {"model": "m", "created_at": "?", "message": {"content": "half"}, "done": False}
    feed(decoder, half)
    assert (decoder.started, decoder.done, decoder.output_bytes) == (True, False, 4)
    with pytest.raises(GatewayError) as raised:
        decoder.end()
    assert raised.value.reason == PROTOCOL


def test_calls_come_whole_and_get_ids_that_tell_them_apart() -> None:
    decoder = stream()
    one = {"function": {"name": "f", "arguments": {"n": 1}}}
    got = feed(
        decoder,
        {"created_at": "a", "message": {"tool_calls": [one, one]}, "done": False},
        {"created_at": "b", "message": {"tool_calls": [{"id": "x", **one}]}, "done": False},
        {"created_at": "c", "message": {}, "done": True, "done_reason": "stop"},
        {"created_at": "d", "message": {"content": "beyond"}, "done": False},
    )
    seen = accumulated.of_events(got)
    ids = [call_id for call_id, *_ in seen["calls"]]
    assert len(set(ids)) == 3
    assert ids[2] == "x"
    assert [rest for _, *rest in seen["calls"]] == [["f", {"n": 1}, b""]] * 3
    assert seen["finish"] == chat_pb2.FINISH_REASON_TOOL_CALLS
    assert (decoder.done, decoder.usage) == (True, None)
    assert decoder.end() == []


def test_an_answer_with_nothing_in_it_is_an_answer() -> None:
    told = {"message": {"role": "assistant", "content": ""}, "done": True}
    answer = WIRE.response(exchange(call(), "m"), json.dumps(told).encode())
    assert (answer.finish_reason, answer.output_bytes, answer.usage) == ("stop", 0, None)
    assert answer.event.answer.model == "m"


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"message": {"content": "x"}, "done": false}',
        b'{"message": {"content": "x", "images": ["*"]}, "done": true}',
        b'{"message": {"content": "x", "tool_calls": [{}]}, "done": true}',
    ],
)
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    with pytest.raises(GatewayError) as raised:
        WIRE.response(exchange(call(), MODEL), body)
    assert raised.value.reason == PROTOCOL


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b"{}", b'{"message": {"content": 5}, "done": false}']
)
def test_a_line_that_is_not_the_protocol_is_refused(data: bytes) -> None:
    with pytest.raises(GatewayError) as raised:
        stream().feed([ServerSentEvent(b"", data)])
    assert raised.value.reason == PROTOCOL


def test_an_error_inside_a_stream_is_raised() -> None:
    with pytest.raises(GatewayError) as raised:
        feed(stream(), {"error": "model runner has crashed"})
    assert (raised.value.reason, raised.value.upstream_status) == (FAILED, 0)


@pytest.mark.parametrize(
    ("status", "said", "reason"),
    [
        (400, "registry.ollama.ai/x does not support tools", INVALID),
        (
            400,
            "the input length exceeds the context length",
            error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
        ),
        (401, "unauthorized", error_pb2.ERROR_REASON_UPSTREAM_AUTH),
        (404, "model 'x' not found", error_pb2.ERROR_REASON_MODEL_NOT_FOUND),
        (429, "too fast", error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED),
        (500, "oops", FAILED),
        (503, "server busy", FAILED),
    ],
)
def test_an_error_is_known_by_its_status_and_words(status: int, said: str, reason: int) -> None:
    error = WIRE.error(status, {}, json.dumps({"error": said}).encode())
    assert (error.reason, error.upstream_status) == (reason, status)
    assert WIRE.error(502, {}, b"<html>").reason == FAILED
    assert WIRE.error(502, {}, b"[]").reason == FAILED


def test_the_wire_is_registered_and_needs_no_key() -> None:
    assert PROVIDERS["ollama-native"] is WIRE
    assert WIRE.authorize("") == []
    assert WIRE.authorize("k") == [("authorization", "Bearer k")]


def test_models_are_those_that_are_there() -> None:
    assert WIRE.models_request().path == "/api/tags"
    page = {"models": [{"name": "llama3.1:latest", "size": 1}]}
    assert WIRE.models(json.dumps(page).encode()) == [
        ListedModel("llama3.1:latest", owner="ollama")
    ]
    with pytest.raises(GatewayError):
        WIRE.models(b"{}")


def test_every_request_field_has_a_rule() -> None:
    assert FIELDS.keys() == set(chat_pb2.ChatRequest.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize("name", [name for name, rule in FIELDS.items() if rule is Rule.ACCEPTED])
def test_an_accepted_field_changes_nothing(name: str) -> None:
    request = call()
    set_field(request, name)
    assert sent(request) == sent(call())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"choices": 2}, "n"),
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"verbosity": "low"}, "verbosity"),
        ({"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
        ({"prediction": [text("x")]}, "prediction"),
        ({"web_search_options_json": b"{}"}, "web_search_options"),
        ({"audio_output": chat_pb2.AudioOutput(format="wav")}, "audio"),
        ({"output_modalities": [chat_pb2.OUTPUT_MODALITY_AUDIO]}, "modalities"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"extra_json": b'{"enable_thinking": true}'}, "enable_thinking"),
        ({"tools": [chat_pb2.Tool(custom=chat_pb2.CustomTool(name="free"))]}, "tools[0]"),
        ({"tools": [function()], "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"thinking": chat_pb2.Thinking(budget_tokens=9)}, "thinking.budget_tokens"),
        ({"thinking": chat_pb2.Thinking(include_thoughts=False)}, "thinking.include_thoughts"),
        (
            {"tool_choice": chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_REQUIRED)},
            "tool_choice",
        ),
        (
            {
                "tool_choice": chat_pb2.ToolChoice(
                    mode=chat_pb2.TOOL_CHOICE_MODE_ALLOWED, required=True
                )
            },
            "tool_choice",
        ),
    ],
)
def test_what_ollama_lacks_is_refused_by_its_openai_name(fields: Json, param: str) -> None:
    error = refusal(call(**fields))
    assert (error.reason, error.param) == (UNSUPPORTED, param)
    assert f"`{param}`" in error.message


KNOWN = {"presence_penalty", "frequency_penalty", "min_p"}


@pytest.mark.parametrize("name", sorted(set(HARMLESS) - KNOWN))
def test_a_value_that_asks_for_what_happens_anyway_is_accepted(name: str) -> None:
    assert sent(call(**{name: HARMLESS[name]})) == sent(call())
    assert sent(call(output_modalities=[chat_pb2.OUTPUT_MODALITY_TEXT])) == sent(call())
    assert sent(call(service_tier="default")) == sent(call())
    assert sent(call(parallel_tool_calls=False)) == sent(call())


@pytest.mark.parametrize(
    ("message_", "reason", "param"),
    [
        (content_pb2.Message(), INVALID, "messages[0].role"),
        (message(content_pb2.Part()), UNSUPPORTED, "messages[0].content[0]"),
        (
            message(content_pb2.Part(audio=content_pb2.AudioPart())),
            UNSUPPORTED,
            "messages[0].content[0]",
        ),
        (
            message(content_pb2.Part(image=content_pb2.ImagePart(detail="low"))),
            UNSUPPORTED,
            "messages[0].content[0]",
        ),
        (message(text("4"), role=TOOL), INVALID, "messages[0].tool_call_id"),
        (
            message(answered(content_pb2.Part(image=content_pb2.ImagePart())), role=TOOL),
            UNSUPPORTED,
            "messages[0].content[0]",
        ),
        (
            message(called(kind=content_pb2.TOOL_KIND_CUSTOM), role=ASSISTANT),
            UNSUPPORTED,
            "messages[0].content[0]",
        ),
        (
            message(
                content_pb2.Part(text=content_pb2.TextPart(text="x"), extra_json=b'{"mood": 1}')
            ),
            UNSUPPORTED,
            "messages[0].content[0].mood",
        ),
    ],
)
def test_a_message_that_ollama_cannot_be_told_is_refused(
    message_: content_pb2.Message, reason: int, param: str
) -> None:
    error = refusal(call(message_))
    assert (error.reason, error.param) == (reason, param)


def test_names_and_unknown_fields_of_messages_are_refused() -> None:
    named = message(text("hi"))
    named.name = "Kim"
    assert refusal(call(named)).param == "messages[0].name"
    extended = message(text("hi"))
    extended.extra_json = b'{"provider_specific_fields": {"parts": [{"type": "x"}]}}'
    assert refusal(call(extended)).param == "messages[0]"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"extra_json": b"{"}, "extra"),
        ({"extra_json": b'{"options": 1}'}, "options"),
        ({"tools": [function(parameters_schema=b"1")]}, "tools[0].function.parameters"),
    ],
)
def test_a_malformed_value_is_refused_where_it_stands(fields: Json, param: str) -> None:
    error = refusal(call(**fields))
    assert (error.reason, error.param) == (INVALID, param)


def test_what_was_said_before_keeps_its_form() -> None:
    refused = content_pb2.Part(refusal=content_pb2.RefusalPart(text="no"))
    cited = content_pb2.Part(text=content_pb2.TextPart(text="x"), extra_json=b'{"citations": []}')
    proven = content_pb2.Part(
        thinking=content_pb2.ThinkingPart(text="a", signature="s"), extra_json=b'{"format": "x"}'
    )
    cut = called(arguments='{"n": ')
    named = answered(text("4"), text("5"), name="g")
    said = sent(
        call(
            message(refused, cited, proven, role=ASSISTANT),
            message(cut, role=ASSISTANT),
            message(named, role=TOOL),
            message(answered(tool_call_id="z"), role=TOOL),
        )
    )["messages"]
    assert said == [
        {"role": "assistant", "content": "no\nx"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "f", "arguments": {"INVALID_JSON": '{"n": '}}}],
        },
        {"role": "tool", "content": "4\n5", "tool_name": "g"},
        {"role": "tool", "content": "", "tool_call_id": "z"},
    ]


@pytest.mark.parametrize(
    ("choice", "offered"),
    [
        ({}, ["a", "b"]),
        ({"mode": chat_pb2.TOOL_CHOICE_MODE_AUTO}, ["a", "b"]),
        ({"mode": chat_pb2.TOOL_CHOICE_MODE_NONE}, []),
        ({"mode": chat_pb2.TOOL_CHOICE_MODE_ALLOWED, "names": ["b"]}, ["b"]),
    ],
)
def test_the_tools_that_may_be_called_are_offered(choice: Json, offered: list[str]) -> None:
    rule = chat_pb2.ToolChoice(**choice)
    body = sent(call(tools=[function("a"), function("b")], tool_choice=rule))
    assert [tool["function"]["name"] for tool in body.get("tools", ())] == offered


@pytest.mark.parametrize(
    ("model", "asked", "think"),
    [
        (MODEL, {"effort": chat_pb2.THINKING_EFFORT_NONE}, False),
        (MODEL, {"enabled": False}, False),
        (MODEL, {"enabled": True}, True),
        (MODEL, {"effort": chat_pb2.THINKING_EFFORT_HIGH}, True),
        ("gpt-oss:20b", {"effort": chat_pb2.THINKING_EFFORT_MAX}, "high"),
        (MODEL, {"include_thoughts": True}, None),
    ],
)
def test_thinking_is_switched_or_graded(model: str, asked: Json, think: bool | str | None) -> None:
    assert sent(call(thinking=chat_pb2.Thinking(**asked)), model).get("think") == think


def test_json_without_a_schema_is_a_word_and_logprobs_need_no_alternatives() -> None:
    wanted = chat_pb2.ResponseFormat(kind=chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT)
    body = sent(call(response_format=wanted, logprobs=True))
    assert (body["format"], body["logprobs"]) == ("json", True)
    assert "top_logprobs" not in body
