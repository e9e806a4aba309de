"""``onegate login``, ``logout`` and ``whoami``: people at the command line.

Signing in opens a browser and listens on this machine for where it is sent back to (RFC 8252), or,
with ``--device``, says what to type on another device (RFC 8628). The identity provider's tokens
never come here: auth takes them and gives a short session.
"""

import asyncio
import base64
import hashlib
import hmac
import webbrowser
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import parse_qs, urlsplit

import grpc
import typer
from rich.markup import escape
from rich.text import Text

from cli import session
from cli.context import CliContext, fail
from cli.keys import Output, OutputOption
from cli.keys_view import console, print_json
from cli.operator import Operator, run
from onegate.auth.v1 import sign_in_service_pb2 as pb
from onegate.auth.v1 import sign_in_service_pb2_grpc
from onegate.common.v1 import error_pb2
from runtime.clock import SystemClock, SystemEntropy
from runtime.config import Settings, environment
from runtime.errors import GatewayError
from runtime.rpc import channel, unary
from runtime.secrets import SecretError

PATIENCE_S: Final = 300.0
"""How long a browser is waited for, in seconds."""

TIMEOUT_S: Final = 30.0
"""How long auth may take for one answer, in seconds: it asks the identity provider meanwhile."""

HEAD_BYTES_MAX: Final = 16 * 1024
READ_S: Final = 5.0
PATH: Final = "/onegate"

T = TypeVar("T")

login_app = typer.Typer()
logout_app = typer.Typer()
whoami_app = typer.Typer()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What only who began a sign-in has."""

    verifier: str
    state: str

    @property
    def challenge(self) -> str:
        """What is told of the verifier (https://www.rfc-editor.org/rfc/rfc7636#section-4.2)."""
        return _base64url(hashlib.sha256(self.verifier.encode()).digest())


@login_app.command()
def login_command(
    context: typer.Context,
    device: Annotated[
        bool, typer.Option("--device", help="Sign in with a browser on another device.")
    ] = False,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address instead of opening it.")
    ] = False,
) -> None:
    """Sign in through your organisation's identity provider; commands then act as you."""
    settings = _settings(context.obj)
    entropy = SystemEntropy()
    proof = Proof(verifier=_base64url(entropy.bytes(32)), state=_base64url(entropy.bytes(32)))
    way = _with_device(proof) if device else _with_browser(proof, opens=not no_browser)
    ended = _asked(settings, way)
    expires_at = ended.identity.expires_at.ToDatetime(UTC)
    kept = session.KeptSession(
        auth=settings.edge.auth,
        key=ended.value,
        email=ended.identity.email,
        expires_at=expires_at,
    )
    session.keep(session.directory_of(environment()), kept)
    out = console()
    out.print(Text(f"Signed in as {kept.email} ({ended.identity.role})"), end="")
    out.print(Text(f" in {ended.identity.organization_name}, until {_shown(expires_at)}."))


@logout_app.command()
def logout_command(context: typer.Context) -> None:
    """End your session, here and at the gateway."""
    settings = _settings(context.obj)
    directory = session.directory_of(environment())
    try:
        kept = session.kept(directory, settings.edge.auth)
    except SecretError as error:
        fail(escape(str(error)))
    if kept is None:
        console().print("Nobody is signed in here.")
        return
    session.forget(directory)

    async def leave(line: grpc.aio.Channel) -> None:
        stub = sign_in_service_pb2_grpc.SignInServiceStub(line)
        metadata = (("authorization", f"Bearer {kept.key}"),)
        try:
            await unary(stub.SignOut, pb.SignOutRequest(), timeout_s=TIMEOUT_S, metadata=metadata)
        except GatewayError as error:
            over = (error_pb2.ERROR_REASON_INVALID_API_KEY, error_pb2.ERROR_REASON_KEY_EXPIRED)
            if error.reason not in over:
                raise

    _asked(settings, leave)
    console().print(Text(f"Signed out: the session of {kept.email} has ended."))


