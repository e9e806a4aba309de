"""The data policy of a key: the rules of its organisation, its project and itself, together with
what OpenAI's words for residency and retention stand for. Pure.
"""

import hashlib
from collections.abc import Iterable
from typing import Final

from onegate.auth.v1 import data_policy_pb2
from services.auth.data_rules import DataRule, Demands, Level, rule_message
from services.auth.records import OrganizationRecord, ProjectRecord

ZERO_RETENTION: Final = frozenset({"zero_data_retention", "enhanced_zero_data_retention"})
"""OpenAI's words that demand that nothing is kept. The others speak of OpenAI's own monitoring of
abuse, for which other vendors have no equal, and demand nothing here
(https://developers.openai.com/api/docs/guides/your-data)."""

_PROCESSING: Final = "_STORAGE_PROCESSING"
_STORAGE: Final = "_STORAGE"
_KEEPS_NOTHING: Final = Demands(retention_days_max=0)


def policy_of(
    organization: OrganizationRecord,
    project: ProjectRecord | None,
    key_rules: Iterable[DataRule],
    classes: tuple[str, ...],
) -> data_policy_pb2.DataPolicy:
    """All that is demanded there; ``key_rules`` are empty where no key is meant."""
    rules = [*organization.policy.data, *_retention(organization.retention, _ORGANIZATION)]
    if project is not None:
        rules += project.policy.data
        rules += _retention(project.retention, _PROJECT)
        rules += _residency(project.residency)
    rules += key_rules
    return message_of(rules, classes)


def message_of(rules: Iterable[DataRule], classes: tuple[str, ...]) -> data_policy_pb2.DataPolicy:
    """The rules as a policy with its version; without any, a policy without a version."""
    policy = data_policy_pb2.DataPolicy(
        classes=classes, rules=map(rule_message, dict.fromkeys(rules))
    )
    if policy.rules:
        content = policy.SerializeToString(deterministic=True)
        policy.version = f"dp-{hashlib.sha256(content).hexdigest()[:16]}"
    return policy


_ORGANIZATION: Final = Level.DATA_LEVEL_ORGANIZATION
_PROJECT: Final = Level.DATA_LEVEL_PROJECT


def _retention(word: str, level: Level.ValueType) -> list[DataRule]:
    return [DataRule(level=level, demands=_KEEPS_NOTHING)] if word in ZERO_RETENTION else []


def _residency(word: str) -> list[DataRule]:
    """``EU_STORAGE_PROCESSING`` is about where data is processed, ``JP_STORAGE`` about where it is
    kept (https://developers.openai.com/api/docs/guides/your-data).
    """
    region = word.partition("_")[0].lower()
    if word.endswith(_PROCESSING):
        demands = Demands(regions=(region,), storage_regions=(region,))
    elif word.endswith(_STORAGE):
        demands = Demands(storage_regions=(region,))
    else:
        return []
    return [DataRule(level=_PROJECT, demands=demands)]
