"""Time and randomness as ports: passed in, never reached for, so that a test can own both."""

import asyncio
import os
import time
from datetime import UTC, datetime
from typing import Final, Protocol

_PAGE_BYTES: Final = 4096
_VARIANT: Final = {f"{digit:x}": f"{0b1000 | digit & 0b11:x}" for digit in range(16)}
"""The hex digit that holds the two bits of RFC 9562's variant and two random ones."""


class Clock(Protocol):
    """What a process may know about time."""

    def now(self) -> datetime:
        """The wall clock, in UTC. For records and expiry, never for measuring."""
        ...

    def monotonic(self) -> float:
        """Seconds that only grow. For deadlines, durations and lifetimes."""
        ...

    async def sleep(self, delay_s: float) -> None:
        """Waits."""
        ...


class Entropy(Protocol):
    """Where random bytes come from."""

    def bytes(self, count: int) -> bytes:
        """``count`` bytes that nobody can foresee."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """The wall clock, in UTC."""
        return datetime.now(UTC)

    monotonic = staticmethod(time.monotonic)
    """Seconds since some start; without a call of our own around it, since it is asked often."""

    async def sleep(self, delay_s: float) -> None:
        """Waits."""
        await asyncio.sleep(delay_s)


class SystemEntropy:
    """The machine's own randomness."""

    def bytes(self, count: int) -> bytes:
        """``count`` bytes from the operating system."""
        return os.urandom(count)


async def pause(clock: Clock, delay_s: float, event: asyncio.Event) -> None:
    """Waits until the event is set, at most ``delay_s``."""
    waiting = {asyncio.ensure_future(clock.sleep(delay_s)), asyncio.ensure_future(event.wait())}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in waiting:
            future.cancel()


class PooledEntropy:
    """The machine's own randomness, asked for by the page: a system call costs more than the few
    bytes of an id are worth. Nothing is handed out twice, not even after a fork.

    For ids; secrets come from :class:`SystemEntropy`, so that none lies in memory before its time.
    """

    __slots__ = ("_page", "_place")

    def __init__(self) -> None:
        self._page = b""
        self._place = 0
        os.register_at_fork(after_in_child=self._forget)

    def bytes(self, count: int) -> bytes:
        """``count`` bytes from the operating system."""
        place = self._place
        end = place + count
        if end > len(self._page):
            if count > _PAGE_BYTES:
                return os.urandom(count)
            self._page = os.urandom(_PAGE_BYTES)
            place, end = 0, count
        self._place = end
        return self._page[place:end]

    def _forget(self) -> None:
        self._page = b""


def uuid7(unix_ms: int, entropy: Entropy) -> str:
    """A UUIDv7 (RFC 9562): ordered by time, 74 random bits."""
    time = f"{unix_ms & 0xFFFF_FFFF_FFFF:012x}"
    random = entropy.bytes(10).hex()
    variant = _VARIANT[random[4]]
    return f"{time[:8]}-{time[8:]}-7{random[:3]}-{variant}{random[5:8]}-{random[8:]}"
