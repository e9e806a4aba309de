"""What would happen to a call, in full: every deployment before every rule. Pure.

The plan itself is the one that a call follows; this only adds what each rule says of each
deployment. A key is told nothing of a deployment that it may not know of, beyond that it may not.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, cast

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2, plan_pb2
from runtime.errors import GatewayError
from runtime.patterns import matches
from services.router.limits.admission import MODEL, POLICIES, CallFacts
from services.router.models.catalog import Deployment
from services.router.routing.data_rules import CallData
from services.router.routing.health import Health
from services.router.routing.illness import ILLNESSES
from services.router.routing.planning import Excluded, Plan, unwanted

FOUND: Final = "found"
"""Whether there is such a model."""
WISHES: Final = "wishes"
"""What the request itself says of providers."""
WIRE: Final = "wire"
"""Whether the provider can be asked what the request asks."""

_Verdict = tuple[str, GatewayError | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A call that is not made, and everything that decides on it.

    Attributes:
        grant: whose call.
        request: the call.
        data: what holds for its data.
        plan: what a call would follow at this moment.
        resolve: finds a deployment by name, or raises.
        facts: what the policies look at, for one deployment.
        health: what is known of deployments.
        unspeakable: candidates whose wire cannot say the request, by id.
        now_unix_s: the wall clock.
        now_s: the monotonic clock.
        seat: the deployment with the credential that it would be asked with, as health knows it.
        hedge_after_s: how long the first may be silent before the next is asked, too; 0 for ever.
        mirror: the model that the call would be copied to; empty for none.
        tells_all: the reader is an operator, to whom nothing is withheld.
    """

    grant: grant_pb2.Grant
    request: chat_pb2.ChatRequest
    data: CallData
    plan: Plan
    resolve: Callable[[str], Deployment]
    facts: Callable[[Deployment], CallFacts]
    health: Health
    unspeakable: Mapping[str, GatewayError]
    now_unix_s: float
    now_s: float
    seat: Callable[[Deployment], Deployment] = lambda deployment: deployment
    hedge_after_s: float = 0.0
    mirror: str = ""
    tells_all: bool = False


def explained(situation: Situation) -> plan_pb2.Plan:
    """The plan in full: those that would be tried, in their order, then the others."""
    plan = situation.plan
    tried = [d for d in plan.candidates if d.id not in situation.unspeakable]
    told = plan_pb2.Plan(
        data_class=situation.data.data_class,
        data_policy_version=situation.data.version,
        data_rules=situation.data.rules,
        route=plan.said,
    )
    for place, deployment in enumerate(tried, start=1):
        told.considered.append(_considered(situation, deployment, place))
    for deployment in plan.candidates:
        if deployment.id in situation.unspeakable:
            told.considered.append(_considered(situation, deployment, 0))
    for out in plan.excluded:
        told.considered.append(_excluded(situation, out))
    for reason, deployments in plan.rescue.items():
        for deployment in deployments:
            considered = _considered(situation, deployment, 0)
            considered.only_after = cast("error_pb2.ErrorReason.ValueType", reason)
            told.considered.append(considered)
    if tried:
        if situation.hedge_after_s and len(tried) > 1:
            told.hedge_after_ms = int(situation.hedge_after_s * 1000)
        if situation.mirror:
            told.mirror.CopyFrom(_mirrored(situation))
        model = tried[0].id
        told.rate_limits.extend(
            rate
            for rate in situation.grant.rate_limits
            if not rate.model or matches(rate.model, model)
        )
    else:
        refused = next(iter(situation.unspeakable.values()), None) or plan.refusal()
        told.refusal.CopyFrom(refused.to_proto())
    return told


def _mirrored(situation: Situation) -> plan_pb2.ConsideredDeployment:
    """Who would get a copy, before every rule."""
    try:
        deployment = situation.resolve(situation.mirror)
    except GatewayError as missing:
        verdicts = [_verdict((FOUND, missing))]
        return plan_pb2.ConsideredDeployment(model=situation.mirror, verdicts=verdicts)
    return _considered(situation, deployment, 0)


def _excluded(situation: Situation, out: Excluded) -> plan_pb2.ConsideredDeployment:
    """One that was left out when the plan was made."""
    try:
        deployment = situation.resolve(out.model)
    except GatewayError as missing:
        return plan_pb2.ConsideredDeployment(model=out.model, verdicts=[_verdict((FOUND, missing))])
    considered = _considered(situation, deployment, 0)
    if out.rule:
        # Every rule lets it through by itself: it is not wanted beside the others.
        considered.verdicts.append(_verdict((out.rule, out.why)))
    return considered


def _considered(
    situation: Situation, deployment: Deployment, place: int
) -> plan_pb2.ConsideredDeployment:
    considered = plan_pb2.ConsideredDeployment(model=deployment.id, place=place)
    secret = False
    for verdict in _chain(situation, deployment):
        if secret:
            considered.verdicts.add(rule=verdict[0], withheld=True)
            continue
        considered.verdicts.append(_verdict(verdict))
        secret = verdict[0] == MODEL and verdict[1] is not None and not situation.tells_all
    bound = None if secret else situation.facts(deployment).cost_bound()
    if bound is not None:
        considered.cost_bound_nano_usd = bound
    return considered


def _chain(situation: Situation, deployment: Deployment) -> Iterator[_Verdict]:
    """Every rule's word on a deployment, in the order in which a call asks them."""
    request: chat_pb2.ChatRequest = situation.request
    routing = request.routing if request.HasField("routing") else None
    yield FOUND, None
    yield WISHES, unwanted(deployment, routing)
    facts, grant = situation.facts(deployment), situation.grant
    for policy in POLICIES:
        yield policy.name, policy.judge(grant, facts, situation.now_unix_s)
    seat = situation.seat(deployment)
    for illness in ILLNESSES:
        yield illness.name, illness.judge(situation.health, seat, situation.now_s)
    why_not = situation.unspeakable.get(deployment.id)
    if why_not is not None:
        yield WIRE, why_not


def _verdict(verdict: _Verdict) -> plan_pb2.RuleVerdict:
    rule, why_not = verdict
    if why_not is None:
        return plan_pb2.RuleVerdict(rule=rule, reason=error_pb2.ERROR_REASON_UNSPECIFIED)
    return plan_pb2.RuleVerdict(rule=rule, reason=why_not.reason, detail=why_not.message)
