"""The Gemini wire: golden exchanges, every request field, refusals, models, errors."""

import json
from typing import Any

import pytest

from onegate.common.v1 import content_pb2, error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers import PROVIDERS
from services.router.providers.base import Exchange, ListedModel
from services.router.providers.foreign import HARMLESS, Rule
from services.router.providers.gemini import FIELDS, WIRE
from services.router.providers.gemini_outcomes import FINISH_REASONS
from tests.providers import goldens

UNSUPPORTED = error_pb2.ERROR_REASON_UNSUPPORTED_PARAMETER
INVALID = error_pb2.ERROR_REASON_INVALID_REQUEST
PROTOCOL = error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL


def message(*parts: content_pb2.Part, role: int = content_pb2.ROLE_USER) -> content_pb2.Message:
    return content_pb2.Message(role=content_pb2.Role.ValueType(role), parts=parts)


def text(words: str) -> content_pb2.Part:
    return content_pb2.Part(text=content_pb2.TextPart(text=words))


def call(*messages: content_pb2.Message, **fields: Any) -> chat_pb2.ChatRequest:
    return chat_pb2.ChatRequest(messages=messages or [message(text("hello"))], **fields)


def exchange(request: chat_pb2.ChatRequest, model: str = "gemini-2.5-flash") -> Exchange:
    return Exchange(request=request, model=model, cost=lambda tokens: 0)


def sent(request: chat_pb2.ChatRequest, model: str = "gemini-2.5-flash") -> dict[str, Any]:
    body: dict[str, Any] = json.loads(WIRE.request(exchange(request, model)).body)
    return body


def refusal(request: chat_pb2.ChatRequest, model: str = "gemini-2.5-flash") -> GatewayError:
    with pytest.raises(GatewayError) as raised:
        sent(request, model)
    return raised.value


@pytest.mark.parametrize("golden", goldens.load("gemini"))
def test_a_golden_exchange_comes_out_as_written(golden: dict[str, Any]) -> None:
    goldens.check(WIRE, golden)


