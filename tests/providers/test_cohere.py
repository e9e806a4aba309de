"""The Cohere wire: golden exchanges, requests, answers, errors, models."""

import json
from typing import Any

import pytest

from onegate.common.v1 import content_pb2, error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers import PROVIDERS
from services.router.providers.base import ListedModel
from services.router.providers.cohere import FIELDS, WIRE
from services.router.providers.foreign import HARMLESS, Rule
from tests.providers import goldens
from tests.providers.calls import body_of, call, exchange, message, refusal_of, set_field, text

UNSUPPORTED = error_pb2.ERROR_REASON_UNSUPPORTED_PARAMETER
INVALID = error_pb2.ERROR_REASON_INVALID_REQUEST
PROTOCOL = error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
AUTH = error_pb2.ERROR_REASON_UPSTREAM_AUTH
FAILED = error_pb2.ERROR_REASON_UPSTREAM_ERROR
MODEL = "command-a-03-2025"
ASSISTANT, TOOL = content_pb2.ROLE_ASSISTANT, content_pb2.ROLE_TOOL


def sent(request: chat_pb2.ChatRequest, model: str = MODEL) -> dict[str, Any]:
    return body_of(WIRE, request, model)


def refusal(request: chat_pb2.ChatRequest) -> GatewayError:
    return refusal_of(WIRE, request, MODEL)


def function(name: str = "f", **fields: Any) -> chat_pb2.Tool:
    return chat_pb2.Tool(function=chat_pb2.FunctionTool(name=name, **fields))


def thought(**fields: Any) -> content_pb2.Part:
    return content_pb2.Part(thinking=content_pb2.ThinkingPart(**fields))


def called(**fields: Any) -> content_pb2.Part:
    return content_pb2.Part(tool_call=content_pb2.ToolCall(name="f", **fields))


def answered(*parts: content_pb2.Part, **fields: Any) -> content_pb2.Part:
    return content_pb2.Part(tool_result=content_pb2.ToolResult(parts=parts, **fields))


def picture(**source: Any) -> content_pb2.Part:
    return content_pb2.Part(image=content_pb2.ImagePart(source=content_pb2.MediaSource(**source)))


@pytest.mark.parametrize("golden", goldens.load("cohere"))
def test_a_golden_exchange_comes_out_as_written(golden: dict[str, Any]) -> None:
    goldens.check(WIRE, golden)


def test_the_wire_is_registered() -> None:
    assert PROVIDERS["cohere"] is WIRE
    assert WIRE.authorize("k") == [("authorization", "Bearer k")]


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
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"min_p": 0.1}, "min_p"),
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
        ({"tools": [chat_pb2.Tool(provider_json=b'{"type": "search"}')]}, "tools[0]"),
        ({"tools": [function()], "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"thinking": chat_pb2.Thinking(include_thoughts=False)}, "thinking.include_thoughts"),
    ],
)
def test_what_cohere_lacks_is_refused_by_its_openai_name(
    fields: dict[str, Any], param: str
) -> None:
    error = refusal(call(**fields))
    assert (error.reason, error.param) == (UNSUPPORTED, param)
    assert f"`{param}`" in error.message


@pytest.mark.parametrize(
    "name", sorted(set(HARMLESS) - {"presence_penalty", "frequency_penalty", "logprobs"})
)
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
            message(content_pb2.Part(file=content_pb2.FilePart())),
            UNSUPPORTED,
            "messages[0].content[0]",
        ),
        (message(picture(file_id="f")), INVALID, "messages[0].content[0]"),
        (message(picture(url="u"), role=ASSISTANT), UNSUPPORTED, "messages[0].content[0]"),
        (message(answered(picture(url="u")), role=TOOL), UNSUPPORTED, "messages[0].content[0]"),
        (message(text("4"), role=TOOL), INVALID, "messages[0].tool_call_id"),
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
def test_a_message_that_cohere_cannot_be_told_is_refused(
    message_: content_pb2.Message, reason: int, param: str
) -> None:
    error = refusal(call(message_))
    assert (error.reason, error.param) == (reason, param)


