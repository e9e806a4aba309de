"""A server of the test's calls in a process of its own, for tests that kill or stop it.

``python -m tests.runtime.calls_server ADDRESS`` prints ``ready PORT`` once it serves.
"""

import asyncio
import sys

import uvloop

from runtime.config import RpcSettings
from tests.runtime.calls_transports import Seen, handlers, serving


async def main(address: str) -> None:
    async with serving(address, RpcSettings(), handlers(Seen())) as server:
        print("ready", server is not None, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
