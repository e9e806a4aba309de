"""How ``onegate policy`` shows rules on data."""

from typing import Any, Final

from rich.table import Table
from rich.text import Text

from cli.keys import Output
from cli.keys_view import console, print_json
from onegate.auth.v1 import data_policy_pb2
from onegate.auth.v1 import data_policy_service_pb2 as pb

_LEVELS: Final = {
    data_policy_pb2.DATA_LEVEL_ORGANIZATION: "organisation",
    data_policy_pb2.DATA_LEVEL_PROJECT: "project",
    data_policy_pb2.DATA_LEVEL_KEY: "key",
    data_policy_pb2.DATA_LEVEL_REQUEST: "request",
}


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


def show(
    settings: pb.DataPolicySettings, effective: data_policy_pb2.DataPolicy, output: Output
) -> None:
    """What a level says and what holds there."""
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
