"""The router judged by somebody else: llmock injects faults and says how its client took them.

The caller here does what an application does: it repeats a call that ended in an error that says it
may be repeated.
"""

import contextlib
import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.config import ProviderSettings
from tests.gateway import free_port, wait_until
from tests.services.router.rig import Rig, Said, hello, running, settings_in

pytestmark = pytest.mark.anyio
PAUSE_S = 0.3
"""What an application waits at least before it repeats a call."""


class Judge:
    """llmock's control interface."""

    def __init__(self, port: int) -> None:
        self.port = port

    def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/_llmock/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return dict(json.loads(answer.read()))

    def inject(self, *behaviors: dict[str, Any]) -> None:
        self._ask("POST", "reset")
        self._ask("POST", "scenario", {"behaviors": list(behaviors)})

    def verdict(self) -> dict[str, Any]:
        return self._ask("GET", "verdict")


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    port = free_port()
    log = tmp_path_factory.mktemp("llmock") / "log"
    command = [str(Path(sys.executable).parent / "llmock"), "serve", "--port", str(port)]
    # What is sent with no pause may all be sent before the client has seen the fault in it.
    command += ["--stream-chunk-delay-ms", "20"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        wait_until(lambda: listens(port), 30, "llmock's start")
        yield Judge(port)
    finally:
        process.terminate()
        process.wait(10)


@contextlib.asynccontextmanager
async def router(tmp_path: Path, judge: Judge) -> Any:
    upstream = ProviderSettings(
        name="a",
        kind="openai",
        base_url=f"http://127.0.0.1:{judge.port}/v1",
        free=True,
    )
    settings = settings_in(
        tmp_path,
        upstream,
        first_byte_timeout_s=1.0,
        answer_timeout_s=1.0,
        stall_timeout_s=0.5,
        retry_budget=1.0,
    )
    async with running(settings) as rig:
        yield rig


async def patient(rig: Rig, body: dict[str, Any]) -> list[Said]:
    """Calls until it is answered, or the error says not to; waits as told."""
    tries: list[Said] = []
    while len(tries) < 3:
        said = await rig.chat(body)
        tries.append(said)
        if said.error is None or not said.error.retryable:
            break
        await rig.pool.clock.sleep(max(said.error.retry_after_ms / 1000, PAUSE_S))
    return tries


def fail(status: int, **more: Any) -> dict[str, Any]:
    return {"type": "fail", "status": status, **more}


def broken(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": "stream_fault", "kind": kind, **more}


RECOVERED = {
    "500": fail(500),
    "503 twice": fail(503, times=2),
    "529": fail(529),
    "408": fail(408),
    "429": fail(429),
    "429 with Retry-After": fail(429, retry_after=1),
    "503 with Retry-After": fail(503, retry_after=1),
    "slow": {"type": "delay", "seconds": 0.5},
}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("fault", RECOVERED.values(), ids=RECOVERED)
async def test_faults_that_pass_are_outlived(
    tmp_path: Path, judge: Judge, fault: dict[str, Any], streamed: bool
) -> None:
    async with router(tmp_path, judge) as rig:
        judge.inject(fault)
        tries = await patient(rig, hello(stream=streamed))
        assert tries[-1].error is None
        assert tries[-1].text
        verdict = judge.verdict()
        assert (verdict["passed"], verdict["findings"]) == (True, [])
        assert verdict["faults_injected"] == fault.get("times", fault["type"] == "fail")


FINAL = [
    (400, "invalid_request"),
    (401, "upstream_auth"),
    (403, "upstream_auth"),
    (422, "invalid_request"),
]


@pytest.mark.parametrize(("status", "why"), FINAL)
async def test_faults_that_stay_are_not_asked_again(
    tmp_path: Path, judge: Judge, status: int, why: str
) -> None:
    async with router(tmp_path, judge) as rig:
        judge.inject(fail(status))
        tries = await patient(rig, hello())
        assert [said.reason for said in tries] == [why]
        verdict = judge.verdict()
        assert (verdict["passed"], verdict["attempts"], verdict["findings"]) == (True, 1, [])


async def test_an_outage_is_no_storm(tmp_path: Path, judge: Judge) -> None:
    async with router(tmp_path, judge) as rig:
        judge.inject(fail(500, times=50))
        tries = await patient(rig, hello())
        assert [said.reason for said in tries] == ["upstream_error"] * 3
        verdict = judge.verdict()
        assert verdict["passed"]
        assert verdict["attempts"] <= 9


@pytest.mark.parametrize("kind", ["disconnect", "truncate", "malformed"])
async def test_a_stream_that_breaks_before_content_is_asked_for_again_unseen(
    tmp_path: Path, judge: Judge, kind: str
) -> None:
    async with router(tmp_path, judge) as rig:
        judge.inject(broken(kind, after_chunks=0))
        (said,) = await patient(rig, hello(stream=True))
        assert (said.error, said.served.attempts) == (None, 2)
        verdict = judge.verdict()
        assert (verdict["passed"], verdict["findings"]) == (True, [])


@pytest.mark.parametrize("kind", ["disconnect", "truncate", "malformed", "stall"])
async def test_a_stream_that_breaks_in_the_middle_is_never_taken_for_whole(
    tmp_path: Path, judge: Judge, kind: str
) -> None:
    async with router(tmp_path, judge) as rig:
        judge.inject(broken(kind, after_chunks=3, stall_seconds=3))
        tries = await patient(rig, hello(stream=True))
        assert tries[0].reason == ("upstream_timeout" if kind == "stall" else "upstream_protocol")
        assert tries[0].text
        assert tries[-1].error is None
        verdict = judge.verdict()
        assert (verdict["passed"], verdict["findings"]) == (True, [])


async def test_a_first_token_that_never_comes_is_given_up(tmp_path: Path, judge: Judge) -> None:
    async with router(tmp_path, judge) as rig:
        judge.inject({"type": "slow_first_token", "seconds": 5})
        tries = await patient(rig, hello(stream=True))
        assert tries[0].reason == "upstream_timeout"
        assert tries[-1].error is None
        assert judge.verdict()["passed"]
