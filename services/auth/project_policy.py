"""What a project's model permissions and rate limits mean for its keys. Pure."""

from collections.abc import Iterable
from typing import Final

from onegate.auth.v1 import grant_pb2
from services.auth.objects import RateLimitRecord
from services.auth.policy import NOTHING, Policy, RateLimit
from services.auth.records import ProjectRecord

ALLOW: Final = "allow"
DENY: Final = "deny"

_MINUTE_S: Final = 60
_DAY_S: Final = 86_400
_METERED: Final = (
    ("requests_per_minute", grant_pb2.RATE_METER_REQUESTS, _MINUTE_S),
    ("tokens_per_minute", grant_pb2.RATE_METER_TOKENS, _MINUTE_S),
    ("requests_per_day", grant_pb2.RATE_METER_REQUESTS, _DAY_S),
)
"""The limits that routers count: which field, of what, in how many seconds."""


def policy_of(project: ProjectRecord, limits: Iterable[RateLimitRecord]) -> Policy:
    """What all keys of the project are held to."""
    allowed, denied = _models(project)
    return Policy(
        models_allowed=allowed,
        models_denied=denied,
        rate_limits=tuple(rate for limit in limits for rate in _rates(limit)),
    )


def _models(project: ProjectRecord) -> tuple[tuple[str, ...], tuple[str, ...]]:
    patterns = tuple(pattern for model in project.models for pattern in meanings(model))
    if project.model_mode == ALLOW:
        # An empty list of allowed models would allow every one.
        return (patterns, ()) if patterns else ((), (NOTHING,))
    return (), patterns


def meanings(model: str) -> tuple[str, ...]:
    """A bare name stands for that model of any provider, as people mean it who know one only."""
    return (model,) if "/" in model or model == "*" else (model, f"*/{model}")


def _rates(limit: RateLimitRecord) -> Iterable[RateLimit]:
    for field, meter, window_s in _METERED:
        amount: int | None = getattr(limit, field)
        if amount is not None:
            for model in ("",) if limit.model == "*" else meanings(limit.model)[-1:]:
                yield RateLimit(
                    meter=meter,
                    amount=amount,
                    window_s=window_s,
                    scope=grant_pb2.RATE_SCOPE_PROJECT,
                    model=model,
                )
