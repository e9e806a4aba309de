"""What is refused of a chat request and in which words, and which facts the native form carries."""

import json
from typing import Any

import pytest

from edge.endpoints.chat_fields import ChatFields
from edge.endpoints.chat_request import (
    DOCUMENT_TOKENS_MAX,
    IMAGE_TOKENS_MAX,
    READY_FORMS_MAX,
    ChatCall,
    NativeForms,
    decode,
    native,
)
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError, reason_name

Json = dict[str, Any]

HI: Json = {"role": "user", "content": "Hi"}
FUNCTION: Json = {"type": "function", "function": {"name": "f"}}
CONTEXT = chat_pb2.CallContext(request_id="req_1")


def asked(**fields: Any) -> ChatCall:
    """A request with these fields."""
    body = {"model": "m", "messages": [HI], **fields}
    return decode(json.dumps(body).encode(), depth_max=64)


def user(*parts: Json) -> list[Json]:
    return [{"role": "user", "content": list(parts)}]


def assistant(**fields: Any) -> list[Json]:
    return [{"role": "assistant", **fields}]


def refusal(fields: Json) -> GatewayError:
    """Why a request with these fields is refused; a field that is ``...`` is left out."""
    body = {"model": "m", "messages": [HI], **fields}
    body = {key: value for key, value in body.items() if value is not ...}
    with pytest.raises(GatewayError) as caught:
        decode(json.dumps(body).encode(), depth_max=64)
    return caught.value


