"""Streams in OpenAI's dialect, as vendors really write them: as pieces of the hub's, and as they
are.
"""

import json
from typing import Any

import pytest

from onegate.common.v1 import content_pb2, error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.sse import ServerSentEvent
from services.router.providers import PROVIDERS
from services.router.providers.base import Exchange, Stream

PROTOCOL = error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
FAILED = error_pb2.ERROR_REASON_UPSTREAM_ERROR
INVALID = error_pb2.ERROR_REASON_INVALID_REQUEST
DONE = ServerSentEvent(b"", b"[DONE]")
USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
COST = b'"cost":0.0000015'

Json = dict[str, Any]


def event(data: Any, name: bytes = b"") -> ServerSentEvent:
    return ServerSentEvent(name, json.dumps(data, separators=(",", ":")).encode())


def chunk(*choices: Json, **more: Any) -> ServerSentEvent:
    return event({"id": "c-1", "object": "chat.completion.chunk", "choices": choices, **more})


def says(words: str, index: int = 0) -> Json:
    return {"index": index, "delta": {"content": words}, "finish_reason": None}


def ends(reason: str = "stop", index: int = 0) -> Json:
    return {"index": index, "delta": {}, "finish_reason": reason}


def calls(*pieces: Json) -> Json:
    return {"index": 0, "delta": {"tool_calls": pieces}}


def opened(kind: str, *, native: bool = False, **fields: Any) -> Stream:
    request = chat_pb2.ChatRequest(stream=True, **fields)
    exchange = Exchange(request=request, model="m", cost=lambda tokens: 1500, native=native)
    return PROVIDERS[kind].stream(exchange)


def pieces(stream: Stream, *events: ServerSentEvent) -> list[chat_pb2.ChoiceDelta]:
    return [piece for made in stream.feed(events) for piece in made.delta.choices]


def reason_of(stream: Stream, *events: ServerSentEvent) -> int:
    with pytest.raises(GatewayError) as raised:
        stream.feed(events)
    return raised.value.reason


def through(stream: Stream, *events: ServerSentEvent) -> None:
    stream.feed(events)
    stream.end()


BOTH = pytest.mark.parametrize("native", [False, True], ids=["typed", "native"])


@BOTH
def test_a_stream_is_complete_when_the_provider_says_so(native: bool) -> None:
    stream = opened("openai", native=native)
    assert not stream.started
    stream.feed([chunk({"index": 0, "delta": {"role": "assistant", "content": ""}})])
    assert not stream.started
    stream.feed([chunk(says("Grüße"))])
    assert (stream.started, stream.output_bytes) == (True, 7)
    stream.feed([chunk(ends("length"))])
    assert not stream.done
    stream.feed([DONE, chunk(says("more"))])
    assert (stream.done, stream.finish_reason, stream.upstream_id) == (True, "length", "c-1")
    assert stream.feed([chunk(says("more"))]) == stream.end() == []
    assert (stream.usage, stream.output_bytes) == (None, 7)


@BOTH
def test_a_stream_that_just_stops_after_its_finish_is_complete(native: bool) -> None:
    stream = opened("openai", native=native)
    stream.feed([chunk(says("Hi")), chunk(ends())])
    assert stream.end() == []
    assert stream.done


@BOTH
@pytest.mark.parametrize(
    "events",
    [
        [],
        [chunk(says("Hi"))],
        [chunk(says("Hi"), says("Ho", 1)), chunk(ends(index=1))],
        [chunk(usage=USAGE)],
    ],
)
def test_a_stream_that_ends_without_a_finish_is_never_taken_for_an_answer(
    events: list[ServerSentEvent], native: bool
) -> None:
    for last in ([], [DONE]):
        stream = opened("openai", native=native)
        with pytest.raises(GatewayError) as raised:
            through(stream, *events, *last)
        assert raised.value.reason == PROTOCOL
        assert not stream.done


@BOTH
def test_every_choice_must_end(native: bool) -> None:
    stream = opened("openai", native=native)
    stream.feed([chunk(says("a"), says("b", 1)), chunk(ends(index=1)), chunk(ends("length")), DONE])
    assert (stream.done, stream.finish_reason) == (True, "stop")


