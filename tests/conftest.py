"""What every test shares."""

import pytest


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Tests marked ``anyio`` run on the loop that the processes use."""
    return ("asyncio", {"use_uvloop": True})
