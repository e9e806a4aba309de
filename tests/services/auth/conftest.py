"""One event loop for all tests here: gRPC may complete what a closed channel left under way only
after its test is over, and then needs the loop that it was started on.
"""

from collections.abc import AsyncIterator

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Tests marked ``anyio`` run on the loop that the processes use."""
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="session", autouse=True)
async def one_loop(anyio_backend: object) -> AsyncIterator[None]:
    """Keeps the loop until the last test."""
    yield  # noqa: PT022 - returning would let go of the loop
