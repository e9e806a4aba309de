"""Calls through a whole router, beyond one provider: who takes over, who is asked again, who is
refused.
"""

import asyncio
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import token_usage_pb2
from onegate.router.v1 import chat_pb2
from runtime.config import ProviderSettings
from runtime.errors import GatewayError, reason_name
from services.router import server
from tests.fake_provider import INPUT_TOKENS, FakeProvider, Fault, Reply
from tests.services.router.rig import (
    OUTPUT_TOKENS,
    PRICED,
    TEXT,
    hello,
    native,
    outcome,
    provider,
    running,
    settings_in,
    sheet,
)
from tests.services.router.sockets import listening, silent

pytestmark = pytest.mark.anyio


async def test_the_next_deployment_takes_over_unseen(tmp_path: Path) -> None:
    async with FakeProvider() as one, FakeProvider() as two:
        settings = settings_in(
            tmp_path, provider("a", one), provider("b", two), stall_timeout_s=0.3,
            first_byte_timeout_s=0.3, answer_timeout_s=0.3,
        )  # fmt: skip
        wishes = chat_pb2.RoutingPreferences(fallback_models=["b/m"])
        async with running(settings, PRICED) as rig:
            for count, (reply, streamed) in enumerate(
                [
                    (Reply(status=500), False),
                    (Reply(status=429), True),
                    (Reply(fault=Fault.HANG), False),
                    (Reply(fault=Fault.HANG), True),
                    (Reply(fault=Fault.HANG, fault_after=1), True),
                    (Reply(fault=Fault.CLOSE, fault_after=1), True),
                    (Reply(fault=Fault.ERROR_EVENT, fault_after=1), True),
                    (Reply(body=b"<html>"), False),
                    (Reply(status=403), False),
                ],
                start=1,
            ):
                one.script(reply)
                said = await rig.chat(hello(stream=streamed), routing=wishes)
                assert (said.error, said.text) == (None, TEXT), reply
                assert (said.served.model, said.served.attempts) == ("b/m", 2)
                assert (len(one.chats), len(two.chats)) == (count, count)
            records = await rig.records(18)
            for failed, served in zip(records[::2], records[1::2], strict=True):
                assert failed.request_id == served.request_id
                assert (failed.attempt_number, served.attempt_number) == (1, 2)
                assert (outcome(failed), outcome(served)) == ("FAILED", "COMPLETED")


async def test_a_failing_and_stalling_provider_is_not_the_callers_problem(tmp_path: Path) -> None:
    """Three in ten fail, one in ten stalls: every call is answered, every attempt accounted."""
    async with FakeProvider() as one, FakeProvider() as two:
        fates = [Reply(status=500)] * 3 + [Reply(fault=Fault.HANG, fault_after=1)] + [Reply()] * 6
        turns = itertools.cycle(fates)
        one.choose = lambda _: next(turns)
        settings = settings_in(
            tmp_path, provider("a", one), provider("b", two), stall_timeout_s=0.3
        )
        wishes = chat_pb2.RoutingPreferences(fallback_models=["b/m"])
        async with running(settings, PRICED) as rig:
            for _ in range(10):
                answers = await asyncio.gather(
                    *(rig.chat(hello(stream=True), routing=wishes) for _ in range(20))
                )
                assert [said.text for said in answers if said.error is None] == [TEXT] * 20
            assert len(one.chats) == 200
            assert len(two.chats) == 80
            records = await rig.records(280)
            assert Counter(map(outcome, records)) == {"COMPLETED": 200, "FAILED": 80}


async def test_a_broken_request_is_not_tried_elsewhere(tmp_path: Path) -> None:
    async with FakeProvider() as one, FakeProvider() as two:
        settings = settings_in(tmp_path, provider("a", one), provider("b", two))
        wishes = chat_pb2.RoutingPreferences(fallback_models=["b/m"])
        async with running(settings, PRICED) as rig:
            one.default = Reply(status=400)
            said = await rig.chat(hello(), routing=wishes)
            assert said.reason == "invalid_request"
            assert (len(one.chats), len(two.chats)) == (1, 0)


