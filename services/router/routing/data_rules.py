"""Where the data of a call may go: which rules hold for it, and whether a deployment meets them.
Pure.

What is not known of a deployment meets no demand. Rules only add up, so a request can tighten what
its key, project and organisation demand, and never loosen it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from onegate.auth.v1 import data_policy_pb2, grant_pb2
from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError

HEADER: Final = "x-onegate-data-class"

EU: Final = "eu"
EU_MEMBERS: Final = frozenset(
    {"at", "be", "bg", "cy", "cz", "de", "dk", "ee", "es", "fi", "fr", "gr", "hr", "hu"}
    | {"ie", "it", "lt", "lu", "lv", "mt", "nl", "pl", "pt", "ro", "se", "si", "sk"}
)
"""Places inside ``eu``, by ISO 3166-1
(https://european-union.europa.eu/principles-countries-history/eu-countries_en)."""

_OWNERS: Final = {
    data_policy_pb2.DATA_LEVEL_ORGANIZATION: "organisation",
    data_policy_pb2.DATA_LEVEL_PROJECT: "project",
    data_policy_pb2.DATA_LEVEL_KEY: "key",
    data_policy_pb2.DATA_LEVEL_REQUEST: "request",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataHandling:
    """What is known of what becomes of the data at a deployment.

    Args:
        regions: everywhere that it may be processed; empty when unknown.
        retention_days: for how many days prompts are kept; ``None`` when unknown.
        training: whether models are trained on them; ``None`` when unknown.
    """

    regions: tuple[str, ...] = ()
    retention_days: int | None = None
    training: bool | None = None

    def over(self, other: "DataHandling") -> "DataHandling":
        """What this says, and what the other says where this is silent."""
        return DataHandling(
            regions=self.regions or other.regions,
            retention_days=(
                other.retention_days if self.retention_days is None else self.retention_days
            ),
            training=other.training if self.training is None else self.training,
        )


UNKNOWN: Final = DataHandling()


@dataclass(frozen=True, slots=True, kw_only=True)
class CallData:
    """What holds for the data of one call.

    Args:
        data_class: its class; empty where the policy has no classes.
        version: of the policy of organisation, project and key; empty where they demand nothing.
        rules: what is demanded; only rules that hold for this class.
    """

    data_class: str = ""
    version: str = ""
    rules: tuple[data_policy_pb2.DataRule, ...] = ()


FREE: Final = CallData()
"""Nobody demands anything. Compared by identity where a call must not pay for what it does not
use."""


def call_data(
    grant: grant_pb2.Grant, data_class: str, routing: chat_pb2.RoutingPreferences | None
) -> CallData:
    """What holds for a call. Raises INVALID_REQUEST for a class that does not exist.

    Args:
        grant: whose call.
        data_class: what the request says of itself; empty for nothing.
        routing: what it wishes; ``None`` for nothing.
    """
    policy = grant.data_policy
    wished = routing is not None and (routing.no_training or routing.zero_retention)
    if not (policy.version or data_class or wished):
        return FREE
    classes = policy.classes
    if data_class and data_class not in classes:
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            f"There is no class of data {data_class[:40]!r} here; the classes are, the least"
            f" sensitive first: {', '.join(classes) or 'none'}.",
            param=HEADER,
        )
    rank = _rank(policy, data_class)
    rules = [rule for rule in policy.rules if _from(rule.data_class, classes) <= rank]
    if routing is not None and wished:
        rules.append(_wish(routing))
    return CallData(
        data_class=classes[rank] if classes else "",
        version=policy.version,
        rules=tuple(rule for rule in rules if rule.HasField("demands")),
    )


def _rank(policy: data_policy_pb2.DataPolicy, data_class: str) -> int:
    """The place of the call's class: what it says of itself, or the highest floor."""
    classes = policy.classes
    rank = list(classes).index(data_class) if data_class else 0
    for rule in policy.rules:
        if rule.class_min:
            # A floor that is no class any more is above all that are.
            known = rule.class_min in classes
            floor = list(classes).index(rule.class_min) if known else len(classes) - 1
            rank = max(rank, floor)
    return rank


def _from(data_class: str, classes: Sequence[str]) -> int:
    """From which place on a rule holds; one whose class is gone holds for all data."""
    return list(classes).index(data_class) if data_class in classes else 0


def _wish(routing: chat_pb2.RoutingPreferences) -> data_policy_pb2.DataRule:
    return data_policy_pb2.DataRule(
        level=data_policy_pb2.DATA_LEVEL_REQUEST,
        demands=data_policy_pb2.DataDemands(
            no_training=routing.no_training,
            retention_days_max=0 if routing.zero_retention else None,
        ),
    )


def objection(model: str, handling: DataHandling, data: CallData) -> GatewayError | None:
    """Why the data of a call may not go to a deployment: whose demands it does not meet."""
    unmet = [
        f"the {_OWNERS.get(rule.level, 'policy')} demands {demand}"
        + (f" for {rule.data_class} data" if rule.data_class else "")
        for rule in data.rules
        for demand in unmet_demands(handling, rule.demands)
    ]
    if not unmet:
        return None
    return GatewayError(
        error_pb2.ERROR_REASON_DATA_POLICY,
        f"The data of this call may not go to {model}: {'; '.join(unmet)}. Choose a model that"
        " meets this (GET /v1/models shows data_policy), or ask who administers the policy.",
        param="model",
    )


def unmet_demands(handling: DataHandling, demands: data_policy_pb2.DataDemands) -> list[str]:
    """The demands that are not met, in words, each with what is known instead."""
    unmet: list[str] = []
    regions, days = handling.regions, handling.retention_days
    places = ", ".join(regions) or "unknown"
    if demands.regions and not _inside(regions, demands.regions):
        unmet.append(f"processing in {' or '.join(demands.regions)} (it is {places})")
    if demands.storage_regions and days != 0 and not _inside(regions, demands.storage_regions):
        unmet.append(f"storage in {' or '.join(demands.storage_regions)} (it is {places})")
    if demands.HasField("retention_days_max"):
        most = demands.retention_days_max
        if days is None or days > most:
            wanted = f"at most {most} days" if most else "no"
            unmet.append(f"{wanted} retention (it is {_days(days)})")
    # Who keeps nothing cannot train on it (https://openrouter.ai/docs/features/zdr).
    trains = handling.training or (handling.training is None and days != 0)
    if demands.no_training and trains:
        known = "it trains" if handling.training else "it is unknown"
        unmet.append(f"no training ({known})")
    return unmet


def _inside(regions: Iterable[str], allowed: Iterable[str]) -> bool:
    """Whether all places are known to be allowed."""
    fine = set(allowed)
    if EU in fine:
        fine |= EU_MEMBERS
    found = set(regions)
    return bool(found) and found <= fine


def _days(days: int | None) -> str:
    return "unknown" if days is None else f"{days} days"
