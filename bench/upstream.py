"""A provider that costs next to nothing: fixed answers in OpenAI's dialect, from a raw protocol.

``python -m bench.upstream PORT``. The model's name says what comes: ``bench-paced`` streams one
chunk after 20 ms and then one each 5 ms, ``bench-slow`` one each 200 ms, ``bench-endless`` as many
as are taken, for ever; every other stream comes at once.
"""

import asyncio
import json
import sys
from typing import Final, cast

import uvloop

CHUNKS: Final = 64
FIRST_CHUNK_S: Final = 0.020
CHUNK_S: Final = 0.005
SLOW_CHUNK_S: Final = 0.2
KEPT_BYTES: Final = 400
"""How much of a request's body is looked at, at either end."""
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

POURED: Final = PIECES[1] * 64


class Upstream(asyncio.Protocol):
    """Answers one request after the other on a connection."""

    def __init__(self) -> None:
        self._head = b""
        self._missing = 0
        """How much of a body is still to come; -1 for until its last chunk."""
        self._first = self._last = b""
        self._chunk_s = CHUNK_S
        self._poured = self._paused = False
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        # uvloop's transport is one by behaviour, not by class.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Stops a stream that nobody reads any more."""
        self._paused = True
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Answers when a whole request is there."""
        if self._missing:
            self._take(data)
            return
        data = self._head + data if self._head else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._head = data
            return
        self._head = b""
        self._first = self._last = b""
        head = data[:end].lower()
        place = head.find(b"content-length:")
        if place >= 0:
            self._missing = int(head[place + 15 :].split(b"\r\n", 1)[0])
        else:
            self._missing = -1 if b"transfer-encoding: chunked" in head else 0
        self._take(data[end + 4 :])

    def _take(self, piece: bytes) -> None:
        """Takes a piece of the body in: of a long one its two ends are enough."""
        if len(self._first) < KEPT_BYTES:
            self._first += piece[:KEPT_BYTES]
        self._last = (self._last + piece[-KEPT_BYTES:])[-KEPT_BYTES:]
        if self._missing < 0:
            if not self._last.endswith(b"0\r\n\r\n"):
                return
            self._missing = 0
        else:
            self._missing = max(self._missing - len(piece), 0)
        if not self._missing:
            self._answer(self._last + self._first)

    def _answer(self, ends: bytes) -> None:
        assert self._transport is not None
        if b'"stream":true' not in ends and b'"stream": true' not in ends:
            self._transport.write(PLAIN)
        elif b"bench-endless" in ends:
            self._transport.write(STREAM_HEAD)
            self._poured = True
            self._pour()
        elif b"bench-" in ends:
            self._chunk_s = SLOW_CHUNK_S if b"bench-slow" in ends else CHUNK_S
            self._transport.write(STREAM_HEAD)
            self._timer = asyncio.get_running_loop().call_later(FIRST_CHUNK_S, self._piece, 0)
        else:
            self._transport.write(WHOLE_STREAM)

    def _pour(self) -> None:
        """A stream without an end, as fast as it is taken."""
        assert self._transport is not None
        while not self._paused and not self._transport.is_closing():
            self._transport.write(POURED)

    def pause_writing(self) -> None:
        """The gateway does not take more for now."""
        self._paused = True

    def resume_writing(self) -> None:
        """It does again. Only endless streams ever wait for that."""
        self._paused = False
        if self._poured:
            self._pour()

    def _piece(self, number: int) -> None:
        assert self._transport is not None
        if number == len(PIECES):
            self._transport.write(TAIL)
            self._timer = None
            return
        self._transport.write(PIECES[number])
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._chunk_s, self._piece, number + 1)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(
        Upstream, "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
