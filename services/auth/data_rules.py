"""Rules on data: what one level demands of whoever is given the data of its calls, how a rule is
kept, and which may be set. Pure.

Rules only add up: nothing a level says takes away what another demands.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from onegate.auth.v1 import data_policy_pb2, data_policy_service_pb2
from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError

REGIONS_MAX: Final = 20
RETENTION_DAYS_MAX: Final = 36_500

_REGION: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}", re.ASCII)
Level = data_policy_pb2.DataLevel


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """What must hold of a deployment; what is left out demands nothing.

    Args:
        regions: where data may be processed, any of these.
        storage_regions: where it may be kept, any of these.
        retention_days_max: for how many days it may be kept.
        no_training: nobody may train models on it.
    """

    regions: tuple[str, ...] = ()
    storage_regions: tuple[str, ...] = ()
    retention_days_max: int | None = None
    no_training: bool = False


NO_DEMANDS: Final = Demands()


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRule:
    """One rule of one level.

    Args:
        level: whose rule it is.
        data_class: from which class on the demands hold; empty for all data.
        demands: what is demanded.
        class_min: calls are at least of this class; empty for no floor.
    """

    level: Level.ValueType
    data_class: str = ""
    demands: Demands = NO_DEMANDS
    class_min: str = ""


def to_fields(rule: DataRule) -> dict[str, Any]:
    """The rule as JSON has it: only what it says."""
    fields: dict[str, Any] = {
        "level": Level.Name(rule.level),
        "data_class": rule.data_class,
        "class_min": rule.class_min,
        "regions": list(rule.demands.regions),
        "storage_regions": list(rule.demands.storage_regions),
        "no_training": rule.demands.no_training,
    }
    said = {name: value for name, value in fields.items() if value}
    if rule.demands.retention_days_max is not None:
        said["retention_days_max"] = rule.demands.retention_days_max
    return said


def from_fields(fields: Mapping[str, Any]) -> DataRule:
    """The rule that :func:`to_fields` wrote. Raises ``ValueError`` for what this program does not
    know: what it cannot enforce it must not ignore.
    """
    known = {"level", "data_class", "class_min", "regions", "storage_regions", "no_training"}
    unknown = fields.keys() - known - {"retention_days_max"}
    if unknown:
        raise ValueError(f"A stored rule says {sorted(unknown)}: run the program that wrote it.")
    return DataRule(
        level=Level.Value(fields["level"]),
        data_class=fields.get("data_class", ""),
        class_min=fields.get("class_min", ""),
        demands=Demands(
            regions=tuple(fields.get("regions", ())),
            storage_regions=tuple(fields.get("storage_regions", ())),
            retention_days_max=fields.get("retention_days_max"),
            no_training=fields.get("no_training", False),
        ),
    )


def rule_message(rule: DataRule) -> data_policy_pb2.DataRule:
    """The rule as grants have it."""
    return data_policy_pb2.DataRule(
        level=rule.level,
        data_class=rule.data_class,
        class_min=rule.class_min,
        demands=None if rule.demands == NO_DEMANDS else _demands_message(rule.demands),
    )


def settings_message(rules: Iterable[DataRule]) -> data_policy_service_pb2.DataPolicySettings:
    """The rules of one level as its administrators see them."""
    settings = data_policy_service_pb2.DataPolicySettings()
    for rule in rules:
        settings.class_min = settings.class_min or rule.class_min
        if rule.demands != NO_DEMANDS:
            settings.demands.add(data_class=rule.data_class, demands=_demands_message(rule.demands))
    return settings


def checked(
    settings: data_policy_service_pb2.DataPolicySettings,
    level: Level.ValueType,
    classes: tuple[str, ...],
) -> tuple[DataRule, ...]:
    """The rules that a level is to have. Raises INVALID_REQUEST with the field at fault."""
    rules: list[DataRule] = []
    if settings.class_min:
        _check_class(settings.class_min, classes, "class_min")
        rules.append(DataRule(level=level, class_min=settings.class_min))
    seen: set[str] = set()
    for place, entry in enumerate(settings.demands):
        param = f"demands[{place}]"
        if entry.data_class:
            _check_class(entry.data_class, classes, f"{param}.data_class")
        if entry.data_class in seen:
            raise _refused(f"{param}.data_class", "must be named only once")
        seen.add(entry.data_class)
        demands = _checked_demands(entry.demands, param)
        if demands != NO_DEMANDS:
            rules.append(DataRule(level=level, data_class=entry.data_class, demands=demands))
    return tuple(rules)


def _checked_demands(demands: data_policy_pb2.DataDemands, param: str) -> Demands:
    days = demands.retention_days_max if demands.HasField("retention_days_max") else None
    if days is not None and not 0 <= days <= RETENTION_DAYS_MAX:
        raise _refused(
            f"{param}.retention_days_max", f"must be 0 (nothing is kept) to {RETENTION_DAYS_MAX}"
        )
    return Demands(
        regions=_checked_regions(demands.regions, f"{param}.regions"),
        storage_regions=_checked_regions(demands.storage_regions, f"{param}.storage_regions"),
        retention_days_max=days,
        no_training=demands.no_training,
    )


def _checked_regions(regions: Iterable[str], param: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(region.strip().lower() for region in regions))
    if len(found) > REGIONS_MAX:
        raise _refused(param, f"must have at most {REGIONS_MAX} entries")
    for region in found:
        if not _REGION.fullmatch(region):
            raise _refused(param, "must be words like eu, us or eu-west-1: letters, digits and -")
    return found


def _check_class(name: str, classes: tuple[str, ...], param: str) -> None:
    if name not in classes:
        raise _refused(param, f"must be one of {', '.join(classes)}")


def _demands_message(demands: Demands) -> data_policy_pb2.DataDemands:
    return data_policy_pb2.DataDemands(
        regions=demands.regions,
        storage_regions=demands.storage_regions,
        retention_days_max=demands.retention_days_max,
        no_training=demands.no_training,
    )


def _refused(param: str, rule: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, f"`{param}` {rule}.", param=param)