async def test_a_refusal_is_asked_again_a_little_later(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        settings = settings_in(tmp_path, provider("a", fake), retry_budget=1.0)
        async with running(settings, PRICED) as rig:
            fake.script(Reply(status=503), Reply(status=429))
            said = await rig.chat(hello())
            assert (said.text, said.served.attempts) == (TEXT, 3)
            fake.script(*[Reply(status=500)] * 3)
            said = await rig.chat(hello())
            assert said.error is not None
            assert [a.upstream_status for a in said.error.attempts] == [500, 500, 500]
            assert len(fake.chats) == 6


async def test_what_may_have_been_done_is_not_asked_again(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        settings = settings_in(
            tmp_path, provider("a", fake), first_byte_timeout_s=0.2, answer_timeout_s=0.2
        )
        async with running(settings, PRICED) as rig:
            for fault in (Fault.HANG, Fault.CLOSE):
                fake.script(Reply(fault=fault))
                assert (await rig.chat(hello())).error is not None
            assert len(fake.chats) == 2


async def test_a_deployment_that_falls_ill_meanwhile_is_not_asked_again(tmp_path: Path) -> None:
    async with FakeProvider() as one, FakeProvider() as two:
        settings = settings_in(tmp_path, provider("a", one), provider("b", two))
        async with running(settings, PRICED) as rig:
            quiet = Reply(status=429, headers=(("retry-after", "60"),))
            one.script(Reply(status=503), quiet)
            two.script(Reply(status=503, first_byte_delay_s=0.5))
            wishes = chat_pb2.RoutingPreferences(fallback_models=["b/m"])
            call = asyncio.create_task(rig.chat(hello(), routing=wishes))
            await two.until(lambda: len(two.chats) == 1)
            assert (await rig.chat(hello())).reason == "upstream_rate_limited"
            said = await call
            assert (said.served.model, said.served.attempts) == ("b/m", 3)
            assert len(one.chats) == 2


async def test_a_host_that_lets_the_connection_hang_is_asked_once(tmp_path: Path) -> None:
    async with listening(silent) as port:
        hung = ProviderSettings(name="a", kind="openai", base_url=f"https://127.0.0.1:{port}/v1")
        async with running(settings_in(tmp_path, hung, connect_timeout_s=0.4), PRICED) as rig:
            said = await rig.chat(hello())
            assert said.reason == "upstream_unreachable"
            assert said.error is not None
            assert len(said.error.attempts) == 1


async def test_retries_stay_within_their_budget(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        fake.default = Reply(status=500)
        settings = settings_in(tmp_path, provider("a", fake), retry_budget=0.0)
        async with running(settings, PRICED) as rig:
            await asyncio.gather(*(rig.chat(hello()) for _ in range(40)))
            assert 40 < len(fake.chats) <= 40 + 3 + 3 * 2


async def test_a_deployment_that_asked_for_quiet_is_left_alone(tmp_path: Path) -> None:
    async with FakeProvider() as one, FakeProvider() as two:
        settings = settings_in(tmp_path, provider("a", one), provider("b", two))
        async with running(settings, PRICED) as rig:
            one.script(Reply(status=429, headers=(("retry-after", "1"),)))
            said = await rig.chat(hello())
            assert said.reason == "upstream_rate_limited"
            assert said.error is not None
            assert said.error.retry_after_ms == 1000
            again = await rig.chat(hello())
            assert again.reason == "upstream_rate_limited"
            assert again.error is not None
            assert 0 < again.error.retry_after_ms <= 1001
            assert [out.model for out in again.error.excluded] == ["a/m"]
            wishes = chat_pb2.RoutingPreferences(fallback_models=["b/m"])
            other = await rig.chat(hello(), routing=wishes)
            assert (other.served.model, other.served.attempts) == ("b/m", 1)
            assert (await rig.chat(hello("a/other"))).reason == "model_price_unknown"
            assert len(one.chats) == 1
            await asyncio.sleep(again.error.retry_after_ms / 1000)
            assert (await rig.chat(hello())).text == TEXT
            first, second = one.chats
            assert second.taken_at - first.taken_at >= 1.0


async def test_a_refused_credential_rests_and_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        fake.default = Reply(status=401)
        for _ in range(3):
            said = await rig.chat(hello())
            assert said.reason == "upstream_auth"
        assert len(fake.chats) == 1
        lines = [r for r in caplog.records if "refused the gateway's credential" in r.getMessage()]
        assert len(lines) == 1


async def test_a_model_that_a_credential_may_not_use_does_not_stop_the_others(
    tmp_path: Path,
) -> None:
    async with FakeProvider() as fake:
        settings = settings_in(tmp_path, provider("a", fake, free=True))
        async with running(settings) as rig:
            fake.script(Reply(status=403))
            assert (await rig.chat(hello("a/x"))).reason == "upstream_auth"
            assert (await rig.chat(hello("a/x"))).reason == "upstream_auth"
            assert (await rig.chat(hello("a/y"))).text == TEXT
            assert len(fake.chats) == 2


async def test_prices_of_names_that_were_never_needed_are_asked_for(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        rig.prices.hidden.append(sheet("openai/m-2026-01-01"))
        for model in ("a/m-2026-01-01", "m-2026-01-01", "a/m-2026-01-01"):
            assert (await rig.chat(hello(model))).text == TEXT
        assert rig.prices.asked == ["openai/m-2026-01-01"]
        for _ in range(2):
            assert (await rig.chat(hello("a/new"))).reason == "model_price_unknown"
            assert (await rig.chat(hello("new"))).reason == "model_not_found"
        assert rig.prices.asked == ["openai/m-2026-01-01", "openai/new"]


REFUSALS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"kind": grant_pb2.KEY_KIND_ADMIN}, {}, "scope_missing"),
    ({"models_denied": ["a/*"]}, {}, "model_forbidden"),
    ({"networks_allowed": ["10.0.0.0/8"]}, {}, "address_forbidden"),
    ({"scopes": ["model.read"]}, {}, "scope_missing"),
    ({}, {"context": chat_pb2.CallContext(cost_max_nano_usd=5)}, "invalid_request"),
    ({}, {"routing": chat_pb2.RoutingPreferences(provider_only=["z"])}, "invalid_request"),
]


@pytest.mark.parametrize(("grant", "fields", "why"), REFUSALS, ids=lambda v: str(v)[:30])
async def test_what_may_not_be_is_refused_before_anything_is_sent(
    tmp_path: Path, grant: dict[str, Any], fields: dict[str, Any], why: str
) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        key = rig.add_key(**grant)
        said = await rig.chat(hello(), key=key, **fields)
        assert (said.reason, said.events) == (why, [])
        assert said.error is not None
        assert [out.model for out in said.error.excluded] == ["a/m"]
        assert fake.chats == []


@pytest.mark.parametrize("key", ["", "sk-og-garbage", "nonsense"])
async def test_a_key_that_is_none_is_refused_without_a_lookup(tmp_path: Path, key: str) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        assert (await rig.chat(hello(), key=key)).reason == "invalid_api_key"
        assert rig.auth.asked == 0


async def test_a_call_within_its_cost_goes_through_and_retries_count_against_it(
    tmp_path: Path,
) -> None:
    async with FakeProvider() as one, FakeProvider() as two:
        settings = settings_in(
            tmp_path, provider("a", one), provider("b", two), answer_timeout_s=0.2
        )
        async with running(settings, PRICED) as rig:
            body = hello(max_completion_tokens=20)
            bound = len(json.dumps(body)) + 200
            exact = chat_pb2.CallContext(cost_max_nano_usd=bound)
            assert (await rig.chat(body, context=exact)).text == TEXT
            one.default = Reply(fault=Fault.HANG)
            wishes = chat_pb2.RoutingPreferences(fallback_models=["b/m"])
            said = await rig.chat(body, context=exact, routing=wishes)
            assert said.reason == "upstream_timeout"
            assert said.error is not None
            assert "x-onegate-max-cost leaves" in said.error.excluded[0].detail
            more = chat_pb2.CallContext(cost_max_nano_usd=2 * bound)
            assert (await rig.chat(body, context=more, routing=wishes)).text == TEXT


async def test_limits_are_counted_told_and_corrected(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        rates = [
            grant_pb2.RateLimit(meter=grant_pb2.RATE_METER_REQUESTS, amount=2, window_s=60),
            grant_pb2.RateLimit(meter=grant_pb2.RATE_METER_TOKENS, amount=100_000, window_s=60),
            grant_pb2.RateLimit(meter=grant_pb2.RATE_METER_CONCURRENCY, amount=1),
        ]
        key = rig.add_key(rate_limits=rates)
        fake.script(Reply(first_byte_delay_s=0.3))
        first = asyncio.create_task(rig.chat(hello(), key=key))
        await fake.until(lambda: len(fake.chats) == 1)
        busy = await rig.chat(hello(), key=key)
        assert busy.reason == "rate_limit_exceeded"
        assert busy.error is not None
        assert "at the same time" in busy.error.message
        said = await first
        assert (said.served.requests.limit, said.served.requests.remaining) == (2, 1)
        assert said.served.tokens.limit == 100_000
        second = await rig.chat(hello(), key=key)
        left = second.served.tokens.remaining
        assert left < 100_000 - INPUT_TOKENS - OUTPUT_TOKENS
        assert left > 97_000  # the first call's reservation came back
        third = await rig.chat(hello(), key=key)
        assert third.reason == "rate_limit_exceeded"
        assert third.error is not None
        assert 0 < third.error.retry_after_ms <= 60_000


async def test_too_many_calls_are_refused_at_once(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        fake.default = Reply(first_byte_delay_s=0.5)
        settings = settings_in(tmp_path, provider("a", fake), calls_max=2)
        async with running(settings, PRICED) as rig:
            answers = await asyncio.gather(*(rig.chat(hello()) for _ in range(5)))
            assert sorted(said.reason for said in answers) == ["", ""] + ["overloaded"] * 3
            assert (await rig.chat(hello())).text == TEXT


async def test_what_is_no_request_is_refused(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path)) as rig:
        assert (await rig.chat(hello("a/../m"))).reason == "model_not_found"
        call = rig.pool.call(
            server.CHAT_METHOD,
            b"\xff\xff",
            metadata={"authorization": f"Bearer {rig.key}"},
            timeout_s=5.0,
        )
        with pytest.raises(GatewayError, match="not a ChatRequest"):
            await call.receive()


@pytest.mark.parametrize(
    ("answer", "why"), [("again", "invalid_request"), ("none", "request_timeout")]
)
async def test_a_caller_who_is_asked_for_the_typed_form_must_send_it(
    tmp_path: Path, answer: str, why: str
) -> None:
    async with FakeProvider() as fake:
        settings = settings_in(
            tmp_path, provider("a", fake, kind="deepseek"), first_byte_timeout_s=0.3
        )
        async with running(settings, PRICED) as rig:
            call = rig.open(native(hello()))
            assert await call.receive()
            if answer == "again":
                await call.send(native(hello()).SerializeToString())
            with pytest.raises(GatewayError) as caught:
                await call.receive()
            assert reason_name(caught.value.reason) == why
            assert [out.model for out in caught.value.excluded] == ["a/m"]
            assert fake.chats == []


async def test_a_caller_who_leaves_instead_of_sending_the_typed_form_costs_nothing(
    tmp_path: Path,
) -> None:
    async with FakeProvider() as fake:
        settings = settings_in(tmp_path, provider("a", fake, kind="deepseek"), calls_max=1)
        async with running(settings, PRICED) as rig:
            call = rig.open(native(hello()))
            assert await call.receive()
            call.cancel()
            async with asyncio.timeout(5):
                while (await rig.chat(hello())).error is not None:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert len(fake.chats) == 1


async def test_tags_and_attribution_reach_the_bill(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        key = rig.add_key(tags={"team": "x"})
        context = chat_pb2.CallContext(
            request_id="req_7", tags={"job": "y"}, customer="c", feature="f", run="r"
        )
        await rig.chat(hello(), key=key, context=context, end_user="u")
        (record,) = await rig.records(1)
        assert (record.request_id, dict(record.tags)) == ("req_7", {"team": "x", "job": "y"})
        who = record.attribution
        assert (who.end_user, who.customer, who.feature, who.run) == ("u", "c", "f", "r")
        assert record.tokens == token_usage_pb2.TokenUsage(
            input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS
        )
