"""What is measured: how each gateway is started on one core before the same upstream.

Peers install from the registries into ``bench/.peers`` with ``python -m bench.install``; one that
is not there is left out of the table and said so.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.machine import Cores
from bench.processes import Running, pinned, port_in_log, wait_for, wait_for_answer, wait_for_file

PEERS: Final = Path(__file__).resolve().parent / ".peers"
ROOT: Final = Path(__file__).resolve().parent.parent
MODELS: Final = ("bench", "bench-paced")
OWN_MODELS: Final = (*MODELS, "bench-slow", "bench-endless")
"""What the upstream offers beyond, for measurements of our own gateway alone."""
NONE: Final[Mapping[str, Mapping[str, float]]] = {}
LIMIT: Final = "2000000000"
"""Requests and tokens a minute of our key: a limit that is kept count of and never reached."""
PORT: Final = 18_400
"""The upstream's; gateways have those after it."""
FILES: Final = ("--data-dir", "data", "--config", "onegate.toml")
COMMAND_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a gateway is started: its own directory and port, the upstream's, the cores."""

    directory: Path
    port: int
    upstream: int
    cores: Cores


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """One row of the table."""

    name: str
    start: Callable[[Place], contextlib.AbstractContextManager[Running]]
    installed: Callable[[], bool]


@contextlib.contextmanager
def onegate(place: Place, settings: Mapping[str, Mapping[str, float]] = NONE) -> Iterator[Running]:
    """All processes of ``onegate up``, with a price for each model and a key that is limited, so
    that keys, limits and metering are at work.

    Args:
        place: where.
        settings: what is configured beyond, by table of the configuration file.
    """
    tables: dict[str, dict[str, float]] = {"edge": {"drain_notice_s": 0.0, "drain_timeout_s": 2.0}}
    for name, values in settings.items():
        tables.setdefault(name, {}).update(values)
    text = "".join(
        f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())
        for name, values in tables.items()
    )
    (place.directory / "onegate.toml").write_text(
        f"""{text}
[telemetry]
access_log = false

[[provider]]
name = "bench"
kind = "openai"
base_url = "http://127.0.0.1:{place.upstream}/v1"
api_key_env = "BENCH_KEY"
models = {json.dumps(OWN_MODELS)}
"""
    )
    credentials = place.directory / "credentials.json"
    command = ["up", *FILES, "--port", str(place.port), "--credentials-file", str(credentials)]
    with pinned(
        _command(*command), place.directory, core=place.cores.gateway, environment=_environment()
    ) as process:
        first = json.loads(wait_for_file(credentials, process))
        wait_for(f"http://127.0.0.1:{place.port}/readyz", process, place.directory)
        for model in OWN_MODELS:
            prices = ["--source", "bench", "--input", "1", "--output", "2"]
            _ask(place, "prices", "set", f"bench/{model}", *prices)
        limits = ["--rpm", LIMIT, "--tpm", LIMIT]
        made = _ask(place, "keys", "create", "--name", "bench", *limits, "--output", "json")
        running = Running(
            port=place.port,
            model="bench/bench",
            paced_model="bench/bench-paced",
            key=json.loads(made)["value"],
            admin_key=first["admin_key"],
            process=process,
            directory=place.directory,
        )
        wait_for_answer(running)
        yield running


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cli.main", *arguments]


def _environment() -> dict[str, str]:
    return {"BENCH_KEY": "bench", "PYTHONPATH": str(ROOT)}


