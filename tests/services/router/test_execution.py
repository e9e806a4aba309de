"""Calls through a whole router: what comes out, what the provider saw, and what is on the bill."""

import asyncio
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runtime.config import ProviderSettings
from tests.fake_provider import INPUT_TOKENS, FakeProvider, Fault, Outcome, Reply
from tests.services.router.rig import (
    COST,
    OUTPUT_TOKENS,
    PRICED,
    TEXT,
    certainty,
    hello,
    native,
    outcome,
    provider,
    reason,
    running,
    settings_in,
)

pytestmark = pytest.mark.anyio


async def test_a_call_is_answered_metered_and_posted(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        said = await rig.chat(hello())
        assert (said.error, said.text, said.messages) == (None, TEXT, 1)
        kinds = [event.WhichOneof("event") for event in said.events]
        assert kinds == ["served", "native", "metered"]
        assert (said.served.model, said.served.attempts) == ("a/m", 1)
        assert said.served.upstream_us > 0
        assert said.metered.cost_nano_usd == COST
        assert json.loads(said.native)["usage"]["cost"] == COST / 1e9
        (record,) = await rig.records(1)
        assert (outcome(record), certainty(record), reason(record)) == ("COMPLETED", "REPORTED", "")
        assert (record.model, record.provider, record.key_id) == ("a/m", "a", "key_0")
        assert (record.tokens.input_tokens, record.tokens.output_tokens) == (
            INPUT_TOKENS,
            OUTPUT_TOKENS,
        )
        assert (record.cost_nano_usd, record.price_version) == (COST, "openai/m@1")
        assert record.duration_us > 0
        assert record.first_token_us > 0
        assert record.request_id
        assert fake.chats[0].json == hello("m")


async def test_a_stream_is_passed_on_as_it_comes(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        fake.default = Reply(chunk_delay_s=0.02)
        said = await rig.chat(hello(stream=True, stream_options={"include_usage": True}))
        assert (said.error, said.text) == (None, TEXT)
        assert said.messages >= OUTPUT_TOKENS
        kinds = [event.WhichOneof("event") for event in said.events]
        assert (kinds[0], kinds[-1]) == ("served", "metered")
        assert set(kinds[1:-1]) == {"native"}
        assert b"[DONE]" not in said.native
        last = json.loads(said.native.rstrip().rpartition(b"data: ")[2])
        assert last["usage"]["cost"] == COST / 1e9
        (record,) = await rig.records(1)
        assert (outcome(record), record.cost_nano_usd, record.stream) == ("COMPLETED", COST, True)
        assert 0 < record.first_token_us < record.duration_us
        assert record.finish_reason == "stop"


async def test_usage_is_metered_though_the_caller_does_not_ask_for_it(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        said = await rig.chat(hello(stream=True))
        assert b'"usage"' not in said.native
        assert said.metered.cost_nano_usd == COST
        assert fake.chats[0].json["stream_options"] == {"include_usage": True}


async def test_a_stream_without_the_usage_that_was_asked_for_says_so(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        body = hello(stream=True, stream_options={"include_usage": True})
        assert not (await rig.chat(body)).metered.usage_missing
        fake.default = Reply(usage=None)
        assert (await rig.chat(body)).metered.usage_missing
        assert not (await rig.chat(hello(stream=True))).metered.usage_missing
        assert not (await rig.chat(hello())).metered.usage_missing


async def test_what_arrives_together_travels_together(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        fake.default = Reply(text="word " * 500)
        said = await rig.chat(hello(stream=True))
        assert said.text == "word " * 500
        assert said.messages < 250


async def test_a_wire_that_does_not_speak_the_dialect_gets_the_typed_form(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        settings = settings_in(tmp_path, provider("a", fake, kind="deepseek"))
        async with running(settings, PRICED) as rig:
            whole = await rig.chat(hello())
            streamed = await rig.chat(hello(stream=True))
            assert (whole.typed_asked, whole.text, whole.metered.cost_nano_usd) == (1, TEXT, COST)
            assert (streamed.typed_asked, streamed.text) == (1, TEXT)
            assert {"answer"} < {event.WhichOneof("event") for event in whole.events}
            assert fake.chats[0].json["messages"] == [{"role": "user", "content": "Hi"}]


async def test_calls_share_connections_and_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        fake.default = Reply(first_byte_delay_s=0.2)
        loop = asyncio.get_running_loop()
        started = loop.time()
        answers = await asyncio.gather(*(rig.chat(hello()) for _ in range(40)))
        assert all(said.text == TEXT for said in answers)
        assert loop.time() - started < 2.0
        for _ in range(5):
            await rig.chat(hello(stream=True))
        assert fake.connections <= 40
        assert len(await rig.records(45)) == 45


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What a provider does, and what becomes of it."""

    name: str
    reply: Reply
    why: str
    status: int = 0
    sure: str = "REPORTED"


UNSURE = "UNCERTAIN"
FAILURES = [
    Failure(name="500", reply=Reply(status=500), why="upstream_error", status=500),
    Failure(name="503", reply=Reply(status=503), why="upstream_error", status=503),
    Failure(name="529", reply=Reply(status=529), why="upstream_error", status=529),
    Failure(name="429", reply=Reply(status=429), why="upstream_rate_limited", status=429),
    Failure(name="401", reply=Reply(status=401), why="upstream_auth", status=401),
    Failure(name="403", reply=Reply(status=403), why="upstream_auth", status=403),
    Failure(name="400", reply=Reply(status=400), why="invalid_request", status=400),
    Failure(name="422", reply=Reply(status=422), why="invalid_request", status=422),
    Failure(name="404", reply=Reply(status=404), why="upstream_error", status=404),
    Failure(name="redirect", reply=Reply(status=302), why="upstream_error", status=302),
    Failure(name="not JSON", reply=Reply(body=b"{nope"), why="upstream_protocol", sure=UNSURE),
    Failure(name="HTML", reply=Reply(body=b"<html>"), why="upstream_protocol", sure=UNSURE),
    Failure(name="204", reply=Reply(status=204, body=b""), why="upstream_protocol", sure=UNSURE),
    Failure(
        name="bomb",
        reply=Reply(body=gzip.compress(b"0" * (64 << 20)), headers=(("content-encoding", "gzip"),)),
        why="upstream_too_large",
        sure=UNSURE,
    ),
    Failure(
        name="too large", reply=Reply(body=b"x" * 3_000_000), why="upstream_too_large", sure=UNSURE
    ),
    Failure(name="hangs", reply=Reply(fault=Fault.HANG), why="upstream_timeout", sure=UNSURE),
    Failure(name="hangs up", reply=Reply(fault=Fault.CLOSE), why="upstream_error", sure=UNSURE),
    Failure(name="resets", reply=Reply(fault=Fault.RESET), why="upstream_error", sure=UNSURE),
]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.name)
async def test_a_failing_provider_is_told_and_billed_for_what_it_did(
    tmp_path: Path, failure: Failure, streamed: bool
) -> None:
    why = failure.why
    if streamed and why == "upstream_too_large":
        why = "upstream_protocol"  # a stream is bounded by event, not as a whole
    async with FakeProvider() as fake:
        fake.default = failure.reply
        settings = settings_in(
            tmp_path,
            provider("a", fake),
            attempts_max=1,
            first_byte_timeout_s=0.3,
            answer_timeout_s=0.3 if failure.reply.fault is Fault.HANG else 30.0,
            answer_bytes_max=2 << 20,
        )
        async with running(settings, PRICED) as rig:
            said = await rig.chat(hello(stream=streamed))
            assert (said.reason, said.events) == (why, [])
            assert said.error is not None
            assert said.error.upstream_status == failure.status
            (attempt,) = said.error.attempts
            assert (attempt.model, attempt.upstream_status) == ("a/m", failure.status)
            (record,) = await rig.records(1)
            assert (reason(record), outcome(record)) == (why, "FAILED")
            assert certainty(record) == failure.sure
            assert (record.cost_nano_usd == 0) == (failure.sure == "REPORTED")
            assert len(fake.chats) == 1


async def test_a_provider_that_cannot_be_reached_is_told_at_once_and_costs_nothing(
    tmp_path: Path,
) -> None:
    async with FakeProvider() as fake:
        closed = provider("a", fake)
    nowhere = ProviderSettings(name="b", kind="openai", base_url="http://no-such-host.invalid/v1")
    settings = settings_in(tmp_path, closed, nowhere)
    async with running(settings, PRICED) as rig:
        loop = asyncio.get_running_loop()
        attempts = 0
        for model in ("a/m", "b/m"):
            started = loop.time()
            said = await rig.chat(hello(model))
            assert said.reason == "upstream_unreachable"
            assert loop.time() - started < 2.5
            assert said.error is not None
            attempts += len(said.error.attempts)
        assert attempts in range(4, 7)
        # A name whose look-up fails slowly is asked once, one that fails at once three times.
        for record in await rig.records(attempts):
            assert (outcome(record), certainty(record)) == ("FAILED", "REPORTED")
            assert (record.cost_nano_usd, record.upstream_status) == (0, 0)


MID_STREAM: list[tuple[str, Reply, str]] = [
    ("cut", Reply(fault=Fault.CLOSE, fault_after=3), "upstream_protocol"),
    ("reset", Reply(fault=Fault.RESET, fault_after=3), "upstream_protocol"),
    ("ends early", Reply(fault=Fault.END, fault_after=3), "upstream_protocol"),
    ("error event", Reply(fault=Fault.ERROR_EVENT, fault_after=3), "upstream_error"),
    ("stalls", Reply(fault=Fault.HANG, fault_after=3), "upstream_timeout"),
]


@pytest.mark.parametrize(
    ("reply", "why"), [case[1:] for case in MID_STREAM], ids=[case[0] for case in MID_STREAM]
)
async def test_a_stream_that_breaks_off_ends_in_an_error_and_is_billed_for_what_came(
    tmp_path: Path, reply: Reply, why: str
) -> None:
    async with FakeProvider() as fake:
        fake.default = reply
        settings = settings_in(tmp_path, provider("a", fake), stall_timeout_s=0.3)
        async with running(settings, PRICED) as rig:
            said = await rig.chat(hello(stream=True))
            assert (said.reason, said.text) == (why, "Hello from ")
            assert said.served.model == "a/m"
            assert not any(event.HasField("metered") for event in said.events)
            (record,) = await rig.records(1)
            assert (outcome(record), certainty(record)) == ("TRUNCATED", "ESTIMATED")
            assert reason(record) == why
            assert record.tokens.output_tokens == 3  # eleven bytes
            assert len(fake.chats) == 1
            await fake.until(lambda: fake.chats[0].outcome is not Outcome.RUNNING)


MUCH = 10**12
USAGES: dict[str, dict[str, Any] | None] = {
    "missing": None,
    "zero": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    "absurd": {"prompt_tokens": MUCH, "completion_tokens": MUCH, "total_tokens": 2 * MUCH},
}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("usage", USAGES.values(), ids=USAGES)
async def test_a_missing_zero_or_absurd_usage_is_settled_truthfully(
    tmp_path: Path, usage: dict[str, Any] | None, streamed: bool
) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        fake.default = Reply(usage=usage)
        body = hello(stream=streamed)
        said = await rig.chat(body)
        assert said.text == TEXT
        (record,) = await rig.records(1)
        tokens = (record.tokens.input_tokens, record.tokens.output_tokens)
        if usage is None:
            assert tokens == (-(-len(json.dumps(body)) // 4), -(-len(TEXT) // 4))
            assert certainty(record) == "ESTIMATED"
        else:
            assert tokens == (usage["prompt_tokens"], usage["completion_tokens"])
            assert certainty(record) == "REPORTED"
        assert record.cost_nano_usd == tokens[0] + 10 * tokens[1]
        assert said.metered.tokens.estimated == (usage is None)


@pytest.mark.parametrize(
    ("reply", "streamed", "pieces"),
    [
        (Reply(fault=Fault.HANG), False, 0),
        (Reply(fault=Fault.HANG), True, 0),
        (Reply(fault=Fault.HANG, fault_after=1), True, 1),
        (Reply(fault=Fault.HANG, fault_after=3), True, 3),
    ],
    ids=["before the answer", "before the stream", "after the role", "in mid-stream"],
)
async def test_a_caller_who_leaves_stops_the_provider_and_pays_for_what_was_made(
    tmp_path: Path, reply: Reply, streamed: bool, pieces: int
) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        fake.default = reply
        call = rig.open(native(hello(stream=streamed)))
        if pieces == 3:
            await call.receive()
        await fake.until(lambda: bool(fake.chats) and fake.chats[0].pieces_sent == pieces)
        loop = asyncio.get_running_loop()
        left_at = loop.time()
        call.cancel()
        await fake.until(lambda: fake.chats[0].outcome is Outcome.ABANDONED)
        assert fake.chats[0].ended_at - left_at < 1.0
        (record,) = await rig.records(1)
        assert (outcome(record), certainty(record)) == ("CANCELLED", "ESTIMATED")
        assert record.tokens.output_tokens == (3 if pieces == 3 else 0)
        assert record.tokens.input_tokens > 0


async def test_a_caller_who_stops_reading_stops_the_provider_in_the_end(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        fake.default = Reply(text="word " * 100_000)
        settings = settings_in(tmp_path, provider("a", fake), stall_timeout_s=0.5)
        async with running(settings, PRICED) as rig:
            call = rig.open(native(hello(stream=True)))
            await fake.until(
                lambda: bool(fake.chats) and fake.chats[0].outcome is Outcome.ABANDONED, 10.0
            )
            assert fake.chats[0].bytes_sent < 12 << 20
            (record,) = await rig.records(1)
            assert (outcome(record), certainty(record)) == ("CANCELLED", "ESTIMATED")
            call.cancel()


async def test_a_call_may_not_outlast_its_deadline(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        fake.default = Reply(chunk_delay_s=0.05, text="word " * 1000)
        settings = settings_in(tmp_path, provider("a", fake), call_timeout_s=0.5)
        async with running(settings, PRICED) as rig:
            said = await rig.chat(hello(stream=True))
            assert said.reason == "deadline_exceeded"
            assert said.text.startswith("word word")
            (record,) = await rig.records(1)
            assert outcome(record) == "TRUNCATED"
            assert fake.chats[0].outcome is Outcome.ABANDONED
