"""What the hub's stream events look like as OpenAI's chunks."""

import json
from typing import Any

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from edge.endpoints.chat_response import AnswerFrame
from edge.endpoints.chat_stream import DONE, ChunkEncoder
from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from tests.edge.endpoints.answers import METERED
from tests.openapi_oracle import stream_faults
from tests.recordings import needs_specs

Choice = chat_pb2.ChoiceDelta
Thought = content_pb2.ThinkingPart


def encoder(**frame: Any) -> ChunkEncoder:
    return ChunkEncoder(AnswerFrame(id="chatcmpl-0", created_unix_s=7, model="openai/m", **frame))


def read(raw: bytes) -> dict[str, Any]:
    assert raw.startswith(b"data: ")
    assert raw.endswith(b"\n\n")
    assert raw.count(b"\n") == 2
    chunk: dict[str, Any] = json.loads(raw[6:])
    return chunk


def gained(*choices: Choice, legacy_functions: bool = False) -> list[dict[str, Any]]:
    """The deltas of chunks with one choice each, in one stream."""
    stream = encoder(legacy_functions=legacy_functions)
    made = [read(stream.delta(chat_pb2.ChatDelta(choices=[choice]))) for choice in choices]
    return [chunk["choices"][0]["delta"] for chunk in made]


def test_a_text_comes_as_openais_chunks() -> None:
    stream = encoder()
    first = chat_pb2.ChatDelta(
        id="chatcmpl-9",
        created_unix_s=9,
        model="gpt-4o",
        system_fingerprint="fp_1",
        service_tier="priority",
        choices=[Choice(starts=True)],
    )
    head = {
        "id": "chatcmpl-9",
        "object": "chat.completion.chunk",
        "created": 9,
        "model": "gpt-4o",
        "system_fingerprint": "fp_1",
        "service_tier": "priority",
    }
    assert read(stream.delta(first)) == head | {
        "choices": [
            {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        ]
    }
    second = chat_pb2.ChatDelta(choices=[Choice(text="Hi")])
    assert read(stream.delta(second)) == head | {
        "choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}]
    }
    last = Choice(
        index=1,
        finish_reason=chat_pb2.FINISH_REASON_STOP,
        native_finish_reason="end_turn",
        choice_extra_json=b'{"content_filter_results":{}}',
    )
    assert read(stream.delta(chat_pb2.ChatDelta(id="chatcmpl-9", choices=[last])))["choices"] == [
        {
            "index": 1,
            "delta": {},
            "finish_reason": "stop",
            "native_finish_reason": "end_turn",
            "content_filter_results": {},
        }
    ]


def test_what_a_provider_does_not_say_is_said_by_the_gateway() -> None:
    made = read(encoder().delta(chat_pb2.ChatDelta(choices=[Choice(text="a")])))
    assert (made["id"], made["created"], made["model"]) == ("chatcmpl-0", 7, "openai/m")
    assert "service_tier" not in made


def test_usage_is_the_last_chunk_of_who_asked_for_it() -> None:
    stream = encoder(stream_usage=True)
    assert read(stream.delta(chat_pb2.ChatDelta(choices=[Choice(text="a")])))["usage"] is None
    made = read(stream.usage(METERED))
    assert made["choices"] == []
    assert made["usage"]["total_tokens"] == 150
    assert made["usage"]["cost"] == 1.23456789
    plain = read(encoder().delta(chat_pb2.ChatDelta(choices=[Choice(text="a")])))
    assert "usage" not in plain


def test_more_of_a_chunk_replaces_nothing() -> None:
    delta = chat_pb2.ChatDelta(
        choices=[Choice(text="a", extra_json=b'{"mood":1,"content":"b"}')],
        extra_json=b'{"provider":"x","id":"other","usage":{"cost":9}}',
    )
    made = read(encoder().delta(delta))
    assert made["provider"] == "x"
    assert made["id"] == "chatcmpl-0"
    assert made["usage"] is None
    assert made["choices"][0]["delta"] == {"mood": 1, "content": "a"}


def test_tool_calls_begin_with_their_names_and_go_on_without() -> None:
    call = chat_pb2.ToolCallDelta
    begins = call(
        index=1, id="1", name="f", kind=content_pb2.TOOL_KIND_FUNCTION, thought_signature=b"\xff"
    )
    made = gained(
        Choice(starts=True, tool_calls=[begins]),
        Choice(tool_calls=[call(index=1, arguments='{"a"')]),
        Choice(tool_calls=[call(index=2, id="2", name="c", kind=content_pb2.TOOL_KIND_CUSTOM)]),
        Choice(tool_calls=[call(index=2, arguments="x", kind=content_pb2.TOOL_KIND_CUSTOM)]),
    )
    assert made == [
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "index": 1,
                    "id": "1",
                    "type": "function",
                    "function": {"name": "f", "arguments": ""},
                    "extra_content": {"google": {"thought_signature": "/w=="}},
                }
            ],
        },
        {"tool_calls": [{"index": 1, "function": {"arguments": '{"a"'}}]},
        {
            "tool_calls": [
                {"index": 2, "id": "2", "type": "custom", "custom": {"name": "c", "input": ""}}
            ]
        },
        {"tool_calls": [{"index": 2, "custom": {"input": "x"}}]},
    ]


def test_the_legacy_form_has_one_function_call() -> None:
    call = chat_pb2.ToolCallDelta
    made = gained(
        Choice(starts=True, tool_calls=[call(id="1", name="f")]),
        Choice(tool_calls=[call(arguments="{}")]),
        legacy_functions=True,
    )
    assert made == [
        {"role": "assistant", "function_call": {"name": "f", "arguments": ""}},
        {"function_call": {"arguments": "{}"}},
    ]
    stream = encoder(legacy_functions=True)
    ends = Choice(finish_reason=chat_pb2.FINISH_REASON_TOOL_CALLS)
    chunk = read(stream.delta(chat_pb2.ChatDelta(choices=[ends])))
    assert chunk["choices"][0]["finish_reason"] == "function_call"


