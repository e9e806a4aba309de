"""Hedged calls under a strict budget: both attempts are held for, and each is paid for."""

import asyncio
from pathlib import Path

from tests.e2e.test_budgets import CALL, DOLLAR, REPLY, Money, ask, calls_of, client_of
from tests.fake_provider import FakeProvider, Outcome, Reply, Taken, running_in_thread
from tests.gateway import Gateway, running_gateway, wait_until

CONFIG = """
[router]
retry_budget = 1.0
[[provider]]
name = "a"
kind = "openai"
base_url = "{a}"
api_key_env = "FAKE_KEY"
models = ["m"]
[[provider]]
name = "b"
kind = "openai"
base_url = "{b}"
api_key_env = "FAKE_KEY"
models = ["m"]
[[route]]
name = "r"
hedge = true
hedge_after_s = 0.1
[[route.to]]
model = "a/m"
[[route.to]]
model = "b/m"
priority = 1
"""
CALLS = 60


def half_slow(fake: FakeProvider) -> FakeProvider:
    """Every second call of the provider is slow to begin."""
    count = [0]

    def choose(_: Taken) -> Reply:
        count[0] += 1
        return Reply(text=REPLY.text, first_byte_delay_s=0.5 if count[0] % 2 else 0.0)

    fake.choose = choose
    return fake


async def called(gateway: Gateway) -> list[int]:
    slots = asyncio.Semaphore(10)
    async with client_of(gateway) as client:

        async def one(number: int) -> int:
            async with slots:
                return (await ask(client, model="r"))[0]

        return list(await asyncio.gather(*(one(number) for number in range(CALLS))))


def test_both_attempts_are_held_for_and_nothing_stays_held(tmp_path: Path) -> None:
    with running_in_thread(half_slow(FakeProvider())) as a, running_in_thread(FakeProvider()) as b:
        b.default = REPLY
        config = CONFIG.format(a=a.base_url, b=b.base_url)
        with running_gateway(tmp_path, config, environment={"FAKE_KEY": "k"}) as gateway:
            gateway.cli(
                "prices", "set", "openai/m", "--input", "0", "--output", "1000", "--source", "test"
            )
            money = Money(gateway)
            money.limit(DOLLAR)
            assert asyncio.run(called(gateway)) == [200] * CALLS
            taken = calls_of(a) + calls_of(b)
            assert calls_of(b) >= CALLS // 4
            assert taken >= CALLS + calls_of(b) // 2
            wait_until(lambda: money.held() == 0, what="the settlement")
            spent, held = money.balance()
            # What was ended in silence may have been done whole: it is paid for as uncertain.
            assert held == 0
            assert taken * CALL <= spent <= (taken + 5) * CALL
            lost = [one for one in a.chats if one.outcome is Outcome.ABANDONED]
            assert len(lost) >= calls_of(b) - 5
