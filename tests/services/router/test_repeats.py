"""Calls with an idempotency key through whole routers, over a store of answers that they share."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from onegate.auth.v1 import grant_pb2
from onegate.router.v1 import chat_pb2, chat_service_pb2
from onegate.usage.v1 import idempotency_service_pb2 as pb
from runtime import apikeys
from runtime.clock import SystemClock
from runtime.metrics import Metrics
from runtime.sql import Database, open_database, unix_micros
from services.router import server
from services.router.idempotency.answer_seal import AnswerSeal
from services.usage.idempotency.idempotency_service import IdempotencyService
from services.usage.idempotency.idempotency_store import (
    CHUNKS,
    CLAIMS,
    MIGRATIONS,
    IdempotencyStore,
)
from tests.fake_provider import FakeProvider, Outcome, Reply
from tests.services.router.rig import (
    PRICED,
    TEXT,
    Rig,
    Said,
    hello,
    native,
    outcome,
    provider,
    running,
    settings_in,
    until,
)

pytestmark = pytest.mark.anyio

STREAM = hello(stream=True, stream_options={"include_usage": True})


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened, clock = open_database(f"sqlite://{tmp_path}/answers.db"), SystemClock()
    await opened.migrate("usage_idempotency", MIGRATIONS, now=clock.now())
    yield opened
    await opened.close()


@pytest.fixture
def store(database: Database) -> IdempotencyStore:
    clock = SystemClock()
    return IdempotencyStore(database, lambda _: unix_micros(clock.now()))


@pytest.fixture
def answers(store: IdempotencyStore) -> IdempotencyService:
    return IdempotencyService(store, SystemClock(), Metrics("usage"))


async def once(rig: Rig, body: dict[str, Any], key: str = "k", **fields: Any) -> Said:
    """A call with an idempotency key; ``fields`` are its context's."""
    context = chat_pb2.CallContext(idempotency_key=key, **fields)
    return await rig.chat(body, context=context)


def content(said: Said) -> list[bytes]:
    """What the caller's answer is made of, but for who served."""
    return [e.SerializeToString() for e in said.events if not e.HasField("served")]


@pytest.mark.parametrize("kind", ["openai", "deepseek"], ids=["native", "typed"])
@pytest.mark.parametrize("body", [hello(), STREAM], ids=["plain", "stream"])
async def test_a_retry_gets_the_first_answer_and_calls_nobody(
    tmp_path: Path, answers: IdempotencyService, body: dict[str, Any], kind: str
) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake, kind)), PRICED, answers) as rig,
    ):
        first = await once(rig, body, request_id="req_1")
        again = await once(rig, body, request_id="req_2")
        assert (first.error, first.text) == (None, TEXT)
        assert (again.error, content(again)) == (None, content(first))
        assert not first.served.repetition.replayed
        repetition = again.served.repetition
        assert (repetition.replayed, repetition.request_id) == (True, "req_1")
        assert repetition.created_unix_s == first.served.repetition.created_unix_s
        assert (again.served.attempts, again.served.upstream_us) == (0, 0)
        assert again.served.model == first.served.model
        assert len(fake.chats) == 1
        (record,) = await rig.records(1)
        assert record.request_id == "req_1"


async def test_the_key_may_come_in_the_metadata(
    tmp_path: Path, answers: IdempotencyService
) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED, answers) as rig,
    ):
        replayed = []
        for _ in range(2):
            metadata = {"authorization": f"Bearer {rig.key}", "idempotency-key": "m"}
            payload = native(hello()).SerializeToString()
            call = rig.pool.call(server.CHAT_METHOD, payload, metadata=metadata, timeout_s=30.0)
            raw = await call.receive()
            assert raw is not None
            events = chat_service_pb2.ChatResponse.FromString(raw).events
            replayed.append(events[0].served.repetition.replayed)
            assert await call.receive() is None
        assert replayed == [False, True]
        assert len(fake.chats) == 1


