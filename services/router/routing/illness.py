"""Why a deployment cannot be asked at this moment, as a table of rules like the policies. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from services.router.models.catalog import Deployment
from services.router.routing.health import Health


@dataclass(frozen=True, slots=True, kw_only=True)
class Illness:
    """A row of the table: its name, the one reason it refuses with, and the rule. The rule takes
    monotonic seconds.
    """

    name: str
    reason: error_pb2.ErrorReason.ValueType
    judge: Callable[[Health, Deployment, float], GatewayError | None]


def ill(health: Health, deployment: Deployment, now_s: float) -> GatewayError | None:
    """The first objection; ``None`` when the deployment can be asked."""
    for illness in ILLNESSES:
        why_not = illness.judge(health, deployment, now_s)
        if why_not is not None:
            return why_not
    return None


def _cooling(health: Health, deployment: Deployment, now_s: float) -> GatewayError | None:
    cooling_s = health.cooling_s(deployment.id, now_s)
    if cooling_s <= 0:
        return None
    return GatewayError(
        error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
        f"{_shown(deployment.id)} is rate limited by its provider for another {cooling_s:.1f} s.",
        retry_after_ms=int(cooling_s * 1000) + 1,
    )


def _credential(health: Health, deployment: Deployment, now_s: float) -> GatewayError | None:
    names = (deployment.provider, deployment.id)
    if not any(health.quarantined(name, now_s) for name in names):
        return None
    return GatewayError(
        error_pb2.ERROR_REASON_UPSTREAM_AUTH,
        f"{_shown(deployment.provider)} refuses the gateway's credential for {deployment.model}; "
        "the operator must check the provider's key and what it may do.",
    )


def _shown(name: str) -> str:
    """Without the name of a credential: that is the operator's business."""
    return name.partition("#")[0]


ILLNESSES: Final[tuple[Illness, ...]] = (
    Illness(name="cooling", reason=error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED, judge=_cooling),
    Illness(name="credential", reason=error_pb2.ERROR_REASON_UPSTREAM_AUTH, judge=_credential),
)
"""In this order."""
