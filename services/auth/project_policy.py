"""What model permissions and rate limits of a project or an organisation mean for keys. Pure."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from onegate.auth.v1 import grant_pb2
from services.auth.objects import RateLimitRecord
from services.auth.policy import NOTHING, Policy
from services.auth.rate_limits import counted, meanings
from services.auth.records import OrganizationRecord, ProjectRecord

ALLOW: Final = "allow"
DENY: Final = "deny"


def policy_of(project: ProjectRecord, limits: Iterable[RateLimitRecord]) -> Policy:
    """What all keys of the project are held to."""
    rates = [rate for row in limits for rate in counted(row, grant_pb2.RATE_SCOPE_PROJECT)]
    return replace(models_policy(project), rate_limits=tuple(rates))


def models_policy(level: OrganizationRecord | ProjectRecord) -> Policy:
    """The level's policy with what its model permissions mean; the rest stays."""
    patterns = tuple(pattern for model in level.models for pattern in meanings(model))
    allowed, denied = ((), patterns) if level.model_mode != ALLOW else (patterns, ())
    if level.model_mode == ALLOW and not patterns:
        # An empty list of allowed models would allow every one.
        denied = (NOTHING,)
    return replace(level.policy, models_allowed=allowed, models_denied=denied)
