"""The edge as a process: it starts, serves, drains and ends."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

import edge.app
from runtime.config import EdgeSettings, Settings, TelemetrySettings
from tests.edge.stage import staged
from tests.edge.wire import Client
from tests.gateway import free_port

pytestmark = pytest.mark.anyio


async def page(port: int, path: str) -> tuple[int, dict[str, object]]:
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    await client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = await client.answer()
    await client.leave()
    return answer.status, json.loads(answer.body)


def settings(directory: Path, port: int) -> Settings:
    return Settings(
        edge=replace(
            EdgeSettings(port=port, drain_notice_s=0, drain_timeout_s=0),
            auth=f"unix:{directory}/auth.sock",
            routers=(f"unix:{directory}/router-0.sock",),
        ),
        telemetry=TelemetrySettings(access_log=False),
    )


async def test_the_process_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    async with staged(tmp_path):
        port, stop, is_ready = free_port(), asyncio.Event(), asyncio.Event()
        running = asyncio.create_task(
            edge.app.run(settings(tmp_path, port), stop=stop, ready=is_ready.set)
        )
        async with asyncio.timeout(10):
            await is_ready.wait()
            assert await page(port, "/readyz") == (
                200,
                {"status": "ok", "checks": {"router": "ok", "auth": "ok", "accepting": "ok"}},
            )
            stop.set()
            await running
        with pytest.raises(ConnectionRefusedError):
            await page(port, "/healthz")


async def test_the_process_starts_without_its_peers_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(edge.app, "START_TIMEOUT_S", 0.1)
    port, stop, is_ready = free_port(), asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(
        edge.app.run(settings(tmp_path, port), stop=stop, ready=is_ready.set)
    )
    async with asyncio.timeout(10):
        await is_ready.wait()
        assert "starting without: router, auth" in caplog.text
        assert (await page(port, "/healthz"))[0] == 200
        status, body = await page(port, "/readyz")
        assert status == 503
        assert body["status"] == "not ready"
        stop.set()
        await running


async def test_a_taken_port_ends_the_process_with_the_reason(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        with pytest.raises(OSError, match="address already in use"):
            await edge.app.run(
                settings(tmp_path, stage.port), stop=asyncio.Event(), ready=lambda: None
            )
