"""What is measured: how each gateway is started on one core before the same upstream, and stopped.

Peers install from the registries into ``bench/.peers`` with ``python -m bench.install``; one that
is not there is left out of the table and said so.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

PEERS: Final = Path(__file__).resolve().parent / ".peers"
GATEWAY_CORE: Final = 0
LOAD_CORE: Final = 1
START_TIMEOUT_S: Final = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A gateway that is up: where it listens, what it wants to be sent, and its processes."""

    port: int
    model: str
    paced_model: str
    key: str
    process: psutil.Process
    path: str = "/v1/chat/completions"
    headers: tuple[tuple[str, str], ...] = ()

    def processes(self) -> list[psutil.Process]:
        """The gateway's processes, its parent first."""
        return [self.process, *self.process.children(recursive=True)]

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, by what each process is."""
        spent: dict[str, float] = {}
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                name = _role(process)
                spent[name] = spent.get(name, 0.0) + times.user + times.system
        return spent

    def rss_mb(self) -> float:
        """Resident memory of all processes, in MB."""
        total = 0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total / 1e6


def _role(process: psutil.Process) -> str:
    """``edge`` for ``… serve edge …``; otherwise the program's name."""
    command = process.cmdline()
    if "serve" in command:
        return command[command.index("serve") + 1]
    return "up" if "up" in command else process.name()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """One row of the table: ``start`` takes a directory, its own port and the upstream's."""

    name: str
    start: Callable[[Path, int, int], contextlib.AbstractContextManager[Running]]
    installed: Callable[[], bool]


@contextlib.contextmanager
def pinned(
    command: Sequence[str], directory: Path, *, core: int, environment: Mapping[str, str]
) -> Iterator[psutil.Process]:
    """Runs a command on one core; its log is ``log`` in the directory."""
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdout=log,
            stderr=log,
            cwd=directory,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for_answer(running: Running, directory: Path) -> None:
    """Waits until one call succeeds; fails with the log when none does."""
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
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline or not running.process.is_running():
                log = (directory / "log").read_text(errors="replace")
                raise RuntimeError(f"no answer: {error}\n{log[-3000:]}") from error
            time.sleep(0.2)


@contextlib.contextmanager
def _onegate(directory: Path, port: int, upstream: int) -> Iterator[Running]:
    (directory / "onegate.toml").write_text(
        f"""
[[provider]]
name = "bench"
kind = "openai"
base_url = "http://127.0.0.1:{upstream}/v1"
api_key_env = "BENCH_KEY"
models = ["bench", "bench-paced"]
free = true
"""
    )
    credentials = directory / "credentials.json"
    command = [sys.executable, "-m", "cli.main", "up", "--port", str(port), "--data-dir", "data"]
    command += ["--config", "onegate.toml", "--credentials-file", str(credentials)]
    root = Path(__file__).resolve().parent.parent
    environment = {"BENCH_KEY": "bench", "PYTHONPATH": str(root)}
    with pinned(command, directory, core=GATEWAY_CORE, environment=environment) as process:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not credentials.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        key = json.loads(credentials.read_text())["api_key"]
        running = Running(
            port=port,
            model="bench/bench",
            paced_model="bench/bench-paced",
            key=key,
            process=process,
        )
        wait_for_answer(running, directory)
        yield running


