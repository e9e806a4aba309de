"""``onegate policy``: what organisation, project and key demand of whoever is given their data."""

from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from cli.keys import Output, OutputOption
from cli.keys_view import console, print_json
from cli.operator import Operator, run
from cli.projects import OrganizationOption
from onegate.auth.v1 import data_policy_pb2, data_policy_service_pb2_grpc
from onegate.auth.v1 import data_policy_service_pb2 as pb

_LEVELS: Final = {
    data_policy_pb2.DATA_LEVEL_ORGANIZATION: "organisation",
    data_policy_pb2.DATA_LEVEL_PROJECT: "project",
    data_policy_pb2.DATA_LEVEL_KEY: "key",
    data_policy_pb2.DATA_LEVEL_REQUEST: "request",
}

app = typer.Typer(no_args_is_help=True, help="Say where data may go, and explain decisions.")

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
    _show(found.settings, found.effective, output)


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
    _show(kept.settings, kept.effective, output)


def _with(settings: pb.DataPolicySettings, entry: pb.ClassDemands) -> pb.DataPolicySettings:
    """The settings with other demands for one class."""
    others = [other for other in settings.demands if other.data_class != entry.data_class]
    said = [entry] if entry.demands.ByteSize() else []
    return pb.DataPolicySettings(class_min=settings.class_min, demands=[*others, *said])


def demands_text(demands: data_policy_pb2.DataDemands) -> str:
    """Demands in a few words."""
    said = []
    if demands.regions:
        said.append(f"processing in {' or '.join(demands.regions)}")
    if demands.storage_regions:
        said.append(f"storage in {' or '.join(demands.storage_regions)}")
    if demands.HasField("retention_days_max"):
        said.append(f"retention at most {demands.retention_days_max} days")
    if demands.no_training:
        said.append("no training")
    return ", ".join(said)


def rule_fields(rule: data_policy_pb2.DataRule) -> dict[str, Any]:
    """One rule as JSON."""
    demands = rule.demands
    days = demands.retention_days_max if demands.HasField("retention_days_max") else None
    return {
        "level": _LEVELS.get(rule.level, "unknown"),
        "data_class": rule.data_class or None,
        "class_min": rule.class_min or None,
        "regions": list(demands.regions),
        "storage_regions": list(demands.storage_regions),
        "retention_days_max": days,
        "no_training": demands.no_training,
    }


def _show(
    settings: pb.DataPolicySettings, effective: data_policy_pb2.DataPolicy, output: Output
) -> None:
    if output is Output.JSON:
        print_json(
            {
                "class_min": settings.class_min or None,
                "version": effective.version or None,
                "classes": list(effective.classes),
                "rules": [rule_fields(rule) for rule in effective.rules],
            }
        )
        return
    out = console()
    out.print(f"Classes, the least sensitive first: {', '.join(effective.classes)}")
    if not effective.rules:
        out.print("Nothing is demanded here.")
        return
    out.print(f"Version {effective.version}\n")
    out.print(rules_table(effective.rules))


def rules_table(rules: Any) -> Table:
    """Rules, whose they are and what they demand."""
    table = Table(box=None, pad_edge=False)
    for column in ("set by", "from class on", "demands"):
        table.add_column(column)
    for rule in rules:
        demanded = demands_text(rule.demands)
        if rule.class_min:
            floor = f"calls are at least {rule.class_min}"
            demanded = f"{demanded}; {floor}" if demanded else floor
        level = _LEVELS.get(rule.level, "unknown")
        table.add_row(level, Text(rule.data_class or "all"), Text(demanded))
    return table
