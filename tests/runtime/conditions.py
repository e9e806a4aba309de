"""Waiting in tests: for a condition, with a deadline, never for a time."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Returns once ``condition`` is true; raises ``TimeoutError`` when it never is."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