@contextlib.contextmanager
def _litellm(directory: Path, port: int, upstream: int) -> Iterator[Running]:
    models = [
        {
            "model_name": name,
            "litellm_params": {
                "model": f"openai/{name}",
                "api_base": f"http://127.0.0.1:{upstream}/v1",
                "api_key": "bench",
            },
        }
        for name in ("bench", "bench-paced")
    ]
    settings = {
        "model_list": models,
        "general_settings": {"master_key": "sk-bench"},
        "litellm_settings": {"telemetry": False},
    }
    (directory / "config.yaml").write_text(json.dumps(settings))
    command = [str(PEERS / "litellm/bin/litellm"), "--config", "config.yaml", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--num_workers", "1"]
    environment = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with pinned(command, directory, core=GATEWAY_CORE, environment=environment) as process:
        running = Running(
            port=port, model="bench", paced_model="bench-paced", key="sk-bench", process=process
        )
        wait_for_answer(running, directory)
        yield running


@contextlib.contextmanager
def _portkey(directory: Path, port: int, upstream: int) -> Iterator[Running]:
    server = PEERS / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
    command = ["node", str(server), "--headless", f"--port={port}"]
    with pinned(
        command,
        directory,
        core=GATEWAY_CORE,
        environment={"TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"},
    ) as process:
        running = Running(
            port=port,
            model="bench",
            paced_model="bench-paced",
            key="bench",
            process=process,
            headers=(
                ("x-portkey-provider", "openai"),
                ("x-portkey-custom-host", f"http://127.0.0.1:{upstream}/v1"),
            ),
        )
        wait_for_answer(running, directory)
        yield running


@contextlib.contextmanager
def _tensorzero(directory: Path, _port: int, upstream: int) -> Iterator[Running]:
    models = "".join(
        f"""
[models.{name}]
routing = ["bench"]
[models.{name}.providers.bench]
type = "openai"
model_name = "{name}"
api_base = "http://127.0.0.1:{upstream}/v1/"
api_key_location = "none"
"""
        for name in ("bench", "bench-paced")
    )
    config = f"[gateway]\nobservability.enabled = false\n{models}"
    (directory / "tensorzero.toml").write_text(config)
    script = Path(__file__).resolve().parent / "tensorzero_gateway.py"
    command = [str(PEERS / "tensorzero/bin/python"), str(script), "tensorzero.toml"]
    environment = {"TOKIO_WORKER_THREADS": "1", "RUST_LOG": "warn"}
    with pinned(command, directory, core=GATEWAY_CORE, environment=environment) as process:
        running = Running(
            port=_port_in_log(directory / "log"),  # It chooses its own.
            model="tensorzero::model_name::bench",
            paced_model="tensorzero::model_name::bench-paced",
            key="bench",
            process=process,
            path="/openai/v1/chat/completions",
        )
        wait_for_answer(running, directory)
        yield running


def _port_in_log(log: Path) -> int:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if found := re.search(r"^http://[^:]+:(\d+)", log.read_text(), re.MULTILINE):
            return int(found[1])
        time.sleep(0.1)
    raise RuntimeError(log.read_text()[-3000:])


@contextlib.contextmanager
def _envoy(directory: Path, port: int, upstream: int) -> Iterator[Running]:
    def address(number: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    kind = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{kind}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{kind}.http.router.v3.Router"}}
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}],
                }
            ]
        },
    }
    endpoint = {"endpoint": {"address": address(upstream)}}
    config = {
        "static_resources": {
            "listeners": [
                {
                    "address": address(port),
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "upstream",
                    "connect_timeout": "2s",
                    "load_assignment": {
                        "cluster_name": "upstream",
                        "endpoints": [{"lb_endpoints": [endpoint]}],
                    },
                }
            ],
        }
    }
    (directory / "envoy.json").write_text(json.dumps(config))
    (binary,) = (PEERS / "envoy").glob("lib/python3*/site-packages/envoy/_bin/envoy")
    command = [str(binary), "-c", "envoy.json", "--concurrency", "1", "--log-level", "error"]
    with pinned(command, directory, core=GATEWAY_CORE, environment={}) as process:
        running = Running(
            port=port, model="bench", paced_model="bench-paced", key="bench", process=process
        )
        wait_for_answer(running, directory)
        yield running


GATEWAYS: Final = [
    Gateway(name="onegate", start=_onegate, installed=lambda: True),
    Gateway(name="LiteLLM", start=_litellm, installed=lambda: _is_there("litellm/bin/litellm")),
    Gateway(name="Portkey", start=_portkey, installed=lambda: _is_there("portkey/node_modules")),
    Gateway(name="TensorZero", start=_tensorzero, installed=lambda: _is_there("tensorzero/bin")),
    Gateway(name="Envoy", start=_envoy, installed=lambda: _is_there("envoy/bin")),
]


def _is_there(name: str) -> bool:
    return (PEERS / name).exists()


@contextlib.contextmanager
def direct(directory: Path, upstream: int) -> Iterator[Running]:
    """The upstream itself, on the load's core, as every gateway sees it."""
    command = [sys.executable, "-m", "bench.upstream", str(upstream)]
    root = str(Path(__file__).resolve().parent.parent)
    with pinned(command, directory, core=LOAD_CORE, environment={"PYTHONPATH": root}) as process:
        running = Running(
            port=upstream, model="bench", paced_model="bench-paced", key="bench", process=process
        )
        wait_for_answer(running, directory)
        yield running