def _ask(place: Place, *arguments: str) -> str:
    """What a command of ours prints; raises ``RuntimeError`` when it fails."""
    asked = subprocess.run(
        _command(*FILES, *arguments),
        cwd=place.directory,
        env={**os.environ, **_environment()},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    if asked.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {asked.stdout}{asked.stderr}")
    return asked.stdout


@contextlib.contextmanager
def _litellm(place: Place) -> Iterator[Running]:
    models = [
        {
            "model_name": name,
            "litellm_params": {
                "model": f"openai/{name}",
                "api_base": f"http://127.0.0.1:{place.upstream}/v1",
                "api_key": "bench",
            },
        }
        for name in MODELS
    ]
    settings = {
        "model_list": models,
        "general_settings": {"master_key": "sk-bench"},
        "litellm_settings": {"telemetry": False},
    }
    (place.directory / "config.yaml").write_text(json.dumps(settings))
    command = [str(PEERS / "litellm/bin/litellm"), "--config", "config.yaml"]
    command += ["--host", "127.0.0.1", "--port", str(place.port), "--num_workers", "1"]
    environment = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with _plain(place, command, environment, key="sk-bench") as running:
        yield running


@contextlib.contextmanager
def _portkey(place: Place) -> Iterator[Running]:
    server = PEERS / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
    command = ["node", str(server), "--headless", f"--port={place.port}"]
    environment = {"TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost", "NODE_ENV": "production"}
    headers = (
        ("x-portkey-provider", "openai"),
        ("x-portkey-custom-host", f"http://127.0.0.1:{place.upstream}/v1"),
    )
    with _plain(place, command, environment, headers=headers) as running:
        yield running


@contextlib.contextmanager
def _plain(
    place: Place,
    command: list[str],
    environment: dict[str, str],
    *,
    key: str = "bench",
    headers: tuple[tuple[str, str], ...] = (),
) -> Iterator[Running]:
    """A gateway that listens where it is told and knows the upstream's models by their names."""
    with pinned(
        command, place.directory, core=place.cores.gateway, environment=environment
    ) as process:
        running = Running(
            port=place.port,
            model=MODELS[0],
            paced_model=MODELS[1],
            key=key,
            process=process,
            directory=place.directory,
            headers=headers,
        )
        wait_for_answer(running)
        yield running


@contextlib.contextmanager
def _tensorzero(place: Place) -> Iterator[Running]:
    models = "".join(
        f"""
[models.{name}]
routing = ["bench"]
[models.{name}.providers.bench]
type = "openai"
model_name = "{name}"
api_base = "http://127.0.0.1:{place.upstream}/v1/"
api_key_location = "none"
"""
        for name in MODELS
    )
    config = f"[gateway]\nobservability.enabled = false\n{models}"
    (place.directory / "tensorzero.toml").write_text(config)
    script = Path(__file__).resolve().parent / "tensorzero_gateway.py"
    command = [str(PEERS / "tensorzero/bin/python"), str(script), "tensorzero.toml"]
    environment = {"TOKIO_WORKER_THREADS": "1", "RUST_LOG": "warn"}
    with pinned(
        command, place.directory, core=place.cores.gateway, environment=environment
    ) as process:
        running = Running(
            port=port_in_log(place.directory, process),  # It chooses its own.
            model=f"tensorzero::model_name::{MODELS[0]}",
            paced_model=f"tensorzero::model_name::{MODELS[1]}",
            key="bench",
            process=process,
            directory=place.directory,
            path="/openai/v1/chat/completions",
        )
        wait_for_answer(running)
        yield running


@contextlib.contextmanager
def _envoy(place: Place) -> Iterator[Running]:
    (place.directory / "envoy.json").write_text(json.dumps(_envoy_config(place)))
    (binary,) = (PEERS / "envoy").glob("lib/python3*/site-packages/envoy/_bin/envoy")
    command = [str(binary), "-c", "envoy.json", "--concurrency", "1", "--log-level", "error"]
    with _plain(place, [*command, "--disable-hot-restart"], {}) as running:
        yield running


def _envoy_config(place: Place) -> dict[str, object]:
    """A plain proxy: it reads nothing of what it forwards."""

    def address(number: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    kind = "type.googleapis.com/envoy.extensions.filters"
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "0s"}}]
    manager = {
        "@type": f"{kind}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{kind}.http.router.v3.Router"}}
        ],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    }
    listener = {
        "address": address(place.port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    endpoint = {"endpoint": {"address": address(place.upstream)}}
    cluster = {
        "name": "upstream",
        "connect_timeout": "2s",
        "load_assignment": {
            "cluster_name": "upstream",
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


@contextlib.contextmanager
def direct(place: Place) -> Iterator[Running]:
    """The upstream itself, on the load's core, as every gateway sees it."""
    command = [sys.executable, "-m", "bench.upstream", str(place.upstream)]
    environment = {"PYTHONPATH": str(ROOT)}
    with pinned(
        command, place.directory, core=place.cores.load, environment=environment
    ) as process:
        running = Running(
            port=place.upstream,
            model=MODELS[0],
            paced_model=MODELS[1],
            key="bench",
            process=process,
            directory=place.directory,
        )
        wait_for_answer(running)
        yield running


@contextlib.contextmanager
def alone(
    cores: Cores, settings: Mapping[str, Mapping[str, float]] = NONE
) -> Iterator[tuple[Running, Running]]:
    """Our gateway by itself: the upstream and it."""
    with contextlib.ExitStack() as closing:
        # A unix socket's path may have 100 bytes: the name stays short.
        place, ours = (
            Place(
                directory=Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="ogb"))),
                port=PORT + number,
                upstream=PORT,
                cores=cores,
            )
            for number in range(2)
        )
        upstream = closing.enter_context(direct(place))
        yield upstream, closing.enter_context(onegate(ours, settings))


def _is_there(name: str) -> bool:
    return (PEERS / name).exists()


GATEWAYS: Final = [
    Gateway(name="onegate", start=onegate, installed=lambda: True),
    Gateway(name="LiteLLM", start=_litellm, installed=lambda: _is_there("litellm/bin/litellm")),
    Gateway(name="Portkey", start=_portkey, installed=lambda: _is_there("portkey/node_modules")),
    Gateway(name="TensorZero", start=_tensorzero, installed=lambda: _is_there("tensorzero/bin")),
    Gateway(name="Envoy", start=_envoy, installed=lambda: _is_there("envoy/bin")),
]
