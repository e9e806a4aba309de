"""The benchmark's own modes, short: counted and not timed."""

import asyncio
from dataclasses import replace

import pytest
import uvloop

from bench.compare import Comparison
from bench.gateways import alone
from bench.load import CLOSING_S, Tally, closed_loop
from bench.machine import Cores
from bench.overload import measure_overload
from bench.plan import LATENCY_400, REQUESTS_32, STREAMS, Round, Series
from bench.report import render
from bench.soak import Soak, soak
from bench.stalled import SETTINGS, stall, still
from bench.targets import Line, lines

READERS = 60
KIB_MAX = 1200
"""A reader's share with so few of them: what heaps grow by once is in it. 1,000 have 256."""


def series(rate: float, p50_ms: float = 1.0) -> Series:
    made = Series()
    tally = Tally(duration_s=1.0, completed=int(rate), latencies_s=[p50_ms / 1e3])
    made.add(Round(tally=tally, cpu_s={"edge": 0.5}, foreign=0.0, load=0.5))
    return made


def test_targets_are_ratios_of_one_run() -> None:
    rows = {"onegate": series(600), "TensorZero": series(1000), "LiteLLM": series(16)}
    latency = {"onegate": series(400, 2.5), "direct": series(400, 0.5)}
    found = {REQUESTS_32.name: rows, LATENCY_400.name: latency}
    verdicts = {line.name: (line.value, line.verdict) for line in lines(found, {})}
    assert verdicts["requests, 32 connections, times TensorZero"] == (0.6, "kept")
    assert verdicts["requests, 32 connections, times LiteLLM"] == (37.5, "missed")
    assert verdicts["requests, 32 connections, times Portkey"] == (None, "unknown")
    assert verdicts["latency at 400/s: p50 over direct"] == (2.0, "missed")


def test_a_comparison_says_each_target_and_each_gateway() -> None:
    found = Comparison(results={REQUESTS_32.name: {"onegate": series(600)}}, rounds=1)
    text = render(found)
    assert "| onegate | 600 |" in text
    assert "not measured" in text


@pytest.mark.parametrize(("value", "verdict"), [(1.0, "kept"), (1.1, "missed"), (None, "unknown")])
def test_a_bound_is_kept_or_missed_or_unknown(value: float | None, verdict: str) -> None:
    assert Line(name="x", value=value, bound=1, at_least=False, unit="").verdict == verdict


def test_readers_that_stop_hold_little_memory_and_hinder_nobody() -> None:
    with alone(Cores(), SETTINGS) as (_, running):
        shape = STREAMS.shape(running)

        async def run() -> tuple[float, int, int]:
            warm = await closed_loop(shape, 8, 0.5)
            before = await still(running)
            stalled = await stall(replace(shape, model=f"{running.model}-endless"), READERS)
            after = await still(running)
            beside = await closed_loop(shape, 8, 0.5)
            for reader in stalled:
                reader.leave()
            await asyncio.sleep(CLOSING_S)
            grown_mb = sum(after.values()) - sum(before.values())
            return grown_mb * 1e6 / 1024 / READERS, warm.failed + beside.failed, beside.completed

        each_kib, failed, completed = uvloop.run(run())
    assert each_kib < KIB_MAX
    assert (failed, completed > 0) == (0, True)


def test_what_is_too_much_is_refused_with_advice_and_the_rest_is_answered() -> None:
    found = measure_overload(Cores(), 1.0, {"edge": {"calls_max": 4}})
    # 128 connections on four places: most of what the search for the peak asks is refused.
    assert len(found.peak.refusals_s) > 0
    for tally in (found.peak, found.over):
        assert tally.completed > 0
        assert set(tally.failures) <= {"503"}
        assert tally.without_advice == 0
    assert found.peak_probed.failures == []
    assert found.probed.failures == []


def test_a_soak_counts_every_call_and_every_process() -> None:
    found = Soak()
    soak(Cores(), 200, 40, found, turns=2)
    assert (found.requests >= 200, found.streams >= 40, found.failed) == (True, True, 0)
    assert set(found.turns[-1][3]) == {"up", "auth", "usage", "router", "edge"}
