"""An OpenAI request in the hub's own words: nothing lost, nothing made up."""

import base64
import json
from typing import Any

import pytest
from google.protobuf import json_format

from edge.endpoints.chat_request import decode
from edge.endpoints.chat_typed import typed
from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError

Json = dict[str, Any]

HI: Json = {"role": "user", "content": "Hi"}
CONTEXT = chat_pb2.CallContext(request_id="req_1")
PNG = b"\x89PNG\r\n"
PNG64 = base64.b64encode(PNG).decode()


def asked(**fields: Any) -> chat_pb2.ChatRequest:
    """The typed form of a request with these fields."""
    body = {"model": "m", "messages": [HI], **fields}
    return typed(decode(json.dumps(body).encode(), depth_max=64), CONTEXT)


def said(**message: Any) -> Json:
    """The typed form of one message, as JSON."""
    made: Json = shown(asked(messages=[message]).messages[0])
    return made


def shown(message: Any) -> Any:
    """A message as JSON, with its embedded JSON and bytes legible."""
    return legible(json_format.MessageToDict(message, preserving_proto_field_name=True))


def legible(value: Any) -> Any:
    if isinstance(value, list):
        return [legible(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {
        key: json.loads(base64.b64decode(inner)) if key.endswith("_json") else legible(inner)
        for key, inner in value.items()
    }


def text(words: str) -> Json:
    return {"text": {"text": words}}


MESSAGES: dict[str, tuple[Json, Json]] = {
    "system": (
        {"role": "system", "content": "Be kind.", "name": "n"},
        {"role": "ROLE_SYSTEM", "parts": [text("Be kind.")], "name": "n"},
    ),
    "developer": (
        {"role": "developer", "content": [{"type": "text", "text": "a"}]},
        {"role": "ROLE_DEVELOPER", "parts": [text("a")]},
    ),
    "user": (
        {"role": "user", "content": "Hi", "name": None},
        {"role": "ROLE_USER", "parts": [text("Hi")]},
    ),
    "a silent assistant": (
        {"role": "assistant", "content": None},
        {"role": "ROLE_ASSISTANT"},
    ),
    "an assistant that refuses": (
        {"role": "assistant", "refusal": "No."},
        {"role": "ROLE_ASSISTANT", "parts": [{"refusal": {"text": "No."}}]},
    ),
    "refusal and text parts": (
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}],
        },
        {"role": "ROLE_ASSISTANT", "parts": [text("a"), {"refusal": {"text": "b"}}]},
    ),
    "an assistant that calls": (
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "2", "type": "custom", "custom": {"name": "c", "input": "x"}, "index": 1},
                {"id": "3", "function": {"name": "g", "arguments": "", "parsed_arguments": {}}},
            ],
        },
        {
            "role": "ROLE_ASSISTANT",
            "parts": [
                text("Let me see."),
                {
                    "tool_call": {
                        "id": "1",
                        "name": "f",
                        "arguments": "{}",
                        "kind": "TOOL_KIND_FUNCTION",
                    }
                },
                {
                    "tool_call": {
                        "id": "2",
                        "name": "c",
                        "arguments": "x",
                        "kind": "TOOL_KIND_CUSTOM",
                    }
                },
                {"tool_call": {"id": "3", "name": "g", "kind": "TOOL_KIND_FUNCTION"}},
            ],
        },
    ),
    "a call of an unknown type with more to it": (
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": "1",
                    "type": "builtin_function",
                    "function": {"name": "f", "arguments": "{}", "mood": 1},
                    "extra_content": {"google": {"thought_signature": "not base64"}},
                    "cache_control": {"type": "ephemeral"},
                }
            ],
        },
        {
            "role": "ROLE_ASSISTANT",
            "parts": [
                {
                    "tool_call": {
                        "id": "1",
                        "name": "f",
                        "arguments": "{}",
                        "kind": "TOOL_KIND_FUNCTION",
                    },
                    "cache_hint": {},
                    "extra_json": {
                        "type": "builtin_function",
                        "function": {"mood": 1},
                        "extra_content": {"google": {"thought_signature": "not base64"}},
                    },
                }
            ],
        },
    ),
    "a call with Gemini's proof": (
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": "1",
                    "function": {"name": "f", "arguments": "{}"},
                    "extra_content": {"google": {"thought_signature": "-_-_"}},
                }
            ],
        },
        {
            "role": "ROLE_ASSISTANT",
            "parts": [
                {
                    "tool_call": {
                        "id": "1",
                        "name": "f",
                        "arguments": "{}",
                        "kind": "TOOL_KIND_FUNCTION",
                        "thought_signature": "+/+/",
                    }
                }
            ],
        },
    ),
    "a legacy call": (
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
        {
            "role": "ROLE_ASSISTANT",
            "parts": [
                {"tool_call": {"name": "f", "arguments": "{}", "kind": "TOOL_KIND_FUNCTION"}}
            ],
        },
    ),
    "an earlier answer's sound": (
        {"role": "assistant", "audio": {"id": "a1"}},
        {"role": "ROLE_ASSISTANT", "parts": [{"audio": {"audio_id": "a1"}}]},
    ),
    "an earlier answer's sound and more": (
        {"role": "assistant", "audio": {"id": "a1", "mood": 1}},
        {
            "role": "ROLE_ASSISTANT",
            "parts": [{"audio": {"audio_id": "a1"}, "extra_json": {"mood": 1}}],
        },
    ),
    "citations": (
        {
            "role": "assistant",
            "content": "See there.",
            "annotations": [
                {
                    "type": "url_citation",
                    "url_citation": {
                        "url": "https://x",
                        "title": "X",
                        "start_index": 0,
                        "end_index": 3,
                    },
                },
                {"type": "file", "file": {"hash": "h"}},
            ],
        },
        {
            "role": "ROLE_ASSISTANT",
            "parts": [
                {
                    "text": {
                        "text": "See there.",
                        "annotations": [
                            {"url_citation": {"url": "https://x", "title": "X", "end_index": 3}},
                            {"opaque_json": {"type": "file", "file": {"hash": "h"}}},
                        ],
                    }
                }
            ],
        },
    ),
    "citations of nothing": (
        {"role": "assistant", "annotations": [{"type": "file"}]},
        {
            "role": "ROLE_ASSISTANT",
            "parts": [{"text": {"annotations": [{"opaque_json": {"type": "file"}}]}}],
        },
    ),
    "a tool": (
        {"role": "tool", "tool_call_id": "1", "content": "4", "name": "f"},
        {
            "role": "ROLE_TOOL",
            "parts": [{"tool_result": {"tool_call_id": "1", "name": "f", "parts": [text("4")]}}],
        },
    ),
    "a function": (
        {"role": "function", "name": "f", "content": None},
        {"role": "ROLE_TOOL", "parts": [{"tool_result": {"name": "f"}}]},
    ),
    "more than the contract names": (
        {"role": "assistant", "content": "x", "prefix": True, "mood": None},
        {"role": "ROLE_ASSISTANT", "parts": [text("x")], "extra_json": {"prefix": True}},
    ),
    "a breakpoint on the message": (
        {
            "role": "system",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "cache_control": {"type": "ephemeral", "ttl": "1h"},
        },
        {"role": "ROLE_SYSTEM", "parts": [text("a"), text("b") | {"cache_hint": {"ttl_s": 3600}}]},
    ),
    "a breakpoint on a tool's message": (
        {
            "role": "tool",
            "tool_call_id": "1",
            "content": "x",
            "cache_control": {"type": "ephemeral"},
        },
        {
            "role": "ROLE_TOOL",
            "parts": [
                {
                    "tool_result": {"tool_call_id": "1", "parts": [text("x")]},
                    "cache_hint": {},
                }
            ],
        },
    ),
    "a breakpoint on nothing": (
        {"role": "assistant", "cache_control": {"type": "ephemeral"}},
        {"role": "ROLE_ASSISTANT"},
    ),
    "a breakpoint that nobody knows": (
        {"role": "user", "content": "x", "cache_control": {"type": "eternal"}},
        {
            "role": "ROLE_USER",
            "parts": [text("x")],
            "extra_json": {"cache_control": {"type": "eternal"}},
        },
    ),
    "DeepSeek's thoughts": (
        {"role": "assistant", "content": "4", "reasoning_content": "2+2"},
        {"role": "ROLE_ASSISTANT", "parts": [{"thinking": {"text": "2+2"}}, text("4")]},
    ),
    "thoughts twice": (
        {
            "role": "assistant",
            "content": "4",
            "reasoning": "2+2",
            "reasoning_details": [
                {"type": "reasoning.text", "text": "2+2", "signature": "s", "index": 0},
                {"type": "reasoning.encrypted", "data": "e", "id": "1"},
            ],
        },
        {
            "role": "ROLE_ASSISTANT",
            "parts": [
                {"thinking": {"text": "2+2", "signature": "s", "extra_json": {"index": 0}}},
                {"thinking": {"redacted_data": "e", "extra_json": {"id": "1"}}},
                text("4"),
            ],
        },
    ),
    "thoughts beside encrypted ones": (
        {
            "role": "assistant",
            "reasoning": "2+2",
            "reasoning_details": [{"type": "reasoning.encrypted", "data": "e"}],
        },
        {
            "role": "ROLE_ASSISTANT",
            "parts": [{"thinking": {"text": "2+2"}}, {"thinking": {"redacted_data": "e"}}],
        },
    ),
    "thoughts of other kinds": (
        {
            "role": "assistant",
            "reasoning_details": [
                {"type": "reasoning.summary", "summary": "sums"},
                {"type": "reasoning.text", "text": 4},
                {"type": "reasoning.text", "text": None, "signature": None},
            ],
        },
        {
            "role": "ROLE_ASSISTANT",
            "parts": [
                {
                    "thinking": {
                        "text": "sums",
                        "extra_json": {"type": "reasoning.summary", "summary": "sums"},
                    }
                },
                {"thinking": {"extra_json": {"type": "reasoning.text", "text": 4}}},
                {"thinking": {}},
            ],
        },
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_every_message_has_its_form_in_the_hub(case: str) -> None:
    message, expected = MESSAGES[case]
    assert said(**message) == expected


B64 = {"data": PNG64}
PARTS: dict[str, tuple[Json, Json]] = {
    "text": (
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "ttl": "5m"}},
        text("a") | {"cache_hint": {"ttl_s": 300}},
    ),
    "text with more to it": (
        {"type": "text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}, "x": None},
        text("a") | {"extra_json": {"prompt_cache_breakpoint": {"mode": "explicit"}}},
    ),
    "a breakpoint with more to it": (
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "scope": "org"}},
        text("a") | {"extra_json": {"cache_control": {"type": "ephemeral", "scope": "org"}}},
    ),
    "a linked picture": (
        {"type": "image_url", "image_url": {"url": "https://x/y", "detail": "low"}},
        {"image": {"source": {"url": "https://x/y"}, "detail": "low"}},
    ),
    "Mistral's picture": (
        {"type": "image_url", "image_url": "https://x/y"},
        {"image": {"source": {"url": "https://x/y"}}},
    ),
    "LiteLLM's picture": (
        {"type": "image_url", "image_url": {"url": "gs://x/y", "format": "image/png"}},
        {"image": {"source": {"url": "gs://x/y", "media_type": "image/png"}}},
    ),
    "a picture with more to it": (
        {"type": "image_url", "image_url": {"url": "https://x", "mood": 1}, "z": 2},
        {
            "image": {"source": {"url": "https://x"}},
            "extra_json": {"image_url": {"mood": 1}, "z": 2},
        },
    ),
    "a picture inline": (
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG64}"}},
        {"image": {"source": B64 | {"media_type": "image/png"}}},
    ),
    "a picture with parameters": (
        {"type": "image_url", "image_url": {"url": f"data:image/png;q=1;base64,{PNG64}"}},
        {"image": {"source": B64 | {"media_type": "image/png;q=1"}}},
    ),
    "a picture as text": (
        {"type": "image_url", "image_url": {"url": "data:image/svg+xml,%3Csvg/%3E"}},
        {
            "image": {
                "source": {
                    "data": base64.b64encode(b"<svg/>").decode(),
                    "media_type": "image/svg+xml",
                }
            }
        },
    ),
    "a video": (
        {"type": "video_url", "video_url": {"url": "https://x"}},
        {"video": {"source": {"url": "https://x"}}},
    ),
    "a bare video": (
        {"type": "video_url", "video_url": "https://x"},
        {"video": {"source": {"url": "https://x"}}},
    ),
    "sound": (
        {"type": "input_audio", "input_audio": {"data": PNG64, "format": "wav"}},
        {"audio": {"source": B64, "format": "wav"}},
    ),
    "linked sound": (
        {"type": "input_audio", "input_audio": {"data": "https://x/y.mp3"}},
        {"audio": {"source": {"url": "https://x/y.mp3"}}},
    ),
    "a document": (
        {
            "type": "file",
            "file": {"file_data": f"data:application/pdf;base64,{PNG64}", "filename": "a.pdf"},
        },
        {
            "file": {
                "source": B64 | {"media_type": "application/pdf"},
                "filename": "a.pdf",
            }
        },
    ),
    "a bare document": (
        {"type": "file", "file": {"file_data": PNG64}},
        {"file": {"source": B64}},
    ),
    "an uploaded document": (
        {"type": "file", "file": {"file_id": "f1"}},
        {"file": {"source": {"file_id": "f1"}}},
    ),
    "something else": (
        {"type": "document_url", "document_url": "https://x"},
        {"opaque_json": {"type": "document_url", "document_url": "https://x"}},
    ),
}


