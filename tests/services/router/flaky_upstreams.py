"""Calls to a route over two deployments of which one fails three times of ten and stalls once: how
many succeed, whether every attempt is accounted for, and how many retries that took.

    python -m tests.services.router.flaky_upstreams 5000
"""

import argparse
import asyncio
import random
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from onegate.router.v1 import chat_pb2
from runtime.config import RouteSettings, RouteTarget
from tests.fake_provider import FakeProvider, Fault, Reply, Taken
from tests.services.router.rig import PRICED, TEXT, provider, running, settings_in

FAILS = 0.3
STALLS = 0.1
AT_ONCE = 32


@dataclass(frozen=True)
class Tally:
    """What was seen on both sides."""

    calls: int
    succeeded: int
    sent: int
    recorded: int
    sent_twice: int
    slowest_s: float

    @property
    def share(self) -> float:
        """Of calls that succeeded."""
        return self.succeeded / self.calls


def flaky(seed: int) -> "tuple[FakeProvider, Counter[str]]":
    """A provider that fails and stalls as often as said, and how often it did."""
    dice, did = random.Random(seed), Counter[str]()
    fake = FakeProvider()

    def choose(_: Taken) -> Reply:
        fate = dice.random()
        if fate < FAILS:
            did["failed"] += 1
            return Reply(status=dice.choice((500, 502, 503)))
        if fate < FAILS + STALLS:
            did["stalled"] += 1
            return Reply(fault=Fault.HANG, fault_after=dice.choice((0, 1)))
        did["served"] += 1
        return Reply()

    fake.choose = choose
    return fake, did


async def measure(directory: Path, calls: int, *, seed: int = 7) -> Tally:
    """Makes so many streamed calls, some at a time."""
    bad, _ = flaky(seed)
    route = RouteSettings(
        name="r",
        to=(RouteTarget(model="a/m"), RouteTarget(model="b/m")),
        first_token_timeout_s=0.5,
    )
    async with bad, FakeProvider() as good:
        settings = settings_in(
            directory, provider("a", bad), provider("b", good), routes=(route,), attempts_max=3
        )
        async with running(settings, PRICED) as rig:
            loop, slots = asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE)
            times: list[float] = []

            async def one(number: int) -> bool:
                async with slots:
                    began_s = loop.time()
                    body = {
                        "model": "r",
                        "stream": True,
                        "messages": [{"role": "user", "content": f"call {number}"}],
                    }
                    context = chat_pb2.CallContext(request_id=f"req-{seed}-{number}")
                    said = await rig.chat(body, context=context)
                    times.append(loop.time() - began_s)
                    return said.error is None and said.text == TEXT

            done = await asyncio.gather(*(one(number) for number in range(calls)))
            sent = len(bad.chats) + len(good.chats)
            records = await rig.records(sent)
            by_call = Counter((r.request_id, r.model) for r in records)
    return Tally(
        calls=calls,
        succeeded=sum(done),
        sent=sent,
        recorded=len(records),
        sent_twice=sum(count - 1 for count in by_call.values()),
        slowest_s=max(times),
    )


def main() -> None:
    """Prints the tally; fails when it is not good enough."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calls", type=int, nargs="?", default=5_000)
    calls = parser.parse_args().calls
    with tempfile.TemporaryDirectory() as directory:
        tally = asyncio.run(measure(Path(directory), calls))
    print(tally, f"{tally.share:.4%} succeeded")
    if tally.share < 0.999 or tally.sent != tally.recorded or tally.sent_twice > calls * 0.1 + 100:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
