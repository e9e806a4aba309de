"""A provider on a real socket that speaks the OpenAI wire, fails as told, and keeps its own tally.

Tests compare what the gateway says with what this saw: every request with its bytes, what was sent
of each answer, and whether the other side hung up in the middle. It shares no code with the
gateway.

    async with FakeProvider() as provider:
        provider.script(Reply(status=500), Reply(text="well again"))
        ...
        assert [taken.outcome for taken in provider.taken] == [Outcome.COMPLETED] * 2
"""

import asyncio
import contextlib
import enum
import json
import os
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Json = dict[str, Any]


class Fault(enum.Enum):
    """What goes wrong once ``fault_after`` pieces have been sent (0: before the head)."""

    NONE = enum.auto()
    HANG = enum.auto()
    """Nothing more comes."""
    CLOSE = enum.auto()
    """The connection is closed in mid-answer."""
    RESET = enum.auto()
    """The connection is reset."""
    END = enum.auto()
    """The HTTP body ends well, the answer does not: no finish, no usage, no ``[DONE]``."""
    ERROR_EVENT = enum.auto()
    """An error event comes, and the body ends."""


class Outcome(enum.Enum):
    """How an exchange ended, as this side saw it."""

    RUNNING = enum.auto()
    COMPLETED = enum.auto()
    FAULTED = enum.auto()
    ABANDONED = enum.auto()
    """The other side hung up first."""


AUTO: Json = {}
"""``usage`` that is counted: seven input tokens, an output token a piece."""
INPUT_TOKENS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the provider does with one request. Delays are in seconds."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    """The whole body as it is; ``None`` makes an answer in the OpenAI wire."""
    text: str = "Hello from the fake provider."
    finish_reason: str = "stop"
    usage: Json | None = field(default_factory=lambda: AUTO)
    first_byte_delay_s: float = 0.0
    chunk_delay_s: float = 0.0
    fault: Fault = Fault.NONE
    fault_after: int = 0
    error_event: Json = field(
        default_factory=lambda: {"error": {"message": "overloaded", "type": "server_error"}}
    )
    message: Json = field(default_factory=dict)
    """Fields of the message beside role and content, as in ``{"tool_calls": […]}``."""


@dataclass(slots=True, kw_only=True)
class Taken:
    """One request and what became of it. Times are the loop's."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    taken_at: float
    ended_at: float = 0.0
    outcome: Outcome = Outcome.RUNNING
    pieces_sent: int = 0
    bytes_sent: int = 0
    upstream_id: str = "chatcmpl-fake"
    """The id of its answer, its own."""

    @property
    def json(self) -> Json:
        """The body, decoded."""
        decoded: Json = json.loads(self.body)
        return decoded


class Tally:
    """What a provider produced, token by token, on disk before anybody hears of it.

    A line for each request that was taken and for each token of its answer: the answer's id, and
    who asked, as the request's ``user`` says.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._path = path

    def write(self, taken: Taken, tokens: int) -> None:
        """So many more tokens; 0 for a request that was taken."""
        line = [taken.upstream_id, str(taken.json.get("user", "")), tokens]
        os.write(self._file, json.dumps(line).encode() + b"\n")
        os.fsync(self._file)

    def read(self) -> list[tuple[str, str, int]]:
        """Each answer's id, who asked, and how many tokens it had, in the order of asking."""
        found: dict[str, tuple[str, str, int]] = {}
        for line in self._path.read_text().splitlines():
            name, user, tokens = json.loads(line)
            found[name] = (name, user, found.get(name, (name, user, 0))[2] + tokens)
        return list(found.values())

    def close(self) -> None:
        """Nothing more is written."""
        os.close(self._file)


