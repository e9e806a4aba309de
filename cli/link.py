"""The thread between ``onegate up`` and a process it supervises: one socket pair.

The child says that it serves; each side learns of the other's death by the end of the stream, so
that a killed supervisor never leaves orphans behind.
"""

import asyncio
import socket
from collections.abc import Callable

READY = b"ready\n"


class ChildLink:
    """The child's end."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._watcher: asyncio.Task[None] | None = None

    def ready(self) -> None:
        """Tells the supervisor that the process serves."""
        self._socket.send(READY)

    def watch(self, on_end: Callable[[], None]) -> None:
        """Calls ``on_end`` when the supervisor is gone."""
        self._watcher = asyncio.get_running_loop().create_task(self._wait(on_end))

    async def _wait(self, on_end: Callable[[], None]) -> None:
        while await asyncio.get_running_loop().sock_recv(self._socket, 64):
            continue
        on_end()

    def close(self) -> None:
        """Stops watching."""
        if self._watcher is not None:
            self._watcher.cancel()
        self._socket.close()
