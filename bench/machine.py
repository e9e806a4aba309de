"""The machine a benchmark runs on: its cores, who else uses them, and what it is called."""

import contextlib
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

TICK_S: Final = 1.0 / os.sysconf("SC_CLK_TCK")
_IDLE_COLUMNS: Final = (3, 4)
"""``idle`` and ``iowait`` of a core's line in ``/proc/stat``; see proc_stat(5)."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core the gateway has with all its processes, and which the load and the upstream."""

    gateway: int = 0
    load: int = 1

    def check(self) -> None:
        """Takes the load's core for this process. Raises ``SystemExit`` when one is not there."""
        there = os.sched_getaffinity(0)
        machine = set(range(os.cpu_count() or 1))
        if missing := {self.gateway, self.load} - machine:
            raise SystemExit(
                f"core {min(missing)} is not on this machine; --cores takes two of 0 to "
                f"{max(machine)}, such as --cores 0,1."
            )
        if self.gateway == self.load:
            raise SystemExit("The gateway and the load need a core each: --cores 0,1.")
        try:
            os.sched_setaffinity(0, {self.load})
        except OSError as error:
            raise SystemExit(f"core {self.load} may not be used here ({there}): {error}") from error


def parse_cores(text: str) -> Cores:
    """``0,1`` as cores. Raises ``ValueError``."""
    gateway, load = text.split(",")
    return Cores(int(gateway), int(load))


@dataclass(frozen=True, slots=True)
class Moment:
    """A core's and some processes' CPU time so far, in seconds."""

    at_s: float
    busy_s: dict[int, float]
    own_s: dict[str, float]


def busy_s(cores: Cores) -> dict[int, float]:
    """How long each of the two cores has worked, in seconds, for whomever (stolen time too)."""
    spent: dict[int, float] = {}
    wanted = {f"cpu{core}": core for core in (cores.gateway, cores.load)}
    for line in Path("/proc/stat").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if name in wanted:
            columns = [int(column) for column in rest.split()[:8]]
            busy = sum(columns) - sum(columns[place] for place in _IDLE_COLUMNS)
            spent[wanted[name]] = busy * TICK_S
    return spent


def now_s() -> float:
    """The clock of all measurements, in seconds."""
    return time.perf_counter()


def siblings(core: int) -> str:
    """Which logical cores share the physical one; empty when the kernel does not say."""
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return ""


def describe(cores: Cores) -> str:
    """The machine, our parts' versions and the commit, as a line of text."""
    model = "unknown processor"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    parts = ["grpcio", "protobuf", "uvloop", "httptools", "msgspec"]
    ours = ", ".join(f"{part} {version(part)}" for part in parts)
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(
        git, capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    ).stdout.strip()
    share = siblings(cores.gateway)
    apart = "" if share in ("", str(cores.gateway)) else f" (shares its silicon: {share})"
    return (
        f"{model}, {os.cpu_count()} cores, gateway on core {cores.gateway}{apart}, load and"
        f" upstream on core {cores.load}; Linux {platform.release()}, Python"
        f" {platform.python_version()}, commit {commit or 'unknown'}; {ours}"
    )
