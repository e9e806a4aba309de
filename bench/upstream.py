"""A provider that costs next to nothing: fixed answers in OpenAI's dialect, from a raw protocol.

``python -m bench.upstream PORT``. The model's name says what comes: ``bench-paced`` streams one
chunk after 20 ms and then one each 5 ms; every other stream comes at once.
"""

import asyncio
import json
import sys
from typing import Final, cast

import uvloop

CHUNKS: Final = 64
FIRST_CHUNK_S: Final = 0.020
CHUNK_S: Final = 0.005
_ID: Final = "chatcmpl-bench0000000000000000000"


def _chunk(delta: dict[str, str], finish: str | None) -> bytes:
    body = {
        "id": _ID,
        "object": "chat.completion.chunk",
        "created": 1790000000,
        "model": "bench",
        "system_fingerprint": "fp_bench",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
    }
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def _framed(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


ANSWER: Final = json.dumps(
    {
        "id": _ID,
        "object": "chat.completion",
        "created": 1790000000,
        "model": "bench",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "word " * 130, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 120, "completion_tokens": 130, "total_tokens": 250},
    }
).encode()
PLAIN: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "
    + str(len(ANSWER)).encode()
    + b"\r\n\r\n"
    + ANSWER
)
STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
PIECES: Final = [
    _framed(
        _chunk({"role": "assistant", "content": "word "} if n == 0 else {"content": "word "}, None)
    )
    for n in range(CHUNKS - 1)
] + [_framed(_chunk({}, "stop"))]
_USAGE: Final = {
    "id": _ID,
    "object": "chat.completion.chunk",
    "created": 1790000000,
    "model": "bench",
    "choices": [],
    "usage": {"prompt_tokens": 120, "completion_tokens": 64, "total_tokens": 184},
}
TAIL: Final = _framed(b"data: " + json.dumps(_USAGE).encode() + b"\n\n") + (
    _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
)
WHOLE_STREAM: Final = STREAM_HEAD + b"".join(PIECES) + TAIL


class Upstream(asyncio.Protocol):
    """Answers one request after the other on a connection."""

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        # uvloop's transport is one by behaviour, not by class.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Stops a paced stream that nobody reads any more."""
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Answers when a whole request is there."""
        buffer = self._buffer + data if self._buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = buffer
            return
        head = buffer[:end].lower()
        place = head.find(b"content-length:")
        length = int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
        if place < 0 and b"transfer-encoding: chunked" in head:
            if not buffer.endswith(b"0\r\n\r\n"):
                self._buffer = buffer
                return
        elif len(buffer) < end + 4 + length:
            self._buffer = buffer
            return
        self._buffer = b""
        self._answer(buffer[end + 4 :])

    def _answer(self, body: bytes) -> None:
        assert self._transport is not None
        tail = body[-400:] + body[:400]
        if b'"stream":true' not in tail and b'"stream": true' not in tail:
            self._transport.write(PLAIN)
        elif b"bench-paced" in tail:
            self._transport.write(STREAM_HEAD)
            self._timer = asyncio.get_running_loop().call_later(FIRST_CHUNK_S, self._piece, 0)
        else:
            self._transport.write(WHOLE_STREAM)

    def _piece(self, number: int) -> None:
        assert self._transport is not None
        if number == len(PIECES):
            self._transport.write(TAIL)
            self._timer = None
            return
        self._transport.write(PIECES[number])
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(CHUNK_S, self._piece, number + 1)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(
        Upstream, "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