@BOTH
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (ServerSentEvent(b"", b"<html>"), PROTOCOL),
        (ServerSentEvent(b"", b'{"choices": [{"delta": {"content": "\xff"}}]}'), PROTOCOL),
        (event([1]), PROTOCOL),
        (event({"type": "ping"}), PROTOCOL),
        (event({"choices": [{"delta": 3}]}), PROTOCOL),
        (event({"error": {"message": "overloaded", "type": "server_error"}}), FAILED),
        (event({"error": {"message": "no", "code": 400}}), INVALID),
        (event({"error": "it broke"}), FAILED),
        (event({"message": "no", "type": "invalid_request_error"}, b"error"), INVALID),
        (event({"error": {"message": "no", "status_code": 400}}, b"error"), INVALID),
    ],
)
def test_a_failure_in_the_middle_is_raised_for_what_it_is(
    bad: ServerSentEvent, reason: int, native: bool
) -> None:
    assert reason_of(opened("openai", native=native), bad) == reason


@BOTH
def test_what_came_before_a_failure_is_not_lost(native: bool) -> None:
    failure = event({"error": {"message": "overloaded"}})
    stream = opened("openai", native=native)
    assert len(stream.feed([chunk(says("Hi")), failure])) == 1
    assert reason_of(stream, chunk(says("x"))) == FAILED
    with pytest.raises(GatewayError):
        stream.end()
    assert not stream.done


@BOTH
def test_an_event_without_data_says_nothing(native: bool) -> None:
    assert opened("openai", native=native).feed([ServerSentEvent(b"", b"")]) == []


@pytest.mark.parametrize(
    ("kind", "bad", "reason"),
    [
        ("openrouter", chunk(ends("error")), FAILED),
        ("deepseek", chunk(ends("insufficient_system_resource")), FAILED),
        ("zai", chunk(ends("network_error")), FAILED),
        (
            "openrouter",
            chunk({"index": 0, "delta": {}, "error": {"code": 502, "message": "down"}}),
            FAILED,
        ),
        ("groq", chunk(says(""), x_groq={"id": "r", "error": "over capacity"}), FAILED),
        ("vllm", event({"object": "error", "message": "no", "code": 400}), INVALID),
        ("vllm", event({"detail": "no"}), FAILED),
        ("vllm", event({"error": {"message": "no"}, "choices": 3}), FAILED),
    ],
)
def test_a_vendors_own_way_to_fail_is_understood(
    kind: str, bad: ServerSentEvent, reason: int
) -> None:
    assert reason_of(opened(kind), bad) == reason


def test_usage_beside_an_error_is_kept() -> None:
    stream = opened("openrouter")
    reason_of(stream, chunk(says(""), usage=USAGE, error={"code": 400, "message": "no"}))
    assert stream.usage is not None
    assert stream.usage.output_tokens == 3


def test_usage_in_every_chunk_is_cumulative_and_the_last_that_can_be_wins() -> None:
    stream = opened("nvidia")
    for count in (1, 2, 3):
        stream.feed([chunk(says("x"), usage=USAGE | {"completion_tokens": count})])
    stream.feed([chunk(ends(), usage={"prompt_tokens": -1, "completion_tokens": 4}), DONE])
    assert stream.usage is not None
    assert (stream.usage.input_tokens, stream.usage.output_tokens) == (9, 3)


def test_a_tool_call_says_its_id_and_name_once() -> None:
    stream = opened("alibaba")
    repeated = {"index": 0, "id": "c", "type": "function", "function": {"name": "f"}}
    made = pieces(
        stream,
        chunk(calls(repeated | {"function": {"name": "f", "arguments": '{"a"'}})),
        chunk(calls(repeated | {"id": "", "function": {"name": "f", "arguments": ":1}"}})),
        chunk(calls({"index": 1, "id": "d"})),
        chunk(calls({"index": 1, "function": {"name": "g", "arguments": None}})),
    )
    told = [(t.index, t.id, t.name, t.arguments, t.kind) for p in made for t in p.tool_calls]
    kind = content_pb2.TOOL_KIND_FUNCTION
    assert told == [
        (0, "c", "f", '{"a"', kind),
        (0, "", "", ":1}", 0),
        (1, "d", "", "", kind),
        (1, "", "g", "", 0),
    ]
    assert stream.output_bytes == len('f{"a"f:1}g')


