"""What the Gemini wire sends: every request field, what is refused, what models differ in."""

import json
from typing import Any

import pytest

from onegate.common.v1 import content_pb2, error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers.foreign import HARMLESS, Rule
from services.router.providers.gemini import FIELDS, WIRE
from tests.providers.calls import body_of, call, message, refusal_of, set_field, text

UNSUPPORTED = error_pb2.ERROR_REASON_UNSUPPORTED_PARAMETER
INVALID = error_pb2.ERROR_REASON_INVALID_REQUEST
MODEL = "gemini-2.5-flash"


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
    parts = [{"executableCode": {"code": "1"}}]
    said.extra_json = json.dumps({"provider_specific_fields": {"parts": parts}}).encode()
    assert sent(call(said))["contents"] == [
        {"role": "model", "parts": [{"text": "1"}, {"executableCode": {"code": "1"}}]}
    ]


def test_pictures_that_gemini_drew_can_be_sent_back() -> None:
    said = message(text("Here."), role=content_pb2.ROLE_ASSISTANT)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAEC"}}
    said.extra_json = json.dumps({"images": [image]}).encode()
    assert sent(call(said))["contents"][0]["parts"] == [
        {"text": "Here."},
        {"inlineData": {"mimeType": "image/png", "data": "AAEC"}},
    ]
    for images in (b'[{"image_url": {"url": "https://pictures.example/"}}]', b"5"):
        said.extra_json = b'{"images": ' + images + b"}"
        assert refusal(call(said)).param == "messages[0].images"


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
