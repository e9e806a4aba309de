"""What the Anthropic wire sends: every request field, what is refused, what models differ in."""

import json
from typing import Any

import pytest

from onegate.common.v1 import content_pb2, error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers import anthropic_models
from services.router.providers.anthropic import FIELDS, WIRE
from services.router.providers.foreign import HARMLESS, Rule
from tests.providers.calls import body_of, call, exchange, message, refusal_of, set_field, text

UNSUPPORTED = error_pb2.ERROR_REASON_UNSUPPORTED_PARAMETER
INVALID = error_pb2.ERROR_REASON_INVALID_REQUEST
MODEL = "claude-sonnet-4-5"


def sent(request: chat_pb2.ChatRequest, model: str = MODEL) -> dict[str, Any]:
    return body_of(WIRE, request, model)


def refusal(request: chat_pb2.ChatRequest, model: str = MODEL) -> GatewayError:
    return refusal_of(WIRE, request, model)


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
        ({"seed": 7}, "seed"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"min_p": 0.1}, "min_p"),
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"verbosity": "low"}, "verbosity"),
        ({"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
        ({"prediction": [text("x")]}, "prediction"),
        ({"audio_output": chat_pb2.AudioOutput(format="wav")}, "audio"),
        ({"output_modalities": [chat_pb2.OUTPUT_MODALITY_AUDIO]}, "modalities"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"extra_json": b'{"enable_thinking": true}'}, "enable_thinking"),
        ({"extra_json": b'{"anthropic_beta": "x"}'}, "anthropic_beta"),
        ({"web_search_options_json": b'{"search_context_size": "high"}'},
         "web_search_options.search_context_size"),
        ({"web_search_options_json": b'{"filters": {}}'}, "web_search_options.filters"),
        (
            {
                "response_format": chat_pb2.ResponseFormat(
                    kind=chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT
                )
            },
            "response_format",
        ),
        ({"tools": [chat_pb2.Tool(custom=chat_pb2.CustomTool(name="free"))]}, "tools[0]"),
        ({"tools": [chat_pb2.Tool(provider_json=b'{"googleSearch": {}}')]}, "tools[0]"),
        (
            {"tools": [chat_pb2.Tool(provider_json=b'{"type": "function", "function": {}}')]},
            "tools[0]",
        ),
    ],
)  # fmt: skip
def test_what_anthropic_lacks_is_refused_by_its_openai_name(
    fields: dict[str, Any], param: str
) -> None:
    error = refusal(call(**fields))
    assert (error.reason, error.param) == (UNSUPPORTED, param)
    assert f"`{param}`" in error.message


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_a_value_that_asks_for_what_happens_anyway_is_accepted(name: str) -> None:
    assert sent(call(**{name: HARMLESS[name]})) == sent(call())


