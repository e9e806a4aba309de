"""Counts, in a process of the gateway, the bytecode instructions that our own code executes.

Python imports this by its name, at start, from ``PYTHONPATH``. SIGUSR1 begins to count; SIGUSR2
writes the counts so far and the allocated blocks to ``<pid>.json`` in ``GUARD_DIR``. What runs in C
or in libraries is not counted: neither changes with a commit of ours, and timers in them would make
the figures differ from run to run.
"""

import gc
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
OURS = tuple(f"{ROOT}/{room}/" for room in ("edge", "runtime", "services"))
COUNTS: Counter[CodeType] = Counter()


def trace(frame: FrameType, event: str, _argument: object) -> Any:
    """For Python 3.11, which has no sys.monitoring: one thread, and slower."""
    if event == "call":
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
    elif event == "opcode":
        COUNTS[frame.f_code] += 1
    return trace


def begin(_number: int, _frame: FrameType | None) -> None:
    """Counts from now on."""
    monitoring: Any = getattr(sys, "monitoring", None)
    if monitoring is None:
        sys.settrace(trace)
        return
    tool = monitoring.PROFILER_ID

    def executed(code: CodeType, _offset: int) -> Any:
        if code.co_filename.startswith(OURS):
            COUNTS[code] += 1
            return None
        return monitoring.DISABLE

    monitoring.use_tool_id(tool, "guard")
    monitoring.register_callback(tool, monitoring.events.INSTRUCTION, executed)
    monitoring.set_events(tool, monitoring.events.INSTRUCTION)


def tell(_number: int, _frame: FrameType | None) -> None:
    """Writes what was counted so far."""
    by_function = {
        f"{code.co_filename.removeprefix(f'{ROOT}/')}:{code.co_qualname}": count
        for code, count in list(COUNTS.items())
    }
    gc.collect()
    told = {"instructions": by_function, "blocks": sys.getallocatedblocks()}
    path = Path(os.environ["GUARD_DIR"]) / f"{os.getpid()}.json"
    path.with_suffix(".new").write_text(json.dumps(told))
    path.with_suffix(".new").replace(path)


if "GUARD_DIR" in os.environ and "serve" in sys.orig_argv:
    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, tell)
