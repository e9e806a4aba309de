"""``onegate policy``: what organisation, project and key demand of whoever is given their data."""

from typing import Annotated

import typer

from cli import policy_explain
from cli.keys import Output, OutputOption
from cli.operator import Operator, run
from cli.policy_view import show
from cli.projects import OrganizationOption
from onegate.auth.v1 import data_policy_pb2, data_policy_service_pb2_grpc
from onegate.auth.v1 import data_policy_service_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="Say where data may go, and explain decisions.")

app.add_typer(policy_explain.app)

ProjectOption = Annotated[
    str, typer.Option("--project", help="Id of the project; left out: the organisation.")
]
KeyOption = Annotated[str, typer.Option("--key", help="Id of the key (key_…).")]


@app.command("show")
def show_command(
    context: typer.Context,
    project: ProjectOption = "",
    key: KeyOption = "",
    organization: OrganizationOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what holds for the data of an organisation, a project or a key, and who says so."""
    request = pb.GetDataPolicyRequest(project_id=project, key_id=key)

    async def get(operator: Operator) -> pb.GetDataPolicyResponse:
        stub = data_policy_service_pb2_grpc.DataPolicyServiceStub(operator.channel)
        found: pb.GetDataPolicyResponse = await operator.call(stub.GetDataPolicy, request)
        return found

    found = run(context.obj, get, organization)
    show(found.settings, found.effective, output)


@app.command("set")
def set_command(
    context: typer.Context,
    project: ProjectOption = "",
    key: KeyOption = "",
    data_class: Annotated[
        str, typer.Option("--class", help="Demand it from this class of data on; default: all.")
    ] = "",
    region: Annotated[
        list[str] | None, typer.Option(help="Where data may be processed; repeat for several.")
    ] = None,
    storage_region: Annotated[
        list[str] | None, typer.Option(help="Where data may be kept; repeat for several.")
    ] = None,
    retention_days_max: Annotated[
        int | None, typer.Option(help="For how many days it may be kept; 0: not at all.")
    ] = None,
    no_training: Annotated[
        bool, typer.Option("--no-training", help="Nobody may train models on it.")
    ] = False,
    class_min: Annotated[
        str | None, typer.Option(help='Calls are at least of this class; "" for no floor.')
    ] = None,
    organization: OrganizationOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Set what one level demands for one class of data; its other demands stay.

    Without any demand, those for the class are taken away. What the levels above demand stays.
    """
    demands = data_policy_pb2.DataDemands(
        regions=region or (),
        storage_regions=storage_region or (),
        retention_days_max=retention_days_max,
        no_training=no_training,
    )
    entry = pb.ClassDemands(data_class=data_class, demands=demands)
    only_floor = class_min is not None and not data_class and not demands.ByteSize()

    async def update(operator: Operator) -> pb.UpdateDataPolicyResponse:
        stub = data_policy_service_pb2_grpc.DataPolicyServiceStub(operator.channel)
        asked = pb.GetDataPolicyRequest(project_id=project, key_id=key)
        found: pb.GetDataPolicyResponse = await operator.call(stub.GetDataPolicy, asked)
        settings = found.settings
        if not only_floor:
            settings = _with(settings, entry)
        if class_min is not None:
            settings.class_min = class_min
        request = pb.UpdateDataPolicyRequest(project_id=project, key_id=key, settings=settings)
        kept: pb.UpdateDataPolicyResponse = await operator.call(stub.UpdateDataPolicy, request)
        return kept

    kept = run(context.obj, update, organization)
    show(kept.settings, kept.effective, output)


def _with(settings: pb.DataPolicySettings, entry: pb.ClassDemands) -> pb.DataPolicySettings:
    """The settings with other demands for one class."""
    others = [other for other in settings.demands if other.data_class != entry.data_class]
    said = [entry] if entry.demands.ByteSize() else []
    return pb.DataPolicySettings(class_min=settings.class_min, demands=[*others, *said])
