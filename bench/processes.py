"""Processes under measurement: started on one core, watched, and always ended.

A process gets a session of its own, is asked to end when this one dies in whatever way, and
whatever is left of its session is killed when the measurement is over.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

START_TIMEOUT_S: Final = 180.0
STOP_TIMEOUT_S: Final = 15.0
_PR_SET_PDEATHSIG: Final = 1
"""prctl(2)."""
_LIBC: Final = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A gateway that is up: where it listens, what it wants to be sent, and its processes.

    ``directory`` is where it keeps its files; ``admin_key`` is empty for those without one.
    """

    port: int
    model: str
    paced_model: str
    key: str
    process: psutil.Process
    directory: Path
    path: str = "/v1/chat/completions"
    headers: tuple[tuple[str, str], ...] = ()
    admin_key: str = ""

    def processes(self) -> list[psutil.Process]:
        """The gateway's processes, its parent first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self.process, *self.process.children(recursive=True)]
        return []

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, by what each process is."""
        spent: dict[str, float] = {}
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                name = role(process)
                spent[name] = spent.get(name, 0.0) + times.user + times.system
        return spent

    def rss_mb(self) -> dict[str, float]:
        """Resident memory by process, in MB. Pages that several share are counted in each."""
        found: dict[str, float] = {}
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                name = role(process)
                found[name] = found.get(name, 0.0) + process.memory_info().rss / 1e6
        return found

    def pss_mb(self) -> float:
        """Resident memory of all processes in MB, each shared page counted once in all; 0 where
        the kernel does not say.
        """
        total = 0
        for process in self.processes():
            with contextlib.suppress(OSError):
                rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                if found := re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE):
                    total += int(found[1]) * 1024
        return total / 1e6

    def settle(self, timeout_s: float = 30.0) -> bool:
        """Waits until the gateway has nothing left to do, at most so long; whether it has."""
        deadline = time.monotonic() + timeout_s
        before, at = sum(self.cpu_s().values()), time.monotonic()
        while time.monotonic() < deadline:
            time.sleep(0.3)
            after, now = sum(self.cpu_s().values()), time.monotonic()
            if after - before <= 0.1 * (now - at):
                return True
            before, at = after, now
        return False


def role(process: psutil.Process) -> str:
    """``edge`` for ``… serve edge …``; otherwise the program's name."""
    command = process.cmdline()
    if "serve" in command:
        return str(command[command.index("serve") + 1])
    return "up" if "up" in command else str(process.name())


def die_with_parent() -> None:
    """Has the kernel ask this process to end when the one that started it does."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def pinned(
    command: Sequence[str], directory: Path, *, core: int, environment: Mapping[str, str]
) -> Iterator[psutil.Process]:
    """Runs a command on one core; its log is ``log`` in the directory."""
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - there are no threads here
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_answer(running: Running) -> None:
    """Waits until one call succeeds; raises ``RuntimeError`` with the log when none does."""
    body = json.dumps({"model": running.model, "messages": [{"role": "user", "content": "x"}]})
    request = urllib.request.Request(
        f"http://127.0.0.1:{running.port}{running.path}",
        data=body.encode(),
        headers={
            "content-type": "application/json",
            "authorization": f"Bearer {running.key}",
            **dict(running.headers),
        },
    )
    wait_for(request, running.process, running.directory)


def wait_for(
    request: urllib.request.Request | str, process: psutil.Process, directory: Path
) -> None:
    """Waits until a request succeeds; raises ``RuntimeError`` with the log when it never does."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline or not process.is_running():
                raise RuntimeError(f"no answer: {error}\n{_log(directory)}") from error
            time.sleep(0.2)


def port_in_log(directory: Path, process: psutil.Process) -> int:
    """The port of the first line of the log that is an address; raises ``RuntimeError``."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.is_running():
        text = (directory / "log").read_text(errors="replace")
        if found := re.search(r"^http://[^:]+:(\d+)", text, re.MULTILINE):
            return int(found[1])
        time.sleep(0.1)
    raise RuntimeError(_log(directory))


def wait_for_file(path: Path, process: psutil.Process) -> str:
    """The text of a file that a process is about to write; raises ``RuntimeError``."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.is_running():
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.1)
    raise RuntimeError(_log(path.parent))


def _log(directory: Path) -> str:
    return (directory / "log").read_text(errors="replace")[-3000:]
