"""``onegate keys``: makes, lists, shows and ends API keys.

Talks to auth as the operator of this machine: the address and the operator token are those of the
gateway that ``onegate up`` runs on the same data directory.
"""

import asyncio
import enum
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final, NoReturn, TypeVar

import typer
from rich.markup import escape

from cli.context import CliContext, fail
from cli.keys_view import console, details, fields, print_json, table
from cli.operator import Credential, credential_of
from onegate.auth.v1 import (
    grant_pb2,
    key_service_pb2,
    key_service_pb2_grpc,
    project_service_pb2,
    project_service_pb2_grpc,
)
from onegate.common.v1 import error_pb2
from runtime.config import Settings
from runtime.errors import GatewayError
from runtime.rpc import channel, unary
from runtime.secrets import SecretError

TIMEOUT_S: Final = 10.0
"""How long auth may take for one answer, in seconds."""

WAIT_S: Final = 100.0
"""How long ``--wait`` waits, in seconds: longer than the usual grace."""

_PAGE_SIZE: Final = 1_000
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DURATION: Final = re.compile(r"([1-9][0-9]{0,9})([smhdw])")
_PROJECT_ID: Final = re.compile(r"proj_[0-9a-f]{32}")

T = TypeVar("T")


class Output(enum.StrEnum):
    """How a command prints."""

    TABLE = "table"
    JSON = "json"


app = typer.Typer(
    no_args_is_help=True,
    help="Make, list, show, change, rotate and end API keys.",
    epilog="The life of a key: docs/keys.md.",
)

