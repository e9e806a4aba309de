"""The HTTP client against real sockets: pooling, backpressure, cancellation, every way to break."""

import asyncio
import datetime as dt
import gzip
import ssl
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from onegate.common.v1 import error_pb2
from runtime.clock import SystemClock
from runtime.errors import GatewayError
from services.router.providers.base import UpstreamRequest
from services.router.upstream import client
from services.router.upstream.client import Target, Upstream, target_of
from services.router.upstream.egress import origin_of
from tests.fake_provider import FakeProvider, Fault, Outcome, Reply
from tests.services.router.sockets import listening, silent

pytestmark = pytest.mark.anyio

BODY = b'{"model": "m", "messages": []}'
STREAM = b'{"model": "m", "messages": [], "stream": true}'


def post(body: bytes = BODY) -> UpstreamRequest:
    return UpstreamRequest(
        method="POST",
        path="/chat/completions",
        headers=[("content-type", "application/json")],
        body=body,
    )


def target(base_url: str) -> Target:
    return target_of(
        origin_of(base_url, private_allowed=True), [("authorization", "Bearer canary")]
    )


@asynccontextmanager
async def opened(
    timeout_s: float = 2.0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Upstream]:
    upstream = Upstream(SystemClock(), connect_timeout_s=timeout_s, tls=tls)
    try:
        yield upstream
    finally:
        upstream.close()


