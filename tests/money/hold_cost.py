"""What a hold adds to the time to the first byte: the same call in turn without a budget, with one
hold of its own, and from a slice.

    python -m tests.money.hold_cost [--database postgresql] [--rounds 500]

Calls follow one another, so that the figures are of the way and not of a queue. The differences of
one run are worth more than figures of two.
"""

import argparse
import json
import time

import httpx2

from onegate.usage.v1 import budget_pb2
from tests.fake_provider import Reply
from tests.money.fleet import Books, Fleet
from tests.money.kills import LIMIT, wait, world

WARM = 40
"""Calls in a row that make a router borrow a slice."""


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.money.hold_cost", description=__doc__)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--rounds", type=int, default=500)
    given = parser.parse_args()
    with world(given.database, budget=False) as there:
        there.provider.choose = None
        there.provider.default = Reply(text="word")
        budgeted = key_with_budget(there.fleet)
        headers = {
            "no budget": {"authorization": f"Bearer {there.fleet.api_key}"},
            "own hold": {"authorization": f"Bearer {budgeted}"},
            "slice": {"authorization": f"Bearer {budgeted}", "x-onegate-run": "busy"},
        }
        times: dict[str, list[float]] = {name: [] for name in headers}
        with httpx2.Client(base_url=there.fleet.url(), timeout=30) as client:
            wait(lambda: first_byte(client, headers["slice"]) > 0, 30, "the first call")
            for _ in range(WARM):
                first_byte(client, headers["slice"])
            for number in range(given.rounds):
                # Nobody else pays for this run: its hold is its own.
                headers["own hold"]["x-onegate-run"] = f"run-{number}"
                for name, sent in headers.items():
                    times[name].append(first_byte(client, sent))
    print(f"{given.rounds} calls of each kind on {given.database}, time to the first byte in ms")
    print(f"{'':12}{'p50':>8}{'p99':>8}{'p50 added':>12}{'p99 added':>12}")
    base = sorted(times["no budget"])
    for name, taken in times.items():
        ordered = sorted(taken)
        half, most = (at(ordered, part) for part in (0.5, 0.99))
        added = half - at(base, 0.5), most - at(base, 0.99)
        print(f"{name:12}{half:8.2f}{most:8.2f}{added[0]:12.2f}{added[1]:12.2f}")
    return 0


def first_byte(client: httpx2.Client, headers: dict[str, str]) -> float:
    """How long a stream's first byte takes, in ms; 0 when the call is refused."""
    body = {
        "model": "fake/m",
        "messages": [{"role": "user", "content": "Hello!"}],
        "max_completion_tokens": 5,
        "stream": True,
    }
    began = time.perf_counter()
    with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        taken = (time.perf_counter() - began) * 1000
        answer.read()
        return taken if answer.status_code == 200 else 0.0


def at(ordered: list[float], part: float) -> float:
    """The value below which that part lies."""
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)]


def key_with_budget(fleet: Fleet) -> str:
    """The secret of a key that has a strict budget."""
    made = json.loads(fleet.cli("keys", "create", "--name", "paying", "-o", "json"))
    Books(fleet.data_dir).limit(
        LIMIT,
        organization_id=fleet.key()["organization_id"],
        scope=budget_pb2.BUDGET_SCOPE_KEY,
        subject=made["id"],
    )
    return str(made["value"])


if __name__ == "__main__":
    raise SystemExit(main())
