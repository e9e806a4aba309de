"""What operators say of routes: logical models and the deployments behind them."""

from dataclasses import dataclass, field
from typing import Final

from runtime import rules
from runtime.rules import between, each, one_of, ruled

SPREADS: Final = ("weight", "least-outstanding", "latency", "cost", "throughput")
"""How calls spread over the deployments of one priority."""

LANGUAGES: Final = (
    *("en", "de", "fr", "es", "it", "pt", "nl"),
    *("ru", "el", "he", "ar", "hi", "th", "zh", "ja", "ko"),
)
"""The languages that are told apart, as ISO 639-1 has them."""


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
    0. With ``hedge``, a call that is slow to begin is asked of the next deployment, too, after
    ``hedge_after_s``, or after what only one call of twenty takes when that is 0.
    ``mirror_percent`` of the calls are copied to the deployment ``mirror_to``, for nobody to hear
    the answer.
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
    hedge: bool = False
    hedge_after_s: float = field(default=0.0, metadata=between(0, 3600))
    mirror_to: str = field(default="", metadata=ruled(rules.deployment))
    mirror_percent: float = field(default=0.0, metadata=between(0, 100))


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyModel:
    """One ``[[policy.model]]``: a deployment that a policy may choose, and how good the operator
    holds it to be, from 0 to 1.
    """

    model: str = field(metadata=ruled(rules.deployment))
    quality: float = field(default=0.5, metadata=between(0, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRule:
    """One ``[[policy.rule]]``: for which calls only some of the policy's models are chosen from.
    What is left out does not matter to it; everything that is said must hold.
    """

    name: str = field(metadata=ruled(rules.word))
    models: tuple[str, ...] = field(metadata=each(rules.deployment))
    input_tokens_min: int = field(default=0, metadata=between(0, 1_000_000_000))
    input_tokens_max: int = field(default=0, metadata=between(0, 1_000_000_000))
    tools: bool | None = None
    images: bool | None = None
    audio: bool | None = None
    files: bool | None = None
    json_schema: bool | None = None
    code: bool | None = None
    language: tuple[str, ...] = field(default=(), metadata=each(rules.word_of(LANGUAGES)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """One ``[[policy]]``: a name that callers use as a model's, for which the gateway chooses by
    what the call is like. ``quality``, ``cost`` and ``latency`` say how much each counts.
    """

    name: str = field(metadata=ruled(rules.model_name))
    model: tuple[PolicyModel, ...] = ()
    rule: tuple[PolicyRule, ...] = ()
    quality: float = field(default=1.0, metadata=between(0, 1000))
    cost: float = field(default=1.0, metadata=between(0, 1000))
    latency: float = field(default=0.5, metadata=between(0, 1000))
