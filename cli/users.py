"""``onegate users``: the people of an organisation."""

from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cli.context import fail
from cli.keys import Output, OutputOption
from cli.keys_view import console, print_json
from cli.operator import Operator, run
from cli.projects import OrganizationOption
from onegate.auth.v1 import page_pb2, user_service_pb2_grpc
from onegate.auth.v1 import user_service_pb2 as pb

_PAGE_SIZE: Final = 1_000

app = typer.Typer(
    no_args_is_help=True,
    help="Add, list, show, change and remove people. A person administers with admin keys of their"
    " own; programs call models with project keys.",
)

UserArgument = Annotated[
    str, typer.Argument(metavar="USER", help="The user's id (user_…) or email address.")
]


@app.command("add")
def add_command(
    context: typer.Context,
    email: Annotated[str, typer.Argument(help="The email address.")],
    role: Annotated[str, typer.Option(help="owner or reader.")] = "reader",
    name: Annotated[str, typer.Option(help="The name.")] = "",
    organization: OrganizationOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Add a person to the organisation."""
    request = pb.CreateUserRequest(email=email, name=name, role=role)

    async def add(operator: Operator) -> pb.User:
        stub = user_service_pb2_grpc.UserServiceStub(operator.channel)
        made: pb.CreateUserResponse = await operator.call(stub.CreateUser, request)
        return made.user

    _show([run(context.obj, add, organization)], output, one=True)


@app.command("list")
def list_command(
    context: typer.Context,
    organization: OrganizationOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List people, newest first."""
    _show(run(context.obj, users, organization), output)


@app.command("show")
def show_command(
    context: typer.Context,
    user: UserArgument,
    organization: OrganizationOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one person."""

    async def shown(operator: Operator) -> pb.User:
        return await _user(operator, user)

    _show([run(context.obj, shown, organization)], output, one=True)


@app.command("update")
def update_command(
    context: typer.Context,
    user: UserArgument,
    role: Annotated[str, typer.Option(help="owner or reader.")],
    organization: OrganizationOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Change a person's role in the organisation."""

    async def update(operator: Operator) -> pb.User:
        found = await _user(operator, user)
        stub = user_service_pb2_grpc.UserServiceStub(operator.channel)
        request = pb.UpdateUserRequest(id=found.id, role=role)
        changed: pb.UpdateUserResponse = await operator.call(stub.UpdateUser, request)
        return changed.user

    _show([run(context.obj, update, organization)], output, one=True)


@app.command("remove")
def remove_command(
    context: typer.Context,
    user: UserArgument,
    organization: OrganizationOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Remove a person. Their admin keys work no more."""

    async def remove(operator: Operator) -> pb.User:
        found = await _user(operator, user)
        stub = user_service_pb2_grpc.UserServiceStub(operator.channel)
        await operator.call(stub.DeleteUser, pb.DeleteUserRequest(id=found.id))
        return found

    _show([run(context.obj, remove, organization)], output, one=True)


async def users(operator: Operator, emails: Sequence[str] = ()) -> list[pb.User]:
    """All people, or those with these addresses."""
    stub = user_service_pb2_grpc.UserServiceStub(operator.channel)
    found: list[pb.User] = []
    while True:
        page = page_pb2.Page(size=_PAGE_SIZE, after=found[-1].id if found else "")
        request = pb.ListUsersRequest(page=page, emails=emails)
        answer: pb.ListUsersResponse = await operator.call(stub.ListUsers, request)
        found += answer.users
        if not answer.has_more:
            return found


async def _user(operator: Operator, user: str) -> pb.User:
    if "@" not in user:
        stub = user_service_pb2_grpc.UserServiceStub(operator.channel)
        answer: pb.GetUserResponse = await operator.call(stub.GetUser, pb.GetUserRequest(id=user))
        return answer.user
    found = await users(operator, [user])
    if not found:
        fail(escape(f"there is no user {user!r}"))
    return found[0]


def _show(found: Sequence[pb.User], output: Output, *, one: bool = False) -> None:
    rows: list[dict[str, Any]] = [
        {
            "id": user.id,
            "email": user.email,
            "name": user.name or None,
            "role": user.role,
            "created_at": user.created_at.ToJsonString(),
        }
        for user in found
    ]
    if output is Output.JSON:
        print_json(rows[0] if one else rows)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("id", "email", "name", "role", "added"):
        table.add_column(column, no_wrap=column == "id")
    for row in rows:
        # Names are other people's text, not markup.
        table.add_row(*(Text(value or "-") for value in row.values()))
    console().print(table)
