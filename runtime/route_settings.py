"""What operators say of routes: logical models and the deployments behind them."""

from dataclasses import dataclass, field
from typing import Final

from runtime import rules
from runtime.rules import between, each, one_of, ruled

SPREADS: Final = ("weight", "least-outstanding", "latency", "cost", "throughput")
"""How calls spread over the deployments of one priority."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTarget:
    """One ``[[route.to]]``: a deployment, ``provider/model``. The lowest ``priority`` goes first;
    ``weight`` is its share among those of the same priority, 0 for none unless all others fail.
    """

    model: str = field(metadata=ruled(rules.deployment))
    weight: float = field(default=1.0, metadata=between(0, 1_000_000))
    priority: int = field(default=0, metadata=between(0, 100))


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSettings:
    """One ``[[route]]``: a name that callers use as a model's.

    ``fallbacks`` are routes or deployments to try when all of its own fail; ``context_fallbacks``
    only when the input is too long, ``content_fallbacks`` only when a content policy refuses it.
    ``first_token_timeout_s`` and ``stall_timeout_s`` stand for the router's own when they are not
    0.
    """

    name: str = field(metadata=ruled(rules.model_name))
    to: tuple[RouteTarget, ...] = ()
    spread: str = field(default="weight", metadata=one_of(SPREADS))
    affinity: bool = False
    fallbacks: tuple[str, ...] = field(default=(), metadata=each(rules.model_name))
    context_fallbacks: tuple[str, ...] = field(default=(), metadata=each(rules.deployment))
    content_fallbacks: tuple[str, ...] = field(default=(), metadata=each(rules.deployment))
    first_token_timeout_s: float = field(default=0.0, metadata=between(0, 3600))
    stall_timeout_s: float = field(default=0.0, metadata=between(0, 3600))
