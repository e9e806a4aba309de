"""A relay's targets: what a name in DNS stands for, and what happens when that changes."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime import relay
from runtime.clock import SystemClock
from runtime.config import RpcSettings
from runtime.relay import RelayPool
from runtime.relay_targets import Targets, look_up
from tests.runtime.calls_transports import (
    SERVICE,
    Seen,
    collect,
    handlers,
    keep_the_loop,
    loop_of_the_module,
    serving,
    until,
)

pytestmark = pytest.mark.anyio

# gRPC hands late events to the loop that asked for them: one loop outlives the tests of a module.
anyio_backend = pytest.fixture(scope="module")(loop_of_the_module)
one_loop = pytest.fixture(scope="module", autouse=True)(keep_the_loop)

SETTINGS = RpcSettings()


class Directory:
    """A resolver whose answers a test sets."""

    def __init__(self) -> None:
        self.answers: dict[str, Sequence[str]] = {}

    async def look_up(self, host: str, port: int) -> Sequence[str]:
        try:
            return self.answers[f"{host}:{port}"]
        except KeyError:
            raise OSError("no such name") from None


async def test_a_name_stands_for_its_addresses_and_others_for_themselves() -> None:
    directory = Directory()
    directory.answers["routers:50051"] = ["ipv4:10.0.0.1:50051", "ipv4:10.0.0.2:50051"]
    directory.answers["::1:7"] = ["ipv6:[::1]:7"]
    fixed = {"unix:/run/router.sock", "10.0.0.9:50051"}
    targets = Targets([*fixed, "dns:///routers:50051", "dns:///[::1]:7"], directory.look_up)
    assert targets.change
    assert targets.addresses == fixed
    await targets.refresh()
    found = {"ipv4:10.0.0.1:50051", "ipv4:10.0.0.2:50051", "ipv6:[::1]:7"}
    assert targets.addresses == fixed | found


async def test_a_name_that_cannot_be_looked_up_keeps_what_it_stood_for() -> None:
    directory = Directory()
    targets = Targets(["dns:///routers:50051", "dns:///nonsense"], directory.look_up)
    await targets.refresh()
    assert targets.addresses == set()
    directory.answers["routers:50051"] = ["ipv4:10.0.0.1:50051"]
    await targets.refresh()
    directory.answers.clear()
    await targets.refresh()
    assert targets.addresses == {"ipv4:10.0.0.1:50051"}


async def test_the_machines_resolver_knows_localhost() -> None:
    assert "ipv4:127.0.0.1:50051" in await look_up("localhost", 50051)


async def test_calls_follow_a_name_to_new_processes_and_leave_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "FOLLOW_INTERVAL_S", 0.02)
    directory = Directory()
    one, two = (f"unix:{tmp_path / name}.sock" for name in ("one", "two"))
    seen_one, seen_two = Seen(), Seen()
    pool = RelayPool(["dns:///routers:1"], SETTINGS, SystemClock(), lookup=directory.look_up)
    async with serving(two, SETTINGS, handlers(seen_two)):
        async with serving(one, SETTINGS, handlers(seen_one)):
            await pool.start()
            assert not pool.ready
            directory.answers["routers:1"] = [one]
            await until(lambda: pool.ready, "the first process is found")
            directory.answers["routers:1"] = [one, two]
            await until(lambda: len(pool._ready) == 2, "the second process is found")
            directory.answers["routers:1"] = [two]
            await until(lambda: pool._targets.addresses == {two}, "the first is gone")
        await until(lambda: set(pool._links) == {two}, "nobody looks for it any more")
        call = pool.call(f"{SERVICE}Echo", b"x", metadata={}, timeout_s=5)
        assert await collect(call) == [b"x"]
        assert seen_two.started == 1
        await pool.close()
    await asyncio.sleep(0)
