"""Budgets on a whole gateway: never overspent, never refused while there is room, whatever dies."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from onegate.usage.v1 import budget_pb2
from onegate.usage.v1.budget_service_pb2 import ListBalancesRequest, SetBudgetRequest
from onegate.usage.v1.budget_service_pb2_grpc import BudgetServiceStub
from onegate.usage.v1.hold_service_pb2 import ListHoldsRequest
from onegate.usage.v1.hold_service_pb2_grpc import HoldServiceStub
from runtime.config import RpcSettings
from runtime.rpc import OPERATOR_KEY, channel, unary
from tests.fake_provider import FakeProvider, Reply, running_in_thread
from tests.gateway import Gateway, running_gateway, wait_until

CONFIG = """
[[provider]]
name = "fake"
kind = "openai"
base_url = "{base_url}"
api_key_env = "FAKE_KEY"
models = ["m"]
"""
TOKENS = 5
REPLY = Reply(text="one two three four five", first_byte_delay_s=0.05)
"""Five output tokens, which is the cap of every call here: what is set aside is what it costs."""
NANO_PER_TOKEN = 1_000_000
CALL = TOKENS * NANO_PER_TOKEN
DOLLAR = 1_000_000_000


class Money:
    """What an operator asks usage."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        listed = json.loads(gateway.cli("keys", "list", "-o", "json"))
        self._key = listed[0]

    def limit(self, nano_usd: int, **fields: Any) -> None:
        """Gives the project so much, once and for all."""
        given = {
            "organization_id": self._key["organization_id"],
            "scope": budget_pb2.BUDGET_SCOPE_PROJECT,
            "subject": self._key["project_id"],
            "period": budget_pb2.BUDGET_PERIOD_TOTAL,
            "mode": budget_pb2.BUDGET_MODE_STRICT,
            **fields,
        }
        budget = budget_pb2.Budget(limit_nano_usd=nano_usd, **given)
        self._asked("BudgetService", "SetBudget", SetBudgetRequest(budget=budget))

    def balance(self) -> tuple[int, int]:
        """What is spent and what is held."""
        (one,) = self._asked("BudgetService", "ListBalances", ListBalancesRequest()).balances
        return one.spent_nano_usd, one.held_nano_usd

    def held(self) -> int:
        """How many holds there are."""
        return len(self._asked("HoldService", "ListHolds", ListHoldsRequest()).holds)

    def _asked(self, service: str, method: str, request: Any) -> Any:
        return asyncio.run(self._ask(service, method, request))

    async def _ask(self, service: str, method: str, request: Any) -> Any:
        run = self._gateway.data_dir / "run"
        token = (run / "operator.token").read_text().strip()
        stubs = {"BudgetService": BudgetServiceStub, "HoldService": HoldServiceStub}
        opened = channel(f"unix:{run}/usage.sock", RpcSettings())
        try:
            call = getattr(stubs[service](opened), method)
            return await unary(call, request, timeout_s=10, metadata=[(OPERATOR_KEY, token)])
        finally:
            await opened.close()


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with running_in_thread(FakeProvider()) as running:
        running.default = REPLY
        yield running


@pytest.fixture
def gateway(tmp_path: Path, provider: FakeProvider) -> Iterator[Gateway]:
    config = CONFIG.format(base_url=provider.base_url)
    environment = {"FAKE_KEY": "fake-key"}
    with running_gateway(tmp_path, config, workers=4, environment=environment) as running:
        running.cli(
            "prices", "set", "openai/m", "--input", "0", "--output", "1000", "--source", "a test"
        )
        yield running


def calls_of(provider: FakeProvider) -> int:
    """How many calls the provider saw, by its own tally."""
    return sum(taken.method == "POST" for taken in provider.taken)


async def ask(client: httpx2.AsyncClient, **fields: Any) -> tuple[int, dict[str, Any]]:
    body = {
        "model": "fake/m",
        "messages": [{"role": "user", "content": "Hello!"}],
        "max_completion_tokens": TOKENS,
        **fields,
    }
    answer = await client.post("/chat/completions", json=body)
    return answer.status_code, answer.json()


def client_of(gateway: Gateway) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        base_url=gateway.base_url,
        headers={"authorization": f"Bearer {gateway.api_key}"},
        timeout=60,
        limits=httpx2.Limits(max_connections=250),
    )


async def ask_many(gateway: Gateway, count: int) -> list[tuple[int, dict[str, Any]]]:
    async with client_of(gateway) as client:
        return list(await asyncio.gather(*(ask(client) for _ in range(count))))


def test_parallel_calls_spend_a_budget_to_the_last_cent_and_no_further(
    gateway: Gateway, provider: FakeProvider
) -> None:
    money = Money(gateway)
    money.limit(DOLLAR)
    answers = asyncio.run(ask_many(gateway, 250))
    served = [body for status, body in answers if status == 200]
    refused = [body["error"] for status, body in answers if status != 200]
    assert {error["code"] for error in refused} == {"budget_exhausted"}
    assert len(served) == calls_of(provider) == DOLLAR // CALL
    wait_until(lambda: money.balance() == (DOLLAR, 0), what="the settlement")
    told = refused[-1]["metadata"]["budget"]
    assert (told["limit"], told["asked"]) == ("1", "0.005")
    assert money.held() == 0
    assert len(gateway.pids_of("router")) == 4


def test_killed_routers_neither_lose_nor_double_what_was_spent(
    gateway: Gateway, provider: FakeProvider
) -> None:
    money = Money(gateway)
    money.limit(100 * DOLLAR)
    provider.default = Reply(text=REPLY.text, first_byte_delay_s=0.2)

    async def asked_through_kills() -> list[int]:
        async with client_of(gateway) as client:

            async def one() -> int:
                try:
                    return (await ask(client))[0]
                except httpx2.HTTPError:
                    return 0

            calls = [asyncio.create_task(one()) for _ in range(200)]
            for _ in range(2):
                await asyncio.sleep(0.4)
                os.kill(gateway.pids_of("router")[0], signal.SIGKILL)
            return list(await asyncio.gather(*calls))

    statuses = asyncio.run(asked_through_kills())
    assert statuses.count(200) > 0
    # Every attempt that the provider saw is paid for, in full or, where its router died, at what
    # it can have cost at most: which is the same here.
    wait_until(
        lambda: money.balance() == (calls_of(provider) * CALL, 0), 60, "the settlement of all"
    )
    assert money.held() == 0