async def test_a_retry_uses_no_rate_limit_up(tmp_path: Path, answers: IdempotencyService) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED, answers) as rig,
    ):
        rate = grant_pb2.RateLimit(meter=grant_pb2.RATE_METER_REQUESTS, amount=1, window_s=86_400)
        rig.key = rig.add_key(rate_limits=[rate])
        said = [await once(rig, hello()) for _ in range(3)]
        assert [one.reason for one in said] == ["", "", ""]
        assert (await once(rig, hello(), "another")).reason == "rate_limit_exceeded"
        assert len(fake.chats) == 1


async def test_another_router_follows_the_first_call_while_it_runs(
    tmp_path: Path, answers: IdempotencyService
) -> None:
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        place.mkdir()
    async with (
        FakeProvider() as fake,
        running(settings_in(places[0], provider("a", fake)), PRICED, answers) as one,
        running(
            settings_in(places[1], provider("a", fake), name="router-1"), PRICED, answers
        ) as two,
    ):
        two.auth.grants.update(one.auth.grants)
        two.key = one.key
        fake.default = Reply(chunk_delay_s=0.2)
        first = asyncio.create_task(once(one, STREAM))
        await fake.until(lambda: len(fake.chats) == 1 and fake.chats[0].pieces_sent > 1)
        others = await asyncio.gather(*(once(two, STREAM) for _ in range(10)))
        said = await first
        assert [other.reason for other in others] == [""] * 10
        assert {b"".join(content(other)) for other in others} == {b"".join(content(said))}
        assert all(other.served.repetition.replayed for other in others)
        assert len(fake.chats) == 1


async def test_the_first_call_runs_on_when_its_caller_leaves(
    tmp_path: Path, answers: IdempotencyService
) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED, answers) as rig,
    ):
        fake.default = Reply(chunk_delay_s=0.1)
        context = chat_pb2.CallContext(idempotency_key="k")
        call = rig.open(native(STREAM, context=context))
        await call.receive()
        call.cancel()
        again = await once(rig, STREAM)
        assert (again.error, again.text) == (None, TEXT)
        await fake.until(lambda: fake.chats[0].outcome is not Outcome.RUNNING)
        assert [taken.outcome for taken in fake.chats] == [Outcome.COMPLETED]
        (record,) = await rig.records(1)
        assert outcome(record) == "COMPLETED"


async def test_another_body_is_refused_while_the_first_runs_and_after(
    tmp_path: Path, answers: IdempotencyService
) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED, answers) as rig,
    ):
        fake.default = Reply(first_byte_delay_s=0.3)
        first = asyncio.create_task(once(rig, hello()))
        await fake.until(lambda: len(fake.chats) == 1)
        assert (await once(rig, hello(temperature=1))).reason == "idempotency_mismatch"
        assert (await first).reason == ""
        assert (await once(rig, hello(temperature=1))).reason == "idempotency_mismatch"
        assert len(fake.chats) == 1


async def test_another_api_key_makes_its_own_call(
    tmp_path: Path, answers: IdempotencyService
) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED, answers) as rig,
    ):
        await once(rig, hello())
        rig.key = rig.add_key()
        assert not (await once(rig, hello())).served.repetition.replayed
        assert len(fake.chats) == 2


async def test_a_key_gets_no_answer_where_it_does_not_work(
    tmp_path: Path, answers: IdempotencyService
) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED, answers) as rig,
    ):
        rig.key = rig.add_key(networks_allowed=["10.0.0.0/8"])
        assert (await once(rig, hello(), client_address="10.1.2.3")).reason == ""
        refused = await once(rig, hello(), client_address="192.0.2.1")
        assert refused.reason == "address_forbidden"


async def test_a_failed_call_is_not_kept(tmp_path: Path, answers: IdempotencyService) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED, answers) as rig,
    ):
        fake.script(Reply(status=400, body=b'{"error": {"message": "no"}}'))
        assert (await once(rig, hello())).reason == "invalid_request"
        again = await once(rig, hello())
        assert (again.reason, again.served.repetition.replayed) == ("", False)
        assert len(fake.chats) == 2


