"""What one attempt has set aside, at a real usage service: capped, covered, given back."""

from pathlib import Path
from typing import Any

import pytest

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import content_pb2, error_pb2
from onegate.router.v1 import chat_pb2
from onegate.usage.v1 import budget_pb2, price_pb2
from runtime.clock import SystemClock, SystemEntropy
from runtime.errors import GatewayError
from services.router.models.catalog import Deployment
from services.router.money.purse import Hold, Purses
from services.router.money.settlement import Terms
from tests.services.router.test_holds import Router, Usage, running, until_held
from tests.services.usage.records import until

pytestmark = pytest.mark.anyio

GRANT = grant_pb2.Grant(key_id="key_1", project_id="proj_1", organization_id="org_1")
CAP = 1_000
NANO_PER_TOKEN = 10
SHEET = price_pb2.PriceSheet(
    model="openai/m",
    rates=[
        price_pb2.Rate(
            meter=price_pb2.METER_OUTPUT_TOKENS, nano_usd_per_million=NANO_PER_TOKEN * 1_000_000
        )
    ],
)
DEPLOYMENT = Deployment(id="fake/m", provider="fake", model="m", price_name="openai/m", free=False)


def request(**fields: Any) -> chat_pb2.ChatRequest:
    said = content_pb2.Part(text=content_pb2.TextPart(text="Hello!"))
    message = content_pb2.Message(role=content_pb2.ROLE_USER, parts=[said])
    return chat_pb2.ChatRequest(model="fake/m", messages=[message], **fields)


async def reserve(router: Router, asked: chat_pb2.ChatRequest) -> Hold | None:
    purses = Purses(router.watch, router.holds, (SystemClock(), SystemEntropy()), CAP)
    purse = purses.of(GRANT, asked)
    assert purse is not None
    terms = Terms(GRANT, "fake/m", DEPLOYMENT, SHEET)
    return await purse.reserve(asked, "req_1", terms, 60.0)


async def budget_of(usage: Usage, router: Router, limit: int, **fields: Any) -> None:
    await usage.budget(limit, **fields)
    await until(lambda: len(router.watch.current), "the budget")


async def test_a_strict_budget_holds_the_callers_cap_and_never_asks_for_more(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as (usage, router):
        await budget_of(usage, router, 100 * NANO_PER_TOKEN)
        hold = await reserve(router, request(output_tokens_max=100))
        assert hold is not None
        assert hold.reservation.amount_nano_usd == 100 * NANO_PER_TOKEN
        assert hold.output_tokens_cap == 0, "the caller's own is sent"
        # There is no room for more, and a call that keeps to its cap needs none.
        await hold.cover(100 * NANO_PER_TOKEN)
        assert hold.reservation.amount_nano_usd == 100 * NANO_PER_TOKEN


async def test_a_call_without_a_cap_gets_the_routers_or_what_is_left(tmp_path: Path) -> None:
    async with running(tmp_path) as (usage, router):
        await budget_of(usage, router, (CAP + 400) * NANO_PER_TOKEN)
        first, second = await reserve(router, request()), await reserve(router, request())
        assert first is not None
        assert second is not None
        assert (first.output_tokens_cap, second.output_tokens_cap) == (CAP, 400)
        with pytest.raises(GatewayError) as refused:
            await reserve(router, request())
        assert refused.value.reason == error_pb2.ERROR_REASON_BUDGET_EXHAUSTED
        second.release()
        await until_held(usage, 1)


async def test_an_estimate_is_raised_while_there_is_room_and_then_ends_the_call(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as (usage, router):
        mode = budget_pb2.BUDGET_MODE_ESTIMATE
        await budget_of(usage, router, 5_000 * NANO_PER_TOKEN, mode=mode)
        hold = await reserve(router, request())
        assert hold is not None
        guess = hold.reservation.amount_nano_usd
        await hold.cover(guess // 2)
        assert hold.reservation.amount_nano_usd == guess
        await hold.cover(guess)
        assert hold.reservation.amount_nano_usd == 2 * guess
        with pytest.raises(GatewayError) as refused:
            await hold.cover(4_000 * NANO_PER_TOKEN)
        assert refused.value.reason == error_pb2.ERROR_REASON_BUDGET_EXHAUSTED


async def test_nothing_is_held_for_what_costs_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as (usage, router):
        await budget_of(usage, router, 1_000)
        purses = Purses(router.watch, router.holds, (SystemClock(), SystemEntropy()), CAP)
        purse = purses.of(GRANT, request())
        assert purse is not None
        free = Terms(GRANT, "fake/m", DEPLOYMENT, None)
        assert await purse.reserve(request(), "req_1", free, 60.0) is None
        assert await usage.held() == []
