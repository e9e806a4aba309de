"""Text Generation Inference's own wire: golden exchanges, requests, answers, errors, models."""

import json
from typing import Any

import pytest

from onegate.common.v1 import content_pb2, error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.settings import NEED_BASE_URL
from runtime.sse import ServerSentEvent
from services.router.providers import PROVIDERS
from services.router.providers.base import ListedModel
from services.router.providers.foreign import Rule
from services.router.providers.tgi_native import FIELDS, WIRE, TgiStream
from tests.providers import goldens
from tests.providers.calls import body_of, call, exchange, message, refusal_of, set_field, text

UNSUPPORTED = error_pb2.ERROR_REASON_UNSUPPORTED_PARAMETER
INVALID = error_pb2.ERROR_REASON_INVALID_REQUEST
PROTOCOL = error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
FAILED = error_pb2.ERROR_REASON_UPSTREAM_ERROR
LIMITED = error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED
TOO_LONG = error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED
MODEL = "bigscience/bloom-560m"
Json = dict[str, Any]


def parameters(request: chat_pb2.ChatRequest) -> Json:
    made: Json = body_of(WIRE, request, MODEL)["parameters"]
    assert made.pop("details") is True
    return made


def token(words: str = "a", *, last: str = "", special: bool = False, **more: Any) -> Json:
    told = {"index": 1, "token": {"id": 1, "text": words, "logprob": -0.5, "special": special}}
    details = {"finish_reason": last, "generated_tokens": 2, "input_length": 3, "seed": None}
    ended = {"generated_text": "ab", "details": details} if last else {"generated_text": None}
    return {**told, **ended, **more}


def stream(**fields: Any) -> TgiStream:
    return WIRE.stream(exchange(call(stream=True, **fields), MODEL))


def feed(decoder: TgiStream, *told: Json) -> list[chat_pb2.ChatEvent]:
    return decoder.feed([ServerSentEvent(b"", json.dumps(each).encode()) for each in told])


def whole(*told: Json) -> bytes:
    return "".join(f"data:{json.dumps(each)}\n\n" for each in told).encode()


@pytest.mark.parametrize("golden", goldens.load("tgi-native"))
def test_a_golden_exchange_comes_out_as_written(golden: Json) -> None:
    goldens.check(WIRE, golden)


def test_a_whole_answer_is_the_sum_of_its_tokens() -> None:
    body = whole(token("a"), token("b"), token("</s>", last="eos_token", special=True))
    answer = WIRE.response(exchange(call(), MODEL), body)
    (choice,) = answer.event.answer.choices
    assert choice.message.parts[0].text.text == "ab"
    assert (choice.finish_reason, choice.native_finish_reason) == (
        chat_pb2.FINISH_REASON_STOP,
        "eos_token",
    )
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 2)
    assert answer.output_bytes == 2
    assert not choice.HasField("logprobs")


def test_an_answer_with_nothing_in_it_is_an_answer() -> None:
    body = whole(token("</s>", special=True, generated_text="", details=None))
    answer = WIRE.response(exchange(call(), MODEL), body)
    assert (answer.finish_reason, answer.output_bytes, answer.usage) == ("eos_token", 0, None)
    assert not answer.event.answer.choices[0].message.parts


def test_log_probabilities_come_with_their_tokens() -> None:
    near = [{"id": 2, "text": "z", "logprob": -1.5, "special": False}]
    request = call(logprobs=True, top_logprobs=1)
    answer = WIRE.response(
        exchange(request, MODEL), whole(token("a", last="length", top_tokens=near))
    )
    (choice,) = answer.event.answer.choices
    assert choice.finish_reason == chat_pb2.FINISH_REASON_LENGTH
    (said,) = choice.logprobs.content
    assert (said.token, said.logprob, said.top[0].token, said.top[0].logprob) == (
        "a",
        -0.5,
        "z",
        -1.5,
    )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"temperature": 0.0}, {"do_sample": False}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ({"top_p": 1.0}, {}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"stop": ["END"]}, {"stop": ["END"]}),
        ({"output_tokens_max": 5, "seed": 3}, {"max_new_tokens": 5, "seed": 3}),
        ({"logprobs": True, "top_logprobs": 2}, {"top_n_tokens": 2}),
        (
            {"extra_json": b'{"typical_p": 0.9, "adapter_id": "x"}'},
            {"typical_p": 0.9, "adapter_id": "x"},
        ),
        (
            {
                "response_format": chat_pb2.ResponseFormat(
                    kind=chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT
                )
            },
            {"grammar": {"type": "json", "value": {"type": "object"}}},
        ),
        (
            {
                "response_format": chat_pb2.ResponseFormat(
                    kind=chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA, schema=b'{"type": "string"}'
                )
            },
            {"grammar": {"type": "json", "value": {"type": "string"}}},
        ),
    ],
)
def test_parameters_have_its_names(fields: Json, told: Json) -> None:
    assert parameters(call(**fields)) == told


