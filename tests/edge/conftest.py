"""What the tests of the edge share."""

from collections.abc import AsyncIterator

import pytest


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The processes' loop, one for all tests of a module: gRPC may complete what a closed
    channel left under way only after its test is over.
    """
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="module", autouse=True)
async def one_loop(anyio_backend: object) -> AsyncIterator[None]:
    """Keeps the loop until the last test."""
    yield  # noqa: PT022 - returning would let go of the loop
