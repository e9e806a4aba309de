"""A gRPC server: the same refusals, deadlines, limits and shutdown for every method it serves.

Servicers and handlers raise ``GatewayError``; anything else they raise is a defect, which the
caller learns as INTERNAL and nothing more. Methods of two kinds stand side by side. *Servicers*
(``add``): plain RPCs, of which the streaming ones are subscriptions that end when the server
begins to stop, for the subscriber to find another. *Calls* (``add_calls``): handlers served both
as a server-streaming RPC and through the relay, which get the whole grace period to finish.
"""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, Final, TypeAlias, cast

import grpc
from grpc_health.v1 import (  # type: ignore[import-untyped]  # ships no type information
    health,
    health_pb2,
    health_pb2_grpc,
)

from onegate.common.v1 import error_pb2
from runtime import refusals
from runtime.calls import Handler
from runtime.clock import Clock, SystemClock
from runtime.config import RpcSettings
from runtime.errors import GatewayError
from runtime.later import Later
from runtime.relay_frames import RELAY_METHOD, RELAY_SERVICE
from runtime.relay_server import RelayServer
from runtime.rpc_status import status_of, trailers_of

KEEPALIVE_TIME_MS: Final = 10_000
KEEPALIVE_TIMEOUT_MS: Final = 5_000

RELAY_LOOKAHEAD_BYTES: Final = 256 * 1024

SHARED_OPTIONS: Final[tuple[tuple[str, str | int], ...]] = (
    # A stopped peer is otherwise invisible: it neither answers nor closes. The wait for a ping's
    # answer has a setting of its own, without which it is 60 s (measured: 65 to 70 s to notice a
    # stopped peer, 10 to 15 s with it).
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A stalled stream otherwise buffers 6 MiB.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.write_buffer_size", 16 * 1024),
    ("grpc.primary_user_agent", "onegate"),
)
"""What clients and servers have in common
(names: https://grpc.github.io/grpc/core/group__grpc__arg__keys.html).
"""

SERVER_OPTIONS: Final[tuple[tuple[str, str | int], ...]] = (
    *SHARED_OPTIONS,
    # Requests are read at once, so what a server lets in need not be narrow; a relay's batches
    # go through without waiting for a window (128 calls at once: 40 % less CPU than with 32 KiB).
    ("grpc.http2.lookahead_bytes", RELAY_LOOKAHEAD_BYTES),
    # Else the pings of an idle client end its connection with ENHANCE_YOUR_CALM
    # (https://grpc.github.io/grpc/core/md_doc_keepalive.html).
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.max_ping_strikes", 0),
    # Two processes on one port are a mistake, not a way to share it.
    ("grpc.so_reuseport", 0),
)

LIVENESS: Final = "liveness"
"""A health check of this name asks whether the process runs at all, not whether it can serve."""

CUT_TIMEOUT_S: Final = 5.0
"""How long handlers may clean up after the grace period has cut them."""

_LOG: Final = logging.getLogger(__name__)
_REFLECTION: Final = Later("grpc_reflection.v1alpha.reflection")
_REFLECTION_GRPC: Final = Later("grpc_reflection.v1alpha.reflection_pb2_grpc")

Context = grpc.aio.ServicerContext[Any, Any]
_MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Behavior = Callable[[Any, Context], Any]
_Work = Callable[[Any, Context], Coroutine[Any, Any, Any]]


def limit_options(settings: RpcSettings) -> tuple[tuple[str, int], ...]:
    """The message maxima."""
    return (
        ("grpc.max_send_message_length", settings.message_bytes_max),
        ("grpc.max_receive_message_length", settings.message_bytes_max),
    )


