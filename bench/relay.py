"""The relay by itself: what a call costs each side, one process a side, over a unix socket.

Run by hand: ``.venv/bin/python -m bench.relay [--seconds 5] [--gather 0.002] [--rounds 3]``. CPU
time is the process's own, so that a busy machine changes calls/s more than µs per call. ``plain``
is the same handler behind the ordinary server-streaming RPC; ``bare`` is a unary call of grpc.aio
with nothing of ours around it, the yardstick for the machine.
"""

import argparse
import asyncio
import contextlib
import functools
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import uvloop

from runtime.calls import ServerCall
from runtime.clock import SystemClock
from runtime.config import RpcSettings
from runtime.relay import RelayPool
from runtime.rpc import RpcServer, channel

ECHO = "/onegate.bench.v1.Bench/Echo"
STREAM = "/onegate.bench.v1.Bench/Stream"
CPU = "/onegate.bench.v1.Bench/Cpu"
BODY = b"x" * 700
PIECE = b"y" * 280
PIECES = 64
METADATA = {"authorization": "Bearer sk-og-" + "a" * 46, "x-request-id": "0" * 36}

Work = Callable[[], Awaitable[None]]


async def echo(call: ServerCall) -> None:
    await call.send(call.request)


async def stream(call: ServerCall) -> None:
    for _ in range(PIECES):
        await call.send(PIECE)


async def cpu(call: ServerCall) -> None:
    await call.send(struct.pack("d", time.process_time()))


class Bare(grpc.GenericRpcHandler):
    """An echo without anything of ours."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method == ECHO:
            return grpc.unary_unary_rpc_method_handler(self.echo)
        return None

    async def echo(self, request: bytes, _context: object) -> bytes:
        return request


async def serve(address: str, settings: RpcSettings) -> None:
    """The serving process."""
    bare = grpc.aio.server(handlers=(Bare(),))
    bare.add_insecure_port(f"{address}.bare")
    await bare.start()
    server = RpcServer(settings, "bench")
    server.add_calls({ECHO: echo, STREAM: stream, CPU: cpu})
    await server.start(address)
    done = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
    await done.wait()
    await server.stop(1)
    await bare.stop(0)


class Client:
    """The calling process."""

    def __init__(self, address: str, settings: RpcSettings) -> None:
        self.pool = RelayPool((address,), settings, SystemClock())
        self.channel = channel(address, settings)
        self.bare_channel = grpc.aio.insecure_channel(f"{address}.bare")

    async def start(self) -> None:
        await self.pool.start()
        deadline = time.monotonic() + 10
        while not self.pool.ready:
            assert time.monotonic() < deadline, "the server did not come up"
            await asyncio.sleep(0.01)

    async def relayed(self, method: str) -> None:
        call = self.pool.call(method, BODY, metadata=METADATA, timeout_s=60)
        while await call.receive() is not None:
            pass

    async def plain(self, method: str) -> None:
        metadata = tuple(METADATA.items())
        ask: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream(method)
        async for _ in ask(BODY, timeout=60, metadata=metadata):
            pass

    async def bare(self) -> None:
        ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.bare_channel.unary_unary(ECHO)
        await ask(BODY)

    async def close(self) -> None:
        await self.pool.close()
        await self.channel.close()
        await self.bare_channel.close()

    async def server_cpu_s(self) -> float:
        call = self.pool.call(CPU, b"", metadata={}, timeout_s=10)
        payload = await call.receive()
        assert payload
        return float(struct.unpack("d", payload)[0])


async def measure(
    client: Client, work: Work, concurrency: int, seconds: float
) -> tuple[float, float, float]:
    """Calls a second, µs of CPU a call here, µs of CPU a call there."""
    calls = 0
    end = time.perf_counter() + seconds

    async def repeat() -> None:
        nonlocal calls
        while time.perf_counter() < end:
            await work()
            calls += 1

    await work()
    theirs, ours, began = await client.server_cpu_s(), time.process_time(), time.perf_counter()
    await asyncio.gather(*(repeat() for _ in range(concurrency)))
    took, ours = time.perf_counter() - began, time.process_time() - ours
    theirs = await client.server_cpu_s() - theirs
    return calls / took, ours / calls * 1e6, theirs / calls * 1e6


async def compare(client: Client, rounds: int, seconds: float) -> None:
    """All cases, round after round; medians."""
    cases: dict[str, tuple[Work, int]] = {}
    for concurrency in (1, 32, 128):
        cases[f"relay echo, {concurrency} at once"] = (
            functools.partial(client.relayed, ECHO),
            concurrency,
        )
    cases["relay stream of 64, 32 at once"] = (functools.partial(client.relayed, STREAM), 32)
    cases["plain echo, 32 at once"] = (functools.partial(client.plain, ECHO), 32)
    cases["plain stream of 64, 32 at once"] = (functools.partial(client.plain, STREAM), 32)
    cases["bare unary echo, 32 at once"] = (client.bare, 32)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, (work, concurrency) in cases.items():
            found[name].append(await measure(client, work, concurrency, seconds))
    print(f"{'':34}{'calls/s':>10}{'caller µs':>11}{'server µs':>11}{'sum µs':>9}")
    for name, results in found.items():
        rate, ours, theirs = (statistics.median(column) for column in zip(*results, strict=True))
        print(f"{name:34}{rate:10.0f}{ours:11.1f}{theirs:11.1f}{ours + theirs:9.1f}")


async def call(address: str, settings: RpcSettings, rounds: int, seconds: float) -> None:
    client = Client(address, settings)
    await client.start()
    try:
        await compare(client, rounds, seconds)
    finally:
        await client.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is repeated")
    parser.add_argument("--gather", type=float, default=0.002, help="relay_gather_s")
    parser.add_argument("--serve", metavar="ADDRESS", help=argparse.SUPPRESS)
    given = parser.parse_args()
    settings = RpcSettings(relay_gather_s=given.gather)
    if given.serve:
        uvloop.run(serve(given.serve, settings))
        return
    with tempfile.TemporaryDirectory() as directory:
        address = f"unix:{Path(directory) / 'relay.sock'}"
        command = [sys.executable, "-m", "bench.relay", "--serve", address]
        server = subprocess.Popen([*command, "--gather", str(given.gather)])
        try:
            uvloop.run(call(address, settings, given.rounds, given.seconds))
        finally:
            with contextlib.suppress(ProcessLookupError):
                server.terminate()
            server.wait(10)


if __name__ == "__main__":
    main()
