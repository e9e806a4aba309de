"""Whole answers in OpenAI's dialect, and the forwarding of bodies as they are."""

import json
from typing import Any

import pytest

from onegate.common.v1 import content_pb2, error_pb2, token_usage_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.money import usd
from services.router.providers import PROVIDERS
from services.router.providers.base import Answer, Exchange
from services.router.providers.compatible import OPENAI, PERPLEXITY
from services.router.providers.openai_usage import token_usage

PROTOCOL = error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
POLICY = error_pb2.ERROR_REASON_CONTENT_POLICY
INVALID = error_pb2.ERROR_REASON_INVALID_REQUEST

Json = dict[str, Any]


def body(message: Json | None, finish: str | None = "stop", **more: Any) -> bytes:
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return json.dumps({"id": "a-1", "choices": [choice], **more}).encode()


def answered(kind: str, raw: bytes, *, native: bool = False, **fields: Any) -> Answer:
    request = chat_pb2.ChatRequest(**fields)
    exchange = Exchange(request=request, model="m", cost=lambda tokens: 123, native=native)
    return PROVIDERS[kind].response(exchange, raw)


def parts(kind: str, message: Json, **fields: Any) -> list[content_pb2.Part]:
    answer = answered(kind, body(message), **fields).event.answer
    return list(answer.choices[0].message.parts)


def reason_of(kind: str, raw: bytes, *, native: bool = False) -> int:
    with pytest.raises(GatewayError) as raised:
        answered(kind, raw, native=native)
    return raised.value.reason


BOTH = pytest.mark.parametrize("native", [False, True], ids=["typed", "native"])


@BOTH
@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", PROTOCOL),
        (b"<html>", PROTOCOL),
        (b"[]", PROTOCOL),
        (b"{}", PROTOCOL),
        (b'{"choices": []}', PROTOCOL),
        (b'{"choices": [{"message": 3}]}', PROTOCOL),
        (b'{"choices": [{"message": {"content": "\xff"}}]}', PROTOCOL),
        (b'{"error": {"message": "no", "code": "content_filter", "status": 400}}', POLICY),
        (b'{"error": "it broke"}', error_pb2.ERROR_REASON_UPSTREAM_ERROR),
    ],
)
def test_what_is_no_answer_is_refused(raw: bytes, reason: int, native: bool) -> None:
    assert reason_of("openai", raw, native=native) == reason


@pytest.mark.parametrize(
    ("kind", "raw", "reason"),
    [
        ("vllm", b'{"object": "error", "message": "no", "code": 400}', INVALID),
        ("vllm", b'{"error": {"message": "no", "code": 400}, "id": 3}', INVALID),
        ("mistral", body({"content": ""}, "error"), error_pb2.ERROR_REASON_UPSTREAM_ERROR),
        (
            "openrouter",
            json.dumps({"choices": [{"index": 0, "error": {"code": 429}}]}).encode(),
            error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
        ),
    ],
)
def test_a_vendors_own_way_to_fail_is_understood(kind: str, raw: bytes, reason: int) -> None:
    assert reason_of(kind, raw) == reason


@pytest.mark.parametrize(
    ("finish", "message", "reason"),
    [
        (None, {"content": "x"}, chat_pb2.FINISH_REASON_STOP),
        ("", {"content": "x"}, chat_pb2.FINISH_REASON_STOP),
        (
            "",
            {"tool_calls": [{"id": "c", "function": {"name": "f"}}]},
            chat_pb2.FINISH_REASON_TOOL_CALLS,
        ),
        ("tool_use", {"content": "x"}, chat_pb2.FINISH_REASON_TOOL_CALLS),
        ("max_tokens", {"content": "x"}, chat_pb2.FINISH_REASON_LENGTH),
        ("novel", {"content": "x"}, chat_pb2.FINISH_REASON_STOP),
        ("stop", None, chat_pb2.FINISH_REASON_STOP),
    ],
)
def test_a_whole_answer_always_has_a_reason_for_its_end(
    finish: str | None, message: Json | None, reason: int
) -> None:
    choice = answered("compatible", body(message, finish)).event.answer.choices[0]
    assert choice.finish_reason == reason
    assert choice.native_finish_reason == (finish or "")