@pytest.mark.parametrize("case", PARTS)
def test_every_part_has_its_form_in_the_hub(case: str) -> None:
    part, expected = PARTS[case]
    assert said(role="user", content=[part])["parts"] == [expected]


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png"}}, "image_url.url"),
        ({"type": "image_url", "image_url": "data:image/png"}, "image_url"),
        ({"type": "image_url", "image_url": {"url": "data:;base64,a"}}, "image_url.url"),
        ({"type": "input_audio", "input_audio": {"data": "ab\nc="}}, "input_audio.data"),
        ({"type": "file", "file": {"file_data": "ä"}}, "file.file_data"),
        ({"type": "file", "file": {"filename": "x"}}, "file"),
        ({"type": "file", "file": {"file_data": "", "file_id": ""}}, "file"),
        ({"type": "file", "file": {"file_data": PNG64, "file_id": "1"}}, "file"),
    ],
)
def test_media_that_are_none_are_refused(part: Json, param: str) -> None:
    with pytest.raises(GatewayError) as caught:
        asked(messages=[HI, {"role": "user", "content": [part]}])
    assert caught.value.param == f"messages[1].content[0].{param}"


FUNCTION: Json = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
HUB_FUNCTION: Json = {
    "name": "f",
    "description": "d",
    "parameters_schema": base64.b64encode(b'{"type":"object"}').decode(),
    "strict": True,
}
GRAMMAR: Json = {"type": "grammar", "grammar": {"definition": "x", "syntax": "lark"}}
TOOLS: dict[str, tuple[Json, Json]] = {
    "a function": ({"type": "function", "function": FUNCTION}, {"function": HUB_FUNCTION}),
    "a bare function": ({"function": {"name": "f"}}, {"function": {"name": "f"}}),
    "a function without arguments": (
        {"type": "function", "function": {"name": "f", "parameters": {}}},
        {"function": {"name": "f", "parameters_schema": base64.b64encode(b"{}").decode()}},
    ),
    "a function that is cached": (
        {
            "type": "function",
            "function": {"name": "f"},
            "cache_control": {"type": "ephemeral"},
        },
        {"function": {"name": "f"}, "cache_hint": {}},
    ),
    "a function that is cached inside": (
        {"type": "function", "function": {"name": "f", "cache_control": {"type": "ephemeral"}}},
        {"function": {"name": "f"}, "cache_hint": {}},
    ),
    "a function with more to it": (
        {"type": "function", "function": {"name": "f", "mood": 1}},
        {"provider_json": {"type": "function", "function": {"name": "f", "mood": 1}}},
    ),
    "a custom tool": (
        {"type": "custom", "custom": {"name": "c", "description": "d", "format": GRAMMAR}},
        {"custom": {"name": "c", "description": "d", "format_json": GRAMMAR}},
    ),
    "a plain custom tool": ({"type": "custom", "custom": {"name": "c"}}, {"custom": {"name": "c"}}),
    "a custom tool with more to it": (
        {"type": "custom", "custom": {"name": "c", "mood": 1}},
        {"provider_json": {"type": "custom", "custom": {"name": "c", "mood": 1}}},
    ),
    "a tool of the provider's": (
        {"type": "web_search", "web_search": {"size": 1}},
        {"provider_json": {"type": "web_search", "web_search": {"size": 1}}},
    ),
    "a bare tool of the provider's": (
        {"type": "browser_search"},
        {"provider_json": {"type": "browser_search"}},
    ),
}


