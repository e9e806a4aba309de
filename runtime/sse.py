"""Server-sent events, incrementally, from bytes
(https://html.spec.whatwg.org/multipage/server-sent-events.html).

Knows nothing of what events mean. Chunks may be split anywhere: inside a UTF-8 character, between
CR and LF.
"""

import re
from typing import Final, NamedTuple

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError

EVENT_BYTES_MAX: Final = 1 << 20
"""The longest event that is accepted, in bytes."""

_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_BLANK_LINE: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
_BOM: Final = b"\xef\xbb\xbf"


class ServerSentEvent(NamedTuple):
    """One event: its name (empty for the default) and its data, lines joined with LF."""

    event: bytes
    data: bytes


class SseParser:
    """Turns chunks of bytes into events; comments and events without data yield nothing."""

    __slots__ = ("_buffer", "_plain", "_started")

    def __init__(self) -> None:
        self._buffer = b""
        self._started = False
        self._plain = True

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that are complete with ``chunk``. Raises UPSTREAM_PROTOCOL on an endless
        event.
        """
        buffer = self._buffer + chunk if self._buffer else chunk
        if not self._started:
            if len(buffer) < len(_BOM) and _BOM.startswith(buffer):
                self._buffer = buffer
                return []
            buffer = buffer.removeprefix(_BOM)
            self._started = True
        if self._plain and b"\r" in chunk:
            self._plain = False
        *blocks, rest = buffer.split(b"\n\n") if self._plain else self._split(buffer)
        if len(rest) > EVENT_BYTES_MAX:
            raise GatewayError(
                error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL,
                f"The provider sent an event of more than {EVENT_BYTES_MAX} bytes.",
            )
        self._buffer = rest
        return [event for block in blocks if (event := _event(block)) is not None]

    def end(self) -> list[ServerSentEvent]:
        """The event that the end of the stream leaves complete but for its blank line, if any.

        The standard discards it; providers are seen to omit the last blank line after ``[DONE]``.
        """
        event = _event(self._buffer)
        self._buffer = b""
        return [] if event is None else [event]

    @staticmethod
    def _split(buffer: bytes) -> list[bytes]:
        """Blocks between blank lines of any kind; a CR at the very end waits for its LF."""
        held = b""
        if buffer.endswith(b"\r"):
            buffer, held = buffer[:-1], b"\r"
        blocks = _BLANK_LINE.split(buffer)
        blocks[-1] += held
        return blocks


def _event(block: bytes) -> ServerSentEvent | None:
    """One block of lines as an event, or ``None`` when it carries no data."""
    if block.startswith(b"data: ") and b"\n" not in block and b"\r" not in block:
        return ServerSentEvent(b"", block[6:])
    name = b""
    data: list[bytes] = []
    for line in _LINE_END.split(block):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return ServerSentEvent(name, b"\n".join(data)) if data else None