class RpcServer:
    """Serves servicers and calls on one address, with health and, where it is switched on,
    reflection.

    Args:
        settings: the ``[rpc]`` table.
        name: the process, for logs.
    """

    def __init__(self, settings: RpcSettings, name: str, *, clock: Clock | None = None) -> None:
        self._settings = settings
        self._name = name
        self._clock = clock or SystemClock()
        self._methods: dict[str, _MethodHandler] = {}
        self._services: list[str] = []
        self._handlers: dict[str, Handler] = {}
        self._serving = True
        self._health = health.aio.HealthServicer()
        self._announcing: asyncio.Task[None] | None = None
        self._active = 0
        self._subscriptions: set[asyncio.Task[Any]] = set()
        self._calls: set[asyncio.Task[Any]] = set()
        self._relay: RelayServer | None = None
        self._server: grpc.aio.Server | None = None

    def add(self, add_to_server: Callable[[Any, Any], None], servicer: object) -> None:
        """Serves a servicer, given the generated ``add_…Servicer_to_server``. Before start."""
        recorder = _Recorder()
        add_to_server(servicer, recorder)
        for service, handlers in recorder.services.items():
            self._services.append(service)
            for name, handler in handlers.items():
                self._methods[f"/{service}/{name}"] = self._guarded(handler)

    def add_calls(self, handlers: Mapping[str, Handler]) -> None:
        """Serves handlers by full method name, as plain RPCs and through the relay. Before
        start.
        """
        for method, handler in handlers.items():
            self._handlers[method] = handler
            work = _served(method, handler, self._settings.message_bytes_max)
            self._methods[method] = grpc.unary_stream_rpc_method_handler(
                self._owned(work, self._calls)
            )
            service = method.split("/")[1]
            if service not in self._services:
                self._services.append(service)

    async def start(self, address: str) -> int:
        """Listens on ``host:port`` or ``unix:PATH`` and serves.

        Returns the bound port, 0 for a unix socket. Raises ``OSError`` when the address cannot be
        listened on.
        """
        if self._handlers:
            self._relay = RelayServer(self._handlers, self._settings, self._clock)
            self._services.append(RELAY_SERVICE)
            self._methods[RELAY_METHOD] = grpc.stream_stream_rpc_method_handler(self._relay.serve)
        self._add_own_services()
        options = (*SERVER_OPTIONS, *limit_options(self._settings))
        server = grpc.aio.server(handlers=(_Methods(self._methods),), options=options)
        try:
            port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(
                f"cannot listen on {address}: is it in use, too long for a socket's path, or not "
                "allowed?"
            ) from error
        self._server = server
        await server.start()
        await self._announce()
        _LOG.info("%s listens on %s", self._name, address)
        return 0 if address.startswith("unix") else port

    def _add_own_services(self) -> None:
        recorder = _Recorder()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, recorder)
        if self._settings.reflection:
            names = (*self._services, health.SERVICE_NAME, _REFLECTION.SERVICE_NAME)
            _REFLECTION_GRPC.add_ServerReflectionServicer_to_server(
                _REFLECTION.aio.ReflectionServicer(names), recorder
            )
        for service, handlers in recorder.services.items():
            for name, handler in handlers.items():
                # Single health checks are answered however busy the process is.
                self._methods[f"/{service}/{name}"] = (
                    self._guarded(handler) if handler.response_streaming else handler
                )

    def set_serving(self, serving: bool) -> None:
        """Whether health checks of the server and each of its services say SERVING; they do from
        the start. One of ``liveness`` always does.
        """
        self._serving = serving
        if self._server is not None:
            self._announcing = asyncio.create_task(self._announce())

    async def _announce(self) -> None:
        status = health_pb2.HealthCheckResponse.ServingStatus
        state = status.SERVING if self._serving else status.NOT_SERVING
        for service in ("", *self._services):
            await self._health.set(service, state)
        await self._health.set(LIVENESS, status.SERVING)

    async def stop(self, grace_s: float) -> None:
        """Takes no new connections, RPCs or calls; gives those under way ``grace_s`` seconds,
        then ends them with DRAINING and waits for their handlers to clean up.
        """
        server, relay = self._server, self._relay
        if server is None:
            return
        self._server = None
        self._serving = False
        await self._announce()
        stopping = asyncio.create_task(server.stop(grace_s + CUT_TIMEOUT_S))
        for task in self._subscriptions:
            task.cancel()
        try:
            async with asyncio.timeout(grace_s):
                if relay is not None:
                    relay.drain()
                    await relay.closed()
                await asyncio.shield(stopping)
        except TimeoutError:
            _LOG.warning("%s cuts what is left after %g s", self._name, grace_s)
        if relay is not None:
            relay.cut()
        for task in self._calls:
            task.cancel()
        await stopping
        await self._cleaned_up(relay)

    async def _cleaned_up(self, relay: RelayServer | None) -> None:
        """Returns when no handler runs any more, or has had its time."""
        try:
            async with asyncio.timeout(CUT_TIMEOUT_S):
                if relay is not None:
                    await relay.closed()
                while tasks := self._calls | self._subscriptions:
                    await asyncio.wait(tasks)
        except TimeoutError:
            _LOG.error("%s leaves handlers behind that do not end", self._name)

    def _guarded(self, handler: _MethodHandler) -> _MethodHandler:
        """A servicer's method with refusals, limits and a deadline."""
        work = _work(handler)
        if handler.response_streaming:
            return _with_work(handler, self._owned(work, self._subscriptions))
        return _with_work(handler, self._refusing(work))

    def _refusing(self, work: _Work) -> _Work:
        """Turns what ``work`` raises into a status; bounds it in number and time."""

        async def refusing(request: Any, context: Context) -> Any:
            if self._active >= self._settings.calls_max:
                await _refuse(context, refusals.overloaded())
            self._active += 1
            limit = asyncio.timeout(self._limit_s(context))
            try:
                async with limit:
                    return await work(request, context)
            except GatewayError as error:
                await _refuse(context, error)
            except grpc.aio.BaseError:
                # gRPC's own: the RPC was aborted, or its peer is gone.
                raise
            except Exception as error:  # noqa: BLE001 - the top of an RPC
                if isinstance(error, TimeoutError) and limit.expired():
                    await _refuse(context, refusals.expired())
                _LOG.exception("a method of %s failed", self._name)
                await _refuse(context, refusals.internal())
            finally:
                self._active -= 1

        return refusing

    def _limit_s(self, context: Context) -> float | None:
        """The deadline that the call should have brought; ``None`` when gRPC watches a fair
        one.
        """
        remaining_s: float | None = context.time_remaining()
        limit_s = self._settings.call_timeout_max_s
        return limit_s if remaining_s is None or remaining_s > limit_s else None

    def _owned(self, work: _Work, owner: set[asyncio.Task[Any]]) -> _Work:
        """Runs ``work`` in a task of its own that :meth:`stop` can end with DRAINING.

        A caller's cancel reaches the RPC wherever it waits, inside the handler or outside; this
        way it always reaches the handler, and the RPC is over only when the handler has cleaned
        up.
        """

        async def owned(request: Any, context: Context) -> None:
            task = asyncio.ensure_future(work(request, context))
            owner.add(task)
            task.add_done_callback(owner.discard)
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError:
                task.cancel()
                await asyncio.wait((task,))
                raise
            if task.cancelled():
                raise refusals.draining()
            task.result()

        return self._refusing(owned)


