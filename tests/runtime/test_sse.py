"""Server-sent events: the same events however the bytes are cut, and nothing without end."""

import codecs
import itertools
import re
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onegate.common.v1 import error_pb2
from runtime import sse
from runtime.errors import GatewayError
from runtime.sse import ServerSentEvent, SseParser
from tests.recordings import exchanges, needs_recordings

Events = list[ServerSentEvent]


def _reference(stream: bytes) -> Events:
    """The standard's own steps, over a whole stream; the last event needs no blank line."""
    events = []
    name = b""
    data: list[bytes] = []
    lines = re.split(rb"\r\n|\n|\r", stream.removeprefix(codecs.BOM_UTF8))
    for line in [*lines, b""]:
        if not line:
            if data:
                events.append(ServerSentEvent(name, b"\n".join(data)))
            name, data = b"", []
            continue
        field, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return events


def _parsed(*chunks: bytes) -> Events:
    parser = SseParser()
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    return events + parser.end()


def _plain(*data: bytes) -> Events:
    return [ServerSentEvent(b"", piece) for piece in data]


CORPUS = {
    "one": (b"data: a\n\n", _plain(b"a")),
    "two": (b"data: a\n\ndata: b\n\n", _plain(b"a", b"b")),
    "crlf": (b"data: a\r\n\r\ndata: b\r\n\r\n", _plain(b"a", b"b")),
    "cr": (b"data: a\r\rdata: b\r\r", _plain(b"a", b"b")),
    "mixed line ends": (
        b"data: a\r\n\ndata: b\n\r\ndata: c\r\n\rdata: d\n\n",
        _plain(*b"a b c d".split()),
    ),
    "lf after cr lf": (b"data: a\r\n\r\n\ndata: b\n\n", _plain(b"a", b"b")),
    "byte order mark": (b"\xef\xbb\xbfdata: a\n\n", _plain(b"a")),
    "byte order mark later": (b"data: \xef\xbb\xbfa\n\n", _plain(b"\xef\xbb\xbfa")),
    "half a byte order mark": (b"\xef\xbbdata: a\n\ndata: b\n\n", _plain(b"b")),
    "only half a byte order mark": (b"\xef\xbb", []),
    "comments": (b": hello\n\n:\n\ndata: a\n: b\ndata: c\n\n", _plain(b"a\nc")),
    "keep-alive": (b": OPENROUTER PROCESSING\n\ndata: a\n\n", _plain(b"a")),
    "many lines": (b"data: a\ndata: b\ndata:\ndata: c\n\n", _plain(b"a\nb\n\nc")),
    "no space": (b"data:a\n\n", _plain(b"a")),
    "two spaces": (b"data:  a\n\n", _plain(b" a")),
    "tab": (b"data:\ta\n\n", _plain(b"\ta")),
    "empty data": (b"data:\n\ndata: \n\ndata\n\n", _plain(b"", b"", b"")),
    "colons": (b"data: a:b: c\n\n", _plain(b"a:b: c")),
    "named": (b"event: ping\ndata: a\n\n", [ServerSentEvent(b"ping", b"a")]),
    "named without space": (b"event:ping\ndata:a\n\n", [ServerSentEvent(b"ping", b"a")]),
    "named last": (b"data: a\nevent: x\nevent: y\n\n", [ServerSentEvent(b"y", b"a")]),
    "name is not kept": (b"event: x\n\ndata: a\n\n", _plain(b"a")),
    "name without data": (b"event: x\n\n", []),
    "other fields": (b"id: 1\nretry: 5\nDATA: b\ndata : c\ndata: a\n\n", _plain(b"a")),
    "blank lines": (b"\n\n\n\r\n\r\ndata: a\n\n\n\n\ndata: b\n\n\n", _plain(b"a", b"b")),
    "no last blank line": (b"data: a\n\ndata: [DONE]", _plain(b"a", b"[DONE]")),
    "no last blank line but one": (b"data: a\n\ndata: [DONE]\n", _plain(b"a", b"[DONE]")),
    "cr at the end": (b"data: a\r\n\r\ndata: b\r", _plain(b"a", b"b")),
    "utf-8": ("data: ünï😀\n\n".encode(), _plain("ünï😀".encode())),
    "not utf-8": (b"data: \xff\x00\xfe\n\n", _plain(b"\xff\x00\xfe")),
    "next line is no line end": (
        b"data: a\xc2\x85b\x0bc\x0cd\xe2\x80\xa8\n\n",
        _plain(b"a\xc2\x85b\x0bc\x0cd\xe2\x80\xa8"),
    ),
    "nothing": (b"", []),
    "a page": (b"<html>\n<body>Bad gateway</body>\n</html>", []),
}


@pytest.mark.parametrize(("stream", "events"), CORPUS.values(), ids=CORPUS.keys())
def test_a_stream_yields_its_events(stream: bytes, events: Events) -> None:
    assert _parsed(stream) == events
    assert _reference(stream) == events