def test_every_request_field_has_a_rule() -> None:
    assert FIELDS.keys() == set(chat_pb2.ChatRequest.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize("name", [name for name, rule in FIELDS.items() if rule is Rule.ACCEPTED])
def test_an_accepted_field_changes_nothing(name: str) -> None:
    request = call()
    field = chat_pb2.ChatRequest.DESCRIPTOR.fields_by_name[name]
    if field.message_type is not None and not field.is_repeated:
        getattr(request, name).SetInParent()
    elif name == "metadata":
        request.metadata["team"] = "blue"
    else:
        setattr(request, name, "x" if field.type == field.TYPE_STRING else True)
    assert sent(request) == sent(call())


FUNCTION = chat_pb2.Tool(function=chat_pb2.FunctionTool(name="f"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"min_p": 0.1}, "min_p"),
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"verbosity": "low"}, "verbosity"),
        ({"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
        ({"prediction": [text("x")]}, "prediction"),
        ({"audio_output": chat_pb2.AudioOutput(format="wav")}, "audio.format"),
        ({"service_tier": "scale"}, "service_tier"),
        ({"extra_json": b'{"enable_thinking": true}'}, "enable_thinking"),
        ({"web_search_options_json": b'{"user_location": {}}'}, "web_search_options.user_location"),
        ({"tools": [FUNCTION], "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [chat_pb2.Tool(custom=chat_pb2.CustomTool(name="free"))]}, "tools[0]"),
        ({"tools": [chat_pb2.Tool(provider_json=b'{"type": "web_search"}')]}, "tools[0]"),
    ],
)
def test_what_gemini_lacks_is_refused_by_its_openai_name(
    fields: dict[str, Any], param: str
) -> None:
    error = refusal(call(**fields))
    assert (error.reason, error.param) == (UNSUPPORTED, param)
    assert f"`{param}`" in error.message


@pytest.mark.parametrize(
    "name", sorted(name for name, rule in FIELDS.items() if rule is None and name in HARMLESS)
)
def test_a_value_that_asks_for_what_happens_anyway_is_accepted(name: str) -> None:
    assert sent(call(**{name: HARMLESS[name]})) == sent(call())


def media(**source: Any) -> content_pb2.MediaSource:
    return content_pb2.MediaSource(**source)


@pytest.mark.parametrize(
    ("part", "reason", "param"),
    [
        (content_pb2.Part(), UNSUPPORTED, ""),
        (content_pb2.Part(opaque_json=b'{"type": "container_upload"}'), UNSUPPORTED, ""),
        (content_pb2.Part(opaque_json=b"[]"), INVALID, ""),
        (
            content_pb2.Part(text=content_pb2.TextPart(text="x"), extra_json=b'{"citations": []}'),
            UNSUPPORTED,
            ".citations",
        ),
        (
            content_pb2.Part(
                image=content_pb2.ImagePart(detail="low", source=media(url="https://a.example/"))
            ),
            UNSUPPORTED,
            ".image_url.detail",
        ),
        (content_pb2.Part(image=content_pb2.ImagePart()), INVALID, ""),
        (
            content_pb2.Part(image=content_pb2.ImagePart(source=media(data=b"x"))),
            INVALID,
            "",
        ),
        (
            content_pb2.Part(audio=content_pb2.AudioPart(audio_id="audio_1")),
            UNSUPPORTED,
            ".audio",
        ),
        (content_pb2.Part(audio=content_pb2.AudioPart()), INVALID, ""),
        (
            content_pb2.Part(tool_call=content_pb2.ToolCall(name="f", arguments="7")),
            INVALID,
            ".arguments",
        ),
        (
            content_pb2.Part(tool_call=content_pb2.ToolCall(kind=content_pb2.TOOL_KIND_CUSTOM)),
            UNSUPPORTED,
            "",
        ),
        (
            content_pb2.Part(tool_result=content_pb2.ToolResult(tool_call_id="t")),
            INVALID,
            ".tool_call_id",
        ),
        (
            content_pb2.Part(
                tool_result=content_pb2.ToolResult(
                    name="f", parts=[content_pb2.Part(refusal=content_pb2.RefusalPart())]
                )
            ),
            UNSUPPORTED,
            "[0]",
        ),
    ],
)
def test_a_part_that_cannot_be_said_is_refused_where_it_stands(
    part: content_pb2.Part, reason: int, param: str
) -> None:
    error = refusal(call(message(part)))
    assert (error.reason, error.param) == (reason, f"messages[0].content[0]{param}")


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (call(content_pb2.Message()), "messages[0].role"),
        (call(message(text("4"), role=content_pb2.ROLE_TOOL)), "messages[0].tool_call_id"),
        (call(message(role=content_pb2.ROLE_TOOL)), "messages[0].tool_call_id"),
        (call(extra_json=b"{"), "extra"),
        (call(extra_json=b'{"toolConfig": 1}'), "toolConfig"),
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
)
def test_a_malformed_value_is_refused(request_: chat_pb2.ChatRequest, param: str) -> None:
    error = refusal(request_)
    assert (error.reason, error.param) == (INVALID, param)


def test_names_and_unknown_fields_of_messages_are_refused() -> None:
    named = message(text("hi"))
    named.name = "Kim"
    assert refusal(call(named)).param == "messages[0].name"
    extended = message(text("hi"))
    extended.extra_json = b'{"prefix": true}'
    assert refusal(call(extended)).param == "messages[0].prefix"


def test_parts_that_came_beside_a_stream_can_be_sent_back() -> None:
    said = message(text("1"), role=content_pb2.ROLE_ASSISTANT)
    said.extra_json = b'{"content_blocks": [{"executableCode": {"code": "1"}}]}'
    assert sent(call(said))["contents"] == [
        {"role": "model", "parts": [{"text": "1"}, {"executableCode": {"code": "1"}}]}
    ]


def test_an_empty_answer_stays_and_an_empty_instruction_does_not() -> None:
    body = sent(
        call(
            message(text(""), role=content_pb2.ROLE_SYSTEM),
            message(text(""), role=content_pb2.ROLE_ASSISTANT),
            message(role=content_pb2.ROLE_ASSISTANT),
        )
    )
    assert body == {"contents": [{"role": "model", "parts": [{"text": ""}]}]}


def test_a_tools_pictures_go_with_its_result() -> None:
    result = content_pb2.ToolResult(
        name="draw",
        parts=[
            text("done"),
            content_pb2.Part(
                image=content_pb2.ImagePart(source=media(data=b"\0", media_type="image/png"))
            ),
        ],
    )
    body = sent(call(message(content_pb2.Part(tool_result=result), role=content_pb2.ROLE_TOOL)))
    assert body["contents"][0]["parts"][0]["functionResponse"] == {
        "name": "draw",
        "response": {"output": "done"},
        "parts": [{"inlineData": {"mimeType": "image/png", "data": "AA=="}}],
    }


def test_an_uploaded_file_is_named_by_its_address() -> None:
    file = content_pb2.FilePart(source=media(file_id="https://files.example/f"))
    (part,) = sent(call(message(content_pb2.Part(file=file))))["contents"][0]["parts"]
    assert part == {"fileData": {"fileUri": "https://files.example/f"}}


def test_gemini_3_looks_at_pictures_as_closely_as_asked() -> None:
    picture = content_pb2.ImagePart(detail="low", source=media(url="https://a.example/"))
    request = call(message(content_pb2.Part(image=picture)))
    part = sent(request, "gemini-3-flash-preview")["contents"][0]["parts"][0]
    assert part["mediaResolution"] == {"level": "MEDIA_RESOLUTION_LOW"}


@pytest.mark.parametrize(
    ("thoughts", "expected"),
    [
        ([("", "gemini:p")], [{"text": "", "thoughtSignature": "p"}]),
        ([("hm", "gemini:p")], [{"text": "hm", "thought": True, "thoughtSignature": "p"}]),
        ([("hm", "anthropics")], [{"text": "hm", "thought": True}]),
        ([("", "anthropics")], []),
    ],
)
def test_a_proof_goes_back_to_gemini_alone(
    thoughts: list[tuple[str, str]], expected: list[dict[str, Any]]
) -> None:
    parts = [
        content_pb2.Part(thinking=content_pb2.ThinkingPart(text=words, signature=proof))
        for words, proof in thoughts
    ]
    body = sent(call(message(*parts, text("so"), role=content_pb2.ROLE_ASSISTANT)))
    assert body["contents"][0]["parts"] == [*expected, {"text": "so"}]


def test_a_turn_without_calls_needs_no_proof() -> None:
    said = message(text("hi"), role=content_pb2.ROLE_ASSISTANT)
    body = sent(call(said), "gemini-3-flash-preview")
    assert body["contents"] == [{"role": "model", "parts": [{"text": "hi"}]}]


def test_a_picture_keeps_the_proof_that_it_came_with() -> None:
    picture = content_pb2.ImagePart(source=media(data=b"\0", media_type="image/png"))
    proof = content_pb2.Part(thinking=content_pb2.ThinkingPart(signature="gemini:p"))
    said = message(content_pb2.Part(image=picture), proof, role=content_pb2.ROLE_ASSISTANT)
    (part,) = sent(call(said))["contents"][0]["parts"]
    assert part["thoughtSignature"] == "p"


def test_only_gemini_3_is_told_that_a_call_has_no_proof() -> None:
    made = content_pb2.Part(tool_call=content_pb2.ToolCall(name="f"))
    request = call(message(made, made, role=content_pb2.ROLE_ASSISTANT))
    old, new = (sent(request, model) for model in ("gemini-2.5-pro", "gemini-3.1-pro-preview"))
    assert ["thoughtSignature" in part for part in old["contents"][0]["parts"]] == [False, False]
    assert ["thoughtSignature" in part for part in new["contents"][0]["parts"]] == [True, False]


@pytest.mark.parametrize(
    ("mode", "required", "strict", "expected"),
    [
        (None, False, False, None),
        (None, False, True, {"mode": "VALIDATED"}),
        (chat_pb2.TOOL_CHOICE_MODE_AUTO, False, False, {"mode": "AUTO"}),
        (chat_pb2.TOOL_CHOICE_MODE_AUTO, False, True, {"mode": "VALIDATED"}),
        (chat_pb2.TOOL_CHOICE_MODE_NONE, False, True, {"mode": "NONE"}),
        (chat_pb2.TOOL_CHOICE_MODE_REQUIRED, False, False, {"mode": "ANY"}),
        (
            chat_pb2.TOOL_CHOICE_MODE_ONE,
            False,
            False,
            {"mode": "ANY", "allowedFunctionNames": ["f"]},
        ),
        (
            chat_pb2.TOOL_CHOICE_MODE_ALLOWED,
            False,
            False,
            {"mode": "VALIDATED", "allowedFunctionNames": ["f"]},
        ),
        (
            chat_pb2.TOOL_CHOICE_MODE_ALLOWED,
            True,
            False,
            {"mode": "ANY", "allowedFunctionNames": ["f"]},
        ),
    ],
)
def test_the_tool_choice_becomes_a_mode(
    mode: Any, required: bool, strict: bool, expected: dict[str, Any] | None
) -> None:
    function = chat_pb2.FunctionTool(name="f", strict=strict)
    choice = chat_pb2.ToolChoice(mode=mode, names=["f"], required=required) if mode else None
    body = sent(call(tools=[chat_pb2.Tool(function=function)], tool_choice=choice))
    assert body.get("toolConfig", {}).get("functionCallingConfig") == expected


def test_a_rule_without_tools_is_not_sent() -> None:
    choice = chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_REQUIRED)
    assert sent(call(tool_choice=choice, parallel_tool_calls=False)) == sent(call())