REFUSED: dict[str, tuple[Json, str, str]] = {
    "no model": ({"model": ...}, "model", "Missing required parameter: 'model'."),
    "an empty model": ({"model": ""}, "model", "expected a string of length >= 1"),
    "no messages": ({"messages": ...}, "messages", "Missing required parameter: 'messages'."),
    "empty messages": ({"messages": []}, "messages", "expected an array of length >= 1"),
    "messages of a wrong type": ({"messages": 3}, "messages", "an array, but got an integer."),
    "a message of a wrong type": ({"messages": [3]}, "messages[0]", "an object, but got an int"),
    "no role": ({"messages": [{}]}, "messages[0].role", "Missing required parameter"),
    "an unknown role": (
        {"messages": [HI, {"role": "king"}]},
        "messages[1].role",
        "Invalid value for 'messages[1].role': 'king'. Supported values are: 'system'",
    ),
    "a user without content": (
        {"messages": [{"role": "user"}]},
        "messages[0].content",
        "Missing required parameter: 'messages[0].content'.",
    ),
    "a user with null": (
        {"messages": [{"role": "user", "content": None}]},
        "messages[0].content",
        "expected a string or an array, but got null.",
    ),
    "a tool without an id": (
        {"messages": [{"role": "tool", "content": "x"}]},
        "messages[0].tool_call_id",
        "Missing",
    ),
    "a part without a type": (
        {"messages": user({"text": "x"})},
        "messages[0].content[0].type",
        "Missing",
    ),
    "a part with a wrong type": (
        {"messages": user({"type": 1})},
        "messages[0].content[0].type",
        "expected a string",
    ),
    "a part that is a string": (
        {"messages": [{"role": "user", "content": ["x"]}]},
        "messages[0].content[0]",
        "expected an object, but got a string",
    ),
    "a text part without text": (
        {"messages": user({"type": "text", "text": "a"}, {"type": "text"})},
        "messages[0].content[1].text",
        "Missing",
    ),
    "a picture without a URL": (
        {"messages": user({"type": "image_url", "image_url": {"detail": "low"}})},
        "messages[0].content[0].image_url.url",
        "Missing",
    ),
    "sound of a wrong type": (
        {"messages": user({"type": "input_audio", "input_audio": {"data": 1}})},
        "messages[0].content[0].input_audio.data",
        "expected a string, but got an integer",
    ),
    "a tool call that calls nothing": (
        {"messages": assistant(tool_calls=[{"id": "1", "type": "function"}])},
        "messages[0].tool_calls[0].function",
        "Missing",
    ),
    "a custom call that calls nothing": (
        {"messages": assistant(tool_calls=[{"id": "1", "type": "custom"}])},
        "messages[0].tool_calls[0].custom",
        "Missing",
    ),
    "arguments as an object": (
        {
            "messages": assistant(
                tool_calls=[{"id": "1", "function": {"name": "f", "arguments": {}}}]
            )
        },
        "messages[0].tool_calls[0].function.arguments",
        "expected a string, but got an object",
    ),
    "n of 0": ({"n": 0}, "n", "Invalid value for 'n': expected an integer >= 1."),
    "n as a text": (
        {"n": "1"},
        "n",
        "Invalid type for 'n': expected an integer, but got a string.",
    ),
    "n as a truth": ({"n": True}, "n", "but got a boolean"),
    "output below 0": ({"max_tokens": -1}, "max_tokens", "expected an integer >= 0"),
    "too much output": ({"max_tokens": 2**31}, "max_tokens", "<= 2147483647"),
    "a large seed": ({"seed": 2**63}, "seed", "<="),
    "a temperature as a text": ({"temperature": "hot"}, "temperature", "expected a number"),
    "an endless temperature": ({"temperature": 10**400}, "temperature", "Number out of range"),
    "a stop of a wrong type": ({"stop": [1]}, "stop[0]", "expected a string, but got an integer"),
    "a bias of a wrong type": ({"logit_bias": {"5": "x"}}, "logit_bias", "expected a number"),
    "a tool without a function": (
        {"tools": [{"type": "function"}]},
        "tools[0].function",
        "Missing",
    ),
    "a tool without a custom": ({"tools": [{"type": "custom"}]}, "tools[0].custom", "Missing"),
    "a function without a name": (
        {"tools": [{"type": "function", "function": {}}]},
        "tools[0].function.name",
        "Missing",
    ),
    "an unknown choice": (
        {"tool_choice": "maybe"},
        "tool_choice",
        "'maybe'. Supported values are: 'none', 'auto', 'required' or an object.",
    ),
    "a choice of nothing": (
        {"tool_choice": {"type": "function"}},
        "tool_choice.function",
        "Missing",
    ),
    "a choice of an unknown kind": ({"tool_choice": {"type": "x"}}, "tool_choice.type", "'x'."),
    "an allowed tool without a name": (
        {
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "custom"}]},
            }
        },
        "tool_choice.allowed_tools.tools[0].custom",
        "Missing",
    ),
    "metadata of a wrong type": ({"metadata": {"a": 1}}, "metadata", "expected a string"),
    "a long metadata key": ({"metadata": {"a" * 65: ""}}, "metadata", "of length <= 64"),
    "too much metadata": (
        {"metadata": {str(index): "" for index in range(17)}},
        "metadata",
        "expected an object of length <= 16",
    ),
    "a modality that is none": ({"modalities": ["smell"]}, "modalities[0]", "'smell'"),
    "a prediction of a wrong part": (
        {"prediction": {"type": "content", "content": [{"type": "text"}]}},
        "prediction.content[0].text",
        "Missing",
    ),
    "a prediction of an unknown part": (
        {"prediction": {"type": "content", "content": [{"text": "x"}]}},
        "prediction.content[0].type",
        "Missing",
    ),
    "a provider of a wrong type": ({"provider": "x"}, "provider", "expected an object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused_under_its_place(case: str) -> None:
    fields, param, words = REFUSED[case]
    error = refusal(fields)
    assert reason_name(error.reason) == "invalid_request"
    assert error.param == param
    assert words in error.message


def test_a_routing_preference_that_the_gateway_does_not_have_is_refused() -> None:
    error = refusal({"provider": {"order": ["a"], "quantizations": ["fp8"]}})
    assert reason_name(error.reason) == "unsupported_parameter"
    assert error.param == "provider.quantizations"
    assert asked(provider={"sort": None, "only": ["a"]}).fields.provider is not None


@pytest.mark.parametrize(
    ("provider", "no_training", "zero_retention"),
    [
        ({"data_collection": "deny"}, True, False),
        ({"data_collection": "allow"}, False, False),
        ({"zdr": True}, False, True),
        ({"zdr": False, "data_collection": None}, False, False),
        ({"zdr": True, "data_collection": "deny", "only": ["a"]}, True, True),
    ],
)
def test_what_a_request_demands_for_its_data_reaches_the_router(
    provider: Json, no_training: bool, zero_retention: bool
) -> None:
    routing = native(asked(provider=provider), CONTEXT).routing
    assert (routing.no_training, routing.zero_retention) == (no_training, zero_retention)


def test_what_a_request_says_of_prices_and_order_reaches_the_router() -> None:
    wishes = {"sort": "throughput", "max_price": {"prompt": 0.5, "completion": 1, "request": 0.01}}
    routing = native(asked(provider=wishes), CONTEXT).routing
    assert routing.sort == chat_pb2.PROVIDER_SORT_THROUGHPUT
    assert (routing.input_rate_max_nano_usd, routing.output_rate_max_nano_usd) == (5 * 10**8, 10**9)
    assert routing.request_rate_max_nano_usd == 10**13
    assert not native(asked(provider={"sort": "price"}), CONTEXT).routing.HasField(
        "input_rate_max_nano_usd"
    )
    for wrong in ({"sort": "speed"}, {"max_price": {"image": 1}}, {"max_price": {"prompt": -1}}):
        assert refusal({"provider": wrong}).param.startswith("provider.")


def test_what_groups_calls_for_a_cache_reaches_the_router_also_natively() -> None:
    call = asked(prompt_cache_key="session-7")
    assert native(call, CONTEXT).prompt_cache_key == "session-7"
    packed = chat_pb2.ChatRequest.FromString(NativeForms().pack(call, CONTEXT))
    assert packed == native(call, CONTEXT)


def test_a_demand_for_data_that_is_misspelt_is_refused() -> None:
    for provider in ({"data_collection": "Deny"}, {"zdr": "yes"}, {"ZDR": True}):
        assert refusal({"provider": provider}).param.startswith("provider.")


def test_a_value_in_a_refusal_is_cut() -> None:
    assert len(refusal({"tool_choice": "x" * 10_000}).message) < 300


PACKED: list[Json] = [
    {},
    {"stream": True},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"n": 1},
    {"n": 2, "max_tokens": 0},
    {"max_tokens": 5},
    {"max_completion_tokens": 5},
    {"service_tier": "flex"},
    {"tools": [FUNCTION]},
    {"tools": [FUNCTION], "reasoning_effort": "high", "modalities": ["audio"]},
    {"user": "u"},
    {"safety_identifier": "s"},
    {"metadata": {"a": "b"}},
    {"models": ["m", "n"]},
    {"provider": {"order": ["x"]}},
    {"model": "x" * 500},
    {"messages": [{"role": "user", "content": "ü" * 9_000}]},
    {"messages": user({"type": "file", "file": {"file_data": "A" * 200}})},
]


