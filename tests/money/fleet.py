"""The gateway as single processes that a test kills and starts again at once, and its books."""

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from onegate.usage.v1 import budget_pb2
from onegate.usage.v1.budget_pb2 import Balance
from onegate.usage.v1.budget_service_pb2 import ListBalancesRequest, SetBudgetRequest
from onegate.usage.v1.budget_service_pb2_grpc import BudgetServiceStub
from onegate.usage.v1.hold_pb2 import Hold
from onegate.usage.v1.hold_service_pb2 import ListHoldsRequest
from onegate.usage.v1.hold_service_pb2_grpc import HoldServiceStub
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from onegate.usage.v1.usage_service_pb2 import ListUsageRequest
from onegate.usage.v1.usage_service_pb2_grpc import UsageServiceStub
from runtime.config import RpcSettings
from runtime.failpoints import DIRECTORY
from runtime.rpc import OPERATOR_KEY, channel, unary
from tests.gateway import clean_environment, free_port, running_gateway

CONFIG = """
[[provider]]
name = "fake"
kind = "openai"
base_url = "{base_url}"
api_key_env = "FAKE_KEY"
models = ["m"]
"""
NANO_PER_TOKEN = 1_000_000
"""What an output token costs here; input costs nothing."""
START_S = 60.0


class Fleet:
    """Auth, usage, routers and edges on one data directory, each a process of its own.

    Args:
        directory: holds the configuration, the log and the keys of the gateway that was here.
        counts: how many routers and edges.
        environment: what all processes find in theirs.
    """

    def __init__(
        self, directory: Path, counts: tuple[int, int], environment: Mapping[str, str]
    ) -> None:
        routers, edges = counts
        self._directory = directory
        self.data_dir = (directory / "data").resolve()
        self.failpoints = self.data_dir / DIRECTORY
        self._environment = clean_environment(environment)
        self.api_key: str = json.loads((directory / "credentials.json").read_text())["api_key"]
        self._flags = ["--workers", str(routers), "--data-dir", str(self.data_dir)]
        self._flags += ["--config", str(directory / "onegate.toml")]
        self.routers = [f"router-{index}" for index in range(routers)]
        self.edges = {f"edge-{index}": 0 for index in range(edges)}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.starts = 0

    @property
    def names(self) -> list[str]:
        """Of all processes."""
        return ["auth", "usage", *self.routers, *self.edges]

    def url(self, edge: str = "edge-0") -> str:
        """Where an edge is."""
        return f"http://127.0.0.1:{self.edges[edge]}"

    def keep(self) -> None:
        """Starts whatever does not run."""
        for name in self.names:
            process = self.processes.get(name)
            if process is None or process.poll() is not None:
                self.processes[name] = self._start(name)
                self.starts += 1

    def kill(self, name: str) -> None:
        """SIGKILL."""
        process = self.processes[name]
        process.kill()
        process.wait()

    def until_ready(self) -> None:
        """Every edge is."""
        deadline = time.monotonic() + START_S
        while not all(self._is_ready(edge) for edge in self.edges):
            self.keep()
            assert time.monotonic() < deadline, self.log()[-3000:]
            time.sleep(0.05)

    def key(self) -> dict[str, Any]:
        """Whom its key belongs to."""
        found: dict[str, Any] = json.loads(self.cli("keys", "list", "-o", "json"))[0]
        return found

    def cli(self, *arguments: str) -> str:
        """What ``onegate`` prints for these arguments; fails when the command does."""
        return subprocess.run(
            [sys.executable, "-m", "cli.main", "--data-dir", str(self.data_dir), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    def log(self) -> str:
        """What all of them said."""
        return (self._directory / "fleet.log").read_text()

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        service, _, index = name.partition("-")
        command = [sys.executable, "-m", "cli", "serve", service, *self._flags]
        command += ["--index", index] if index and service == "router" else []
        if service == "edge":
            command += ["--port", str(self.edges[name])]
        with (self._directory / "fleet.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)

    def _is_ready(self, edge: str) -> bool:
        try:
            with urlopen(f"{self.url(edge)}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


@contextlib.contextmanager
def running_fleet(
    base_url: str, counts: tuple[int, int], environment: Mapping[str, str]
) -> Iterator[Fleet]:
    """A fleet in front of a provider, ready, with its prices set."""
    with tempfile.TemporaryDirectory(prefix="og-money-") as place:
        directory = Path(place)
        environment = {"FAKE_KEY": "fake-key", **environment}
        config = CONFIG.format(base_url=base_url)
        with running_gateway(directory, config, environment=environment) as founding:
            price = ("--input", "0", "--output", "1000", "--source", "a test")
            founding.cli("prices", "set", "openai/m", *price)
            ports = [founding.port]
        fleet = Fleet(directory, counts, {**environment, "ONEGATE_FAILPOINTS": "true"})
        while len(ports) < counts[1]:
            ports.append(free_port())
        fleet.edges = dict(zip(fleet.edges, ports, strict=True))
        fleet.failpoints.mkdir(exist_ok=True)
        try:
            fleet.keep()
            fleet.until_ready()
            yield fleet
        finally:
            for name in fleet.processes:
                fleet.kill(name)


@dataclass(frozen=True, slots=True)
class Books:
    """What usage knows, as an operator asks it."""

    data_dir: Path

    def limit(self, nano_usd: int, **fields: Any) -> None:
        """Gives somebody so much."""
        given = {
            "period": budget_pb2.BUDGET_PERIOD_TOTAL,
            "mode": budget_pb2.BUDGET_MODE_STRICT,
            **fields,
        }
        budget = budget_pb2.Budget(limit_nano_usd=nano_usd, **given)
        self._asked(BudgetServiceStub, "SetBudget", SetBudgetRequest(budget=budget))

    def balances(self) -> Sequence[Balance]:
        """How all accounts stand."""
        answer = self._asked(BudgetServiceStub, "ListBalances", ListBalancesRequest())
        return list(answer.balances)

    def holds(self) -> Sequence[Hold]:
        """What is not settled: set aside, or posted as uncertain."""
        answer = self._asked(HoldServiceStub, "ListHolds", ListHoldsRequest(page_size=1000))
        return list(answer.holds)

    def records(self, enough: int = 1_000_000) -> list[UsageRecord]:
        """The newest attempts that are kept, at most about so many."""
        found: list[UsageRecord] = []
        token = ""
        while True:
            request = ListUsageRequest(page_size=min(enough, 1000), page_token=token)
            page = self._asked(UsageServiceStub, "ListUsage", request)
            found += page.records
            token = page.next_page_token
            if not token or len(found) >= enough:
                return found

    def _asked(self, stub: Any, method: str, request: Any) -> Any:
        return asyncio.run(self._ask(stub, method, request))

    async def _ask(self, stub: Any, method: str, request: Any) -> Any:
        run = self.data_dir / "run"
        token = (run / "operator.token").read_text().strip()
        opened = channel(f"unix:{run}/usage.sock", RpcSettings())
        try:
            call = getattr(stub(opened), method)
            return await unary(call, request, timeout_s=10, metadata=[(OPERATOR_KEY, token)])
        finally:
            await opened.close()