def test_geminis_own_tools_may_run_one_by_one() -> None:
    own = chat_pb2.Tool(provider_json=b'{"googleSearch": {}}')
    assert sent(call(tools=[own], parallel_tool_calls=False))["tools"] == [{"googleSearch": {}}]


@pytest.mark.parametrize(
    ("wanted", "said"), [("auto", None), ("default", "standard"), ("flex", "flex")]
)
def test_a_service_tier_has_googles_name(wanted: str, said: str | None) -> None:
    assert sent(call(service_tier=wanted)).get("serviceTier") == said


EFFORT_NONE, MINIMAL, LOW, MEDIUM, HIGH, XHIGH = (
    chat_pb2.THINKING_EFFORT_NONE,
    chat_pb2.THINKING_EFFORT_MINIMAL,
    chat_pb2.THINKING_EFFORT_LOW,
    chat_pb2.THINKING_EFFORT_MEDIUM,
    chat_pb2.THINKING_EFFORT_HIGH,
    chat_pb2.THINKING_EFFORT_XHIGH,
)


@pytest.mark.parametrize(
    ("model", "asked", "expected"),
    [
        ("gemini-2.5-flash", {"effort": EFFORT_NONE}, {"thinkingBudget": 0}),
        ("gemini-2.5-flash", {"effort": MINIMAL}, {"thinkingBudget": 1024}),
        ("gemini-2.5-flash", {"effort": LOW}, {"thinkingBudget": 1024}),
        ("gemini-2.5-pro", {"effort": MEDIUM}, {"thinkingBudget": 8192}),
        ("gemini-2.5-pro", {"effort": XHIGH}, {"thinkingBudget": 24576}),
        ("gemini-2.5-pro", {"enabled": True}, {"thinkingBudget": -1}),
        ("gemini-2.5-pro", {"include_thoughts": True}, {"includeThoughts": True}),
        ("gemini-2.5-pro", {"effort": HIGH, "budget_tokens": 99}, {"thinkingBudget": 99}),
        ("gemini-3-pro-preview", {"effort": MINIMAL}, {"thinkingLevel": "LOW"}),
        ("gemini-3-pro-preview", {"effort": MEDIUM}, {"thinkingLevel": "HIGH"}),
        ("models/gemini-3.1-pro-preview", {"effort": MEDIUM}, {"thinkingLevel": "MEDIUM"}),
        ("gemini-3-flash-preview", {"effort": MINIMAL}, {"thinkingLevel": "MINIMAL"}),
        ("gemini-3.8-flash", {"effort": MINIMAL}, {"thinkingLevel": "LOW"}),
        ("gemini-flash-latest", {"effort": XHIGH}, {"thinkingLevel": "HIGH"}),
        ("gemini-3-flash-preview", {"enabled": True}, None),
        ("gemini-3-flash-preview", {"budget_tokens": 99}, {"thinkingBudget": 99}),
        ("gemini-2.0-flash", {"effort": EFFORT_NONE}, None),
        ("gemini-2.0-flash", {"enabled": False, "include_thoughts": False}, None),
    ],
)
def test_an_effort_becomes_what_google_maps_it_to(
    model: str, asked: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    body = sent(call(thinking=chat_pb2.Thinking(**asked)), model)
    assert body.get("generationConfig", {}).get("thinkingConfig") == expected


@pytest.mark.parametrize(
    ("model", "asked"),
    [
        ("gemini-2.5-pro", {"effort": EFFORT_NONE}),
        ("gemini-3-flash-preview", {"enabled": False}),
        ("gemini-2.0-flash", {"effort": LOW}),
        ("gemini-2.0-flash", {"enabled": True}),
        ("gemini-1.5-flash", {"budget_tokens": 5}),
    ],
)
def test_thinking_that_the_model_cannot_do_is_refused(model: str, asked: dict[str, Any]) -> None:
    error = refusal(call(thinking=chat_pb2.Thinking(**asked)), model)
    assert (error.reason, error.param) == (UNSUPPORTED, "reasoning_effort")


def rpc(status: int, code: str, said: str, **detail: Any) -> bytes:
    details = [
        {"@type": f"type.googleapis.com/google.rpc.{name}", **value}
        for name, value in detail.items()
    ]
    return json.dumps(
        {"error": {"code": status, "status": code, "message": said, "details": details}}
    ).encode()


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, rpc(400, "INVALID_ARGUMENT", "contents is not specified"), INVALID),
        (
            400,
            rpc(400, "INVALID_ARGUMENT", "bad key", ErrorInfo={"reason": "API_KEY_INVALID"}),
            error_pb2.ERROR_REASON_UPSTREAM_AUTH,
        ),
        (
            400,
            rpc(
                400,
                "INVALID_ARGUMENT",
                "The input token count (20) exceeds the maximum number of tokens allowed (10).",
            ),
            error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
        ),
        (400, rpc(400, "FAILED_PRECONDITION", "location"), error_pb2.ERROR_REASON_UPSTREAM_AUTH),
        (401, rpc(401, "UNAUTHENTICATED", "who"), error_pb2.ERROR_REASON_UPSTREAM_AUTH),
        (403, rpc(403, "PERMISSION_DENIED", "no"), error_pb2.ERROR_REASON_UPSTREAM_AUTH),
        (404, rpc(404, "NOT_FOUND", "models/x"), error_pb2.ERROR_REASON_MODEL_NOT_FOUND),
        (429, rpc(429, "RESOURCE_EXHAUSTED", "-"), error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED),
        (500, rpc(500, "INTERNAL", "oops"), error_pb2.ERROR_REASON_UPSTREAM_ERROR),
        (503, rpc(503, "UNAVAILABLE", "busy"), error_pb2.ERROR_REASON_UPSTREAM_ERROR),
        (504, rpc(504, "DEADLINE_EXCEEDED", "late"), error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT),
        (503, b"[" + rpc(503, "UNAVAILABLE", "busy") + b"]", error_pb2.ERROR_REASON_UPSTREAM_ERROR),
        (400, rpc(400, "BRAND_NEW", "?"), INVALID),
        (400, b'{"error": {"status": "INVALID_ARGUMENT", "message": "x", "details": 5}}', INVALID),
        (413, b"<html>", error_pb2.ERROR_REASON_REQUEST_TOO_LARGE),
        (502, b"[]", error_pb2.ERROR_REASON_UPSTREAM_ERROR),
    ],
)
def test_an_error_is_known_by_its_status_and_details(status: int, body: bytes, reason: int) -> None:
    error = WIRE.error(status, {}, body)
    assert (error.reason, error.upstream_status) == (reason, status)