def test_content_in_parts_keeps_its_order() -> None:
    content = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}, "odd"]},
        {"type": "text", "text": "One"},
        {"type": "thinking", "thinking": []},
        {"type": "reference", "reference_ids": [1]},
        {"type": "text", "text": "Two"},
    ]
    message = {"content": content, "annotations": [{"type": "file"}]}
    made = parts("mistral", message)
    assert [part.WhichOneof("content") for part in made] == [
        "thinking",
        "text",
        "opaque_json",
        "text",
    ]
    assert (made[0].thinking.text, made[1].text.text, made[3].text.text) == ("Hm", "One", "Two")
    assert [len(made[1].text.annotations), len(made[3].text.annotations)] == [1, 0]
    hidden = parts("mistral", message, thinking=chat_pb2.Thinking(include_thoughts=False))
    assert [part.WhichOneof("content") for part in hidden] == ["text", "opaque_json", "text"]


def test_annotations_without_a_text_stand_alone() -> None:
    citation = {"url": "https://x", "title": "X", "start_index": 0, "end_index": 1}
    made = parts("openai", {"annotations": [{"type": "url_citation", "url_citation": citation}]})
    assert made[0].text.annotations[0].url_citation.url == "https://x"


def test_thoughts_are_read_in_every_spelling_and_hidden_on_demand() -> None:
    details = [{"type": "reasoning.text", "text": "a"}, {"type": "novel", "text": "b"}]
    hide = chat_pb2.Thinking(include_thoughts=False)
    for message, texts in (
        ({"content": "x", "reasoning_content": "a"}, ["a"]),
        ({"content": "x", "reasoning": "a"}, ["a"]),
        ({"content": "x", "reasoning": "ab", "reasoning_details": details}, ["a", "b"]),
    ):
        made = parts("openrouter", message)
        assert [p.thinking.text for p in made if p.HasField("thinking")] == texts
        assert len(parts("openrouter", message, thinking=hide)) == 1


def test_pictures_and_sound_are_opened() -> None:
    pictures = [
        {"image_url": {"url": "data:image/png;base64,AAEC"}},
        {"image_url": {"url": "data:image/png;base64,A"}},
        {"image_url": {"url": "https://x/y.png"}},
        {"novel": 1},
    ]
    made = parts("openrouter", {"content": None, "images": pictures, "audio": {"data": "AAEC"}})
    assert made[0].audio.source.data == b"\x00\x01\x02"
    assert (made[1].image.source.data, made[1].image.source.media_type) == (
        b"\x00\x01\x02",
        "image/png",
    )
    assert made[2].image.source.data == b""
    assert made[3].image.source.url == "https://x/y.png"
    assert json.loads(made[4].opaque_json) == {"novel": 1}


def test_a_tool_call_keeps_what_nobody_named() -> None:
    message = {
        "tool_calls": [
            {"id": "a", "function": {"name": "f", "arguments": "{}"}, "novel": 1},
            {"id": "b", "function": {"name": "f"}, "extra_content": {"other": 1}},
            {"id": "c"},
        ]
    }
    made = parts("compatible", message)
    assert [json.loads(part.extra_json or b"{}") for part in made] == [
        {"novel": 1},
        {"extra_content": {"other": 1}},
        {},
    ]


