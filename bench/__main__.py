"""``python -m bench [MODE]``: measures the gateway, beside its peers (``compare``, the default) and
against what it promises of itself (``stalled``, ``overload``, ``soak``); ``all`` is one after the
other.

The gateway with all its processes has one core, the load and the upstream another. Ctrl-C ends a
run, and everything that it started, and prints what was seen so far.
"""

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

from bench import plot, report, targets
from bench.compare import Bench, Options, quick, say
from bench.gateways import GATEWAYS
from bench.machine import Cores, parse_cores
from bench.overload import measure_overload
from bench.soak import Soak, soak
from bench.stalled import measure_stalled

INTERRUPTED: Final = 130
"""The exit status that shells know an interrupted command by."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = [gateway.name for gateway in GATEWAYS]
    add = parser.add_argument
    add("mode", nargs="?", default="compare", choices=list(MODES))
    add("--quick", action="store_true", help="a look in two or three minutes, not for publishing")
    add("--write", action="store_true", help="write bench/RESULTS.md, results.json and the plot")
    add("--cores", type=parse_cores, default=Cores(), help="the gateway's and the load's: 0,1")
    add("--only", nargs="*", default=names, metavar="NAME", help=f"compare: of {' '.join(names)}")
    add("--rounds", type=int, default=3, help="compare: how often all is measured (3)")
    add("--seconds", type=float, default=2.0, help="compare: how long a measurement takes (2)")
    add("--calls", type=int, default=0, help="soak: requests; a tenth as many streams (1,000,000)")
    add("--minutes", type=float, default=15.0, help="compare: no round begins that ends later (15)")
    return parser


def _compare(arguments: argparse.Namespace) -> int:
    """All gateways beside each other; the exit status is 1 when a target was missed."""
    options = Options(
        only=arguments.only,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        minutes_max=arguments.minutes,
        cores=arguments.cores,
    )
    bench = Bench(quick(options) if arguments.quick else options)
    interrupted = False
    try:
        bench.run()
    except KeyboardInterrupt:
        interrupted = True
        say("interrupted; what was seen so far:")
    found = bench.found
    if not found.results:
        return INTERRUPTED
    text = report.render(found)
    print(text)
    if arguments.write and not interrupted:
        plot.draw(found.results, report.PLACE / "results.png")
        report.write("compare", text, arguments.cores, report.figures(found))
    held = targets.lines(found.results, found.memory)
    say(report.verdicts(held))
    if interrupted:
        return INTERRUPTED
    return int(any(line.verdict == "missed" for line in held))


def _stalled(arguments: argparse.Namespace) -> int:
    """Readers that stop reading."""
    readers, seconds = (100, 15.0) if arguments.quick else (1000, 40.0)
    found = measure_stalled(arguments.cores, readers, readers, seconds)
    figures = {
        "before_mb": found.before_mb,
        "after_mb": found.after_mb,
        "kernel_kib": found.kernel_kib,
    }
    return _say(arguments, "stalled", Section(found.lines(), found.text(), figures))


def _overload(arguments: argparse.Namespace) -> int:
    """More than it can do."""
    found = measure_overload(arguments.cores, 3.0 if arguments.quick else 15.0)
    figures = {"peak": found.peak.rate, "offered": found.rate, "answered": found.over.rate}
    return _say(arguments, "overload", Section(found.lines(), found.text(), figures))


def _soak(arguments: argparse.Namespace) -> int:
    """Memory over many calls."""
    calls = arguments.calls or (20_000 if arguments.quick else 1_000_000)
    found = Soak()
    try:
        soak(arguments.cores, calls, calls // 10, found)
    except KeyboardInterrupt:
        print(found.text())
        return INTERRUPTED
    figures = {"turns": found.turns}
    return _say(arguments, "soak", Section(found.lines(), found.text(), figures))


@dataclass(frozen=True, slots=True)
class Section:
    """What a mode has to say."""

    lines: Sequence[targets.Line]
    text: str
    figures: Mapping[str, Any]


def _say(arguments: argparse.Namespace, mode: str, section: Section) -> int:
    """Prints and, if asked to, writes a mode's section; 1 when a target was missed."""
    held = "\n".join([targets.HEAD, *(line.text() for line in section.lines)])
    text = f"{held}\n\n{section.text}"
    print(text)
    if arguments.write:
        report.write(mode, text, arguments.cores, section.figures)
    say(report.verdicts(section.lines))
    return int(any(line.verdict == "missed" for line in section.lines))


def _all(arguments: argparse.Namespace) -> int:
    """One mode after the other; one that breaks does not keep the others from being run."""
    status = 0
    for name, mode in MODES.items():
        if mode is _all:
            continue
        say(f"== {name}")
        try:
            ended = mode(arguments)
        except (RuntimeError, OSError) as error:
            say(f"{name} could not be run: {error}")
            ended = 1
        if ended == INTERRUPTED:
            return ended
        status = max(status, ended)
    return status


MODES: Final = {
    "compare": _compare,
    "stalled": _stalled,
    "overload": _overload,
    "soak": _soak,
    "all": _all,
}


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Runs one mode."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    arguments.cores.check()
    try:
        status = MODES[arguments.mode](arguments)
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)


if __name__ == "__main__":
    main()
