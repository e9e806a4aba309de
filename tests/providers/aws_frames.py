"""Writes AWS event streams, by the documentation of the encoding."""

import json
import struct
import zlib
from typing import Any


def header(name: str, value: str) -> bytes:
    """A header that is text."""
    raw = value.encode()
    return bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(raw)) + raw


def framed(headers: bytes, payload: bytes) -> bytes:
    """A message."""
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    body = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return body + struct.pack(">I", zlib.crc32(body))


def event(kind: str, payload: dict[str, Any]) -> bytes:
    """An event of a type."""
    headers = (
        header(":event-type", kind)
        + header(":content-type", "application/json")
        + header(":message-type", "event")
    )
    return framed(headers, json.dumps(payload).encode())


def exception(kind: str, payload: dict[str, Any]) -> bytes:
    """An error that the service's model names."""
    headers = header(":exception-type", kind) + header(":message-type", "exception")
    return framed(headers, json.dumps(payload).encode())


def error(code: str, message: str) -> bytes:
    """An error that it does not."""
    headers = (
        header(":error-code", code)
        + header(":error-message", message)
        + header(":message-type", "error")
    )
    return framed(headers, b"")
