"""The addresses that a relay's targets stand for.

A name in DNS may stand for many processes, and for others a minute later: ``dns:///router:50051``
is a stream to each of them. Any other gRPC target (``unix:…``, ``host:port``) is one address.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

DNS_SCHEME: Final = "dns:///"
FOLLOW_INTERVAL_S: Final = 5.0
"""How often names are looked up again."""

_LOG: Final = logging.getLogger(__name__)

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""Gives the gRPC addresses of a host and port. Raises ``OSError`` when it cannot say."""


async def look_up(host: str, port: int) -> list[str]:
    """The addresses of a name, by the machine's own resolver."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = []
    for family, _, _, _, (address, *_) in found:
        if family == socket.AF_INET:
            addresses.append(f"ipv4:{address!s}:{port}")
        elif family == socket.AF_INET6:
            addresses.append(f"ipv6:[{address!s}]:{port}")
    return addresses


class Targets:
    """Configured targets and what they stand for now."""

    def __init__(self, targets: Sequence[str], lookup: Lookup = look_up) -> None:
        self._lookup = lookup
        self._names: dict[str, frozenset[str]] = {}
        self._fixed: set[str] = set()
        for target in targets:
            if target.startswith(DNS_SCHEME):
                self._names[target] = frozenset()
            else:
                self._fixed.add(target)

    @property
    def change(self) -> bool:
        """Whether there are names to look up again."""
        return bool(self._names)

    @property
    def addresses(self) -> set[str]:
        """What the targets stand for, as far as it is known."""
        return self._fixed.union(*self._names.values())

    async def refresh(self) -> None:
        """Looks every name up; one that cannot be looked up keeps what it stood for."""
        for target in self._names:
            host, _, port = target.removeprefix(DNS_SCHEME).rpartition(":")
            try:
                found = await self._lookup(host.strip("[]"), int(port))
            except (OSError, ValueError) as error:
                _LOG.warning("%s cannot be looked up (%s); trying again", target, error)
                continue
            self._names[target] = frozenset(found)