@pytest.mark.parametrize(
    ("headers", "delay", "wait_ms"),
    [
        ({}, "34.5s", 34_500),
        ({"retry-after": "3"}, "7s", 7_000),
        ({"retry-after": "3"}, "soon", 3_000),
        ({}, None, 0),
    ],
)
def test_the_wait_is_read_from_the_details_then_from_the_headers(
    headers: dict[str, str], delay: str | None, wait_ms: int
) -> None:
    body = rpc(429, "RESOURCE_EXHAUSTED", "quota", RetryInfo={"retryDelay": delay})
    assert WIRE.error(429, headers, body).retry_after_ms == wait_ms


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"candidates": []}',
        b'{"candidates": [{"content": {"parts": []}}]}',
        b'{"candidates": [{"content": {"parts": [{"text": 5}]}, "finishReason": "STOP"}]}',
        b'{"candidates": [{"content": {"parts": [{"functionCall": {}}]}, "finishReason": "STOP"}]}',
        b'{"candidates": [{"content": {"parts": [{"functionCall": {"willContinue": true}}]}}]}',
    ],
)
def test_what_is_no_answer_is_a_broken_protocol(body: bytes) -> None:
    with pytest.raises(GatewayError) as raised:
        WIRE.response(exchange(call()), body)
    assert raised.value.reason == PROTOCOL


