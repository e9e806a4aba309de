"""Reads a request body as JSON, strictly: what two parsers could understand differently is refused.

Refused are: anything but an object at the top, a key that comes twice in one object (at any
depth), ``NaN`` and ``Infinity``, lone surrogates, invalid UTF-8, a byte-order mark, and nesting
beyond a depth.

The duplicate check costs one encoding. A body that is in its shortest form already comes out of the
round trip the same, which a dropped member would prevent. Of another body the colons are counted:
there is one for each member beside those inside strings, so that as many before and after mean
that nothing was dropped, unless a colon was written as an escape. Only what is in doubt then is
read a second time, by a parser that shows every key.
"""

import collections
import json
import re
from typing import Any, Final

import msgspec

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError

_SHORT_BYTES: Final = 4096
"""Up to here it is cheaper to count brackets than to walk what was read."""
_HALF_PAIR: Final = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
_decode: Final = msgspec.json.Decoder().decode
encode: Final = msgspec.json.Encoder().encode
"""Python values as JSON bytes, in the shortest form."""


def read_object(body: bytes, *, depth_max: int) -> dict[str, Any]:
    """The body's JSON object. Raises INVALID_REQUEST.

    Args:
        body: the bytes as they came.
        depth_max: how deep objects and arrays may nest; the top object counts as one.
    """
    try:
        value = _decode(body)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as exc:
        raise _refusal(f"The body is not valid JSON: {_reason(exc, body)}.") from None
    except RecursionError:
        raise _too_deep(depth_max) from None
    if type(value) is not dict:
        raise _refusal("The body must be a JSON object.")
    if len(body) > _SHORT_BYTES or body.count(b"{") + body.count(b"[") > depth_max:
        _check_depth(value, depth_max)
    again = encode(value)
    if again != body and (again.count(b":") != body.count(b":") or _has_escaped_colon(body)):
        _KEYS.decode(body.decode())
    return value


def _check_depth(value: dict[str, Any], depth_max: int) -> None:
    """Walks the containers level by level."""
    level: list[Any] = [value]
    for _ in range(depth_max):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return
    raise _too_deep(depth_max)


def _has_escaped_colon(body: bytes) -> bool:
    # A single byte is found fast; an escape is rare.
    return body.find(b"\\") >= 0 and (body.find(b"\\u003a") >= 0 or body.find(b"\\u003A") >= 0)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object from its members; refuses one that has a key twice."""
    members = dict(pairs)
    if len(members) != len(pairs):
        key, _ = collections.Counter(key for key, _ in pairs).most_common(1)[0]
        raise _refusal(f"The key {key[:100]!r} appears twice in one object; send it once.", key)
    return members


_KEYS: Final = json.JSONDecoder(object_pairs_hook=_unique)


def _reason(exc: Exception, body: bytes) -> str:
    """What a parser's exception says, in words for a caller. msgspec calls a string that ends
    after half of a surrogate pair truncated, wherever in the body it is.
    """
    if isinstance(exc, UnicodeDecodeError):
        return "a string is not valid UTF-8"
    if "surrogate" in str(exc) or (_HALF_PAIR.search(body) and "truncated" in str(exc)):
        return "a string has half of a surrogate pair"
    text = str(exc).removeprefix("JSON is malformed: ").partition(" - at ")[0]
    return text[:1].lower() + text[1:]


def _too_deep(depth_max: int) -> GatewayError:
    return _refusal(f"The body nests deeper than {depth_max} levels.")


def _refusal(message: str, param: str = "") -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, message, param=param[:100])
