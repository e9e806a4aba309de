"""AWS event streams, ``application/vnd.amazon.eventstream``, incrementally, from bytes.

The encoding: https://smithy.io/2.0/aws/amazon-eventstream.html and
https://docs.aws.amazon.com/lexv2/latest/dg/event-stream-encoding.html. A message is a prelude (its
whole length, the length of its headers, a CRC of both), headers, a payload, and a CRC of all that;
every number is big-endian. Chunks may be cut anywhere. What an event means is the wire's business.

Refuses what is not a message to the last bit: a wrong CRC, a length beyond the encoding's own
limits, a header that does not end where it should.
"""

import json
import zlib
from struct import Struct
from typing import Final

from runtime.errors import GatewayError
from runtime.sse import ServerSentEvent
from services.router.providers.foreign import protocol_error

HEADERS_BYTES_MAX: Final = 128 * 1024
"""The longest headers, in bytes."""
PAYLOAD_BYTES_MAX: Final = 16 * 1024 * 1024
"""The longest payload, in bytes."""

EXCEPTION: Final = b"exception:"
"""How the name of an event begins that says that the call failed; the error's own name follows."""

_PROVIDER: Final = "AWS"
_PRELUDE: Final = Struct(">III")
_CRC: Final = Struct(">I")
_LENGTH: Final = Struct(">H")
_FRAME_BYTES: Final = _PRELUDE.size + _CRC.size
_BYTES: Final = 6
_STRING: Final = 7
_VALUE_BYTES: Final = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""How long the value of a header is, by its type, where the type says it: true, false, byte, short,
integer, long, timestamp, UUID."""


class EventStreamParser:
    """Turns chunks of bytes into events: the name is the event's type, the data its payload."""

    __slots__ = ("_have", "_need", "_parts")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._have = 0
        self._need = _PRELUDE.size

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that are complete with ``chunk``. Raises UPSTREAM_PROTOCOL."""
        self._parts.append(chunk)
        self._have += len(chunk)
        if self._have < self._need:
            return []
        data = b"".join(self._parts)
        events: list[ServerSentEvent] = []
        start, need = 0, _PRELUDE.size
        while len(data) - start >= _PRELUDE.size:
            total, headers = _lengths(data, start)
            if len(data) - start < total:
                need = total
                break
            events.append(_event(data[start : start + total], headers))
            start += total
        self._parts = [data[start:]]
        self._have, self._need = len(data) - start, need
        return events

    def end(self) -> list[ServerSentEvent]:
        """The stream ended. Raises UPSTREAM_PROTOCOL when it did inside a message."""
        if self._have:
            raise _broken("broke off inside a message")
        return []


def _lengths(data: bytes, start: int) -> tuple[int, int]:
    """The length of the message at ``start`` and of its headers."""
    total, headers, crc = _PRELUDE.unpack_from(data, start)
    if zlib.crc32(data[start : start + _PRELUDE.size - _CRC.size]) != crc:
        raise _broken("has a damaged prelude")
    if headers > HEADERS_BYTES_MAX or not 0 <= total - _FRAME_BYTES - headers <= PAYLOAD_BYTES_MAX:
        raise _broken("has a message of an impossible length")
    return total, headers


def _event(message: bytes, headers_bytes: int) -> ServerSentEvent:
    """A whole message as an event."""
    (crc,) = _CRC.unpack_from(message, len(message) - _CRC.size)
    if zlib.crc32(message[: -_CRC.size]) != crc:
        raise _broken("has a damaged message")
    payload_start = _PRELUDE.size + headers_bytes
    headers = _headers(message[_PRELUDE.size : payload_start])
    payload = message[payload_start : -_CRC.size]
    match headers.get(b":message-type"):
        case b"event":
            return ServerSentEvent(headers.get(b":event-type", b""), payload)
        case b"exception":
            return ServerSentEvent(EXCEPTION + headers.get(b":exception-type", b""), payload)
        case b"error":
            said = headers.get(b":error-message", b"").decode(errors="replace")
            name = EXCEPTION + headers.get(b":error-code", b"")
            return ServerSentEvent(name, json.dumps({"message": said}).encode())
        case _:
            raise _broken("has a message of no known type")


def _headers(data: bytes) -> dict[bytes, bytes]:
    """The headers that are text; the others say nothing that is needed."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        name_end = at + 1 + data[at]
        kind = data[name_end] if name_end < len(data) else -1
        value = name_end + 1
        if kind in (_BYTES, _STRING) and value + _LENGTH.size <= len(data):
            (size,) = _LENGTH.unpack_from(data, value)
            value += _LENGTH.size
        else:
            size = _VALUE_BYTES.get(kind, len(data))
        if value + size > len(data):
            raise _broken("has a damaged header")
        if kind == _STRING:
            found[data[at + 1 : name_end]] = data[value : value + size]
        at = value + size
    return found


def _broken(how: str) -> GatewayError:
    return protocol_error(_PROVIDER, f"sent an event stream that {how}")
