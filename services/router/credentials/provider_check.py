"""Tries a provider's credentials by the cheapest real call there is: its list of models."""

# ruff: noqa: N802 - methods are named as the contract names them

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc

from onegate.common.v1 import error_pb2
from onegate.router.v1 import provider_check_service_pb2 as pb
from onegate.router.v1 import provider_check_service_pb2_grpc
from runtime.clock import Clock
from runtime.errors import GatewayError, reason_name
from runtime.rpc import require_operator
from runtime.rpc_server import metadata_of
from services.router.models.discovery import TIMEOUT_S, listed
from services.router.parts import Provider
from services.router.upstream.client import Target, Upstream

_REFUSED: Final = error_pb2.ERROR_REASON_UPSTREAM_AUTH


class ProviderCheckService(provider_check_service_pb2_grpc.ProviderCheckServiceServicer):
    """``onegate.router.v1.ProviderCheckService``."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        upstream: Upstream,
        clock: Clock,
        operator_token: Callable[[], str],
    ) -> None:
        self._providers = providers
        self._upstream = upstream
        self._clock = clock
        self._operator_token = operator_token

    async def CheckProvider(
        self, request: pb.CheckProviderRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.CheckProviderResponse:
        """Every credential of a provider, at once. Raises NOT_FOUND."""
        require_operator(metadata_of(context), self._operator_token())
        provider = self._providers.get(request.name)
        if provider is None or provider.retired:
            raise GatewayError(
                error_pb2.ERROR_REASON_NOT_FOUND,
                f"This router has no provider {request.name!r}: it has"
                f" {', '.join(n for n, p in self._providers.items() if not p.retired) or 'none'}.",
                param="name",
            )
        targets = [(one.name, one.target) for one in provider.credentials]
        checks = await asyncio.gather(
            *(self._check(provider, *pair) for pair in targets or [("", provider.target)])
        )
        return pb.CheckProviderResponse(checks=checks)

    async def _check(
        self, provider: Provider, credential: str, target: Target
    ) -> pb.CredentialCheck:
        check = pb.CredentialCheck(credential=credential)
        asked = provider.wire.models_request()
        if asked is None and (not provider.lists or target is not provider.target):
            check.ok = True
            check.detail = "not tried: this kind of provider has no list of models to ask for"
            return check
        calls = [(target, asked)] if asked is not None else provider.lists
        began_s = self._clock.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                for place, call in calls:
                    check.models += len(await listed(self._upstream, provider.wire, place, call))
            check.ok = True
        except TimeoutError:
            check.detail = f"it did not answer within {TIMEOUT_S:g} s: check its address"
        except GatewayError as error:
            check.detail = _in_words(error)
        check.duration_ms = int((self._clock.monotonic() - began_s) * 1000)
        return check


def _in_words(error: GatewayError) -> str:
    status = f" (HTTP {error.upstream_status})" if error.upstream_status else ""
    if error.reason == _REFUSED:
        return f"it refuses the credential{status}: rotate it, or check what it may do"
    if error.reason == error_pb2.ERROR_REASON_UPSTREAM_UNREACHABLE:
        return f"it cannot be reached: check its address and the network ({error.message})"
    if error.reason == error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED:
        return f"it accepts the credential and asks to slow down{status}"
    return f"{reason_name(error.reason)}{status}: {error.message}"
