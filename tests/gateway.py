"""A whole gateway for a test: ``onegate up`` in a process of its own, stopped when the test is
done.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: object, timeout_s: float = 10.0, what: str = "the condition") -> None:
    """Waits until the callable ``condition`` is true; fails when it never is."""
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s} s"
        time.sleep(0.02)


@dataclass
class Gateway:
    """A running gateway."""

    data_dir: Path
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    credentials: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def api_key(self) -> str:
        return self.credentials["api_key"]

    def is_ready(self) -> bool:
        """Whether ``/readyz`` says so."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def pids_of(self, service: str) -> list[int]:
        """The process ids of one service's processes."""
        listed = subprocess.run(
            ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
        ).stdout
        found = []
        for line in listed.splitlines():
            pid, parent, command = line.split(None, 2)
            if int(parent) == self.process.pid and f"serve {service}" in command:
                found.append(int(pid))
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

    def stop(self) -> int:
        """Stops the gateway as Ctrl-C does; gives its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without anybody's provider keys."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.endswith(("_API_KEY", "_TOKEN")) and not name.startswith("ONEGATE_")
    }
    return {**kept, **extra}


@contextlib.contextmanager
def running_gateway(
    directory: Path,
    config: str = "",
    *,
    workers: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Gateway]:
    """``onegate up`` with ``config`` as its file; its log is shown when it does not start.

    A second one in the same directory goes on with the data of the first.
    """
    port = free_port()
    config_file = directory / "onegate.toml"
    config_file.write_text(config)
    credentials_file = directory / "credentials.json"
    log = directory / "up.log"
    command = [sys.executable, "-m", "cli.main", "up", "--port", str(port)]
    # A socket's path may have 100 bytes: a test's own directory can be deeper than that.
    place = directory / "data"
    if not place.exists():
        place.symlink_to(tempfile.mkdtemp(prefix="og-"))
    data_dir = place.resolve()
    command += ["--data-dir", str(data_dir), "--config", str(config_file)]
    command += ["--workers", str(workers), "--credentials-file", str(credentials_file)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=clean_environment(environment or {})
        )
    gateway = Gateway(data_dir, port, process, log)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (gateway.is_ready() and "onegate is up" in log.read_text()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        gateway.credentials = json.loads(credentials_file.read_text())
        yield gateway
    finally:
        gateway.stop()
