"""One line for each request, at the cost of a list append: written in batches, off the event loop.

Lines wait in a bounded buffer and leave every 100 ms or 64 KiB, through a thread of their own, so
that a slow terminal or a full pipe never stalls a call. What does not fit is dropped and counted;
the next batch says how many.
"""

import asyncio
import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import msgspec

from runtime.clock import Clock
from runtime.redaction import one_line, redact, timestamp
from runtime.settings import TelemetrySettings

_LOG = logging.getLogger(__name__)

FLUSH_INTERVAL_S: Final = 0.1
FLUSH_BYTES: Final = 64 * 1024
BUFFER_BYTES_MAX: Final = 1024 * 1024
"""What may wait for the writer; beyond it lines are dropped."""

CLOSE_TIMEOUT_S: Final = 2.0
_CLEAN_TEXTS_MAX: Final = 2048
_TEXT_CHARS_MAX: Final = 300
_STDOUT: Final = 1


class AccessRecord(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What is said of one request. Empty texts and ``None`` are left out of the line.

    Args:
        request_id: the gateway's own id of the request.
        method: the HTTP method.
        path: the request's path without its query.
        status: the HTTP status that was sent; 499 when the caller left before one was.
        duration_ms: from the head's first byte to the answer's last.
        first_byte_ms: until the answer's first byte; ``None`` when there was none.
        model: the model that the caller asked for.
        key_id: the public id of the key (``key_…``), never the key.
        bytes_out: the length of the answer's body.
        client_request_id: the caller's own id of the request (``x-client-request-id``).
    """

    request_id: str
    method: str
    path: str
    status: int
    duration_ms: float
    first_byte_ms: float | None = None
    model: str = ""
    key_id: str = ""
    bytes_out: int = 0
    client_request_id: str = ""


class AccessLog:
    """Collects lines and writes them to a file descriptor. Made and used on the event loop."""

    def __init__(
        self, service: str, settings: TelemetrySettings, clock: Clock, descriptor: int = _STDOUT
    ) -> None:
        self.dropped = 0
        """Lines that found no room or could not be written, since the start."""
        self._service = service
        self._padded = f"{service:<8}"
        self._enabled = settings.access_log
        self._as_json = settings.log_format == "json"
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._lines: list[str] = []
        self._waiting_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._clean: dict[str, str] = {}
        self._wall_ahead_s = 0.0
        self._stamp = ""
        self._stamp_ms = -1
        self._second = ""
        self._second_s = -1
        self._dropped_told = 0
        self._written = asyncio.Event()
        self._written.set()
        self._writer = _Writer(descriptor, self._loop, self._done)

    def add(self, record: AccessRecord) -> None:
        """Takes one request's line. Never waits, never raises."""
        if not self._enabled:
            return
        if self._timer is None:
            # The wall clock may be set: it is asked once for every batch.
            self._wall_ahead_s = self._clock.now().timestamp() - self._clock.monotonic()
        line = self._json(record) if self._as_json else self._text(record)
        if self._waiting_bytes + len(line) > BUFFER_BYTES_MAX:
            self.dropped += 1
            return
        self._lines.append(line)
        self._waiting_bytes += len(line)
        if self._waiting_bytes >= FLUSH_BYTES:
            self._flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(FLUSH_INTERVAL_S, self._flush)

    async def close(self) -> None:
        """Writes what waits and takes no more; gives up after two seconds on a reader that does
        not read.
        """
        self._enabled = False
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                while self._lines or not self._written.is_set():
                    self._flush()
                    await self._written.wait()
        except TimeoutError:
            _LOG.warning("nobody reads the access log: its last lines are lost")
            self.dropped += len(self._lines)
            self._lines.clear()
        self._writer.close()

    def _flush(self) -> None:
        """Hands everything that waits to the writer, unless it is busy: then it comes back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._written.is_set() or not self._lines:
            return
        untold = self.dropped - self._dropped_told
        if untold:
            self._dropped_told = self.dropped
            self._lines.append(self._notice(untold))
        batch = "".join(self._lines).encode("utf-8", "backslashreplace")
        count = len(self._lines)
        self._lines.clear()
        self._waiting_bytes = 0
        self._written.clear()
        self._writer.write(batch, count)

    def _done(self, lost: int) -> None:
        """The writer is free again; ``lost`` lines could not be written."""
        self.dropped += lost
        self._written.set()
        if self._lines and self._timer is None:
            self._timer = self._loop.call_later(FLUSH_INTERVAL_S, self._flush)

    def _text(self, record: AccessRecord) -> str:
        rest = ""
        if record.first_byte_ms is not None:
            rest = f" first={record.first_byte_ms:.1f}ms"
        rest += f" {record.bytes_out}B id={record.request_id}"
        if record.model:
            rest += f" model={self._cleaned(record.model)}"
        if record.key_id:
            rest += f" key={self._cleaned(record.key_id)}"
        if record.client_request_id:
            rest += f" client_id={_clean(record.client_request_id[:_TEXT_CHARS_MAX])}"
        return (
            f"{self._now()} ACCESS  {self._padded} {record.method}"
            f" {self._cleaned(record.path)} {record.status} {record.duration_ms:.1f}ms{rest}\n"
        )

    def _json(self, record: AccessRecord) -> str:
        content: dict[str, object] = {
            "time": self._now(),
            "level": "access",
            "service": self._service,
            "method": record.method,
            "path": self._cleaned(record.path),
            "status": record.status,
            "duration_ms": round(record.duration_ms, 3),
            "bytes_out": record.bytes_out,
            "request_id": record.request_id,
        }
        if record.first_byte_ms is not None:
            content["first_byte_ms"] = round(record.first_byte_ms, 3)
        if record.model:
            content["model"] = self._cleaned(record.model)
        if record.key_id:
            content["key_id"] = self._cleaned(record.key_id)
        if record.client_request_id:
            content["client_request_id"] = _clean(record.client_request_id[:_TEXT_CHARS_MAX])
        return msgspec.json.encode(content).decode() + "\n"

    def _notice(self, count: int) -> str:
        if self._as_json:
            notice = {"time": self._now(), "level": "access", "service": self._service}
            return msgspec.json.encode({**notice, "dropped": count}).decode() + "\n"
        return f"{self._now()} ACCESS  {self._service:<8} dropped={count}\n"

    def _cleaned(self, text: str) -> str:
        """A caller's text, redacted and on one line. Callers repeat themselves, so it is kept."""
        if len(text) > _TEXT_CHARS_MAX:
            text = text[:_TEXT_CHARS_MAX]
        clean = self._clean.get(text)
        if clean is None:
            if len(self._clean) >= _CLEAN_TEXTS_MAX:
                self._clean.clear()
            clean = self._clean[text] = _clean(text)
        return clean

    def _now(self) -> str:
        """The time as every line shows it. Making the text costs more than the rest of a line, so
        that what lines have in common of it is kept.
        """
        now_ms = int((self._clock.monotonic() + self._wall_ahead_s) * 1000)
        if now_ms != self._stamp_ms:
            second_s, milliseconds = divmod(now_ms, 1000)
            if second_s != self._second_s:
                self._second_s = second_s
                moment = datetime.fromtimestamp(second_s, UTC)
                self._second = timestamp(moment).removesuffix("000Z")
            self._stamp_ms = now_ms
            self._stamp = f"{self._second}{milliseconds:03d}Z"
        return self._stamp


def _clean(text: str) -> str:
    """A caller's text, redacted and as one word."""
    return one_line(redact(text)).replace(" ", "\\x20")


class _Writer:
    """A thread that writes one batch at a time and may be stuck for as long as its reader is.

    It is a daemon: a process that ends does not wait for it.
    """

    def __init__(
        self, descriptor: int, loop: asyncio.AbstractEventLoop, done: Callable[[int], None]
    ) -> None:
        self._descriptor = descriptor
        self._loop = loop
        self._done = done
        self._batches: queue.SimpleQueue[tuple[bytes, int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def write(self, batch: bytes, lines: int) -> None:
        """Takes a batch; ``done`` is called on the loop when it is written or lost."""
        self._batches.put((batch, lines))

    def close(self) -> None:
        """Lets the thread end once it is free."""
        self._batches.put(None)

    def _run(self) -> None:
        while (item := self._batches.get()) is not None:
            batch, lines = item
            lost = 0 if self._written(batch) else lines
            # The loop may be closed by the time a stuck reader reads.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._done, lost)

    def _written(self, batch: bytes) -> bool:
        rest = memoryview(batch)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            _LOG.warning("the access log cannot be written: %s", error.strerror)
            return False
        return True
