"""Copies of calls to another deployment, of which their callers notice nothing: real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from onegate.auth.v1 import data_policy_pb2, grant_pb2
from onegate.router.v1 import chat_pb2
from runtime.config import RouteSettings, RouteTarget
from services.router.mirroring import MIRRORS_MAX, TAG, copy_of, is_mirrored
from tests.fake_provider import FakeProvider, Fault, Outcome, Reply
from tests.services.router.rig import (
    PRICED,
    TEXT,
    Rig,
    hello,
    outcome,
    provider,
    running,
    settings_in,
    until,
)

pytestmark = pytest.mark.anyio

TO = (RouteTarget(model="a/m"),)
DRY = chat_pb2.CallContext(dry_run=True)


def mirroring(**fields: Any) -> RouteSettings:
    given = {"mirror_to": "b/m", "mirror_percent": 100.0, **fields}
    return RouteSettings(name="r", to=TO, **given)


@asynccontextmanager
async def two(
    directory: Path, route: RouteSettings, **fields: Any
) -> AsyncIterator[tuple[Rig, FakeProvider, FakeProvider]]:
    """A router, the provider behind the route, and the one that gets copies."""
    async with FakeProvider() as a, FakeProvider() as b:
        settings = settings_in(
            directory, provider("a", a, region=("eu",)), provider("b", b, **fields), routes=(route,)
        )
        async with running(settings, PRICED) as rig:
            yield rig, a, b


@pytest.mark.parametrize("stream", [True, False])
async def test_a_copy_follows_the_call_and_has_a_row_of_its_own(
    tmp_path: Path, stream: bool
) -> None:
    async with two(tmp_path, mirroring()) as (rig, a, b):
        said = await rig.chat(
            hello("r", stream=stream), context=chat_pb2.CallContext(request_id="q")
        )
        assert (said.text, said.served.model, said.served.attempts) == (TEXT, "a/m", 1)
        original, copy = await rig.records(2)
        assert (original.model, copy.model) == ("a/m", "b/m")
        assert copy.model_requested == "b/m"
        assert outcome(copy) == "COMPLETED"
        assert copy.cost_nano_usd == original.cost_nano_usd > 0
        assert copy.key_id == original.key_id
        assert copy.project_id == original.project_id
        assert dict(copy.tags) == {TAG: "q"}
        assert copy.request_id not in ("", "q")
        sent, copied = (json.loads(fake.chats[0].body) for fake in (a, b))
        assert sent == copied
        assert b.chats[0].taken_at >= a.chats[0].ended_at


async def test_a_copy_that_hangs_or_fails_is_nobody_s_trouble(tmp_path: Path) -> None:
    async with two(tmp_path, mirroring()) as (rig, _, b):
        b.script(Reply(fault=Fault.HANG), Reply(status=500), Reply(fault=Fault.CLOSE))
        for _ in range(3):
            said = await rig.chat(hello("r"))
            assert (said.error, said.text) == (None, TEXT)
        await until(lambda: len(rig.usage.records) == 5)
        assert len(b.chats) == 3


async def test_what_is_under_way_when_the_router_stops_is_ended_and_accounted(
    tmp_path: Path,
) -> None:
    async with FakeProvider() as a, FakeProvider() as b:
        settings = settings_in(tmp_path, provider("a", a), provider("b", b), routes=(mirroring(),))
        async with running(settings, PRICED) as rig:
            b.script(Reply(fault=Fault.HANG))
            await rig.chat(hello("r", stream=True))
            await b.until(lambda: len(b.chats) == 1)
            rig.stop.set()
            assert rig.running is not None
            await rig.running
            await b.until(lambda: b.chats[0].outcome is Outcome.ABANDONED)
            assert [outcome(record) for record in await rig.records(2)] == [
                "COMPLETED",
                "CANCELLED",
            ]


async def test_a_call_that_failed_is_not_copied(tmp_path: Path) -> None:
    async with two(tmp_path, mirroring()) as (rig, a, b):
        a.script(Reply(status=400))
        assert (await rig.chat(hello("r"))).error is not None
        await rig.chat(hello("a/m"))
        await rig.records(2)
        assert b.chats == []


async def test_what_the_key_and_its_data_may_not_reach_gets_no_copy(tmp_path: Path) -> None:
    async with two(tmp_path, mirroring(), region=("us",)) as (rig, _, b):
        europe = data_policy_pb2.DataRule(demands=data_policy_pb2.DataDemands(regions=["eu"]))
        policy = data_policy_pb2.DataPolicy(version="dp-1", rules=[europe])
        for rule, key in (
            ("model", rig.add_key(models_allowed=["a/*"])),
            ("data", rig.add_key(data_policy=policy)),
        ):
            (told,) = [e.plan for e in (await rig.chat(hello("r"), key=key, context=DRY)).events]
            assert [v.rule for v in told.mirror.verdicts if v.reason] == [rule]
            assert (await rig.chat(hello("r"), key=key)).error is None
        alone = chat_pb2.RoutingPreferences(provider_only=["a"])
        assert (await rig.chat(hello("r"), routing=alone)).error is None
        await rig.records(3)
        assert b.chats == []


async def test_copies_count_towards_no_rate_limit(tmp_path: Path) -> None:
    limit = grant_pb2.RateLimit(
        meter=grant_pb2.RATE_METER_REQUESTS, amount=3, window_s=60, scope=grant_pb2.RATE_SCOPE_KEY
    )
    async with two(tmp_path, mirroring()) as (rig, _, b):
        key = rig.add_key(rate_limits=[limit])
        for _ in range(3):
            assert (await rig.chat(hello("r"), key=key)).error is None
        assert (await rig.chat(hello("r"), key=key)).reason == "rate_limit_exceeded"
        await rig.records(6)
        assert len(b.chats) == 3


async def test_no_more_copies_are_under_way_than_there_is_room_for(tmp_path: Path) -> None:
    async with two(tmp_path, mirroring()) as (rig, _, b):
        b.default = Reply(fault=Fault.HANG)
        await asyncio.gather(*(rig.chat(hello("r")) for _ in range(MIRRORS_MAX + 20)))
        await b.until(lambda: len(b.chats) == MIRRORS_MAX)
        await rig.chat(hello("r"))
        assert len(b.chats) == MIRRORS_MAX


async def test_a_dry_run_says_who_would_get_a_copy_and_makes_none(tmp_path: Path) -> None:
    async with two(tmp_path, mirroring()) as (rig, a, b):
        (told,) = [event.plan for event in (await rig.chat(hello("r"), context=DRY)).events]
        assert told.mirror.model == "b/m"
        assert not any(verdict.reason for verdict in told.mirror.verdicts)
        (told,) = [event.plan for event in (await rig.chat(hello("a/m"), context=DRY)).events]
        assert not told.HasField("mirror")
        assert a.chats == b.chats == []


def test_a_share_of_calls_is_copied_and_always_the_same_ones() -> None:
    tenth = mirroring(mirror_percent=10.0)
    copied = [number for number in range(10_000) if is_mirrored(tenth, f"req-{number}")]
    # Binomial: outside of this once in a million times.
    assert 850 < len(copied) < 1150
    assert copied == [number for number in range(10_000) if is_mirrored(tenth, f"req-{number}")]
    assert not is_mirrored(mirroring(mirror_percent=0.0), "q")
    assert not is_mirrored(RouteSettings(name="r", to=TO), "q")


def test_a_copy_keeps_what_the_caller_demands_of_its_data_and_no_key_for_a_repeat() -> None:
    request = chat_pb2.ChatRequest(
        model="r",
        routing=chat_pb2.RoutingPreferences(
            fallback_models=["x/y"], zero_retention=True, provider_ignore=["c"]
        ),
        context=chat_pb2.CallContext(
            request_id="q", idempotency_key="k", data_class="secret", customer="acme"
        ),
    )
    copy = copy_of(request, "b/m", "q")
    assert copy.routing == chat_pb2.RoutingPreferences(zero_retention=True, provider_ignore=["c"])
    assert (copy.context.request_id, copy.context.idempotency_key) == ("", "")
    assert (copy.context.data_class, copy.context.customer) == ("secret", "acme")
    assert request.context.request_id == "q"
