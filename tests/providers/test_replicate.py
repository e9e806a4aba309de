"""Replicate's own wire: golden exchanges, inputs by family, predictions, streams, errors."""

import json
from typing import Any

import pytest

from onegate.common.v1 import content_pb2, error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.sse import ServerSentEvent
from services.router.providers import PROVIDERS
from services.router.providers.base import ListedModel, RunsJobs
from services.router.providers.foreign import Rule
from services.router.providers.replicate import FIELDS, WIRE
from services.router.providers.replicate_inputs import FAMILIES
from services.router.providers.replicate_predictions import ReplicateStream
from tests import recordings
from tests.providers import goldens
from tests.providers.calls import body_of, call, exchange, message, refusal_of, set_field, text

UNSUPPORTED = error_pb2.ERROR_REASON_UNSUPPORTED_PARAMETER
INVALID = error_pb2.ERROR_REASON_INVALID_REQUEST
PROTOCOL = error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
FAILED = error_pb2.ERROR_REASON_UPSTREAM_ERROR
TIMEOUT = error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT
LLAMA, LLAMA_2 = "meta/meta-llama-3-8b-instruct", "meta/llama-2-70b-chat"
GPT, CLAUDE, GEMINI = "openai/gpt-5.1", "anthropic/claude-4-sonnet", "google/gemini-2.5-flash"
OTHER = "lucataco/deepseek-67b-base"
SYSTEM, ASSISTANT, TOOL = (
    content_pb2.ROLE_SYSTEM,
    content_pb2.ROLE_ASSISTANT,
    content_pb2.ROLE_TOOL,
)
EFFORT = chat_pb2.ThinkingEffort
Json = dict[str, Any]


def inputs(request: chat_pb2.ChatRequest, model: str = LLAMA) -> Json:
    made: Json = body_of(WIRE, request, model)["input"]
    return made


def picture(url: str = "https://x/a.png") -> content_pb2.Part:
    source = content_pb2.MediaSource(url=url)
    return content_pb2.Part(image=content_pb2.ImagePart(source=source))


def decoder(model: str = LLAMA) -> ReplicateStream:
    return WIRE.stream(exchange(call(stream=True), model))


def ended(**fields: Any) -> bytes:
    return json.dumps({"id": "p1", "status": "succeeded", "output": "Hi", **fields}).encode()


def reason_of(body: bytes) -> int:
    with pytest.raises(GatewayError) as raised:
        WIRE.response(exchange(call(), LLAMA), body)
    return raised.value.reason


@pytest.mark.parametrize("golden", goldens.load("replicate"))
def test_a_golden_exchange_comes_out_as_written(golden: Json) -> None:
    goldens.check(WIRE, golden, named=isinstance(golden["received"], list))


@recordings.needs_recordings
def test_recorded_predictions_are_followed_until_they_are_over() -> None:
    recorded = recordings.exchanges(api="replicate.predictions")
    seen = []
    for each in recorded:
        job = WIRE.job(each["response_body"].encode())
        identity = json.loads(each["response_body"])["id"]
        assert each["url"] in (
            f"{WIRE.base_url}/predictions",
            f"{WIRE.base_url}{job.state.path}",
        )
        assert job.cancel.path == f"/predictions/{identity}/cancel"
        assert job.stream_url == ""
        seen.append(job.over)
    assert sorted(seen) == [False] * 5 + [True]
    (over,) = [e for e in recorded if WIRE.job(e["response_body"].encode()).over]
    answer = WIRE.response(exchange(call(), OTHER), over["response_body"].encode())
    assert (answer.finish_reason, answer.usage) == ("succeeded", None)


