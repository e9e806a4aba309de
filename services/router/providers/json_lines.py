"""Streams of JSON values, one a line (``application/x-ndjson``), incrementally, from bytes.

Knows nothing of what the values mean. Chunks may be cut anywhere; a line has a bound.
"""

from typing import Final

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from runtime.sse import EVENT_BYTES_MAX, ServerSentEvent

_LF: Final = b"\n"


class JsonLinesParser:
    """Turns chunks of bytes into events without a name, one for each line that is not empty."""

    __slots__ = ("_pending", "_pending_bytes")

    def __init__(self) -> None:
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that are complete with ``chunk``. Raises UPSTREAM_PROTOCOL on an endless
        line.
        """
        *lines, rest = chunk.split(_LF)
        if lines:
            lines[0] = b"".join((*self._pending, lines[0]))
            self._pending.clear()
            self._pending_bytes = 0
        if rest:
            self._pending.append(rest)
            self._pending_bytes += len(rest)
        if max(self._pending_bytes, *map(len, lines), 0) > EVENT_BYTES_MAX:
            raise GatewayError(
                error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL,
                f"The provider sent a line of more than {EVENT_BYTES_MAX} bytes.",
            )
        return _events(lines)

    def end(self) -> list[ServerSentEvent]:
        """The line that the end of the stream leaves complete but for its line end, if any."""
        line = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        return _events([line])


def _events(lines: list[bytes]) -> list[ServerSentEvent]:
    return [ServerSentEvent(b"", line) for line in lines if line.strip()]
