"""What the Bedrock wire sends: every request field, what is refused, what models differ in."""

import base64
import json
from typing import Any

import pytest

from onegate.common.v1 import content_pb2, error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers import bedrock_models
from services.router.providers.bedrock import FIELDS, WIRE
from services.router.providers.bedrock_media import Names
from services.router.providers.foreign import HARMLESS, Rule
from tests.providers.calls import body_of, call, exchange, message, refusal_of, set_field, text

UNSUPPORTED = error_pb2.ERROR_REASON_UNSUPPORTED_PARAMETER
INVALID = error_pb2.ERROR_REASON_INVALID_REQUEST
CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
NEW_CLAUDE = "global.anthropic.claude-opus-4-8"
NOVA, NOVA_2 = "amazon.nova-pro-v1:0", "eu.amazon.nova-2-lite-v1:0"
LLAMA, MISTRAL = "meta.llama3-2-1b-instruct-v1:0", "mistral.mistral-large-2402-v1:0"
HIDDEN = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/mi1dadi0g15f"
ASSISTANT, TOOL = content_pb2.ROLE_ASSISTANT, content_pb2.ROLE_TOOL


def sent(request: chat_pb2.ChatRequest, model: str = CLAUDE) -> dict[str, Any]:
    return body_of(WIRE, request, model)


def refusal(request: chat_pb2.ChatRequest, model: str = CLAUDE) -> GatewayError:
    return refusal_of(WIRE, request, model)


def function(name: str = "f", **fields: Any) -> chat_pb2.Tool:
    return chat_pb2.Tool(function=chat_pb2.FunctionTool(name=name, **fields))


def called(call_id: str = "a", arguments: str = "{}", **fields: Any) -> content_pb2.Part:
    made = content_pb2.ToolCall(id=call_id, name="f", arguments=arguments, **fields)
    return content_pb2.Part(tool_call=made)


def answered(call_id: str, *parts: content_pb2.Part, **fields: Any) -> content_pb2.Part:
    result = content_pb2.ToolResult(tool_call_id=call_id, parts=parts, **fields)
    return content_pb2.Part(tool_result=result)


def medium(kind: str, **fields: Any) -> content_pb2.Part:
    beside = {name: fields.pop(name) for name in ("detail", "format", "filename") if name in fields}
    part = content_pb2.Part()
    value = getattr(part, kind)
    value.SetInParent()
    for name, given in beside.items():
        setattr(value, name, given)
    if fields:
        value.source.CopyFrom(content_pb2.MediaSource(**fields))
    return part


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
        ({"web_search_options_json": b"{}"}, "web_search_options"),
        ({"audio_output": chat_pb2.AudioOutput(format="wav")}, "audio"),
        ({"output_modalities": [chat_pb2.OUTPUT_MODALITY_AUDIO]}, "modalities"),
        ({"service_tier": "scale"}, "service_tier"),
        ({"extra_json": b'{"enable_thinking": true}'}, "enable_thinking"),
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
        ({"tools": [function()], "parallel_tool_calls": False}, "parallel_tool_calls"),
    ],
)
def test_what_bedrock_lacks_is_refused_by_its_openai_name(
    fields: dict[str, Any], param: str
) -> None:
    error = refusal(call(**fields))
    assert (error.reason, error.param) == (UNSUPPORTED, param)
    assert f"`{param}`" in error.message


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_a_value_that_asks_for_what_happens_anyway_is_accepted(name: str) -> None:
    assert sent(call(**{name: HARMLESS[name]})) == sent(call())
    assert sent(call(output_modalities=[chat_pb2.OUTPUT_MODALITY_TEXT])) == sent(call())
    assert sent(call(parallel_tool_calls=False)) == sent(call())
    both = call(tools=[function()], parallel_tool_calls=True)
    assert sent(both) == sent(call(tools=[function()]))


