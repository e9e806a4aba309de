"""What a call costs, counted: bytecode instructions of our own code, by process, and memory that is
not given back.

A whole gateway serves one call after the other before a fast provider. Nothing is timed, so that a
slow machine counts the same. ``python -m tests.guard.counting`` prints the figures; ``--write``
makes them the baseline of this version of Python and prints what changed; ``--functions N`` prints
where they come from.
"""

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.connection import Shape
from tests.gateway import Gateway, free_port, running_gateway

PLACE = Path(__file__).resolve().parent
BASELINE = PLACE / "baseline.json"
ROOT = PLACE.parent.parent
MORE_MAX = 0.10
"""How much more than the baseline a figure may be."""
SLACK = 40
"""So many instructions more are nothing: what usage does for a batch falls on its calls, and
batches differ a little.
"""
MORE_MAX_UNKNOWN = 0.25
"""The same where the baseline is of another version of Python."""
BLOCKS_MAX = 6.0
"""How many memory blocks a call may leave behind: books of the latest calls are still filling."""
SERVICES = ("edge", "router", "usage")
CALLS = {"request": 150, "stream": 40}
PACED_CALLS = 5
WARM_CALLS = 150
GROUP = 25
"""Calls that wait for each other's records."""
IDLE_S = 2.0
RESTING = 100
"""Fewer instructions than this in a quarter of a second are no work."""
TELL_TIMEOUT_S = 30.0
SETTLE_TIMEOUT_S = 60.0
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
CONFIG = """
[[provider]]
name = "bench"
kind = "openai"
base_url = "http://127.0.0.1:{port}/v1"
api_key_env = "BENCH_KEY"
models = ["bench", "bench-paced"]
free = true
"""

Figures = dict[str, float]
"""``edge request`` to instructions a call."""


@dataclass(frozen=True)
class Told:
    """What a process said of itself."""

    instructions: Counter[str]
    blocks: int

    @property
    def total(self) -> int:
        return sum(self.instructions.values())


@dataclass
class Counted:
    """A run's figures, and by function."""

    figures: Figures = field(default_factory=dict)
    functions: dict[str, Counter[str]] = field(default_factory=dict)
    blocks: Figures = field(default_factory=dict)
    """Memory blocks left behind, a call."""