def test_a_blocked_prompt_is_an_answer_without_content_that_costs_what_was_read() -> None:
    body = {
        "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
        "usageMetadata": {"promptTokenCount": 7},
    }
    answer = WIRE.response(exchange(call()), json.dumps(body).encode())
    (choice,) = answer.event.answer.choices
    assert choice.finish_reason == chat_pb2.FINISH_REASON_CONTENT_FILTER
    assert (answer.finish_reason, answer.output_bytes) == ("PROHIBITED_CONTENT", 0)
    assert answer.usage is not None
    assert answer.usage.input_tokens == 7
    assert json.loads(answer.event.answer.extra_json)["google"]["promptFeedback"]


def whole(reason: str, *parts: dict[str, Any], **more: Any) -> bytes:
    candidate = {"content": {"parts": parts}, "finishReason": reason, **more}
    return json.dumps({"candidates": [candidate]}).encode()


@pytest.mark.parametrize("reason", [*FINISH_REASONS, "BRAND_NEW"])
def test_every_reason_has_a_meaning_and_keeps_its_word(reason: str) -> None:
    answer = WIRE.response(exchange(call()), whole(reason))
    choice = answer.event.answer.choices[0]
    assert choice.native_finish_reason == answer.finish_reason == reason
    assert choice.finish_reason == FINISH_REASONS.get(reason, chat_pb2.FINISH_REASON_STOP)
    assert answer.usage is None