@pytest.mark.parametrize("case", TOOLS)
def test_every_tool_has_its_form_in_the_hub(case: str) -> None:
    tool, expected = TOOLS[case]
    assert [shown(made) for made in asked(tools=[tool]).tools] == [expected]


CHOICES: dict[str, tuple[Any, Json]] = {
    "auto": ("auto", {"mode": "TOOL_CHOICE_MODE_AUTO"}),
    "none": ("none", {"mode": "TOOL_CHOICE_MODE_NONE"}),
    "required": ("required", {"mode": "TOOL_CHOICE_MODE_REQUIRED"}),
    "any": ("any", {"mode": "TOOL_CHOICE_MODE_REQUIRED"}),
    "one": (
        {"type": "function", "function": {"name": "f"}},
        {"mode": "TOOL_CHOICE_MODE_ONE", "names": ["f"], "kind": "TOOL_KIND_FUNCTION"},
    ),
    "one, unnamed": (
        {"function": {"name": "f"}},
        {"mode": "TOOL_CHOICE_MODE_ONE", "names": ["f"], "kind": "TOOL_KIND_FUNCTION"},
    ),
    "one custom": (
        {"type": "custom", "custom": {"name": "c"}},
        {"mode": "TOOL_CHOICE_MODE_ONE", "names": ["c"], "kind": "TOOL_KIND_CUSTOM"},
    ),
    "some": (
        {
            "type": "allowed_tools",
            "allowed_tools": {
                "mode": "required",
                "tools": [
                    {"type": "function", "function": {"name": "f"}},
                    {"type": "custom", "custom": {"name": "c"}},
                ],
            },
        },
        {"mode": "TOOL_CHOICE_MODE_ALLOWED", "names": ["f", "c"], "required": True},
    ),
}


