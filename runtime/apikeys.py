"""API keys as text: what they look like, how one is made, recognised, digested and shown.

``sk-og-`` (calls models) or ``sk-og-admin-`` (administers), 40 random base62 characters, 6 base62
characters of CRC-32 over everything before them. The checksum makes garbage cheap: it is refused
without a look-up. It protects against typing errors, not against people; the 238 random bits do.
"""

import hashlib
import re
import zlib
from typing import Final, Protocol, TypeAlias

from onegate.auth.v1 import grant_pb2

KeyKind: TypeAlias = grant_pb2.KeyKind.ValueType
"""What a key is for: ``grant_pb2.KEY_KIND_PROJECT`` or ``KEY_KIND_ADMIN``."""

DIGEST_BYTES: Final = 32
"""The length of :func:`digest`."""

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PREFIXES: Final[dict[KeyKind, str]] = {
    grant_pb2.KEY_KIND_PROJECT: "sk-og-",
    grant_pb2.KEY_KIND_ADMIN: "sk-og-admin-",
}
_BODY_CHARS: Final = 40
_CHECKSUM_CHARS: Final = 6
_SHOWN_CHARS: Final = 4
_SHAPE: Final = re.compile(r"sk-og-(admin-)?[0-9A-Za-z]{46}", re.ASCII)


class RandomBytes(Protocol):
    """The part of the entropy port that this room needs; it imports no clock for it."""

    def bytes(self, count: int) -> bytes:
        """``count`` bytes that nobody can foresee."""
        ...


def mint(kind: KeyKind, entropy: RandomBytes) -> str:
    """A new key. Raises ``ValueError`` for a kind that has no keys."""
    prefix = _PREFIXES.get(kind)
    if prefix is None:
        raise ValueError(f"There are no keys of kind {kind}.")
    # 320 bits modulo 62**40 (below 2**239): the bias is less than 2**-80.
    body = _base62(int.from_bytes(entropy.bytes(40), "big"), _BODY_CHARS)
    return prefix + body + _checksum(prefix + body)


def kind_of(key: str) -> KeyKind | None:
    """What a key is for, or ``None`` when the text cannot be a key: prefix, alphabet, length or
    checksum are wrong. Costs the same for any text and looks nothing up.
    """
    shape = _SHAPE.fullmatch(key)
    if shape is None or _checksum(key[:-_CHECKSUM_CHARS]) != key[-_CHECKSUM_CHARS:]:
        return None
    return grant_pb2.KEY_KIND_PROJECT if shape[1] is None else grant_pb2.KEY_KIND_ADMIN


def digest(key: str) -> bytes:
    """SHA-256 of the whole key, 32 bytes: what travels and is cached instead of the key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def redact(key: str) -> str:
    """The key with all but its ends left out, to recognise it by; ``***`` for anything that is
    not one of our keys, which may be somebody else's secret.
    """
    kind = kind_of(key)
    if kind is None:
        return "***"
    shown = len(_PREFIXES[kind]) + _SHOWN_CHARS
    return f"{key[:shown]}…{key[-_SHOWN_CHARS:]}"


def _checksum(text: str) -> str:
    return _base62(zlib.crc32(text.encode("ascii")), _CHECKSUM_CHARS)


def _base62(number: int, length: int) -> str:
    """The last ``length`` base62 digits of a number."""
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