class FakeProvider:
    """The server. ``choose`` decides by request; else the script is followed; else ``default``
    holds.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        models: tuple[str, ...] = (),
        tally: Tally | None = None,
    ) -> None:
        self.tally = tally
        self.taken: list[Taken] = []
        self.models = models
        self.list_status = 200
        self.default = Reply()
        self.choose: Callable[[Taken], Reply] | None = None
        self.connections = 0
        self._scripted: deque[Reply] = deque()
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._open: set[_Exchange] = set()
        self._changed = asyncio.Event()
        self.port = 0

    def script(self, *replies: Reply) -> None:
        """The next requests get these, in order."""
        self._scripted.extend(replies)

    @property
    def base_url(self) -> str:
        """Where it is."""
        origin = "https://localhost" if self._tls else "http://127.0.0.1"
        return f"{origin}:{self.port}/v1"

    @property
    def chats(self) -> list[Taken]:
        """The requests but for those that list models."""
        return [taken for taken in self.taken if taken.method == "POST"]

    async def until(self, condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
        """Waits until ``condition`` holds; it is asked whenever something changed here."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def start(self) -> None:
        """Listens on a free port of the loopback interface."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Exchange(self), "127.0.0.1", 0, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Hangs up on everybody."""
        assert self._server is not None
        self._server.close()
        for exchange in list(self._open):
            exchange.transport.abort()
        await self.until(lambda: not self._open)
        await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    def _reply_to(self, taken: Taken) -> Reply:
        if taken.method == "GET":
            listed = [{"id": model, "object": "model", "created": 1} for model in self.models]
            body = json.dumps({"object": "list", "data": listed}).encode()
            return Reply(status=self.list_status, body=body)
        if self.choose is not None:
            return self.choose(taken)
        return self._scripted.popleft() if self._scripted else self.default


