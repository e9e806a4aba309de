"""Time and randomness as ports: passed in, never reached for, so that a test can own both."""

import asyncio
import os
import time
from datetime import UTC, datetime
from typing import Protocol


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


def uuid7(unix_ms: int, entropy: Entropy) -> str:
    """A UUIDv7 (RFC 9562): ordered by time, 74 random bits."""
    random = int.from_bytes(entropy.bytes(10), "big")
    value = (unix_ms & 0xFFFF_FFFF_FFFF) << 80
    value |= 0x7 << 76 | (random >> 68 & 0xFFF) << 64
    value |= 0b10 << 62 | random & 0x3FFF_FFFF_FFFF_FFFF
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
