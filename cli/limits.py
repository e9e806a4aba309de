"""``onegate limits``: rate limits of an organisation, a project or a key."""

from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from cli.keys import Output, OutputOption
from cli.keys_view import console, print_json
from cli.operator import Operator, run
from cli.projects import OrganizationOption, project_id_of
from onegate.auth.v1 import page_pb2, rate_limit_service_pb2_grpc
from onegate.auth.v1 import rate_limit_service_pb2 as pb
from onegate.auth.v1.project_policy_service_pb2 import ProjectRateLimit

NUMBERS: Final = (
    "requests_per_minute",
    "tokens_per_minute",
    "requests_per_day",
    "tokens_per_day",
    "images_per_minute",
    "audio_megabytes_per_minute",
    "concurrent_calls",
    "batch_input_tokens_per_day",
)
_PAGE_SIZE: Final = 1_000

app = typer.Typer(
    no_args_is_help=True,
    help="List, set and unset rate limits. All limits that apply to a call hold together: those of"
    " its key, of its key's project and of the organisation.",
)

ProjectOption = Annotated[str, typer.Option("--project", help="Of this project: its id or name.")]
KeyOption = Annotated[str, typer.Option("--key", help="Of this key: its id (key_…).")]
ModelOption = Annotated[
    str, typer.Option(help="For this model or pattern, such as 'openai/*'; default: all together.")
]


@app.command("list")
def list_command(
    context: typer.Context,
    project: ProjectOption = "",
    key: KeyOption = "",
    organization: OrganizationOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List the limits of the organisation, or of one project or key."""

    async def listed(operator: Operator) -> list[ProjectRateLimit]:
        return await limits_of(operator, await _level(operator, project, key))

    _show(run(context.obj, listed, organization), output)


@app.command("set")
def set_command(
    context: typer.Context,
    project: ProjectOption = "",
    key: KeyOption = "",
    model: ModelOption = "*",
    rpm: Annotated[int | None, typer.Option(min=0, help="Requests per minute.")] = None,
    tpm: Annotated[int | None, typer.Option(min=0, help="Tokens per minute.")] = None,
    rpd: Annotated[int | None, typer.Option(min=0, help="Requests per day.")] = None,
    tpd: Annotated[int | None, typer.Option(min=0, help="Tokens per day.")] = None,
    images: Annotated[int | None, typer.Option(min=0, help="Images per minute.")] = None,
    audio_mb: Annotated[
        int | None, typer.Option(min=0, help="Megabytes of audio per minute.")
    ] = None,
    concurrent: Annotated[int | None, typer.Option(min=0, help="Calls at the same time.")] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(min=0, help="Input tokens of batches per day; projects only.")
    ] = None,
    organization: OrganizationOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Set limits; those not named stay. 0 lets nothing through: `unset` takes a limit away."""
    values = (rpm, tpm, rpd, tpd, images, audio_mb, concurrent, batch_tokens)
    limit = ProjectRateLimit(id=f"rl-{model}")
    for name, value in zip(NUMBERS, values, strict=True):
        if value is not None:
            setattr(limit, name, value)
    if all(value is None for value in values):
        raise typer.BadParameter("name at least one limit, such as --rpm 60.")

    async def update(operator: Operator) -> ProjectRateLimit:
        stub = rate_limit_service_pb2_grpc.RateLimitServiceStub(operator.channel)
        level = await _level(operator, project, key)
        request = pb.SetRateLimitRequest(level=level, rate_limit=limit)
        done: pb.SetRateLimitResponse = await operator.call(stub.SetRateLimit, request)
        return done.rate_limit

    _show([run(context.obj, update, organization)], output, one=True)


@app.command("unset")
def unset_command(
    context: typer.Context,
    project: ProjectOption = "",
    key: KeyOption = "",
    model: ModelOption = "*",
    field: Annotated[
        list[str] | None,
        typer.Option(help=f"Only this one of {', '.join(NUMBERS)}; repeatable; default: all."),
    ] = None,
    organization: OrganizationOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Take limits away."""

    async def unset(operator: Operator) -> ProjectRateLimit:
        stub = rate_limit_service_pb2_grpc.RateLimitServiceStub(operator.channel)
        level = await _level(operator, project, key)
        request = pb.UnsetRateLimitRequest(level=level, id=f"rl-{model}", fields=field or ())
        done: pb.UnsetRateLimitResponse = await operator.call(stub.UnsetRateLimit, request)
        return done.rate_limit

    _show([run(context.obj, unset, organization)], output, one=True)


async def limits_of(operator: Operator, level: pb.RateLimitLevel) -> list[ProjectRateLimit]:
    """All limits of one level."""
    stub = rate_limit_service_pb2_grpc.RateLimitServiceStub(operator.channel)
    found: list[ProjectRateLimit] = []
    while True:
        page = page_pb2.Page(size=_PAGE_SIZE, after=found[-1].id if found else "")
        request = pb.ListRateLimitsRequest(level=level, page=page)
        answer: pb.ListRateLimitsResponse = await operator.call(stub.ListRateLimits, request)
        found += answer.rate_limits
        if not answer.has_more:
            return found


async def _level(operator: Operator, project: str, key: str) -> pb.RateLimitLevel:
    if project and key:
        raise typer.BadParameter("name a project or a key, not both.", param_hint="--key")
    return pb.RateLimitLevel(project_id=await project_id_of(operator, project), key_id=key)


def numbers(limit: ProjectRateLimit) -> dict[str, int]:
    """The numbers that are set."""
    return {name: getattr(limit, name) for name in NUMBERS if limit.HasField(name)}


def _show(limits: Sequence[ProjectRateLimit], output: Output, *, one: bool = False) -> None:
    rows: list[dict[str, Any]] = [
        {"id": limit.id, "model": limit.model, **dict.fromkeys(NUMBERS), **numbers(limit)}
        for limit in limits
    ]
    if output is Output.JSON:
        print_json(rows[0] if one else rows)
        return
    table = Table(box=None, pad_edge=False)
    columns = ("model", *NUMBERS)
    for column in columns:
        table.add_column(column.replace("_per_", "/").replace("_", " "), no_wrap=column == "model")
    for row in rows:
        # Names are other people's text, not markup.
        table.add_row(*(Text("-" if row[name] is None else str(row[name])) for name in columns))
    console().print(table)
