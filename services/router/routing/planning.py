"""Who could serve a call, in which order, and why the others cannot. Pure: facts in, plan out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.route_settings import RouteSettings
from services.router.models.catalog import Deployment
from services.router.routing.observed import EJECTED_SHARE_MAX

_PASSING: Final = (
    error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
    error_pb2.ERROR_REASON_UPSTREAM_AUTH,
)
"""Reasons that speak of a deployment's moment, not of the call: they are told first."""


FALLBACKS: Final = "fallbacks"
"""The rule that says whether a second deployment may be tried."""
BREAKER: Final = "breaker"
"""The rule that leaves out deployments that keep failing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """A model that was considered and cannot serve."""

    model: str
    why: GatewayError
    rule: str = ""
    """What refused it, where that is no rule about the deployment by itself."""

    def to_proto(self) -> error_pb2.Exclusion:
        """As a caller sees it."""
        return error_pb2.Exclusion(
            model=self.model, reason=self.why.reason, detail=self.why.message
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Whom to try, in order; and who was left out.

    Attributes:
        candidates: in order.
        excluded: with the reason.
        rescue: whom to try in their place after a failure for this reason, and only then.
        route: the route that chose them; ``None`` when the caller did.
        said: that route and by what it chose, for people.
    """

    candidates: tuple[Deployment, ...]
    excluded: tuple[Excluded, ...] = ()
    rescue: Mapping[int, tuple[Deployment, ...]] = field(default_factory=dict)
    route: RouteSettings | None = None
    said: str = ""

    def refusal(self) -> GatewayError:
        """Why nobody can serve, when there is no candidate; with all exclusions."""
        passing = [out.why for out in self.excluded if out.why.reason in _PASSING]
        soonest = min(
            passing,
            key=lambda why: (_PASSING.index(why.reason), why.retry_after_ms),
            default=None,
        )
        why = soonest or self.excluded[0].why
        why.excluded = [out.to_proto() for out in self.excluded]
        return why


def make_plan(
    models: Sequence[str],
    preferences: chat_pb2.RoutingPreferences | None,
    resolve: Callable[[str], Deployment],
    judge: Callable[[Deployment], GatewayError | None],
) -> Plan:
    """The plan for a call.

    Args:
        models: what the caller named, in order, at least one.
        preferences: which providers it wants; ``None`` for no wishes.
        resolve: finds a deployment by name, or raises.
        judge: why a deployment cannot serve at this moment; ``None`` when it can.
    """
    if len(models) == 1 and preferences is None:
        return _plan_for_one(models[0], resolve, judge)
    found: dict[str, Deployment] = {}
    excluded: list[Excluded] = []
    for model in models:
        try:
            deployment = resolve(model)
        except GatewayError as why:
            excluded.append(Excluded(model=model, why=why))
        else:
            found.setdefault(deployment.id, deployment)
    candidates: list[Deployment] = []
    for deployment in _ordered(found.values(), preferences):
        why_not = unwanted(deployment, preferences) or judge(deployment)
        if why_not is None and candidates and is_alone(preferences):
            alone = _by_request(f"{deployment.id} is a fallback, and fallbacks are off")
            excluded.append(Excluded(model=deployment.id, why=alone, rule=FALLBACKS))
        elif why_not is None:
            candidates.append(deployment)
        else:
            excluded.append(Excluded(model=deployment.id, why=why_not))
    return Plan(candidates=tuple(candidates), excluded=tuple(excluded))


def without_broken(plan: Plan, broken_s: Callable[[str], float]) -> Plan:
    """The plan without deployments that keep failing: at most a share of all, the last first. The
    others that fail go to the end.

    Args:
        plan: what would be tried otherwise.
        broken_s: for how much longer a deployment should be left alone; 0 for not at all.
    """
    rest_s = {one.id: left_s for one in plan.candidates if (left_s := broken_s(one.id)) > 0}
    if not rest_s:
        return plan
    sick = [one for one in plan.candidates if one.id in rest_s]
    kept = sick[: len(sick) - min(len(sick), int(len(plan.candidates) * EJECTED_SHARE_MAX))]
    out = [
        Excluded(
            model=one.id,
            why=GatewayError(
                error_pb2.ERROR_REASON_UPSTREAM_ERROR,
                f"{one.id} keeps failing and is left alone for another {rest_s[one.id]:.1f} s.",
                retry_after_ms=int(rest_s[one.id] * 1000) + 1,
            ),
            rule=BREAKER,
        )
        for one in sick[len(kept) :]
    ]
    well = [one for one in plan.candidates if one.id not in rest_s]
    return replace(plan, candidates=(*well, *kept), excluded=(*plan.excluded, *out))


def with_rescue(plan: Plan, others: Mapping[int, Plan]) -> Plan:
    """The plan, and whom to try after failures for certain reasons."""
    if not others:
        return plan
    known = {one.id for one in plan.candidates} | {out.model for out in plan.excluded}
    excluded = list(plan.excluded)
    for other in others.values():
        for out in other.excluded:
            if out.model not in known:
                known.add(out.model)
                excluded.append(out)
    settled = {one.id for one in plan.candidates} | {out.model for out in plan.excluded}
    rescue = {
        reason: left
        for reason, other in others.items()
        if (left := tuple(one for one in other.candidates if one.id not in settled))
    }
    return replace(plan, rescue=rescue, excluded=tuple(excluded))


def _plan_for_one(
    model: str,
    resolve: Callable[[str], Deployment],
    judge: Callable[[Deployment], GatewayError | None],
) -> Plan:
    try:
        deployment = resolve(model)
    except GatewayError as why:
        return Plan(candidates=(), excluded=(Excluded(model=model, why=why),))
    why_not = judge(deployment)
    if why_not is None:
        return Plan(candidates=(deployment,))
    return Plan(candidates=(), excluded=(Excluded(model=deployment.id, why=why_not),))


def _ordered(
    deployments: Iterable[Deployment], preferences: chat_pb2.RoutingPreferences | None
) -> list[Deployment]:
    """The caller's order of models; providers that it wants first go first."""
    if preferences is None or not preferences.provider_order:
        return list(deployments)
    wanted = [name.lower() for name in preferences.provider_order]

    def rank(deployment: Deployment) -> int:
        name = deployment.provider.lower()
        return wanted.index(name) if name in wanted else len(wanted)

    return sorted(deployments, key=rank)


def unwanted(
    deployment: Deployment, preferences: chat_pb2.RoutingPreferences | None
) -> GatewayError | None:
    """Why the caller itself wants another provider; ``None`` when it takes this one."""
    if preferences is None:
        return None
    name = deployment.provider.lower()
    if preferences.provider_only and name not in map(str.lower, preferences.provider_only):
        return _by_request(f"{deployment.provider} is not in provider.only")
    if name in map(str.lower, preferences.provider_ignore):
        return _by_request(f"{deployment.provider} is in provider.ignore")
    return None


def is_alone(preferences: chat_pb2.RoutingPreferences | None) -> bool:
    return (
        preferences is not None
        and preferences.HasField("allow_fallbacks")
        and not preferences.allow_fallbacks
    )


def _by_request(detail: str) -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_INVALID_REQUEST,
        f"The request itself leaves no provider: {detail}.",
        param="provider",
    )
