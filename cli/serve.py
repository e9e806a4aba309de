"""``onegate serve``: runs one service in this process. The entry point of the container image.

Reads its flags by itself: this process holds nothing that its service does not need.
"""

import argparse
import asyncio
import gc
import importlib
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

import uvloop

from cli.link import ChildLink
from cli.settings import RunFlags, read_settings
from runtime import telemetry
from runtime.config import ConfigError, Settings, nth_worker
from runtime.resident import GIVE_BACK_S, give_back

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


def main(arguments: Sequence[str]) -> None:
    """Runs the service that the arguments name. A mistake in them or in the settings ends the
    process with status 2.
    """
    flags = _parser().parse_args(arguments)
    given = RunFlags(
        host=flags.host,
        port=flags.port,
        data_dir=flags.data_dir,
        workers=flags.workers,
        salvage=flags.salvage,
    )
    try:
        settings = read_settings(
            flags.config, given.overrides(), calls_providers=flags.service == "router"
        )
        settings = nth_worker(settings, flags.index)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    if flags.link_descriptor is not None:
        # Under `onegate up` no balancer watches readiness: Ctrl-C need not wait for one.
        settings = replace(settings, edge=replace(settings.edge, drain_notice_s=0.0))
    serve(flags.service, settings, flags.link_descriptor)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="onegate serve", description="Run one service.")
    parser.add_argument("service", choices=list(SERVICES))
    parser.add_argument("--host", help="edge: address to listen on")
    parser.add_argument("--port", type=int, help="edge: port to listen on")
    parser.add_argument("--data-dir", type=Path, help="where databases, journal and sockets live")
    parser.add_argument(
        "--config", "-c", type=Path, help="configuration file; default: onegate.toml if it exists"
    )
    parser.add_argument("--workers", type=int, help="how many routers there are")
    parser.add_argument(
        "--salvage",
        action="store_true",
        help="start with a damaged journal: keep what is whole",
    )
    parser.add_argument(
        "--index",
        type=int,
        default=0,
        help="which of several; names the router's journal",
    )
    parser.add_argument("--link-descriptor", type=int, help=argparse.SUPPRESS)
    return parser


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
        loop.call_later(GIVE_BACK_S, give_back)
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
