"""Messages and their parts in the hub's own words: nothing lost, nothing made up."""

import base64

import pytest

from onegate.common.v1 import content_pb2
from runtime.errors import GatewayError
from tests.edge.endpoints.hub import HI, Json, asked, said, text

PNG = b"\x89PNG\r\n"
PNG64 = base64.b64encode(PNG).decode()

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