def test_a_proof_comes_with_its_whole_thought() -> None:
    made = gained(
        Choice(thinking=Thought(text="Let ")),
        Choice(thinking=Thought(text="me see.")),
        Choice(index=1, thinking=Thought(text="Other.")),
        Choice(thinking=Thought(signature="s1")),
        Choice(part_index=1, thinking=Thought(text="Next.", signature="s2")),
        Choice(thinking=Thought(redacted_data="e")),
    )
    assert made == [
        {"reasoning_content": "Let "},
        {"reasoning_content": "me see."},
        {"reasoning_content": "Other."},
        {
            "reasoning_details": [
                {"type": "reasoning.text", "text": "Let me see.", "signature": "s1", "index": 0}
            ]
        },
        {
            "reasoning_content": "Next.",
            "reasoning_details": [
                {"type": "reasoning.text", "text": "Next.", "signature": "s2", "index": 1}
            ],
        },
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "e", "index": 2}]},
    ]


def test_pieces_that_their_provider_has_numbered_stay_pieces() -> None:
    made = gained(Choice(thinking=Thought(text="a", extra_json=b'{"index":0}')))
    assert made == [
        {
            "reasoning_content": "a",
            "reasoning_details": [{"type": "reasoning.text", "text": "a", "index": 0}],
        }
    ]


def test_the_rare_pieces_are_said_too() -> None:
    citation = content_pb2.UrlCitation(url="https://x", title="X", end_index=1)
    made = gained(
        Choice(refusal="No."),
        Choice(audio=chat_pb2.AudioDelta(id="a1")),
        Choice(audio=chat_pb2.AudioDelta(data=b"RIFF", transcript="la")),
        Choice(audio=chat_pb2.AudioDelta(expires_at_unix_s=9)),
        Choice(images=[content_pb2.ImagePart(source=content_pb2.MediaSource(url="https://x"))]),
        Choice(annotations=[content_pb2.Annotation(url_citation=citation)]),
        Choice(annotations=[content_pb2.Annotation(opaque_json=b'{"type":"file"}')]),
    )
    assert made == [
        {"refusal": "No."},
        {"audio": {"id": "a1"}},
        {"audio": {"data": "UklGRg==", "transcript": "la"}},
        {"audio": {"expires_at": 9}},
        {"images": [{"type": "image_url", "image_url": {"url": "https://x"}, "index": 0}]},
        {
            "annotations": [
                {
                    "type": "url_citation",
                    "url_citation": {
                        "url": "https://x",
                        "title": "X",
                        "start_index": 0,
                        "end_index": 1,
                    },
                }
            ]
        },
        {"provider_specific_fields": {"annotations": [{"type": "file"}]}},
    ]


def test_log_probabilities_stand_beside_the_delta() -> None:
    logprobs = chat_pb2.Logprobs(content=[chat_pb2.TokenLogprob(token="a", logprob=-1)])
    stream = encoder()
    chunk = read(stream.delta(chat_pb2.ChatDelta(choices=[Choice(text="a", logprobs=logprobs)])))
    assert chunk["choices"][0]["logprobs"]["content"][0]["token"] == "a"


@needs_specs
@pytest.mark.parametrize("legacy", [False, True])
def test_a_stream_is_what_openais_description_says(legacy: bool) -> None:
    stream = encoder(stream_usage=True, legacy_functions=legacy)
    call = chat_pb2.ToolCallDelta
    pieces = [
        Choice(starts=True),
        Choice(text="Hi", logprobs=chat_pb2.Logprobs(content=[chat_pb2.TokenLogprob(token="H")])),
        Choice(refusal="No."),
        Choice(thinking=Thought(text="a", signature="s")),
        Choice(tool_calls=[call(id="1", name="f", kind=content_pb2.TOOL_KIND_FUNCTION)]),
        Choice(tool_calls=[call(arguments="{}")]),
        Choice(finish_reason=chat_pb2.FINISH_REASON_TOOL_CALLS, native_finish_reason="tool_use"),
    ]
    raw = b"".join(
        stream.delta(chat_pb2.ChatDelta(choices=[piece], service_tier="standard"))
        for piece in pieces
    )
    assert stream_faults(raw + stream.usage(METERED) + DONE) == []
    assert stream_faults(raw) != []


def test_usage_may_follow_chunks_that_came_natively() -> None:
    first = b'data: {"id":"a","created":1,"model":"x","choices":[]}\n\n'
    last = b'data: {"id":"b","created":2,"model":"y","choices":[]}\n\n'
    frame = AnswerFrame(id="c", created_unix_s=7, model="openai/m", stream_usage=True)
    made = read(ChunkEncoder.after(first + last, frame).usage(METERED))
    assert (made["id"], made["created"], made["model"]) == ("b", 2, "y")
    assert made["choices"] == []
    assert made["usage"]["total_tokens"] == 150


def test_the_official_sdk_puts_two_proofs_of_one_stream_together() -> None:
    stream = encoder()
    state = ChatCompletionStreamState()
    for number in (1, 2):
        thought = Thought(text=f"thought {number}", signature=f"s{number}")
        delta = chat_pb2.ChatDelta(choices=[Choice(thinking=thought)])
        state.handle_chunk(ChatCompletionChunk.model_validate(read(stream.delta(delta))))
    message: Any = state.current_completion_snapshot.choices[0].message
    proofs = [entry["signature"] for entry in message.reasoning_details]
    assert proofs == ["s1", "s2"]