@pytest.mark.parametrize("case", CHOICES)
def test_every_tool_choice_has_its_form_in_the_hub(case: str) -> None:
    choice, expected = CHOICES[case]
    assert shown(asked(tool_choice=choice).tool_choice) == expected


def test_without_a_tool_choice_there_is_none() -> None:
    assert not asked().HasField("tool_choice")
    assert not asked(tool_choice=None).HasField("tool_choice")


def test_functions_are_the_legacy_form_of_tools() -> None:
    request = asked(functions=[FUNCTION, {"name": "g", "mood": 1}], function_call={"name": "f"})
    assert [shown(tool) for tool in request.tools] == [
        {"function": HUB_FUNCTION},
        {"provider_json": {"name": "g", "mood": 1}},
    ]
    assert shown(request.tool_choice)["names"] == ["f"]
    assert request.legacy_functions
    assert shown(asked(function_call="none").tool_choice) == {"mode": "TOOL_CHOICE_MODE_NONE"}
    legacy = {"role": "function", "name": "f", "content": "4"}
    assert asked(messages=[HI, legacy]).legacy_functions
    assert not asked(tools=[]).legacy_functions


FORMS: dict[str, tuple[Json, Json]] = {
    "text": ({"type": "text"}, {"kind": "RESPONSE_FORMAT_KIND_TEXT"}),
    "object": ({"type": "json_object"}, {"kind": "RESPONSE_FORMAT_KIND_JSON_OBJECT"}),
    "schema": (
        {
            "type": "json_schema",
            "json_schema": {"name": "n", "description": "d", "schema": {"a": 1}, "strict": False},
        },
        {
            "kind": "RESPONSE_FORMAT_KIND_JSON_SCHEMA",
            "name": "n",
            "description": "d",
            "schema": base64.b64encode(b'{"a":1}').decode(),
            "strict": False,
        },
    ),
    "a name alone": (
        {"type": "json_schema", "json_schema": {"name": "n"}},
        {"kind": "RESPONSE_FORMAT_KIND_JSON_SCHEMA", "name": "n"},
    ),
}