def test_calls_without_ids_get_the_same_ones_every_time() -> None:
    body = whole(
        "STOP",
        {"functionCall": {"name": "f", "args": {"n": 1}}},
        {"functionCall": {"name": "f", "args": {"n": 2}}},
    )
    first, again = (WIRE.response(exchange(call()), body).event.answer for _ in range(2))
    ids = [part.tool_call.id for part in first.choices[0].message.parts]
    assert ids == [part.tool_call.id for part in again.choices[0].message.parts]
    assert len(set(ids)) == 2
    assert all(call_id.startswith("gemini-") and len(call_id) < 40 for call_id in ids)


def test_a_segment_that_does_not_fit_is_looked_for() -> None:
    segments = (
        {"startIndex": 90, "endIndex": 99, "text": "b"},
        {"startIndex": 1, "endIndex": 2, "text": "?"},
        {"endIndex": 1},
    )
    supports = [{"segment": segment, "groundingChunkIndices": [0]} for segment in segments]
    grounding = {
        "groundingChunks": [{"web": {"uri": "https://a.example/"}}],
        "groundingSupports": [*supports, {}],
    }
    body = whole("STOP", {"text": "a"}, {"text": "b"}, groundingMetadata=grounding)
    parts = WIRE.response(exchange(call()), body).event.answer.choices[0].message.parts
    noted = [each.url_citation for each in parts[1].text.annotations]
    assert [(each.start_index, each.end_index) for each in noted] == [(1, 2), (1, 2), (0, 1)]