def test_tool_calls_without_an_index_are_told_apart() -> None:
    stream = opened("compatible")
    made = pieces(
        stream,
        chunk(calls({"id": "a", "function": {"name": "f", "arguments": "{"}})),
        chunk(calls({"function": {"arguments": "}"}})),
        chunk(calls({"id": "b", "function": {"name": "f", "arguments": "{}"}})),
        chunk(calls({"id": "a", "function": {"arguments": " "}})),
        chunk(calls({"function": {"name": "g", "arguments": "{}"}})),
        chunk(calls({"id": "c", "function": {"arguments": "{}"}})),
    )
    assert [(t.index, t.id) for p in made for t in p.tool_calls] == [
        (0, "a"),
        (0, ""),
        (1, "b"),
        (0, ""),
        (2, ""),
        (3, "c"),
    ]


def test_a_custom_tools_call_and_googles_proof_come_through() -> None:
    proof = {"google": {"thought_signature": "AAEC"}}
    stream = opened("compatible")
    made = pieces(
        stream,
        chunk(calls({"index": 0, "id": "a", "type": "custom", "custom": {"name": "sh"}})),
        chunk(calls({"index": 0, "custom": {"input": "ls"}, "extra_content": proof})),
        chunk(calls({"index": 0, "extra_content": {"google": {"thought_signature": "*"}}})),
        chunk(calls({"index": 0, "extra_content": {"other": 1}})),
    )
    told = [(t.name, t.arguments, t.kind, t.thought_signature) for p in made for t in p.tool_calls]
    assert told == [
        ("sh", "", content_pb2.TOOL_KIND_CUSTOM, b""),
        ("", "ls", 0, b"\x00\x01\x02"),
        ("", "", 0, b""),
        ("", "", 0, b""),
    ]


def test_an_empty_function_call_is_none() -> None:
    made = pieces(
        opened("openai"),
        chunk({"index": 0, "delta": {"content": "x", "function_call": {"name": ""}}}),
    )
    assert not made[0].tool_calls


def test_sound_and_pictures_are_content() -> None:
    stream = opened("openai")
    made = pieces(stream, chunk({"index": 0, "delta": {"audio": {"id": "a", "data": "AAEC"}}}))
    assert (made[0].audio.id, made[0].audio.data) == ("a", b"\x00\x01\x02")
    assert stream.started
    made = pieces(stream, chunk({"index": 0, "delta": {"audio": {"transcript": "Hi"}}}))
    made += pieces(stream, chunk({"index": 0, "delta": {"audio": {"expires_at": 7.0}}}))
    assert (made[0].audio.transcript, made[1].audio.expires_at_unix_s) == ("Hi", 7)
    assert stream.output_bytes == 2
    stream = opened("openrouter")
    url = {"image_url": {"url": "https://x/y.png"}}
    made = pieces(stream, chunk({"index": 0, "delta": {"images": [url, {"other": 1}]}}))
    assert [image.source.url for image in made[0].images] == ["https://x/y.png"]
    assert stream.started


def test_refusals_logprobs_and_annotations_come_through() -> None:
    found = {"content": [{"token": "a", "logprob": -1, "bytes": [97], "top_logprobs": []}]}
    delta = {"refusal": "no", "annotations": [{"type": "file"}]}
    made = pieces(opened("openai"), chunk({"index": 0, "delta": delta, "logprobs": found}))
    assert made[0].refusal == "no"
    assert made[0].logprobs.content[0].utf8 == b"a"
    assert json.loads(made[0].annotations[0].opaque_json) == {"type": "file"}


