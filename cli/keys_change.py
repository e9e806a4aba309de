"""``onegate keys update``, ``rotate``, ``disable`` and ``enable``: what becomes of a key."""

from typing import Annotated, Final

import typer
from rich.table import Table
from rich.text import Text

from cli.keys import (
    CustomerOption,
    FeatureOption,
    Output,
    OutputOption,
    ReadOnlyOption,
    TeamOption,
    app,
    named_tags,
    scopes_of,
    seconds_of,
    tags_of,
)
from cli.keys_view import console, details, fields, print_json
from cli.operator import Operator, run
from cli.projects import OrganizationOption, project_id_of
from onegate.auth.v1 import key_policy_service_pb2 as policy_pb
from onegate.auth.v1 import key_policy_service_pb2_grpc, key_service_pb2_grpc
from onegate.auth.v1 import key_service_pb2 as pb

__all__ = ["app"]

KeyArgument = Annotated[str, typer.Argument(metavar="ID", help="The key's id (key_…).")]
_AT_ONCE: Final = ("0", "0s", "now")


@app.command("update")
def update_command(
    context: typer.Context,
    key_id: KeyArgument,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(help="Models it may call instead, as patterns; 'all' for every one."),
    ] = None,
    deny_models: Annotated[
        list[str] | None, typer.Option(help="Models it may not call instead; 'none' for none.")
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(help="Where it works from instead; 'all' for everywhere; repeatable."),
    ] = None,
    endpoint: Annotated[
        list[str] | None, typer.Option(help="Endpoints it may call instead; 'all' for every one.")
    ] = None,
    read_only: ReadOnlyOption = False,
    expires_in: Annotated[
        str, typer.Option(help="From now until it ends, such as 30d; 'never' for no end.")
    ] = "",
    tag: Annotated[
        list[str] | None, typer.Option(help="A tag to set, as name=value; repeatable.")
    ] = None,
    untag: Annotated[list[str] | None, typer.Option(help="A tag to drop; repeatable.")] = None,
    feature: FeatureOption = "",
    team: TeamOption = "",
    customer: CustomerOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Change a key. What is not named stays as it is; limits are set with `onegate limits`."""
    request = pb.UpdateKeyRequest(
        id=key_id,
        name=name,
        models_allowed=_texts(models, "all"),
        models_denied=_texts(deny_models, "none"),
        networks_allowed=_texts(network, "all"),
        never_expires=expires_in == "never",
    )
    if expires_in not in ("", "never"):
        request.expires_in_seconds = seconds_of(expires_in)
    if endpoint or read_only:
        wanted = [] if endpoint == ["all"] else endpoint or []
        names = scopes_of(wanted, read_only=read_only)
        request.scopes.CopyFrom(pb.KeyScopes(names=names))
    added = {**named_tags(feature, team, customer), **tags_of(tag or ())}
    dropped = set(untag or ())

    async def update(operator: Operator) -> pb.Key:
        stub = key_service_pb2_grpc.KeyServiceStub(operator.channel)
        found: pb.GetKeyResponse = await operator.call(stub.GetKey, pb.GetKeyRequest(id=key_id))
        request.kind = found.key.kind
        if added or dropped:
            tags = {**found.key.tags, **added}
            kept = {name: value for name, value in tags.items() if name not in dropped}
            request.tags.CopyFrom(pb.KeyTags(values=kept))
        changed: pb.UpdateKeyResponse = await operator.call(stub.UpdateKey, request)
        return changed.key

    _show(run(context.obj, update), output)


@app.command("rotate")
def rotate_command(
    context: typer.Context,
    key_id: KeyArgument,
    grace: Annotated[
        str,
        typer.Option(
            help="For how long the present secret works on, such as 24h or 7d; 0 ends it, and"
            " every earlier one, at once."
        ),
    ] = "24h",
    expires_in: Annotated[
        str, typer.Option(help="From now until the key ends, such as 90d; default: as before.")
    ] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Give a key a new secret, shown this once. Its id, limits and budgets stay."""
    grace_s = 0 if grace in _AT_ONCE else seconds_of(grace, "--grace")
    request = pb.RotateKeyRequest(id=key_id, grace_seconds=grace_s)
    if expires_in:
        request.expires_in_seconds = seconds_of(expires_in)

    async def rotate(operator: Operator) -> pb.RotateKeyResponse:
        stub = key_service_pb2_grpc.KeyServiceStub(operator.channel)
        made: pb.RotateKeyResponse = await operator.call(stub.RotateKey, request)
        return made

    made = run(context.obj, rotate)
    if output is Output.JSON:
        print_json({**fields(made.key), "value": made.value})
        return
    out = console()
    out.print(details(made.key))
    out.print("\nThe new secret, shown this once:")
    out.print(f"  [bold]{made.value}[/]", soft_wrap=True)


