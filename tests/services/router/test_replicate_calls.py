"""Replicate through a whole router, over a socket: predictions that are waited for, asked, streamed
and, when nobody waits any more, cancelled.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from onegate.common.v1 import error_pb2
from runtime.clock import SystemClock
from runtime.config import ProviderSettings, Settings
from services.router.providers.replicate import WIRE
from services.router.upstream.client import Upstream, target_of
from services.router.upstream.egress import origin_of
from services.router.upstream.jobs import JobPlace, Jobs
from tests.services.router.rig import (
    Rig,
    hello,
    native,
    outcome,
    reason,
    running,
    settings_in,
    sheet,
    typed,
    until,
)

pytestmark = pytest.mark.anyio

MODEL = "r/meta/llama"
EVENTS = (
    "event: output\ndata: Hei \n\n",
    "event: output\ndata: på deg.\n\n",
    "event: done\ndata: {}\n\n",
)
METRICS = {"input_token_count": 5, "output_token_count": 3, "predict_time": 0.5}
Json = dict[str, Any]


@dataclass
class FakeReplicate:
    """Runs predictions: as many questions as ``asks`` until one is over."""

    asks: int = 0
    status: str = "succeeded"
    stream: str | None = None
    """The stream's address; ``None`` for this server's own, empty for none."""
    events: tuple[str, ...] = EVENTS
    metrics: Json = field(default_factory=lambda: METRICS)
    hold: asyncio.Event | None = None
    """What the first answer waits for."""
    silent: bool = False
    """The stream stays open and says nothing more."""
    refuses: int = 0
    """How many questions are answered with status 503."""
    base_url: str = ""
    asked: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                if head.startswith("GET /collections/language-models "):
                    listed = json.dumps({"models": []}).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(listed))
                    writer.write(listed)
                    continue
                self.heads.append(head)
                self.asked.append(head.partition(" HTTP")[0])
                await self._answer(self.asked[-1], writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    async def _answer(self, asked: str, writer: asyncio.StreamWriter) -> None:
        if asked == "GET /files/s1?x=1":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
            writer.write(b"transfer-encoding: chunked\r\n\r\n")
            for event in self.events:
                raw = event.encode()
                writer.write(b"%x\r\n%s\r\n" % (len(raw), raw))
            if not self.silent:
                writer.write(b"0\r\n\r\n")
            return
        if asked.startswith("POST") and self.hold is not None and "cancel" not in asked:
            await self.hold.wait()
        if asked.startswith("GET") and self.refuses:
            self.refuses -= 1
            writer.write(b"HTTP/1.1 503 Away\r\ncontent-length: 0\r\n\r\n")
            return
        over = self.asks == 0
        self.asks -= not over
        url = f"{self.base_url}/files/s1?x=1" if self.stream is None else self.stream
        told = {
            "id": "p1",
            "status": self.status if over else "processing",
            "output": ["Hei ", "på deg."] if over else None,
            "error": "it broke" if self.status == "failed" else None,
            "metrics": self.metrics if over else {},
            "urls": {"stream": url, "cancel": "http://127.0.0.1:1/", "get": "http://127.0.0.1:1/"},
        }
        body = json.dumps(told).encode()
        writer.write(b"HTTP/1.1 201 Created\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

    def header(self, name: str) -> str:
        """A header of the call that began the prediction."""
        found = re.search(rf"\r\n{name}: ([^\r]*)", self.heads[0])
        return found[1] if found else ""


@asynccontextmanager
async def a_router(directory: Path, fake: FakeReplicate, **router: Any) -> AsyncIterator[Rig]:
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        priced = [sheet("replicate/meta/llama")]
        async with running(_settings(directory, fake, **router), priced) as rig:
            yield rig
    finally:
        server.close()


def _settings(directory: Path, fake: FakeReplicate, **router: Any) -> Settings:
    secret = directory / "token"
    secret.write_text("r8_canary")
    secret.chmod(0o600)
    configured = ProviderSettings(
        name="r",
        kind="replicate",
        base_url=fake.base_url,
        api_key_file=str(secret),
        models=("meta/llama", "acme/unpriced"),
    )
    return settings_in(directory, configured, **{"attempts_max": 1, **router})


CREATE = "POST /models/meta/llama/predictions"
STATE = "GET /predictions/p1"
CANCEL = "POST /predictions/p1/cancel"
STREAM = "GET /files/s1?x=1"


@pytest.mark.parametrize("asks", [0, 2])
async def test_an_answer_is_waited_for_and_then_asked_for(tmp_path: Path, asks: int) -> None:
    fake = FakeReplicate(asks=asks, refuses=min(asks, 1))
    async with a_router(tmp_path, fake) as rig:
        said = await rig.chat(hello(MODEL))
        assert said.error is None
        assert said.text == "Hei på deg."
        (record,) = await rig.records(1)
        assert (outcome(record), record.tokens.input_tokens) == ("COMPLETED", 5)
        assert said.metered.cost_nano_usd == 5 + 3 * 10
        assert fake.asked == [CREATE] + [STATE] * (asks and asks + 1)
        assert fake.header("prefer") == "wait=5"
        assert re.fullmatch(r"\d+s", fake.header("cancel-after"))
        assert fake.header("authorization") == "Bearer r8_canary"


async def test_a_stream_is_followed_and_its_price_asked_at_the_end(tmp_path: Path) -> None:
    fake = FakeReplicate(asks=1)
    async with a_router(tmp_path, fake) as rig:
        said = await rig.chat(hello(MODEL, stream=True))
        assert said.error is None
        assert said.text == "Hei på deg."
        assert (said.metered.tokens.input_tokens, said.metered.tokens.output_tokens) == (5, 3)
        assert fake.asked == [CREATE, STREAM, STATE]
        assert "authorization: Bearer r8_canary" in fake.heads[1]


@pytest.mark.parametrize("url", ["", "http://169.254.169.254/x", "file:///etc/passwd", "x y"])
async def test_a_stream_that_is_nowhere_is_asked_for_instead(tmp_path: Path, url: str) -> None:
    fake = FakeReplicate(asks=1, stream=url)
    async with a_router(tmp_path, fake) as rig:
        said = await rig.chat(hello(MODEL, stream=True))
        assert (said.error, said.text) == (None, "Hei på deg.")
        assert fake.asked == [CREATE, STATE]


async def test_the_token_is_never_sent_to_a_stream_elsewhere(tmp_path: Path) -> None:
    fake, thief = FakeReplicate(asks=1), FakeReplicate()
    server = await asyncio.start_server(thief.serve, "127.0.0.1", 0)
    async with server, a_router(tmp_path, fake) as rig:
        port = server.sockets[0].getsockname()[1]
        fake.stream = f"http://127.0.0.1:{port}/files/s1?x=1"
        said = await rig.chat(hello(MODEL, stream=True))
        assert (said.error, said.text) == (None, "Hei på deg.")
        assert fake.asked == [CREATE, STATE]
    assert thief.asked == []


async def test_a_stream_that_breaks_off_is_completed_from_the_prediction(tmp_path: Path) -> None:
    fake = FakeReplicate(asks=1, events=EVENTS[:1])
    async with a_router(tmp_path, fake) as rig:
        said = await rig.chat(hello(MODEL, stream=True))
        assert (said.error, said.text) == (None, "Hei på deg.")


async def test_a_prediction_without_token_counts_is_counted_here(tmp_path: Path) -> None:
    fake = FakeReplicate(metrics={"predict_time": 1.5})
    async with a_router(tmp_path, fake) as rig:
        said = await rig.chat(hello(MODEL))
        assert said.error is None
        assert said.metered.tokens.output_tokens > 0


async def test_a_failed_prediction_is_a_failed_call_and_not_cancelled(tmp_path: Path) -> None:
    fake = FakeReplicate(status="failed", asks=1)
    async with a_router(tmp_path, fake) as rig:
        said = await rig.chat(hello(MODEL))
        assert said.error is not None
        assert said.error.reason == error_pb2.ERROR_REASON_UPSTREAM_ERROR
        (record,) = await rig.records(1)
        assert reason(record) == "upstream_error"
    assert CANCEL not in fake.asked


async def test_a_prediction_that_cannot_be_asked_is_ended(tmp_path: Path) -> None:
    fake = FakeReplicate(asks=9, refuses=9)
    async with a_router(tmp_path, fake) as rig:
        said = await rig.chat(hello(MODEL))
        assert said.error is not None
        assert said.error.reason == error_pb2.ERROR_REASON_UPSTREAM_ERROR
        await until(lambda: fake.asked[-1] == CANCEL)


async def _leave(rig: Rig, fake: FakeReplicate, *, stream: bool, after: str) -> None:
    """Begins a call, and leaves once ``after`` was asked."""
    body = hello(MODEL, stream=stream)
    call = rig.open(native(body))
    assert await call.receive() is not None
    await call.send(typed(body).SerializeToString())
    await until(lambda: after in fake.asked)
    call.cancel()


@pytest.mark.parametrize(("stream", "after"), [(False, STATE), (True, STREAM)])
async def test_a_caller_who_leaves_has_the_prediction_cancelled(
    tmp_path: Path, after: str, *, stream: bool
) -> None:
    fake = FakeReplicate(asks=10_000, events=EVENTS[:1], silent=True)
    async with a_router(tmp_path, fake) as rig:
        await _leave(rig, fake, stream=stream, after=after)
        await until(lambda: CANCEL in fake.asked)
        (record,) = await rig.records(1)
        assert outcome(record) == "CANCELLED"
    assert fake.asked.count(CANCEL) == 1


async def test_a_caller_who_leaves_before_the_id_is_known_has_it_cancelled_too(
    tmp_path: Path,
) -> None:
    fake = FakeReplicate(asks=10_000, hold=asyncio.Event())
    async with a_router(tmp_path, fake) as rig:
        await _leave(rig, fake, stream=False, after=CREATE)
        await rig.records(1)
        assert CANCEL not in fake.asked
        assert fake.hold is not None
        fake.hold.set()
        await until(lambda: CANCEL in fake.asked)


async def test_a_deadline_cancels_the_prediction(tmp_path: Path) -> None:
    fake = FakeReplicate(asks=10_000)
    async with a_router(tmp_path, fake, answer_timeout_s=0.5) as rig:
        said = await rig.chat(hello(MODEL))
        assert said.error is not None
        assert said.error.reason == error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT
        await until(lambda: CANCEL in fake.asked)


async def test_a_router_that_stops_cancels_what_it_began(tmp_path: Path) -> None:
    fake = FakeReplicate(asks=10_000)
    async with a_router(tmp_path, fake, drain_timeout_s=0.2) as rig:
        body = hello(MODEL)
        call = rig.open(native(body))
        assert await call.receive() is not None
        await call.send(typed(body).SerializeToString())
        await until(lambda: STATE in fake.asked)
    assert fake.asked.count(CANCEL) == 1


async def test_whoever_closes_waits_until_jobs_are_ended() -> None:
    fake = FakeReplicate()
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    async with server:
        origin = origin_of(
            f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", private_allowed=True
        )
        upstream = Upstream(SystemClock(), connect_timeout_s=5.0)
        jobs = Jobs(upstream, SystemClock(), 1 << 20)
        place = JobPlace(target_of(origin, WIRE.authorize("r8_canary")), WIRE)
        jobs.end(place, WIRE.job(b'{"id": "p1", "status": "starting"}'))
        assert fake.asked == []
        await jobs.close()
        assert fake.asked == [CANCEL]
        upstream.close()


async def test_a_model_that_is_paid_by_time_is_not_callable_before_it_is_priced(
    tmp_path: Path,
) -> None:
    fake = FakeReplicate()
    async with a_router(tmp_path, fake) as rig:
        said = await rig.chat(hello("r/acme/unpriced"))
        assert said.error is not None
        assert said.error.reason == error_pb2.ERROR_REASON_MODEL_PRICE_UNKNOWN
        assert CREATE.replace("meta/llama", "acme/unpriced") not in fake.asked
