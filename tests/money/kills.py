"""The kill matrix: a call is stopped at each point of its life, a process is killed there, and
what was charged is compared with what the provider says that it produced.

    python -m tests.money.kills [--database sqlite|postgresql] [--points …] [--victims …]

Each cell makes one call. When it comes to the point, everything there stands still; the victim gets
SIGKILL and is started again. A cell is right when each answer that the provider began has exactly
one record, that is its cost to the nano, or flagged and between that and the hold; when the budget
was charged just the sum of the records; and when nothing is held any more.
"""

import argparse
import contextlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2

from onegate.usage.v1 import budget_pb2
from runtime.errors import GatewayError
from runtime.failpoints import Failpoint
from tests.fake_provider import FakeProvider, Reply, Tally, running_in_thread
from tests.money.fleet import Books, Fleet, running_fleet
from tests.money.oracle import Verdict, compared
from tests.postgres import PASSWORD, PostgresServer

VICTIMS = ("edge", "router", "usage", "database")
MODES = ("stream", "plain")
LIMIT = 10_000 * 1_000_000_000
STREAM = Reply(
    text=" ".join("x" * 47 for _ in range(30)), first_byte_delay_s=0.02, chunk_delay_s=0.002
)
"""Thirty tokens. Each is so long that a count of what came is never less than the provider's."""
PLAIN = Reply(text=" ".join("x" for _ in range(500)), first_byte_delay_s=0.02)
"""Five hundred tokens: more than a router takes to be under way unseen in a stream."""
CAP = 600
IN_A_RESTART = (Failpoint.HALF_REPLAYED, Failpoint.EPOCH_OPENED)
IN_A_TRANSACTION = (Failpoint.HOLD_UNCOMMITTED, Failpoint.RECORD_UNCOMMITTED)
REACHED_S = 30.0
SETTLED_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination."""

    point: Failpoint
    victim: str
    mode: str

    @property
    def name(self) -> str:
        """Who the call says that it is."""
        return f"{self.point.value}.{self.victim}.{self.mode}"


@dataclass(frozen=True, slots=True)
class World:
    """A gateway in front of a provider, with a budget."""

    fleet: Fleet
    books: Books
    tally: Tally
    provider: FakeProvider
    server: PostgresServer | None

    def spent(self) -> int:
        """What the budget was charged."""
        return sum(one.spent_nano_usd for one in self.books.balances())

    def held(self) -> int:
        """What it has set aside, and how many holds there are."""
        balances = self.books.balances()
        return sum(one.held_nano_usd for one in balances) + len(self.books.holds())


@contextlib.contextmanager
def world(
    database: str, environment: Mapping[str, str] | None = None, *, budget: bool = True
) -> Iterator[World]:
    """All of it, on SQLite or PostgreSQL, with settings in its environment."""
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="og-tally-")))
        tally = Tally(place / "tally")
        stack.callback(tally.close)
        provider = stack.enter_context(running_in_thread(FakeProvider(tally=tally)))
        provider.choose = lambda taken: STREAM if taken.json.get("stream") else PLAIN
        server, settings = None, dict(environment or {})
        if database == "postgresql":
            server = PostgresServer()
            stack.callback(server.close)
            server.start()
            server.execute(f"CREATE ROLE owner LOGIN PASSWORD '{PASSWORD}'")
            server.execute("CREATE DATABASE gateway OWNER owner TEMPLATE template0")
            dsn = server.network_dsn("gateway")
            settings |= {"ONEGATE_AUTH_DSN": dsn, "ONEGATE_USAGE_DSN": dsn}
        fleet = stack.enter_context(running_fleet(provider.base_url, (1, 1), settings))
        books = Books(fleet.data_dir)
        if budget:
            key = fleet.key()
            books.limit(
                LIMIT,
                organization_id=key["organization_id"],
                scope=budget_pb2.BUDGET_SCOPE_PROJECT,
                subject=key["project_id"],
            )
        yield World(fleet, books, tally, provider, server)


def run_cell(given: World, cell: Cell) -> Verdict:
    """One call through one death. Faults of the gateway are in the verdict."""
    fleet = given.fleet
    fleet.until_ready()
    wait(lambda: given.held() == 0, SETTLED_S, "what was held before")
    spent = given.spent()
    first = Failpoint.MID_ANSWER if cell.point in IN_A_RESTART else cell.point
    calling = threading.Thread(target=call, args=(fleet, cell, first), daemon=True)
    if cell.point in IN_A_RESTART:
        arm(fleet, Failpoint.MID_ANSWER)
        calling.start()
        reached(fleet, Failpoint.MID_ANSWER)
        arm(fleet, cell.point)
        fleet.kill("router-0")
        release(fleet, Failpoint.MID_ANSWER)
        fleet.keep()
    else:
        arm(fleet, cell.point)
        calling.start()
    reached(fleet, cell.point)
    strike(given, cell.victim)
    release(fleet, cell.point)
    calling.join(REACHED_S)
    fleet.keep()
    fleet.until_ready()
    disarm(fleet)

    def settled() -> Verdict:
        records = [one for one in given.books.records(50) if one.attribution.end_user == cell.name]
        return compared(records, [one for one in given.tally.read() if one[1] == cell.name])

    def is_over() -> bool:
        if given.held():
            return False
        verdict = settled()
        return not verdict.faults and given.spent() - spent == verdict.charged_nano_usd

    try:
        wait(is_over, SETTLED_S, "the settlement")
    except AssertionError as error:
        verdict = settled()
        charged = given.spent() - spent
        verdict.faults.append(
            f"{error}: {given.held()} held, {charged} charged for"
            f" {verdict.charged_nano_usd} on record"
        )
        return verdict
    return settled()


def strike(given: World, victim: str) -> None:
    """Kills who is to die, and starts it again."""
    fleet = given.fleet
    if victim == "database" and given.server is not None:
        given.server.stop(signal.SIGQUIT)
        given.server.start()
    elif victim == "database":
        # SQLite lives in the process that writes: that dies in the midst of its next transaction,
        # or at once where it is in one.
        inside = [p for p in IN_A_TRANSACTION if (fleet.failpoints / f"{p.value}.reached").exists()]
        for point in () if inside else IN_A_TRANSACTION:
            (fleet.failpoints / point.value).write_text("kill")
        if inside:
            fleet.kill("usage")
    else:
        fleet.kill({"usage": "usage"}.get(victim, f"{victim}-0"))
    fleet.keep()


def call(fleet: Fleet, cell: Cell, point: Failpoint) -> None:
    """A call, whatever becomes of it; another while none has come to the point: what was killed
    last may not be heard again yet.
    """
    while (fleet.failpoints / point.value).exists():
        call_once(fleet, cell)
        time.sleep(0.3)


def call_once(fleet: Fleet, cell: Cell) -> None:
    """One call."""
    body = {
        "model": "fake/m",
        "messages": [{"role": "user", "content": "Hello!"}],
        "max_completion_tokens": CAP,
        "user": cell.name,
        "stream": cell.mode == "stream",
    }
    with contextlib.suppress(httpx2.HTTPError):
        httpx2.post(
            f"{fleet.url()}/v1/chat/completions",
            json=body,
            headers={"authorization": f"Bearer {fleet.api_key}"},
            timeout=REACHED_S,
        )


def arm(fleet: Fleet, point: Failpoint) -> None:
    """Whoever comes to the point next stands still."""
    (fleet.failpoints / point.value).write_text(f"delay {REACHED_S}")


def reached(fleet: Fleet, point: Failpoint) -> None:
    """Waits until somebody stands there."""
    wait((fleet.failpoints / f"{point.value}.reached").exists, REACHED_S, point.value)


def release(fleet: Fleet, point: Failpoint) -> None:
    """Whoever stands there goes on."""
    (fleet.failpoints / f"{point.value}.reached").unlink(missing_ok=True)


def disarm(fleet: Fleet) -> None:
    """Nothing is armed any more."""
    for path in fleet.failpoints.iterdir():
        path.unlink(missing_ok=True)


def wait(condition: object, timeout_s: float, what: str) -> None:
    """Waits until the callable holds; usage may be away meanwhile."""
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(GatewayError):
            if condition():
                return
        assert time.monotonic() < deadline, f"{what} did not come within {timeout_s} s"
        time.sleep(0.05)


def cells(points: Sequence[str], victims: Sequence[str]) -> list[Cell]:
    """The combinations."""
    return [
        Cell(point=point, victim=victim, mode=mode)
        for point in Failpoint
        if point.value in points
        for victim in victims
        for mode in MODES
    ]


def main() -> int:
    """Prints the table; 1 when a cell is wrong."""
    every = [point.value for point in Failpoint]
    parser = argparse.ArgumentParser(prog="python -m tests.money.kills", description=__doc__)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--points", nargs="+", choices=every, default=every)
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=VICTIMS)
    given = parser.parse_args()
    wrong: list[str] = []
    began = time.monotonic()
    count = 0
    with world(given.database) as there:
        print(f"{'point':20}" + "".join(f"{v + ' ' + m:>18}" for v in given.victims for m in MODES))
        for point in given.points:
            line = f"{point:20}"
            for cell in cells([point], given.victims):
                count += 1
                try:
                    verdict = run_cell(there, cell)
                    faults, said = verdict.faults, told(verdict)
                except AssertionError as error:
                    faults, said = [str(error)], "stuck"
                    disarm(there.fleet)
                wrong += [f"{cell.name}: {fault}" for fault in faults]
                line += f"{('WRONG' if faults else said):>18}"
            print(line, flush=True)
            print("\n".join(wrong[-4:]), file=sys.stderr) if wrong else None
        if wrong:
            print(there.fleet.log()[-4000:], file=sys.stderr)
    print(
        f"{count} cells on {given.database}, {len(wrong)} faults, {time.monotonic() - began:.0f} s"
    )
    print("\n".join(wrong))
    return 1 if wrong else 0


def told(verdict: Verdict) -> str:
    """What became of the call's attempts."""
    counts = {"exact": verdict.exact, "flagged": verdict.flagged, "unsent": verdict.unsent}
    return "+".join(f"{n} {name}" if n > 1 else name for name, n in counts.items() if n) or "none"


if __name__ == "__main__":
    raise SystemExit(main())