@pytest.mark.parametrize(
    ("part", "param"),
    [
        (content_pb2.Part(), "[0]"),
        (content_pb2.Part(opaque_json=b'{"sticker": 1}'), "[0]"),
        (content_pb2.Part(opaque_json=b'{"json": {}}'), "[0]"),
        (
            content_pb2.Part(text=content_pb2.TextPart(text="x"), extra_json=b'{"mood": 1}'),
            "[0].mood",
        ),
        (
            content_pb2.Part(text=content_pb2.TextPart(text="x"), extra_json=b'{"context": "x"}'),
            "[0].context",
        ),
        (medium("image", detail="low"), "[0].image_url.detail"),
        (medium("image", url="https://a.example/b.png"), "[0]"),
        (medium("image", file_id="file-1"), "[0]"),
        (medium("image", data=b"x", media_type="image/tiff"), "[0]"),
        (medium("file", data=b"x", media_type="application/zip", filename="a.zip"), "[0]"),
        (content_pb2.Part(audio=content_pb2.AudioPart(audio_id="a1")), "[0].audio"),
        (answered("a", content_pb2.Part(audio=content_pb2.AudioPart(format="wav"))), "[0][0]"),
        (called(kind=content_pb2.TOOL_KIND_CUSTOM), "[0]"),
    ],
)
def test_a_part_that_bedrock_lacks_is_refused(part: content_pb2.Part, param: str) -> None:
    if part.tool_result.parts:
        part.tool_result.parts[0].audio.source.data = b"x"
    error = refusal(call(message(part)))
    assert (error.reason, error.param) == (UNSUPPORTED, f"messages[0].content{param}")


def test_citations_that_come_back_say_nothing_new() -> None:
    cited = content_pb2.Part(text=content_pb2.TextPart(text="x"), extra_json=b'{"citations": []}')
    assert sent(call(message(cited)))["messages"][0]["content"] == [{"text": "x"}]


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (call(content_pb2.Message()), "messages[0].role"),
        (call(message(text("4"), role=TOOL)), "messages[0].tool_call_id"),
        (call(message(medium("image"))), "messages[0].content[0]"),
        (call(message(content_pb2.Part(opaque_json=b"[1]"))), "messages[0].content[0]"),
        (call(extra_json=b"{"), "extra"),
        (call(extra_json=b'{"outputConfig": 1}'), "outputConfig"),
        (call(tools=[function(parameters_schema=b"true")]), "tools[0].function.parameters"),
        (
            call(
                response_format=chat_pb2.ResponseFormat(
                    kind=chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA, schema=b"1"
                )
            ),
            "response_format.json_schema.schema",
        ),
    ],
)
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


def test_the_system_prompt_takes_text_only() -> None:
    picture = medium("image", data=b"x", media_type="image/png")
    error = refusal(call(message(picture, role=content_pb2.ROLE_SYSTEM)))
    assert (error.reason, error.param) == (UNSUPPORTED, "messages[0]")
    guarded = content_pb2.Part(opaque_json=b'{"guardContent": {"text": {"text": "x"}}}')
    body = sent(
        call(message(text(""), guarded, role=content_pb2.ROLE_DEVELOPER), message(text("q")))
    )
    assert body["system"] == [{"guardContent": {"text": {"text": "x"}}}]


def test_turns_of_one_role_are_one_turn_and_an_empty_one_is_left_out() -> None:
    refused = content_pb2.Part(refusal=content_pb2.RefusalPart(text="no"))
    body = sent(
        call(
            message(text("a")),
            message(text(""), role=ASSISTANT),
            message(text("b")),
            message(refused, role=ASSISTANT),
            message(text("")),
        )
    )
    assert body["messages"] == [
        {"role": "user", "content": [{"text": "a"}, {"text": "b"}]},
        {"role": "assistant", "content": [{"text": "no"}]},
        {"role": "user", "content": [{"text": ""}]},
    ]


