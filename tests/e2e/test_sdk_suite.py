"""The official SDK's own test suite, unmodified, with the gateway as its API.

Its key is written into it (``My API Key``), so a byte-for-byte proxy stands before the gateway
that puts a gateway key in its place; nothing else is touched.
"""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.gateway import free_port, running_gateway, wait_until

SUITE = next(
    iter(sorted((Path(__file__).resolve().parents[2] / ".venv" / "sdist").glob("openai-*/tests"))),
    None,
)
SUITE_KEY = b"Bearer My API Key"
PYTEST = ("-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", "-k", "create")
CONFIG = """
[[provider]]
name = "mock"
kind = "openai"
base_url = "http://127.0.0.1:{port}/v1"
api_key_env = "MOCK_KEY"
models = ["gpt-6-astra"]
free = true
"""


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, old: bytes = b"", new: bytes = b""
) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data.replace(old, new) if old else data)
            await writer.drain()
    writer.close()


@contextmanager
def key_rewriting_proxy(port: int, key: str) -> Iterator[int]:
    """Listens on a port of its own; replaces the suite's key by ``key`` on the way to ``port``."""
    loop = asyncio.new_event_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(
            _pump(reader, up_writer, SUITE_KEY, f"Bearer {key}".encode()),
            _pump(up_reader, writer),
        )

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
        loop.close()


@contextmanager
def running_llmock(port: int, log: Path) -> Iterator[None]:
    """The fault-injecting upstream that nobody here wrote, without faults."""
    command = [str(Path(sys.executable).parent / "llmock"), "serve", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        wait_until(lambda: "Listening" in log.read_text(), 30, "llmock's start")
        yield
    finally:
        process.terminate()
        process.wait(10)


def test_every_create_test_of_the_official_sdk_passes(tmp_path: Path) -> None:
    assert SUITE is not None, "the suite is missing: run `make test`, which fetches it"
    upstream = free_port()
    with (
        running_llmock(upstream, tmp_path / "llmock.log"),
        running_gateway(
            tmp_path, CONFIG.format(port=upstream), environment={"MOCK_KEY": "mock"}
        ) as gateway,
        key_rewriting_proxy(gateway.port, gateway.api_key) as port,
    ):
        run = subprocess.run(
            [sys.executable, *PYTEST, "tests/api_resources/chat/test_completions.py"],
            cwd=SUITE.parent,
            env={**os.environ, "TEST_API_BASE_URL": f"http://127.0.0.1:{port}/v1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    print(run.stdout[-3000:])
    assert run.returncode == 0, run.stdout[-6000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout.splitlines()[-1]
