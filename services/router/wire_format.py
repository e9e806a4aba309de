"""Messages that hold nothing but serialised messages, put together without being built again.

Protobuf copies a message that is put into another by writing and reading it; behind its tag and
length it is in its place as it is
(https://protobuf.dev/programming-guides/encoding/#length-types). Pure.
"""

from collections.abc import Iterable
from typing import Final

_TAG: Final = b"\x0a"
"""Field number 1 of wire type LEN."""
_SHORT: Final = tuple(bytes((number,)) for number in range(0x80))


def repeated(messages: Iterable[bytes]) -> bytes:
    """A message whose only field, number 1, is repeated and holds these."""
    parts: list[bytes] = []
    for message in messages:
        parts += (_TAG, varint(len(message)), message)
    return b"".join(parts)


def varint(number: int) -> bytes:
    """The base-128 form of a number that is not negative, least significant group first."""
    if number < 0x80:
        return _SHORT[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