def test_a_legacy_call_is_a_tool_call_without_an_id() -> None:
    made = parts("openai", {"function_call": {"name": "f", "arguments": "{}"}})
    assert (made[0].tool_call.id, made[0].tool_call.name) == ("", "f")


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ({"content": "é"}, 2),
        ({"content": [{"type": "text", "text": "ab"}]}, 2),
        ({"reasoning_content": "ab", "content": "c"}, 3),
        ({"reasoning_details": [{"type": "reasoning.summary", "summary": "ab"}]}, 2),
        ({"refusal": "no"}, 2),
        ({"audio": {"id": "a", "transcript": "ab"}}, 2),
        ({"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}, 8),
        ({"function_call": {"name": "f", "arguments": "{}"}}, 3),
    ],
)
def test_all_that_a_model_says_is_counted(message: Json, size: int) -> None:
    assert answered("compatible", body(message)).output_bytes == size
    message = {k: v for k, v in message.items() if k != "content" or isinstance(v, str)}
    assert answered("openai", body(message), native=True).output_bytes in (size, 0)


def test_an_answer_is_forwarded_with_its_cost_and_its_very_bytes() -> None:
    raw = (
        b'{"id":"a-1", "choices":[ {"message":{"content":"Hi"}, "finish_reason":"stop","x": 1.10}],'
        b'"service_tier":"flex","usage":{ "prompt_tokens":9,"completion_tokens":1, "z": [ 1 ]}}'
    )
    answer = answered("openai", raw, native=True)
    assert answer.usage == token_usage_pb2.TokenUsage(
        input_tokens=9, output_tokens=1, service_tier="flex", extra_json=b'{"z":[1]}'
    )
    assert (answer.finish_reason, answer.upstream_id) == ("stop", "a-1")
    assert answer.event.native == raw[:-2] + b',"cost":0.000000123}}'


USAGE = b'{"prompt_tokens":9,"completion_tokens":1}'


@pytest.mark.parametrize(
    "beside",
    [
        b'"x_usage":%b' % USAGE,
        b'"x":{"usage":%b}' % USAGE,
        b'"x":%b' % json.dumps(USAGE.decode()).encode(),
    ],
)
@pytest.mark.parametrize("form", [b"{%b,%b,%b}", b"{%b,%b, %b}"])
def test_the_cost_is_put_into_the_usage_and_nowhere_else(beside: bytes, form: bytes) -> None:
    choices = b'"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}]'
    usage = b'"usage":%b' % USAGE
    for raw in (form % (choices, beside, usage), form % (usage, beside, choices)):
        forwarded = json.loads(answered("openai", raw, native=True).event.native)
        assert forwarded["usage"].pop("cost") == 0.000000123
        assert forwarded == json.loads(raw)


def test_a_provider_s_own_cost_is_replaced() -> None:
    raw = (
        b'{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}],"usage":'
        b'{"prompt_tokens":9,"cost":7,"completion_tokens":1}}'
    )
    forwarded = json.loads(answered("openai", raw, native=True).event.native)
    assert forwarded["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 1,
        "cost": 0.000000123,
    }


@pytest.mark.parametrize("usage", [{}, {"usage": None}, {"usage": {"prompt_tokens": "many"}}])
def test_an_answer_without_usage_is_forwarded_untouched(usage: Json) -> None:
    raw = body({"content": "Hi"}, None, **usage)
    answer = answered("openai", raw, native=True)
    assert (answer.event.native, answer.usage, answer.finish_reason) == (raw, None, "")


def forwarded(raw: bytes, **fields: Any) -> bytes:
    request = chat_pb2.ChatRequest(**fields)
    request.native.body = raw
    exchange = Exchange(request=request, model="gpt-5", cost=lambda tokens: 0, native=True)
    return PROVIDERS["openai"].request(exchange).body


def test_a_request_is_forwarded_with_another_model_and_nothing_else() -> None:
    raw = b'{ "model":"openai/gpt-5", "messages":[ {"role" : "user"} ],"seed": 1.0e2,"model":"x"}'
    assert forwarded(raw) == (b'{"model":"gpt-5","messages":[ {"role" : "user"} ],"seed":1.0e2}')


