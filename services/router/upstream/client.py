"""The one way out: HTTP/1.1 to providers, over connections that are kept.

The client is our own, on asyncio and llhttp. Measured in one run (one core, 600 B out, 1 KB or 64
chunks back): 23-26 µs of CPU a call, 240-350 a stream, 860-900 a paced stream, where pyreqwest
0.15.1 took 36-48, 410-490 and 1,280-1,450. And what decides: a cancelled request of pyreqwest
goes on in its own runtime until the provider has answered (it drops the task's handle and never
aborts it), so that a caller who leaves while the provider thinks is billed to the end. Here a
cancelled call closes the provider's connection in the same turn of the loop, in every state.

TLS is always verified, nothing is redirected, no proxy is taken from the environment, there are no
cookies, and only headers on the allow-list leave (``egress.py``).
"""

import asyncio
import socket
import ssl
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from onegate.common.v1 import error_pb2
from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.failpoints import OFF, Failpoint, Failpoints
from services.router.providers.base import Headers, Signer, UpstreamRequest
from services.router.upstream.connection import Connection, Taker
from services.router.upstream.egress import Origin, check_headers, check_path, is_forbidden

IDLE_MAX: Final = 256
"""Idle connections kept for each origin."""
IDLE_TLS_S: Final = 30.0
"""How long an idle TLS connection is trusted; vendors' balancers keep theirs for a minute."""
IDLE_PLAIN_S: Final = 4.0
"""How long an idle plain one is: local model servers hang up after five seconds
(https://www.uvicorn.org/settings/#timeouts)."""
LINGER_S: Final = 1.0
"""How long the end of an HTTP body is waited for when the answer in it is over."""
DECODED_CHUNK_MAX: Final = 256 * 1024
"""How much one read may unpack to, in bytes."""

_KEEPALIVE: Final = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
_PLAIN_ENCODINGS: Final = frozenset({"", "identity"})
_ZLIB_ENCODINGS: Final = frozenset({"gzip", "x-gzip", "deflate"})
_ZLIB_OR_GZIP: Final = zlib.MAX_WBITS | 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One provider's place: where it is, the request lines that every call to it shares, and what
    signs each call where they are not enough.
    """

    origin: Origin
    head: bytes
    signer: Signer | None = None


def target_of(origin: Origin, credential: Headers | Signer) -> Target:
    """Prepares a provider's place. ``credential`` is what its wire's ``authorize`` gave."""
    signer = credential if callable(credential) else None
    shared = () if callable(credential) else credential
    check_headers(shared)
    lines = [f"host: {origin.authority}", "user-agent: onegate", "accept-encoding: identity"]
    lines += [f"{name}: {value}" for name, value in shared]
    head = "".join(f"{line}\r\n" for line in lines).encode("ascii")
    return Target(origin=origin, head=head, signer=signer)


def moved(target: Target, origin: Origin) -> Target:
    """Another place of the same provider's, called with the same credential."""
    _, _, shared = target.head.partition(b"\r\n")
    head = b"host: %s\r\n%s" % (origin.authority.encode("ascii"), shared)
    return replace(target, origin=origin, head=head)


class UpstreamResponse:
    """One answer. ``close`` ends it at any point, at once, without waiting."""

    __slots__ = ("_connection", "_decoder", "_release", "status")

    def __init__(self, connection: Connection, release: "_Release") -> None:
        self._connection = connection
        self._release = release
        self.status = connection.status
        encoding = self.header("content-encoding")
        self._decoder = _decoder_of(encoding) if encoding else None

    @property
    def headers(self) -> dict[str, str]:
        """The headers, names in lower case; of repeated ones the last."""
        return {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in self._connection.headers
        }

    def headers_like(self, part: bytes) -> dict[str, str]:
        """The headers with ``part``, in lower case, in their names; few of many, so that the rest
        need not be decoded.
        """
        return {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in self._connection.headers
            if part in name.lower()
        }

    def header(self, name: str) -> str:
        """One header by its lower-case name; empty when absent."""
        size = len(name)
        for key, value in self._connection.headers:
            if len(key) == size and key.decode("latin-1").lower() == name:
                return value.decode("latin-1")
        return ""

    async def chunk(self, taker: Taker | None = None) -> bytes:
        """What has arrived of the body, decoded; empty at its end.

        While it waits, ``taker`` may be offered what comes: see ``Connection.read``. Raises
        UPSTREAM_PROTOCOL when the body breaks off or does not decode.
        """
        if self._decoder is None:
            return await self._connection.read(taker)
        return await self._decoder.chunk(self._connection)

    async def read(self, bytes_max: int) -> bytes:
        """The whole body. Raises UPSTREAM_TOO_LARGE beyond ``bytes_max`` decoded bytes."""
        if self._decoder is None:
            whole = self._connection.rest(bytes_max)
            if whole is not None:
                return whole
        first = await self.chunk()
        if not first:
            return first
        size = len(first)
        parts = [first]
        while size <= bytes_max and (part := await self.chunk()):
            parts.append(part)
            size += len(part)
        if size > bytes_max:
            raise too_large(bytes_max)
        return first if len(parts) == 1 else b"".join(parts)

    async def start(self, bytes_max: int) -> bytes:
        """The beginning of the body, for what nobody needs whole: at least ``bytes_max`` bytes of
        it, or all.
        """
        parts = [await self.chunk()]
        while parts[-1] and sum(map(len, parts)) < bytes_max:
            parts.append(await self.chunk())
        return b"".join(parts)[:bytes_max]

    def finish(self) -> None:
        """The answer was read to its own end: its connection may serve again, once the end of the
        HTTP body has come too.
        """
        if self._connection.busy and not self._connection.linger(self._release.put, LINGER_S):
            self._release.put(self._connection)

    def close(self) -> None:
        """Ends the answer. What was read whole gives its connection back, what was not is cut;
        after :meth:`finish`, or a second time, it does nothing.
        """
        if not self._connection.lingering:
            self._release.put(self._connection)