@pytest.mark.parametrize(
    ("model", "path", "version"),
    [
        ("meta/llama-2-7b", "/models/meta/llama-2-7b/predictions", None),
        ("deployments/acme/my-llm", "/deployments/acme/my-llm/predictions", None),
        ("acme/llm:5c7d5dc6", "/predictions", "acme/llm:5c7d5dc6"),
    ],
)
def test_a_model_is_called_where_it_is(model: str, path: str, version: str | None) -> None:
    sent = WIRE.request(exchange(call(), model))
    assert (sent.method, sent.path) == ("POST", path)
    assert json.loads(sent.body).get("version") == version


@pytest.mark.parametrize(
    "model", ["llama", "a/b/c", "../models", "a/../b", "a/b?x=1", "a/b:c:d", "deployments/a/b:c"]
)
def test_a_name_that_is_no_model_s_is_refused(model: str) -> None:
    error = refusal_of(WIRE, call(), model)
    assert error.reason in (error_pb2.ERROR_REASON_MODEL_NOT_FOUND, INVALID)


def test_a_whole_answer_is_waited_for_and_a_stream_is_not() -> None:
    assert ("prefer", "wait=5") in WIRE.request(exchange(call(), LLAMA)).headers
    streamed = WIRE.request(exchange(call(stream=True), LLAMA))
    assert streamed.headers == [("content-type", "application/json")]


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "5s"), (59.1, "60s"), (1800.0, "1800s")])
def test_a_prediction_has_a_deadline_of_its_own(seconds: float, header: str) -> None:
    assert WIRE.deadline(seconds) == [("cancel-after", header)]


@pytest.mark.parametrize(
    ("model", "cap"),
    [
        (GPT, "max_completion_tokens"),
        (CLAUDE, "max_tokens"),
        (GEMINI, "max_output_tokens"),
        (LLAMA, "max_tokens"),
        (LLAMA_2, "max_new_tokens"),
    ],
)
def test_a_family_s_inputs_have_its_names(model: str, cap: str) -> None:
    assert inputs(call(output_tokens_max=9), model) == {"prompt": "hello", cap: 9}


def test_a_model_of_no_known_family_takes_a_prompt_and_what_its_caller_names() -> None:
    own = {"max_length_tokens": 7, "prompt": "overruled"}
    request = call(extra_json=json.dumps({"input": own}).encode())
    assert inputs(request, OTHER) == {"prompt": "hello", "max_length_tokens": 7}
    assert refusal_of(WIRE, call(temperature=0.5), OTHER).param == "temperature"
    assert refusal_of(WIRE, call(output_tokens_max=5), OTHER).param == "max_completion_tokens"
    system = [message(text("Be brief."), role=SYSTEM), message(text("Hi"))]
    assert inputs(call(*system), OTHER) == {"prompt": "System: Be brief.\n\nUser: Hi\n\nAssistant:"}


def test_several_turns_are_messages_where_a_family_takes_them() -> None:
    refused = content_pb2.Part(refusal=content_pb2.RefusalPart(text="No."))
    said = [
        message(text("Be brief."), role=SYSTEM),
        message(text("Hi")),
        message(refused, role=ASSISTANT),
        message(text("a"), text("b")),
    ]
    assert inputs(call(*said), GPT) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "No."},
            {"role": "user", "content": "a\nb"},
        ]
    }


def test_pictures_go_beside_a_single_question() -> None:
    data = content_pb2.MediaSource(data=b"\x01", media_type="image/png")
    inline = content_pb2.Part(image=content_pb2.ImagePart(source=data))
    asked = call(message(text("What?"), picture(), inline))
    both = ["https://x/a.png", "data:image/png;base64,AQ=="]
    assert inputs(asked, GPT) == {"prompt": "What?", "image_input": both}
    assert inputs(asked, GEMINI) == {"prompt": "What?", "images": both}
    one = call(message(text("What?"), picture()))
    assert inputs(one, CLAUDE) == {"prompt": "What?", "image": "https://x/a.png"}
    turns = call(message(picture()), message(text("It is"), role=ASSISTANT), message(text("?")))
    for request, model in ((asked, CLAUDE), (one, LLAMA), (turns, GPT)):
        assert refusal_of(WIRE, request, model).param == "messages"