@contextlib.contextmanager
def running_in_thread(provider: FakeProvider) -> Iterator[FakeProvider]:
    """The provider on a loop of its own, for tests that block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(provider.start(), loop).result(5)
    try:
        yield provider
    finally:
        asyncio.run_coroutine_threadsafe(provider.close(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


class _Exchange(asyncio.Protocol):
    """One connection; its requests are served one after the other."""

    transport: asyncio.Transport

    def __init__(self, provider: FakeProvider) -> None:
        self.provider = provider
        self.task: asyncio.Task[None] | None = None
        self._buffer = b""
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.provider.connections += 1
        self.provider._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        if self.task is not None:
            self.task.cancel()
        else:
            self._gone()

    def _gone(self) -> None:
        self.provider._open.discard(self)
        self.provider._changed.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self.task is None:
            self._next()

    def _next(self) -> None:
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in lines)
        headers = {name.lower(): value for name, value in pairs}
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        method, path, _ = first.split(" ")
        loop = asyncio.get_running_loop()
        taken = Taken(
            method=method, path=path, headers=headers, body=rest[:length], taken_at=loop.time()
        )
        self.provider.taken.append(taken)
        taken.upstream_id = f"chatcmpl-fake-{len(self.provider.taken)}"
        self._produced(taken, 0)
        self.task = loop.create_task(self._serve(taken))

    def _produced(self, taken: Taken, tokens: int) -> None:
        if self.provider.tally is not None and taken.method == "POST":
            self.provider.tally.write(taken, tokens)

    async def _serve(self, taken: Taken) -> None:
        try:
            await self._answer(taken, self.provider._reply_to(taken))
        except asyncio.CancelledError:
            if taken.outcome is Outcome.RUNNING:
                taken.outcome = Outcome.ABANDONED
        finally:
            taken.ended_at = asyncio.get_running_loop().time()
            self.task = None
            self.provider._changed.set()
        if self.transport.is_closing():
            self._gone()
        else:
            self._next()

    async def _answer(self, taken: Taken, reply: Reply) -> None:
        self.provider._changed.set()
        await asyncio.sleep(reply.first_byte_delay_s)
        if reply.fault_after == 0 and await self._break(taken, reply.fault):
            return
        if reply.body is None and reply.status == 200 and taken.json.get("stream"):
            await self._stream(taken, reply)
            return
        body = reply.body if reply.body is not None else _answer_body(taken, reply)
        given = {name.lower() for name, _ in reply.headers}
        head = _head(reply, [] if "content-length" in given else [("content-length", len(body))])
        if reply.fault is not Fault.NONE:
            await self._write(taken, head + body[: reply.fault_after])
            await self._break(taken, reply.fault)
            return
        if reply.status == 200:
            self._produced(taken, len(pieces_of(reply.text)))
        await self._write(taken, head + body)
        taken.outcome = Outcome.COMPLETED

    async def _stream(self, taken: Taken, reply: Reply) -> None:
        await self._write(taken, _head(reply, [("transfer-encoding", "chunked")]))
        said = len(pieces_of(reply.text))
        for index, piece in enumerate(_pieces(taken, reply)):
            if reply.fault is not Fault.NONE and index == reply.fault_after:
                if reply.fault is Fault.ERROR_EVENT:
                    await self._write(taken, _chunk(_event(reply.error_event)) + b"0\r\n\r\n")
                    taken.outcome = Outcome.FAULTED
                elif reply.fault is Fault.END:
                    await self._write(taken, b"0\r\n\r\n")
                    taken.outcome = Outcome.FAULTED
                else:
                    await self._break(taken, reply.fault)
                return
            if 0 < index <= said:
                self._produced(taken, 1)
            await self._write(taken, _chunk(piece))
            taken.pieces_sent += 1
            self.provider._changed.set()
            if reply.chunk_delay_s:
                await asyncio.sleep(reply.chunk_delay_s)
        await self._write(taken, b"0\r\n\r\n")
        taken.outcome = Outcome.COMPLETED

    async def _break(self, taken: Taken, fault: Fault) -> bool:
        """Breaks off in the way that was asked for; false when the answer goes on."""
        if fault is Fault.HANG:
            await asyncio.Event().wait()
        if fault not in (Fault.CLOSE, Fault.RESET):
            return False
        taken.outcome = Outcome.FAULTED
        if fault is Fault.RESET:
            handle = self.transport.get_extra_info("socket")
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            self.transport.close()
        return True

    async def _write(self, taken: Taken, data: bytes) -> None:
        await self._writable.wait()
        if self.transport.is_closing():
            raise asyncio.CancelledError
        self.transport.write(data)
        taken.bytes_sent += len(data)


def pieces_of(text: str) -> list[str]:
    """The text in pieces: a word each, with the space that follows it."""
    words = text.split(" ")
    return [word + " " for word in words[:-1]] + words[-1:]


def _head(reply: Reply, extra: list[tuple[str, Any]]) -> bytes:
    given = {name.lower() for name, _ in reply.headers}
    kind = "text/event-stream" if ("transfer-encoding", "chunked") in extra else "application/json"
    kinds = [] if "content-type" in given else [("content-type", kind)]
    lines = [f"{name}: {value}\r\n" for name, value in [*kinds, *reply.headers, *extra]]
    return f"HTTP/1.1 {reply.status} Some Reason\r\n{''.join(lines)}\r\n".encode("latin-1")


def _usage(reply: Reply) -> Json | None:
    if reply.usage is not AUTO:
        return reply.usage
    output = len(pieces_of(reply.text))
    return {
        "prompt_tokens": INPUT_TOKENS,
        "completion_tokens": output,
        "total_tokens": INPUT_TOKENS + output,
    }


def _answer_body(taken: Taken, reply: Reply) -> bytes:
    if reply.status != 200:
        failure = {"message": "the fake provider fails as told", "type": "fake", "code": None}
        return json.dumps({"error": failure}).encode()
    message = {"role": "assistant", "content": reply.text, "refusal": None, **reply.message}
    choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
    answer: Json = {
        "id": taken.upstream_id,
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": taken.json["model"],
        "choices": [{**choice, "logprobs": None}],
    }
    usage = _usage(reply)
    if usage is not None:
        answer["usage"] = usage
    return json.dumps(answer).encode()


def _pieces(taken: Taken, reply: Reply) -> Iterator[bytes]:
    """The events of a stream: a role, the text piece by piece, the finish, usage, ``[DONE]``."""
    asked = taken.json
    base = {
        "id": taken.upstream_id,
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": asked["model"],
    }
    deltas: list[tuple[Json, str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": piece}, None) for piece in pieces_of(reply.text)]
    deltas.append(({}, reply.finish_reason))
    for delta, finish in deltas:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        yield _event({**base, "choices": [choice]})
    usage = _usage(reply)
    if usage is not None and (asked.get("stream_options") or {}).get("include_usage"):
        yield _event({**base, "choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def _event(value: Json) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)