def test_the_wire_is_found_by_its_kind() -> None:
    assert PROVIDERS["gemini"] is WIRE


def test_the_key_never_stands_in_the_address() -> None:
    assert list(WIRE.authorize("AIza")) == [("x-goog-api-key", "AIza")]
    assert WIRE.native is False
    assert WIRE.dialect == chat_pb2.DIALECT_GOOGLE_GENERATE_CONTENT
    assert WIRE.base_url == "https://generativelanguage.googleapis.com/v1beta"
    assert "key" not in WIRE.request(exchange(call(stream=True))).path


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-2.5-pro", "/models/gemini-2.5-pro:generateContent"),
        ("models/gemini-2.5-pro", "/models/gemini-2.5-pro:generateContent"),
        ("tunedModels/a?b", "/tunedModels/a%3Fb:generateContent"),
        ("a:b#c", "/models/a%3Ab%23c:generateContent"),
    ],
)
def test_a_model_is_named_by_its_path(model: str, path: str) -> None:
    assert WIRE.request(exchange(call(), model)).path == path


def test_the_models_that_generate_are_listed_with_their_limits() -> None:
    assert WIRE.models_request().path == "/models?pageSize=1000"
    page = {
        "models": [
            {
                "name": "models/gemini-2.5-pro",
                "displayName": "Gemini 2.5 Pro",
                "inputTokenLimit": 1_048_576,
                "outputTokenLimit": 65_536,
                "supportedGenerationMethods": ["generateContent", "countTokens"],
            },
            {"name": "models/embedder", "supportedGenerationMethods": ["embedContent"]},
            {"name": "tunedModels/mine"},
        ],
        "nextPageToken": "x",
    }
    assert WIRE.models(json.dumps(page).encode()) == [
        ListedModel("gemini-2.5-pro", 0, "google", "Gemini 2.5 Pro", 1_048_576, 65_536),
        ListedModel("tunedModels/mine", 0, "google"),
    ]


@pytest.mark.parametrize("body", [b"nope", b"{}", b'{"models": [{}]}', b'{"models": 3}'])
def test_what_is_no_list_of_models_is_a_broken_protocol(body: bytes) -> None:
    with pytest.raises(GatewayError) as raised:
        WIRE.models(body)
    assert raised.value.reason == PROTOCOL