def test_names_and_unknown_fields_of_messages_are_refused() -> None:
    named = message(text("hi"))
    named.name = "Kim"
    assert refusal(call(named)).param == "messages[0].name"
    extended = message(text("hi"))
    extended.extra_json = b'{"prefix": true}'
    assert refusal(call(extended)).param == "messages[0].prefix"
    extended.extra_json = b'{"provider_specific_fields": {"parts": [{"type": "x"}]}}'
    assert refusal(call(extended)).param == "messages[0]"


def test_what_was_said_before_keeps_its_form() -> None:
    refused = content_pb2.Part(refusal=content_pb2.RefusalPart(text="no"))
    cited = content_pb2.Part(text=content_pb2.TextPart(text="x"), extra_json=b'{"citations": []}')
    body = sent(
        call(
            message(picture(data=b"x", media_type="image/png")),
            message(refused, role=ASSISTANT),
            message(cited, text("y"), role=ASSISTANT),
            message(),
        )
    )
    assert [said["content"] for said in body["messages"]] == [
        [{"type": "image_url", "image_url": {"url": "data:image/png;base64,eA=="}}],
        "no",
        [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}],
        "",
    ]


def test_thoughts_go_back_where_the_model_takes_them() -> None:
    thoughts = (thought(text="a"), thought(text="b", signature="s"), thought(redacted_data="c"))
    plain = call(message(*thoughts, text("x"), role=ASSISTANT))
    calling = call(message(*thoughts, called(id="t"), role=ASSISTANT))
    assert sent(plain)["messages"] == [{"role": "assistant", "content": "x"}]
    assert sent(calling)["messages"][0]["tool_plan"] == "a"
    block = {"type": "thinking", "thinking": "a"}
    for request in (plain, calling):
        said = sent(request, "command-a-reasoning-08-2025")["messages"][0]
        assert said["content"][0] == block
        assert "tool_plan" not in said


def test_legacy_function_calls_get_ids() -> None:
    body = sent(
        call(
            message(text("time?")),
            message(called(), role=ASSISTANT),
            message(answered(text("4")), role=TOOL),
        )
    )
    made, result = body["messages"][1:]
    assert made["tool_calls"][0] == {
        "id": "call_1",
        "type": "function",
        "function": {"name": "f", "arguments": "{}"},
    }
    assert result == {"role": "tool", "tool_call_id": "call_1", "content": "4"}


@pytest.mark.parametrize(
    ("choice", "word", "offered"),
    [
        ({}, None, ["a", "b"]),
        ({"mode": chat_pb2.TOOL_CHOICE_MODE_AUTO}, None, ["a", "b"]),
        ({"mode": chat_pb2.TOOL_CHOICE_MODE_NONE}, "NONE", ["a", "b"]),
        ({"mode": chat_pb2.TOOL_CHOICE_MODE_REQUIRED}, "REQUIRED", ["a", "b"]),
        ({"mode": chat_pb2.TOOL_CHOICE_MODE_ONE, "names": ["b"]}, "REQUIRED", ["b"]),
        ({"mode": chat_pb2.TOOL_CHOICE_MODE_ALLOWED, "names": ["b"]}, None, ["b"]),
        (
            {"mode": chat_pb2.TOOL_CHOICE_MODE_ALLOWED, "names": ["b"], "required": True},
            "REQUIRED",
            ["b"],
        ),
    ],
)
def test_the_tool_choice_is_a_word_and_what_is_offered(
    choice: dict[str, Any], word: str | None, offered: list[str]
) -> None:
    rule = chat_pb2.ToolChoice(**choice)
    body = sent(call(tools=[function("a"), function("b")], tool_choice=rule))
    assert body.get("tool_choice") == word
    assert [tool["function"]["name"] for tool in body["tools"]] == offered


def test_no_tools_is_nothing_said_of_tools() -> None:
    none = chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_ALLOWED, names=["x"])
    assert sent(call(tools=[function()], tool_choice=none)) == sent(call())
    error = refusal(call(tools=[function(parameters_schema=b"1")]))
    assert (error.reason, error.param) == (INVALID, "tools[0].function.parameters")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"effort": chat_pb2.THINKING_EFFORT_NONE}, {"type": "disabled"}),
        ({"enabled": False}, {"type": "disabled"}),
        ({"enabled": True}, {"type": "enabled"}),
        ({"budget_tokens": 99}, {"type": "enabled", "token_budget": 99}),
        (
            {"effort": chat_pb2.THINKING_EFFORT_MEDIUM},
            {"type": "enabled", "token_budget": 8192},
        ),
        ({"include_thoughts": True}, None),
    ],
)
def test_thinking_is_switched_and_bounded(
    asked: dict[str, Any], said: dict[str, Any] | None
) -> None:
    assert sent(call(thinking=chat_pb2.Thinking(**asked))).get("thinking") == said