def test_blocks_that_came_beside_a_stream_can_be_sent_back() -> None:
    thought = content_pb2.Part(thinking=content_pb2.ThinkingPart(text="hm", signature="s"))
    said = message(thought, text("So."), role=ASSISTANT)
    own = {"toolUse": {"toolUseId": "t", "name": "run", "input": {}, "type": "server_tool_use"}}
    beside = {"parts": [own], "annotations": []}
    said.extra_json = json.dumps({"provider_specific_fields": beside}).encode()
    blocks = sent(call(said))["messages"][0]["content"]
    assert [next(iter(block)) for block in blocks] == ["reasoningContent", "toolUse", "text"]
    said.extra_json = b'{"provider_specific_fields": {"parts": [{"sticker": 1}]}}'
    assert refusal(call(said)).param == "messages[0].provider_specific_fields"


def test_thoughts_go_back_with_their_proof_to_models_that_take_them() -> None:
    thoughts = [
        content_pb2.ThinkingPart(text="hm", signature="s"),
        content_pb2.ThinkingPart(redacted_data="EuE"),
        content_pb2.ThinkingPart(redacted_data="bedrock:/w=="),
        content_pb2.ThinkingPart(text="unproven"),
        content_pb2.ThinkingPart(signature="gemini:s"),
    ]
    said = message(*(content_pb2.Part(thinking=each) for each in thoughts), role=ASSISTANT)
    for model in (CLAUDE, HIDDEN):
        assert sent(call(said), model)["messages"][0]["content"] == [
            {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "s"}}},
            {"reasoningContent": {"redactedContent": base64.b64encode(b"EuE").decode()}},
            {"reasoningContent": {"redactedContent": "/w=="}},
        ]
    assert sent(call(said), NOVA_2)["messages"] == []


@pytest.mark.parametrize(
    ("model", "said", "after_tools"),
    [
        (CLAUDE, {"type": "default", "ttl": "1h"}, True),
        (HIDDEN, {"type": "default", "ttl": "1h"}, True),
        (NOVA, {"type": "default"}, False),
        (LLAMA, None, False),
    ],
)
def test_a_cache_breakpoint_goes_where_the_model_takes_one(
    model: str, said: dict[str, Any] | None, after_tools: bool
) -> None:
    hint = content_pb2.CacheHint(ttl_s=3600)
    part = content_pb2.Part(text=content_pb2.TextPart(text="x"), cache_hint=hint)
    tool = function()
    tool.cache_hint.SetInParent()
    body = sent(call(message(part), tools=[tool]), model)
    point = [{"cachePoint": said}] if said else []
    assert body["messages"][0]["content"] == [{"text": "x"}, *point]
    tools = body["toolConfig"]["tools"][1:]
    assert tools == ([{"cachePoint": {"type": "default"}}] if after_tools else [])


@pytest.mark.parametrize(("ttl_s", "ttl"), [(0, None), (60, "5m"), (300, "5m"), (301, "1h")])
def test_a_cache_breakpoint_has_one_of_two_lifetimes(ttl_s: int, ttl: str | None) -> None:
    hint = content_pb2.CacheHint(ttl_s=ttl_s)
    part = content_pb2.Part(text=content_pb2.TextPart(text="x"), cache_hint=hint)
    point = sent(call(message(part)))["messages"][0]["content"][1]["cachePoint"]
    assert point.get("ttl") == ttl


def test_a_breakpoint_after_nothing_that_is_sent_is_left_out() -> None:
    hidden = content_pb2.Part(
        thinking=content_pb2.ThinkingPart(text="x"), cache_hint=content_pb2.CacheHint()
    )
    body = sent(call(message(hidden, text("a"), role=ASSISTANT)))
    assert body["messages"][0]["content"] == [{"text": "a"}]


def test_results_say_what_the_model_takes() -> None:
    picture = medium("image", data=b"x", media_type="image/jpg")
    own = content_pb2.Part(opaque_json=b'{"json": {"n": 1}}')
    result = answered("a", text("no"), text(""), picture, own, is_error=True)
    talk = call(message(text("q")), message(called(), role=ASSISTANT), message(result, role=TOOL))
    told = sent(talk)["messages"][2]["content"][0]["toolResult"]
    assert told["status"] == "error"
    assert [next(iter(block)) for block in told["content"]] == ["text", "image", "json"]
    assert "status" not in sent(talk, MISTRAL)["messages"][2]["content"][0]["toolResult"]


