"""Keeps a set of processes running: starts them in order, restarts what dies, stops them in order.

One readable log: every child writes its own lines, which are passed on as they come.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TextIO

from cli.link import READY
from runtime.clock import Clock

BACKOFF_FIRST_S: Final = 0.25
BACKOFF_MAX_S: Final = 10.0
HEALTHY_AFTER_S: Final = 60.0
START_TIMEOUT_S: Final = 30.0
LINE_BYTES_MAX: Final = 1 << 20


class StartError(Exception):
    """A process never came to serve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One process: its name in the log, its command, and how long it may take to stop, in
    seconds.
    """

    name: str
    command: Sequence[str]
    stop_timeout_s: float


class Child:
    """One supervised process, over all its restarts."""

    def __init__(self, program: Program, clock: Clock, out: TextIO) -> None:
        self.program = program
        self.restarts = 0
        self._clock = clock
        self._out = out
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """The process id while the process runs."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    async def start(self) -> None:
        """Starts the process and returns when it serves. Raises :class:`StartError`."""
        pumps = await self._spawn()
        self._keeper = asyncio.get_running_loop().create_task(self._keep(pumps))

    async def stop(self) -> None:
        """Asks the process to stop, and ends it when it takes too long."""
        self._stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), self.program.stop_timeout_s)
            except TimeoutError:
                self._say("did not stop in time, killed")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        if self._keeper is not None:
            # The keeper may be waiting to restart a process that is gone already.
            if process is None or process.returncode is not None:
                await asyncio.wait({self._keeper}, timeout=1.0)
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper

    def hurry(self) -> None:
        """Passes a second signal on: the process ends at once."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _keep(self, pumps: asyncio.Task[None]) -> None:
        """Restarts the process whenever it ends, until it is asked to stop."""
        delay_s = BACKOFF_FIRST_S
        while True:
            process = self._process
            if process is None:
                return
            started = self._clock.monotonic()
            status = await process.wait()
            await pumps
            if self._stopping:
                return
            if self._clock.monotonic() - started > HEALTHY_AFTER_S:
                delay_s = BACKOFF_FIRST_S
            self._say(f"ended with {_describe(status)}, starts again in {delay_s:g} s")
            while True:
                await self._clock.sleep(delay_s)
                delay_s = min(delay_s * 2, BACKOFF_MAX_S)
                try:
                    pumps = await self._spawn()
                except StartError as error:
                    self._say(f"{error}, tries again in {delay_s:g} s")
                    continue
                self.restarts += 1
                break

    async def _spawn(self) -> asyncio.Task[None]:
        """Starts the process once; gives the task that passes its log on."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *self.program.command,
                "--link-descriptor",
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                limit=LINE_BYTES_MAX,
            )
        self._process = process
        pumps = asyncio.get_running_loop().create_task(self._pass_log_on(process, ours))
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                word = await asyncio.get_running_loop().sock_recv(ours, len(READY))
        except TimeoutError:
            process.kill()
            word = b""
        if word != READY:
            status = await process.wait()
            await pumps
            raise StartError(f"{self.program.name} did not start ({_describe(status)})")
        return pumps

    async def _pass_log_on(self, process: asyncio.subprocess.Process, link: socket.socket) -> None:
        """Copies the process's lines to the log; keeps the link open as long as the process
        lives.
        """
        with link:
            stream = process.stdout
            while stream is not None:
                try:
                    line = await stream.readline()
                except ValueError:
                    self._say("wrote a line that is too long; it is left out")
                    continue
                if not line:
                    break
                self._out.write(line.decode("utf-8", "replace"))
                self._out.flush()
            await process.wait()

    def _say(self, text: str) -> None:
        now = self._clock.now()
        stamp = f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03d}Z"
        self._out.write(f"{stamp} up       warning {self.program.name} {text}\n")
        self._out.flush()


def _describe(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    return f"signal {signal.Signals(-status).name}"


async def supervise(
    stages: Sequence[Sequence[Program]],
    *,
    clock: Clock,
    on_ready: Callable[[Sequence[Child]], None],
    out: TextIO = sys.stderr,
) -> None:
    """Starts stage after stage, keeps all running until SIGINT or SIGTERM, then stops in reverse.

    Raises :class:`StartError` when a process does not come up the first time; what runs is stopped.
    """
    stages_of_children = [[Child(program, clock, out) for program in stage] for stage in stages]
    children = [child for stage in stages_of_children for child in stage]
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            for child in children:
                child.hurry()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    stopped = loop.create_task(stop.wait())
    try:
        for stage in stages_of_children:
            starting = asyncio.gather(*(child.start() for child in stage))
            either: set[asyncio.Future[Any]] = {starting, stopped}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                starting.cancel()
                with contextlib.suppress(asyncio.CancelledError, StartError):
                    await starting
                return
            await starting
        on_ready(children)
        await stopped
    finally:
        stopped.cancel()
        for stage in reversed(stages_of_children):
            await asyncio.gather(*(child.stop() for child in stage))


def exclusive(path: str) -> int:
    """Takes the lock of a data directory; gives the descriptor that holds it. Raises
    BlockingIOError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.lockf(descriptor, os.F_TLOCK, 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
