"""The hub's requests in OpenAI's dialect: nothing is dropped silently, whatever the vendor."""

from typing import Any

import pytest

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from services.router.providers.base import Exchange
from services.router.providers.compatible import (
    ALIBABA,
    DEEPSEEK,
    GITHUB,
    GROQ,
    MISTRAL,
    MOONSHOT,
    OPENAI,
    OPENROUTER,
    PERPLEXITY,
    ROWS,
    ZAI,
)
from services.router.providers.compatible_servers import LLAMACPP, OLLAMA, VLLM
from services.router.providers.openai import OpenAIWire
from services.router.providers.openai_request import FIELDS, HARMLESS, KEPT, Rule
from services.router.providers.openai_row import Compatible
from tests.providers.openai_calls import (
    INVALID,
    UNSUPPORTED,
    Part,
    assistant,
    call,
    choice,
    message,
    refusal,
    sent,
    sent_or_none,
    text,
)

NONE, LOW, HIGH, MAX = (
    chat_pb2.THINKING_EFFORT_NONE,
    chat_pb2.THINKING_EFFORT_LOW,
    chat_pb2.THINKING_EFFORT_HIGH,
    chat_pb2.THINKING_EFFORT_MAX,
)
FUNCTION = chat_pb2.Tool(function=chat_pb2.FunctionTool(name="f"))
SECOND = chat_pb2.Tool(function=chat_pb2.FunctionTool(name="g"))
CUSTOM = chat_pb2.Tool(custom=chat_pb2.CustomTool(name="c"))


SAMPLES: dict[str, Any] = {
    "model": "x/y",
    "messages": [message(text("hello"), role=content_pb2.ROLE_SYSTEM)],
    "tools": [FUNCTION],
    "tool_choice": choice(chat_pb2.TOOL_CHOICE_MODE_REQUIRED),
    "parallel_tool_calls": False,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "min_p": 0.5,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "seed": 5,
    "stop": ["x"],
    "logit_bias": {"5": 5},
    "output_tokens_max": 5,
    "choices": 2,
    "response_format": chat_pb2.ResponseFormat(
        kind=chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA, name="n", schema=b"{}"
    ),
    "thinking": chat_pb2.Thinking(effort=LOW),
    "logprobs": True,
    "top_logprobs": 5,
    "output_modalities": [chat_pb2.OUTPUT_MODALITY_IMAGE],
    "audio_output": chat_pb2.AudioOutput(format="wav", voice_id="v"),
    "stream": True,
    "stream_usage": True,
    "service_tier": "flex",
    "store": True,
    "verbosity": "low",
    "prediction": [text("x")],
    "web_search_options_json": b"{}",
    "prompt_cache_key": "x",
    "prompt_cache_retention": "24h",
    "metadata": {"k": "v"},
    "end_user": "x",
    "safety_identifier": "x",
    "extra_json": b'{"novel": 1}',
    "routing": chat_pb2.RoutingPreferences(provider_only=["x"]),
    "context": chat_pb2.CallContext(request_id="x"),
    "native": chat_pb2.NativeRequest(body=b"{}"),
    "legacy_output_tokens_max": True,
    "legacy_functions": True,
}
"""A value of every field that asks for something."""

SILENT = {name for name, rule in FIELDS.items() if rule is Rule.GATEWAY} | {
    "model",
    "legacy_output_tokens_max",
    "legacy_functions",
}
"""Fields that by themselves change nothing that a provider sees."""


def test_every_field_of_a_request_has_a_rule_and_a_sample() -> None:
    fields = set(chat_pb2.ChatRequest.DESCRIPTOR.fields_by_name)
    assert fields == FIELDS.keys() == SAMPLES.keys()
    assert HARMLESS.keys() | KEPT <= fields
    for row in ROWS:
        assert row.fields.keys() <= fields


@pytest.mark.parametrize("name", SAMPLES)
def test_a_field_is_sent_or_refused_and_never_dropped(name: str) -> None:
    request = chat_pb2.ChatRequest(**{name: SAMPLES[name]})
    derived = {"tool_choice", "response_format", "thinking", "legacy_functions"}
    for row in ROWS:
        body = sent_or_none(row, request)
        own = row.fields.get(name, "")
        if body is None:
            assert name in derived or own is None, row.kind
        elif name in SILENT or (name in KEPT and own is None):
            assert body == sent(row, chat_pb2.ChatRequest()), row.kind
        else:
            assert body != sent(row, chat_pb2.ChatRequest()), row.kind
            assert not own or own in body, row.kind


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in HARMLESS.items() for value in values]
)
def test_a_wish_for_what_happens_anyway_is_never_refused(name: str, value: Any) -> None:
    for row in ROWS:
        body = sent(row, call(**{name: value}))
        if row.fields.get(name, "") is None:
            assert body == sent(row, call())


