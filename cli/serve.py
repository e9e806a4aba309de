"""``onegate serve``: runs one service in this process. The entry point of the container image."""

import asyncio
import gc
import importlib
import logging
import signal
from collections.abc import Callable, Coroutine
from typing import Final, Protocol

import uvloop

from cli.link import ChildLink
from runtime import telemetry
from runtime.config import Settings

_log = logging.getLogger("onegate.serve")


class Run(Protocol):
    """A service's whole life: serves until ``stop`` is set, calls ``ready`` once it serves."""

    def __call__(
        self, settings: Settings, *, stop: asyncio.Event, ready: Callable[[], None]
    ) -> Coroutine[None, None, None]:
        """Runs the service."""
        ...


SERVICES: Final[dict[str, str]] = {
    "auth": "services.auth.server",
    "usage": "services.usage.server",
    "router": "services.router.server",
    "edge": "edge.app",
}
"""The module of each service. Imported by name, so that a process holds its own service only: the
others' libraries would cost it 40 MB."""


def run_of(service: str) -> Run:
    """A service's ``run``."""
    run: Run = importlib.import_module(SERVICES[service]).run
    return run


def serve(service: str, settings: Settings, link_descriptor: int | None = None) -> None:
    """Runs ``service`` until SIGTERM, SIGINT or the end of its supervisor; a second signal is
    fast.
    """
    telemetry.configure_logging(service, settings.telemetry)
    uvloop.run(_serve(run_of(service), settings, link_descriptor))


async def _serve(run: Run, settings: Settings, link_descriptor: int | None) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    link = ChildLink(link_descriptor) if link_descriptor is not None else None
    running: asyncio.Task[None] | None = None

    def on_signal() -> None:
        if stop.is_set() and running is not None:
            running.cancel()
        stop.set()

    def ready() -> None:
        # What lives now lives for good: the collector need not walk it again.
        gc.collect()
        gc.freeze()
        if link is not None:
            link.ready()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    if link is not None:
        link.watch(on_signal)
    running = loop.create_task(run(settings, stop=stop, ready=ready))
    try:
        await running
    except asyncio.CancelledError:
        _log.warning("stopped at once by a second signal")
    finally:
        if link is not None:
            link.close()