@pytest.mark.parametrize("case", FORMS)
def test_every_answer_form_has_its_form_in_the_hub(case: str) -> None:
    form, expected = FORMS[case]
    assert shown(asked(response_format=form).response_format) == expected


THINKING: dict[str, tuple[Json, Json]] = {
    "effort": ({"reasoning_effort": "xhigh"}, {"effort": "THINKING_EFFORT_XHIGH"}),
    "none": ({"reasoning_effort": "none"}, {"effort": "THINKING_EFFORT_NONE"}),
    "OpenRouter's": (
        {"reasoning": {"effort": "low", "max_tokens": 5, "exclude": True, "enabled": True}},
        {
            "effort": "THINKING_EFFORT_LOW",
            "budget_tokens": 5,
            "include_thoughts": False,
            "enabled": True,
        },
    ),
    "Anthropic's": (
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"enabled": True, "budget_tokens": 1024},
    ),
    "Anthropic's newer": ({"thinking": {"type": "adaptive"}}, {"enabled": True}),
    "Anthropic's off": ({"thinking": {"type": "disabled"}}, {"enabled": False}),
    "two that agree": (
        {"reasoning_effort": "low", "reasoning": {"effort": "low"}, "thinking": {}},
        {"effort": "THINKING_EFFORT_LOW"},
    ),
}


