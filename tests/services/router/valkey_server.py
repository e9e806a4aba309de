"""A real server that speaks Valkey's protocol, for tests: started, stopped, hung, killed."""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import valkey

BINARY = shutil.which("valkey-server") or shutil.which("redis-server")


class ValkeyServer:
    """One server on a unix socket in the directory; nothing of it survives its death."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "v.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it answers."""
        assert BINARY is not None
        self.process = subprocess.Popen(
            [BINARY, "--port", "0", "--unixsocket", str(self.socket), "--save", ""],
            stdout=subprocess.DEVNULL,
            cwd=self.socket.parent,
        )
        deadline_s = time.monotonic() + 20
        while True:
            try:
                with valkey.Valkey.from_url(self.url) as client:
                    client.ping()
                return
            except valkey.exceptions.ConnectionError:
                assert time.monotonic() < deadline_s
                time.sleep(0.01)

    def kill(self) -> None:
        """Its memory is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def hang(self) -> None:
        """It takes connections and commands and does nothing about them."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """It does everything it was asked to meanwhile."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def flush(self) -> None:
        """Its memory is gone while it runs."""
        with valkey.Valkey.from_url(self.url) as client:
            client.flushall()

    def subscribers(self, channel: str) -> int:
        """How many connections listen to a channel."""
        with valkey.Valkey.from_url(self.url) as client:
            return int(client.pubsub_numsub(channel)[0][1])

    async def close(self) -> None:
        """Ends it, in whatever state it is."""
        if self.process is not None:
            await asyncio.to_thread(self.kill)
