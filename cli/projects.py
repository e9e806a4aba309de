"""``onegate projects``: makes, lists and archives projects."""

import re
from typing import Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cli.context import CliContext, fail
from cli.keys import Output, OutputOption
from cli.keys_view import console, print_json
from cli.operator import Operator, run
from onegate.auth.v1 import project_service_pb2 as pb
from onegate.auth.v1 import project_service_pb2_grpc

_PAGE_SIZE: Final = 1_000
_ID: Final = re.compile(r"proj_[0-9a-f]{32}")

app = typer.Typer(no_args_is_help=True, help="Make, list and archive projects.")

OrganizationOption = Annotated[
    str, typer.Option("--org", help="Id of the organisation; default: the first.")
]


@app.command("create")
def create_command(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A name for people.")],
    residency: Annotated[
        str, typer.Option(help="Where its data may be, such as EU_STORAGE_PROCESSING.")
    ] = "",
    organization: OrganizationOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a project."""
    request = pb.CreateProjectRequest(name=name, residency=residency)

    async def create(operator: Operator) -> pb.Project:
        stub = project_service_pb2_grpc.ProjectServiceStub(operator.channel)
        made: pb.CreateProjectResponse = await operator.call(stub.CreateProject, request)
        return made.project

    _show([run(_cli(context), create, organization)], output, one=True)


@app.command("list")
def list_command(
    context: typer.Context,
    include_archived: Annotated[
        bool, typer.Option("--all", "-a", help="Archived projects too.")
    ] = False,
    organization: OrganizationOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List projects, newest first."""

    async def listed(operator: Operator) -> list[pb.Project]:
        return await projects(operator, include_archived=include_archived)

    _show(run(_cli(context), listed, organization), output)


@app.command("archive")
def archive_command(
    context: typer.Context,
    project_id: Annotated[str, typer.Argument(metavar="ID", help="The project's id (proj_…).")],
    output: OutputOption = Output.TABLE,
) -> None:
    """End a project for good. None of its keys works any more."""
    request = pb.ArchiveProjectRequest(id=project_id)

    async def archive(operator: Operator) -> pb.Project:
        stub = project_service_pb2_grpc.ProjectServiceStub(operator.channel)
        ended: pb.ArchiveProjectResponse = await operator.call(stub.ArchiveProject, request)
        return ended.project

    _show([run(_cli(context), archive)], output, one=True)


async def projects(operator: Operator, *, include_archived: bool = False) -> list[pb.Project]:
    """All projects, newest first."""
    stub = project_service_pb2_grpc.ProjectServiceStub(operator.channel)
    found: list[pb.Project] = []
    request = pb.ListProjectsRequest(page_size=_PAGE_SIZE, include_archived=include_archived)
    while True:
        page: pb.ListProjectsResponse = await operator.call(stub.ListProjects, request)
        found += page.projects
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return found


async def project_id_of(operator: Operator, project: str) -> str:
    """The id of a project that is named by its id or its name; empty stays empty."""
    if not project or _ID.fullmatch(project):
        return project
    ids = [found.id for found in await projects(operator) if found.name == project]
    if not ids:
        fail(escape(f"there is no project {project!r}"))
    if len(ids) > 1:
        fail(escape(f"several projects are named {project!r}: use an id: {', '.join(ids)}"))
    return ids[0]


def _cli(context: typer.Context) -> CliContext:
    cli: CliContext = context.obj
    return cli


def _fields(project: pb.Project) -> dict[str, Any]:
    archived_at = project.archived_at.ToJsonString() if project.HasField("archived_at") else None
    return {
        "id": project.id,
        "name": project.name,
        "organization_id": project.organization_id,
        "residency": project.residency or None,
        "created_at": project.created_at.ToJsonString(),
        "archived_at": archived_at,
    }


def _show(projects: list[pb.Project], output: Output, *, one: bool = False) -> None:
    rows = [_fields(project) for project in projects]
    if output is Output.JSON:
        print_json(rows[0] if one else rows)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("id", "name", "organization", "residency", "made", "archived"):
        table.add_column(column, no_wrap=column == "id")
    for row in rows:
        # Names are other people's text, not markup.
        table.add_row(*(Text(value or "-") for value in row.values()))
    console().print(table)
