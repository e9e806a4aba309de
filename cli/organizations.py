"""``onegate orgs``: makes and lists organisations."""

from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from cli.keys import Output, OutputOption
from cli.keys_view import console, print_json
from cli.operator import Operator, run
from onegate.auth.v1 import organization_service_pb2 as pb
from onegate.auth.v1 import organization_service_pb2_grpc, page_pb2

_PAGE_SIZE: Final = 1_000

app = typer.Typer(no_args_is_help=True, help="Make and list organisations.")


@app.command("create")
def create_command(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A name for people.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Make an organisation with a project and an admin key, which is shown this once."""
    request = pb.CreateOrganizationRequest(name=name)

    async def create(operator: Operator) -> pb.CreateOrganizationResponse:
        stub = organization_service_pb2_grpc.OrganizationServiceStub(operator.channel)
        made: pb.CreateOrganizationResponse = await operator.call(stub.CreateOrganization, request)
        return made

    made = run(context.obj, create)
    if output is Output.JSON:
        fields = {"project_id": made.project_id, "admin_key": made.admin_key}
        print_json({**_fields(made.organization), **fields})
        return
    out = console()
    out.print(_table([made.organization]))
    out.print("\nIts admin key, shown this once:")
    out.print(f"  [bold]{made.admin_key}[/]", soft_wrap=True)


@app.command("list")
def list_command(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List organisations, oldest first."""

    async def listed(operator: Operator) -> list[pb.Organization]:
        stub = organization_service_pb2_grpc.OrganizationServiceStub(operator.channel)
        found: list[pb.Organization] = []
        while True:
            after = found[-1].id if found else ""
            wanted = page_pb2.Page(size=_PAGE_SIZE, after=after, ascending=True)
            request = pb.ListOrganizationsRequest(page=wanted)
            page: pb.ListOrganizationsResponse = await operator.call(
                stub.ListOrganizations, request
            )
            found += page.organizations
            if not page.has_more:
                return found

    found = run(context.obj, listed)
    if output is Output.JSON:
        print_json([_fields(organization) for organization in found])
    else:
        console().print(_table(found))


def _fields(organization: pb.Organization) -> dict[str, Any]:
    return {
        "id": organization.id,
        "name": organization.name,
        "created_at": organization.created_at.ToJsonString(),
    }


def _table(organizations: list[pb.Organization]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("id", "name", "made"):
        table.add_column(column, no_wrap=column == "id")
    for organization in organizations:
        # Names are other people's text, not markup.
        table.add_row(*(Text(value) for value in _fields(organization).values()))
    return table