class _Recorder:
    """Stands in for a server while generated code adds its methods."""

    def __init__(self) -> None:
        self.services: dict[str, Mapping[str, _MethodHandler]] = {}

    def add_generic_rpc_handlers(self, _handlers: object) -> None:
        """Generated code says everything twice; the second saying has the names."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, _MethodHandler]
    ) -> None:
        """Takes note of a service."""
        self.services[service] = handlers


class _Methods(grpc.GenericRpcHandler):
    """Every method in one table. (Methods registered one by one cost grpc.aio a wait over all of
    them for every RPC.)
    """

    def __init__(self, methods: Mapping[str, _MethodHandler]) -> None:
        self._methods = methods

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "_MethodHandler | None":
        """The method's handler."""
        return self._methods.get(handler_call_details.method)


class _PlainCall:
    """A call that came as a server-streaming RPC: :class:`runtime.calls.ServerCall`."""

    __slots__ = ("_bytes_max", "_context", "metadata", "method", "request", "timeout_s")

    send_now = None
    """gRPC waits for every message."""

    def __init__(self, method: str, request: bytes, context: Context, bytes_max: int) -> None:
        self._context = context
        self._bytes_max = bytes_max
        self.method = method
        self.request = request
        self.metadata: Mapping[str, str] = metadata_of(context)
        self.timeout_s: float | None = context.time_remaining()

    async def send(self, payload: bytes) -> None:
        """Sends one payload; waits while the connection takes no more.

        Raises CANCELLED when the caller has gone, REQUEST_TOO_LARGE when no message may be so
        large.
        """
        if len(payload) > self._bytes_max:
            raise refusals.too_large(len(payload), self._bytes_max)
        try:
            await self._context.write(payload)
        except grpc.aio.BaseError:
            # The caller has gone, which gRPC tells the writer before it cancels the RPC. The
            # handler is to see one thing, whatever it was doing: that it is cancelled.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CUT_TIMEOUT_S):
                    await asyncio.get_running_loop().create_future()
            raise refusals.cancelled() from None

    async def receive(self) -> bytes:
        """Raises INVALID_REQUEST: a plain RPC brings one payload."""
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            "This call needs a second message, which a plain RPC cannot carry; send the request "
            "in typed form, or call through the relay.",
        )


def metadata_of(context: Context) -> dict[str, str]:
    """The caller's textual metadata."""
    found = context.invocation_metadata() or ()
    return {str(key): value for key, value in found if isinstance(value, str)}


def _served(method: str, handler: Handler, bytes_max: int) -> _Work:
    """A handler as a server-streaming RPC over raw bytes."""

    async def served(request: bytes, context: Context) -> None:
        await handler(_PlainCall(method, request, context, bytes_max))

    return served


def _work(handler: _MethodHandler) -> _Work:
    """What a servicer does for a method, as a coroutine function whatever its form."""
    behavior = cast(
        "_Behavior",
        handler.unary_unary
        or handler.unary_stream
        or handler.stream_unary
        or handler.stream_stream,
    )
    if inspect.isasyncgenfunction(behavior):
        generate: Callable[[Any, Context], AsyncGenerator[Any, None]] = behavior

        async def work(request: Any, context: Context) -> None:
            async with contextlib.aclosing(generate(request, context)) as messages:
                async for message in messages:
                    await context.write(message)

        return work
    if not inspect.iscoroutinefunction(behavior):
        raise TypeError(f"{behavior} is not asynchronous")
    return behavior


def _with_work(handler: _MethodHandler, work: _Work) -> _MethodHandler:
    """The handler, doing ``work`` instead."""
    make: Callable[..., _MethodHandler]
    match (handler.request_streaming, handler.response_streaming):
        case (False, False):
            make = grpc.unary_unary_rpc_method_handler
        case (False, True):
            make = grpc.unary_stream_rpc_method_handler
        case (True, False):
            make = grpc.stream_unary_rpc_method_handler
        case _:
            make = grpc.stream_stream_rpc_method_handler
    return make(work, handler.request_deserializer, handler.response_serializer)


async def _refuse(context: Context, error: GatewayError) -> None:
    """Ends an RPC with an error."""
    code, message = status_of(error)
    await context.abort(code, message, trailers_of(error))
