"""The comparison: all gateways beside each other in one run, one measurement after the other over
all of them (A B C, A B C, …), so that a slow minute of the machine hits each.

All are up for the whole run; one that is not measured has nothing to do, and what the gateways'
core does beside the one that is measured is watched and reported as foreign.
"""

import contextlib
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvloop

from bench.gateways import GATEWAYS, PORT, Gateway, Place, direct
from bench.load import closed_loop, quantile
from bench.machine import Cores
from bench.plan import (
    BODY_1M,
    FIRST_400,
    LATENCY_400,
    PACED,
    PLAN,
    REQUESTS_32,
    REQUESTS_128,
    STREAMS,
    Measurement,
    Memory,
    Results,
    Round,
    Series,
    measure,
)
from bench.processes import Running
from bench.targets import DIRECT

WARM_UP_S: Final = 1.0
QUICK: Final = [REQUESTS_32, REQUESTS_128, STREAMS, PACED, LATENCY_400, FIRST_400, BODY_1M]
KEEPS_UP: Final = 0.95
"""The share of what a gateway can do at most up to which it is asked at a rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a comparison is run."""

    only: Sequence[str] = tuple(gateway.name for gateway in GATEWAYS)
    rounds: int = 3
    seconds: float = 2.0
    minutes_max: float = 15.0
    plan: Sequence[Measurement] = tuple(PLAN)
    cores: Cores = field(default_factory=Cores)


@dataclass(slots=True)
class Comparison:
    """What a run has given so far."""

    results: Results = field(default_factory=dict)
    memory: dict[str, Memory] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rounds: int = 0


class Bench:
    """One run; what it has seen stands in ``found`` however it ends."""

    def __init__(self, options: Options) -> None:
        self.found = Comparison()
        self._options = options
        self._running: dict[str, Running] = {}
        self._done = 0

    def run(self) -> None:
        """Starts everything, measures, ends everything."""
        options = self._options
        with contextlib.ExitStack() as closing:
            self._start(closing)
            began_s = time.monotonic()
            for number in range(options.rounds):
                round_s = time.monotonic()
                say(f"round {number + 1} of {options.rounds}")
                for measurement in options.plan:
                    for name in list(self._running):
                        self._take(name, measurement)
                self.found.rounds = number + 1
                self._remember()
                took_s = time.monotonic() - round_s
                spent_s = time.monotonic() - began_s
                if number + 1 < options.rounds and spent_s + took_s > options.minutes_max * 60:
                    self._note(
                        f"stopped after {number + 1} of {options.rounds} rounds: a round took"
                        f" {took_s:.0f} s and the run may take {options.minutes_max:g} minutes"
                    )
                    break

    def _start(self, closing: contextlib.ExitStack) -> None:
        upstream = closing.enter_context(direct(self._place(closing, 0)))
        self._running[DIRECT] = upstream
        chosen = [gateway for gateway in GATEWAYS if gateway.name in self._options.only]
        for number, gateway in enumerate(chosen, 1):
            if not gateway.installed():
                self._note(f"{gateway.name} is not installed (python -m bench.install)")
                continue
            self._start_one(gateway, self._place(closing, number), closing)
        for name, running in self._running.items():
            pss_mb, by_process = running.pss_mb(), running.rss_mb()
            idle_mb = sum(by_process.values())
            self.found.memory[name] = Memory(
                idle_mb=idle_mb, idle_pss_mb=pss_mb, loaded_mb=idle_mb, by_process=by_process
            )
        say("warming up …")
        for running in self._running.values():
            for measurement in (REQUESTS_32, STREAMS):
                uvloop.run(closed_loop(measurement.shape(running), 8, WARM_UP_S))
            running.settle()

    def _start_one(self, gateway: Gateway, place: Place, closing: contextlib.ExitStack) -> None:
        say(f"starting {gateway.name} …")
        try:
            self._running[gateway.name] = closing.enter_context(gateway.start(place))
        except (RuntimeError, OSError, ValueError) as error:
            self._note(f"{gateway.name} did not start: {str(error).splitlines()[0][:200]}")
            say(str(error))

    def _place(self, closing: contextlib.ExitStack, number: int) -> Place:
        # A unix socket's path may have 100 bytes: the name stays short.
        directory = closing.enter_context(tempfile.TemporaryDirectory(prefix="ogb"))
        return Place(
            directory=Path(directory),
            port=PORT + number,
            upstream=PORT,
            cores=self._options.cores,
        )

    def _take(self, name: str, measurement: Measurement) -> None:
        """One measurement of one gateway."""
        running = self._running[name]
        if measurement.rate > KEEPS_UP * self._rate_max(name, measurement):
            say(f"  {name:12} {measurement.name:34} left out: it cannot do {measurement.rate:g}/s")
            return
        taken = measure(measurement, running, self._options.cores, self._options.seconds)
        if not running.processes():
            self._note(f"{name} has ended by itself during {measurement.name}")
            del self._running[name]
            return
        by_gateway = self.found.results.setdefault(measurement.name, {})
        by_gateway.setdefault(name, Series()).add(taken)
        _progress(name, measurement, taken)
        if not running.settle():
            self._note(f"{name} was still busy 30 s after {measurement.name}")

    def _rate_max(self, name: str, measurement: Measurement) -> float:
        """What the gateway did at most in this run, per second."""
        fastest = STREAMS if measurement.stream else REQUESTS_32
        series = self.found.results.get(fastest.name, {}).get(name)
        return series.median("rate") if series is not None else float("inf")

    def _remember(self) -> None:
        """Memory after the load so far."""
        for name, running in self._running.items():
            before = self.found.memory[name]
            by_process = running.rss_mb()
            self.found.memory[name] = Memory(
                idle_mb=before.idle_mb,
                idle_pss_mb=before.idle_pss_mb,
                loaded_mb=sum(by_process.values()),
                by_process=before.by_process,
            )

    def _note(self, text: str) -> None:
        if text not in self.found.notes:
            self.found.notes.append(text)
            say(f"  note: {text}")


def quick(options: Options) -> Options:
    """A look in two or three minutes: one short round of what the targets are about."""
    return Options(only=options.only, rounds=1, seconds=1.0, plan=tuple(QUICK), cores=options.cores)


def say(text: str) -> None:
    """Progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


def _progress(name: str, measurement: Measurement, taken: Round) -> None:
    tally = taken.tally
    times = tally.first_bytes_s if measurement.stream else tally.latencies_s
    what = "first byte" if measurement.stream else "answer"
    failures = dict(sorted(tally.failures.items(), key=lambda item: -item[1])[:4])
    troubles = f"  failed: {failures}" if tally.failed else ""
    foreign = f"  foreign load {taken.foreign:.0%}" if taken.foreign > 0.05 else ""
    say(
        f"  {name:12} {measurement.name:34} {tally.rate:8.0f}/s"
        f"  {what} p50 {quantile(times, 0.5) * 1e3:8.2f} ms{foreign}{troubles}"
    )