@pytest.mark.parametrize(
    ("row", "fields", "member", "value"),
    [
        (OPENAI, {"output_tokens_max": 5}, "max_completion_tokens", 5),
        (
            OPENAI,
            {"output_tokens_max": 5, "legacy_output_tokens_max": True},
            "max_tokens",
            5,
        ),
        (MISTRAL, {"output_tokens_max": 5}, "max_tokens", 5),
        (MISTRAL, {"seed": 5}, "random_seed", 5),
        (ZAI, {"end_user": "u"}, "user_id", "u"),
        (GROQ, {"service_tier": "default"}, "service_tier", "on_demand"),
        (GROQ, {"service_tier": "flex"}, "service_tier", "flex"),
        (OPENAI, {"logit_bias": {"5": -100.0, "6": 0.5}}, "logit_bias", {"5": -100, "6": 0.5}),
        (
            OPENAI,
            {"audio_output": chat_pb2.AudioOutput(format="mp3", voice="ash")},
            "audio",
            {"format": "mp3", "voice": "ash"},
        ),
        (
            OPENAI,
            {"audio_output": chat_pb2.AudioOutput(format="mp3", voice_id="v1")},
            "audio",
            {"format": "mp3", "voice": {"id": "v1"}},
        ),
        (
            OPENAI,
            {"response_format": chat_pb2.ResponseFormat(kind=chat_pb2.RESPONSE_FORMAT_KIND_TEXT)},
            "response_format",
            {"type": "text"},
        ),
        (
            OPENAI,
            {
                "response_format": chat_pb2.ResponseFormat(
                    kind=chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA, name="n"
                )
            },
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "n"}},
        ),
        (OPENAI, {"temperature": 0.0}, "temperature", 0.0),
        (OPENAI, {"stream": True}, "stream_options", {"include_usage": True}),
        (
            OPENAI,
            {"stream": True, "extra_json": b'{"stream_options": {"include_obfuscation": false}}'},
            "stream_options",
            {"include_usage": True, "include_obfuscation": False},
        ),
        (MISTRAL, {"stream": True}, "stream_options", None),
        (OPENAI, {"extra_json": b'{"a": {"b": [1e400, 0.10]}}'}, "a", {"b": [float("inf"), 0.1]}),
    ],
)
def test_a_field_is_said_in_the_vendors_words(
    row: Compatible, fields: dict[str, Any], member: str, value: Any
) -> None:
    assert sent(row, call(**fields)).get(member) == value


def test_foreign_json_keeps_its_very_bytes() -> None:
    schema = b'{ "type":"object",\n "x": 1.10 }'
    tool = chat_pb2.Tool(function=chat_pb2.FunctionTool(name="f", parameters_schema=schema))
    exchange = Exchange(
        request=call(tools=[tool], logit_bias={"5": -100}, extra_json=b'{"k": [ 1, 2.50 ]}'),
        model="m",
        cost=lambda tokens: 0,
    )
    body = OpenAIWire(OPENAI).request(exchange).body
    assert schema in body
    assert b'"k":[ 1, 2.50 ]' in body
    # OpenAI takes whole numbers only.
    assert b'"logit_bias":{"5":-100}' in body


@pytest.mark.parametrize(
    ("row", "wish", "members"),
    [
        (OPENAI, {"effort": HIGH}, {"reasoning_effort": "high"}),
        (OPENAI, {"effort": NONE}, {"reasoning_effort": "none"}),
        (OPENAI, {"enabled": True}, {"reasoning_effort": "medium"}),
        (OPENAI, {"enabled": True, "effort": LOW}, {"reasoning_effort": "low"}),
        (OPENAI, {"enabled": False}, {"reasoning_effort": "none"}),
        (OPENAI, {"budget_tokens": 0}, {"reasoning_effort": "none"}),
        (OPENAI, {"budget_tokens": 1000}, {"reasoning_effort": "low"}),
        (OPENAI, {"budget_tokens": 8000}, {"reasoning_effort": "medium"}),
        (OPENAI, {"budget_tokens": 9000}, {"reasoning_effort": "high"}),
        (OPENAI, {"include_thoughts": False}, {}),
        (OPENROUTER, {"budget_tokens": 9}, {"reasoning": {"max_tokens": 9}}),
        (
            OPENROUTER,
            {"enabled": True, "effort": HIGH},
            {"reasoning": {"enabled": True, "effort": "high"}},
        ),
        (OPENROUTER, {"effort": NONE}, {"reasoning": {"effort": "none"}}),
        (DEEPSEEK, {"effort": NONE}, {"thinking": {"type": "disabled"}}),
        (
            DEEPSEEK,
            {"enabled": True, "effort": MAX},
            {"thinking": {"type": "enabled"}, "reasoning_effort": "max"},
        ),
        (MOONSHOT, {"effort": LOW}, {"reasoning_effort": "low"}),
        (ALIBABA, {"effort": HIGH}, {"enable_thinking": True, "thinking_budget": 24576}),
        (ALIBABA, {"effort": MAX}, {"enable_thinking": True}),
        (ALIBABA, {"enabled": True}, {"enable_thinking": True}),
        (ALIBABA, {"budget_tokens": 9}, {"enable_thinking": True, "thinking_budget": 9}),
        (ALIBABA, {"enabled": False}, {"enable_thinking": False}),
        (LLAMACPP, {"effort": HIGH}, {"chat_template_kwargs": {"reasoning_effort": "high"}}),
        (
            LLAMACPP,
            {"enabled": True, "effort": HIGH},
            {"chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": "high"}},
        ),
        (GITHUB, {"include_thoughts": False}, {}),
    ],
)
def test_a_wish_for_thinking_turns_the_vendors_knob(
    row: Compatible, wish: dict[str, Any], members: dict[str, Any]
) -> None:
    body = sent(row, call(thinking=chat_pb2.Thinking(**wish)))
    assert {key: body[key] for key in body if key not in ("model", "messages")} == members