def test_a_packed_form_is_the_message() -> None:
    forms = NativeForms()
    contexts = [CONTEXT, chat_pb2.CallContext(request_id="r" * 200, tags={"a": "b"})]
    for fields in PACKED * 2:
        for context in contexts:
            call = asked(**fields)
            packed = chat_pb2.ChatRequest.FromString(forms.pack(call, context))
            assert packed == native(call, context)


def test_forms_that_are_kept_ready_cannot_grow_without_end() -> None:
    forms = NativeForms()
    for number in range(READY_FORMS_MAX + 10):
        forms.pack(asked(model=f"m{number}"), CONTEXT)
    forms.pack(asked(model="x" * 512, service_tier="x" * 9_000), CONTEXT)
    assert len(forms._known) <= READY_FORMS_MAX
    assert all(len(ready) < 9_000 for ready in forms._known.values())


def test_null_means_that_a_field_was_left_out() -> None:
    names = set(ChatFields.__struct_fields__) - {"model", "messages"}
    nothing: Json = dict.fromkeys(names)
    request = native(asked(**nothing), CONTEXT)
    assert not request.HasField("output_tokens_max")
    assert not request.HasField("choices")
    assert not request.HasField("routing")
    assert not request.stream


def test_the_native_form_has_the_callers_bytes_and_the_facts() -> None:
    call = asked(
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=7,
        n=2,
        user="u",
        safety_identifier="s",
        metadata={"a": "b"},
        service_tier="flex",
    )
    request = native(call, CONTEXT)
    assert request.native.dialect == chat_pb2.DIALECT_OPENAI_CHAT
    assert json.loads(request.native.body) == call.members
    assert request.native.input_tokens_bound == len(request.native.body)
    assert not request.messages
    assert (request.model, request.stream, request.stream_usage) == ("m", True, True)
    assert (request.output_tokens_max, request.choices) == (7, 2)
    assert not request.legacy_output_tokens_max
    assert (request.end_user, request.safety_identifier) == ("u", "s")
    assert dict(request.metadata) == {"a": "b"}
    assert request.service_tier == "flex"
    assert request.context.request_id == "req_1"
    assert native(asked(max_tokens=9), CONTEXT).legacy_output_tokens_max


