"""An answer's native bytes that come alone, in a ``ChatResponse`` that is never built.

Nearly every chunk of a paced stream goes from the router to the edge as the only event of its
message. Its bytes are in their place there as they are, behind two tags and two lengths
(https://protobuf.dev/programming-guides/encoding/#length-types), so that neither side needs the
message. Pure.
"""

from typing import Final

from runtime.varint import varint

READY_BYTES: Final = 2048
"""Heads of pieces shorter than this are made once."""

_EVENTS_TAG: Final = b"\x0a"
"""``ChatResponse.events``: field number 1, wire type LEN."""
_NATIVE_TAG: Final = b"\x22"
"""``ChatEvent.native``: field number 4, wire type LEN."""


def _head(size: int) -> bytes:
    inner = _NATIVE_TAG + varint(size)
    return _EVENTS_TAG + varint(len(inner) + size) + inner


_HEADS: Final = tuple(_head(size) for size in range(READY_BYTES))
_HEAD_OF: Final = {size + len(head): head for size, head in enumerate(_HEADS)}
"""The head of a message by the message's own length."""


def packed(native: bytes) -> bytes:
    """A ``ChatResponse`` whose only event is ``native``."""
    size = len(native)
    return (_HEADS[size] if size < READY_BYTES else _head(size)) + native


def unpacked(message: bytes) -> bytes:
    """The native bytes of a ``ChatResponse`` that holds nothing else and is not long; empty for
    every other one.
    """
    head = _HEAD_OF.get(len(message))
    return message[len(head) :] if head is not None and message.startswith(head) else b""