def test_ids_are_what_the_model_takes() -> None:
    long = "functions.look:0" + "x" * 60
    talk = call(
        message(called(long), role=ASSISTANT), message(answered(long, text("4")), role=TOOL)
    )
    for model in (CLAUDE, MISTRAL):
        use, result = (turn["content"][0] for turn in sent(talk, model)["messages"])
        assert use["toolUse"]["toolUseId"] == result["toolResult"]["toolUseId"]
        assert len(use["toolUse"]["toolUseId"]) == 64
    short = call(message(called("functions.f:0"), role=ASSISTANT))
    assert sent(short)["messages"][0]["content"][0]["toolUse"]["toolUseId"] == "functions_f_0"
    kimi = sent(short, "moonshot.kimi-k2-thinking")["messages"][0]["content"][0]["toolUse"]
    assert kimi["toolUseId"] == "functions.f:0"


def test_legacy_function_calls_get_ids() -> None:
    talk = call(
        message(text("time?")),
        message(called("", " "), role=ASSISTANT),
        message(answered("", text("4")), role=TOOL),
    )
    use, result = (turn["content"][0] for turn in sent(talk)["messages"][1:])
    assert use == {"toolUse": {"toolUseId": "call_1", "name": "f", "input": {}}}
    assert result["toolResult"]["toolUseId"] == "call_1"


def test_arguments_that_were_cut_are_wrapped() -> None:
    body = sent(call(message(called("a", '{"n": '), role=ASSISTANT)))
    use = body["messages"][0]["content"][0]["toolUse"]
    assert use["input"] == {"INVALID_JSON": '{"n": '}


@pytest.mark.parametrize(
    ("part", "block"),
    [
        (
            medium("image", data=b"x", media_type="image/webp"),
            {"image": {"format": "webp", "source": {"bytes": "eA=="}}},
        ),
        (
            medium("image", url="s3://b/k.PNG"),
            {"image": {"format": "png", "source": {"s3Location": {"uri": "s3://b/k.PNG"}}}},
        ),
        (
            medium("file", data=b"x", media_type="image/gif", filename="a.gif"),
            {"image": {"format": "gif", "source": {"bytes": "eA=="}}},
        ),
        (
            medium("file", data=b"x", filename="dir/notes.MD"),
            {"document": {"name": "notes", "format": "md", "source": {"bytes": "eA=="}}},
        ),
        (
            medium("file", data=b"x", media_type="text/plain; charset=utf-8"),
            {"document": {"name": "Document", "format": "txt", "source": {"bytes": "eA=="}}},
        ),
        (
            medium("video", data=b"x", media_type="video/3gpp"),
            {"video": {"format": "three_gp", "source": {"bytes": "eA=="}}},
        ),
        (
            medium("audio", data=b"x", format="wav"),
            {"audio": {"format": "wav", "source": {"bytes": "eA=="}}},
        ),
        (
            medium("audio", data=b"x", media_type="audio/mpeg"),
            {"audio": {"format": "mp3", "source": {"bytes": "eA=="}}},
        ),
    ],
)
def test_media_have_a_format_and_a_place(part: content_pb2.Part, block: dict[str, Any]) -> None:
    assert sent(call(message(part)))["messages"][0]["content"] == [block]


def test_every_document_has_a_name_of_its_own() -> None:
    names = Names()
    given = ["a.pdf", "a.txt", "a (2).pdf", "", "x\u00f8/  \u00e5rs_rapport  26.v2.pdf", ".env"]
    assert [names.of(name) for name in given] == [
        "a",
        "a (2)",
        "a (2) (2)",
        "Document",
        "-rs-rapport 26-v2",
        "-env",
    ]
    assert len(names.of("n" * 500)) <= 200


