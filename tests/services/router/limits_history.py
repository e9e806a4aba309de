"""The promise of shared limits, checked on what four routers really admitted.

Four processes ask for more than their limits allow, over one server that is killed, hung and
flushed meanwhile, and one of them is stopped for a while. Then every interval between any two
admissions is checked: never more than the limit and what it gains in that time. As a command:

    python -m tests.services.router.limits_history --rounds 20
"""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from onegate.auth.v1 import grant_pb2
from runtime.clock import SystemClock, SystemEntropy
from runtime.errors import GatewayError
from runtime.secrets import Secret
from services.router.limits import limit_scripts
from services.router.limits.membership import Member
from services.router.limits.shared_limits import SharedLimits, SharedTicket
from services.router.limits.valkey_link import Link
from tests.services.router.valkey_server import ValkeyServer

ROUTERS = 4
ROOT = Path(__file__).resolve().parents[3]
EPSILON = 1e-6
USED_MIN = 0.95
TOKENS = 7


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit, on a key of its own."""

    name: str
    amount: int
    window_s: int
    units: int = 1
    bursts: bool = False
    """Asked for in some seconds only, so that its burst is there when something happens."""

    def is_wanted(self, unix_s: float) -> bool:
        """Whether routers ask for it now; all in the same seconds."""
        return not self.bursts or int(unix_s * 1.7) * 2654435761 % 2**32 % 4 == 0

    def grant(self) -> grant_pb2.Grant:
        """A key with this limit."""
        meter = grant_pb2.RATE_METER_REQUESTS if self.units == 1 else grant_pb2.RATE_METER_TOKENS
        rate = grant_pb2.RateLimit(
            meter=meter,
            amount=self.amount,
            window_s=self.window_s,
            scope=grant_pb2.RATE_SCOPE_ORGANIZATION,
        )
        return grant_pb2.Grant(key_id="k", organization_id=self.name, rate_limits=[rate])


LIMITS = (
    Limit("fast", 200, 2),
    Limit("small", 5, 1),
    Limit("slow", 600, 20),
    Limit("tokens", 2000, 5, TOKENS),
    Limit("bursts", 60, 2, bursts=True),
    Limit("token-bursts", 900, 3, TOKENS, bursts=True),
)


async def connected(url: str, directory: Path) -> SharedLimits:
    """The limits of a router whose journal lies in the directory."""
    clock = SystemClock()
    link = Link(url, Secret(""), limit_scripts.ALL, clock, 0.05)
    member = Member.open(directory, SystemEntropy(), clock.monotonic())
    limits = SharedLimits(link, member, "test", clock)
    await limits.start()
    return limits


async def _work(url: str, directory: Path) -> None:
    """One router: asks for everything all the time, and writes down what it was given."""
    limits, clock = await connected(url, directory), SystemClock()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    with (directory / "admitted").open("w", buffering=1) as log:
        while not stop.is_set():
            for limit in LIMITS:
                if not limit.is_wanted(time.time()):
                    continue
                with suppress(GatewayError):
                    for _ in range(20):
                        ticket = await limits.admit(
                            limit.grant(), "m", partial(int, limit.units), clock.monotonic()
                        )
                        ticket.close(limit.units, clock.monotonic())
                        assert isinstance(ticket, SharedTicket)
                        log.write(f"{limit.name} {ticket.decided_unix_us} {limit.units}\n")
            await asyncio.sleep(0.01)
    await limits.close()


def excess(times: Sequence[tuple[int, int]], amount: float, window_s: int) -> float:
    """How far the worst interval is above ``amount + rate * t``; not above 0 when none is.

    ``times`` are microseconds and units, in order. Every interval that begins and ends with an
    admission is looked at: for one from i to j, units(i..j) - rate * (t_j - t_i) - amount.
    """
    rate = amount / window_s / 1e6
    before, lowest, worst = 0, float("inf"), float("-inf")
    start = times[0][0] if times else 0
    for at, units in times:
        lowest = min(lowest, before - rate * (at - start))
        before += units
        worst = max(worst, before - rate * (at - start) - lowest - amount)
    return worst


def used(times: Sequence[tuple[int, int]], limit: Limit, since_s: float, until_s: float) -> float:
    """The share of what the limit gains in a time that was admitted in it."""
    total = sum(units for at, units in times if since_s * 1e6 <= at < until_s * 1e6)
    return total / (limit.amount / limit.window_s * (until_s - since_s))


class History:
    """A run: four routers, one server, and what befalls it."""

    def __init__(self, directory: Path) -> None:
        self.server = ValkeyServer(directory)
        self.places = [directory / f"router-{index}" for index in range(ROUTERS)]
        self.healthy: list[tuple[float, float]] = []
        self._workers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Starts the server and the routers."""
        self.server.start()
        for place in self.places:
            place.mkdir()
            command = [sys.executable, "-m", "tests.services.router.limits_history"]
            self._workers.append(
                subprocess.Popen(
                    [*command, "--worker", self.server.url, str(place)],
                    cwd=ROOT,
                    stderr=subprocess.DEVNULL,
                )
            )

    def well(self, seconds: float, settle_s: float) -> None:
        """Everything works; what is admitted after a moment counts for the limits' use."""
        time.sleep(settle_s)
        since_s = time.time()
        time.sleep(seconds)
        self.healthy.append((since_s, time.time()))

    def ill(self, seconds: float, begin: Callable[[], None], end: Callable[[], None]) -> None:
        """Something is the matter for a while."""
        begin()
        time.sleep(seconds)
        end()

    def stop_router(self) -> None:
        """The first router stands still."""
        self._workers[0].send_signal(signal.SIGSTOP)

    def resume_router(self) -> None:
        """It goes on, and does not know that time has passed."""
        self._workers[0].send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends everything."""
        for worker in self._workers:
            worker.send_signal(signal.SIGCONT)
            worker.terminate()
        for worker in self._workers:
            worker.wait(timeout=20)
        if self.server.process is not None:
            self.server.kill()

    def admitted(self, limit: Limit) -> list[tuple[int, int]]:
        """What all routers together admitted of a limit."""
        found = []
        for place in self.places:
            for line in (place / "admitted").read_text().splitlines():
                name, at, units = line.split()
                if name == limit.name:
                    found.append((int(at), int(units)))
        return sorted(found)


def run(directory: Path, rounds: int, seconds: float) -> list[dict[str, float | str]]:
    """Plays every misfortune, ``rounds`` times over. A row for each limit: the greatest excess of
    any interval, the share used while all was well, how many were admitted.
    """
    history = History(directory)
    history.start()
    try:
        history.well(seconds, settle_s=3.0)
        for _ in range(rounds):
            for begin, end in (
                (history.server.kill, history.server.start),
                (history.server.hang, history.server.go_on),
                (history.server.flush, lambda: None),
                (history.stop_router, history.resume_router),
            ):
                history.ill(seconds, begin, end)
                history.well(seconds, settle_s=2.0)
    finally:
        history.close()
    rows: list[dict[str, float | str]] = []
    for limit in LIMITS:
        times = history.admitted(limit)
        shares = [used(times, limit, *span) for span in history.healthy]
        row: dict[str, float | str] = {
            "limit": limit.name,
            "admitted": len(times),
            "worst_excess": round(excess(times, limit.amount, limit.window_s), 6),
        }
        if not limit.bursts:
            row["least_used"] = round(min(shares), 4)
            row["used"] = round(sum(shares) / len(shares), 4)
        rows.append(row)
    return rows


def main() -> None:
    """The command; fails when an interval admitted too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", nargs=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    if arguments.worker:
        asyncio.run(_work(arguments.worker[0], Path(arguments.worker[1])))
        return
    with tempfile.TemporaryDirectory() as directory:
        rows = run(Path(directory), arguments.rounds, arguments.seconds)
    print(f"{len(rows)} limits, {ROUTERS} routers")
    for row in rows:
        print(json.dumps(row))
    if any(float(row["worst_excess"]) > EPSILON for row in rows):
        sys.exit("an interval admitted more than its limit")
    if any(float(row.get("used", 1)) < USED_MIN for row in rows):
        sys.exit("limits were not used up while all was well")


if __name__ == "__main__":
    main()
