"""The promise of revocation over whole processes: three edges, two routers and auth, asked over
REST, by gRPC and from the command line; and an edge that is stopped in the middle of it.
"""

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import grpc
import pytest

from cli.context import load
from onegate.router.v1 import chat_pb2, explain_service_pb2
from tests.gateway import Gateway, clean_environment, free_port, running_gateway, wait_until

REVOCATIONS = 100
"""Of keys that nobody waits for. docs/revocation.md has the figures of 200."""

WAITED = 10
GRACE_S = 1.0
MODEL = "demo/echo"
EXPLAIN = "/onegate.router.v1.ExplainService/ExplainChat"
KEYS = "/v1/organization/projects/{project}/api_keys"

Ask: TypeAlias = "grpc.UnaryUnaryMultiCallable[Any, Any]"


@dataclass
class Edge:
    """An edge in a process of its own, and one connection to it."""

    port: int
    process: "subprocess.Popen[bytes]"
    line: http.client.HTTPConnection

    def ask(self, method: str, path: str, key: str, body: Any = None) -> tuple[int, Any]:
        """One answer."""
        headers = {"authorization": f"Bearer {key}"}
        content = None if body is None else json.dumps(body)
        self.line.request(method, path, content, headers)
        with self.line.getresponse() as answer:
            return answer.status, json.loads(answer.read())

    def admits(self, key: str) -> bool:
        """Whether a caller with this key gets through."""
        status, body = self.ask("GET", "/v1/models", key)
        assert status in (200, 401, 503), body
        return status == 200


@dataclass
class Suite:
    """Everything that a key may be shown to."""

    gateway: Gateway
    edges: list[Edge]
    routers: list[Ask]
    project: str = ""
    seconds: list[float] = field(default_factory=list)

    def admin(self, method: str, path: str, body: Any = None) -> Any:
        """What the administrative API answers."""
        key = self.gateway.credentials["admin_key"]
        status, answer = self.edges[0].ask(method, path.format(project=self.project), key, body)
        assert status == 200, answer
        return answer

    def make(self) -> tuple[str, str]:
        """A key that everybody knows: its id and its secret."""
        made = self.admin("POST", KEYS, {"name": "short-lived"})
        key_id, secret = made["id"], made["value"]
        assert self.admitting(secret) == 5
        return key_id, secret

    def admitting(self, key: str, edges: list[Edge] | None = None) -> int:
        """How many processes let a caller with this key through."""
        at_edges = sum(edge.admits(key) for edge in (self.edges if edges is None else edges))
        return at_edges + sum(_plans(router, key) for router in self.routers)


def _plans(router: Ask, key: str) -> bool:
    """Whether a router takes the key; what it thinks of the call does not matter here."""
    request = explain_service_pb2.ExplainChatRequest(request=chat_pb2.ChatRequest(model=MODEL))
    try:
        router(request, timeout=10, metadata=(("authorization", f"Bearer {key}"),))
    except grpc.RpcError as error:
        refused = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE)
        return cast("grpc.Call", error).code() not in refused
    return True


@contextlib.contextmanager
def edge_of(gateway: Gateway, config: Path) -> Iterator[Edge]:
    """One more edge of a gateway."""
    port = free_port()
    command = [sys.executable, "-m", "cli.main", "serve", "edge", "--port", str(port)]
    command += ["--data-dir", str(gateway.data_dir), "--config", str(config), "--workers", "2"]
    log = config.with_name(f"edge-{port}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=clean_environment({}))
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        here = Gateway(gateway.data_dir, port, process, log)
        wait_until(here.is_ready, 60, "an edge")
        yield Edge(port, process, line)
    finally:
        line.close()
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """Three edges on ports of their own, and two routers."""
    directory = tmp_path_factory.mktemp("revocation")
    config = f"[rpc]\nrevocation_grace_s = {GRACE_S}\n[telemetry]\naccess_log = false\n"
    with contextlib.ExitStack() as running:
        gateway = running.enter_context(running_gateway(directory, config, workers=2))
        path = directory / "onegate.toml"
        edges = [running.enter_context(edge_of(gateway, path)) for _ in range(3)]
        settings = load(path, {"data_dir": str(gateway.data_dir), "workers": 2})
        assert len(settings.edge.routers) == 2
        lines = [
            running.enter_context(grpc.insecure_channel(target)) for target in settings.edge.routers
        ]
        routers = [
            line.unary_unary(
                EXPLAIN,
                request_serializer=explain_service_pb2.ExplainChatRequest.SerializeToString,
                response_deserializer=explain_service_pb2.ExplainChatResponse.FromString,
            )
            for line in lines
        ]
        made = Suite(gateway, edges, routers)
        made.project = made.admin("POST", "/v1/organization/projects", {"name": "p"})["id"]
        yield made


def test_two_hundred_keys_are_refused_everywhere_soon_after_their_end(suite: Suite) -> None:
    for _ in range(REVOCATIONS):
        key_id, secret = suite.make()
        suite.admin("DELETE", f"{KEYS}/{key_id}")
        began = time.monotonic()
        while suite.admitting(secret):
            assert time.monotonic() - began < 5, "the key still works"
        suite.seconds.append(time.monotonic() - began)
    seconds = sorted(suite.seconds)
    p50, p99 = seconds[len(seconds) // 2], seconds[int(len(seconds) * 0.99)]
    print(f"p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, max {seconds[-1] * 1e3:.1f} ms")


def test_nobody_admits_a_key_once_a_waiting_revocation_has_returned(suite: Suite) -> None:
    for _ in range(WAITED):
        key_id, secret = suite.make()
        ended = suite.admin("DELETE", f"{KEYS}/{key_id}?wait=true")
        assert (ended["confirmed"], ended["unconfirmed"]) == (True, [])
        assert suite.admitting(secret) == 0
    key_id, secret = suite.make()
    suite.gateway.cli("keys", "revoke", "--wait", key_id)
    assert suite.admitting(secret) == 0


def test_an_edge_that_is_cut_off_is_named_and_refuses_by_itself(suite: Suite) -> None:
    near, cut = suite.edges[:2], suite.edges[2]
    early_id, early = suite.make()
    late_id, late = suite.make()
    cut.process.send_signal(signal.SIGSTOP)
    ended = suite.admin("DELETE", f"{KEYS}/{early_id}?wait=true&wait_seconds_max=1")
    (behind,) = ended["unconfirmed"]
    assert (ended["confirmed"], behind["name"]) == (False, "edge")
    assert suite.admitting(early, near) == 0
    # Without a bound it returns when the edge can only refuse by itself.
    ended = suite.admin("DELETE", f"{KEYS}/{late_id}?wait=true")
    assert ended["confirmed"], ended
    assert suite.admitting(late, near) == 0
    cut.process.send_signal(signal.SIGCONT)
    assert not cut.admits(late)
    assert not cut.admits(early)
    wait_until(lambda: cut.admits(suite.gateway.api_key), 20, "the edge that is back")