@pytest.mark.parametrize("case", THINKING)
def test_every_knob_for_thinking_has_its_form_in_the_hub(case: str) -> None:
    fields, expected = THINKING[case]
    assert shown(asked(**fields).thinking) == expected


def test_knobs_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(GatewayError, match="contradicts") as caught:
        asked(reasoning_effort="low", reasoning={"effort": "high"})
    assert caught.value.param == "reasoning"


EXTRA: dict[str, Json] = {
    "a field": {"repetition_penalty": 1.5},
    "several": {"reasoning_format": "raw", "mood": {"a": [1, 2.5]}},
    "an effort": {"reasoning_effort": "default"},
    "OpenRouter's effort": {"reasoning": {"effort": "some"}},
    "more in OpenRouter's": {"reasoning": {"effort": "low", "summary": "auto"}},
    "more in Anthropic's": {"thinking": {"type": "enabled", "clear_thinking": False}},
    "another switch": {"thinking": {"type": "auto"}},
    "another form": {"response_format": {"type": "grammar", "grammar": "x"}},
    "more in a form": {"response_format": {"type": "json_object", "schema": {}}},
    "more in a schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "mood": 1}}
    },
    "more in the voice": {"audio": {"format": "wav", "voice": "ash", "speed": 2}},
    "more in a stream's options": {"stream_options": {"include_obfuscation": False}},
}


@pytest.mark.parametrize("case", EXTRA)
def test_what_the_hub_has_no_word_for_travels_as_it_was_written(case: str) -> None:
    request = asked(**EXTRA[case], nothing=None)
    assert json.loads(request.extra_json) == EXTRA[case]
    assert not request.HasField("thinking")
    assert not request.HasField("response_format")
    assert not request.HasField("audio_output")


def test_plain_fields_keep_their_values_zero_included() -> None:
    request = asked(
        temperature=0,
        top_p=0.5,
        top_k=0,
        min_p=0.0,
        presence_penalty=-1,
        frequency_penalty=0,
        seed=-5,
        logprobs=False,
        top_logprobs=0,
        parallel_tool_calls=False,
        store=False,
        service_tier="flex",
        verbosity="low",
        prompt_cache_key="k",
        prompt_cache_retention="24h",
        stop=["a", "b"],
        logit_bias={"5": -100},
        modalities=["text", "audio", "image"],
        audio={"format": "wav", "voice": "ash"},
        web_search_options={},
        prediction={"type": "content", "content": "x"},
        stream_options={"include_usage": True},
        stream=True,
        models=["m", "b"],
    )
    assert shown(request) == {
        "model": "m",
        "messages": [{"role": "ROLE_USER", "parts": [text("Hi")]}],
        "parallel_tool_calls": False,
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": -1.0,
        "frequency_penalty": 0.0,
        "seed": "-5",
        "stop": ["a", "b"],
        "logit_bias": {"5": -100.0},
        "logprobs": False,
        "top_logprobs": 0,
        "output_modalities": [
            "OUTPUT_MODALITY_TEXT",
            "OUTPUT_MODALITY_AUDIO",
            "OUTPUT_MODALITY_IMAGE",
        ],
        "audio_output": {"format": "wav", "voice": "ash"},
        "stream": True,
        "stream_usage": True,
        "service_tier": "flex",
        "store": False,
        "verbosity": "low",
        "prediction": [text("x")],
        "web_search_options_json": {},
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "routing": {"fallback_models": ["b"]},
        "context": {"request_id": "req_1"},
    }
    assert list(asked(stop="a").stop) == ["a"]
    voice = asked(audio={"format": "wav", "voice": {"id": "v"}}).audio_output
    assert (voice.voice, voice.voice_id) == ("", "v")


def test_the_caller_gets_what_it_wrote_back_as_bytes() -> None:
    source = (
        asked(
            messages=[
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image_url",
                            "image_url": {"url": f"data:image/png;base64,{PNG64}"},
                        }
                    ],
                }
            ]
        )
        .messages[0]
        .parts[0]
        .image.source
    )
    assert source == content_pb2.MediaSource(data=PNG, media_type="image/png")