def test_usage_is_wanted_only_by_who_says_so() -> None:
    assert not asked(stream=True).stream_usage
    assert not asked(stream=True, stream_options={}).stream_usage
    assert not asked(stream=True, stream_options={"include_usage": False}).stream_usage


def test_preferences_become_routing() -> None:
    call = asked(
        models=["m", "b", "c"],
        provider={"order": ["x"], "only": ["x", "y"], "ignore": ["z"], "allow_fallbacks": False},
    )
    routing = native(call, CONTEXT).routing
    assert list(routing.fallback_models) == ["b", "c"]
    assert list(routing.provider_order) == ["x"]
    assert list(routing.provider_only) == ["x", "y"]
    assert list(routing.provider_ignore) == ["z"]
    assert routing.HasField("allow_fallbacks")
    assert not routing.allow_fallbacks
    unsaid = native(asked(provider={"order": ["x"]}), CONTEXT).routing
    assert not unsaid.HasField("allow_fallbacks")
    first = asked(model=None, models=["b", "c"])
    assert first.model == "b"
    assert list(native(first, CONTEXT).routing.fallback_models) == ["c"]


IMAGE = chat_pb2.CHAT_FEATURE_IMAGE_INPUT
FEATURES: dict[str, tuple[Json, list[int]]] = {
    "nothing": ({}, []),
    "tools": ({"tools": [FUNCTION]}, [chat_pb2.CHAT_FEATURE_TOOLS]),
    "no tools": ({"tools": []}, []),
    "functions": ({"functions": [{"name": "f"}]}, [chat_pb2.CHAT_FEATURE_TOOLS]),
    "a schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        [chat_pb2.CHAT_FEATURE_JSON_SCHEMA],
    ),
    "an object": ({"response_format": {"type": "json_object"}}, []),
    "effort": ({"reasoning_effort": "low"}, [chat_pb2.CHAT_FEATURE_THINKING]),
    "no effort": ({"reasoning_effort": "none"}, []),
    "OpenRouter's effort": ({"reasoning": {"effort": "low"}}, [chat_pb2.CHAT_FEATURE_THINKING]),
    "OpenRouter's budget": ({"reasoning": {"max_tokens": 5}}, [chat_pb2.CHAT_FEATURE_THINKING]),
    "OpenRouter's switch": ({"reasoning": {"enabled": True}}, [chat_pb2.CHAT_FEATURE_THINKING]),
    "OpenRouter's nothing": ({"reasoning": {"exclude": True}}, []),
    "Anthropic's switch": ({"thinking": {"type": "enabled"}}, [chat_pb2.CHAT_FEATURE_THINKING]),
    "Anthropic's switch, off": ({"thinking": {"type": "disabled"}}, []),
    "speech": ({"modalities": ["text", "audio"]}, [chat_pb2.CHAT_FEATURE_AUDIO_OUTPUT]),
    "text": ({"modalities": ["text"]}, []),
    "a picture": (
        {"messages": user({"type": "image_url", "image_url": {"url": "https://x"}})},
        [IMAGE],
    ),
    "Mistral's picture": (
        {"messages": user({"type": "image_url", "image_url": "https://x"})},
        [IMAGE],
    ),
    "sound": (
        {"messages": user({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}})},
        [chat_pb2.CHAT_FEATURE_AUDIO_INPUT],
    ),
    "a document": (
        {"messages": user({"type": "file", "file": {"file_id": "f"}})},
        [chat_pb2.CHAT_FEATURE_FILE_INPUT],
    ),
    "a video": (
        {"messages": user({"type": "video_url", "video_url": {"url": "https://x"}})},
        [chat_pb2.CHAT_FEATURE_VIDEO_INPUT],
    ),
    "something else": ({"messages": user({"type": "smell", "smell": "rose"})}, []),
    "several": (
        {
            "tools": [FUNCTION],
            "messages": user(
                {"type": "text", "text": "x"},
                {"type": "image_url", "image_url": {"url": "https://x"}},
                {"type": "image_url", "image_url": {"url": "https://y"}},
            ),
        },
        [chat_pb2.CHAT_FEATURE_TOOLS, IMAGE],
    ),
}