@pytest.mark.parametrize("stream", [stream for stream, _ in CORPUS.values()], ids=CORPUS.keys())
def test_a_stream_cut_anywhere_yields_the_same(stream: bytes) -> None:
    whole = _parsed(stream)
    for first in range(len(stream) + 1):
        assert _parsed(stream[:first], stream[first:]) == whole
        for second in range(first, len(stream) + 1):
            assert _parsed(stream[:first], stream[first:second], stream[second:]) == whole
    assert _parsed(*(stream[i : i + 1] for i in range(len(stream)))) == whole


def test_an_event_is_there_with_the_byte_that_completes_it() -> None:
    parser = SseParser()
    assert parser.feed(b"data: a\n") == []
    assert parser.feed(b"\n") == _plain(b"a")
    assert parser.feed(b"data: b\r\n\r") == _plain(b"b")
    assert parser.feed(b"\ndata: c\n\n") == _plain(b"c")
    assert parser.end() == []


PIECES = (
    *(b"data", b"event", b"id", b":", b" ", b"x", b"data: ", b"event: ", b"data: x\n\n"),
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"\xef\xbb\xbf", b"\xef", b"\xbb", b"\xc3\xbc"),
)
STREAMS = st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)


@given(STREAMS, st.lists(st.integers(0, 400), max_size=8))
@settings(max_examples=1000, deadline=None)
def test_any_stream_cut_anyhow_is_read_as_the_standard_says(stream: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    chunks = [stream[a:b] for a, b in itertools.pairwise(places)]
    assert _parsed(*chunks) == _reference(stream)


@pytest.mark.parametrize("ending", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize("size", [1 << 20, 70_000, 4096])
def test_the_longest_event_is_accepted_however_it_comes(ending: bytes, size: int) -> None:
    data = b"x" * (sse.EVENT_BYTES_MAX - len(b"data: "))
    stream = b"data: " + data + ending
    chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert _parsed(*chunks) == _plain(data)


@pytest.mark.parametrize("size", [1 << 21, 1 << 20, 70_000, 4096])
@pytest.mark.parametrize("stream", [b"data: %s\n\n", b"data: %s", b"event: e\ndata: %s\n\n", b"%s"])
def test_a_longer_event_is_refused_however_it_comes(stream: bytes, size: int) -> None:
    whole = stream % (b"x" * (sse.EVENT_BYTES_MAX + 1))
    with pytest.raises(GatewayError) as caught:
        _parsed(*(whole[i : i + size] for i in range(0, len(whole), size)))
    assert caught.value.reason == error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL


def test_an_endless_line_is_refused_before_it_fills_the_memory() -> None:
    parser = SseParser()
    for _ in range(sse.EVENT_BYTES_MAX // 1024):
        assert parser.feed(b"x" * 1024) == []
    with pytest.raises(GatewayError):
        parser.feed(b"x")


@pytest.mark.parametrize("line", [b"data: ", b"event: e\r\ndata: "])
def test_a_chunk_of_a_long_event_is_added_without_copying_what_came_before(line: bytes) -> None:
    # Joining all before with every chunk makes the cost of an event the square of its length.
    parser = SseParser()
    parser.feed(line)
    parser.feed(b"x" * 900_000)
    tracemalloc.start()
    try:
        for _ in range(100):
            parser.feed(b"x" * 64)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100_000
    assert len(parser.feed(b"\n\n")[0].data) == 906_400


@needs_recordings
def test_recorded_streams_are_read_the_same_in_one_piece_and_in_bytes() -> None:
    streams = 0
    for exchange in exchanges():
        if "stream" not in exchange["features"] or exchange["response_body_encoding"] != "text":
            continue
        body = exchange["response_body"].encode()
        if not body.startswith((b"data:", b"event:", b":")):
            continue
        streams += 1
        whole = _reference(body)
        assert _parsed(body) == whole
        assert _parsed(*(body[i : i + 7] for i in range(0, len(body), 7))) == whole
        assert whole
    assert streams > 100


@pytest.mark.parametrize(
    ("before", "chunk", "is_line"),
    [
        ("data: a\n\n", "data: b\n\n", True),
        ("", "data: b\n\n", False),
        ("data: a\n\n", "data: b\n", False),
        ("data: a\n\n", "data: b\n\ndata: c\n\n", False),
        ("data: a\n\n", "data: b\ndata: c\n\n", False),
        ("data: a\n\n", "data: b\rdata: c\n\n", False),
        ("data: a\n\n", "event: b\n\n", False),
        ("data: a\n\ndata", "data: b\n\n", False),
        ("data: a\n\r\n\r", "data: b\n\n", False),
    ],
)
def test_a_chunk_is_one_line_only_where_nothing_else_is_open(
    before: str, chunk: str, is_line: bool
) -> None:
    parser = SseParser()
    parser.feed(before.encode())
    assert parser.is_line(chunk.encode()) is is_line
    if is_line:
        assert parser.feed(chunk.encode()) == [ServerSentEvent(b"", chunk[6:-2].encode())]
