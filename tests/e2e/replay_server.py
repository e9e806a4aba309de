"""A provider that answers what a recorded provider answered, over a real socket.

The model's name in the request is the recorded exchange's id: in the path for the wires of Gemini
and Bedrock, in the body for the others. Streams are cut at odd places, as networks do. What was
asked is kept.
"""

import asyncio
import base64
import contextlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from tests.providers import aws_frames

Exchange = Mapping[str, Any]
PIECE_BYTES = 997
_MODEL_IN_PATH = re.compile(
    r"/models?/(.+?)(?::generateContent|:streamGenerateContent|/converse(?:-stream)?$)"
)
_STREAMS = ("event-stream", "eventstream", "ndjson")
_KEPT_HEADERS = ("retry-after", "request-id", "x-request-id")


class ReplayServer:
    """Answers recorded exchanges by id; ``asked`` keeps the last request's body for each."""

    def __init__(self, exchanges: Mapping[str, Exchange]) -> None:
        self.exchanges = exchanges
        self.asked: dict[str, Any] = {}
        self.port = 0

    async def start(self) -> asyncio.Server:
        """Listens on a port of its own."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 26)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = re.search(r"(?i)^content-length: *(\d+)", head, re.MULTILINE)
                body = await reader.readexactly(int(length[1]) if length else 0)
                self._answer(head.split(" ", 2)[1], body, writer)
                await writer.drain()
        writer.close()

    def _answer(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        asked = json.loads(body) if body else {}
        in_path = _MODEL_IN_PATH.search(path)
        identity = unquote(in_path[1]) if in_path else str(asked.get("model", ""))
        exchange = self.exchanges.get(identity)
        if exchange is None:
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}")
            return
        self.asked[identity] = asked
        headers = {k.lower(): v for k, v in exchange["response_headers"].items()}
        head = [f"HTTP/1.1 {exchange['status']} Recorded"]
        head.append(f"content-type: {headers.get('content-type', 'application/json')}")
        head += [f"{name}: {headers[name]}" for name in _KEPT_HEADERS if name in headers]
        content = content_of(exchange)
        if any(kind in headers.get("content-type", "") for kind in _STREAMS):
            head.append("transfer-encoding: chunked")
            writer.write("\r\n".join(head).encode() + b"\r\n\r\n")
            for start in range(0, len(content), PIECE_BYTES):
                piece = content[start : start + PIECE_BYTES]
                writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            writer.write(b"0\r\n\r\n")
            return
        head.append(f"content-length: {len(content)}")
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + content)


def content_of(exchange: Exchange) -> bytes:
    """The recorded body as bytes."""
    body = exchange["response_body"] or ""
    if exchange["response_body_encoding"] == "base64":
        return base64.b64decode(body)
    if exchange["api"] == "bedrock.converseStream" and exchange["status"] == 200:
        # Fixtures that are lines of JSON, where the provider sends frames.
        lines = [json.loads(line) for line in body.splitlines() if line]
        return b"".join(aws_frames.event(k, told) for line in lines for k, told in line.items())
    return body.encode() if isinstance(body, str) else json.dumps(body).encode()


@contextlib.contextmanager
def replaying(exchanges: Mapping[str, Exchange]) -> Iterator[ReplayServer]:
    """The server on a loop of its own."""
    replay = ReplayServer(exchanges)
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(replay.start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield replay
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
        loop.close()
