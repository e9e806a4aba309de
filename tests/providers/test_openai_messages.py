"""Messages and their parts in OpenAI's dialect, in every vendor's form."""

import dataclasses
from typing import Any

import pytest

from onegate.common.v1 import content_pb2
from services.router.providers.compatible import (
    ALIBABA,
    COMPATIBLE,
    DEEPSEEK,
    GITHUB,
    GROQ,
    MISTRAL,
    OPENAI,
    OPENROUTER,
    SAMBANOVA,
    TOGETHER,
    ZAI,
)
from services.router.providers.compatible_servers import LMSTUDIO, VLLM
from services.router.providers.openai_row import Compatible
from tests.providers.openai_calls import (
    INVALID,
    UNSUPPORTED,
    Part,
    assistant,
    call,
    media,
    message,
    refusal,
    sent,
    text,
)

IMAGE = content_pb2.ImagePart
AUDIO = content_pb2.AudioPart
FILE = content_pb2.FilePart
VIDEO = content_pb2.VideoPart
PDF = media(data=b"\x00\x01\x02", media_type="application/pdf")
BARE = media(data=b"\x00\x01\x02")


@pytest.mark.parametrize(
    ("row", "part", "written"),
    [
        (
            OPENAI,
            Part(image=IMAGE(source=media(data=b"\x00", media_type="image/png"))),
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        ),
        (
            OPENAI,
            Part(audio=AUDIO(source=media(data=b"\x00", media_type="audio/mpeg"))),
            {"type": "input_audio", "input_audio": {"data": "AA==", "format": "mp3"}},
        ),
        (
            OPENAI,
            Part(audio=AUDIO(source=media(data=b"\x00"))),
            {"type": "input_audio", "input_audio": {"data": "AA=="}},
        ),
        (
            ALIBABA,
            Part(audio=AUDIO(source=media(url="https://x/a.wav"), format="wav")),
            {"type": "input_audio", "input_audio": {"data": "https://x/a.wav", "format": "wav"}},
        ),
        (
            SAMBANOVA,
            Part(audio=AUDIO(source=media(data=b"\x00"), format="wav")),
            {"type": "audio_content", "audio_content": {"content": "data:audio/wav;base64,AA=="}},
        ),
        (
            OPENAI,
            Part(file=FILE(source=PDF, filename="a.pdf")),
            {
                "type": "file",
                "file": {"file_data": "data:application/pdf;base64,AAEC", "filename": "a.pdf"},
            },
        ),
        (
            OPENAI,
            Part(file=FILE(source=BARE)),
            {"type": "file", "file": {"file_data": "AAEC"}},
        ),
        (
            MISTRAL,
            Part(file=FILE(source=media(file_id="f1"))),
            {"type": "file", "file_id": "f1"},
        ),
        (
            MISTRAL,
            Part(file=FILE(source=PDF)),
            {"type": "document_url", "document_url": "data:application/pdf;base64,AAEC"},
        ),
        (
            ZAI,
            Part(file=FILE(source=media(url="https://x/a.pdf"))),
            {"type": "file_url", "file_url": {"url": "https://x/a.pdf"}},
        ),
        (
            VLLM,
            Part(video=VIDEO(source=media(data=b"\x00", media_type="video/mp4"))),
            {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA=="}},
        ),
        (
            OPENAI,
            Part(text=content_pb2.TextPart(text="x"), extra_json=b'{"novel": 1}'),
            {"type": "text", "text": "x", "novel": 1},
        ),
        (
            OPENAI,
            Part(refusal=content_pb2.RefusalPart(text="no")),
            {"type": "refusal", "refusal": "no"},
        ),
    ],
)
def test_a_part_is_written_in_the_vendors_form(
    row: Compatible, part: Part, written: dict[str, Any]
) -> None:
    body = sent(row, call(message(text("see"), part)))
    assert body["messages"][0]["content"] == [{"type": "text", "text": "see"}, written]


@pytest.mark.parametrize(
    ("row", "part", "refused"),
    [
        (
            OPENAI,
            Part(image=IMAGE(source=media(file_id="f"))),
            (UNSUPPORTED, ".image_url.file_id"),
        ),
        (OPENAI, Part(image=IMAGE()), (INVALID, "")),
        (OPENAI, Part(audio=AUDIO(source=media(url="https://x"))), (UNSUPPORTED, ".input_audio")),
        (OPENAI, Part(audio=AUDIO(audio_id="a")), (UNSUPPORTED, ".input_audio")),
        (OPENAI, Part(file=FILE(source=media(url="https://x"))), (UNSUPPORTED, ".file.url")),
        (ZAI, Part(file=FILE(source=media(file_id="f"))), (UNSUPPORTED, ".file.file_id")),
        (OPENAI, Part(file=FILE()), (INVALID, "")),
        (OPENAI, Part(video=VIDEO(source=media(url="https://x"))), (UNSUPPORTED, ".video_url")),
        (OPENAI, Part(opaque_json=b"{"), (INVALID, "")),
    ],
)
def test_a_part_that_the_vendor_has_no_form_for_is_refused(
    row: Compatible, part: Part, refused: tuple[int, str]
) -> None:
    reason, place = refused
    assert refusal(row, call(message(text("see"), part))) == (
        reason,
        f"messages[0].content[1]{place}",
    )


def called(call_id: str) -> Part:
    return Part(tool_call=content_pb2.ToolCall(id=call_id, name="f", arguments="{}"))


def thought(words: str, **more: Any) -> Part:
    return Part(thinking=content_pb2.ThinkingPart(text=words, **more))


@pytest.mark.parametrize(
    ("row", "parts", "written"),
    [
        (OPENAI, [thought("a"), text("b")], {"content": "b"}),
        (
            DEEPSEEK,
            [thought("a"), thought("b"), text("c")],
            {"reasoning_content": "ab", "content": "c"},
        ),
        (GROQ, [thought("", redacted_data="x"), text("c")], {"content": "c"}),
        (
            DEEPSEEK,
            [called("c1")],
            {
                "content": None,
                "reasoning_content": "",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
        ),
        (
            COMPATIBLE,
            [thought("a"), thought("b"), thought("", redacted_data="x"), thought(""), text("c")],
            {
                "content": "c",
                "reasoning_content": "ab",
                "reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}],
            },
        ),
        (MISTRAL, [thought("", redacted_data="x"), text("c")], {"content": "c"}),
        (
            MISTRAL,
            [thought("a"), text("c")],
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "a"}]},
                    {"type": "text", "text": "c"},
                ]
            },
        ),
        (
            OPENROUTER,
            [
                Part(
                    thinking=content_pb2.ThinkingPart(text="a"),
                    extra_json=b'{"type":"reasoning.summary","summary":"a","id":"r"}',
                ),
                thought("b"),
            ],
            {
                "content": "",
                "reasoning_details": [
                    {"type": "reasoning.summary", "summary": "a", "id": "r"},
                    {"type": "reasoning.text", "text": "b"},
                ],
            },
        ),
        (
            TOGETHER,
            [Part(opaque_json=b'{"type":"reasoning.summary","summary":"a"}'), text("c")],
            {"content": "c"},
        ),
        (
            OPENROUTER,
            [Part(image=IMAGE(source=media(url="https://x/y.png")))],
            {
                "content": "",
                "images": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}],
            },
        ),
        (
            VLLM,
            [Part(refusal=content_pb2.RefusalPart(text="no"))],
            {"content": "no"},
        ),
        (
            OPENAI,
            [Part(opaque_json=b'{"type":"novel"}'), text("c")],
            {"content": [{"type": "novel"}, {"type": "text", "text": "c"}]},
        ),
        (OPENAI, [], {"content": ""}),
        (
            OPENAI,
            [
                Part(
                    text=content_pb2.TextPart(
                        text="see",
                        annotations=[
                            content_pb2.Annotation(
                                url_citation=content_pb2.UrlCitation(
                                    url="https://x", title="X", start_index=1, end_index=2
                                )
                            ),
                            content_pb2.Annotation(opaque_json=b'{"type":"file"}'),
                        ],
                    )
                )
            ],
            {
                "content": "see",
                "annotations": [
                    {
                        "type": "url_citation",
                        "url_citation": {
                            "url": "https://x",
                            "title": "X",
                            "start_index": 1,
                            "end_index": 2,
                        },
                    },
                    {"type": "file"},
                ],
            },
        ),
        (
            VLLM,
            [
                Part(
                    text=content_pb2.TextPart(
                        annotations=[content_pb2.Annotation(opaque_json=b"{}")]
                    )
                ),
                text("c"),
            ],
            {"content": "c"},
        ),
        (
            OPENAI,
            [
                Part(
                    audio=AUDIO(audio_id="a1"),
                    extra_json=b'{"novel": 1}',
                )
            ],
            {"content": None, "audio": {"id": "a1", "novel": 1}},
        ),
        (
            OPENAI,
            [
                Part(
                    tool_call=content_pb2.ToolCall(
                        id="c1", name="f", arguments="{}", thought_signature=b"\x00"
                    ),
                    extra_json=b'{"novel": 1}',
                )
            ],
            {
                "content": None,
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "f", "arguments": "{}"},
                        "novel": 1,
                    }
                ],
            },
        ),
    ],
)
def test_an_earlier_answer_goes_back_as_the_vendor_takes_it(
    row: Compatible, parts: list[Part], written: dict[str, Any]
) -> None:
    assert sent(row, call(assistant(*parts)))["messages"] == [{"role": "assistant", **written}]