def test_a_prompt_is_sent_word_for_word() -> None:
    body = body_of(WIRE, call(message(text("def f("), text("x):"))), MODEL)
    assert body["inputs"] == "def f(x):"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([message(text("a"), role=content_pb2.ROLE_SYSTEM)], "messages"),
        ([message(text("a")), message(text("b"))], "messages"),
        ([message(content_pb2.Part(image=content_pb2.ImagePart()))], "messages[0].content[0]"),
        ([content_pb2.Message(role=content_pb2.ROLE_USER, name="Kim")], "messages[0].name"),
    ],
)
def test_a_conversation_is_refused(messages: list[content_pb2.Message], param: str) -> None:
    error = refusal_of(WIRE, call(*messages), MODEL)
    assert (error.reason, error.param) == (UNSUPPORTED, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [chat_pb2.Tool(function=chat_pb2.FunctionTool(name="f"))]}, "tools"),
        ({"choices": 2}, "n"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"thinking": chat_pb2.Thinking(enabled=True)}, "reasoning_effort"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"output_modalities": [chat_pb2.OUTPUT_MODALITY_AUDIO]}, "modalities"),
        ({"extra_json": b'{"best_of": 2}'}, "best_of"),
    ],
)
def test_what_it_lacks_is_refused_by_its_openai_name(fields: Json, param: str) -> None:
    error = refusal_of(WIRE, call(**fields), MODEL)
    assert (error.reason, error.param) == (UNSUPPORTED, param)


def test_every_request_field_has_a_rule() -> None:
    assert FIELDS.keys() == set(chat_pb2.ChatRequest.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize("name", [name for name, rule in FIELDS.items() if rule is Rule.ACCEPTED])
def test_an_accepted_field_changes_nothing(name: str) -> None:
    request = call()
    set_field(request, name)
    assert body_of(WIRE, request, MODEL) == body_of(WIRE, call(), MODEL)


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"error": "Request failed during generation", "error_type": "generation"}, FAILED),
        ({"error": "Model is overloaded", "error_type": "overloaded"}, LIMITED),
        ({"error": {"message": "x", "http_status_code": 422}}, FAILED),
        ({"token": {}}, PROTOCOL),
        ({}, PROTOCOL),
    ],
)
def test_what_breaks_a_stream_is_raised(told: Json, reason: int) -> None:
    with pytest.raises(GatewayError) as raised:
        feed(stream(), told)
    assert raised.value.reason == reason


def test_a_stream_that_is_cut_is_never_complete() -> None:
    decoder = stream()
    feed(decoder, token("half"))
    assert (decoder.started, decoder.done) == (True, False)
    with pytest.raises(GatewayError) as raised:
        decoder.end()
    assert raised.value.reason == PROTOCOL
    with pytest.raises(GatewayError):
        WIRE.response(exchange(call(), MODEL), whole(token("half")))
    assert feed(decoder, token("b", last="length"), token("beyond"))[-1].delta.choices[0].text == ""
    assert decoder.end() == []


@pytest.mark.parametrize(
    ("status", "kind", "said", "reason"),
    [
        (422, "validation", "`temperature` must be strictly positive", INVALID),
        (422, "validation", "`inputs` must have less than 1024 tokens. Given: 2000", TOO_LONG),
        (
            422,
            "validation",
            "`inputs` tokens + `max_new_tokens` must be <= 2048. Given: 9 `inputs` tokens",
            TOO_LONG,
        ),
        (424, "generation", "Request failed during generation", FAILED),
        (429, "overloaded", "Model is overloaded", LIMITED),
        (401, "", "no", error_pb2.ERROR_REASON_UPSTREAM_AUTH),
        (404, "", "no", error_pb2.ERROR_REASON_MODEL_NOT_FOUND),
        (503, "unhealthy", "unhealthy", FAILED),
    ],
)
def test_an_error_is_known_by_its_type_or_status(
    status: int, kind: str, said: str, reason: int
) -> None:
    body = json.dumps({"error": said, "error_type": kind}).encode()
    error = WIRE.error(status, {"retry-after": "1"}, body)
    assert (error.reason, error.upstream_status, error.retry_after_ms) == (reason, status, 1000)
    assert WIRE.error(502, {}, b"<html>").reason == FAILED


def test_the_wire_is_registered_and_lives_where_the_operator_says() -> None:
    assert PROVIDERS["tgi-native"] is WIRE
    assert {"tgi", "tgi-native"} <= NEED_BASE_URL
    assert WIRE.authorize("") == []
    assert WIRE.authorize("hf_x") == [("authorization", "Bearer hf_x")]


def test_the_model_is_the_one_that_is_served() -> None:
    assert WIRE.models_request().path == "/info"
    told = {"model_id": MODEL, "max_total_tokens": 2048, "max_input_tokens": 1024}
    assert WIRE.models(json.dumps(told).encode()) == [ListedModel(MODEL, context_tokens_max=2048)]
    with pytest.raises(GatewayError):
        WIRE.models(b"{}")
