"""How organisation, project and key narrow into what a key may do. Pure.

Every level may only take away: a model must be allowed by all levels and denied by none, and all
rate limits are in force together. Where an exact answer would be too large, the result is narrower
than it could be, never wider.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import reduce
from types import MappingProxyType
from typing import Any, Final

from onegate.auth.v1 import grant_pb2
from runtime import networks
from runtime.patterns import covers
from services.auth import data_rules
from services.auth.data_rules import DataRule

NOTHING: Final = "*"
"""Denies every model: an empty list of allowed models would allow all of them."""

PATTERNS_MAX: Final = 500
"""The most patterns that narrowing may yield; what exceeds them is not allowed."""

_STEPS_MAX: Final = 20_000
"""How much work one narrowing may be, in steps of about a microsecond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """At most ``amount`` of ``meter`` in any ``window_s`` seconds, for one model pattern or all."""

    meter: grant_pb2.RateMeter.ValueType
    amount: int
    window_s: int
    scope: grant_pb2.RateScope.ValueType
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What one level says, or what several say together.

    Args:
        models_allowed: patterns; empty allows every model.
        models_denied: patterns; wins over what is allowed.
        rate_limits: in force together.
        tags: of usage rows; the level nearest to the key wins.
        scopes: what may be done at most; empty leaves it to the kind of key.
        data: what is demanded of whoever is given the data; all of it holds together.
        networks: from where keys work, in CIDR notation; empty for everywhere.
    """

    models_allowed: tuple[str, ...] = ()
    models_denied: tuple[str, ...] = ()
    rate_limits: tuple[RateLimit, ...] = ()
    tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    scopes: tuple[str, ...] = ()
    data: tuple[DataRule, ...] = ()
    networks: tuple[str, ...] = ()


def narrow(parent: Policy, child: Policy) -> Policy:
    """What both allow."""
    allowed = _intersection(parent.models_allowed, child.models_allowed)
    denied = (*parent.models_denied, *child.models_denied)
    if allowed is None:
        allowed, denied = (), (NOTHING,)
    return Policy(
        models_allowed=allowed,
        models_denied=tuple(dict.fromkeys(denied)),
        rate_limits=tuple(dict.fromkeys((*parent.rate_limits, *child.rate_limits))),
        tags={**parent.tags, **child.tags},
        scopes=_scopes(parent.scopes, child.scopes),
        data=tuple(dict.fromkeys((*parent.data, *child.data))),
        networks=networks.intersection(parent.networks, child.networks),
    )


CALL_SCOPE: Final = "model.request"
"""Allows every endpoint that calls models; ``model.chat.request`` allows one of them."""

NO_SCOPE: Final = "none"
"""A scope that nothing asks for: an empty list of scopes would leave all to the kind of key."""


def _scopes(parent: tuple[str, ...], child: tuple[str, ...]) -> tuple[str, ...]:
    """The scopes that both say; one that says nothing leaves it to the other."""
    if not parent or not child:
        return parent or child
    found = [scope for scope in child if _says(parent, scope)]
    found += [scope for scope in parent if _says(child, scope)]
    return tuple(dict.fromkeys(found)) or (NO_SCOPE,)


def _says(scopes: tuple[str, ...], scope: str) -> bool:
    """Whether one of the scopes is this one, or holds it."""
    is_call = scope.startswith("model.") and scope.endswith(".request")
    return scope in scopes or (is_call and CALL_SCOPE in scopes)


def effective(*levels: Policy) -> Policy:
    """What all levels allow together; the widest level first, the key last."""
    return reduce(narrow, levels)


def _intersection(parent: tuple[str, ...], child: tuple[str, ...]) -> tuple[str, ...] | None:
    """Patterns for what both lists stand for; ``None`` for no model at all."""
    if not parent or not child:
        return parent or child
    budget = Budget(_STEPS_MAX)
    found: dict[str, None] = {}
    for pattern in child:
        if any(covers(other, pattern) for other in parent):
            found[pattern] = None
            continue
        for other in parent:
            found.update(dict.fromkeys(meet(other, pattern, budget)))
    return tuple(found)[:PATTERNS_MAX] or None


class Budget:
    """What remains of the work that one narrowing may be."""

    __slots__ = ("steps",)

    def __init__(self, steps: int) -> None:
        self.steps = steps


def meet(first: str, second: str, budget: Budget | None = None) -> tuple[str, ...]:
    """Patterns that together stand for exactly what both patterns stand for.

    ``a*`` and ``*b`` meet in ``a*b``; ``ab*`` and ``*bc`` meet in ``ab*bc`` and ``abc``. Empty when
    they have no model in common, or when the budget ends before the answer is complete.
    """
    if covers(first, second):
        return (second,)
    if covers(second, first):
        return (first,)
    budget = Budget(_STEPS_MAX) if budget is None else budget
    found = dict.fromkeys(_meetings(first, second, budget))
    if budget.steps <= 0:
        return ()
    return tuple(
        pattern
        for pattern in found
        if not any(other != pattern and covers(other, pattern) for other in found)
    )


def _meetings(first: str, second: str, budget: Budget) -> Iterator[str]:
    """Walks both patterns side by side; where one has a star, it may stand for nothing or for the
    next character (or star) of the other.
    """
    pending = [("", first, second)]
    while pending and budget.steps > 0:
        budget.steps -= 1
        done, left, right = pending.pop()
        if not left or not right:
            if not (left + right).strip("*"):
                # What is left can only be stars, and they may stand for nothing.
                yield done
        elif left[0] == "*" or right[0] == "*":
            if left[0] == "*":
                pending.append((_joined(done, right[0]), left, right[1:]))
                pending.append((_joined(done, "*" if right[0] == "*" else ""), left[1:], right))
            else:
                pending.append((_joined(done, left[0]), left[1:], right))
                pending.append((done, left, right[1:]))
        elif left[0] == right[0]:
            pending.append((done + left[0], left[1:], right[1:]))


def _joined(done: str, more: str) -> str:
    """The text with one more character; two stars in a row are one."""
    return done if more == "*" and done.endswith("*") else done + more


_FIELDS: Final = frozenset(
    {"models_allowed", "models_denied", "rate_limits", "tags", "scopes", "data", "networks"}
)


def to_json(policy: Policy) -> str:
    """The policy as it is kept: only what it says, so that policies grow without a migration."""
    fields: dict[str, Any] = {
        "models_allowed": list(policy.models_allowed),
        "models_denied": list(policy.models_denied),
        "rate_limits": [_limit_fields(limit) for limit in policy.rate_limits],
        "tags": dict(policy.tags),
        "scopes": list(policy.scopes),
        "data": [data_rules.to_fields(rule) for rule in policy.data],
        "networks": list(policy.networks),
    }
    return json.dumps({name: value for name, value in fields.items() if value}, sort_keys=True)


def from_json(text: str) -> Policy:
    """The policy that :func:`to_json` wrote. Raises ``ValueError`` for a field that this program
    does not know: what it cannot enforce it must not ignore.
    """
    fields = json.loads(text)
    unknown = fields.keys() - _FIELDS
    if unknown:
        raise ValueError(f"A stored policy says {sorted(unknown)}: run the program that wrote it.")
    return Policy(
        models_allowed=tuple(fields.get("models_allowed", ())),
        models_denied=tuple(fields.get("models_denied", ())),
        rate_limits=tuple(_limit_from(limit) for limit in fields.get("rate_limits", ())),
        tags=fields.get("tags", {}),
        scopes=tuple(fields.get("scopes", ())),
        data=tuple(map(data_rules.from_fields, fields.get("data", ()))),
        networks=tuple(fields.get("networks", ())),
    )


def _limit_fields(limit: RateLimit) -> dict[str, Any]:
    names = {
        "meter": grant_pb2.RateMeter.Name(limit.meter),
        "scope": grant_pb2.RateScope.Name(limit.scope),
    }
    return {**asdict(limit), **names}


def _limit_from(fields: Mapping[str, Any]) -> RateLimit:
    return RateLimit(
        meter=grant_pb2.RateMeter.Value(fields["meter"]),
        amount=fields["amount"],
        window_s=fields["window_s"],
        scope=grant_pb2.RateScope.Value(fields["scope"]),
        model=fields["model"],
    )
