"""The words and numbers of the relay's protocol, which ``docs/relay.md`` tells in full."""

from typing import Final

from onegate.common.v1 import relay_service_pb2
from runtime.varint import varint

RELAY_SERVICE: Final = "onegate.common.v1.RelayService"
RELAY_METHOD: Final = f"/{RELAY_SERVICE}/Relay"

Frame = relay_service_pb2.RelayFrame
Batch = relay_service_pb2.RelayRequest | relay_service_pb2.RelayResponse

OPEN: Final = relay_service_pb2.RELAY_FRAME_KIND_OPEN
DATA: Final = relay_service_pb2.RELAY_FRAME_KIND_DATA
CREDIT: Final = relay_service_pb2.RELAY_FRAME_KIND_CREDIT
END: Final = relay_service_pb2.RELAY_FRAME_KIND_END
CANCEL: Final = relay_service_pb2.RELAY_FRAME_KIND_CANCEL
DRAIN: Final = relay_service_pb2.RELAY_FRAME_KIND_DRAIN
PART: Final = relay_service_pb2.RELAY_FRAME_KIND_PART

CALL_TAG: Final = b"\x08"
KIND_OPEN_TAG: Final = b"\x10\x01\x1a"
"""``kind: OPEN``, and what says that the payload follows."""
OPEN_TAG: Final = b"\x2a"
FRAME_TAG: Final = b"\x0a"
"""Field numbers with their wire types, as ``relay_service.proto`` has them
(https://protobuf.dev/programming-guides/encoding/).
"""


def open_field(head: relay_service_pb2.RelayOpen) -> bytes:
    """The ``open`` of a frame as it goes out; many calls have the same."""
    raw = head.SerializeToString()
    return OPEN_TAG + varint(len(raw)) + raw


def open_frame(number: int, payload: bytes, opening: bytes) -> bytes:
    """An OPEN frame as it stands in a batch. Every call has one, and this makes it in half the
    time that a message takes.

    Args:
        number: the call's.
        payload: its first payload, not empty.
        opening: what :func:`open_field` made.
    """
    size = len(payload)
    raw = b"%b%b%b%b%b%b" % (
        CALL_TAG,
        varint(number),
        KIND_OPEN_TAG,
        varint(size),
        payload,
        opening,
    )
    return b"%b%b%b" % (FRAME_TAG, varint(len(raw)), raw)


WINDOW_BYTES: Final = 64 * 1024
"""How much the calling side may send on a call before it needs credit. A payload may start while
any credit is left, so at most this and one payload wait unread.
"""
ANSWER_WINDOW_BYTES: Final = 32 * 1024
"""How much the serving side may send on a call before it needs credit: what waits at the caller
for somebody who has stopped reading. A 64-chunk stream is shorter than that.
"""
CREDIT_STEP_BYTES: Final = 16 * 1024
"""How much a reader takes before it returns credit: half the smaller window, so that a sender which
the reader keeps up with never stops, and a short call needs no CREDIT frame at all.
"""
PAYLOAD_OVERHEAD_BYTES: Final = 32
"""What a payload costs beside its own bytes, so that empty ones are not free to pile up."""

PART_BYTES: Final = 128 * 1024
"""A larger payload goes in parts of this size, between which other calls' frames go."""
LARGE_AT_ONCE: Final = 4
"""So many large payloads go at a time, a part of each in every batch; others wait their turn."""

BATCH_BYTES_MAX: Final = 1 << 20
"""The most bytes of frames in a batch, beside parts of large payloads."""
BATCH_FRAMES_MAX: Final = 512
"""The most frames in a batch: what the peer handles without a pause."""
QUEUE_BYTES_MAX: Final = 8 << 20
"""Senders wait while so much is queued: the peer, or the network, takes nothing."""
MESSAGE_OVERHEAD_BYTES: Final = 1024
"""What a gRPC message of one payload needs beside the payload and its metadata."""
