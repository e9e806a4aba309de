"""Numbers as protobuf writes them, for the few messages on the hot path that are put together from
ready pieces (https://protobuf.dev/programming-guides/encoding/#varints).
"""

from typing import Final

_SMALL: Final = tuple(bytes((number,)) for number in range(128))


def varint(number: int) -> bytes:
    """A number from 0 on as protobuf writes it."""
    if number < 1 << 7:
        return _SMALL[number]
    if number < 1 << 14:
        return bytes((number & 0x7F | 0x80, number >> 7))
    pieces = bytearray()
    while number >= 1 << 7:
        pieces.append(number & 0x7F | 0x80)
        number >>= 7
    pieces.append(number)
    return bytes(pieces)
