"""The two transports of a call behind one face, and the handlers that both must serve alike."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import grpc

from onegate.common.v1 import error_pb2
from runtime.calls import Handler, ServerCall
from runtime.clock import SystemClock
from runtime.config import RpcSettings
from runtime.errors import GatewayError
from runtime.relay import RelayCall, RelayPool
from runtime.rpc import RpcServer, channel, from_rpc_error

SERVICE = "/onegate.test.v1.TestService/"
WAIT_S = 10.0


def loop_of_the_module() -> tuple[str, dict[str, bool]]:
    """The loop that the processes use."""
    return ("asyncio", {"use_uvloop": True})


async def keep_the_loop(anyio_backend: object) -> AsyncIterator[None]:
    """Holds a loop until what gRPC still has to say was said."""
    yield
    await asyncio.sleep(0.2)


class Call(Protocol):
    """A call as its caller sees it."""

    async def receive(self) -> bytes | None: ...

    def cancel(self) -> None: ...


class Transport(Protocol):
    """Opens calls to one server."""

    def call(
        self,
        method: str,
        payload: bytes = b"",
        *,
        metadata: Mapping[str, str] | None = None,
        timeout_s: float = WAIT_S,
    ) -> Call: ...


class PlainCall:
    """A server-streaming RPC with the face of a relay call."""

    def __init__(self, call: "grpc.aio.UnaryStreamCall[bytes, bytes]") -> None:
        self._call = call

    async def receive(self) -> bytes | None:
        try:
            payload = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except asyncio.CancelledError:
            if not self._call.cancelled():
                raise
            raise GatewayError(error_pb2.ERROR_REASON_CANCELLED, "cancelled") from None
        return payload if isinstance(payload, bytes) else None

    def cancel(self) -> None:
        self._call.cancel()


class PlainTransport:
    """Calls as ordinary server-streaming RPCs."""

    def __init__(self, link: grpc.aio.Channel) -> None:
        self._channel = link

    def call(
        self,
        method: str,
        payload: bytes = b"",
        *,
        metadata: Mapping[str, str] | None = None,
        timeout_s: float = WAIT_S,
    ) -> Call:
        ask: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
        ask = self._channel.unary_stream(SERVICE + method)
        return PlainCall(ask(payload, timeout=timeout_s, metadata=tuple((metadata or {}).items())))


class RelayTransport:
    """Calls through the relay."""

    def __init__(self, pool: RelayPool) -> None:
        self._pool = pool

    def call(
        self,
        method: str,
        payload: bytes = b"",
        *,
        metadata: Mapping[str, str] | None = None,
        timeout_s: float = WAIT_S,
    ) -> Call:
        return self._pool.call(
            SERVICE + method, payload, metadata=metadata or {}, timeout_s=timeout_s
        )


@asynccontextmanager
async def connected(kind: str, target: str, settings: RpcSettings) -> AsyncIterator[Transport]:
    """A transport of the given kind, connected."""
    if kind == "plain":
        async with channel(target, settings) as link:
            yield PlainTransport(link)
        return
    async with relay_pool(settings, target) as pool:
        yield RelayTransport(pool)


@asynccontextmanager
async def relay_pool(settings: RpcSettings, *targets: str) -> AsyncIterator[RelayPool]:
    """A pool with at least one stream up."""
    pool = RelayPool(targets, settings, SystemClock())
    await pool.start()
    try:
        await until(lambda: pool.ready, "the relay is up")
        yield pool
    finally:
        await pool.close()


async def until(
    condition: Callable[[], object], what: str = "the condition", timeout_s: float = WAIT_S
) -> float:
    """Waits for a condition; how long that took, in seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + timeout_s, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.002)
    return time.monotonic() - began


async def collect(call: Call) -> list[bytes]:
    """Every payload of a call that ends well."""
    payloads = []
    while (payload := await call.receive()) is not None:
        payloads.append(payload)
    return payloads


async def refusal(call: Call | Callable[[], Call]) -> GatewayError:
    """The error that a call ends with, whether opening or reading raises it."""
    try:
        opened = call() if callable(call) else call
        payloads = await collect(opened)
    except GatewayError as error:
        return error
    raise AssertionError(f"the call ended well, with {len(payloads)} payloads")


