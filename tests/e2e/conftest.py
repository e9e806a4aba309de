"""One gateway with the built-in demo provider, shared by the tests that only call it."""

from collections.abc import Iterator

import pytest

from tests.gateway import Gateway, running_gateway


@pytest.fixture(scope="session")
def demo_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway without a single credential."""
    with running_gateway(tmp_path_factory.mktemp("demo")) as gateway:
        yield gateway