@pytest.mark.parametrize(
    ("row", "wish", "param"),
    [
        (OPENAI, {"include_thoughts": True}, "reasoning.exclude"),
        (GITHUB, {"include_thoughts": True}, "reasoning.exclude"),
        (GITHUB, {"effort": LOW}, "reasoning_effort"),
        (PERPLEXITY, {"effort": NONE}, "reasoning_effort"),
    ],
)
def test_a_wish_for_thinking_without_a_knob_is_refused(
    row: Compatible, wish: dict[str, Any], param: str
) -> None:
    assert refusal(row, call(thinking=chat_pb2.Thinking(**wish))) == (UNSUPPORTED, param)


@pytest.mark.parametrize(
    ("row", "rule", "tools", "written"),
    [
        (OPENAI, choice(chat_pb2.TOOL_CHOICE_MODE_AUTO), ["f", "c"], "auto"),
        (OPENAI, choice(chat_pb2.TOOL_CHOICE_MODE_NONE), ["f", "c"], "none"),
        (
            OPENAI,
            choice(chat_pb2.TOOL_CHOICE_MODE_ONE, "c", kind=content_pb2.TOOL_KIND_CUSTOM),
            ["f", "c"],
            {"type": "custom", "custom": {"name": "c"}},
        ),
        (
            OPENAI,
            choice(chat_pb2.TOOL_CHOICE_MODE_ALLOWED, "f", "c"),
            ["f", "c"],
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "auto",
                    "tools": [
                        {"type": "function", "function": {"name": "f"}},
                        {"type": "custom", "custom": {"name": "c"}},
                    ],
                },
            },
        ),
        (VLLM, choice(chat_pb2.TOOL_CHOICE_MODE_ALLOWED, "f"), ["f"], "auto"),
        (VLLM, choice(chat_pb2.TOOL_CHOICE_MODE_ALLOWED, "f", required=True), ["f"], "required"),
        (
            VLLM,
            choice(chat_pb2.TOOL_CHOICE_MODE_ONE, "f"),
            ["f", "g"],
            {"type": "function", "function": {"name": "f"}},
        ),
        (LLAMACPP, choice(chat_pb2.TOOL_CHOICE_MODE_ONE, "g"), ["g"], "required"),
        (OLLAMA, choice(chat_pb2.TOOL_CHOICE_MODE_NONE), None, None),
        (OLLAMA, choice(chat_pb2.TOOL_CHOICE_MODE_AUTO), ["f", "g"], "auto"),
    ],
)
def test_a_tool_choice_is_said_or_derived(
    row: Compatible, rule: chat_pb2.ToolChoice, tools: list[str] | None, written: Any
) -> None:
    second = CUSTOM if row.custom_tools else SECOND
    body = sent(row, call(tools=[FUNCTION, second], tool_choice=rule))
    found = [tool[tool["type"]]["name"] for tool in body.get("tools", [])]
    assert (found or None, body.get("tool_choice")) == (tools, written)


def test_a_tool_is_written_with_all_that_it_says() -> None:
    function = chat_pb2.FunctionTool(
        name="f", description="d", parameters_schema=b'{"type":"object"}', strict=False
    )
    custom = chat_pb2.CustomTool(name="c", description="d", format_json=b'{"type":"text"}')
    hint = content_pb2.CacheHint(ttl_s=600)
    tools = [
        chat_pb2.Tool(function=function, cache_hint=hint),
        chat_pb2.Tool(provider_json=b'{"type":"web_search"}'),
    ]
    body = sent(OPENROUTER, call(tools=tools))["tools"]
    schema = {"type": "object"}
    inner = {"name": "f", "description": "d", "parameters": schema, "strict": False}
    assert body == [
        {
            "type": "function",
            "function": inner,
            "cache_control": {"type": "ephemeral", "ttl": "1h"},
        },
        {"type": "web_search"},
    ]
    body = sent(OPENAI, call(tools=[*tools, chat_pb2.Tool(custom=custom), CUSTOM]))["tools"]
    assert body[0] == {"type": "function", "function": inner}
    form = {"type": "text"}
    assert body[2] == {
        "type": "custom",
        "custom": {"name": "c", "description": "d", "format": form},
    }
    assert body[3] == {"type": "custom", "custom": {"name": "c"}}


