"""The access log: cheap, bounded, never in the way."""

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from runtime import access_log
from runtime.access_log import AccessLog, AccessRecord
from runtime.settings import TelemetrySettings
from tests.runtime.conditions import until

pytestmark = pytest.mark.anyio

RECORD = AccessRecord(
    request_id="req_1",
    method="POST",
    path="/v1/chat/completions",
    status=200,
    duration_ms=12.345,
    first_byte_ms=3.21,
    model="openai/gpt-4o",
    key_id="key_1",
    bytes_out=1024,
)


class FixedClock:
    """A clock that stands."""

    def now(self) -> datetime:
        return datetime(2026, 11, 21, 12, 0, 0, 123000, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError:
            continue


def _log(descriptor: int, **settings: object) -> AccessLog:
    return AccessLog("edge", TelemetrySettings(**settings), FixedClock(), descriptor)  # type: ignore[arg-type]


async def _read_lines(descriptor: int, count: int) -> list[str]:
    """Reads until ``count`` lines have come."""
    content = b""
    async with asyncio.timeout(5):
        while content.count(b"\n") < count:
            content += await asyncio.to_thread(os.read, descriptor, 65536)
    return content.decode().splitlines()


async def test_a_request_is_one_line_of_text(pipe: tuple[int, int]) -> None:
    log = _log(pipe[1])
    log.add(RECORD)
    (line,) = await _read_lines(pipe[0], 1)
    assert line == (
        "2026-11-21T12:00:00.123Z ACCESS  edge     POST /v1/chat/completions 200 12.3ms"
        " first=3.2ms 1024B id=req_1 model=openai/gpt-4o key=key_1"
    )
    await log.close()


async def test_a_request_is_one_object_in_json(pipe: tuple[int, int]) -> None:
    log = _log(pipe[1], log_format="json")
    log.add(RECORD)
    log.add(AccessRecord(request_id="r", method="GET", path="/", status=404, duration_ms=1))
    full, bare = [json.loads(line) for line in await _read_lines(pipe[0], 2)]
    assert full["model"] == "openai/gpt-4o"
    assert full["first_byte_ms"] == 3.21
    assert full["key_id"] == "key_1"
    assert bare == {
        "time": "2026-11-21T12:00:00.123Z",
        "level": "access",
        "service": "edge",
        "method": "GET",
        "path": "/",
        "status": 404,
        "duration_ms": 1,
        "bytes_out": 0,
        "request_id": "r",
    }
    await log.close()


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_the_callers_own_id_is_logged_as_one_word_without_secrets(
    pipe: tuple[int, int], log_format: str
) -> None:
    log = _log(pipe[1], log_format=log_format)
    theirs = "their id\n" + "sk-og-" + "a" * 46 + "x" * 1000
    log.add(AccessRecord(**{**_fields(RECORD), "client_request_id": theirs}))
    (line,) = await _read_lines(pipe[0], 1)
    assert "their\\x20id" in line.replace("\\\\", "\\")
    assert "aaaa" not in line
    assert len(line) < 600
    await log.close()


def _fields(record: AccessRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


async def test_lines_leave_within_the_interval_without_being_asked(pipe: tuple[int, int]) -> None:
    log = _log(pipe[1])
    for _ in range(3):
        log.add(RECORD)
    assert len(await _read_lines(pipe[0], 3)) == 3
    log.add(RECORD)
    assert len(await _read_lines(pipe[0], 1)) == 1
    await log.close()


async def test_a_full_batch_does_not_wait_for_the_interval(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "FLUSH_INTERVAL_S", 3600)
    monkeypatch.setattr(access_log, "FLUSH_BYTES", 500)
    log = _log(pipe[1])
    for _ in range(5):
        log.add(RECORD)
    assert len(await _read_lines(pipe[0], 4)) >= 4
    await log.close()


async def test_closing_writes_what_waits(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "FLUSH_INTERVAL_S", 3600)
    log = _log(pipe[1])
    for _ in range(100):
        log.add(RECORD)
    await log.close()
    assert len(await _read_lines(pipe[0], 100)) == 100
    assert log.dropped == 0


async def test_a_reader_that_does_not_read_costs_lines_not_calls(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "FLUSH_INTERVAL_S", 0.01)
    monkeypatch.setattr(access_log, "BUFFER_BYTES_MAX", 10_000)
    log = _log(pipe[1])
    sent = 0
    async with asyncio.timeout(10):
        while log.dropped == 0:
            for _ in range(500):
                log.add(RECORD)
            sent += 500
            await asyncio.sleep(0)
    content: list[bytes] = []
    reading = threading.Thread(
        target=lambda: content.extend(iter(lambda: os.read(pipe[0], 65536), b""))
    )
    reading.start()
    await until(lambda: not log._lines and log._written.is_set())
    log.add(RECORD)
    await log.close()
    os.close(pipe[1])
    await asyncio.to_thread(reading.join, 5)
    lines = b"".join(content).decode().splitlines()
    told = sum(int(line.rpartition("dropped=")[2]) for line in lines if "dropped=" in line)
    requests = sum("POST" in line for line in lines)
    assert told == log.dropped
    assert requests + log.dropped == sent + 1


async def test_lines_that_waited_for_a_slow_reader_leave_once_it_reads(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "FLUSH_INTERVAL_S", 0.01)
    monkeypatch.setattr(access_log, "FLUSH_BYTES", 200_000)
    log = _log(pipe[1])
    for _ in range(1000):
        log.add(RECORD)
    await until(lambda: not log._lines)
    log.add(RECORD)
    await until(lambda: log._timer is None)
    assert len(log._lines) == 1
    assert len(await _read_lines(pipe[0], 1001)) == 1001
    await log.close()


async def test_what_was_dropped_is_told_in_json_too(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "BUFFER_BYTES_MAX", 600)
    log = _log(pipe[1], log_format="json")
    for _ in range(5):
        log.add(RECORD)
    lines = [json.loads(line) for line in await _read_lines(pipe[0], 3)]
    assert lines[-1] == {
        "time": "2026-11-21T12:00:00.123Z",
        "level": "access",
        "service": "edge",
        "dropped": log.dropped,
    }
    await log.close()


async def test_closing_gives_up_on_a_reader_that_never_reads(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(access_log, "CLOSE_TIMEOUT_S", 0.1)
    log = _log(pipe[1])
    for _ in range(2000):
        log.add(RECORD)
    await log.close()
    assert "nobody reads the access log" in caplog.text


async def test_a_reader_that_went_away_costs_lines_only(
    pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    os.close(pipe[0])
    log = _log(pipe[1])
    log.add(RECORD)
    await log.close()
    assert log.dropped == 1
    assert "Broken pipe" in caplog.text


async def test_nothing_is_written_when_it_is_switched_off(pipe: tuple[int, int]) -> None:
    log = _log(pipe[1], access_log=False)
    log.add(RECORD)
    await log.close()
    os.close(pipe[1])
    assert await asyncio.to_thread(os.read, pipe[0], 100) == b""


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_callers_texts_are_redacted_and_stay_on_their_line(
    pipe: tuple[int, int], log_format: str
) -> None:
    log = _log(pipe[1], log_format=log_format)
    log.add(
        AccessRecord(
            request_id="r",
            method="GET",
            path="/v1/models/sk-canary-12345678 200 forged\nforged",
            status=404,
            duration_ms=1,
            model="sk-canary-12345678" * 100,
        )
    )
    await log.close()
    (line,) = await _read_lines(pipe[0], 1)
    assert "canary" not in line
    assert len(line) < 800


async def test_cleaned_texts_are_kept_up_to_a_bound(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "_CLEAN_TEXTS_MAX", 10)
    log = _log(pipe[1])
    for number in range(100):
        log.add(
            AccessRecord(request_id="r", method="GET", path=f"/{number}", status=404, duration_ms=1)
        )
    assert len(log._clean) <= 10
    await log.close()


async def test_a_closed_log_takes_no_more(pipe: tuple[int, int]) -> None:
    log = _log(pipe[1])
    await log.close()
    log.add(RECORD)
    assert log._lines == []
    assert log._timer is None