ReadOnlyOption = Annotated[
    bool, typer.Option("--read-only", help="It may list models and call none.")
]
FeatureOption = Annotated[str, typer.Option(help="Short for --tag feature=…")]
TeamOption = Annotated[str, typer.Option(help="Short for --tag team=…")]
CustomerOption = Annotated[str, typer.Option(help="Short for --tag customer=…")]
DenyOption = Annotated[
    list[str] | None,
    typer.Option(help="A model or pattern it may not call, whatever else is said; repeatable."),
]
ExpiryOption = Annotated[
    str,
    typer.Option(
        help="When it ends, such as 30d, 12h, 90m or 45s; default: what the project or the"
        " organisation says, or never."
    ),
]
NetworkOption = Annotated[
    list[str] | None,
    typer.Option(help="Where it works from, such as 10.0.0.0/8 or 2001:db8::/32; repeatable."),
]
EndpointOption = Annotated[
    list[str] | None,
    typer.Option(help="An endpoint it may call, such as chat or embeddings; default: all."),
]
OutputOption = Annotated[
    Output, typer.Option("--output", "-o", help="A table for people or JSON for programs.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """Auth, as the operator calls it."""

    keys: key_service_pb2_grpc.KeyServiceStub
    projects: project_service_pb2_grpc.ProjectServiceStub
    credential: Credential

    async def call(self, method: Any, request: Any, timeout_s: float = TIMEOUT_S) -> Any:
        """One answer. Raises ``GatewayError``."""
        return await unary(
            method,
            request,
            timeout_s=timeout_s,
            metadata=(self.credential.metadata(),),
            away=error_pb2.ERROR_REASON_AUTH_UNAVAILABLE,
        )


@app.command("create")
def create_command(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="A name for people.")],
    project: Annotated[
        str, typer.Option(help="Id or name of its project; default: the first project.")
    ] = "",
    models: Annotated[
        list[str] | None,
        typer.Option(help="A model it may call, or a pattern such as 'openai/*'; repeatable."),
    ] = None,
    deny_models: DenyOption = None,
    expires_in: ExpiryOption = "",
    network: NetworkOption = None,
    endpoint: EndpointOption = None,
    read_only: ReadOnlyOption = False,
    feature: FeatureOption = "",
    team: TeamOption = "",
    customer: CustomerOption = "",
    tag: Annotated[
        list[str] | None,
        typer.Option(help="A tag of its usage, as name=value; repeatable."),
    ] = None,
    rpm: Annotated[int | None, typer.Option(min=1, help="Requests per minute.")] = None,
    tpm: Annotated[int | None, typer.Option(min=1, help="Tokens per minute.")] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="A key that administers and calls no model.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a key. Its secret is shown this once."""
    request = key_service_pb2.CreateKeyRequest(
        name=name,
        kind=grant_pb2.KEY_KIND_ADMIN if admin else grant_pb2.KEY_KIND_PROJECT,
        expires_in_seconds=seconds_of(expires_in),
        models_allowed=models or (),
        models_denied=deny_models or (),
        networks_allowed=network or (),
        scopes=scopes_of(endpoint or (), read_only=read_only),
        rate_limits=_limits(rpm, tpm),
        tags={**named_tags(feature, team, customer), **tags_of(tag or ())},
    )

    async def create(auth: Auth) -> key_service_pb2.CreateKeyResponse:
        request.project_id = await _project_id(auth, project)
        made: key_service_pb2.CreateKeyResponse = await auth.call(auth.keys.CreateKey, request)
        return made

    made = _run(context, create)
    if output is Output.JSON:
        print_json({**fields(made.key), "value": made.value})
        return
    out = console()
    out.print(details(made.key))
    out.print("\nThe key, shown this once:")
    out.print(f"  [bold]{made.value}[/]", soft_wrap=True)


@app.command("list")
def list_command(
    context: typer.Context,
    project: Annotated[str, typer.Option(help="Only of this project: its id or name.")] = "",
    include_revoked: Annotated[bool, typer.Option("--all", "-a", help="Revoked keys too.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = _PAGE_SIZE,
    output: OutputOption = Output.TABLE,
) -> None:
    """List keys, newest first."""

    async def listed(auth: Auth) -> list[key_service_pb2.Key]:
        request = key_service_pb2.ListKeysRequest(
            project_id=await _project_id(auth, project), include_revoked=include_revoked
        )
        return await _keys(auth, request, limit)

    keys = _run(context, listed)
    if output is Output.JSON:
        print_json([fields(key) for key in keys])
        return
    console().print(table(keys))
    if len(keys) == limit:
        console().print(f"These are the newest {limit}; --limit shows more.", style="dim")


@app.command("show")
def show_command(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id (key_…).")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one key; its secret is not kept and cannot be shown."""

    async def shown(auth: Auth) -> key_service_pb2.Key:
        request = key_service_pb2.GetKeyRequest(id=key_id)
        found: key_service_pb2.GetKeyResponse = await auth.call(auth.keys.GetKey, request)
        return found.key

    _print_key(_run(context, shown), output)


@app.command("revoke")
def revoke_command(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id (key_…).")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when it is refused everywhere.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """End a key for good. It is refused everywhere within a second."""

    async def revoked(auth: Auth) -> key_service_pb2.RevokeKeyResponse:
        wait_ms = int(WAIT_S * 1000) if wait else 0
        request = key_service_pb2.RevokeKeyRequest(id=key_id, wait=wait, wait_max_ms=wait_ms)
        timeout_s = TIMEOUT_S + wait_ms / 1000
        ended: key_service_pb2.RevokeKeyResponse = await auth.call(
            auth.keys.RevokeKey, request, timeout_s
        )
        return ended

    ended = _run(context, revoked)
    _print_key(ended.key, output)
    if ended.unconfirmed:
        names = ", ".join(watcher.name for watcher in ended.unconfirmed)
        fail(f"The key has ended, but not everybody has confirmed it: {names}.")


def _run(context: typer.Context, work: Callable[[Auth], Awaitable[T]]) -> T:
    """Does the work with auth; a failure ends the command with one line."""
    cli: CliContext = context.obj
    settings = cli.load()
    try:
        return asyncio.run(_with_auth(settings, credential_of(cli, settings), work))
    except SecretError as error:
        fail(escape(str(error)))
    except GatewayError as error:
        _refused(settings, error)


async def _with_auth(
    settings: Settings, credential: Credential, work: Callable[[Auth], Awaitable[T]]
) -> T:
    async with _auth(settings, credential) as auth:
        return await work(auth)


@asynccontextmanager
async def _auth(settings: Settings, credential: Credential) -> AsyncIterator[Auth]:
    async with channel(settings.edge.auth, settings.rpc) as line:
        yield Auth(
            keys=key_service_pb2_grpc.KeyServiceStub(line),
            projects=project_service_pb2_grpc.ProjectServiceStub(line),
            credential=credential,
        )


def _refused(settings: Settings, error: GatewayError) -> NoReturn:
    if error.reason == error_pb2.ERROR_REASON_AUTH_UNAVAILABLE:
        fail(escape(f"auth does not answer at {settings.edge.auth}: is `onegate up` running?"))
    if error.reason == error_pb2.ERROR_REASON_DEADLINE_EXCEEDED:
        fail(escape(f"auth at {settings.edge.auth} took more than {TIMEOUT_S:.0f} s to answer"))
    fail(escape(error.message))


async def _keys(
    auth: Auth, request: key_service_pb2.ListKeysRequest, limit: int
) -> list[key_service_pb2.Key]:
    """The newest keys, page by page."""
    found: list[key_service_pb2.Key] = []
    while len(found) < limit:
        request.page_size = min(limit - len(found), _PAGE_SIZE)
        page: key_service_pb2.ListKeysResponse = await auth.call(auth.keys.ListKeys, request)
        found += page.keys
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    return found


async def _project_id(auth: Auth, project: str) -> str:
    """The id of a project that is named by its id or its name; empty stays empty."""
    if not project or _PROJECT_ID.fullmatch(project):
        return project
    request = project_service_pb2.ListProjectsRequest(page_size=_PAGE_SIZE)
    ids: list[str] = []
    while True:
        page: project_service_pb2.ListProjectsResponse = await auth.call(
            auth.projects.ListProjects, request
        )
        ids += [found.id for found in page.projects if found.name == project]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    if not ids:
        fail(escape(f"there is no project {project!r}"))
    if len(ids) > 1:
        fail(escape(f"several projects are named {project!r}: use an id: {', '.join(ids)}"))
    return ids[0]


def seconds_of(duration: str, option: str = "--expires-in") -> int:
    """``30d`` in seconds; 0 for nothing. Ends the command when it is no duration."""
    if not duration:
        return 0
    found = _DURATION.fullmatch(duration)
    if found is None:
        raise typer.BadParameter(
            f"{duration!r} is no duration: write a number and s, m, h, d or w, such as 30d.",
            param_hint=option,
        )
    return int(found[1]) * _UNITS_S[found[2]]


def tags_of(tags: Sequence[str]) -> dict[str, str]:
    """``name=value`` pairs. Ends the command when one is not."""
    pairs = [tag.partition("=") for tag in tags]
    for name, separator, value in pairs:
        if not name or not separator:
            raise typer.BadParameter(
                f"{name + separator + value!r} is no tag: write name=value.", param_hint="--tag"
            )
    return {name: value for name, _, value in pairs}


def named_tags(feature: str, team: str, customer: str) -> dict[str, str]:
    """The tags that have options of their own."""
    named = {"feature": feature, "team": team, "customer": customer}
    return {name: value for name, value in named.items() if value}


def scopes_of(endpoints: Sequence[str], *, read_only: bool) -> list[str]:
    """What a key is held to. Ends the command when both are asked for."""
    if read_only and endpoints:
        raise typer.BadParameter("a read-only key calls no endpoint.", param_hint="--read-only")
    if read_only:
        return ["model.read"]
    return [f"model.{endpoint}.request" for endpoint in endpoints]


def _limits(rpm: int | None, tpm: int | None) -> list[grant_pb2.RateLimit]:
    wanted = ((grant_pb2.RATE_METER_REQUESTS, rpm), (grant_pb2.RATE_METER_TOKENS, tpm))
    return [
        grant_pb2.RateLimit(meter=meter, amount=amount, window_s=60, scope=grant_pb2.RATE_SCOPE_KEY)
        for meter, amount in wanted
        if amount is not None
    ]


def _print_key(key: key_service_pb2.Key, output: Output) -> None:
    if output is Output.JSON:
        print_json(fields(key))
    else:
        console().print(details(key))