@pytest.mark.parametrize("body", [hello(), STREAM], ids=["plain", "stream"])
async def test_an_answer_too_large_to_be_kept_is_given_once(
    tmp_path: Path, answers: IdempotencyService, database: Database, body: dict[str, Any]
) -> None:
    async with FakeProvider() as fake:
        settings = settings_in(tmp_path, provider("a", fake), idempotency_answer_bytes_max=1024)
        async with running(settings, PRICED, answers) as rig:
            fake.default = Reply(text="word " * 1000)
            first = await once(rig, body)
            assert (first.reason, first.text) == ("", "word " * 1000)
            (kept,) = await database.read(lambda c: c.execute(CLAIMS.select()).all())
            assert kept.state == pb.CLAIM_STATE_TOO_LARGE
            assert (await once(rig, body)).reason == "conflict"
            assert len(fake.chats) == 1


async def test_without_usage_a_call_with_a_key_is_refused_and_others_are_served(
    tmp_path: Path,
) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        refused = await once(rig, hello())
        assert refused.reason == "store_unavailable"
        assert refused.error is not None
        assert refused.error.retry_after_ms > 0
        assert fake.chats == []
        assert (await rig.chat(hello())).reason == ""


async def test_switched_off_a_key_means_nothing(
    tmp_path: Path, answers: IdempotencyService
) -> None:
    async with FakeProvider() as fake:
        settings = settings_in(tmp_path, provider("a", fake), idempotency_window_s=0.0)
        async with running(settings, PRICED, answers) as rig:
            for _ in range(2):
                assert not (await once(rig, hello())).served.HasField("repetition")
            assert len(fake.chats) == 2


@pytest.mark.parametrize("key", ["k" * 256])
async def test_a_key_that_is_too_long_is_refused(
    tmp_path: Path, answers: IdempotencyService, key: str
) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED, answers) as rig,
    ):
        assert (await once(rig, hello(), key)).reason == "invalid_request"
        assert fake.chats == []


async def test_a_dead_routers_call_is_not_made_again_before_its_journal_is_settled(
    tmp_path: Path, answers: IdempotencyService, store: IdempotencyStore
) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED, answers) as rig,
    ):
        seal = AnswerSeal(rig.key, "k")
        claimed = pb.ClaimAnswerRequest(
            id=seal.id,
            body=seal.body(native(hello())),
            claim_id="0" * 36,
            request_id="req_dead",
            owner="router-9",
            life="0" * 36,
            lease_ms=1,
            window_ms=60_000,
        )
        await store.claim(claimed)
        refused = await once(rig, hello())
        assert refused.reason == "router_unavailable"
        assert fake.chats == []
        await store.keep(
            pb.KeepClaimsRequest(owner="router-9", life="1" * 36, lease_ms=1, former_settled=True)
        )
        again = await once(rig, hello())
        assert (again.reason, again.served.repetition.replayed) == ("", False)


async def test_what_is_kept_can_be_read_by_nobody_else(
    tmp_path: Path, answers: IdempotencyService, database: Database
) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED, answers) as rig,
    ):
        fake.default = Reply(text="confidential " * 50)
        await once(rig, STREAM, "order-17")
        chunks = await database.read(lambda c: list(c.execute(CHUNKS.select()).all()))
        assert chunks
        files = await asyncio.to_thread(
            lambda: b"".join(path.read_bytes() for path in tmp_path.glob("answers.db*"))
        )
        for secret in (b"confidential", b"order-17", rig.key.encode()):
            assert secret not in files
        assert apikeys.digest(rig.key) not in files


async def test_calls_that_nobody_waits_for_end_with_the_router(
    tmp_path: Path, answers: IdempotencyService
) -> None:
    async with FakeProvider() as fake:
        settings = settings_in(tmp_path, provider("a", fake), drain_timeout_s=0.5)
        async with running(settings, PRICED, answers) as rig:
            fake.default = Reply(text="word " * 500, chunk_delay_s=0.1)
            call = rig.open(native(STREAM, context=chat_pb2.CallContext(idempotency_key="k")))
            await call.receive()
            call.cancel()
            rig.stop.set()
            assert rig.running is not None
            await rig.running
            await until(lambda: fake.chats[0].outcome is Outcome.ABANDONED)
            (record,) = await rig.records(1)
            assert outcome(record) in ("CANCELLED", "INTERRUPTED")