@pytest.mark.parametrize(
    ("choice", "expected", "offered"),
    [
        (None, None, 2),
        ({"mode": chat_pb2.TOOL_CHOICE_MODE_AUTO}, {"auto": {}}, 2),
        ({"mode": chat_pb2.TOOL_CHOICE_MODE_REQUIRED}, {"any": {}}, 2),
        ({"mode": chat_pb2.TOOL_CHOICE_MODE_ONE, "names": ["a"]}, {"tool": {"name": "a"}}, 2),
        ({"mode": chat_pb2.TOOL_CHOICE_MODE_ONE}, {"tool": {"name": ""}}, 2),
        ({"mode": chat_pb2.TOOL_CHOICE_MODE_ALLOWED, "names": ["b"]}, {"auto": {}}, 1),
        (
            {"mode": chat_pb2.TOOL_CHOICE_MODE_ALLOWED, "names": ["b"], "required": True},
            {"any": {}},
            1,
        ),
    ],
)
def test_the_tool_choice_is_a_rule(
    choice: dict[str, Any] | None, expected: dict[str, Any] | None, offered: int
) -> None:
    rule = chat_pb2.ToolChoice(**choice) if choice else None
    config = sent(call(tools=[function("a"), function("b")], tool_choice=rule))["toolConfig"]
    assert config.get("toolChoice") == expected
    assert len(config["tools"]) == offered


def test_tools_are_forbidden_by_not_naming_them() -> None:
    none = chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_NONE)
    assert "toolConfig" not in sent(call(tools=[function()], tool_choice=none))
    used = message(called(), role=ASSISTANT)
    assert "toolConfig" not in sent(call(used, tool_choice=none))
    error = refusal(call(used, tools=[function()], tool_choice=none))
    assert (error.reason, error.param) == (UNSUPPORTED, "tool_choice")
    other = chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_ALLOWED, names=["x"])
    assert "toolConfig" not in sent(call(tools=[function()], tool_choice=other))


def test_a_tool_without_arguments_has_a_schema_and_loose_ones_say_nothing() -> None:
    (tool,) = sent(call(tools=[function(strict=False)]))["toolConfig"]["tools"]
    empty = {"type": "object", "properties": {}}
    assert tool == {"toolSpec": {"name": "f", "inputSchema": {"json": empty}}}


@pytest.mark.parametrize(
    ("model", "place"),
    [
        (CLAUDE, {"top_k": 5}),
        (NOVA, {"inferenceConfig": {"topK": 5}}),
        (NOVA_2, {"inferenceConfig": {"topK": 5}}),
    ],
)
def test_top_k_stands_where_the_model_has_it(model: str, place: dict[str, Any]) -> None:
    assert sent(call(top_k=5), model)["additionalModelRequestFields"] == place


def test_top_k_is_refused_where_the_model_has_none() -> None:
    error = refusal(call(top_k=5), LLAMA)
    assert (error.reason, error.param) == (UNSUPPORTED, "top_k")


E = {name: getattr(chat_pb2, f"THINKING_EFFORT_{name}") for name in ("NONE", "LOW", "HIGH", "MAX")}


@pytest.mark.parametrize(
    ("model", "asked", "more"),
    [
        (CLAUDE, {"budget_tokens": 2000}, {"thinking": {"type": "enabled", "budget_tokens": 2000}}),
        (CLAUDE, {"enabled": False}, {}),
        (
            NEW_CLAUDE,
            {"effort": E["LOW"]},
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}},
        ),
        (
            NOVA_2,
            {"enabled": True},
            {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "medium"}},
        ),
        (
            NOVA_2,
            {"effort": E["MAX"]},
            {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "high"}},
        ),
        (NOVA_2, {"effort": E["NONE"]}, {}),
        ("openai.gpt-oss-120b-1:0", {"effort": E["HIGH"]}, {"reasoning_effort": "high"}),
        ("openai.gpt-oss-20b-1:0", {"include_thoughts": True}, {}),
        ("qwen.qwen3-32b-v1:0", {"effort": E["LOW"]}, {"reasoning_config": "high"}),
        ("qwen.qwen3-32b-v1:0", {"enabled": False}, {}),
        ("us.deepseek.r1-v1:0", {"enabled": True}, {}),
        (LLAMA, {"effort": E["NONE"]}, {}),
    ],
)
def test_thinking_is_asked_for_as_the_model_takes_it(
    model: str, asked: dict[str, Any], more: dict[str, Any]
) -> None:
    body = sent(call(thinking=chat_pb2.Thinking(**asked)), model)
    assert body.get("additionalModelRequestFields", {}) == more


