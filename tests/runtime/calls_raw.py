"""One end of a relay stream in a test's own hands."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from onegate.common.v1.relay_service_pb2 import RelayFrame, RelayRequest, RelayResponse
from runtime.clock import SystemClock
from runtime.config import RpcSettings
from runtime.relay import RelayPool
from runtime.relay_frames import OPEN, RELAY_METHOD, WINDOW_BYTES
from runtime.rpc import channel
from tests.runtime.calls_transports import SERVICE

SETTINGS = RpcSettings()
RawStream = grpc.aio.StreamStreamCall[bytes, bytes]


@asynccontextmanager
async def raw_server(
    target: str, serve: Callable[[Any, Any], Awaitable[None]]
) -> AsyncIterator[grpc.aio.Server]:
    """A relay server that is not ours: ``serve`` has the stream to itself."""

    class Methods(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            if handler_call_details.method == RELAY_METHOD:
                return grpc.stream_stream_rpc_method_handler(serve)
            return None

    server = grpc.aio.server(handlers=(Methods(),))
    server.add_insecure_port(target)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


async def hear_nothing(_requests: object, context: Any) -> None:
    """A server that reads nothing."""
    await context.send_initial_metadata(())
    await asyncio.Event().wait()


@asynccontextmanager
async def relay_pool_of(*targets: str) -> AsyncIterator[RelayPool]:
    """A pool that need not be up."""
    pool = RelayPool(targets, SETTINGS, SystemClock())
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


@asynccontextmanager
async def raw_stream(target: str) -> AsyncIterator[RawStream]:
    """A stream to a relay server of ours, for a client that is not."""
    async with channel(target, SETTINGS) as link:
        call: RawStream = link.stream_stream(RELAY_METHOD)()
        await call.initial_metadata()
        yield call
        call.cancel()


async def frames_until(stream: RawStream, last: Callable[[RelayFrame], bool]) -> list[RelayFrame]:
    """Every frame of the batches up to the last frame that is waited for."""
    frames: list[RelayFrame] = []
    while not any(map(last, frames)):
        async with asyncio.timeout(10):
            raw = await stream.read()
        assert isinstance(raw, bytes), "the stream ended"
        frames += RelayResponse.FromString(raw).frames
    return frames


def opening(number: int, method: str, payload: bytes = b"") -> RelayRequest:
    batch = RelayRequest()
    frame = batch.frames.add(call=number, kind=OPEN, payload=payload)
    frame.open.method = SERVICE + method
    frame.open.credit_bytes = WINDOW_BYTES
    return batch