@asynccontextmanager
async def raw_server(answer: bytes, *, close: bool = True) -> AsyncIterator[str]:
    """A server that answers every request with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(BODY))
        writer.write(answer)
        if not close:
            await reader.read()

    async with listening(serve) as port:
        yield f"http://127.0.0.1:{port}"


async def fetch(upstream: Upstream, base_url: str, bytes_max: int = 1 << 25) -> tuple[int, bytes]:
    response = await upstream.open(target(base_url), post())
    try:
        return response.status, await response.read(bytes_max)
    finally:
        response.close()


async def reason_of(upstream: Upstream, base_url: str) -> str:
    with pytest.raises(GatewayError) as caught:
        await fetch(upstream, base_url)
    assert "canary" not in repr(caught.value)
    return error_pb2.ErrorReason.Name(caught.value.reason).removeprefix("ERROR_REASON_")


async def test_a_call_sends_what_it_should_and_nothing_else() -> None:
    async with FakeProvider() as provider, opened() as upstream:
        status, body = await fetch(upstream, provider.base_url)
        assert status == 200
        assert b"Hello" in body
        (taken,) = provider.taken
        assert (taken.path, taken.body) == ("/v1/chat/completions", BODY)
        assert taken.headers == {
            "host": f"127.0.0.1:{provider.port}",
            "user-agent": "onegate",
            "accept-encoding": "identity",
            "authorization": "Bearer canary",
            "content-type": "application/json",
            "content-length": str(len(BODY)),
        }


async def test_the_headers_of_an_answer_can_be_read() -> None:
    async with FakeProvider() as provider, opened() as upstream:
        provider.default = Reply(headers=(("X-Request-Id", "abc"),))
        response = await upstream.open(target(provider.base_url), post())
        assert response.header("x-request-id") == "abc"
        assert response.header("x-request") == ""
        assert response.headers["x-request-id"] == "abc"
        response.close()


async def test_connections_are_kept_and_used_again() -> None:
    async with FakeProvider() as provider, opened() as upstream:
        for _ in range(3):
            await fetch(upstream, provider.base_url)
        assert (len(provider.taken), provider.connections) == (3, 1)
        await asyncio.gather(*(fetch(upstream, provider.base_url) for _ in range(5)))
        assert len(provider.taken) == 8
        assert provider.connections <= 5


async def test_a_connection_that_the_provider_closed_is_not_used_again() -> None:
    async with FakeProvider() as provider, opened() as upstream:
        await fetch(upstream, provider.base_url)
        for exchange in list(provider._open):
            exchange.transport.close()
        await provider.until(lambda: not provider._open)
        await asyncio.sleep(0.01)
        assert (await fetch(upstream, provider.base_url))[0] == 200
        assert provider.connections == 2


async def test_an_idle_connection_is_given_up_after_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "IDLE_PLAIN_S", 0.05)
    async with FakeProvider() as provider, opened() as upstream:
        await fetch(upstream, provider.base_url)
        await provider.until(lambda: not provider._open)
        await fetch(upstream, provider.base_url)
        assert provider.connections == 2


async def test_chunks_come_as_they_arrive() -> None:
    async with FakeProvider() as provider, opened() as upstream:
        provider.default = Reply(chunk_delay_s=0.02, text="one two three four")
        response = await upstream.open(target(provider.base_url), post(STREAM))
        first = await response.chunk()
        assert b"[DONE]" not in first
        assert provider.taken[0].outcome is Outcome.RUNNING
        rest = b""
        while piece := await response.chunk():
            rest += piece
        assert rest.endswith(b"data: [DONE]\n\n")
        response.close()
        await fetch(upstream, provider.base_url)
        assert provider.connections == 1


async def test_a_taker_gets_what_comes_alone_and_the_reader_gets_the_rest() -> None:
    async with FakeProvider() as provider, opened() as upstream:
        provider.default = Reply(chunk_delay_s=0.02, text="one two three four")
        taken: list[bytes] = []

        def take(chunk: bytes) -> bool:
            if b"three" in chunk or b"[DONE]" in chunk:
                return False
            taken.append(chunk)
            return True

        response = await upstream.open(target(provider.base_url), post(STREAM))
        read: list[bytes] = []
        while piece := await response.chunk(take):
            read.append(piece)
        assert any(b"two" in chunk for chunk in taken)
        assert any(b"three" in chunk for chunk in read)
        assert b"".join(read).endswith(b"data: [DONE]\n\n")
        response.close()
        await fetch(upstream, provider.base_url)
        assert provider.connections == 1


@pytest.mark.parametrize("fault_after", [0, 2])
async def test_a_cancelled_call_hangs_up_on_the_provider_at_once(fault_after: int) -> None:
    async with FakeProvider() as provider, opened() as upstream:
        provider.default = Reply(fault=Fault.HANG, fault_after=fault_after)

        async def call() -> None:
            response = await upstream.open(target(provider.base_url), post(STREAM))
            try:
                while await response.chunk():
                    pass
            finally:
                response.close()

        task = asyncio.create_task(call())
        await provider.until(
            lambda: bool(provider.taken) and provider.taken[0].pieces_sent == fault_after
        )
        await asyncio.sleep(0.01)
        loop = asyncio.get_running_loop()
        left_at = loop.time()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await provider.until(lambda: provider.taken[0].outcome is Outcome.ABANDONED)
        assert provider.taken[0].ended_at - left_at < 0.2


async def test_a_call_cancelled_while_it_connects_leaves_nothing_behind() -> None:
    async with FakeProvider() as provider, opened() as upstream:
        task = asyncio.create_task(fetch(upstream, provider.base_url))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await fetch(upstream, provider.base_url))[0] == 200


async def test_closing_twice_is_closing_once() -> None:
    async with FakeProvider() as provider, opened() as upstream:
        response = await upstream.open(target(provider.base_url), post())
        await response.read(1 << 20)
        response.close()
        response.close()
        assert (await fetch(upstream, provider.base_url))[0] == 200
        assert provider.connections == 1


async def test_a_reader_that_lags_stops_the_provider() -> None:
    async with FakeProvider() as provider, opened() as upstream:
        provider.default = Reply(text="word " * 100_000)
        response = await upstream.open(target(provider.base_url), post(STREAM))
        await response.chunk()
        sent = -1
        while sent != provider.taken[0].bytes_sent:
            sent = provider.taken[0].bytes_sent
            await asyncio.sleep(0.1)
        assert sent < 8 << 20  # the kernel's buffers of both sides, not the 20 MB of the answer
        assert response._connection._unread_bytes < 1 << 20
        total = 0
        while piece := await response.chunk():
            total += len(piece)
        assert total > 10 << 20
        response.close()


async def test_a_refused_connection_is_known_to_be_unsent() -> None:
    provider = FakeProvider()
    async with provider:
        pass
    async with opened() as upstream:
        assert await reason_of(upstream, provider.base_url) == "UPSTREAM_UNREACHABLE"


async def test_a_name_that_does_not_resolve_is_known_to_be_unsent() -> None:
    async with opened() as upstream:
        assert await reason_of(upstream, "http://no-such-host.invalid") == "UPSTREAM_UNREACHABLE"


async def test_a_host_that_never_answers_the_handshake_is_given_up_in_time() -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with listening(silent) as port, opened(timeout_s=0.2) as upstream:
        assert await reason_of(upstream, f"https://127.0.0.1:{port}") == "UPSTREAM_UNREACHABLE"
    assert loop.time() - started < 5.0


async def test_a_second_address_is_tried_when_the_first_is_dead() -> None:
    async with FakeProvider() as provider, opened() as upstream:
        loop = asyncio.get_running_loop()
        families = {entry[0] for entry in await loop.getaddrinfo("localhost", provider.port)}
        status, _ = await fetch(upstream, f"http://localhost:{provider.port}/v1")
        assert (status, bool(families)) == (200, True)


def test_families_take_turns() -> None:
    assert client._interleaved(["a:1", "a:2", "1.1", "a:1"]) == ["a:1", "1.1", "a:2"]
    assert client._interleaved(["1.1", "1.2", "a:1"]) == ["a:1", "1.1", "1.2"]


def certificate(directory: Path, *names: str, days: int = 1) -> ssl.SSLContext:
    """A server context with a self-signed certificate, which is written to ``ca.pem`` too."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = dt.datetime.now(dt.UTC)
    alternatives: list[x509.GeneralName] = [x509.DNSName(text) for text in names]
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=3))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = signed.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (directory / "ca.pem").write_bytes(pem)
    (directory / "both.pem").write_bytes(secret + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "both.pem")
    return context


