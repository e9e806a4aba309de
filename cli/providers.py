"""``onegate providers``: the providers that auth keeps, and their credentials.

Secrets are asked for, or come from standard input, a variable or a file; never from an argument,
which every process of the machine can read.
"""

import asyncio
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from google.protobuf.field_mask_pb2 import FieldMask
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cli.context import CliContext, fail
from cli.keys import Output, OutputOption
from cli.keys_view import console, print_json
from cli.operator import Operator, run
from onegate.auth.v1 import provider_service_pb2 as pb
from onegate.auth.v1 import provider_service_pb2_grpc
from onegate.common.v1 import error_pb2
from onegate.router.v1 import provider_check_service_pb2, provider_check_service_pb2_grpc
from runtime.config import environment
from runtime.errors import GatewayError
from runtime.rpc import OPERATOR_KEY, channel, unary
from runtime.secrets import SecretError, read_secret

CHECK_TIMEOUT_S: Final = 30.0
"""How long a router may take to try a provider, in seconds."""
STDIN_CHARS_MAX: Final = 64 * 1024

app = typer.Typer(no_args_is_help=True, help="Add, try, rotate and remove providers.")

NameArgument = Annotated[str, typer.Argument(help="The provider's name.")]
FromEnvOption = Annotated[
    str, typer.Option("--from-env", help="Take the secret from this variable.")
]
FromFileOption = Annotated[
    Path | None, typer.Option("--from-file", help="Take the secret from this file.")
]
FromStdinOption = Annotated[
    bool, typer.Option("--stdin", help="Take the secret from standard input.")
]
ProjectsOption = Annotated[
    list[str] | None, typer.Option("--project", help="Only for this project; repeat for several.")
]
OrganizationsOption = Annotated[
    list[str] | None,
    typer.Option("--for-organization", help="Only for this organisation; repeat for several."),
]

ModelsOption = Annotated[
    list[str] | None, typer.Option("--model", help="A model that it offers; default: all.")
]
RegionsOption = Annotated[
    list[str] | None,
    typer.Option("--region", help="Where it may process data (eu); repeat for several."),
]
RetentionOption = Annotated[
    int | None, typer.Option("--retention-days", help="How many days it keeps data.")
]
TrainsOption = Annotated[
    bool | None, typer.Option("--trains/--no-trains", help="Whether it learns from data.")
]


class Known(StrEnum):
    """What may be known of a provider, and forgotten again."""

    MODELS = "models"
    REGIONS = "regions"
    RETENTION_DAYS = "retention_days"
    TRAINS = "trains"