@pytest.mark.parametrize(
    ("row", "request_", "refused"),
    [
        (ZAI, call(tool_choice=choice(3)), (UNSUPPORTED, "tool_choice")),
        (ZAI, call(tool_choice=choice(4, "f")), (UNSUPPORTED, "tool_choice")),
        (OPENAI, call(tool_choice=choice(4)), (INVALID, "tool_choice")),
        (VLLM, call(tools=[CUSTOM]), (UNSUPPORTED, "tools.custom")),
        (OPENAI, call(tools=[chat_pb2.Tool()]), (INVALID, "tools")),
        (VLLM, call(legacy_functions=True), (UNSUPPORTED, "functions")),
        (OPENAI, call(tools=[CUSTOM], legacy_functions=True), (UNSUPPORTED, "functions")),
        (
            OPENAI,
            call(tools=[FUNCTION], tool_choice=choice(3), legacy_functions=True),
            (UNSUPPORTED, "tool_choice"),
        ),
        (
            DEEPSEEK,
            call(
                response_format=chat_pb2.ResponseFormat(
                    kind=chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA
                )
            ),
            (UNSUPPORTED, "response_format.json_schema"),
        ),
        (
            OPENAI,
            call(response_format=chat_pb2.ResponseFormat(name="n")),
            (INVALID, "response_format"),
        ),
        (OPENAI, call(extra_json=b"[1]"), (INVALID, "extra_json")),
        (OPENAI, call(extra_json=b'{"\xff": 1}'), (INVALID, "extra_json")),
        (OPENAI, call(extra_json=b'{"model": "x"}'), (INVALID, "extra_json.model")),
        (
            OPENAI,
            call(stream=True, extra_json=b'{"stream_options": {"include_usage": false}}'),
            (INVALID, "extra_json.stream_options.include_usage"),
        ),
        (OPENAI, call(web_search_options_json=b"{"), (INVALID, "web_search_options")),
        (OPENAI, call(top_k=3), (UNSUPPORTED, "top_k")),
        (MISTRAL, call(logit_bias={"1": 1}), (UNSUPPORTED, "logit_bias")),
        (GROQ, call(choices=2), (UNSUPPORTED, "n")),
        (DEEPSEEK, call(store=True), (UNSUPPORTED, "store")),
        (DEEPSEEK, call(service_tier="priority"), (UNSUPPORTED, "service_tier")),
        (
            GROQ,
            call(message(text("x"), name="ann")),
            (UNSUPPORTED, "messages[0].name"),
        ),
        (OPENAI, call(message(text("x"), role=0)), (INVALID, "messages[0].role")),
        (
            OPENAI,
            call(message(text("x"), role=content_pb2.ROLE_TOOL)),
            (INVALID, "messages[0]"),
        ),
        (OPENAI, call(message(Part(), Part())), (INVALID, "messages[0].content[0]")),
        (
            OPENAI,
            call(message(Part(tool_call=content_pb2.ToolCall(id="x")))),
            (INVALID, "messages[0].content[0]"),
        ),
        (
            VLLM,
            call(
                assistant(
                    Part(tool_call=content_pb2.ToolCall(id="x", kind=content_pb2.TOOL_KIND_CUSTOM)),
                )
            ),
            (UNSUPPORTED, "messages[0].tool_calls[0].custom"),
        ),
        (
            OPENAI,
            call(assistant(Part(audio=content_pb2.AudioPart(transcript="x")))),
            (UNSUPPORTED, "messages[0].audio"),
        ),
        (
            OPENAI,
            call(assistant(Part(opaque_json=b"[1]"))),
            (INVALID, "messages[0]"),
        ),
    ],
)
def test_what_cannot_be_said_is_refused(
    row: Compatible, request_: chat_pb2.ChatRequest, refused: tuple[int, str]
) -> None:
    assert refusal(row, request_) == refused


def test_a_choice_among_functions_is_said_in_the_legacy_form() -> None:
    request = call(tools=[FUNCTION], legacy_functions=True, tool_choice=choice(2))
    body = sent(OPENAI, request)
    assert (body["functions"], body["function_call"]) == ([{"name": "f"}], "none")
    assert "functions" not in sent(OPENAI, call(legacy_functions=True))