@pytest.mark.parametrize(
    ("model", "asked", "told"),
    [
        (GPT, {"effort": EFFORT.THINKING_EFFORT_LOW}, {"reasoning_effort": "low"}),
        (GPT, {"effort": EFFORT.THINKING_EFFORT_NONE}, {"reasoning_effort": "none"}),
        (
            CLAUDE,
            {"budget_tokens": 2048},
            {"thinking_budget_tokens": 2048, "extended_thinking": True},
        ),
        (CLAUDE, {"enabled": True}, {"extended_thinking": True}),
        (CLAUDE, {"effort": EFFORT.THINKING_EFFORT_NONE}, {"extended_thinking": False}),
        (GEMINI, {"budget_tokens": 5}, {"thinking_budget": 5}),
        (GEMINI, {"enabled": False}, {"thinking_budget": 0}),
        (LLAMA, {"include_thoughts": True}, {}),
    ],
)
def test_thinking_is_asked_for_as_the_family_takes_it(model: str, asked: Json, told: Json) -> None:
    request = call(thinking=chat_pb2.Thinking(**asked))
    assert inputs(request, model) == {"prompt": "hello", **told}


def test_ends_of_the_answer_are_one_string() -> None:
    assert inputs(call(stop=["a", "b"]), LLAMA_2)["stop_sequences"] == "a,b"
    assert refusal_of(WIRE, call(stop=["a,b"]), LLAMA_2).param == "stop"
    assert refusal_of(WIRE, call(stop=["a"]), GPT).param == "stop"


def test_every_request_field_has_a_rule() -> None:
    assert FIELDS.keys() == set(chat_pb2.ChatRequest.DESCRIPTOR.fields_by_name)
    for family in FAMILIES.values():
        assert family.fields.keys() <= {name for name, rule in FIELDS.items() if rule is None}


@pytest.mark.parametrize("name", [name for name, rule in FIELDS.items() if rule is Rule.ACCEPTED])
def test_an_accepted_field_changes_nothing(name: str) -> None:
    request = call()
    set_field(request, name)
    assert inputs(request) == inputs(call())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [chat_pb2.Tool(function=chat_pb2.FunctionTool(name="f"))]}, "tools"),
        ({"choices": 2}, "n"),
        ({"seed": 1}, "seed"),
        ({"logprobs": True}, "logprobs"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"output_modalities": [chat_pb2.OUTPUT_MODALITY_AUDIO]}, "modalities"),
        (
            {
                "response_format": chat_pb2.ResponseFormat(
                    kind=chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT
                )
            },
            "response_format",
        ),
        ({"thinking": chat_pb2.Thinking(budget_tokens=9)}, "thinking.budget_tokens"),
        ({"thinking": chat_pb2.Thinking(include_thoughts=False)}, "thinking.include_thoughts"),
        ({"thinking": chat_pb2.Thinking(effort=EFFORT.THINKING_EFFORT_LOW)}, "reasoning_effort"),
        ({"thinking": chat_pb2.Thinking(enabled=True)}, "thinking"),
        ({"extra_json": b'{"webhook": "https://evil"}'}, "webhook"),
    ],
)
def test_what_a_model_is_not_known_to_take_is_refused(fields: Json, param: str) -> None:
    error = refusal_of(WIRE, call(**fields), LLAMA)
    assert (error.reason, error.param) == (UNSUPPORTED, param)