@pytest.mark.parametrize(
    ("part", "role", "param"),
    [
        (content_pb2.Part(audio=content_pb2.AudioPart()), content_pb2.ROLE_USER, "[0]"),
        (content_pb2.Part(video=content_pb2.VideoPart()), content_pb2.ROLE_USER, "[0]"),
        (content_pb2.Part(), content_pb2.ROLE_USER, "[0]"),
        (content_pb2.Part(opaque_json=b'{"type": "sticker"}'), content_pb2.ROLE_USER, "[0]"),
        (content_pb2.Part(opaque_json=b'{"executableCode": {}}'), content_pb2.ROLE_USER, "[0]"),
        (
            content_pb2.Part(text=content_pb2.TextPart(text="x"), extra_json=b'{"mood": 1}'),
            content_pb2.ROLE_USER,
            "[0].mood",
        ),
        (
            content_pb2.Part(image=content_pb2.ImagePart(detail="low")),
            content_pb2.ROLE_USER,
            "[0].image_url.detail",
        ),
        (
            content_pb2.Part(
                tool_call=content_pb2.ToolCall(kind=content_pb2.TOOL_KIND_CUSTOM, name="free")
            ),
            content_pb2.ROLE_ASSISTANT,
            "[0]",
        ),
    ],
)
def test_a_part_that_anthropic_lacks_is_refused(
    part: content_pb2.Part, role: int, param: str
) -> None:
    error = refusal(call(message(part, role=role)))
    assert (error.reason, error.param) == (UNSUPPORTED, f"messages[0].content{param}")


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (call(content_pb2.Message()), "messages[0].role"),
        (call(message(text("4"), role=content_pb2.ROLE_TOOL)), "messages[0].tool_call_id"),
        (
            call(message(content_pb2.Part(image=content_pb2.ImagePart()))),
            "messages[0].content[0]",
        ),
        (
            call(
                message(
                    content_pb2.Part(
                        file=content_pb2.FilePart(
                            source=content_pb2.MediaSource(data=b"\xff", media_type="text/plain")
                        )
                    )
                )
            ),
            "messages[0].content[0]",
        ),
        (call(message(content_pb2.Part(opaque_json=b"[1]"))), "messages[0].content[0]"),
        (call(extra_json=b"{"), "extra"),
        (call(extra_json=b'{"output_config": 1}'), "output_config"),
        (call(web_search_options_json=b'{"user_location": "Oslo"}'),
         "web_search_options.user_location"),
        (
            call(
                tools=[
                    chat_pb2.Tool(
                        function=chat_pb2.FunctionTool(name="f", parameters_schema=b"true")
                    )
                ]
            ),
            "tools[0].function.parameters",
        ),
    ],
)  # fmt: skip
def test_a_malformed_value_is_refused_where_it_stands(
    request_: chat_pb2.ChatRequest, param: str
) -> None:
    error = refusal(request_)
    assert (error.reason, error.param) == (INVALID, param)


def test_names_and_unknown_fields_of_messages_are_refused() -> None:
    named = message(text("hi"))
    named.name = "Kim"
    assert refusal(call(named)).param == "messages[0].name"
    extended = message(text("hi"))
    extended.extra_json = b'{"prefix": true}'
    assert refusal(call(extended)).param == "messages[0].prefix"


def test_blocks_that_came_beside_a_stream_can_be_sent_back() -> None:
    said = message(text("So."), role=content_pb2.ROLE_ASSISTANT)
    parts = [
        {"type": "server_tool_use", "id": "s"},
        {"type": "reasoning.summary"},
        {"type": "web_search_tool_result", "tool_use_id": "s"},
    ]
    beside = {"parts": parts, "annotations": [{}]}
    said.extra_json = json.dumps({"provider_specific_fields": beside}).encode()
    kinds = [block["type"] for block in sent(call(said))["messages"][0]["content"]]
    assert kinds == ["server_tool_use", "web_search_tool_result", "text"]
    said.extra_json = b'{"provider_specific_fields": {"annotations": []}}'
    assert len(sent(call(said))["messages"][0]["content"]) == 1
    said.extra_json = b'{"provider_specific_fields": {"parts": [{"type": "sticker"}]}}'
    assert refusal(call(said)).param == "messages[0].provider_specific_fields"


def test_system_messages_join_unless_the_model_takes_them_in_place() -> None:
    system = message(text("Be kind."), role=content_pb2.ROLE_SYSTEM)
    late = message(text("Be brief."), role=content_pb2.ROLE_DEVELOPER)
    user, assistant = message(text("hi")), message(text("yes"), role=content_pb2.ROLE_ASSISTANT)
    request = call(system, user, assistant, user, late, late)
    old = sent(request)
    assert [block["text"] for block in old["system"]] == ["Be kind.", "Be brief.", "Be brief."]
    assert [turn["role"] for turn in old["messages"]] == ["user", "assistant", "user"]
    new = sent(request, "claude-opus-4-8")
    assert [block["text"] for block in new["system"]] == ["Be kind."]
    assert [turn["role"] for turn in new["messages"]] == ["user", "assistant", "user", "system"]
    assert len(new["messages"][-1]["content"]) == 2
    before_user = sent(call(user, late, user), "claude-opus-4-8")
    assert len(before_user["system"]) == 1
    after_assistant = sent(call(user, assistant, late), "claude-opus-4-8")
    assert len(after_assistant["system"]) == 1


