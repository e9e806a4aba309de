"""The provider that answers when none is configured, so that the first call works.

It says what it is and how to get a real one, and repeats the question: nothing here thinks. It
speaks the OpenAI wire on a loopback port of the router's own process, so that a demo call takes the
same way as any other. URL of the wire: https://platform.openai.com/docs/api-reference/chat.
"""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from runtime.clock import Clock, Entropy

NAME: Final = "demo"
MODEL: Final = "echo"
BODY_BYTES_MAX: Final = 64 * 1024 * 1024
"""The largest request; the edge's own limit is far below."""
IDLE_TIMEOUT_S: Final = 60.0
"""How long a connection may wait for a request, and a request for its end."""
REPEATED_CHARS_MAX: Final = 4000
"""How much of the question is repeated."""
CHOICES_MAX: Final = 128

GREETING: Final = (
    "This is onegate's built-in demo provider. No model runs here: it only repeats what you say, "
    "free of charge. To talk to a real one, set OPENAI_API_KEY, ANTHROPIC_API_KEY or "
    "GEMINI_API_KEY (or add a [[provider]] to onegate.toml), restart onegate, and name a model of "
    "that provider. You said: "
)

_HEAD_BYTES_MAX: Final = 64 * 1024
_BYTES_PER_TOKEN: Final = 4
_LOG = logging.getLogger(__name__)

Json = dict[str, Any]


class DemoServer:
    """The server. Nothing leaves the machine, and nothing but the loopback interface reaches it."""

    def __init__(self, clock: Clock, entropy: Entropy) -> None:
        self._clock = clock
        self._entropy = entropy
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        """Listens on a free port; returns the base URL."""
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, limit=_HEAD_BYTES_MAX
        )
        port = self._server.sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}/v1"

    async def close(self) -> None:
        """Stops listening. Connections end with their peers."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                async with asyncio.timeout(IDLE_TIMEOUT_S):
                    request = await _read(reader)
                if request is None:
                    break
                for piece in self._answer(*request):
                    writer.write(piece)
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the peer left or is no HTTP client: there is nobody to tell
        finally:
            writer.close()

    def _answer(self, method: str, path: str, body: bytes) -> Iterator[bytes]:
        if (method, path) == ("GET", "/v1/models"):
            listed = {"id": MODEL, "object": "model", "created": 0, "owned_by": "onegate"}
            yield _whole(200, {"object": "list", "data": [listed]})
            return
        if (method, path) != ("POST", "/v1/chat/completions"):
            yield _whole(404, _error("The demo provider serves chat completions only."))
            return
        try:
            asked = msgspec.json.decode(body, type=Json)
        except (msgspec.DecodeError, UnicodeDecodeError):
            yield _whole(400, _error("The body is not a JSON object."))
            return
        answer = _Answer(asked, self._entropy.bytes(12).hex(), int(self._clock.now().timestamp()))
        if asked.get("stream") is True:
            yield from answer.stream()
        else:
            yield _whole(200, answer.whole())


class _Answer:
    """What is said to one request."""

    def __init__(self, asked: Json, unique: str, created_unix_s: int) -> None:
        question = _question(asked)
        words = (GREETING + question[:REPEATED_CHARS_MAX]).split(" ")
        pieces = [f"{word} " for word in words[:-1]] + words[-1:]
        most = asked.get("max_completion_tokens") or asked.get("max_tokens")
        cut = isinstance(most, int) and 0 < most < len(pieces)
        self._pieces = pieces[:most] if cut else pieces
        self._finish = "length" if cut else "stop"
        count = asked.get("n")
        self._choices = min(max(count, 1), CHOICES_MAX) if isinstance(count, int) else 1
        self._input_tokens = max(len(question.encode()) // _BYTES_PER_TOKEN, 1)
        options = asked.get("stream_options")
        self._tells_usage = isinstance(options, dict) and options.get("include_usage") is True
        self._base: Json = {
            "id": f"chatcmpl-demo{unique}",
            "created": created_unix_s,
            "model": str(asked.get("model") or MODEL),
            "service_tier": "default",
            "system_fingerprint": "fp_onegate_demo",
        }

    def whole(self) -> Json:
        """The answer in one piece."""
        message: Json = {
            "role": "assistant",
            "content": "".join(self._pieces),
            "refusal": None,
            "annotations": [],
        }
        choices = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": self._finish}
            for index in range(self._choices)
        ]
        return {
            **self._base,
            "object": "chat.completion",
            "choices": choices,
            "usage": self._usage(),
        }

    def stream(self) -> Iterator[bytes]:
        """The answer in many."""
        yield (
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        first: Json = {"role": "assistant", "content": "", "refusal": None}
        for index in range(self._choices):
            yield self._chunk(index, first, None)
        for piece in self._pieces:
            for index in range(self._choices):
                yield self._chunk(index, {"content": piece}, None)
        for index in range(self._choices):
            yield self._chunk(index, {}, self._finish)
        if self._tells_usage:
            yield _event({**self._chunk_base(), "choices": [], "usage": self._usage()})
        yield _chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"

    def _chunk(self, index: int, delta: Json, finish: str | None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event({**self._chunk_base(), "choices": [choice]})

    def _chunk_base(self) -> Json:
        return {**self._base, "object": "chat.completion.chunk"}

    def _usage(self) -> Json:
        output = len(self._pieces) * self._choices
        return {
            "prompt_tokens": self._input_tokens,
            "completion_tokens": output,
            "total_tokens": self._input_tokens + output,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


async def _read(reader: asyncio.StreamReader) -> tuple[str, str, bytes] | None:
    """The next request: method, path, body; ``None`` when there is none or it is malformed."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, _, rest = first.partition(" ")
    length = 0
    for line in lines:
        name, _, value = line.partition(":")
        if name.lower() == "content-length" and value.strip().isdigit():
            length = int(value)
    if length > BODY_BYTES_MAX:
        return None
    return method, rest.partition(" ")[0], await reader.readexactly(length)


def _question(asked: Json) -> str:
    """The text of the last message that has any."""
    messages = asked.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str) and content:
            return content
        if isinstance(content, list):
            texts = [part.get("text") for part in content if isinstance(part, dict)]
            said = " ".join(text for text in texts if isinstance(text, str))
            if said:
                return said
    return "(nothing)"


def _error(message: str) -> Json:
    return {"error": {"message": message, "type": "invalid_request_error", "code": None}}


def _whole(status: int, content: Json) -> bytes:
    body = msgspec.json.encode(content)
    head = f"HTTP/1.1 {status} .\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode("ascii") + body


def _event(content: Json) -> bytes:
    return _chunked(b"data: " + msgspec.json.encode(content) + b"\n\n")


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
