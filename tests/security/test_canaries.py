"""Canary secrets through a whole gateway, good calls and bad: none is in any artifact that it
leaves, except in the two files that are there to hold one.
"""

import contextlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from onegate.auth.v1 import grant_pb2
from runtime import apikeys
from runtime.clock import SystemEntropy
from tests.fake_provider import FakeProvider, Reply, running_in_thread
from tests.gateway import Gateway, running_gateway, wait_until

PROVIDER_KEY = "sk-canary-provider-Zq81LmX0pT5vB7nR"
PEPPER = "canary-pepper-9f3b1c5d7e2a4068f1b3d5a7c9e0f2b4"
PROMPT = "canaryprompt6c1d"
ANSWER = "canaryanswer2f7e"
CONFIG = """
[telemetry]
log_level = "debug"

[[provider]]
name = "a"
kind = "compatible"
base_url = "{url}"
api_key_env = "CANARY_KEY"
models = ["m", "claude"]
free = true
"""
HOLDERS = {"pepper", "operator.token"}
"""The files that are there to hold a secret, for their owner alone."""


@dataclass
class Run:
    """A gateway after a day's work, and everything it said."""

    gateway: Gateway
    provider: FakeProvider
    bodies: list[bytes] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict)

    def ask(
        self, path: str, body: bytes | None, headers: dict[str, str] | None = None, key: str = ""
    ) -> int:
        """One request; what comes back is an artifact unless it went well."""
        presented = {"authorization": f"Bearer {key}"} if key else {}
        request = urllib.request.Request(
            f"{self.gateway.url}{path}",
            data=body,
            headers={"content-type": "application/json", **presented, **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                answer.read()
                return int(answer.status)
        except urllib.error.HTTPError as error:
            self.bodies.append(str(error.headers).encode() + error.read())
            return error.code


def chat(**fields: Any) -> bytes:
    """A call with the canary prompt."""
    messages = [{"role": "user", "content": PROMPT}]
    return json.dumps({"model": "a/m", "messages": messages, **fields}).encode()


def work(run: Run) -> None:
    """Good calls, and every way to go wrong that is likely to print something."""
    key, admin = run.gateway.api_key, run.gateway.credentials["admin_key"]
    path, provider = "/v1/chat/completions", run.provider
    assert run.ask(path, chat(), key=key) == 200
    assert run.ask(path, chat(stream=True), key=key) == 200
    leaky = json.dumps({"error": {"message": f"bad key {PROVIDER_KEY} for {PROMPT}"}}).encode()
    # What a provider finds wrong with a request is for its caller to read, prompt and all.
    wrong = json.dumps({"error": {"message": f"bad field, key {PROVIDER_KEY}"}}).encode()
    for status in (400, 401, 403, 429, 500):
        provider.script(*[Reply(status=status, body=wrong if status == 400 else leaky)] * 4)
        run.ask(path, chat(model="a/claude"), key=key)
        provider._scripted.clear()
    provider.script(*[Reply(body=b"<html>" + leaky)] * 4)
    run.ask(path, chat(), key=key)
    provider._scripted.clear()
    assert run.ask(path, b'{"messages": "' + PROMPT.encode(), key=key) == 400
    assert run.ask(path, chat(temperature=PROMPT), key=key) == 400
    assert run.ask(path, chat(model=key), key=key) == 404
    assert run.ask(f"{path}?key={key}", chat(), key="") == 401
    assert run.ask(f"/v1/nowhere/{key}", None, key=key) == 404
    unknown = run.secrets["unknown key"]
    assert run.ask(path, chat(), key=unknown) == 401
    assert run.ask(path, chat(), key=f"{key}x") == 401
    assert run.ask(path, chat(), {"x-api-key": unknown}, key=key) == 401
    assert run.ask(path, chat(), {"x-request-id": key, "user-agent": key}, key=key) in (200, 502)
    body = json.dumps({"name": f"named {key}"}).encode()
    assert run.ask("/v1/organization/admin_api_keys", body, key=admin) == 400
    assert run.ask("/v1/organization/projects", b'{"name": 1}', key=admin) == 400
    assert run.ask("/v1/organization/audit_logs", None, key=key) in (401, 403)
    with contextlib.suppress(OSError, http.client.HTTPException):
        run.ask(path, chat(), {"x-onegate-tags": "x" * 70_000}, key=key)
    provider.default = Reply(text=ANSWER)
    wait_until(
        lambda: len(json.loads(run.gateway.cli("usage", "-o", "json"))) >= 3, what="usage rows"
    )
    for page in ("/metrics", "/readyz", "/healthz"):
        with urllib.request.urlopen(f"{run.gateway.url}{page}", timeout=10) as answer:
            run.bodies.append(answer.read())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The gateway, stopped, with all that it left behind."""
    directory = tmp_path_factory.mktemp("canaries")
    provider = FakeProvider(models=("m",))
    provider.default = Reply(text=ANSWER)
    environment = {"CANARY_KEY": PROVIDER_KEY}
    with running_in_thread(provider):
        config = CONFIG.format(url=provider.base_url)
        # The first start prints keys, this once and on purpose; the second one is what is judged.
        with running_gateway(directory, config, environment=environment) as first:
            credentials = first.credentials
        data = first.data_dir
        with running_gateway(directory, config, environment=environment) as gateway:
            gateway.credentials = credentials
            done = Run(gateway, provider)
            done.secrets = {
                "provider key": PROVIDER_KEY,
                "project key": gateway.api_key,
                "admin key": credentials["admin_key"],
                "unknown key": apikeys.mint(grant_pb2.KEY_KIND_PROJECT, SystemEntropy()),
                "prompt": PROMPT,
                "answer": ANSWER,
                "pepper": (data / "pepper").read_text().strip(),
                "operator token": (data / "run" / "operator.token").read_text().strip(),
            }
            work(done)
        yield done


def artifacts(run: Run) -> Iterator[tuple[str, bytes]]:
    """Every file of the data directory, the log of all processes, and every error and page."""
    for path in sorted(run.gateway.data_dir.rglob("*")):
        if path.is_file() and path.name not in HOLDERS:
            yield path.name, path.read_bytes()
    yield "log", run.gateway.log.read_bytes()
    for number, body in enumerate(run.bodies):
        yield f"answer {number}", body


def test_the_artifacts_are_there_to_be_searched(run: Run) -> None:
    found = dict(artifacts(run))
    names = set(found)
    assert {"auth.db", "usage.db", "log"} <= names
    assert any("journal" in str(path) for path in run.gateway.data_dir.rglob("*"))
    assert len(run.bodies) > 15
    for service in ("auth", "usage", "router", "edge"):
        assert service.encode() in found["log"]
    assert b"POST" in found["log"]
    # The search finds what is there: a key's public id is in the database of keys.
    listed = json.loads(json.dumps(run.gateway.credentials))
    assert listed["api_key"]
    assert b"key_" in found["auth.db"]


@pytest.mark.parametrize(
    "name",
    [
        "provider key",
        "project key",
        "admin key",
        "unknown key",
        "prompt",
        "answer",
        "pepper",
        "operator token",
    ],
)
def test_a_canary_is_in_no_artifact(run: Run, name: str) -> None:
    secret = run.secrets[name].encode()
    assert [where for where, content in artifacts(run) if secret in content] == []


def test_the_files_that_hold_a_secret_are_their_owners_alone(run: Run) -> None:
    held = [p for p in Path(run.gateway.data_dir).rglob("*") if p.name in HOLDERS]
    assert {path.name for path in held} == HOLDERS
    assert all(path.stat().st_mode & 0o077 == 0 for path in held)


def test_nothing_of_a_caller_but_its_body_reaches_a_provider(run: Run) -> None:
    gateways = [run.secrets[name] for name in ("project key", "admin key", "unknown key")]
    assert run.provider.chats
    for taken in run.provider.chats:
        head = json.dumps([taken.path, taken.headers])
        assert not any(secret in head for secret in gateways)
        assert taken.headers["authorization"] == f"Bearer {PROVIDER_KEY}"
        assert taken.headers["user-agent"] == "onegate"