def test_an_empty_turn_is_left_out_and_an_empty_question_is_not() -> None:
    empty = message(text(""), role=content_pb2.ROLE_ASSISTANT)
    body = sent(call(message(text("")), empty, message(text("go on"))))
    (turn,) = body["messages"]
    assert turn["role"] == "user"
    assert [block["text"] for block in turn["content"]] == ["", "go on"]


def test_legacy_function_calls_get_the_ids_that_anthropic_asks_for() -> None:
    called = content_pb2.Part(tool_call=content_pb2.ToolCall(name="now", arguments=" "))
    answered = content_pb2.Part(tool_result=content_pb2.ToolResult(name="now"))
    body = sent(
        call(
            message(text("time?")),
            message(called, role=content_pb2.ROLE_ASSISTANT),
            message(answered, role=content_pb2.ROLE_TOOL),
        )
    )
    use, result = body["messages"][1]["content"][0], body["messages"][2]["content"][0]
    assert use == {"type": "tool_use", "id": "call_1", "name": "now", "input": {}}
    assert result == {"type": "tool_result", "tool_use_id": "call_1"}


def test_arguments_that_are_no_object_are_wrapped_as_anthropic_asks() -> None:
    made = [
        content_pb2.Part(tool_call=content_pb2.ToolCall(id="t", name="f", arguments=arguments))
        for arguments in ('{"n": 1.50}', '{"n": ', "[1]")
    ]
    request = call(message(*made, role=content_pb2.ROLE_ASSISTANT))
    inputs = [block["input"] for block in sent(request)["messages"][0]["content"]]
    assert inputs == [{"n": 1.5}, {"INVALID_JSON": '{"n": '}, {"INVALID_JSON": "[1]"}]
    sent_bytes = WIRE.request(exchange(request, MODEL)).body
    assert b'{"n": 1.50}' in sent_bytes


def test_thoughts_keep_their_proof_and_lose_what_describes_another_format() -> None:
    thought = content_pb2.Part(
        thinking=content_pb2.ThinkingPart(text="hm", signature="s"),
        extra_json=b'{"format": "x", "index": 0}',
    )
    hidden = content_pb2.Part(thinking=content_pb2.ThinkingPart(redacted_data="d"))
    geminis = content_pb2.Part(thinking=content_pb2.ThinkingPart(signature="gemini:s"))
    body = sent(call(message(thought, hidden, geminis, role=content_pb2.ROLE_ASSISTANT)))
    assert body["messages"][0]["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "d"},
    ]


AUTO, NONE, REQUIRED, ONE, ALLOWED = (
    chat_pb2.TOOL_CHOICE_MODE_AUTO,
    chat_pb2.TOOL_CHOICE_MODE_NONE,
    chat_pb2.TOOL_CHOICE_MODE_REQUIRED,
    chat_pb2.TOOL_CHOICE_MODE_ONE,
    chat_pb2.TOOL_CHOICE_MODE_ALLOWED,
)


@pytest.mark.parametrize(
    ("choice", "parallel", "expected", "offered"),
    [
        (None, None, None, 2),
        (None, True, None, 2),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}, 2),
        ({"mode": AUTO}, None, {"type": "auto"}, 2),
        ({"mode": NONE}, False, {"type": "none"}, 2),
        ({"mode": REQUIRED}, False, {"type": "any", "disable_parallel_tool_use": True}, 2),
        ({"mode": ONE, "names": ["a"]}, True, {"type": "tool", "name": "a"}, 2),
        ({"mode": ONE}, True, {"type": "tool", "name": ""}, 2),
        ({"mode": ALLOWED, "names": ["b"]}, None, {"type": "auto"}, 1),
        ({"mode": ALLOWED, "names": ["b"], "required": True}, None, {"type": "any"}, 1),
    ],
)
def test_the_tool_choice_and_parallel_calls_become_one_rule(
    choice: dict[str, Any] | None,
    parallel: bool | None,
    expected: dict[str, Any] | None,
    offered: int,
) -> None:
    tools = [chat_pb2.Tool(function=chat_pb2.FunctionTool(name=name)) for name in "ab"]
    rule = chat_pb2.ToolChoice(**choice) if choice else None
    body = sent(call(tools=tools, tool_choice=rule, parallel_tool_calls=parallel))
    assert body.get("tool_choice") == expected
    assert len(body["tools"]) == offered


