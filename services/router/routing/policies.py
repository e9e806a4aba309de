"""Which model a policy chooses: what the call is like says from which, and what is known of each
in which order. Pure.
"""

import math
from collections.abc import Iterable, Sequence

from onegate.router.v1 import chat_pb2
from runtime.route_settings import PolicyModel, PolicySettings
from services.router.routing.features import Features, holds
from services.router.routing.routes import Look


class SetPolicies:
    """The policies as they are configured."""

    def __init__(self, settings: Iterable[PolicySettings]) -> None:
        self._by_name = {policy.name: policy for policy in settings}

    @property
    def names(self) -> Sequence[str]:
        """The names that callers may use, in order."""
        return [*self._by_name]

    def models(self, name: str) -> Sequence[str]:
        """All deployments that the policy of this name may choose; none when there is none."""
        policy = self._by_name.get(name)
        return [one.model for one in policy.model] if policy is not None else ()

    def choose(self, name: str, request: chat_pb2.ChatRequest, look: Look) -> tuple[list[str], str]:
        """The deployments for a call, the best first; and by what they were chosen."""
        return chosen(self._by_name[name], Features(request), look)


def chosen(policy: PolicySettings, features: Features, look: Look) -> tuple[list[str], str]:
    """The policy's models for a call, the best first, and by what they were chosen, for people."""
    models: Sequence[PolicyModel] = policy.model
    by = "no rule"
    for rule in policy.rule:
        if holds(rule, features):
            models = [one for one in policy.model if one.model in rule.models]
            by = f"rule {rule.name}"
            break
    fitting = [
        one
        for one in models
        if not 0 < look.window(one.model) < features.input_tokens
        and not (features.needs and look.lacks(one.model, features.needs))
    ]
    best = _ranked(policy, fitting or models, look)
    return best, f"{policy.name}; {by}, best of {len(best)}"


def _ranked(policy: PolicySettings, models: Sequence[PolicyModel], look: Look) -> list[str]:
    """By quality, less price and latency as shares of the dearest and the slowest, less the share
    of calls that failed lately. Who has no price counts as the dearest.
    """
    rates = {one.model: look.rate(one.model) for one in models}
    dearest = max((rate for rate in rates.values() if math.isfinite(rate)), default=0.0)
    seen = {one.model: look.seen(one.model) for one in models}
    waits = {name: found.latency_s(look.now_s) if found else 0.0 for name, found in seen.items()}
    slowest = max(waits.values(), default=0.0)

    def score(one: PolicyModel) -> float:
        rate, found = rates[one.model], seen[one.model]
        cost = 1.0 if not math.isfinite(rate) else rate / dearest if dearest else 0.0
        wait = waits[one.model] / slowest if slowest else 0.0
        full = 1.0 if look.full(one.model) else 0.0
        errors = found.errors if found is not None else 0.0
        return (
            policy.quality * one.quality
            - policy.cost * cost
            - policy.latency * wait
            - (errors + full) * max(policy.quality, policy.cost, policy.latency, 1.0)
        )

    return [one.model for one in sorted(models, key=score, reverse=True)]