class _Release:
    """Where a connection goes after its exchange: back among the idle, or away."""

    __slots__ = ("_clock", "idle", "idle_s")

    def __init__(self, clock: Clock, idle_s: float) -> None:
        self._clock = clock
        self.idle_s = idle_s
        self.idle: list[Connection] = []

    def take(self) -> Connection | None:
        """The connection that was used last, if one is fresh enough."""
        oldest_used = self._clock.monotonic() - self.idle_s
        while self.idle:
            connection = self.idle.pop()
            if connection.usable and connection.idle_since >= oldest_used:
                return connection
            connection.abort()
        return None

    def put(self, connection: Connection) -> None:
        """Takes a connection back. A second time it does nothing."""
        if not connection.busy:
            return
        if connection.reusable and len(self.idle) < IDLE_MAX:
            connection.busy = False
            connection.idle_since = self._clock.monotonic()
            self.idle.append(connection)
        else:
            connection.abort()

    def drop_stale(self) -> None:
        """Closes what nobody will use again."""
        oldest_used = self._clock.monotonic() - self.idle_s
        while self.idle and self.idle[0].idle_since < oldest_used:
            self.idle.pop(0).abort()

    def lost(self, connection: Connection) -> None:
        """The provider hung up."""
        if not connection.busy and connection in self.idle:
            self.idle.remove(connection)