def test_a_rule_without_tools_is_not_sent() -> None:
    body = sent(call(parallel_tool_calls=False, tool_choice=chat_pb2.ToolChoice(mode=AUTO)))
    assert body.keys() == {"model", "max_tokens", "messages"}


def test_a_cache_breakpoint_has_one_of_two_lifetimes() -> None:
    made = [
        sent(
            call(
                message(
                    content_pb2.Part(
                        text=content_pb2.TextPart(text="x"),
                        cache_hint=content_pb2.CacheHint(ttl_s=seconds),
                    )
                )
            )
        )["messages"][0]["content"][0]["cache_control"].get("ttl")
        for seconds in (0, 60, 300, 301, 3600)
    ]
    assert made == [None, "5m", "5m", "1h", "1h"]


def test_asking_for_text_asks_for_nothing_more() -> None:
    assert sent(call(output_modalities=[chat_pb2.OUTPUT_MODALITY_TEXT])) == sent(call())


def test_betas_and_added_fields_reach_anthropic() -> None:
    request = call(extra_json=b'{"anthropic_beta": ["a", "b"], "container": "c"}')
    made = WIRE.request(exchange(request, "claude-opus-5"))
    assert ("anthropic-beta", "a,b") in made.headers
    assert json.loads(made.body)["container"] == "c"
    plain = WIRE.request(exchange(call(), "claude-opus-5"))
    assert dict(plain.headers) == {
        "content-type": "application/json",
        "anthropic-version": "2023-06-01",
    }


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"temperature": 1, "top_p": 1}, {}),
        ({"temperature": 0}, None),
        ({"top_p": 0.5}, None),
        ({"top_k": 5}, None),
    ],
)
def test_models_without_sampling_take_defaults_and_refuse_the_rest(
    fields: dict[str, Any], kept: dict[str, Any] | None
) -> None:
    request = call(**fields)
    if kept is None:
        assert refusal(request, "claude-opus-4-7").param == next(iter(fields))
        assert sent(request, "claude-opus-4-6").items() >= fields.items()
    else:
        assert sent(request, "claude-opus-4-7").keys() == {"model", "max_tokens", "messages"}


@pytest.mark.parametrize(
    ("model", "output_tokens_max", "sampling"),
    [
        ("claude-3-opus-20240229", 4_096, True),
        ("claude-3-5-haiku-latest", 8_192, True),
        ("claude-3-7-sonnet-20250219", 64_000, True),
        ("claude-opus-4-1-20250805", 32_000, True),
        ("claude-sonnet-4-20250514", 64_000, True),
        ("claude-opus-4-5-20251101", 64_000, True),
        ("us.anthropic.claude-sonnet-4-6-v1:0", 128_000, True),
        ("claude-opus-4-8", 128_000, False),
        ("claude-sonnet-7", 128_000, False),
        ("claude-fable-5-1", 128_000, False),
        ("claude-poem-1", 8_192, True),
        ("claude-haiku-2", 8_192, True),
        ("claude-2.1", 8_192, True),
        ("glm-5", 8_192, True),
    ],
)
def test_a_model_is_known_by_family_and_version(
    model: str, output_tokens_max: int, sampling: bool
) -> None:
    traits = anthropic_models.traits(model)
    assert (traits.output_tokens_max, traits.sampling) == (output_tokens_max, sampling)


EFFORT_NONE, MINIMAL, LOW, MEDIUM, HIGH, XHIGH, MAX = (
    chat_pb2.THINKING_EFFORT_NONE,
    chat_pb2.THINKING_EFFORT_MINIMAL,
    chat_pb2.THINKING_EFFORT_LOW,
    chat_pb2.THINKING_EFFORT_MEDIUM,
    chat_pb2.THINKING_EFFORT_HIGH,
    chat_pb2.THINKING_EFFORT_XHIGH,
    chat_pb2.THINKING_EFFORT_MAX,
)


