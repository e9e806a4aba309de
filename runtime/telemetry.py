"""Logs that people and machines can read and that never hold a secret, whoever wrote the line.

Everything that a process logs goes through :func:`redact` after it is formatted, so that
arguments, extras and tracebacks are covered. Metrics (``runtime/metrics.py``) and the edge's
access log (``runtime/access_log.py``) are had from here too.
"""

import json
import logging
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, TextIO

from runtime.access_log import AccessLog, AccessRecord
from runtime.exposition import CONTENT_TYPE
from runtime.metrics import Metrics, MetricsServer, serve_metrics
from runtime.redaction import one_line, redact, timestamp
from runtime.settings import TelemetrySettings

__all__ = [
    "CONTENT_TYPE",
    "AccessLog",
    "AccessRecord",
    "Metrics",
    "MetricsServer",
    "configure_logging",
    "redact",
    "serve_metrics",
]

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_NOISY: Final = ("httpcore", "httpx", "httpx2", "hpack", "aiosqlite", "asyncio")
"""Libraries whose information is no news to an operator."""

_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}
_PLAIN_VALUE: Final = re.compile(r"[^\s\"=]+")


def configure_logging(
    service: str, settings: TelemetrySettings, *, stream: TextIO | None = None
) -> None:
    """Sets this process's logging up: one record a line, on standard error.

    Extra fields are logged by ``extra={"name": value}``. Uncaught exceptions and warnings are
    logged too, so that they are redacted like everything else.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    as_json = settings.log_format == "json"
    handler.setFormatter(JsonFormatter(service) if as_json else TextFormatter(service))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(_LEVELS[settings.log_level])
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))
    logging.captureWarnings(True)
    sys.excepthook = log_uncaught


def log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Logs what ends the process. Takes the place of the interpreter's own, unredacted, way."""
    if not issubclass(kind, KeyboardInterrupt):
        logging.getLogger("onegate").critical("stopped", exc_info=(kind, error, traceback))


class TextFormatter(logging.Formatter):
    """``2026-11-21T12:00:00.123Z INFO    router   message key=value``; a traceback follows on
    lines of its own, indented.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """One record, redacted."""
        fields = "".join(f" {name}={_quoted(value)}" for name, value in _extras(record))
        head = f"{_time(record)} {record.levelname:<7} {self._service:<8} "
        line = head + one_line(record.getMessage() + fields)
        trace = _trace(self, record)
        if trace:
            line += "".join(f"\n    {one_line(part)}" for part in trace.splitlines())
        return redact(line)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``service``, ``logger``, ``message``, then the
    extra fields and, for an exception, ``error``.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """One record, redacted."""
        content: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        for name, value in _extras(record):
            plain = value is None or isinstance(value, bool | int | float)
            shown = value if plain else redact(f"{name}={value}").removeprefix(f"{name}=")
            content.setdefault(name, shown)
        trace = _trace(self, record)
        if trace:
            content["error"] = redact(trace)
        return json.dumps(content, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    return timestamp(datetime.fromtimestamp(record.created, UTC))


def _extras(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    return ((name, value) for name, value in record.__dict__.items() if name not in _STANDARD)


def _quoted(value: object) -> str:
    text = str(value)
    return text if _PLAIN_VALUE.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)