@whoami_app.command()
def whoami_command(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Show who commands act as, and what they may do."""

    async def ask(operator: Operator) -> pb.Identity:
        stub = sign_in_service_pb2_grpc.SignInServiceStub(operator.channel)
        answer: pb.WhoAmIResponse = await operator.call(stub.WhoAmI, pb.WhoAmIRequest())
        return answer.identity

    identity = run(context.obj, ask)
    if output is Output.JSON:
        print_json(_fields(identity))
        return
    for name, value in _fields(identity).items():
        shown = ", ".join(value) if isinstance(value, list) else str(value)
        if value not in (None, "", []):
            console().print(Text(f"{name:18} {shown}"))


def _fields(identity: pb.Identity) -> dict[str, Any]:
    ends = identity.HasField("expires_at")
    return {
        "kind": _kind(identity),
        "email": identity.email or None,
        "name": identity.name or None,
        "role": identity.role or None,
        "organization_id": identity.organization_id,
        "organization_name": identity.organization_name,
        "user_id": identity.user_id or None,
        "key_id": identity.key_id or None,
        "expires_at": _shown(identity.expires_at.ToDatetime(UTC)) if ends else None,
        "permissions": list(identity.permissions),
    }


def _kind(identity: pb.Identity) -> str:
    if identity.is_operator:
        return "operator"
    return "user" if identity.user_id else "admin key"


def _settings(cli: CliContext) -> Settings:
    return cli.load()


def _asked(settings: Settings, work: Callable[[grpc.aio.Channel], Awaitable[T]]) -> T:
    """What is done with auth, without a key; a failure ends the command with one line."""

    async def connected() -> T:
        async with channel(settings.edge.auth, settings.rpc) as line:
            return await work(line)

    try:
        return asyncio.run(connected())
    except GatewayError as error:
        fail(escape(error.message))


def _with_browser(
    proof: Proof, *, opens: bool
) -> Callable[[grpc.aio.Channel], Awaitable[pb.FinishSignInResponse]]:
    """Signs in with a browser on this machine."""

    async def work(line: grpc.aio.Channel) -> pb.FinishSignInResponse:
        stub = sign_in_service_pb2_grpc.SignInServiceStub(line)
        landing = Landing(proof.state)
        server = await asyncio.start_server(landing.serve, "127.0.0.1", 0, limit=HEAD_BYTES_MAX)
        async with server:
            port = server.sockets[0].getsockname()[1]
            request = pb.BeginSignInRequest(
                code_challenge=proof.challenge,
                redirect_uri=f"http://127.0.0.1:{port}{PATH}",
                state=proof.state,
            )
            begun = await unary(stub.BeginSignIn, request, timeout_s=TIMEOUT_S)
            out = console()
            out.print("Sign in with a browser on this machine, at:")
            out.print(Text(begun.url), soft_wrap=True)
            if opens:
                # Some browsers end only when their window is closed.
                opening = asyncio.to_thread(webbrowser.open, begun.url)
                landing.opening = asyncio.ensure_future(opening)
            try:
                code = await asyncio.wait_for(landing.code, PATIENCE_S)
            except TimeoutError:
                raise _failure("Nobody signed in within five minutes: run it again.") from None
        asked = pb.FinishSignInRequest(id=begun.id, code_verifier=proof.verifier, code=code)
        ended: pb.FinishSignInResponse = await unary(stub.FinishSignIn, asked, timeout_s=TIMEOUT_S)
        return ended

    return work


def _with_device(
    proof: Proof,
) -> Callable[[grpc.aio.Channel], Awaitable[pb.FinishSignInResponse]]:
    """Signs in with a browser somewhere else."""

    async def work(line: grpc.aio.Channel) -> pb.FinishSignInResponse:
        stub = sign_in_service_pb2_grpc.SignInServiceStub(line)
        request = pb.BeginSignInRequest(code_challenge=proof.challenge)
        begun = await unary(stub.BeginSignIn, request, timeout_s=TIMEOUT_S)
        out = console()
        out.print(Text(f"Open {begun.url}"), soft_wrap=True)
        out.print(Text(f"and enter {begun.user_code}"), soft_wrap=True)
        asked = pb.FinishSignInRequest(
            id=begun.id, code_verifier=proof.verifier, device_code=begun.device_code
        )
        clock, wait_s = SystemClock(), begun.interval_s
        while True:
            await clock.sleep(wait_s)
            ended: pb.FinishSignInResponse = await unary(
                stub.FinishSignIn, asked, timeout_s=TIMEOUT_S
            )
            if ended.value:
                return ended
            wait_s = ended.interval_s

    return work


class Landing:
    """Where the browser is sent back to: one page on a port of this machine.

    Whatever does not bring the state of this sign-in is not listened to: any page in the browser
    could call here.
    """

    def __init__(self, state: str) -> None:
        self._state = state
        self.code: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.opening: asyncio.Future[bool] | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request."""
        try:
            async with asyncio.timeout(READ_S):
                head = await reader.readuntil(b"\r\n\r\n")
                status, page = self._take(head)
                content = page.encode()
                writer.write(
                    f"HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\n"
                    f"content-length: {len(content)}\r\ncache-control: no-store\r\n"
                    "referrer-policy: no-referrer\r\nconnection: close\r\n\r\n".encode()
                    + content
                )
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return
        finally:
            writer.close()

    def _take(self, head: bytes) -> tuple[str, str]:
        method, target, *_ = [*head.split(b"\r\n", 1)[0].decode("latin-1").split(" "), "", ""]
        parts = urlsplit(target)
        if method != "GET" or parts.path != PATH:
            return "404 Not Found", "There is nothing here."
        fields = parse_qs(parts.query, max_num_fields=20)
        states, codes = fields.get("state", []), fields.get("code", [])
        if len(states) != 1 or not hmac.compare_digest(states[0].encode(), self._state.encode()):
            return "400 Bad Request", "This is not the sign-in that was begun here."
        if self.code.done():
            return "400 Bad Request", "This sign-in is over."
        if len(codes) != 1:
            word = "".join(filter(str.isprintable, fields.get("error", ["no code"])[0]))[:80]
            self.code.set_exception(_failure(f"The identity provider let nobody in: {word}."))
            return "200 OK", "You were not signed in. The terminal says more."
        self.code.set_result(codes[0])
        return "200 OK", "Thank you: go back to the terminal, and close this."


def _failure(message: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_UPSTREAM_AUTH, message)


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _shown(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")
