"""The message around native bytes that come alone, as protobuf itself writes it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onegate.router.v1 import chat_pb2, chat_service_pb2
from runtime.lone_native import READY_BYTES, packed, unpacked


def message(*pieces: bytes) -> bytes:
    events = [chat_pb2.ChatEvent(native=piece) for piece in pieces]
    return chat_service_pb2.ChatResponse(events=events).SerializeToString()


@pytest.mark.parametrize("size", [*range(1, 300), READY_BYTES - 1, READY_BYTES, 16_384, 100_000])
def test_native_bytes_are_packed_as_protobuf_does_it(size: int) -> None:
    native = b"x" * size
    assert packed(native) == message(native)
    assert unpacked(packed(native)) == (native if size < READY_BYTES else b"")


@pytest.mark.parametrize(
    "other",
    [
        b"",
        message(),
        message(b""),
        message(b"one", b"two"),
        message(*[b"x"] * 50),
        chat_service_pb2.ChatResponse(
            events=[chat_pb2.ChatEvent(served=chat_pb2.Served(model="a/b", attempts=1))]
        ).SerializeToString(),
        chat_service_pb2.ChatResponse(
            events=[
                chat_pb2.ChatEvent(native=b"last"),
                chat_pb2.ChatEvent(metered=chat_pb2.Metered(cost_nano_usd=5)),
            ]
        ).SerializeToString(),
    ],
)
def test_what_holds_more_is_left_to_protobuf(other: bytes) -> None:
    assert unpacked(other) == b""


@given(st.binary(max_size=400))
def test_bytes_are_taken_for_native_only_where_protobuf_finds_the_same(raw: bytes) -> None:
    found = unpacked(raw)
    if found:
        (event,) = chat_service_pb2.ChatResponse.FromString(raw).events
        assert event.native == found
