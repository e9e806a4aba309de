"""Calls of routes, through a whole router and real sockets."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onegate.router.v1 import chat_pb2
from runtime.config import PolicyModel, PolicyRule, PolicySettings, RouteSettings, RouteTarget
from tests.fake_provider import FakeProvider, Fault, Reply
from tests.services.router.flaky_upstreams import measure
from tests.services.router.rig import (
    PRICED,
    TEXT,
    hello,
    outcome,
    provider,
    reason,
    running,
    settings_in,
)

DRY = chat_pb2.CallContext(dry_run=True)


def two(**fields: Any) -> RouteSettings:
    """A route over two deployments, the first of them first."""
    to = (RouteTarget(model="a/m"), RouteTarget(model="b/m", priority=1))
    return RouteSettings(name="r", **{"to": to, **fields})


def refused(code: str) -> Reply:
    error = {"error": {"message": "no", "type": "invalid_request_error", "code": code}}
    return Reply(status=400, body=json.dumps(error).encode())


@pytest.mark.anyio
async def test_a_route_is_called_like_a_model_and_falls_back_unseen(tmp_path: Path) -> None:
    async with FakeProvider() as a, FakeProvider() as b:
        settings = settings_in(tmp_path, provider("a", a), provider("b", b), routes=(two(),))
        async with running(settings, PRICED) as rig:
            a.script(Reply(), Reply(status=500))
            for model, attempts in (("a/m", 1), ("b/m", 2)):
                said = await rig.chat(hello("r", stream=True))
                assert (said.error, said.text) == (None, TEXT)
                assert (said.served.model, said.served.attempts) == (model, attempts)
                assert said.served.route == "r; weight"
            records = await rig.records(3)
            assert {r.model_requested for r in records} == {"r"}
            assert [outcome(r) for r in records] == ["COMPLETED", "FAILED", "COMPLETED"]
            assert json.loads(a.chats[0].body)["model"] == "m"


@pytest.mark.anyio
async def test_a_key_reaches_by_a_route_only_what_it_may_use(tmp_path: Path) -> None:
    async with FakeProvider() as a, FakeProvider() as b:
        settings = settings_in(tmp_path, provider("a", a), provider("b", b), routes=(two(),))
        async with running(settings, PRICED) as rig:
            key = rig.add_key(models_allowed=["b/*"])
            said = await rig.chat(hello("r"), key=key)
            assert said.served.model == "b/m"
            said = await rig.chat(hello("r"), key=rig.add_key(models_allowed=["c/*"]))
            assert said.reason == "model_forbidden"
            assert a.chats == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("code", "model"), [("context_length_exceeded", "c/m"), ("content_filter", "d/m")]
)
async def test_a_fallback_for_a_reason_is_tried_for_that_reason(
    tmp_path: Path, code: str, model: str
) -> None:
    route = two(context_fallbacks=("c/m",), content_fallbacks=("d/m",))
    async with FakeProvider() as a, FakeProvider() as b, FakeProvider() as c, FakeProvider() as d:
        fakes = {"a": a, "b": b, "c": c, "d": d}
        settings = settings_in(
            tmp_path, *(provider(name, fake) for name, fake in fakes.items()), routes=(route,)
        )
        async with running(settings, PRICED) as rig:
            a.script(refused(code))
            said = await rig.chat(hello("r"))
            assert (said.error, said.served.model, said.served.attempts) == (None, model, 2)
            a.script(Reply(status=500))
            said = await rig.chat(hello("r"))
            assert said.served.model == "b/m"
            said = await rig.chat(hello("r"), context=DRY)
            (told,) = [event.plan for event in said.events]
            assert [(one.model, one.place) for one in told.considered] == [
                ("a/m", 1),
                ("b/m", 2),
                ("c/m", 0),
                ("d/m", 0),
            ]
            assert [one.only_after for one in told.considered] == [0, 0, 32, 33]


@pytest.mark.anyio
async def test_a_stream_without_content_in_time_is_left_for_the_next(tmp_path: Path) -> None:
    async with FakeProvider() as a, FakeProvider() as b:
        route = two(first_token_timeout_s=0.2)
        settings = settings_in(tmp_path, provider("a", a), provider("b", b), routes=(route,))
        async with running(settings, PRICED) as rig:
            # The head and an empty first piece come at once: they are no content.
            a.script(Reply(fault=Fault.HANG, fault_after=1))
            said = await rig.chat(hello("r", stream=True))
            assert (said.text, said.served.model) == (TEXT, "b/m")
            first, _ = await rig.records(2)
            assert reason(first) == "upstream_timeout"


@pytest.mark.anyio
async def test_a_deployment_that_keeps_failing_is_left_alone(tmp_path: Path) -> None:
    async with FakeProvider() as a, FakeProvider() as b:
        settings = settings_in(tmp_path, provider("a", a), provider("b", b), routes=(two(),))
        async with running(settings, PRICED) as rig:
            a.default = Reply(status=500)
            for _ in range(12):
                assert (await rig.chat(hello("r"))).served.model == "b/m"
            assert len(a.chats) == 5
            said = await rig.chat(hello("r"), context=DRY)
            (told,) = [event.plan for event in said.events]
            assert [(one.model, one.place) for one in told.considered] == [("b/m", 1), ("a/m", 0)]
            assert told.considered[1].verdicts[-1].rule == "breaker"
            # Who asks for it by its name gets it.
            a.default = Reply()
            assert (await rig.chat(hello("a/m"))).served.model == "a/m"


@pytest.mark.anyio
async def test_load_moves_before_the_limit_is_met(tmp_path: Path) -> None:
    full = (("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", "1m0s"))
    async with FakeProvider() as a, FakeProvider() as b:
        settings = settings_in(tmp_path, provider("a", a), provider("b", b), routes=(two(),))
        async with running(settings, PRICED) as rig:
            a.script(Reply(headers=full))
            models = [(await rig.chat(hello("r"))).served.model for _ in range(3)]
            assert models == ["a/m", "b/m", "b/m"]


@pytest.mark.anyio
async def test_what_a_dry_run_says_of_a_route_is_what_then_happens(tmp_path: Path) -> None:
    weighted = two(to=(RouteTarget(model="a/m"), RouteTarget(model="b/m")))
    sticky = RouteSettings(name="s", to=weighted.to, affinity=True)
    async with FakeProvider() as a, FakeProvider() as b:
        routes = (weighted, sticky)
        settings = settings_in(tmp_path, provider("a", a), provider("b", b), routes=routes)
        async with running(settings, PRICED) as rig:
            seen = Counter[str]()
            for number in range(30):
                name, context = (
                    "rs"[number % 2],
                    chat_pb2.CallContext(request_id=f"req-{number}", run=f"run-{number}"),
                )
                dry = chat_pb2.CallContext(dry_run=True)
                dry.MergeFrom(context)
                (told,) = [e.plan for e in (await rig.chat(hello(name), context=dry)).events]
                said = await rig.chat(hello(name), context=context)
                assert told.considered[0].model == said.served.model
                assert told.route == said.served.route
                seen[f"{name} {said.served.model}"] += 1
            assert len(seen) == 4
            sessions = {
                (await rig.chat(hello("s"), prompt_cache_key="one")).served.model for _ in range(5)
            }
            assert len(sessions) == 1


@pytest.mark.anyio
async def test_a_policy_chooses_and_says_why_and_keeps_to_what_the_key_may(tmp_path: Path) -> None:
    policy = PolicySettings(
        name="onegate/auto",
        model=(PolicyModel(model="a/m", quality=0.9), PolicyModel(model="b/m", quality=0.1)),
        rule=(PolicyRule(name="programs", models=("b/m",), code=True),),
    )
    async with FakeProvider() as a, FakeProvider() as b:
        settings = settings_in(tmp_path, provider("a", a), provider("b", b))
        settings = replace(settings, policies=(policy,))
        async with running(settings, PRICED) as rig:
            served = (await rig.chat(hello("onegate/auto"))).served
            assert (served.model, served.route) == ("a/m", "onegate/auto; no rule, best of 2")
            program = [{"role": "user", "content": "```x = 1```"}]
            served = (await rig.chat(hello("onegate/auto", messages=program))).served
            assert (served.model, served.route) == (
                "b/m",
                "onegate/auto; rule programs, best of 1",
            )
            key = rig.add_key(models_allowed=["b/*"])
            assert (await rig.chat(hello("onegate/auto"), key=key)).served.model == "b/m"


@pytest.mark.anyio
async def test_calls_succeed_although_one_of_two_fails_and_stalls(tmp_path: Path) -> None:
    tally = await measure(tmp_path, 300)
    assert tally.share >= 0.999
    assert tally.sent == tally.recorded
    assert tally.sent_twice <= 0.1 * tally.calls + 10
