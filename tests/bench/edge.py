"""What the edge itself costs: its CPU time by request and by chunk, between a load generator and a
router that answers at once, each in a process of its own.

Run it with ``python -m tests.bench.edge``. Ratios of one run are worth more than figures of two:
the machine is shared. ``--profile PATH`` writes a cProfile of the edge.
"""

import argparse
import asyncio
import cProfile
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import uvloop

from bench.load import Shape, closed_loop, quantile
from edge.app import open_edge
from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from runtime.calls import ServerCall
from runtime.config import EdgeSettings, Settings, TelemetrySettings
from tests.edge.stage import (
    BODY,
    KEY,
    METERED,
    MODEL,
    SERVED,
    Event,
    ScriptedRouter,
    chunk,
    send,
)
from tests.gateway import free_port
from tests.runtime.scripted_auth import ScriptedAuth, served

CHUNKS = 64
TICKS_S = os.sysconf("SC_CLK_TCK")


async def answer(call: ServerCall, request: chat_pb2.ChatRequest) -> None:
    """A provider of the dialect that answers at once, 64 chunks one by one."""
    if not request.stream:
        await send(call, Event(served=SERVED), Event(native=BODY * 5), Event(metered=METERED))
        return
    await send(call, Event(served=SERVED), Event(native=chunk("Hello")))
    for _ in range(CHUNKS - 1):
        await send(call, Event(native=chunk("Hello")))
    await send(call, Event(metered=METERED))


DELTA = Event(delta=chat_pb2.ChatDelta(choices=[chat_pb2.ChoiceDelta(text="Hello")]))
WHOLE = Event(
    answer=chat_pb2.ChatAnswer(
        choices=[
            chat_pb2.Choice(
                message=content_pb2.Message(
                    parts=[content_pb2.Part(text=content_pb2.TextPart(text="Hello " * 160))]
                ),
                finish_reason=chat_pb2.FINISH_REASON_STOP,
            )
        ]
    )
)


async def answer_typed(call: ServerCall, request: chat_pb2.ChatRequest) -> None:
    """The same of another dialect."""
    if request.HasField("native"):
        await send(call, Event(typed_required=chat_pb2.TypedRequired()))
        await call.receive()
    if not request.stream:
        await send(call, Event(served=SERVED), WHOLE, Event(metered=METERED))
        return
    await send(call, Event(served=SERVED), DELTA)
    for _ in range(CHUNKS - 1):
        await send(call, DELTA)
    await send(call, Event(metered=METERED))


async def peers(directory: Path, *, typed: bool) -> None:
    """Auth and router, until they are killed."""
    auth, router = ScriptedAuth(), ScriptedRouter()
    auth.add(KEY_OF_ALL)
    router.script = answer_typed if typed else answer
    await served(auth, directory)
    await router.serve(directory)
    await asyncio.Event().wait()


KEY_OF_ALL = os.environ.get("BENCH_KEY", KEY)
"""One key for all three processes."""


async def edge(directory: Path, port: int) -> None:
    """The edge, until it is told to stop."""
    settings = Settings(
        edge=replace(
            EdgeSettings(port=port, drain_notice_s=0, drain_timeout_s=0),
            auth=f"unix:{directory}/auth.sock",
            routers=(f"unix:{directory}/router-0.sock",),
        ),
        telemetry=TelemetrySettings(access_log=True),
    )
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with AsyncExitStack() as closing:
        made = await open_edge(settings, closing)
        await made.start()
        await stop.wait()
        await made.drain()


def cpu_s(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_S


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """This module in another role."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bench.edge", *arguments],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "BENCH_KEY": KEY_OF_ALL},
    ) as started:
        try:
            yield started
        finally:
            started.terminate()
            started.wait(10)


async def measured(pid: int, shape: Shape, connections: int, seconds: float) -> None:
    """Prints one line of the table."""
    await closed_loop(shape, connections, seconds / 4)
    before = cpu_s(pid)
    tally = await closed_loop(shape, connections, seconds)
    # A tenth of the time ran unmeasured before the tally began.
    used_s = (cpu_s(pid) - before) / 1.1
    each_us = used_s / max(tally.completed, 1) * 1e6
    kind = "stream" if shape.stream else "answer"
    chunk_us = f" {each_us / CHUNKS:6.2f} us a chunk" if shape.stream else ""
    print(
        f"{kind} {shape.body_bytes:>8} B  c={connections:<4} {tally.rate:8.0f}/s "
        f"edge CPU {each_us:8.1f} us{chunk_us}  p50 {quantile(tally.latencies_s, 0.5) * 1e3:.2f} ms"
        f"  p99 {quantile(tally.latencies_s, 0.99) * 1e3:.2f} ms  failed {tally.failed}"
    )


async def load(pid: int, port: int, arguments: argparse.Namespace) -> None:
    """All lines of the table."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            break
    for stream in (False, True):
        for body_bytes in (600,) if stream or arguments.typed else (600, 100_000, 1_000_000):
            for connections in arguments.connections:
                shape = Shape(
                    port=port, model=MODEL, key=KEY_OF_ALL, stream=stream, body_bytes=body_bytes
                )
                if arguments.only in ("", f"{'stream' if stream else 'answer'}{body_bytes}"):
                    await measured(pid, shape, connections, arguments.seconds)


def main() -> None:
    """Runs one role, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", nargs="?", default="all", choices=["all", "peers", "edge"])
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--typed", action="store_true")
    parser.add_argument("--only", default="", help="answer600, stream600, …")
    parser.add_argument("--connections", type=int, nargs="*", default=[1, 32, 128])
    parser.add_argument("--profile")
    arguments = parser.parse_args()
    match arguments.role:
        case "peers":
            uvloop.run(peers(arguments.directory, typed=arguments.typed))
        case "edge":
            profile = cProfile.Profile()
            if arguments.profile:
                profile.enable()
            uvloop.run(edge(arguments.directory, arguments.port))
            if arguments.profile:
                profile.dump_stats(arguments.profile)
        case _:
            with tempfile.TemporaryDirectory() as directory:
                port = free_port()
                common = ["--directory", directory] + (["--typed"] if arguments.typed else [])
                profiled = ["--profile", arguments.profile] if arguments.profile else []
                with (
                    process("peers", *common),
                    process("edge", *common, "--port", str(port), *profiled) as serving,
                ):
                    uvloop.run(load(serving.pid, port, arguments))


if __name__ == "__main__":
    main()
