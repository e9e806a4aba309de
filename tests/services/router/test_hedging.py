"""Calls that are asked of a second deployment, too, when the first is slow, over real sockets."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from onegate.router.v1 import chat_pb2
from runtime.config import RouteSettings, RouteTarget
from services.router.routing.call_plan import hedge_after_s
from services.router.routing.observed import FIRSTS_MIN, Observed
from tests.fake_provider import FakeProvider, Fault, Outcome, Reply, Taken
from tests.services.router.rig import (
    PRICED,
    TEXT,
    Rig,
    hello,
    outcome,
    provider,
    reason,
    running,
    settings_in,
    until,
)

pytestmark = pytest.mark.anyio

TO = (RouteTarget(model="a/m"), RouteTarget(model="b/m", priority=1))
SILENT = Reply(fault=Fault.HANG)
BUSY = Reply(status=429, headers=(("retry-after", "30"),))


def hedging(**fields: Any) -> RouteSettings:
    return RouteSettings(name="r", to=TO, **{"hedge": True, "hedge_after_s": 0.1, **fields})


@asynccontextmanager
async def two(
    directory: Path, route: RouteSettings, **fields: Any
) -> AsyncIterator[tuple[Rig, FakeProvider, FakeProvider]]:
    """A router, and two providers behind the route."""
    async with FakeProvider() as a, FakeProvider() as b:
        settings = settings_in(
            directory, provider("a", a), provider("b", b), routes=(route,), **fields
        )
        async with running(settings, PRICED) as rig:
            yield rig, a, b


@pytest.mark.parametrize("stream", [True, False])
async def test_the_first_to_begin_is_seen_and_the_other_is_ended_and_accounted(
    tmp_path: Path, stream: bool
) -> None:
    async with two(tmp_path, hedging()) as (rig, a, b):
        a.script(SILENT)
        said = await rig.chat(hello("r", stream=stream))
        assert (said.error, said.text) == (None, TEXT)
        assert (said.served.model, said.served.attempts) == ("b/m", 2)
        await a.until(lambda: a.chats[0].outcome is Outcome.ABANDONED)
        lost, won = sorted(await rig.records(2), key=lambda record: record.attempt_number)
        assert (lost.model, outcome(lost), reason(lost)) == ("a/m", "CANCELLED", "cancelled")
        assert (won.model, outcome(won)) == ("b/m", "COMPLETED")
        assert [lost.attempt_number, won.attempt_number] == [1, 2]
        assert lost.request_id == won.request_id
        assert len(b.chats) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_the_first_attempt_may_still_be_the_quicker_one(tmp_path: Path, stream: bool) -> None:
    async with two(tmp_path, hedging()) as (rig, a, b):
        a.script(Reply(first_byte_delay_s=0.4))
        b.script(SILENT)
        said = await rig.chat(hello("r", stream=stream))
        assert (said.error, said.text, said.served.model) == (None, TEXT, "a/m")
        won, lost = sorted(await rig.records(2), key=lambda record: record.attempt_number)
        assert [outcome(won), outcome(lost)] == ["COMPLETED", "CANCELLED"]
        await b.until(lambda: b.chats[0].outcome is Outcome.ABANDONED)


async def test_a_quick_call_is_made_once(tmp_path: Path) -> None:
    async with two(tmp_path, hedging(hedge_after_s=20.0)) as (rig, _, b):
        for stream in (True, False):
            assert (await rig.chat(hello("r", stream=stream))).served.model == "a/m"
        assert b.chats == []


async def test_a_stream_that_has_begun_in_time_is_not_asked_for_twice(tmp_path: Path) -> None:
    async with two(tmp_path, hedging(hedge_after_s=0.3)) as (rig, a, b):
        a.script(Reply(chunk_delay_s=0.2))
        assert (await rig.chat(hello("r", stream=True))).text == TEXT
        assert b.chats == []


@pytest.mark.parametrize("stream", [True, False])
async def test_what_one_fails_at_the_other_still_does(tmp_path: Path, stream: bool) -> None:
    async with two(tmp_path, hedging()) as (rig, a, b):
        b.script(BUSY)
        a.script(Reply(first_byte_delay_s=0.4))
        assert (await rig.chat(hello("r", stream=stream))).served.model == "a/m"
        # The failure of the one that lost is learned from as any other.
        said = await rig.chat(hello("b/m"))
        assert said.reason == "upstream_rate_limited"
        assert len(b.chats) == 1
        a.script(Reply(status=500, first_byte_delay_s=0.4))
        b.script()
        await rig.records(2)


async def test_when_both_fail_the_call_fails_and_both_are_accounted(tmp_path: Path) -> None:
    async with two(tmp_path, hedging(), attempts_max=2) as (rig, a, b):
        a.script(Reply(status=500, first_byte_delay_s=0.4))
        b.script(Reply(status=503))
        said = await rig.chat(hello("r", stream=True))
        assert said.reason == "upstream_error"
        assert said.error is not None
        assert sorted(one.model for one in said.error.attempts) == ["a/m", "b/m"]
        assert [outcome(r) for r in await rig.records(2)] == ["FAILED", "FAILED"]


async def test_a_caller_that_leaves_ends_both(tmp_path: Path) -> None:
    async with two(tmp_path, hedging()) as (rig, a, b):
        a.script(SILENT)
        b.script(SILENT)
        asking = asyncio.create_task(rig.chat(hello("r", stream=True)))
        await b.until(lambda: len(b.chats) == 1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await a.until(lambda: a.chats[0].outcome is Outcome.ABANDONED)
        await b.until(lambda: b.chats[0].outcome is Outcome.ABANDONED)
        assert [outcome(r) for r in await rig.records(2)] == ["CANCELLED", "CANCELLED"]


async def test_both_are_ended_at_the_call_s_own_deadline(tmp_path: Path) -> None:
    async with two(tmp_path, hedging(), call_timeout_s=0.5) as (rig, a, b):
        a.script(SILENT)
        b.script(SILENT)
        said = await rig.chat(hello("r", stream=True))
        assert said.reason == "deadline_exceeded"
        assert len(await rig.records(2)) == 2


async def test_no_more_calls_are_made_twice_than_the_retry_budget_allows(tmp_path: Path) -> None:
    async with two(tmp_path, hedging(hedge_after_s=0.01), retry_budget=0.0) as (rig, a, b):
        a.default = Reply(first_byte_delay_s=0.2)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await asyncio.gather(*(rig.chat(hello("r")) for _ in range(40)))
        assert 3 <= len(b.chats) <= 3 + 3 * (loop.time() - began_s)


async def test_a_caller_that_wants_no_fallback_gets_no_second_attempt(tmp_path: Path) -> None:
    async with two(tmp_path, hedging()) as (rig, a, b):
        a.script(Reply(first_byte_delay_s=0.4))
        alone = chat_pb2.RoutingPreferences(allow_fallbacks=False)
        assert (await rig.chat(hello("r"), routing=alone)).served.model == "a/m"
        assert b.chats == []


async def test_nobody_is_asked_twice_before_it_is_known_what_is_slow(tmp_path: Path) -> None:
    async with two(tmp_path, hedging(hedge_after_s=0.0)) as (rig, a, b):
        for _ in range(FIRSTS_MIN):
            assert (await rig.chat(hello("r", stream=True))).served.model == "a/m"
        assert b.chats == []
        a.script(SILENT)
        assert (await rig.chat(hello("r", stream=True))).served.model == "b/m"


def after_s(observed: Observed, *, stream: bool = True, **fields: Any) -> float:
    given = {"hedge_after_s": 0.0, **fields}
    return hedge_after_s(hedging(**given), observed, "a/m", stream=stream)


def test_slow_is_what_one_call_of_twenty_exceeds() -> None:
    observed = Observed()
    assert after_s(observed) == 0.0
    for number in range(FIRSTS_MIN):
        assert after_s(observed) == 0.0
        observed.of("a/m").sampled((number * 7 % FIRSTS_MIN) / 100, stream=True)
    assert after_s(observed) == 0.19
    # The latest hundred count.
    for _ in range(100):
        observed.of("a/m").sampled(0.5, stream=True)
    assert after_s(observed) == 0.5
    # How long answers in one piece take says nothing of streams, nor they of those.
    assert after_s(observed, stream=False) == 0.0
    assert after_s(observed, hedge_after_s=2.0) == 2.0
    assert after_s(observed, hedge=False) == 0.0


def _accounted(rig: Rig, a: FakeProvider, b: FakeProvider, done: int) -> bool:
    """Whether there is a row for every call that a provider has taken, and that went well."""
    seen = Counter(record.model for record in rig.usage.records.values())
    well = sum(outcome(record) == "COMPLETED" for record in rig.usage.records.values())
    return well >= done and seen["a/m"] >= len(a.chats) and seen["b/m"] >= len(b.chats)


async def test_nothing_is_unaccounted_whatever_both_do(tmp_path: Path) -> None:
    dice = random.Random(3)
    async with two(tmp_path, hedging(hedge_after_s=0.05), retry_budget=1.0) as (rig, a, b):

        def choose(_: Taken) -> Reply:
            fate = dice.random()
            if fate < 0.2:
                return Reply(status=dice.choice((500, 503, 429)))
            if fate < 0.3:
                return Reply(fault=Fault.CLOSE, fault_after=dice.choice((0, 1, 3)))
            return Reply(first_byte_delay_s=dice.choice((0.0, 0.04, 0.05, 0.06, 0.2)))

        a.choose = b.choose = choose
        slots = asyncio.Semaphore(16)

        async def one(number: int) -> bool:
            async with slots:
                context = chat_pb2.CallContext(request_id=f"req-{number}")
                said = await rig.chat(hello("r", stream=number % 2 == 0), context=context)
                return said.error is None and said.text == TEXT

        done = await asyncio.gather(*(one(number) for number in range(200)))
        assert sum(done) > 150
        await until(lambda: _accounted(rig, a, b, sum(done)), 20)
        records = list(rig.usage.records.values())
        seen = Counter(record.model for record in records)
        # Who was ended while it was still connecting has a row, and was never heard of there.
        unsent = (seen["a/m"] - len(a.chats)) + (seen["b/m"] - len(b.chats))
        assert 0 <= unsent <= sum(outcome(record) == "CANCELLED" for record in records)
        numbers = Counter((record.request_id, record.attempt_number) for record in records)
        assert set(numbers.values()) == {1}
        # What was answered whole is on a row with the provider's own figures.
        whole = [one for one in (*a.chats, *b.chats) if one.outcome is Outcome.COMPLETED]
        ids = {record.upstream_request_id for record in records if outcome(record) == "COMPLETED"}
        assert len(ids) <= len(whole)
