"""Listens, sweeps the connections' deadlines, and drains.

One timer serves all connections: every tick it asks each whether its deadline is past. A deadline
is therefore noticed up to a tick late, a tenth of the shortest limit and at most half a second.
"""

import asyncio
import socket
from collections.abc import Sequence
from email.utils import format_datetime
from typing import Final

from edge.http import Application
from edge.http_connection import Connection
from runtime.clock import Clock
from runtime.config import EdgeSettings

UNSENT_BYTES_MAX: Final = 64 * 1024
"""How much of an answer waits in the kernel beyond what the client has room for."""
TICK_MAX_S: Final = 0.5
CUT_GRACE_S: Final = 2.0
"""How long a cut handler may take for its last word."""
BACKLOG: Final = 2048


class HttpServer:
    """The edge's HTTP server."""

    def __init__(self, application: Application, settings: EdgeSettings, clock: Clock) -> None:
        self.application = application
        self.settings = settings
        self.draining = False
        """While true, every answer asks its client to come back on a new connection."""
        self.now_s = clock.monotonic()
        self.monotonic = clock.monotonic
        self.date_line = ""
        """The ``date`` line of every head, at most a tick late."""
        self._clock = clock
        self._connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty: asyncio.Future[None] | None = None
        shortest_s = min(
            settings.head_timeout_s,
            settings.body_timeout_s,
            settings.keepalive_timeout_s,
            settings.stall_timeout_s,
        )
        self._tick_s = min(TICK_MAX_S, shortest_s / 10)

    async def start(self, *, reuse_port: bool = False) -> int:
        """Listens on the configured address and returns the port. With ``reuse_port`` several
        processes may listen on the same one, and the kernel shares connections out.
        """
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            self._connection,
            self.settings.host,
            self.settings.port,
            backlog=BACKLOG,
            reuse_port=reuse_port or None,
        )
        self._sweep()
        sockets: Sequence[socket.socket] = self._listener.sockets
        for listening in sockets:
            # Connections inherit it. Without, the kernel takes megabytes for a client that reads
            # slowly, and reports no progress until it has got rid of a third of them.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)
        port: int = sockets[0].getsockname()[1]
        return port

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    @property
    def full(self) -> bool:
        """Whether more clients are connected than there may be."""
        return len(self._connections) > self.settings.connections_max

    async def stop(self, timeout_s: float) -> None:
        """Stops listening, lets requests under way finish for ``timeout_s``, cuts the rest off."""
        self.draining = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._connections):
            if not connection.busy:
                connection.close()
        await self._emptied(timeout_s)
        for connection in list(self._connections):
            connection.cut_off()
        await self._emptied(CUT_GRACE_S)
        for connection in list(self._connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def gone(self, connection: Connection) -> None:
        """A connection is over."""
        self._connections.discard(connection)
        if self._empty is not None and not self._connections and not self._empty.done():
            self._empty.set_result(None)

    async def _emptied(self, timeout_s: float) -> None:
        """Waits until nobody is connected, at most so long."""
        if not self._connections:
            return
        self._empty = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty
        except TimeoutError:
            pass
        finally:
            self._empty = None

    def _connection(self) -> Connection:
        connection = Connection(self)
        self._connections.add(connection)
        return connection

    def _sweep(self) -> None:
        self.now_s = self.monotonic()
        self.date_line = f"date: {format_datetime(self._clock.now(), usegmt=True)}\r\n"
        for connection in list(self._connections):
            connection.check(self.now_s)
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(self._tick_s, self._sweep)