def trusting(directory: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(directory / "ca.pem"))


async def test_tls_works_with_a_certificate_that_is_trusted(tmp_path: Path) -> None:
    tls = certificate(tmp_path, "localhost")
    async with FakeProvider(tls=tls) as provider, opened(tls=trusting(tmp_path)) as upstream:
        for _ in range(2):
            assert (await fetch(upstream, provider.base_url))[0] == 200
        assert provider.connections == 1


@pytest.mark.parametrize(
    ("names", "days", "trusted"),
    [(["localhost"], 1, False), (["elsewhere"], 1, True), (["localhost"], -1, True)],
    ids=["unknown authority", "another name", "expired"],
)
async def test_a_bad_certificate_is_refused_before_anything_is_sent(
    tmp_path: Path, names: list[str], days: int, trusted: bool
) -> None:
    tls = certificate(tmp_path, *names, days=days)
    async with FakeProvider(tls=tls) as provider:
        async with opened(tls=trusting(tmp_path) if trusted else None) as upstream:
            assert await reason_of(upstream, provider.base_url) == "UPSTREAM_UNREACHABLE"
        assert provider.taken == []


async def test_plain_http_where_tls_is_asked_for_is_refused() -> None:
    async with FakeProvider() as provider, opened(timeout_s=0.3) as upstream:
        url = f"https://127.0.0.1:{provider.port}/v1"
        assert await reason_of(upstream, url) == "UPSTREAM_UNREACHABLE"