@pytest.mark.parametrize(
    ("model", "asked", "thinking", "effort"),
    [
        ("claude-sonnet-4-5", {"effort": MINIMAL}, ("enabled", 1_024), None),
        ("claude-sonnet-4-5", {"effort": MEDIUM}, ("enabled", 8_192), None),
        ("claude-sonnet-4-5", {"effort": MAX}, ("enabled", 32_000), None),
        ("claude-sonnet-4-5", {"enabled": True}, ("enabled", 8_192), None),
        ("claude-sonnet-4-5", {"effort": EFFORT_NONE}, None, None),
        ("claude-opus-4-5", {"budget_tokens": 4096, "effort": LOW}, ("enabled", 4096), "low"),
        ("claude-opus-4-5", {"enabled": False, "effort": MAX}, None, "high"),
        ("claude-opus-4-6", {"budget_tokens": 4096}, ("enabled", 4096), None),
        ("claude-opus-4-6", {"effort": XHIGH}, ("adaptive", None), "high"),
        ("claude-opus-4-6", {"effort": MAX}, ("adaptive", None), "max"),
        ("claude-opus-4-8", {"effort": MINIMAL}, ("adaptive", None), "low"),
        ("claude-opus-4-8", {"effort": XHIGH}, ("adaptive", None), "xhigh"),
        ("claude-opus-4-8", {"enabled": True}, ("adaptive", None), None),
        ("claude-opus-4-8", {"effort": EFFORT_NONE}, None, None),
        ("claude-opus-5", {"effort": EFFORT_NONE}, ("disabled", None), None),
        ("claude-sonnet-5-5", {"enabled": False}, ("between_tools", None), None),
        ("deepseek-v4", {"effort": HIGH}, ("enabled", 4_096), None),
    ],
)
def test_an_effort_becomes_what_the_model_has(
    model: str,
    asked: dict[str, Any],
    thinking: tuple[str, int | None] | None,
    effort: str | None,
) -> None:
    body = sent(call(thinking=chat_pb2.Thinking(**asked)), model)
    made = body.get("thinking")
    assert (made and (made["type"], made.get("budget_tokens"))) == thinking
    assert body.get("output_config", {}).get("effort") == effort


@pytest.mark.parametrize(
    ("model", "asked", "output_tokens_max", "param"),
    [
        ("claude-opus-5-5", {"effort": EFFORT_NONE}, None, "reasoning_effort"),
        ("claude-3-5-haiku-latest", {"effort": LOW}, None, "reasoning_effort"),
        ("claude-opus-5-5", {"budget_tokens": 2048}, None, "thinking.budget_tokens"),
        ("claude-sonnet-4-5", {"effort": LOW}, 1024, "reasoning_effort"),
    ],
)
def test_thinking_that_the_model_cannot_do_is_refused(
    model: str, asked: dict[str, Any], output_tokens_max: int | None, param: str
) -> None:
    request = call(thinking=chat_pb2.Thinking(**asked), output_tokens_max=output_tokens_max)
    error = refusal(request, model)
    assert (error.reason, error.param) == (UNSUPPORTED, param)


def test_thinking_leaves_room_for_the_answer() -> None:
    request = call(thinking=chat_pb2.Thinking(effort=HIGH), output_tokens_max=6_000)
    assert sent(request)["thinking"]["budget_tokens"] == 3_000
    request.output_tokens_max = 1_500
    assert sent(request)["thinking"]["budget_tokens"] == 1_024


@pytest.mark.parametrize(
    ("model", "shown", "display"),
    [
        ("claude-sonnet-4-5", True, None),
        ("claude-sonnet-4-5", False, "omitted"),
        ("claude-opus-4-8", True, "summarized"),
        ("claude-opus-4-8", False, "omitted"),
    ],
)
def test_thoughts_are_shown_or_not_as_asked(model: str, shown: bool, display: str | None) -> None:
    request = call(thinking=chat_pb2.Thinking(effort=HIGH, include_thoughts=shown))
    assert sent(request, model)["thinking"].get("display") == display
