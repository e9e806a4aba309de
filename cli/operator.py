"""Calls auth as whoever sits here: with the admin key of the environment, as the person who has
signed in, or as the operator of this machine, with the token that the gateway which runs on the
same data directory has made.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
from rich.markup import escape

from cli import session
from cli.context import CliContext, fail
from onegate.common.v1 import error_pb2
from runtime.clock import SystemClock
from runtime.config import Settings, environment
from runtime.errors import GatewayError
from runtime.rpc import OPERATOR_KEY, channel, unary
from runtime.secrets import Secret, SecretError, read_secret

TIMEOUT_S: Final = 10.0
"""How long auth may take for one answer, in seconds."""

ORGANIZATION_KEY: Final = "x-onegate-organization"
"""Metadata: which organisation is meant."""

_AS_OPERATOR: Final = " to go on as the operator of this machine"
_MADE_BY: Final = (
    "The gateway makes it when it starts: run `onegate up` first. On another machine, run"
    " `onegate login`."
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What admits whoever calls: the operator's token, or an admin key."""

    secret: Secret
    is_operator: bool

    def metadata(self) -> tuple[str, str]:
        """As auth takes it."""
        if self.is_operator:
            return OPERATOR_KEY, self.secret.reveal()
        return "authorization", f"Bearer {self.secret.reveal()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Auth, as it is called from here; ``organization`` is empty for the first one or all."""

    channel: grpc.aio.Channel
    credential: Credential
    organization: str

    async def call(self, method: Any, request: Any, *, timeout_s: float = TIMEOUT_S) -> Any:
        """One answer. Raises ``GatewayError``."""
        metadata = [self.credential.metadata()]
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
        credential = credential_of(cli, settings)
        if organization and not credential.is_operator:
            fail("--organization is the operator's: add --as-operator after `onegate`.")
        return asyncio.run(_with_auth(settings, credential, work, organization))
    except SecretError as error:
        fail(escape(str(error)))
    except GatewayError as error:
        if error.reason == error_pb2.ERROR_REASON_AUTH_UNAVAILABLE:
            fail(escape(f"auth does not answer at {settings.edge.auth}: is `onegate up` running?"))
        fail(escape(error.message))


def credential_of(cli: CliContext, settings: Settings) -> Credential:
    """Who commands act as. Ends the command when a session is over; raises ``SecretError``."""
    environ = environment()
    admin_key = environ.get(session.ADMIN_KEY_VARIABLE, "")
    if cli.as_operator:
        return Credential(secret=operator_token(settings), is_operator=True)
    if admin_key:
        return Credential(secret=Secret(admin_key), is_operator=False)
    try:
        kept = session.kept(session.directory_of(environ), settings.edge.auth)
    except SecretError as error:
        fail(escape(str(error)))
    if kept is None:
        return Credential(secret=operator_token(settings), is_operator=True)
    if kept.expires_at <= SystemClock().now():
        fail(f"your session has ended: run `onegate login`, or `onegate logout`{_AS_OPERATOR}.")
    return Credential(secret=Secret(kept.key), is_operator=False)


def operator_token(settings: Settings) -> Secret:
    """What admits the operator. Raises ``SecretError``, saying who makes it."""
    try:
        return read_secret(Path(settings.rpc.operator_token_file))
    except SecretError as error:
        raise SecretError(f"{error} {_MADE_BY}") from None


async def _with_auth(
    settings: Settings,
    credential: Credential,
    work: Callable[[Operator], Awaitable[T]],
    organization: str,
) -> T:
    async with channel(settings.edge.auth, settings.rpc) as line:
        return await work(Operator(channel=line, credential=credential, organization=organization))