def test_verification_cannot_be_turned_off() -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    with pytest.raises(ValueError, match="always verified"):
        Upstream(SystemClock(), connect_timeout_s=1.0, tls=context)


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "UPSTREAM_ERROR"),
        (b"HTTP/1.1 200", "UPSTREAM_ERROR"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "UPSTREAM_PROTOCOL"),
        (
            b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            "UPSTREAM_PROTOCOL",
        ),
        (OK + b"x: " + b"a" * 70_000 + b"\r\n", "UPSTREAM_PROTOCOL"),
        (OK + b"content-length: 10\r\n\r\nhello", "UPSTREAM_PROTOCOL"),
        (OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "UPSTREAM_PROTOCOL"),
        (OK + b"transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n", "UPSTREAM_PROTOCOL"),
        (OK + b"content-encoding: br\r\ncontent-length: 2\r\n\r\nhi", "UPSTREAM_PROTOCOL"),
        (OK + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\nhi", "UPSTREAM_PROTOCOL"),
        (
            OK + b"content-encoding: gzip\r\n\r\n" + gzip.compress(b"hello", mtime=0)[:-9],
            "UPSTREAM_PROTOCOL",
        ),
    ],
)
async def test_what_is_not_a_whole_http_answer_is_an_error(answer: bytes, reason: str) -> None:
    async with raw_server(answer) as url, opened() as upstream:
        assert await reason_of(upstream, url) == reason


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK + b"connection: close\r\n\r\nto the end", b"to the end"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 2\r\n\r\nhi", b"hi"),
        (b"HTTP/1.1 103 Hints\r\nlink: x\r\n\r\n" + OK + b"content-length: 2\r\n\r\nhi", b"hi"),
        (OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\ntrailer: x\r\n\r\n", b"hi"),
        (OK + b"content-length: 0\r\n\r\n", b""),
        (OK + b"content-encoding: gzip\r\n\r\n" + gzip.compress(b"hello", mtime=0), b"hello"),
        (OK + b"content-encoding: deflate\r\n\r\n" + zlib.compress(b"hello"), b"hello"),
    ],
)
async def test_every_way_to_frame_a_body_is_read(answer: bytes, body: bytes) -> None:
    async with raw_server(answer) as url, opened() as upstream:
        assert await fetch(upstream, url) == (200, body)


async def test_a_redirect_is_not_followed() -> None:
    answer = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
    async with raw_server(answer) as url, opened() as upstream:
        assert await fetch(upstream, url) == (302, b"")


async def test_bytes_that_no_request_asked_for_never_become_an_answer() -> None:
    one = OK + b"content-length: 3\r\n\r\none"
    stolen = OK + b"content-length: 6\r\n\r\nstolen"
    async with raw_server(one + stolen, close=False) as url, opened() as upstream:
        for _ in range(3):
            assert await fetch(upstream, url) == (200, b"one")


async def test_bytes_on_an_idle_connection_close_it() -> None:
    answers = iter([b"one", b"two"])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = next(answers)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"content-length: 3\r\n\r\n" + body)
        await asyncio.sleep(0.02)
        if not writer.is_closing():
            writer.write(OK + b"content-length: 6\r\n\r\nstolen")
        await reader.read()

    async with listening(serve) as port, opened() as upstream:
        url = f"http://127.0.0.1:{port}"
        assert await fetch(upstream, url) == (200, b"one")
        await asyncio.sleep(0.1)
        assert await fetch(upstream, url) == (200, b"two")


async def test_an_answer_beyond_the_limit_is_cut_off() -> None:
    async with FakeProvider() as provider, opened() as upstream:
        provider.default = Reply(body=b"x" * 200_000)
        assert len((await fetch(upstream, provider.base_url, 200_000))[1]) == 200_000
        with pytest.raises(GatewayError, match="larger than") as caught:
            await fetch(upstream, provider.base_url, 199_999)
        assert caught.value.reason == error_pb2.ERROR_REASON_UPSTREAM_TOO_LARGE


async def test_a_bomb_is_unpacked_no_further_than_the_limit() -> None:
    bomb = gzip.compress(b"0" * (256 << 20))
    async with FakeProvider() as provider, opened() as upstream:
        provider.default = Reply(body=bomb, headers=(("content-encoding", "gzip"),))
        response = await upstream.open(target(provider.base_url), post())
        assert len(await response.chunk()) <= client.DECODED_CHUNK_MAX
        with pytest.raises(GatewayError, match="larger than"):
            await response.read(1 << 20)
        response.close()