@app.command("add")
def add_command(
    context: typer.Context,
    name: NameArgument,
    kind: Annotated[
        str, typer.Option(help="Whose wire it speaks; needed for a new provider.")
    ] = "",
    base_url: Annotated[
        str, typer.Option(help="Where it is; default: the vendor's own address.")
    ] = "",
    model: ModelsOption = None,
    free: Annotated[bool, typer.Option("--free", help="Calls cost nothing.")] = False,
    region: RegionsOption = None,
    retention_days: RetentionOption = None,
    trains: TrainsOption = None,
    credential: Annotated[str, typer.Option(help="What to call the credential.")] = "main",
    weight: Annotated[int, typer.Option(help="Its share of the calls, 1 to 1000.")] = 1,
    project: ProjectsOption = None,
    for_organization: OrganizationsOption = None,
    from_env: FromEnvOption = "",
    from_file: FromFileOption = None,
    stdin: FromStdinOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Add a provider; without --kind, add a credential to one that is there."""
    new = pb.NewCredential(
        name=credential,
        weight=weight,
        projects=project or (),
        organizations=for_organization or (),
        secret=_secret(f"Secret of {name}#{credential}", from_env, from_file, stdin=stdin),
    )
    if kind:
        request: Any = pb.AddProviderRequest(
            name=name,
            kind=kind,
            base_url=base_url,
            models=model or (),
            free=free,
            credential=new,
            regions=region or (),
            retention_days=retention_days,
            trains=trains,
        )
        answer = _ask(context, "AddProvider", request)
    else:
        if base_url or model or free or region or retention_days is not None or trains is not None:
            fail("this is about a new provider: name its --kind, or use `onegate providers update`")
        answer = _ask(
            context, "AddCredential", pb.AddCredentialRequest(provider=name, credential=new)
        )
    _show([answer.provider], output)


@app.command("list")
def list_command(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the providers that auth keeps. Those of the file are in the file."""
    _show(_ask(context, "ListProviders", pb.ListProvidersRequest()).providers, output)


@app.command("update")
def update_command(
    context: typer.Context,
    name: NameArgument,
    model: ModelsOption = None,
    free: Annotated[
        bool | None, typer.Option("--free/--paid", help="Whether calls cost nothing.")
    ] = None,
    region: RegionsOption = None,
    retention_days: RetentionOption = None,
    trains: TrainsOption = None,
    forget: Annotated[
        list[Known] | None, typer.Option(help="What is not known any more; repeat for several.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change what is known of a provider. Its secrets stay as they are."""
    said = {
        "models": model,
        "free": free,
        "regions": region,
        "retention_days": retention_days,
        "trains": trains,
    }
    told: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
    unknown = [each.value for each in forget or ()]
    if both := sorted(told.keys() & set(unknown)):
        fail(f"{both[0]} is told and forgotten at once")
    mask = FieldMask(paths=[*told, *unknown])
    request = pb.UpdateProviderRequest(name=name, update_mask=mask, **told)
    _show([_ask(context, "UpdateProvider", request).provider], output)


@app.command("rotate")
def rotate_command(
    context: typer.Context,
    name: NameArgument,
    credential: Annotated[str, typer.Option(help="Which; default: the only one.")] = "",
    from_env: FromEnvOption = "",
    from_file: FromFileOption = None,
    stdin: FromStdinOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Replace the secret of a credential."""
    request = pb.RotateCredentialRequest(
        provider=name,
        credential=credential,
        secret=_secret(f"New secret of {name}", from_env, from_file, stdin=stdin),
    )
    _show([_ask(context, "RotateCredential", request).provider], output)


@app.command("move")
def move_command(
    context: typer.Context,
    name: NameArgument,
    base_url: Annotated[str, typer.Argument(help='Where it is now; "" for the vendor.')],
    output: OutputOption = Output.TABLE,
) -> None:
    """Give a provider another address. Asks for every secret again."""
    listed = _ask(context, "ListProviders", pb.ListProvidersRequest()).providers
    there = [one for one in listed if one.name == name]
    if not there:
        fail(escape(f"auth keeps no provider {name}"))
    secrets = {
        one.name: _secret(f"Secret of {name}#{one.name}", "", None, stdin=False)
        for one in there[0].credentials
    }
    request = pb.MoveProviderRequest(name=name, base_url=base_url, secrets=secrets)
    _show([_ask(context, "MoveProvider", request).provider], output)


@app.command("remove")
def remove_command(
    context: typer.Context,
    name: NameArgument,
    credential: Annotated[
        str, typer.Option(help="Only this credential; default: the provider.")
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a provider, or one of its credentials."""
    what = f"{name}#{credential}" if credential else name
    if not yes:
        typer.confirm(f"Remove {what}? Its secret cannot be brought back.", abort=True)
    if credential:
        gone: Any = pb.RemoveCredentialRequest(provider=name, credential=credential)
        _ask(context, "RemoveCredential", gone)
    else:
        _ask(context, "RemoveProvider", pb.RemoveProviderRequest(name=name))
    console().print(f"removed: {escape(what)}")


@app.command("rekey")
def rekey_command(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Move every secret to the present key-encryption key."""
    done = _ask(context, "RekeyCredentials", pb.RekeyCredentialsRequest())
    if output is Output.JSON:
        print_json({"moved": done.moved, "total": done.total, "key_id": done.key_id})
    else:
        console().print(f"moved: {done.moved} of {done.total}; all are under {escape(done.key_id)}")


@app.command("test")
def try_command(
    context: typer.Context, name: NameArgument, output: OutputOption = Output.TABLE
) -> None:
    """Try every credential of a provider, of the file or of auth, by asking for its models."""
    cli: CliContext = context.obj
    settings = cli.load()

    async def check() -> provider_check_service_pb2.CheckProviderResponse:
        token = read_secret(Path(settings.rpc.operator_token_file))
        async with channel(settings.edge.routers[0], settings.rpc) as line:
            stub = provider_check_service_pb2_grpc.ProviderCheckServiceStub(line)
            answer: provider_check_service_pb2.CheckProviderResponse = await unary(
                stub.CheckProvider,
                provider_check_service_pb2.CheckProviderRequest(name=name),
                timeout_s=CHECK_TIMEOUT_S,
                metadata=((OPERATOR_KEY, token.reveal()),),
                away=error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE,
            )
            return answer

    try:
        checks = asyncio.run(check()).checks
    except SecretError as error:
        fail(escape(f"{error} The gateway makes it when it starts: run `onegate up` first."))
    except GatewayError as error:
        if error.reason == error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE:
            where = settings.edge.routers[0]
            fail(escape(f"no router answers at {where}: is `onegate up` running?"))
        fail(escape(error.message))
    rows = [
        {
            "credential": one.credential or None,
            "ok": one.ok,
            "models": one.models,
            "duration_ms": one.duration_ms,
            "detail": one.detail or None,
        }
        for one in checks
    ]
    _print(rows, output)
    if not all(one.ok for one in checks):
        raise typer.Exit(1)


def _ask(context: typer.Context, method: str, request: Any) -> Any:
    async def work(operator: Operator) -> Any:
        stub = provider_service_pb2_grpc.ProviderServiceStub(operator.channel)
        return await operator.call(getattr(stub, method), request)

    return run(context.obj, work)


def _secret(prompt: str, variable: str, file: Path | None, *, stdin: bool) -> str:
    """The secret, from the one place that was named, or asked for."""
    if sum((bool(variable), file is not None, stdin)) > 1:
        fail("name one of --from-env, --from-file and --stdin")
    if variable:
        found = environment().get(variable, "")
        return found or fail(escape(f"the variable {variable} is not set"))
    if file is not None:
        try:
            return read_secret(file).reveal()
        except SecretError as error:
            fail(escape(str(error)))
    if stdin:
        return sys.stdin.read(STDIN_CHARS_MAX)
    asked: str = typer.prompt(prompt, hide_input=True)
    return asked


def _show(providers: Sequence[pb.StoredProvider], output: Output) -> None:
    _print(
        [
            {
                "provider": provider.name,
                "kind": provider.kind,
                "base_url": provider.base_url or None,
                "credential": one.name,
                "weight": one.weight,
                "for": [*one.projects, *one.organizations],
                "rotated_at": one.rotated_at.ToJsonString(),
                "key_id": one.key_id,
                **(_known(provider) if output is Output.JSON else {}),
            }
            for provider in providers
            for one in provider.credentials
        ],
        output,
    )


def _known(provider: pb.StoredProvider) -> dict[str, Any]:
    """What else is known of a provider: too much for a table."""
    kept = provider.HasField("retention_days")
    return {
        "models": list(provider.models),
        "free": provider.free,
        "regions": list(provider.regions),
        "retention_days": provider.retention_days if kept else None,
        "trains": provider.trains if provider.HasField("trains") else None,
    }


def _print(rows: Sequence[dict[str, Any]], output: Output) -> None:
    if output is Output.JSON:
        print_json(list(rows))
        return
    table = Table(box=None, pad_edge=False)
    for column in rows[0] if rows else ("provider",):
        table.add_column(column)
    for row in rows:
        # Names are other people's text, not markup.
        table.add_row(*(Text(_shown(value)) for value in row.values()))
    console().print(table)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "everybody"
    return "" if value is None else str(value)