@pytest.mark.parametrize(
    ("message_", "param"),
    [
        (message(text("4"), role=TOOL), "messages[0].role"),
        (message(content_pb2.Part()), "messages[0].content[0]"),
        (message(content_pb2.Part(audio=content_pb2.AudioPart())), "messages[0].content[0]"),
        (
            message(content_pb2.Part(text=content_pb2.TextPart(), extra_json=b'{"x": 1}')),
            "messages[0].content[0].x",
        ),
        (content_pb2.Message(role=content_pb2.ROLE_USER, name="Kim"), "messages[0].name"),
    ],
)
def test_a_message_that_replicate_cannot_be_told_is_refused(
    message_: content_pb2.Message, param: str
) -> None:
    error = refusal_of(WIRE, call(message_), LLAMA)
    assert (error.reason, error.param) == (UNSUPPORTED, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"extra_json": b'{"input": 1}'}, "input"),
        ({"messages": [message(content_pb2.Part(image=content_pb2.ImagePart()))]}, None),
    ],
)
def test_a_malformed_value_is_refused_where_it_stands(fields: Json, param: str | None) -> None:
    request = chat_pb2.ChatRequest(**{"messages": [message(text("x"))], **fields})
    error = refusal_of(WIRE, request, GPT)
    assert (error.reason, error.param) == (INVALID, param or "messages[0].content[0]")


@pytest.mark.parametrize(("output", "said"), [(None, ""), ("Hi", "Hi"), (["a", "b"], "ab")])
def test_an_output_is_text_or_pieces_of_it(output: Any, said: str) -> None:
    answer = WIRE.response(exchange(call(), LLAMA), ended(output=output))
    parts = answer.event.answer.choices[0].message.parts
    assert "".join(part.text.text for part in parts) == said
    assert (answer.usage, answer.upstream_id, answer.output_bytes) == (None, "p1", len(said))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>", PROTOCOL),
        (b"[]", PROTOCOL),
        (ended(status="processing"), PROTOCOL),
        (ended(output={"url": "https://x"}), PROTOCOL),
        (ended(output=["a", 1]), PROTOCOL),
        (ended(status="canceled"), TIMEOUT),
        (ended(status="aborted"), TIMEOUT),
        (ended(status="failed", error="CUDA error"), FAILED),
        (ended(status="failed", error=None), FAILED),
        (
            ended(status="failed", error="The input was flagged as sensitive. (E005)"),
            error_pb2.ERROR_REASON_CONTENT_POLICY,
        ),
        (
            ended(status="failed", error="Prompt is too long: 9000 tokens"),
            error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
        ),
    ],
)
def test_a_prediction_that_gave_no_answer_is_refused(body: bytes, reason: int) -> None:
    assert reason_of(body) == reason


def test_a_stream_whose_price_is_never_told_is_an_answer_all_the_same() -> None:
    stream = decoder()
    got = stream.feed(
        [
            ServerSentEvent(b"output", "på".encode()),
            ServerSentEvent(b"output", b""),
            ServerSentEvent(b"done", b"{}"),
        ]
    )
    assert (stream.started, stream.done, stream.output_bytes) == (True, False, 3)
    got += stream.end()
    assert (stream.done, stream.usage, stream.finish_reason) == (True, None, "succeeded")
    assert got[-1].delta.choices[0].finish_reason == chat_pb2.FINISH_REASON_STOP


def test_a_prediction_without_a_stream_gives_what_no_event_brought() -> None:
    for said, rest in (("", "Hello"), ("Hel", "lo"), ("Hello", "")):
        stream = decoder()
        stream.feed([ServerSentEvent(b"output", said.encode())] if said else [])
        got = stream.feed([ServerSentEvent(b"prediction", ended(output="Hello"))])
        text_ = "".join(choice.text for event in got for choice in event.delta.choices)
        assert (text_, stream.done, stream.upstream_id) == (rest, True, "p1")
        assert stream.feed([ServerSentEvent(b"output", b"beyond")]) == []


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        (b"error", b'{"detail": "context length exceeded"}', 0),
        (b"error", b"it broke", FAILED),
        (b"done", b'{"reason": "canceled"}', TIMEOUT),
        (b"done", b'{"reason": "error"}', FAILED),
        (b"output", b"\xff", PROTOCOL),
        (b"prediction", b"{", PROTOCOL),
        (b"prediction", ended(status="failed", error="x"), FAILED),
    ],
)
def test_what_breaks_a_stream_is_raised(name: bytes, data: bytes, reason: int) -> None:
    with pytest.raises(GatewayError) as raised:
        decoder().feed([ServerSentEvent(name, data)])
    wanted = reason or error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED
    assert raised.value.reason == wanted


