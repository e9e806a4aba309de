"""gRPC as the processes use it: what a refused call looks like on the wire, limits, health,
reflection, and how a server stops.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import (  # type: ignore[import-untyped]  # ships messages without type stubs
    error_details_pb2,
    status_pb2,
)
from grpc_health.v1 import (  # type: ignore[import-untyped]  # ships no type information
    health_pb2,
    health_pb2_grpc,
)
from grpc_reflection.v1alpha import (  # type: ignore[import-untyped]  # ships no type information
    reflection_pb2,
    reflection_pb2_grpc,
)

from onegate.common.v1 import error_pb2
from runtime.config import RpcSettings
from runtime.errors import GatewayError, Reason, reason_name
from runtime.rpc import (
    GRPC_STATUS,
    OPERATOR_KEY,
    RpcServer,
    channel,
    from_rpc_error,
    require_operator,
    unary,
)
from runtime.rpc_status import ERROR_KEY, status_of, trailers_of
from tests.runtime.calls_transports import (
    Seen,
    handlers,
    keep_the_loop,
    loop_of_the_module,
    until,
    whole_error,
)

pytestmark = pytest.mark.anyio

# gRPC hands late events to the loop that asked for them: one loop outlives the tests of a module.
anyio_backend = pytest.fixture(scope="module")(loop_of_the_module)
one_loop = pytest.fixture(scope="module", autouse=True)(keep_the_loop)

SERVICE = "onegate.test.v1.KindsService"
KINDS = ["UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream", "Writing"]


class Kinds:
    """A servicer with a method of every kind. The request says what becomes of it."""

    def __init__(self) -> None:
        self.closed = 0
        self.cancelled = 0
        self.waiting = 0

    async def act(self, request: bytes) -> bytes:
        if request == b"refuse":
            raise whole_error()
        if request == b"defect":
            raise ValueError("xyzzy is the secret")
        if request == b"timeout":
            raise TimeoutError("xyzzy is the secret")
        if request == b"wait":
            self.waiting += 1
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            finally:
                self.waiting -= 1
        return request

    async def unary_unary(self, request: bytes, _context: object) -> bytes:
        return await self.act(request)

    async def unary_stream(self, request: bytes, _context: object) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            yield await self.act(request)
        finally:
            await asyncio.sleep(0)
            self.closed += 1

    async def stream_unary(self, requests: AsyncIterator[bytes], _context: object) -> bytes:
        return b"".join([await self.act(request) async for request in requests])

    async def stream_stream(
        self, requests: AsyncIterator[bytes], _context: object
    ) -> AsyncIterator[bytes]:
        async for request in requests:
            yield await self.act(request)

    async def writing(self, request: bytes, context: Any) -> None:
        await context.write(b"first")
        await context.write(await self.act(request))


def add_kinds(servicer: Kinds, server: Any) -> None:
    """What generated code does."""
    methods: dict[str, Any] = {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler(servicer.unary_unary),
        "UnaryStream": grpc.unary_stream_rpc_method_handler(servicer.unary_stream),
        "StreamUnary": grpc.stream_unary_rpc_method_handler(servicer.stream_unary),
        "StreamStream": grpc.stream_stream_rpc_method_handler(servicer.stream_stream),
        "Writing": grpc.unary_stream_rpc_method_handler(servicer.writing),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    server.add_registered_method_handlers(SERVICE, methods)


def begin(link: grpc.aio.Channel, kind: str, request: bytes, timeout_s: float | None = 10) -> Any:
    """Calls a method of any kind with one request."""
    method = f"/{SERVICE}/{kind}"

    async def requests() -> AsyncIterator[bytes]:
        yield request

    stub: Any
    match kind:
        case "UnaryUnary":
            stub = link.unary_unary(method)
            return stub(request, timeout=timeout_s)
        case "StreamUnary":
            stub = link.stream_unary(method)
            return stub(requests(), timeout=timeout_s)
        case "StreamStream":
            stub = link.stream_stream(method)
            return stub(requests(), timeout=timeout_s)
        case _:
            stub = link.unary_stream(method)
            return stub(request, timeout=timeout_s)


async def ask(
    link: grpc.aio.Channel, kind: str, request: bytes, timeout_s: float | None = 10
) -> list[bytes]:
    """The answers to one request."""
    call = begin(link, kind, request, timeout_s)
    if kind in ("UnaryUnary", "StreamUnary"):
        return [await call]
    return [answer async for answer in call]


@asynccontextmanager
async def kinds(
    tmp_path: Path, settings: RpcSettings | None = None
) -> AsyncIterator[tuple[RpcServer, Kinds, grpc.aio.Channel]]:
    """A server of every kind of method, and a channel to it."""
    settings = settings or RpcSettings()
    servicer = Kinds()
    server = RpcServer(settings, "test")
    server.add(add_kinds, servicer)
    target = f"unix:{tmp_path / 'rpc.sock'}"
    await server.start(target)
    async with channel(target, settings) as link:
        yield server, servicer, link
    await server.stop(0)


def test_every_reason_has_a_status() -> None:
    assert set(GRPC_STATUS) == set(Reason.values())
    assert grpc.StatusCode.OK not in GRPC_STATUS.values()


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_method_answers(tmp_path: Path, kind: str) -> None:
    async with kinds(tmp_path) as (_, _, link):
        assert (await ask(link, kind, b"hello"))[-1] == b"hello"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refusal_survives_whole_in_every_kind_of_method(tmp_path: Path, kind: str) -> None:
    async with kinds(tmp_path) as (_, _, link):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(link, kind, b"refuse")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == whole_error().message
    assert from_rpc_error(caught.value).to_proto() == whole_error().to_proto()


@pytest.mark.parametrize("request_", [b"defect", b"timeout"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_defect_is_logged_and_not_told_in_every_kind_of_method(
    tmp_path: Path, kind: str, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        async with kinds(tmp_path) as (_, _, link):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(link, kind, request_)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "xyzzy" not in f"{caught.value.details()} {caught.value.trailing_metadata()}"
    assert "xyzzy" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_without_a_deadline_gets_the_longest_one(tmp_path: Path, kind: str) -> None:
    async with kinds(tmp_path, RpcSettings(call_timeout_max_s=0.2)) as (_, servicer, link):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(link, kind, b"wait", timeout_s=None)
        assert from_rpc_error(caught.value).reason == error_pb2.ERROR_REASON_DEADLINE_EXCEEDED
        await until(lambda: servicer.cancelled == 1, "the method is cancelled")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancel_reaches_every_kind_of_method(tmp_path: Path, kind: str) -> None:
    async with kinds(tmp_path) as (_, servicer, link):
        call = begin(link, kind, b"wait")
        await until(lambda: servicer.waiting == 1, "the method waits")
        call.cancel()
        await until(lambda: servicer.cancelled == 1, "the method is cancelled")


async def test_a_generator_is_closed_before_its_call_is_over(tmp_path: Path) -> None:
    async with kinds(tmp_path) as (_, servicer, link):
        stub: Any = link.unary_stream(f"/{SERVICE}/UnaryStream")
        call = stub(b"wait")
        assert await call.read() == b"first"
        call.cancel()
        await until(lambda: servicer.closed == 1, "the generator is closed")


async def test_calls_beyond_the_limit_are_refused_and_health_is_not(tmp_path: Path) -> None:
    async with kinds(tmp_path, RpcSettings(calls_max=1)) as (_, servicer, link):
        asking = asyncio.create_task(ask(link, "UnaryUnary", b"wait"))
        await until(lambda: servicer.waiting == 1, "the method waits")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(link, "UnaryUnary", b"hello")
        assert from_rpc_error(caught.value).reason == error_pb2.ERROR_REASON_OVERLOADED
        assert await health(link) == "SERVING"
        asking.cancel()
        await until(lambda: servicer.cancelled == 1, "the method is cancelled")
        await until_answered(link)


async def until_answered(link: grpc.aio.Channel) -> None:
    """Waits until a call is taken."""
    deadline = time.monotonic() + 5
    while True:
        try:
            assert await ask(link, "UnaryUnary", b"hello") == [b"hello"]
            return
        except grpc.aio.AioRpcError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


async def health(link: grpc.aio.Channel, service: str = "") -> str:
    stub = health_pb2_grpc.HealthStub(link)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


async def test_health_speaks_for_the_server_and_each_service(tmp_path: Path) -> None:
    async with kinds(tmp_path) as (server, _, link):
        for service in ("", SERVICE):
            assert await health(link, service) == "SERVING"
        server.set_serving(False)
        for service in ("", SERVICE):
            assert await health(link, service) == "NOT_SERVING"
        assert await health(link, "liveness") == "SERVING"
        server.set_serving(True)
        assert await health(link) == "SERVING"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health(link, "onegate.nonsense.v1.NoService")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_server_can_start_before_it_serves(tmp_path: Path) -> None:
    server = RpcServer(RpcSettings(), "test")
    server.set_serving(False)
    target = f"unix:{tmp_path / 'rpc.sock'}"
    await server.start(target)
    async with channel(target, RpcSettings()) as link:
        assert await health(link) == "NOT_SERVING"
    await server.stop(0)


async def test_health_covers_the_services_of_calls_and_the_relay(tmp_path: Path) -> None:
    server = RpcServer(RpcSettings(), "test")
    server.add_calls(handlers(Seen()))
    target = f"unix:{tmp_path / 'rpc.sock'}"
    await server.start(target)
    async with channel(target, RpcSettings()) as link:
        for service in ("onegate.test.v1.TestService", "onegate.common.v1.RelayService"):
            assert await health(link, service) == "SERVING"
    await server.stop(0)


async def services_by_reflection(link: grpc.aio.Channel) -> list[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(link)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = stub.ServerReflectionInfo(iter([request]), timeout=5)
    answer = await call.read()
    return [service.name for service in answer.list_services_response.service]


async def test_reflection_is_off_unless_it_is_switched_on(tmp_path: Path) -> None:
    async with kinds(tmp_path) as (_, _, link):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await services_by_reflection(link)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    async with kinds(tmp_path, RpcSettings(reflection=True)) as (_, _, link):
        assert SERVICE in await services_by_reflection(link)


async def test_tcp_and_unix_targets_both_work_and_tcp_tells_its_port(tmp_path: Path) -> None:
    for address, target in (
        ("127.0.0.1:0", "127.0.0.1:{port}"),
        ("[::1]:0", "dns:///localhost:{port}"),
        (f"unix:{tmp_path / 'a.sock'}", f"unix:{tmp_path / 'a.sock'}"),
    ):
        server = RpcServer(RpcSettings(), "test")
        port = await server.start(address)
        assert (port > 0) == (not address.startswith("unix"))
        async with channel(target.format(port=port), RpcSettings()) as link:
            assert await health(link) == "SERVING"
        await server.stop(0)


@pytest.mark.parametrize("address", ["unix:/nonexistent/dir/a.sock", "unix:/" + "a" * 200, "no"])
async def test_an_address_that_cannot_be_listened_on_is_said(address: str) -> None:
    with pytest.raises(OSError, match="cannot listen on"):
        await RpcServer(RpcSettings(), "test").start(address)


async def test_two_servers_never_share_a_port() -> None:
    one, two = RpcServer(RpcSettings(), "one"), RpcServer(RpcSettings(), "two")
    port = await one.start("127.0.0.1:0")
    with pytest.raises(OSError, match="cannot listen on"):
        await two.start(f"127.0.0.1:{port}")
    await one.stop(0)


async def test_stopping_waits_for_unary_calls_and_ends_subscriptions(tmp_path: Path) -> None:
    async with kinds(tmp_path) as (server, servicer, link):
        unary_call = asyncio.create_task(ask(link, "UnaryUnary", b"wait"))
        stream = asyncio.create_task(ask(link, "UnaryStream", b"wait"))
        await until(lambda: servicer.waiting == 2, "both wait")
        stopping = asyncio.create_task(server.stop(0.3))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream
        assert from_rpc_error(caught.value).reason == error_pb2.ERROR_REASON_DRAINING
        assert not stopping.done()
        assert not unary_call.done()
        unary_call.cancel()
        async with asyncio.timeout(2):
            await stopping
        assert servicer.closed == 1


async def test_stopping_twice_is_stopping_once(tmp_path: Path) -> None:
    async with kinds(tmp_path) as (server, _, _):
        await server.stop(0)
        await server.stop(0)


async def test_unary_raises_what_the_servicer_raised(tmp_path: Path) -> None:
    async with kinds(tmp_path) as (_, _, link):
        method: Any = link.unary_unary(f"/{SERVICE}/UnaryUnary")
        assert await unary(method, b"hello", timeout_s=5) == b"hello"
        with pytest.raises(GatewayError) as caught:
            await unary(method, b"refuse", timeout_s=5)
        assert caught.value.to_proto() == whole_error().to_proto()
        with pytest.raises(GatewayError) as caught:
            await unary(method, b"wait", timeout_s=0.05)
        assert caught.value.reason == error_pb2.ERROR_REASON_DEADLINE_EXCEEDED


async def test_unary_says_that_a_peer_is_away_in_the_callers_words(tmp_path: Path) -> None:
    async with channel(f"unix:{tmp_path / 'nobody.sock'}", RpcSettings()) as link:
        method: Any = link.unary_unary(f"/{SERVICE}/UnaryUnary")
        with pytest.raises(GatewayError) as caught:
            await unary(method, b"", timeout_s=5)
        assert caught.value.reason == error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE
        away = error_pb2.ERROR_REASON_AUTH_UNAVAILABLE
        with pytest.raises(GatewayError) as caught:
            await unary(method, b"", timeout_s=5, away=away)
        assert caught.value.reason == away


async def test_unary_carries_metadata(tmp_path: Path) -> None:
    class Operators(Kinds):
        async def unary_unary(self, request: bytes, context: Any) -> bytes:
            require_operator(context, "token")
            return request

    server = RpcServer(RpcSettings(), "test")
    server.add(add_kinds, Operators())
    target = f"unix:{tmp_path / 'rpc.sock'}"
    await server.start(target)
    async with channel(target, RpcSettings()) as link:
        method: Any = link.unary_unary(f"/{SERVICE}/UnaryUnary")
        metadata = [(OPERATOR_KEY, "token")]
        assert await unary(method, b"x", timeout_s=5, metadata=metadata) == b"x"
        with pytest.raises(GatewayError) as caught:
            await unary(method, b"x", timeout_s=5, metadata=[(OPERATOR_KEY, "Token")])
        assert caught.value.reason == error_pb2.ERROR_REASON_INVALID_API_KEY
    await server.stop(0)


@pytest.mark.parametrize(
    ("metadata", "token"),
    [
        ({}, "token"),
        ({OPERATOR_KEY: ""}, "token"),
        ({OPERATOR_KEY: "toke"}, "token"),
        ({OPERATOR_KEY: "tokén"}, "token"),
        ({OPERATOR_KEY: ""}, ""),
        ({}, ""),
    ],
)
def test_who_has_not_the_operators_token_is_refused(metadata: dict[str, str], token: str) -> None:
    with pytest.raises(GatewayError) as caught:
        require_operator(metadata, token)
    assert caught.value.reason == error_pb2.ERROR_REASON_INVALID_API_KEY
    assert "token" not in caught.value.message.replace("operator token", "")


def test_who_has_the_operators_token_is_admitted() -> None:
    require_operator({OPERATOR_KEY: "tokén"}, "tokén")


def details_of(error: GatewayError) -> Any:
    """The google.rpc.Status in the trailers."""
    trailers = dict(trailers_of(error))
    return status_pb2.Status.FromString(trailers["grpc-status-details-bin"])


@pytest.mark.parametrize("reason", Reason.values())
def test_any_grpc_client_learns_the_reason_from_error_info(reason: int) -> None:
    error = GatewayError(reason, "why", param="model", retry_after_ms=1500)
    status = details_of(error)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (info.domain, info.reason) == ("onegate", reason_name(reason).upper())
    assert dict(info.metadata) == {"param": "model"}
    assert retry.retry_delay.ToMilliseconds() == 1500
    assert status.code == GRPC_STATUS[error.reason].value[0]
    assert status.message == "why"


@pytest.mark.parametrize("text", ["x" * 100_000, "é" * 100_000, "日本語" * 50_000])
async def test_a_huge_error_still_arrives_with_its_reason(tmp_path: Path, text: str) -> None:
    error = GatewayError(error_pb2.ERROR_REASON_UPSTREAM_ERROR, text, param=text)
    error.excluded = [error_pb2.Exclusion(model=f"m{n}", detail="d" * 50) for n in range(500)]
    error.attempts = [error_pb2.AttemptSummary(model=f"m{n}" * 20) for n in range(500)]

    class Verbose(Kinds):
        async def unary_unary(self, request: bytes, _context: object) -> bytes:
            raise error

    server = RpcServer(RpcSettings(), "test")
    server.add(add_kinds, Verbose())
    target = f"unix:{tmp_path / 'rpc.sock'}"
    await server.start(target)
    async with channel(target, RpcSettings()) as link:
        method: Any = link.unary_unary(f"/{SERVICE}/UnaryUnary")
        with pytest.raises(GatewayError) as caught:
            await unary(method, b"x", timeout_s=5)
    await server.stop(0)
    assert caught.value.reason == error_pb2.ERROR_REASON_UPSTREAM_ERROR
    assert text.startswith(caught.value.message.removesuffix("…"))
    assert len(caught.value.message) > 100
    assert len(status_of(error)[1].encode()) < 600


def rpc_error(code: grpc.StatusCode, details: str = "", trailers: Any = ()) -> Any:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.value[0]])
def test_any_status_of_grpc_itself_becomes_a_reason_and_a_message(code: grpc.StatusCode) -> None:
    error = from_rpc_error(rpc_error(code, "connect failed: 10.0.0.7:5001"))
    assert error.reason in GRPC_STATUS
    assert error.message.endswith(".")
    assert "10.0.0.7" not in error.message


@pytest.mark.parametrize(
    ("code", "details", "reason"),
    [
        (grpc.StatusCode.CANCELLED, "", error_pb2.ERROR_REASON_CANCELLED),
        (grpc.StatusCode.UNIMPLEMENTED, "", error_pb2.ERROR_REASON_NOT_FOUND),
        (grpc.StatusCode.UNAVAILABLE, "", error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "CLIENT: Received message larger than max (5 vs. 4)",
            error_pb2.ERROR_REASON_REQUEST_TOO_LARGE,
        ),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "quota", error_pb2.ERROR_REASON_INTERNAL),
        (grpc.StatusCode.UNKNOWN, "boom", error_pb2.ERROR_REASON_INTERNAL),
    ],
)
def test_statuses_of_grpc_itself_mean_this(
    code: grpc.StatusCode, details: str, reason: int
) -> None:
    assert from_rpc_error(rpc_error(code, details)).reason == reason


def test_trailers_that_are_not_an_error_are_ignored() -> None:
    error = rpc_error(grpc.StatusCode.UNAVAILABLE, "", [(ERROR_KEY, b"\xff\xff garbage")])
    assert from_rpc_error(error).reason == error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE


def test_a_servicer_that_is_not_asynchronous_is_a_defect() -> None:
    class Blocking(Kinds):
        def unary_unary(self, request: bytes, _context: object) -> bytes:  # type: ignore[override]
            return request

    server = RpcServer(RpcSettings(), "test")
    with pytest.raises(TypeError, match="not asynchronous"):
        server.add(add_kinds, Blocking())


def test_channels_have_the_settings_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    def take(_target: str, options: Iterable[tuple[str, object]]) -> None:
        given.update(options)

    monkeypatch.setattr(grpc.aio, "insecure_channel", take)
    channel("x", RpcSettings(message_bytes_max=123))
    expected = {
        "grpc.http2.bdp_probe": 0,
        "grpc.http2.lookahead_bytes": 32 * 1024,
        "grpc.http2.write_buffer_size": 16 * 1024,
        "grpc.keepalive_time_ms": 10_000,
        "grpc.keepalive_timeout_ms": 5_000,
        "grpc.http2.ping_timeout_ms": 5_000,
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.enable_retries": 0,
        "grpc.max_send_message_length": 123,
        "grpc.max_receive_message_length": 123,
        "grpc.primary_user_agent": "onegate",
    }
    assert expected.items() <= given.items()
