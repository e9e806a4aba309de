"""Tools, knobs and plain fields in the hub's own words: nothing lost, nothing made up."""

import base64
import json
from typing import Any

import pytest

from runtime.errors import GatewayError
from tests.edge.endpoints.hub import HI, Json, asked, shown, text

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
