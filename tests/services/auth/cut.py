"""A wire that can be cut without either end noticing."""

import asyncio
from types import TracebackType
from typing import Self

from runtime.clock import SystemClock
from runtime.config import RpcSettings
from runtime.grants import GrantClient
from runtime.rpc import channel
from tests.services.auth.ports import until


class Cut:
    """A proxy before a gRPC server on a unix socket; stalled, it passes nothing in either way."""

    def __init__(self, target: str) -> None:
        self._path = target.removeprefix("unix:")
        self._flows = asyncio.Event()
        self._flows.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._clients: list[GrantClient] = []
        self._channels: list[object] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for client in self._clients:
            await client.close()
        for line in self._channels:
            await line.close()  # type: ignore[attr-defined]
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()

    async def client(self, name: str, grace_s: float = 0.0) -> GrantClient:
        """A router or edge behind the wire, which trusts what it knows for as short as can be."""
        line = channel(f"127.0.0.1:{self._port}", RpcSettings())
        made = GrantClient(line, SystemClock(), grace_s, name)
        self._channels.append(line)
        self._clients.append(made)
        made.start()
        await until(lambda: made.ready, "the watch")
        return made

    def stall(self) -> None:
        """From here on nothing passes."""
        self._flows.clear()

    def flow(self) -> None:
        """What was held back passes, and all after it."""
        self._flows.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(self._path)
        self._writers += [writer, back]
        for source, target in ((reader, back), (there, writer)):
            task = asyncio.get_running_loop().create_task(self._pump(source, target))
            self._tasks.add(task)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._flows.wait()
                target.write(data)
                await target.drain()
        except ConnectionError:
            pass
        finally:
            target.transport.abort()