@pytest.mark.parametrize("case", FEATURES)
def test_features_say_what_a_model_must_be_able_to_do(case: str) -> None:
    fields, features = FEATURES[case]
    assert list(native(asked(**fields), CONTEXT).native.features) == features


DATA = "data:image/png;base64," + "A" * 40_000
BOUNDS: dict[str, tuple[Json, int]] = {
    "a linked picture": (
        {"type": "image_url", "image_url": {"url": "https://x"}},
        IMAGE_TOKENS_MAX,
    ),
    "a picture inline": (
        {"type": "image_url", "image_url": {"url": DATA}},
        IMAGE_TOKENS_MAX - len(DATA),
    ),
    "sound": ({"type": "input_audio", "input_audio": {"data": "A" * 1600}}, 100 - 1600),
    "a document inline": (
        {"type": "file", "file": {"file_data": "A" * 100}},
        DOCUMENT_TOKENS_MAX - 100,
    ),
    "an uploaded document": ({"type": "file", "file": {"file_id": "f"}}, DOCUMENT_TOKENS_MAX),
    "a linked video": ({"type": "video_url", "video_url": "https://x"}, DOCUMENT_TOKENS_MAX),
    "a video inline": ({"type": "video_url", "video_url": {"url": DATA}}, 2501 - len(DATA)),
    "text": ({"type": "text", "text": "x"}, 0),
}


@pytest.mark.parametrize("case", BOUNDS)
def test_media_count_by_their_maximum_and_not_by_their_base64(case: str) -> None:
    part, beyond = BOUNDS[case]
    call = asked(messages=user(part))
    assert call.input_tokens_bound == len(call.body) + beyond


def test_a_checked_prediction_may_be_a_text_or_parts() -> None:
    assert asked(prediction={"type": "content", "content": "x"}).fields.prediction
    parts = [{"type": "text", "text": "x"}]
    assert asked(prediction={"type": "content", "content": parts}).fields.prediction
