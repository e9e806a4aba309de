"""Metrics: right numbers, bounded labels, and a page that answers only what it must."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime import metrics as metrics_module
from runtime.metrics import DURATION_BUCKETS_S, Metrics, MetricsServer, serve_metrics
from tests.runtime.conditions import until


def _samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_every_instrument_is_named_after_its_service() -> None:
    metrics = Metrics("router")
    metrics.requests.labelled("chat", "200").add()
    metrics.durations.labelled("chat").observe(0.2)
    metrics.in_flight.add(3)
    metrics.in_flight.add(-1)
    metrics.attempts.labelled("groq", "completed").add()
    metrics.first_tokens.labelled("groq").observe(0.1)
    metrics.tokens.labelled("output").add(17)
    samples = _samples(metrics)
    assert samples["onegate_router_requests_total", (("endpoint", "chat"), ("status", "200"))] == 1
    assert samples["onegate_router_request_duration_seconds_count", (("endpoint", "chat"),)] == 1
    assert samples["onegate_router_in_flight", ()] == 2
    assert (
        samples["onegate_router_attempts_total", (("outcome", "completed"), ("provider", "groq"))]
        == 1
    )
    assert samples["onegate_router_time_to_first_token_seconds_sum", (("provider", "groq"),)] == 0.1
    assert samples["onegate_router_tokens_total", (("kind", "output"),)] == 17
    assert samples["process_resident_memory_bytes", ()] > 0


def test_processes_share_nothing() -> None:
    first, second = Metrics("edge"), Metrics("edge")
    first.in_flight.add()
    assert _samples(second)["onegate_edge_in_flight", ()] == 0


@pytest.mark.parametrize(
    ("duration_s", "bound"),
    [(0.0, "0.005"), (0.005, "0.005"), (0.0051, "0.01"), (600.0, "600.0"), (601.0, "+Inf")],
)
def test_a_duration_counts_from_its_bucket_on(duration_s: float, bound: str) -> None:
    metrics = Metrics("edge")
    metrics.durations.labelled("chat").observe(duration_s)
    name = "onegate_edge_request_duration_seconds_bucket"
    samples = _samples(metrics)
    bounds = [*(str(b) for b in DURATION_BUCKETS_S), "+Inf"]
    counts = [samples[name, (("endpoint", "chat"), ("le", b))] for b in bounds]
    assert counts == [0.0] * bounds.index(bound) + [1.0] * (len(bounds) - bounds.index(bound))


def test_a_series_is_found_again() -> None:
    metrics = Metrics("edge")
    assert metrics.requests.labelled("a", "200") is metrics.requests.labelled("a", "200")
    assert metrics.requests.labelled("a", "200") is not metrics.requests.labelled("a", "500")


def test_labels_cannot_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "SERIES_MAX", 3)
    metrics = Metrics("edge")
    for number in range(10):
        metrics.requests.labelled(str(number), "200").add()
    samples = _samples(metrics)
    found = {labels: v for (name, labels), v in samples.items() if name.endswith("requests_total")}
    assert len(found) == 4
    assert found[(("endpoint", "other"), ("status", "other"))] == 7


def test_a_wrong_number_of_labels_is_a_defect() -> None:
    with pytest.raises(ValueError, match="has the labels"):
        Metrics("edge").requests.labelled("chat")


def test_a_service_adds_instruments_of_its_own() -> None:
    metrics = Metrics("router")
    metrics.counter("retries", "Retries.", ("provider",)).labelled("groq").add(2)
    metrics.gauge("open_calls", "Calls.", ("provider",)).labelled("groq").add(5)
    metrics.reading("journal_bytes", "The journal's size.", lambda: 42.5)
    samples = _samples(metrics)
    assert samples["onegate_router_retries_total", (("provider", "groq"),)] == 2
    assert samples["onegate_router_open_calls", (("provider", "groq"),)] == 5
    assert samples["onegate_router_journal_bytes", ()] == 42.5


def test_a_reading_is_not_asked_before_the_page_is() -> None:
    metrics = Metrics("router")
    asked: list[int] = []

    def read() -> float:
        asked.append(1)
        return 1.0

    metrics.reading("x", "x", read)
    assert asked == []
    metrics.render()
    assert asked == [1]


@pytest.fixture
async def port() -> AsyncIterator[int]:
    metrics = Metrics("auth")
    metrics.requests.labelled("get_grant", "ok").add()
    server = MetricsServer(metrics)
    yield await server.start("127.0.0.1:0")
    await server.close()


async def _asked(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /metrics HTTP/1.1", 200),
        (b"GET /metrics?x=1 HTTP/1.0", 200),
        (b"GET / HTTP/1.1", 404),
        (b"GET /metrics/x HTTP/1.1", 404),
        (b"POST /metrics HTTP/1.1", 405),
        (b"GET /metrics", 400),
        (b"GET /metrics HTTP/2", 400),
        (b"\x16\x03\x01 tls hello", 400),
    ],
)
async def test_only_get_metrics_is_answered(port: int, request_line: bytes, status: int) -> None:
    answer = await _asked(port, request_line + b"\r\nHost: x\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"Connection: close" in head
    assert (b"onegate_auth_requests_total" in body) == (status == 200)


@pytest.mark.anyio
async def test_a_long_head_is_refused(port: int) -> None:
    answer = await _asked(port, b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 20_000)
    assert answer.startswith(b"HTTP/1.1 431 ")


@pytest.mark.anyio
async def test_a_slow_head_is_not_waited_for(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "READ_TIMEOUT_S", 0.1)
    answer = await _asked(port, b"GET /metrics")
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.anyio
async def test_a_caller_that_leaves_is_forgotten(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /met")
    writer.close()
    await writer.wait_closed()
    assert (await _asked(port, b"GET /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.anyio
async def test_too_many_callers_at_once_are_refused(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "CONNECTIONS_MAX", 2)
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
    assert (await _asked(port, b"")).startswith(b"HTTP/1.1 503 ")
    for _, writer in idle:
        writer.close()


@pytest.mark.anyio
async def test_a_page_that_nobody_reads_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "READ_TIMEOUT_S", 0.1)
    monkeypatch.setattr(metrics_module, "WRITE_TIMEOUT_S", 0.1)
    metrics = Metrics("auth")
    monkeypatch.setattr(metrics, "render", lambda: b"x" * 50_000_000)
    server = MetricsServer(metrics)
    port = await server.start("127.0.0.1:0")
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    await until(lambda: server._connections)
    await until(lambda: not server._connections)
    writer.transport.abort()
    await server.close()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    except ConnectionError:
        return b""


@pytest.mark.anyio
async def test_closing_cuts_what_is_under_way() -> None:
    server = await serve_metrics("[::1]:0", Metrics("auth"))
    assert server._server is not None
    port = server._server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("::1", port)
    await until(lambda: server._connections)
    await server.close()
    assert await _rest(reader) == b""
    writer.close()


@pytest.mark.anyio
async def test_a_port_that_is_taken_is_said(port: int) -> None:
    with pytest.raises(OSError, match="in use"):
        await serve_metrics(f"127.0.0.1:{port}", Metrics("auth"))
    await MetricsServer(Metrics("auth")).close()
