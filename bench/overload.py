"""Three times what the gateway can do at most: does it go on doing what it can, refuse the rest at
once and with advice, and answer health checks and administration all the while?
"""

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import uvloop

from bench.connection import Answer, Connection, Shape
from bench.gateways import NONE, alone
from bench.load import CLOSING_S, Tally, closed_loop, open_loop, quantile
from bench.machine import Cores
from bench.plan import REQUESTS_128
from bench.processes import Running
from bench.targets import Line

TIMES: Final = 3.0
PROBE_S: Final = 0.1
PROBED: Final = ("/healthz", "/readyz", "/v1/models", "/v1/organization/projects")
"""What must go on; the last is asked with the admin key."""
PROBE_TIMEOUT_S: Final = 5.0
GOODPUT_MIN: Final = 90.0
REFUSAL_MS_MAX: Final = 10.0
PROBE_MS_MAX: Final = 100.0


@dataclass(slots=True)
class Probed:
    """How questions went that have nothing to do with the load."""

    times_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """What a run gave."""

    peak: Tally
    peak_probed: Probed
    over: Tally
    probed: Probed
    rate: float

    def lines(self) -> list[Line]:
        """The targets, held against it."""
        refusals_ms = quantile(self.over.refusals_s, 0.99) * 1e3
        refused = len(self.over.refusals_s)
        odd = sum(count for why, count in self.over.failures.items() if why not in ("429", "503"))
        peak = self.peak.rate
        return [
            Line(
                name=f"answered at {TIMES:g} times the peak of {peak:,.0f}/s, of the peak",
                value=self.over.rate / peak * 100 if peak else None,
                bound=GOODPUT_MIN,
                at_least=True,
                unit=" %",
            ),
            _at_most("refusals, p99", refusals_ms if refused else None, REFUSAL_MS_MAX, " ms"),
            _at_most("refusals without Retry-After", self.over.without_advice, 0, ""),
            _at_most("ends other than an answer or a refusal", odd, 0, ""),
            _at_most("health and admin: unanswered", len(self.probed.failures), 0, ""),
            _at_most(
                "health and admin: p99",
                quantile(self.probed.times_s, 0.99) * 1e3,
                PROBE_MS_MAX,
                " ms",
            ),
        ]

    def text(self) -> str:
        """Figures beside the targets."""
        over, peak = self.over, self.peak
        refusals = over.refusals_s
        rows = [
            ("offered a second", f"{self.rate:,.0f}"),
            ("answered a second", f"{over.rate:,.0f} (peak {peak.rate:,.0f})"),
            ("answers p50, p99", _ms(over.latencies_s)),
            ("refused", f"{len(refusals):,} of {over.completed + over.failed:,}"),
            ("refusals p50, p99", _ms(refusals)),
            ("other failures", str({k: n for k, n in over.failures.items() if k != "503"} or 0)),
            ("health and admin p50, p99", _ms(self.probed.times_s)),
            ("the same at the peak", _ms(self.peak_probed.times_s)),
            ("the load's own lateness p50, p99", _ms(over.late_s)),
            ("probes that failed", ", ".join(sorted(set(self.probed.failures))) or "0"),
        ]
        return "\n".join(["| figure | value |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def _at_most(name: str, value: float | None, bound: float, unit: str) -> Line:
    return Line(name=name, value=value, bound=bound, at_least=False, unit=unit)


def _ms(times_s: Sequence[float]) -> str:
    return f"{quantile(times_s, 0.5) * 1e3:.1f} ms, {quantile(times_s, 0.99) * 1e3:.1f} ms"


def measure_overload(
    cores: Cores, seconds: float, settings: Mapping[str, Mapping[str, float]] = NONE
) -> Overload:
    """Finds the peak, then offers three times as much."""
    with alone(cores, settings) as (_, running):
        shape = REQUESTS_128.shape(running)
        uvloop.run(closed_loop(shape, 128, 1.0))
        running.settle()
        peak, peak_probed = uvloop.run(_beside(closed_loop(shape, 128, seconds), running))
        running.settle()
        rate = peak.rate * TIMES
        over, probed = uvloop.run(_beside(open_loop(shape, rate, seconds), running))
    return Overload(peak=peak, peak_probed=peak_probed, over=over, probed=probed, rate=rate)


async def _beside(load: Coroutine[Any, Any, Tally], running: Running) -> tuple[Tally, Probed]:
    """Runs a load while health and administration are asked; both results."""
    probed = Probed()
    probing = [asyncio.ensure_future(_probe(running, path, probed)) for path in PROBED]
    try:
        tally = await load
    finally:
        for probe in probing:
            probe.cancel()
        await asyncio.gather(*probing, return_exceptions=True)
        for connection in probed.connections:
            connection.leave()
        await asyncio.sleep(CLOSING_S)
    return tally, probed


async def _probe(running: Running, path: str, probed: Probed) -> None:
    """Asks the same question again and again on one connection."""
    key = running.admin_key if "/organization/" in path else running.key
    shape = Shape(port=running.port, model="", key=key)
    request = shape.question(path)
    loop = asyncio.get_running_loop()
    connection: Connection | None = None
    while True:
        answered: asyncio.Future[Answer] = loop.create_future()

        def ended(_: Connection, answer: Answer, to: asyncio.Future[Answer] = answered) -> None:
            if not to.done():
                to.set_result(answer)

        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                if connection is None or not connection.alive:
                    connection = await Connection.to(shape, ended)
                    probed.connections.append(connection)
                connection.on_end = ended
                connection.send(request, began_s)
                answer = await answered
        except (OSError, TimeoutError) as error:
            probed.failures.append(f"{path}: {type(error).__name__}")
            if connection is not None:
                connection.leave()
            connection = None
        else:
            if answer.why:
                probed.failures.append(f"{path}: {answer.why}")
            probed.times_s.append(time.perf_counter() - began_s)
        await asyncio.sleep(PROBE_S)