def whole_error() -> GatewayError:
    """An error with every field set."""
    error = GatewayError(
        error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
        "Every deployment is busy — très occupé.",
        param="messages[2].content",
        retry_after_ms=1234,
        upstream_status=429,
    )
    error.attempts = [
        error_pb2.AttemptSummary(
            model="groq/llama",
            reason=error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
            upstream_status=429,
            duration_ms=17,
        )
    ]
    error.excluded = [
        error_pb2.Exclusion(
            model="xai/grok", reason=error_pb2.ERROR_REASON_DATA_POLICY, detail="not in the EU"
        )
    ]
    return error


@dataclass
class Seen:
    """What the handlers saw, for a test to look at."""

    running: int = 0
    started: int = 0
    cancelled_at: list[float] = field(default_factory=list)
    cleaned_up: int = 0
    cleaning_s: float = 0.02
    sent_bytes: dict[str, int] = field(default_factory=dict)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    refuse: GatewayError = field(default_factory=whole_error)


def handlers(seen: Seen) -> dict[str, Handler]:
    """The methods of the test service."""

    async def echo(call: ServerCall) -> None:
        await call.send(call.request)

    async def script(call: ServerCall) -> None:
        """Sends payloads of the sizes asked for, in order."""
        for number, size in enumerate(json.loads(call.request)):
            await call.send(bytes([number % 256]) * size)

    async def describe(call: ServerCall) -> None:
        facts = {
            "method": call.method,
            "metadata": dict(call.metadata),
            "timeout_s": call.timeout_s,
        }
        await call.send(json.dumps(facts).encode())

    async def fail(call: ServerCall) -> None:
        if call.request:
            await call.send(call.request)
        raise whole_error()

    async def refuse(call: ServerCall) -> None:
        raise seen.refuse

    async def defect(call: ServerCall) -> None:
        raise ValueError(f"a secret: {call.request.decode()}")

    async def hold(call: ServerCall) -> None:
        """Sends one payload, then waits to be released or cancelled; cleans up slowly."""
        await call.send(b"held")
        await seen.release.wait()
        await call.send(b"released")

    async def flood(call: ServerCall) -> None:
        """Sends for as long as it may."""
        name = call.request.decode()
        payload = b"z" * 1000
        while True:
            await call.send(payload)
            seen.sent_bytes[name] = seen.sent_bytes.get(name, 0) + len(payload)

    served = {
        "Echo": echo,
        "Script": script,
        "Describe": describe,
        "Fail": fail,
        "Refuse": refuse,
        "Defect": defect,
        "Hold": hold,
        "Flood": flood,
        "Dialogue": dialogue,
        "Deaf": deaf(seen),
    }
    return {SERVICE + name: watched(seen, handler) for name, handler in served.items()}


async def dialogue(call: ServerCall) -> None:
    """Answers each payload until an empty one."""
    await call.send(call.request)
    while payload := await call.receive():
        await call.send(payload)


def deaf(seen: Seen) -> Handler:
    """Reads nothing before it is released, then everything up to an empty payload."""

    async def handler(call: ServerCall) -> None:
        await seen.release.wait()
        total = 0
        while payload := await call.receive():
            total += len(payload)
        await call.send(str(total).encode())

    return handler


def watched(seen: Seen, handler: Handler) -> Handler:
    """Takes note of what becomes of a handler."""

    async def run(call: ServerCall) -> None:
        seen.running += 1
        seen.started += 1
        try:
            await handler(call)
        except asyncio.CancelledError:
            seen.cancelled_at.append(time.monotonic())
            await asyncio.sleep(seen.cleaning_s)
            seen.cleaned_up += 1
            raise
        finally:
            seen.running -= 1

    return run


@asynccontextmanager
async def serving(
    address: str, settings: RpcSettings, served: Mapping[str, Handler]
) -> AsyncIterator[RpcServer]:
    """A server of calls."""
    server = RpcServer(settings, "test")
    server.add_calls(served)
    await server.start(address)
    try:
        yield server
    finally:
        await server.stop(0)


def opened(pool: RelayPool, method: str, payload: bytes = b"", timeout_s: float = 10) -> RelayCall:
    """A call through a pool."""
    return pool.call(SERVICE + method, payload, metadata={}, timeout_s=timeout_s)