@app.command("disable")
def disable_command(
    context: typer.Context, key_id: KeyArgument, output: OutputOption = Output.TABLE
) -> None:
    """Refuse a key everywhere within a second, until it is enabled again."""

    async def disable(operator: Operator) -> pb.Key:
        stub = key_service_pb2_grpc.KeyServiceStub(operator.channel)
        request = pb.DisableKeyRequest(id=key_id)
        done: pb.DisableKeyResponse = await operator.call(stub.DisableKey, request)
        return done.key

    _show(run(context.obj, disable), output)


@app.command("enable")
def enable_command(
    context: typer.Context, key_id: KeyArgument, output: OutputOption = Output.TABLE
) -> None:
    """Let a disabled key work again."""

    async def enable(operator: Operator) -> pb.Key:
        stub = key_service_pb2_grpc.KeyServiceStub(operator.channel)
        request = pb.EnableKeyRequest(id=key_id)
        done: pb.EnableKeyResponse = await operator.call(stub.EnableKey, request)
        return done.key

    _show(run(context.obj, enable), output)


@app.command("policy")
def policy_command(
    context: typer.Context,
    project: Annotated[
        str, typer.Option(help="Of this project: its id or name; default: the organisation.")
    ] = "",
    max_lifetime: Annotated[
        str, typer.Option(help="The longest a secret may work, such as 90d; 'none' for no limit.")
    ] = "",
    default_lifetime: Annotated[
        str, typer.Option(help="How long a key works whose maker does not say; 'none' to unset.")
    ] = "",
    network: Annotated[
        list[str] | None,
        typer.Option(help="Where keys that call models work from; 'all' for everywhere."),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="A tag of all usage, as name=value; 'none' for none.")
    ] = None,
    organization: OrganizationOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show or say what all keys are held to. A project is never wider than its organisation."""
    request = policy_pb.UpdateKeyPolicyRequest(
        max_lifetime_seconds=_lifetime(max_lifetime, "--max-lifetime"),
        default_lifetime_seconds=_lifetime(default_lifetime, "--default-lifetime"),
    )
    if network:
        networks = [] if network == ["all"] else network
        request.networks_allowed.CopyFrom(policy_pb.PolicyNetworks(values=networks))
    if tag:
        tags = {} if tag == ["none"] else tags_of(tag)
        request.tags.CopyFrom(policy_pb.PolicyTags(values=tags))
    says = bool(request.ListFields())

    async def work(operator: Operator) -> policy_pb.KeyPolicy:
        stub = key_policy_service_pb2_grpc.KeyPolicyServiceStub(operator.channel)
        project_id = await project_id_of(operator, project)
        if not says:
            asked = policy_pb.GetKeyPolicyRequest(project_id=project_id)
            found: policy_pb.GetKeyPolicyResponse = await operator.call(stub.GetKeyPolicy, asked)
            return found.policy
        request.project_id = project_id
        done: policy_pb.UpdateKeyPolicyResponse = await operator.call(stub.UpdateKeyPolicy, request)
        return done.policy

    _show_policy(run(context.obj, work, organization), output)


def _lifetime(duration: str, option: str) -> int | None:
    """Seconds; 0 for none, ``None`` where nothing was said."""
    if not duration:
        return None
    return 0 if duration == "none" else seconds_of(duration, option)


def _show_policy(policy: policy_pb.KeyPolicy, output: Output) -> None:
    said = {
        "max_lifetime_seconds": policy.max_lifetime_seconds or None,
        "default_lifetime_seconds": policy.default_lifetime_seconds or None,
        "networks_allowed": list(policy.networks_allowed),
        "tags": dict(policy.tags),
    }
    if output is Output.JSON:
        print_json(said)
        return
    grid = Table.grid(padding=(0, 2))
    for name, value in said.items():
        # Tags are other people's text, not markup.
        grid.add_row(Text(name.replace("_", " "), style="dim"), Text(str(value) if value else "-"))
    console().print(grid)


def _texts(values: list[str] | None, nothing: str) -> pb.KeyTexts | None:
    """A list to be set; one word stands for the empty one."""
    if not values:
        return None
    return pb.KeyTexts(values=[] if values == [nothing] else values)


def _show(key: pb.Key, output: Output) -> None:
    if output is Output.JSON:
        print_json(fields(key))
    else:
        console().print(details(key))
