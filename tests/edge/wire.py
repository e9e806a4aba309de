"""A client that speaks HTTP byte by byte, and an application that shows what the server does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from edge.http import Handling, HttpRefusalError, Request, Response
from edge.http_server import HttpServer
from runtime.clock import SystemClock
from runtime.config import EdgeSettings
from runtime.errors import GatewayError, reason_name

DEADLINE_S = 10.0
TEXT = [("content-type", "text/plain")]


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition, not for a time."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 (a condition on what others own)
            await asyncio.sleep(0.005)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(DEADLINE_S):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        line, *lines = raw.decode("latin-1").split("\r\n")[:-2]
        headers = dict(entry.split(": ", 1) for entry in lines)
        return int(line.split(" ")[1]), headers

    async def chunk(self) -> bytes:
        """One chunk; empty at the end."""
        async with asyncio.timeout(DEADLINE_S):
            size = int(await self.reader.readline(), 16)
            data = await self.reader.readexactly(size + 2)
        return data[:-2]

    async def answer(self, *, has_body: bool = True) -> Answer:
        status, headers = await self.head()
        body = b""
        async with asyncio.timeout(DEADLINE_S):
            if not has_body:
                pass
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            elif headers.get("transfer-encoding") == "chunked":
                while piece := await self.chunk():
                    body += piece
            else:
                body = await self.reader.read()
        return Answer(status=status, headers=headers, body=body)

    async def closed(self) -> bytes:
        """What comes before the server closes; fails when it does not."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    async def leave(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def reset(self) -> None:
        self.writer.transport.abort()


@dataclass
class Show:
    """An application with one endpoint for each thing that a handler may do."""

    release: asyncio.Event = field(default_factory=asyncio.Event)
    running: int = 0
    cancelled: int = 0
    written: int = 0
    bodies: list[int] = field(default_factory=list)
    finished_requests: list[tuple[bytes, int, int]] = field(default_factory=list)
    defects: list[BaseException] = field(default_factory=list)

    def open(self, request: Request) -> Response | Handling:
        match request.path:
            case b"/sync":
                return Response(200, TEXT, b"at once")
            case b"/defect":
                raise RuntimeError("a defect before the handler")
            case b"/denied":
                return Response(401, TEXT, b"no")
            case b"/small":
                request.body_bytes_max = 10
        return self.handle(request)

    async def handle(self, request: Request) -> Response | None:
        self.running += 1
        try:
            match request.path:
                case b"/echo" | b"/small":
                    body = await request.body()
                    self.bodies.append(len(body))
                    return Response(200, TEXT, body)
                case b"/head":
                    shown = f"{request.method} {request.query!r} {request.client}"
                    return Response(200, TEXT, shown.encode())
                case b"/wait":
                    await self.release.wait()
                    return Response(200, TEXT, b"waited")
                case b"/stream":
                    await self.stream(request)
                case b"/flood":
                    await self.flood(request)
                case b"/large":
                    return Response(200, TEXT, b"x" * 3_000_000)
                case b"/broken":
                    raise RuntimeError("a defect")
                case b"/half":
                    stream = request.stream(200, TEXT)
                    stream.write(b"begun")
                    raise RuntimeError("a defect in mid-stream")
                case b"/unfinished":
                    request.stream(200, TEXT).write(b"begun")
                case b"/silent":
                    pass
                case _:
                    raise HttpRefusalError(404, "Nothing is here.")
            return None
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def stream(self, request: Request) -> None:
        stream = request.stream(200, [("content-type", "text/event-stream")])
        stream.write(b"one")
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            if not request.draining:
                raise
            stream.finish(b"cut")
            return
        stream.write(b"")
        stream.write(b"two")
        stream.finish(b"three")

    async def flood(self, request: Request) -> None:
        stream = request.stream(200, TEXT)
        while True:
            stream.write(b"x" * 16_384)
            self.written += 16_384
            await stream.drain()

    def refuse(self, request: Request | None, error: GatewayError) -> Response:
        status = error.status if isinstance(error, HttpRefusalError) else 0
        headers = list(error.headers) if isinstance(error, HttpRefusalError) else []
        code = reason_name(error.reason)
        known = {
            "request_too_large": 413,
            "request_timeout": 408,
            "overloaded": 503,
            "draining": 503,
        }
        where = request.path.decode() if request is not None else "-"
        text = f"{where} {code} {error.message}"
        return Response(status or known[code], [*TEXT, *headers], text.encode())

    def failed(self, request: Request, defect: BaseException) -> Response:
        self.defects.append(defect)
        return Response(500, TEXT, b"broken")

    def finished(self, request: Request, status: int, sent: int) -> None:
        self.finished_requests.append((request.path, status, sent))


class Site:
    """A running server and its clients."""

    def __init__(self, show: Show, server: HttpServer, port: int) -> None:
        self.show = show
        self.server = server
        self.port = port
        self._clients: list[Client] = []

    async def connect(self, *, limit: int = 2**16) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=limit))
        self._clients.append(client)
        return client

    async def close(self) -> None:
        await self.server.stop(0)
        for client in self._clients:
            await client.leave()


@contextlib.asynccontextmanager
async def serving(*, reuse_port: bool = False, **settings: float) -> AsyncIterator[Site]:
    """A server on a free port, with short limits where a test says so."""
    show = Show()
    server = HttpServer(show, replace(EdgeSettings(port=0), **settings), SystemClock())  # type: ignore[arg-type]
    site = Site(show, server, await server.start(reuse_port=reuse_port))
    try:
        yield site
    finally:
        await site.close()