def test_what_steers_the_gateway_is_not_forwarded() -> None:
    raw = b'{"models":["a"],"provider":{"only":["b"]},"user":"u"}'
    assert json.loads(forwarded(raw)) == {"user": "u", "model": "gpt-5"}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (b"", {"include_usage": True}),
        (b',"stream_options":null', {"include_usage": True}),
        (b',"stream_options":{"include_usage":false}', {"include_usage": True}),
        (
            b',"stream_options":{"include_obfuscation":false}',
            {"include_obfuscation": False, "include_usage": True},
        ),
    ],
)
def test_usage_of_a_stream_is_always_asked_for(options: bytes, wanted: Json) -> None:
    sent = json.loads(forwarded(b'{"stream":true%b}' % options, stream=True))
    assert sent["stream_options"] == wanted


@pytest.mark.parametrize(
    ("raw", "param"), [(b"[]", "body"), (b'{"stream_options":3}', "stream_options")]
)
def test_a_body_that_is_no_object_is_refused(raw: bytes, param: str) -> None:
    with pytest.raises(GatewayError) as raised:
        forwarded(raw, stream=True)
    assert (raised.value.reason, raised.value.param) == (INVALID, param)


@pytest.mark.parametrize(
    ("nano_usd", "written"),
    [
        (0, b"0"),
        (1, b"0.000000001"),
        (1_500, b"0.0000015"),
        (1_000_000_000, b"1"),
        (12_345_678_901, b"12.345678901"),
        (9_007_199_254_740_993_000_000_001, b"9007199254740993.000000001"),
    ],
)
def test_a_cost_is_written_exact_to_the_nano(nano_usd: int, written: bytes) -> None:
    assert usd(nano_usd).encode() == written


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 0, "completion_tokens": 0}, {}),
        ({"prompt_tokens": 9.0}, {"input_tokens": 9}),
        (
            {"prompt_tokens": 9, "prompt_tokens_details": {"video_tokens": 0}},
            {"input_tokens": 9},
        ),
        ({"completion_tokens": 9, "prompt_tokens": None}, {"output_tokens": 9}),
        (
            {"prompt_tokens": 9, "cached_tokens": 3, "prompt_tokens_details": {"cached_tokens": 0}},
            {"input_tokens": 9, "cached_input_tokens": 3},
        ),
        (
            {"prompt_tokens": 9, "prompt_tokens_details": None, "total_tokens": 99},
            {"input_tokens": 9},
        ),
        ({"prompt_tokens": 9, "service_tier": "flex"}, {"input_tokens": 9, "service_tier": "flex"}),
        (
            {"prompt_tokens": 9, "prompt_tokens_details": {"novel": {"a": 1}}},
            {"input_tokens": 9, "extra_json": b'{"prompt_novel":{"a":1}}'},
        ),
    ],
)
def test_usage_is_read_in_every_spelling(usage: Json, counts: Json) -> None:
    found = token_usage(OPENAI, usage, None)
    assert found == token_usage_pb2.TokenUsage(**counts)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        {},
        {"total_tokens": 9},
        {"prompt_tokens": -1},
        {"prompt_tokens": 1 << 53},
        {"prompt_tokens": 0.5},
        {"prompt_tokens": True},
        {"prompt_tokens": "9"},
        {"prompt_tokens": 9, "completion_tokens_details": {"reasoning_tokens": -3}},
    ],
)
def test_usage_that_cannot_be_counts_as_not_said(usage: Any) -> None:
    assert token_usage(OPENAI, usage, None) is None


def test_output_includes_reasoning_wherever_the_vendor_counts_it() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "reasoning_tokens": 5}
    assert token_usage(PERPLEXITY, usage, 3) == token_usage_pb2.TokenUsage(
        input_tokens=9, output_tokens=7, reasoning_tokens=5
    )
    assert token_usage(PERPLEXITY, {"prompt_tokens": 9}, None) == token_usage_pb2.TokenUsage(
        input_tokens=9
    )
