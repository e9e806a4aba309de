"""AWS event streams: whole, cut anywhere, damaged."""

import json
import struct
import zlib
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from runtime.sse import ServerSentEvent
from services.router.providers.aws_eventstream import (
    EXCEPTION,
    HEADERS_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    EventStreamParser,
)
from tests.providers.aws_frames import error, event, exception, framed, header


def parse(chunks: Iterable[bytes]) -> list[ServerSentEvent]:
    parser = EventStreamParser()
    found = [each for chunk in chunks for each in parser.feed(chunk)]
    return found + parser.end()


def refused(*chunks: bytes) -> str:
    with pytest.raises(GatewayError) as raised:
        parse(chunks)
    assert raised.value.reason == error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
    return raised.value.message


ONE = event("contentBlockDelta", {"delta": {"text": "ø"}})
TWO = event("messageStop", {"stopReason": "end_turn"})


def test_events_come_with_their_type_and_payload() -> None:
    one, two = parse([ONE + TWO])
    assert one.event == b"contentBlockDelta"
    assert json.loads(one.data) == {"delta": {"text": "ø"}}
    assert two.event == b"messageStop"


@settings(max_examples=100, deadline=None)
@given(
    payloads=st.lists(st.binary(max_size=300), max_size=5),
    cuts=st.lists(st.integers(0, 2000), max_size=30),
)
def test_a_stream_may_be_cut_anywhere(payloads: list[bytes], cuts: list[int]) -> None:
    headers = header(":event-type", "e") + header(":message-type", "event")
    stream = b"".join(framed(headers, payload) for payload in payloads)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    chunks = [stream[a:b] for a, b in pairwise(places)]
    assert [each.data for each in parse(chunks)] == payloads


def test_a_stream_cut_into_single_bytes_is_the_same() -> None:
    stream = ONE + TWO
    assert parse(stream[i : i + 1] for i in range(len(stream))) == parse([stream])


def test_the_end_inside_a_message_is_an_error() -> None:
    assert "broke off" in refused(ONE + TWO[:-1])
    assert "broke off" in refused(TWO[:5])


@pytest.mark.parametrize("place", [0, 5, 9, 14, 40, len(ONE) - 5, len(ONE) - 1])
def test_a_flipped_bit_anywhere_is_noticed(place: int) -> None:
    damaged = bytearray(ONE)
    damaged[place] ^= 4
    assert "damaged" in refused(bytes(damaged))


def test_errors_are_events_of_their_own() -> None:
    (told,) = parse([exception("throttlingException", {"message": "slow"})])
    assert told == (EXCEPTION + b"throttlingException", b'{"message": "slow"}')
    (told,) = parse([error("InternalFailure", "ø")])
    assert told.event == EXCEPTION + b"InternalFailure"
    assert json.loads(told.data) == {"message": "ø"}


def test_headers_of_every_type_are_passed_over() -> None:
    values = b"".join(
        bytes([1]) + name + bytes([kind]) + value
        for name, kind, value in (
            (b"a", 0, b""),
            (b"b", 1, b""),
            (b"c", 2, b"1"),
            (b"d", 3, b"12"),
            (b"e", 4, b"1234"),
            (b"f", 5, b"12345678"),
            (b"g", 6, struct.pack(">H", 3) + b"abc"),
            (b"h", 8, b"12345678"),
            (b"i", 9, b"0123456789abcdef"),
        )
    )
    headers = values + header(":message-type", "event") + header(":event-type", "x")
    assert parse([framed(headers, b"{}")]) == [(b"x", b"{}")]


@pytest.mark.parametrize(
    "headers",
    [
        b"\x05ab",
        b"\x01a",
        b"\x01a\x0a",
        b"\x01a\x07\x00",
        b"\x01a\x07\x00\x09abc",
        b"\x01a\x04\x00",
        b"\xff",
    ],
)
def test_a_header_that_ends_beyond_the_headers_is_refused(headers: bytes) -> None:
    assert "damaged header" in refused(framed(headers, b"{}"))


@pytest.mark.parametrize(
    ("total", "headers"),
    [
        (15, 0),
        (16, 1),
        (16 + HEADERS_BYTES_MAX + 1, HEADERS_BYTES_MAX + 1),
        (17 + PAYLOAD_BYTES_MAX, 0),
        (0xFFFFFFFF, 0),
    ],
)
def test_an_impossible_length_is_refused_before_it_is_waited_for(total: int, headers: int) -> None:
    prelude = struct.pack(">II", total, headers)
    assert "impossible length" in refused(prelude + struct.pack(">I", zlib.crc32(prelude)))


def test_a_message_of_no_known_type_is_refused() -> None:
    assert "no known type" in refused(framed(header(":message-type", "poem"), b"{}"))
    assert "no known type" in refused(framed(b"", b"{}"))
