"""Serves the table of administrative routes: finds the row, asks auth, answers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

import grpc
from google.protobuf.message import Message

from edge.admin.asked import Asked
from edge.admin.route import AnyRoute, Json, R
from edge.admin.table import ROUTES
from edge.calls import Call, KeyEndpoint
from edge.dispatch import common_headers
from edge.endpoints.strict_json import encode
from edge.http import HttpRefusalError, Response
from onegate.common.v1 import error_pb2
from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.passes import PASS_KEY
from runtime.rpc import unary

TIMEOUT_S: Final = 10.0
"""How long auth may take for one answer, in seconds."""

BODY_BYTES_MAX: Final = 256 * 1024
PREFIXES: Final = ("/v1/organization/", "/v1/projects/")
METHODS: Final = ("GET", "POST", "DELETE")
ADDRESS_KEY: Final = "x-onegate-client-address"
_PACKAGE: Final = "onegate.auth.v1"
_USAGE: Final = "onegate.usage.v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A route, ready to be served."""

    route: AnyRoute
    pattern: re.Pattern[str]
    ask: Any
    endpoint: KeyEndpoint


class _Usage:
    """The usage service, asked with a pass."""

    def __init__(self, usage: grpc.aio.Channel, sealed_pass: str) -> None:
        self._channel = usage
        self._metadata = ((PASS_KEY, sealed_pass),)

    async def ask(self, rpc: str, request: Message, response: type[R]) -> R:
        """See :class:`~edge.admin.route.Usage`."""
        method: grpc.aio.UnaryUnaryMultiCallable[Message, R] = self._channel.unary_unary(
            f"/{_USAGE}.{rpc}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        return await unary(
            method,
            request,
            timeout_s=TIMEOUT_S,
            metadata=self._metadata,
            away=error_pb2.ERROR_REASON_STORE_UNAVAILABLE,
        )


class AdminEndpoints:
    """Everything below ``/v1/organization`` that auth answers."""

    def __init__(self, auth: grpc.aio.Channel, usage: grpc.aio.Channel, clock: Clock) -> None:
        self._clock = clock
        self._usage = usage
        self._rows = [self._row(route, auth) for route in ROUTES]

    def endpoints(self) -> list[KeyEndpoint]:
        """The rows of the edge's table: one for each prefix and HTTP method."""
        return [
            KeyEndpoint(
                name="admin",
                method=method,
                path=f"{prefix}{{path}}",
                handle=self._serve,
                body_bytes_max=BODY_BYTES_MAX,
            )
            for prefix in PREFIXES
            for method in METHODS
        ]

    def _row(self, route: AnyRoute, auth: grpc.aio.Channel) -> _Row:
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(route.path))
        return _Row(
            route=route,
            pattern=re.compile(pattern),
            ask=auth.unary_unary(
                f"/{_PACKAGE}.{route.rpc}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=route.response.FromString,
            ),
            endpoint=KeyEndpoint(
                name=f"admin.{route.name}",
                method=route.method,
                path=route.path,
                handle=self._serve,
                body_bytes_max=BODY_BYTES_MAX,
            ),
        )

    async def _serve(self, call: Call) -> Response:
        row, path = self._find(call)
        call.endpoint = row.endpoint
        body = await call.request.body()
        asked = Asked(path, call.request.query, body)
        message = row.route.request(asked)
        asked.finish()
        metadata = (
            ("authorization", f"Bearer {call.key}"),
            (ADDRESS_KEY, call.request.client),
        )
        allowed = await unary(
            row.ask,
            message,
            timeout_s=TIMEOUT_S + row.route.wait_s(message),
            metadata=metadata,
            away=error_pb2.ERROR_REASON_AUTH_UNAVAILABLE,
        )
        answer = await self._answer(row.route, allowed, asked)
        elapsed_s = self._clock.monotonic() - call.request.received_s
        headers = common_headers(call.request_id, elapsed_s)
        return Response(200, headers, encode(answer))

    async def _answer(self, route: AnyRoute, allowed: Any, asked: Asked) -> Json:
        if route.onward is not None:
            return await route.onward(_Usage(self._usage, allowed.sealed_pass), allowed, asked)
        if route.answer is None:
            raise GatewayError(error_pb2.ERROR_REASON_INTERNAL, f"{route.name} answers nothing.")
        return route.answer(allowed, asked)

    def _find(self, call: Call) -> tuple[_Row, Mapping[str, str]]:
        """The row and the named segments. Raises NOT_FOUND, METHOD_NOT_ALLOWED."""
        path = call.request.path.decode("ascii")
        method = "GET" if call.request.method == "HEAD" else call.request.method
        allowed = []
        for row in self._rows:
            found = row.pattern.fullmatch(path)
            if found is None:
                continue
            if row.route.method == method:
                return row, {name: unquote(part) for name, part in found.groupdict().items()}
            allowed.append(row.route.method)
        if allowed:
            words = ", ".join(sorted(allowed))
            raise HttpRefusalError(
                405,
                f"{method} is not allowed here; use {words}.",
                [("allow", words)],
                error_pb2.ERROR_REASON_METHOD_NOT_ALLOWED,
            )
        raise GatewayError(
            error_pb2.ERROR_REASON_NOT_FOUND, f"There is no {path[:200]} in this gateway's API."
        )