class Upstream:
    """The client. One for a process; it lives on the loop that opened it."""

    def __init__(
        self,
        clock: Clock,
        *,
        connect_timeout_s: float,
        tls: ssl.SSLContext | None = None,
        failpoints: Failpoints = OFF,
    ) -> None:
        """``tls`` replaces the system's trusted authorities; verification is never off. At
        ``failpoints`` a test may end this process.
        """
        self._clock = clock
        self._failpoints = failpoints
        self._connect_timeout_s = connect_timeout_s
        self._tls = tls or ssl.create_default_context()
        if self._tls.verify_mode is not ssl.CERT_REQUIRED or not self._tls.check_hostname:
            raise ValueError("TLS to providers is always verified.")
        self._places: dict[Origin, _Release] = {}
        self._sweep: asyncio.TimerHandle | None = None

    async def open(self, target: Target, request: UpstreamRequest) -> UpstreamResponse:
        """Sends a request and waits for the head of its answer.

        No deadline but the connection's: the caller cancels. Raises UPSTREAM_UNREACHABLE when
        nothing was sent, UPSTREAM_ERROR and UPSTREAM_PROTOCOL when something was.
        """
        if target.signer is not None:
            request = self._signed(target.origin, request, target.signer)
        head = _head_of(target, request)
        place = self._places.get(target.origin) or self._place(target.origin)
        connection = place.take() or await self._connect(target.origin, place)
        connection.send(head, request.body)
        try:
            self._failpoints.hit(Failpoint.SENT)
            await connection.head()
            return UpstreamResponse(connection, place)
        except BaseException:
            connection.abort()
            raise

    def close(self) -> None:
        """Closes the idle connections. Answers that are open stay their reader's."""
        if self._sweep is not None:
            self._sweep.cancel()
        for place in self._places.values():
            for connection in place.idle:
                connection.abort()
            place.idle.clear()

    def _signed(self, origin: Origin, request: UpstreamRequest, sign: Signer) -> UpstreamRequest:
        url = f"{origin.scheme}://{origin.authority}{origin.path}{request.path}"
        added = sign(url, request, self._clock.now())
        return request._replace(headers=[*request.headers, *added])

    def _place(self, origin: Origin) -> _Release:
        idle_s = IDLE_TLS_S if origin.scheme == "https" else IDLE_PLAIN_S
        place = self._places[origin] = _Release(self._clock, idle_s)
        if self._sweep is None:
            self._sweep_later()
        return place

    def _sweep_later(self) -> None:
        for place in self._places.values():
            place.drop_stale()
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(IDLE_PLAIN_S, self._sweep_later)

    async def _connect(self, origin: Origin, place: _Release) -> Connection:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                return await self._connect_any(origin, place)
        except TimeoutError:
            raise _unreachable(origin, "it did not answer in time") from None
        except ssl.SSLCertVerificationError as error:
            raise _unreachable(origin, f"its certificate: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise _unreachable(origin, f"TLS failed ({error.reason})") from None
        except OSError as error:
            raise _unreachable(origin, error.strerror or type(error).__name__) from None

    async def _connect_any(self, origin: Origin, place: _Release) -> Connection:
        """Tries the host's addresses in turn, each for its share of the time."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        # A name was checked when it was configured; what it resolves to is somebody else's say.
        addresses = _interleaved(
            [name for name in (str(entry[4][0]) for entry in found) if not is_forbidden(name)]
        )
        if not addresses:
            raise OSError("the name leads to no address that may be called")
        share_s = self._connect_timeout_s / len(addresses)
        tls = self._tls if origin.scheme == "https" else None
        failure: OSError = OSError("no address")
        for address in addresses:
            try:
                async with asyncio.timeout(share_s):
                    _, connection = await loop.create_connection(
                        lambda: Connection(loop, place.lost),
                        address,
                        origin.port,
                        ssl=tls,
                        server_hostname=origin.host if tls else None,
                    )
            except ssl.SSLError:
                raise
            except (OSError, TimeoutError) as error:
                failure = error
                continue
            connection.keep_alive(_KEEPALIVE)
            return connection
        raise failure


class _Decoder:
    """Unpacks gzip or deflate, never more than a bound at once."""

    __slots__ = ("_inflate", "_packed")

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(_ZLIB_OR_GZIP)
        self._packed = b""

    async def chunk(self, connection: Connection) -> bytes:
        """The next unpacked bytes; empty at the end."""
        while True:
            if not self._packed:
                self._packed = await connection.read()
                if not self._packed:
                    if not self._inflate.eof:
                        raise _undecodable()
                    return b""
            try:
                unpacked = self._inflate.decompress(self._packed, DECODED_CHUNK_MAX)
            except zlib.error:
                raise _undecodable() from None
            self._packed = self._inflate.unconsumed_tail
            if unpacked:
                return unpacked


def _decoder_of(encoding: str) -> _Decoder | None:
    encoding = encoding.strip().lower()
    if encoding in _PLAIN_ENCODINGS:
        return None
    if encoding in _ZLIB_ENCODINGS:
        return _Decoder()
    raise GatewayError(
        error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL,
        "The provider answered in an encoding that nobody asked for.",
    )


def _head_of(target: Target, request: UpstreamRequest) -> bytes:
    check_headers(request.headers)
    check_path(request.path)
    lines = "".join([f"{name}: {value}\r\n" for name, value in request.headers])
    return b"%s %s%s HTTP/1.1\r\n%s%scontent-length: %d\r\n\r\n" % (
        request.method.encode("ascii"),
        target.origin.path.encode("ascii"),
        request.path.encode("ascii"),
        target.head,
        lines.encode("ascii"),
        len(request.body),
    )


def _interleaved(addresses: Sequence[str]) -> list[str]:
    """One family after the other in turn, so that a dead IPv6 does not use up the time."""
    unique = list(dict.fromkeys(addresses))
    six = [address for address in unique if ":" in address]
    four = [address for address in unique if ":" not in address]
    mixed = [address for pair in zip(six, four, strict=False) for address in pair]
    return mixed + six[len(four) :] + four[len(six) :]


def _unreachable(origin: Origin, why: str) -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_UPSTREAM_UNREACHABLE,
        f"The provider at {origin.authority} cannot be reached: {why}. Nothing was sent.",
    )


def too_large(bytes_max: int) -> GatewayError:
    """The provider's answer is longer than may be read."""
    return GatewayError(
        error_pb2.ERROR_REASON_UPSTREAM_TOO_LARGE,
        f"The provider's answer is larger than {bytes_max} bytes.",
    )


def _undecodable() -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL, "The provider's answer does not unpack."
    )