def result(*parts: Part, call_id: str = "c1", **more: Any) -> Part:
    return Part(tool_result=content_pb2.ToolResult(tool_call_id=call_id, parts=parts, **more))


def test_every_tool_result_is_a_message_of_its_own() -> None:
    hinted = result(text("a"))
    hinted.cache_hint.SetInParent()
    failed = result(Part(image=IMAGE(source=media(url="https://x"))), text("b"), is_error=True)
    novel = result(text("error: no"), is_error=True, name="f")
    novel.extra_json = b'{"novel": 1}'
    turn = message(hinted, failed, novel, text("and now?"), extra_json=b'{"own": 1}')
    role = content_pb2.ROLE_TOOL
    alone = message(result(), role=role, extra_json=b'{"own": 2}')
    body = sent(OPENROUTER, call(turn, alone))
    control = {"type": "ephemeral"}
    assert body["messages"] == [
        {
            "role": "tool",
            "tool_call_id": "c1",
            "content": [{"type": "text", "text": "a", "cache_control": control}],
        },
        {
            "role": "tool",
            "tool_call_id": "c1",
            "content": [
                {"type": "text", "text": "Error:"},
                {"type": "image_url", "image_url": {"url": "https://x"}},
                {"type": "text", "text": "b"},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "error: no", "name": "f", "novel": 1},
        {"role": "user", "content": "and now?", "own": 1},
        {"role": "tool", "tool_call_id": "c1", "content": "", "own": 2},
    ]


def test_an_id_of_another_vendor_is_made_to_fit_and_stays_the_same() -> None:
    turn = assistant(called("call_Zq7"), called("Ab1Cd2Ef3"))
    body = sent(MISTRAL, call(turn, message(result(call_id="call_Zq7"))))
    made = body["messages"][0]["tool_calls"][0]["id"]
    assert len(made) == 9
    assert made.isalnum()
    assert made.isascii()
    assert body["messages"][1]["tool_call_id"] == made
    assert body["messages"][0]["tool_calls"][1]["id"] == "Ab1Cd2Ef3"


@pytest.mark.parametrize(
    ("row", "role"), [(OPENAI, "developer"), (GITHUB, "developer"), (LMSTUDIO, "system")]
)
def test_the_operator_is_called_what_the_vendor_calls_it(row: Compatible, role: str) -> None:
    spoken = message(text("x"), role=content_pb2.ROLE_DEVELOPER)
    assert sent(row, call(spoken))["messages"] == [{"role": role, "content": "x"}]


def test_a_message_keeps_its_name_and_what_nobody_named() -> None:
    spoken = message(text("x"), name="ann", extra_json=b'{"novel": {"a": 1}}')
    assert sent(COMPATIBLE, call(spoken))["messages"] == [
        {"role": "user", "content": "x", "name": "ann", "novel": {"a": 1}}
    ]


def test_a_breakpoint_says_how_long_where_the_caller_does() -> None:
    parts = [text("a"), text("b"), text("c")]
    for part, ttl_s in zip(parts, (0, 60, 3600), strict=True):
        part.cache_hint.ttl_s = ttl_s
        part.cache_hint.SetInParent()
    body = sent(OPENROUTER, call(message(*parts)))
    controls = [part["cache_control"] for part in body["messages"][0]["content"]]
    assert controls == [
        {"type": "ephemeral"},
        {"type": "ephemeral", "ttl": "5m"},
        {"type": "ephemeral", "ttl": "1h"},
    ]
    assert sent(OPENAI, call(message(parts[0])))["messages"][0]["content"] == "a"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("audio", Part(audio=AUDIO(source=BARE))),
        ("files", Part(file=FILE(source=PDF))),
        ("thoughts", thought("a")),
    ],
)
def test_a_form_that_nobody_has_written_fails_loudly(name: str, part: Part) -> None:
    novel: dict[str, Any] = {name: "novel"}
    row = dataclasses.replace(OPENAI, **novel)
    with pytest.raises(AssertionError):
        sent(row, call(assistant(part) if name == "thoughts" else message(part)))