def test_json_without_a_schema_is_an_object() -> None:
    wanted = chat_pb2.ResponseFormat(kind=chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT)
    assert sent(call(response_format=wanted))["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    ("status", "said", "reason"),
    [
        (400, "invalid request: p must be below 1", INVALID),
        (
            400,
            "too many tokens: total number of tokens in the prompt cannot exceed 128000",
            error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
        ),
        (401, "invalid api token", AUTH),
        (403, "no", AUTH),
        (404, "model 'command-r' was removed", error_pb2.ERROR_REASON_MODEL_NOT_FOUND),
        (422, "unknown field", INVALID),
        (429, "trial key", error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED),
        (498, "blocked token", AUTH),
        (500, "oops", FAILED),
        (503, "away", FAILED),
        (504, "late", error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT),
    ],
)
def test_an_error_is_known_by_its_status_and_words(status: int, said: str, reason: int) -> None:
    body = json.dumps({"id": "1", "message": said}).encode()
    error = WIRE.error(status, {"retry-after": "7"}, body)
    assert (error.reason, error.upstream_status, error.retry_after_ms) == (reason, status, 7_000)


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b'{"message": 5}'])
def test_an_error_page_is_known_by_its_status(body: bytes) -> None:
    assert WIRE.error(502, {}, body).reason == FAILED
    assert "does not say why" in WIRE.error(400, {}, body).message


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"id": "1", "finish_reason": "COMPLETE", "message": {"content": [{}]}}',
        b'{"id": "1", "finish_reason": "COMPLETE", "message": {"tool_calls": [{}]}}',
    ],
)
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    with pytest.raises(GatewayError) as raised:
        WIRE.response(exchange(call(), MODEL), body)
    assert raised.value.reason == PROTOCOL


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("ERROR", FAILED), ("TIMEOUT", error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT)],
)
def test_an_answer_that_failed_is_an_error(finish: str, reason: int) -> None:
    body = json.dumps({"id": "1", "finish_reason": finish, "message": {}}).encode()
    with pytest.raises(GatewayError) as raised:
        WIRE.response(exchange(call(), MODEL), body)
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    ("reported", "figures"),
    [
        ({}, None),
        ({"tokens": {"input_tokens": 9, "output_tokens": 1}}, (9, 1)),
        ({"billed_units": {"search_units": 1}}, None),
        ({"billed_units": {"output_tokens": 2.0}}, (0, 2)),
    ],
)
def test_what_is_billed_is_metered(
    reported: dict[str, Any], figures: tuple[int, int] | None
) -> None:
    told = {"id": "1", "finish_reason": "COMPLETE", "message": {}, "usage": reported}
    usage = WIRE.response(exchange(call(), MODEL), json.dumps(told).encode()).usage
    assert (usage and (usage.input_tokens, usage.output_tokens)) == figures


def test_sources_without_any_text_are_kept() -> None:
    told = {"id": "1", "finish_reason": "COMPLETE", "message": {"citations": [{"start": 1}]}}
    answer = WIRE.response(exchange(call(), MODEL), json.dumps(told).encode())
    (part,) = answer.event.answer.choices[0].message.parts
    assert json.loads(part.text.annotations[0].opaque_json) == {"start": 1}
    assert answer.output_bytes == 0


def test_models_are_listed_with_their_context() -> None:
    request = WIRE.models_request()
    assert (request.method, request.path.partition("?")[0]) == ("GET", "/v1/models")
    page = {"models": [{"name": "command-a", "context_length": 256000.0}, {"name": "c"}]}
    assert WIRE.models(json.dumps(page).encode()) == [
        ListedModel("command-a", owner="cohere", context_tokens_max=256_000),
        ListedModel("c", owner="cohere"),
    ]


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"models": [{}]}'])
def test_what_is_no_list_of_models_is_refused(body: bytes) -> None:
    with pytest.raises(GatewayError) as raised:
        WIRE.models(body)
    assert raised.value.reason == PROTOCOL