@pytest.mark.parametrize("odd", [0.5, {"tokens": ["a"]}, {"content": [{"token": 3}]}])
def test_log_probabilities_of_another_form_are_none(odd: Any) -> None:
    made = pieces(opened("together"), chunk(says("a") | {"logprobs": odd}))
    assert not made[0].HasField("logprobs")


def test_thoughts_are_hidden_from_a_caller_who_does_not_want_them() -> None:
    stream = opened("deepseek", thinking=chat_pb2.Thinking(include_thoughts=False))
    made = pieces(stream, chunk({"index": 0, "delta": {"reasoning_content": "Hm"}}))
    assert not made[0].HasField("thinking")
    assert (stream.started, stream.output_bytes) == (True, 2)


def test_several_thoughts_at_once_become_several_pieces() -> None:
    details = [
        {"type": "reasoning.summary", "summary": "Short", "id": "r"},
        {"type": "reasoning.text", "text": "Long", "signature": "s"},
        {"type": "reasoning.encrypted", "data": "xyz"},
    ]
    stream = opened("openrouter")
    made = pieces(stream, chunk({"index": 0, "delta": {"reasoning_details": details}}))
    thoughts = [piece.thinking for piece in made]
    assert [t.text for t in thoughts] == ["Short", "Long", ""]
    assert json.loads(thoughts[0].extra_json) == details[0]
    assert (thoughts[1].signature, thoughts[2].redacted_data) == ("s", "xyz")
    assert [piece.starts for piece in made] == [True, False, False]
    assert stream.output_bytes == len("ShortLong")


def test_the_head_is_said_once_and_changes_when_they_come() -> None:
    stream = opened("groq")
    head: Json = {"created": 7, "model": "m", "system_fingerprint": "f"}
    events = stream.feed(
        [
            event({"id": "", "model": "", "choices": []}),
            chunk(says("a"), **head, service_tier="on_demand"),
            chunk(says("b"), **head, service_tier="on_demand"),
            chunk(says("c"), **head | {"system_fingerprint": "g"}, service_tier="turbo"),
            chunk(says("d"), novel=1, obfuscation="xxx", empty=None),
        ]
    )
    told = [
        (d.id, d.created_unix_s, d.model, d.system_fingerprint, d.service_tier, d.extra_json)
        for d in (made.delta for made in events)
    ]
    assert told == [
        ("c-1", 7, "m", "f", "default", b""),
        ("", 0, "", "", "", b""),
        ("", 0, "", "g", "", b'{"native_service_tier":"turbo"}'),
        ("", 0, "", "", "", b'{"novel":1}'),
    ]


def test_an_end_without_a_reason_is_one_where_the_vendor_leaves_it_out() -> None:
    stream = opened("compatible")
    stream.feed([chunk(says("Hi")), chunk(calls({"index": 0, "id": "a"})), chunk(says("x", 1))])
    made = pieces(stream, DONE)
    assert [(piece.index, piece.finish_reason) for piece in made] == [
        (0, chat_pb2.FINISH_REASON_TOOL_CALLS),
        (1, chat_pb2.FINISH_REASON_STOP),
    ]
    assert (stream.done, stream.finish_reason) == (True, "tool_calls")
    stream = opened("compatible")
    stream.feed([chunk(says("Hi"))])
    with pytest.raises(GatewayError):
        stream.end()


def test_a_word_that_nobody_documents_still_ends_the_answer() -> None:
    made = pieces(opened("compatible"), chunk(ends("repetition") | {"native_finish_reason": "R"}))
    assert made[0].finish_reason == chat_pb2.FINISH_REASON_STOP
    assert made[0].native_finish_reason == "R"


def native_bytes(stream: Stream, *events: ServerSentEvent) -> bytes:
    made = stream.feed(events)
    assert len(made) <= 1
    return b"".join(piece.native for piece in made)


def test_a_batch_is_forwarded_as_one_piece_with_its_very_bytes() -> None:
    first = ServerSentEvent(b"", b'{"id":"x", "choices":[ {"delta":{"content":"a"}} ],"n": 1.10}')
    second = ServerSentEvent(b"", b'{"choices":\n[]}')
    forwarded = native_bytes(opened("openai", native=True), first, second)
    assert forwarded == b'data: %b\n\ndata: {"choices":\ndata: []}\n\n' % first.data