class Guarded:
    """A running gateway that counts. What runs while nothing is asked, timers, is left out: how
    often it does would depend on how fast the machine is.
    """

    def __init__(self, gateway: Gateway, place: Path) -> None:
        self.gateway = gateway
        self._place = place
        self.pids = {service: gateway.pids_of(service)[0] for service in SERVICES}
        self._background: dict[str, set[str]] = {service: set() for service in SERVICES}
        for pid in self.pids.values():
            os.kill(pid, signal.SIGUSR1)
        time.sleep(IDLE_S)
        self._background = {service: set(self.tell(service).instructions) for service in SERVICES}

    def tell(self, service: str) -> Told:
        """Asks a process for its counts."""
        pid = self.pids[service]
        path = self._place / f"{pid}.json"
        path.unlink(missing_ok=True)
        os.kill(pid, signal.SIGUSR2)
        deadline = time.monotonic() + TELL_TIMEOUT_S
        while not path.exists():
            assert time.monotonic() < deadline, f"{service} does not say what it counted"
            time.sleep(0.01)
        told = json.loads(path.read_text())
        background = self._background[service]
        instructions = {n: c for n, c in told["instructions"].items() if n not in background}
        return Told(Counter(instructions), told["blocks"])

    def settled(self, service: str) -> Told:
        """Its counts once it has nothing left to do."""
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        before = self.tell(service)
        while True:
            time.sleep(0.25)
            after = self.tell(service)
            if after.total - before.total < RESTING:
                return after
            assert time.monotonic() < deadline, f"{service} does not come to rest"
            before = after

    def call(self, count: int, *, stream: bool = False, model: str = "bench") -> None:
        """So many calls, one after the other, in groups. The records of a group wait for its last
        call: how many of them travel together must not depend on how fast the machine is. Nor may
        they wait for so long that the router sends them twice.
        """
        shape = Shape(
            port=self.gateway.port,
            model=f"bench/{model}",
            key=self.gateway.api_key,
            stream=stream,
        )
        body = shape.request().partition(b"\r\n\r\n")[2]
        headers = {
            "content-type": "application/json",
            "authorization": f"Bearer {self.gateway.api_key}",
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=60)
        with contextlib.closing(connection):
            for start in range(0, count, GROUP):
                with self._records_waiting():
                    for _ in range(min(GROUP, count - start)):
                        connection.request("POST", "/v1/chat/completions", body, headers)
                        answer = connection.getresponse()
                        text = answer.read()
                        assert answer.status == 200, text
                        assert not stream or text.endswith(b"data: [DONE]\n\n")
                self.settled("usage")

    @contextlib.contextmanager
    def _records_waiting(self) -> Iterator[None]:
        os.kill(self.pids["usage"], signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pids["usage"], signal.SIGCONT)

    def count(self, name: str, calls: int, found: Counted) -> None:
        """Takes one kind of call."""
        before = {service: self.settled(service) for service in SERVICES}
        self.call(calls, stream=name == "stream")
        for service in SERVICES:
            after = self.settled(service)
            spent = after.instructions - before[service].instructions
            key = f"{service} {name}"
            found.figures[key] = spent.total() / calls
            found.functions[key] = Counter({at: n // calls for at, n in spent.items()})
            found.blocks[key] = (after.blocks - before[service].blocks) / calls

    def count_paced(self, found: Counted) -> None:
        """Streams whose chunks come one by one: the dearest counts, in which fewest came together
        because the machine was busy elsewhere.
        """
        dearest: dict[str, Counter[str]] = {"edge": Counter(), "router": Counter()}
        for _ in range(PACED_CALLS):
            before = {service: self.settled(service) for service in dearest}
            self.call(1, stream=True, model="bench-paced")
            for service, most in dearest.items():
                spent = self.settled(service).instructions - before[service].instructions
                dearest[service] = max(most, spent, key=Counter.total)
        for service, most in dearest.items():
            found.figures[f"{service} paced stream"] = float(most.total())
            found.functions[f"{service} paced stream"] = most


@contextlib.contextmanager
def _provider() -> Iterator[int]:
    """The benchmark's upstream; its port."""
    port = free_port()
    command = [sys.executable, "-m", "bench.upstream", str(port)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            deadline = time.monotonic() + TELL_TIMEOUT_S
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), timeout=5).close()
                    break
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield port
        finally:
            process.terminate()


def count(directory: Path) -> Counted:
    """Runs a gateway and counts."""
    found = Counted()
    told = directory / "told"
    told.mkdir()
    environment = {
        "BENCH_KEY": "bench",
        "GUARD_DIR": str(told),
        "PYTHONPATH": os.pathsep.join([str(PLACE / "inject"), str(ROOT)]),
        "PYTHONHASHSEED": "0",
    }
    with (
        _provider() as port,
        running_gateway(directory, CONFIG.format(port=port), environment=environment) as gateway,
    ):
        guarded = Guarded(gateway, told)
        for stream in (False, True):
            guarded.call(WARM_CALLS, stream=stream)
        for name, calls in CALLS.items():
            guarded.count(name, calls, found)
        guarded.count_paced(found)
    return found


def baseline(version: str = VERSION) -> tuple[Figures, float]:
    """The figures that are held for a version of Python, and how much more is allowed. A version
    that has none is held against the newest, with room for what its compiler does otherwise.
    """
    held: dict[str, Figures] = json.loads(BASELINE.read_text())
    if version in held:
        return held[version], MORE_MAX
    newest = max(held, key=lambda known: [int(part) for part in known.split(".")])
    return held[newest], MORE_MAX_UNKNOWN


def grown(
    held: Mapping[str, float], figures: Mapping[str, float], more_max: float = MORE_MAX
) -> list[str]:
    """What costs more than it may."""
    return [
        f"{name}: {figures[name]:,.0f} instructions, {figures[name] / bound - 1:+.1%}"
        f" (baseline {bound:,.0f})"
        for name, bound in held.items()
        if figures[name] > bound * (1 + more_max) + SLACK
    ]


def compared(held: Mapping[str, float], figures: Mapping[str, float]) -> str:
    """Every figure beside the baseline."""
    lines = []
    for name, figure in figures.items():
        change = f"{figure / held[name] - 1:+7.1%}" if held.get(name) else "    new"
        lines.append(f"{name:22} {held.get(name, 0):12,.0f} {figure:12,.0f} {change}")
    return "\n".join(lines)


def main() -> None:
    """Counts, prints, and with ``--write`` keeps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--functions", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = count(Path(place))
    held: dict[str, Figures] = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    print(f"Python {VERSION}: instructions a call, baseline and now")
    print(compared(held.get(VERSION, {}), found.figures))
    print("memory blocks left behind, a call:", {k: round(n, 2) for k, n in found.blocks.items()})
    for name, functions in found.functions.items():
        for at, spent in functions.most_common(arguments.functions):
            print(f"  {name:18} {spent:8,} {at}")
    if arguments.write:
        held[VERSION] = {name: round(figure) for name, figure in found.figures.items()}
        BASELINE.write_text(json.dumps(dict(sorted(held.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
