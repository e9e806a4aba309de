"""Calls auth as the operator of this machine: with the operator token that the gateway which runs
on the same data directory has made.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
from rich.markup import escape

from cli.context import CliContext, fail
from onegate.common.v1 import error_pb2
from runtime.config import Settings
from runtime.errors import GatewayError
from runtime.rpc import OPERATOR_KEY, channel, unary
from runtime.secrets import Secret, SecretError, read_secret

TIMEOUT_S: Final = 10.0
"""How long auth may take for one answer, in seconds."""

ORGANIZATION_KEY: Final = "x-onegate-organization"
"""Metadata: which organisation is meant."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Auth, as the operator calls it; ``organization`` is empty for the first one or all."""

    channel: grpc.aio.Channel
    token: Secret
    organization: str

    async def call(self, method: Any, request: Any, *, timeout_s: float = TIMEOUT_S) -> Any:
        """One answer. Raises ``GatewayError``."""
        metadata = [(OPERATOR_KEY, self.token.reveal())]
        if self.organization:
            metadata.append((ORGANIZATION_KEY, self.organization))
        return await unary(
            method,
            request,
            timeout_s=timeout_s,
            metadata=metadata,
            away=error_pb2.ERROR_REASON_AUTH_UNAVAILABLE,
        )


def run(cli: CliContext, work: Callable[[Operator], Awaitable[T]], organization: str = "") -> T:
    """Does the work with auth; a failure ends the command with one line."""
    settings = cli.load()
    try:
        return asyncio.run(_with_auth(settings, work, organization))
    except SecretError as error:
        fail(escape(f"{error} The gateway makes it when it starts: run `onegate up` first."))
    except GatewayError as error:
        if error.reason == error_pb2.ERROR_REASON_AUTH_UNAVAILABLE:
            fail(escape(f"auth does not answer at {settings.edge.auth}: is `onegate up` running?"))
        fail(escape(error.message))


async def _with_auth(
    settings: Settings, work: Callable[[Operator], Awaitable[T]], organization: str
) -> T:
    token = read_secret(Path(settings.rpc.operator_token_file))
    async with channel(settings.edge.auth, settings.rpc) as line:
        return await work(Operator(channel=line, token=token, organization=organization))
