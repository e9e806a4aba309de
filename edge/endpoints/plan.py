"""A dry run's answer: who would serve a call, who would not and why. Pure."""

from typing import Any

from edge.endpoints.strict_json import encode
from edge.errors import error_json
from onegate.auth.v1 import data_policy_pb2, grant_pb2
from onegate.common.v1 import error_pb2
from onegate.router.v1 import plan_pb2
from runtime.errors import GatewayError, reason_name
from runtime.money import usd


def plan_body(plan: plan_pb2.Plan) -> bytes:
    """The plan as JSON."""
    return encode(plan_json(plan))


def plan_json(plan: plan_pb2.Plan) -> dict[str, Any]:
    """The plan. ``order`` is whom a call would try, in turn, at most ``attempts_max`` of them."""
    refusal = GatewayError.from_proto(plan.refusal) if plan.HasField("refusal") else None
    return {
        "object": "onegate.plan",
        "order": [one.model for one in plan.considered if one.place],
        "route": plan.route or None,
        "attempts_max": plan.attempts_max,
        "hedge_after_ms": plan.hedge_after_ms if plan.HasField("hedge_after_ms") else None,
        "mirror": _considered(plan.mirror) if plan.HasField("mirror") else None,
        "refusal": error_json(refusal) if refusal else None,
        "considered": [_considered(one) for one in plan.considered],
        "rate_limits": [_rate_limit(rate) for rate in plan.rate_limits],
        "data": {
            "class": plan.data_class or None,
            "policy_version": plan.data_policy_version or None,
            "rules": [_rule(rule) for rule in plan.data_rules],
        },
    }


def _considered(one: plan_pb2.ConsideredDeployment) -> dict[str, Any]:
    bounded = one.HasField("cost_bound_nano_usd")
    return {
        "model": one.model,
        "place": one.place or None,
        "cost_max": usd(one.cost_bound_nano_usd) if bounded else None,
        "verdicts": [_verdict(verdict) for verdict in one.verdicts],
    }


def _verdict(verdict: plan_pb2.RuleVerdict) -> dict[str, Any]:
    if verdict.withheld:
        return {"rule": verdict.rule, "verdict": "withheld", "reason": None, "detail": None}
    refused = verdict.reason != error_pb2.ERROR_REASON_UNSPECIFIED
    return {
        "rule": verdict.rule,
        "verdict": "refuse" if refused else "pass",
        "reason": reason_name(verdict.reason) if refused else None,
        "detail": verdict.detail or None,
    }


def _rate_limit(rate: grant_pb2.RateLimit) -> dict[str, Any]:
    return {
        "scope": grant_pb2.RateScope.Name(rate.scope).removeprefix("RATE_SCOPE_").lower(),
        "meter": grant_pb2.RateMeter.Name(rate.meter).removeprefix("RATE_METER_").lower(),
        "amount": rate.amount,
        "window_s": rate.window_s,
        "model": rate.model or None,
    }


def _rule(rule: data_policy_pb2.DataRule) -> dict[str, Any]:
    demands = rule.demands
    days = demands.retention_days_max if demands.HasField("retention_days_max") else None
    return {
        "level": data_policy_pb2.DataLevel.Name(rule.level).removeprefix("DATA_LEVEL_").lower(),
        "data_class": rule.data_class or None,
        "regions": list(demands.regions),
        "storage_regions": list(demands.storage_regions),
        "retention_days_max": days,
        "no_training": demands.no_training,
    }