@pytest.mark.parametrize(
    ("model", "asked", "param"),
    [
        (NOVA_2, {"budget_tokens": 2000}, "thinking.budget_tokens"),
        (NEW_CLAUDE, {"budget_tokens": 2000}, "thinking.budget_tokens"),
        ("openai.gpt-oss-120b-1:0", {"effort": E["NONE"]}, "reasoning_effort"),
        ("us.deepseek.r1-v1:0", {"enabled": False}, "reasoning_effort"),
        ("us.deepseek.r1-v1:0", {"effort": E["LOW"]}, "reasoning_effort"),
        (LLAMA, {"enabled": True}, "reasoning_effort"),
        (HIDDEN, {"effort": E["LOW"]}, "reasoning_effort"),
    ],
)
def test_thinking_that_the_model_has_no_knob_for_is_refused(
    model: str, asked: dict[str, Any], param: str
) -> None:
    error = refusal(call(thinking=chat_pb2.Thinking(**asked)), model)
    assert (error.reason, error.param) == (UNSUPPORTED, param)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"temperature": 1, "top_p": 1}, True),
        ({"temperature": 0.5}, False),
        ({"top_p": 0.5}, False),
    ],
)
def test_models_without_sampling_take_defaults_and_refuse_the_rest(
    fields: dict[str, Any], kept: bool
) -> None:
    request = call(**fields)
    assert "inferenceConfig" in sent(request)
    if kept:
        assert "inferenceConfig" not in sent(request, NEW_CLAUDE)
    else:
        assert refusal(request, NEW_CLAUDE).param == next(iter(fields))


@pytest.mark.parametrize(
    ("model", "caches", "thoughts"),
    [
        (CLAUDE, True, True),
        ("arn:aws:bedrock:us-east-1:1:inference-profile/eu.anthropic.claude-opus-5", True, True),
        ("arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-lite-v1:0", True, False),
        ("us-gov.anthropic.claude-haiku-4-5-20251001-v1:0", True, True),
        (HIDDEN, True, True),
        (LLAMA, False, False),
        ("global.zai.glm-5.3", False, False),
    ],
)
def test_a_model_is_known_by_its_id_profile_or_arn(
    model: str, caches: bool, thoughts: bool
) -> None:
    row = bedrock_models.family(model)
    assert (row.caches, row.thoughts) == (caches, thoughts)


def test_what_a_caller_adds_reaches_bedrock_and_yields_to_the_contract() -> None:
    extra = {
        "requestMetadata": {"team": "blue"},
        "inferenceConfig": {"maxTokens": 1, "topP": 0.2},
        "outputConfig": {"effort": "low"},
    }
    body = sent(call(extra_json=json.dumps(extra).encode(), output_tokens_max=9))
    assert body["requestMetadata"] == {"team": "blue"}
    assert body["inferenceConfig"] == {"maxTokens": 9, "topP": 0.2}
    assert body["outputConfig"] == {"effort": "low"}


def test_the_model_stands_in_the_path() -> None:
    request = WIRE.request(exchange(call(stream=True), HIDDEN))
    assert request.path.startswith("/model/arn%3Aaws%3Abedrock")
    assert request.path.endswith("%2Fmi1dadi0g15f/converse-stream")
    assert dict(request.headers) == {"content-type": "application/json"}


def test_a_schema_without_a_name_is_only_a_schema() -> None:
    wanted = chat_pb2.ResponseFormat(
        kind=chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA, schema=b'{"type": "object"}'
    )
    told = sent(call(response_format=wanted))["outputConfig"]["textFormat"]
    assert told["structure"] == {"jsonSchema": {"schema": '{"type": "object"}'}}
