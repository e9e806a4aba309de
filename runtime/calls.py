"""What a handler sees of a call, whichever transport brought it: the relay or a plain gRPC stream.

Handlers are written once against :class:`ServerCall`. Payloads are serialised messages: a
transport never looks into them.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol


class ServerCall(Protocol):
    """One call being served. Cancelled (``asyncio.CancelledError`` in the handler) when the
    caller leaves.
    """

    @property
    def method(self) -> str:
        """The full method name: ``/onegate.router.v1.ChatService/Chat``."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """The caller's metadata, keys in lower case."""
        ...

    @property
    def request(self) -> bytes:
        """The first payload."""
        ...

    @property
    def timeout_s(self) -> float | None:
        """What remained of the caller's deadline when the call came in; ``None`` without one."""
        ...

    async def send(self, payload: bytes) -> None:
        """Sends one payload; waits while the caller's credit is used up."""
        ...

    @property
    def send_now(self) -> Callable[[bytes], None] | None:
        """What sends one payload in this very moment, to be called at once; ``None`` while a
        payload has to wait, and always on a transport that waits for every one.
        """
        ...

    async def receive(self) -> bytes:
        """The caller's next payload. Raises ``GatewayError`` (INVALID_REQUEST) on a transport
        that has none.
        """
        ...


Handler = Callable[[ServerCall], Awaitable[None]]
"""Serves one call: returning ends it well, ``GatewayError`` ends it with that error, anything
else is a defect.
"""
