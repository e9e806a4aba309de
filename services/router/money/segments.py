"""How a journal's file is read and written: framed records, each with its length and checksum.

A record is ``OGJ1``, one byte of kind, four of length, four of checksum (both little-endian), then
the payload. The checksum is zlib's CRC-32 over kind, length and payload. CRC-32C has the same
strength for records of this size, but Python has it in pure code only, at about a hundred times
the 0.3 µs that this one takes.

Pure: bytes in, records out.
"""

import struct
import zlib
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

MAGIC: Final = b"OGJ1"
_HEAD: Final = struct.Struct("<4sBII")
_CHECKED: Final = struct.Struct("<BI")
HEAD_BYTES: Final = _HEAD.size
"""What a record takes beyond its payload."""


class Kind(IntEnum):
    """What a record says."""

    OPEN = 1
    """A segment begins; the payload is the journal's epoch."""
    DISPATCHED = 2
    """An attempt goes upstream; the payload is its ``UsageRecord`` so far."""
    PROGRESS = 3
    """How far an attempt got; a ``UsageRecord`` with the id, tokens and cost."""
    FINAL = 4
    """An attempt has ended; its whole ``UsageRecord``."""
    ACK = 5
    """Every final up to a position is safe elsewhere; the payload is that position."""


class Frame(NamedTuple):
    """One record within a file, from ``start`` to ``end``."""

    kind: int
    payload: bytes
    start: int
    end: int


class DamageError(Exception):
    """The bytes at ``offset`` are no record."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"no valid record at byte {offset}")
        self.offset = offset


def frame(kind: Kind, payload: bytes) -> bytes:
    """The record as it is written."""
    size = len(payload)
    checksum = zlib.crc32(payload, zlib.crc32(_CHECKED.pack(kind, size)))
    return _HEAD.pack(MAGIC, kind, size, checksum) + payload


def frames(data: bytes, start: int = 0) -> Iterator[Frame]:
    """The records from ``start`` to the end of ``data``; raises ``DamageError`` at the first byte
    that does not begin one.
    """
    while start < len(data):
        found = _frame_at(data, start)
        if found is None:
            raise DamageError(start)
        yield found
        start = found.end


def next_record(data: bytes, start: int) -> int | None:
    """Where the first valid record at or after ``start`` begins; ``None`` when none follows."""
    while (start := data.find(MAGIC, start)) >= 0:
        if _frame_at(data, start) is not None:
            return start
        start += 1
    return None


def _frame_at(data: bytes, start: int) -> Frame | None:
    body = start + HEAD_BYTES
    if body > len(data):
        return None
    magic, kind, size, checksum = _HEAD.unpack_from(data, start)
    if magic != MAGIC or body + size > len(data):
        return None
    payload = data[body : body + size]
    if _checksum(kind, payload) != checksum:
        return None
    return Frame(kind, payload, start, body + size)


def _checksum(kind: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_CHECKED.pack(kind, len(payload))))