@pytest.mark.parametrize(
    ("said", "whole"),
    [
        (chunk(says("Hé")), True),
        (chunk(says("Hé"), usage=None), True),
        (chunk(says("a"), says("b", 1), error=None), True),
        (chunk({"index": 0, "delta": {"refusal": "no"}}), True),
        (chunk(calls({"index": 0, "function": {"name": "f", "arguments": "{}"}})), True),
        (chunk(ends()), True),
        (chunk(), True),
        (chunk(says("a"), usage=USAGE), False),
        (event({"error": {"message": "no"}}), False),
        (event({"id": "c-1"}), False),
        (event([]), False),
        (ServerSentEvent(b"", b"no json"), False),
        (ServerSentEvent(b"", b""), False),
        (DONE, False),
    ],
)
def test_what_goes_on_as_it_is_counts_as_what_is_looked_at(
    said: ServerSentEvent, whole: bool
) -> None:
    stream, other = opened("openai", native=True), opened("openai", native=True)
    line = b"data: %b\n\n" % said.data
    assert stream.forwards(line) is whole
    if whole:
        assert native_bytes(other, said) == line
    assert progress_of(stream) == progress_of(other)
    assert not opened("openai").forwards(line)


def test_nothing_goes_on_after_a_failure_or_the_end() -> None:
    line = b"data: %b\n\n" % chunk(says("a")).data
    failed, over = opened("openai", native=True), opened("openai", native=True)
    failed.feed([chunk(says("a")), event({"error": {"message": "no"}})])
    over.feed([chunk(ends()), DONE])
    assert not failed.forwards(line)
    assert not over.forwards(line)


def progress_of(stream: Stream) -> tuple[Any, ...]:
    figures = stream.output_bytes, stream.started, stream.done
    return *figures, stream.finish_reason, stream.upstream_id, stream.usage


def test_usage_is_forwarded_with_its_cost_when_it_was_asked_for() -> None:
    stream = opened("openai", native=True, stream_usage=True)
    last = chunk(usage=USAGE, service_tier="flex")
    forwarded = native_bytes(stream, chunk(says("a"), usage=None), last)
    assert COST in forwarded
    assert forwarded.count(b"data: ") == 2
    assert stream.usage is not None
    assert (stream.usage.input_tokens, stream.usage.service_tier) == (9, "flex")


def test_usage_that_cannot_be_is_forwarded_without_a_cost() -> None:
    stream = opened("openai", native=True, stream_usage=True)
    assert b"cost" not in native_bytes(stream, chunk(usage={"prompt_tokens": -1}))
    assert stream.usage is None


def test_usage_is_withheld_when_it_was_not_asked_for() -> None:
    stream = opened("openai", native=True)
    assert native_bytes(stream, chunk(usage=USAGE)) == b""
    forwarded = native_bytes(stream, chunk(ends(), usage=USAGE))
    assert b"usage" not in forwarded
    assert b'"finish_reason":"stop"' in forwarded
    assert stream.usage is not None


@pytest.mark.parametrize(
    ("delta", "size"),
    [
        ({"refusal": "no"}, 2),
        ({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "é"}}]}, 3),
        ({"tool_calls": [{"index": 0, "custom": {"name": "c", "input": "ls"}}]}, 3),
        ({"function_call": {"name": "f", "arguments": "{}"}}, 3),
        ({"audio": {"transcript": "Hi"}}, 2),
        ({"audio": {"data": "AAEC"}}, 1),
        ({"audio": {"id": "a"}}, 0),
        ({"role": "assistant"}, 0),
    ],
)
def test_all_that_a_model_says_is_counted_as_it_goes_by(delta: Json, size: int) -> None:
    stream = opened("openai", native=True)
    stream.feed([chunk({"index": 0, "delta": delta}), chunk({"index": 0})])
    assert (stream.output_bytes, stream.started) == (size, size > 0)