def test_a_stream_that_is_cut_is_never_complete() -> None:
    stream = decoder()
    stream.feed([ServerSentEvent(b"output", b"half")])
    with pytest.raises(GatewayError) as raised:
        stream.end()
    assert raised.value.reason == PROTOCOL


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, error_pb2.ERROR_REASON_UPSTREAM_AUTH),
        (402, error_pb2.ERROR_REASON_UPSTREAM_AUTH),
        (404, error_pb2.ERROR_REASON_MODEL_NOT_FOUND),
        (422, INVALID),
        (429, error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED),
        (500, FAILED),
    ],
)
def test_an_error_is_known_by_its_status(status: int, reason: int) -> None:
    body = json.dumps({"title": "t", "detail": "said so", "status": status}).encode()
    error = WIRE.error(status, {"retry-after": "2"}, body)
    assert (error.reason, error.upstream_status, error.retry_after_ms) == (reason, status, 2000)
    assert WIRE.error(502, {}, b"<html>").reason == FAILED


def test_a_job_is_asked_and_ended_at_the_provider_s_own_address() -> None:
    urls = {"get": "https://evil/1", "cancel": "https://evil/2", "stream": "https://evil/3"}
    job = WIRE.job(ended(status="starting", urls=urls))
    assert (job.over, job.state.path, job.cancel.path) == (
        False,
        "/predictions/p1",
        "/predictions/p1/cancel",
    )
    assert (job.state.method, job.cancel.method) == ("GET", "POST")
    assert WIRE.job(ended()).over


@pytest.mark.parametrize("body", [b"{}", ended(id="../x"), ended(id=5), ended(status=None)])
def test_what_is_no_prediction_is_no_job(body: bytes) -> None:
    with pytest.raises(GatewayError) as raised:
        WIRE.job(body)
    assert raised.value.reason == PROTOCOL


@pytest.mark.parametrize(
    ("url", "base", "allowed"),
    [
        ("https://stream.replicate.com/v1/files/x", "api.replicate.com", True),
        ("https://streaming-api.svc.us.c.replicate.net/v1/x", "api.replicate.com", True),
        ("https://stream.replicate.com/v1/files/x", "proxy.acme.com", False),
        ("http://stream.replicate.com/v1/files/x", "api.replicate.com", False),
        ("https://stream.replicate.com:8443/x", "api.replicate.com", False),
        ("https://u:p@stream.replicate.com/x", "api.replicate.com", False),
        ("https://evilreplicate.com/x", "api.replicate.com", False),
        ("https://replicate.com.evil.org/x", "api.replicate.com", False),
        ("https://169.254.169.254/latest", "api.replicate.com", False),
        ("", "api.replicate.com", False),
    ],
)
def test_the_token_goes_to_replicate_s_own_hosts_only(
    url: str, base: str, *, allowed: bool
) -> None:
    assert WIRE.may_stream(url, base) is allowed


def test_the_wire_is_registered_and_takes_a_token() -> None:
    assert PROVIDERS["replicate"] is WIRE
    assert isinstance(WIRE, RunsJobs)
    assert WIRE.authorize("r8_x") == [("authorization", "Bearer r8_x")]
    assert WIRE.base_url == "https://api.replicate.com/v1"


def test_models_are_those_that_write() -> None:
    assert WIRE.models_request().path == "/collections/language-models"
    page = {"slug": "language-models", "models": [{"owner": "meta", "name": "llama", "x": 1}]}
    assert WIRE.models(json.dumps(page).encode()) == [ListedModel("meta/llama", owner="meta")]
    with pytest.raises(GatewayError):
        WIRE.models(b"{}")
