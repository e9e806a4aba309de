"""The REST edge: the table of endpoints, and the process around it.

An endpoint is one row here and one pure module in ``edge/endpoints``. The edge translates and
knows no policy, price or provider.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Final

from edge.admin.endpoints import AdminEndpoints
from edge.admission import Admission, Bounds
from edge.calls import Call, Endpoint, KeyEndpoint, PageEndpoint
from edge.chat import ChatEndpoint
from edge.dispatch import Dispatcher, Ports, common_headers
from edge.endpoints.health import alive_body, ready_body
from edge.http import Response
from edge.http_server import HttpServer
from edge.models import ModelEndpoints
from runtime.clock import SystemClock, SystemEntropy
from runtime.config import EdgeSettings, Settings
from runtime.grants import GrantClient
from runtime.relay import RelayPool
from runtime.rpc import channel
from runtime.telemetry import CONTENT_TYPE, AccessLog, Metrics

START_TIMEOUT_S: Final = 5.0
"""How long the process waits for its peers before it serves without them."""
SMALL_DRAIN_S: Final = 10.0
"""How long administrative calls under way may take when the process stops; none takes longer."""
SMALL_BODY_BYTES_MAX: Final = 64 * 1024
"""The longest body of an endpoint that has no use for one."""

_LOG: Final = logging.getLogger(__name__)


class Edge:
    """The edge of one process."""

    def __init__(self, settings: Settings, ports: Ports, closing: AsyncExitStack) -> None:
        self._settings = settings
        self._ports = ports
        edge = settings.edge
        self._relay = RelayPool(edge.routers, settings.rpc, ports.clock, ports.entropy)
        routers = [channel(target, settings.rpc) for target in edge.routers]
        for router in routers:
            closing.push_async_callback(router.close)
        self._chat = ChatEndpoint(self._relay, edge, ports.clock)
        self._models = ModelEndpoints(routers, ports.clock)
        auth = channel(edge.auth, settings.rpc)
        closing.push_async_callback(auth.close)
        usage = channel(edge.usage, settings.rpc)
        closing.push_async_callback(usage.close)
        self._admin = AdminEndpoints(auth, usage, ports.clock)
        bounds = Bounds(calls_max=edge.calls_max, behind_max_s=edge.behind_max_s)
        self.admission = Admission(bounds, ports.clock, lambda: self._relay.late_s)
        self._tell_room(ports.metrics)
        self.server = self._server(self.endpoints(), edge)
        self.admin_server: HttpServer | None = None
        if edge.admin_address:
            host, _, port = edge.admin_address.rpartition(":")
            place = replace(edge, host=host.strip("[]"), port=int(port))
            self.admin_server = self._server([*self.pages(), *self._admin.endpoints()], place)
        self._draining = False

    def _tell_room(self, metrics: Metrics) -> None:
        """What is shown of overload."""
        admission = self.admission
        metrics.reading(
            "calls_waiting",
            "Model calls whose answer has not begun.",
            lambda: admission.waiting,
        )
        metrics.reading(
            "calls_waiting_max",
            "How many may wait; fewer while the gateway is behind.",
            lambda: admission.room.limit,
        )
        metrics.reading(
            "behind_seconds",
            "Lateness of edge and routers that has added up.",
            lambda: admission.room.behind_s,
        )

    def _server(self, endpoints: list[Endpoint], settings: EdgeSettings) -> HttpServer:
        """A server of some endpoints at ``settings``' host and port."""
        dispatcher = Dispatcher(endpoints, self._ports, settings.calls_max, self.admission)
        return HttpServer(dispatcher, settings, self._ports.clock)

    def pages(self) -> list[Endpoint]:
        """What needs no key."""
        return [
            PageEndpoint(name="healthz", method="GET", path="/healthz", page=self._alive),
            PageEndpoint(name="readyz", method="GET", path="/readyz", page=self._ready),
            PageEndpoint(name="metrics", method="GET", path="/metrics", page=self._metrics),
        ]

    def endpoints(self) -> list[Endpoint]:
        """The table of the port that calls come to."""
        body_bytes_max = self._settings.edge.body_bytes_max
        admin = [] if self._settings.edge.admin_address else self._admin.endpoints()
        return [
            *self.pages(),
            KeyEndpoint(
                name="chat.completions",
                method="POST",
                path="/v1/chat/completions",
                handle=self._chat.handle,
                body_bytes_max=body_bytes_max,
                sheds=True,
            ),
            KeyEndpoint(
                name="models.list",
                method="GET",
                path="/v1/models",
                handle=self._models.list,
                body_bytes_max=SMALL_BODY_BYTES_MAX,
            ),
            KeyEndpoint(
                name="models.get",
                method="GET",
                path="/v1/models/{id}",
                handle=self._models.get,
                body_bytes_max=SMALL_BODY_BYTES_MAX,
            ),
            *admin,
        ]

    async def start(self) -> int:
        """Connects and listens; returns the port."""
        await self._relay.start()
        self._ports.grants.start()
        self.admission.start()
        await self._connected()
        shared = self._settings.workers > 1
        if self.admin_server is not None:
            port = await self.admin_server.start(reuse_port=shared)
            _LOG.info("administration listens at port %d", port)
        return await self.server.start(reuse_port=shared)

    async def _connected(self) -> None:
        """Waits for the peers, but not for ever: without them calls are refused one by one, and
        readiness says why.
        """
        deadline_s = self._ports.clock.monotonic() + START_TIMEOUT_S
        while not all(self.checks().values()):
            if self._ports.clock.monotonic() >= deadline_s:
                missing = [name for name, there in self.checks().items() if not there]
                _LOG.warning("starting without: %s", ", ".join(missing))
                return
            await self._ports.clock.sleep(0.02)

    def checks(self) -> dict[str, bool]:
        """What serving needs, and whether it is there."""
        return {
            "router": self._relay.ready,
            "auth": self._ports.grants.ready,
            "accepting": not self._draining,
        }

    async def drain(self) -> None:
        """Stops serving: readiness goes first, then the listener, then what takes too long."""
        edge = self._settings.edge
        self._draining = self.server.draining = True
        await self._ports.clock.sleep(edge.drain_notice_s)
        await self.server.stop(edge.drain_timeout_s)
        if self.admin_server is not None:
            await self.admin_server.stop(SMALL_DRAIN_S)

    async def close(self) -> None:
        """Ends the connections to the peers."""
        self.admission.close()
        await self._relay.close()
        await self._ports.grants.close()

    def _alive(self, call: Call) -> Response:
        return Response(200, self._page_headers(call), alive_body())

    def _ready(self, call: Call) -> Response:
        checks = self.checks()
        status = 200 if all(checks.values()) else 503
        return Response(status, self._page_headers(call), ready_body(checks))

    def _metrics(self, call: Call) -> Response:
        headers = [("content-type", CONTENT_TYPE), ("x-request-id", call.request_id)]
        return Response(200, headers, self._ports.metrics.render())

    def _page_headers(self, call: Call) -> list[tuple[str, str]]:
        elapsed_s = self._ports.clock.monotonic() - call.request.received_s
        return common_headers(call.request_id, elapsed_s)


async def run(settings: Settings, *, stop: asyncio.Event, ready: Callable[[], None]) -> None:
    """Serves until ``stop`` is set, then drains. Raises ``OSError`` when the port is taken."""
    async with AsyncExitStack() as closing:
        edge = await open_edge(settings, closing)
        port = await edge.start()
        _LOG.info("listening on http://%s:%d", settings.edge.host, port)
        ready()
        await stop.wait()
        await edge.drain()


async def open_edge(settings: Settings, closing: AsyncExitStack) -> Edge:
    """The edge with everything it needs; ``closing`` takes it all down again."""
    clock, entropy = SystemClock(), SystemEntropy()
    auth = channel(settings.edge.auth, settings.rpc)
    closing.push_async_callback(auth.close)
    access_log = AccessLog("edge", settings.telemetry, clock)
    closing.push_async_callback(access_log.close)
    ports = Ports(
        clock=clock,
        entropy=entropy,
        grants=GrantClient(auth, clock, settings.rpc.revocation_grace_s, "edge"),
        metrics=Metrics("edge"),
        access_log=access_log,
    )
    edge = Edge(settings, ports, closing)
    closing.push_async_callback(edge.close)
    return edge
