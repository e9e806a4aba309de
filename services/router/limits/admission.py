"""May this key make this call to this deployment? A table of small rules; the first that objects
wins.

To add a policy: one function, one line in ``POLICIES``, one error reason. Pure: facts in, refusal
or nothing out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from runtime.money import NANO_PER_USD
from runtime.networks import is_inside
from runtime.patterns import allows
from services.router.routing.data_rules import FREE, UNKNOWN, CallData, DataHandling, objection

SCOPE_CALL: Final = "model.request"
"""Lets a key call models by every endpoint."""
SCOPE_CHAT: Final = "model.chat.request"
"""Lets a key call models by chat alone."""
SCOPE_READ: Final = "model.read"
"""What a key needs to list models."""
MODEL: Final = "model"
"""The policy that says whether a key may know of a model at all."""
SCOPES_LISTING: Final = frozenset({SCOPE_READ, "admin"})
"""Any of these lets a key list models, and any that lets it call them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFacts:
    """What the policies look at.

    Args:
        model: the deployment, ``provider/model``.
        priced: a price is known, or an operator said that nothing is charged.
        scope: what the key must be allowed to do.
        client_address: the caller's network address; empty for an internal caller.
        cost_max_nano_usd: the most that the caller lets the call cost; ``None`` without a bound.
        cost_bound: computes the most that the call can cost, in nano-USD; ``None`` when nothing
            bounds it. Asked only when the caller named a bound.
        data: what is demanded of whoever is given the call's data.
        handling: what is known of what becomes of it there.
        reachable: its provider has a credential that is for the key's project.
        over_price: what costs more there than the caller wants to pay; empty for nothing.
    """

    model: str
    priced: bool
    scope: str = SCOPE_CHAT
    client_address: str = ""
    cost_max_nano_usd: int | None = None
    cost_bound: Callable[[], int | None] = lambda: None
    data: CallData = FREE
    handling: DataHandling = UNKNOWN
    reachable: bool = True
    over_price: str = ""


Judge = Callable[[grant_pb2.Grant, CallFacts, float], GatewayError | None]
"""Judges a call at a wall-clock time, in Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A row of the table.

    Attributes:
        name: what explanations call it.
        reason: the one reason that it refuses with.
        judge: the rule.
    """

    name: str
    reason: error_pb2.ErrorReason.ValueType
    judge: Judge


def refusal(grant: grant_pb2.Grant, facts: CallFacts, now_unix_s: float) -> GatewayError | None:
    """The first objection; ``None`` lets the call through."""
    for policy in POLICIES:
        why_not = policy.judge(grant, facts, now_unix_s)
        if why_not is not None:
            return why_not
    return None


def listing_refusal(grant: grant_pb2.Grant, now_unix_s: float) -> GatewayError | None:
    """Why a key may not see the list of models; a key that may call models may see them."""
    expired = _expiry(grant, CallFacts(model="", priced=True), now_unix_s)
    if expired is not None:
        return expired
    if not grant.scopes or any(scope in SCOPES_LISTING or _calls(scope) for scope in grant.scopes):
        return None
    return GatewayError(
        error_pb2.ERROR_REASON_SCOPE_MISSING, f"This key lacks the scope {SCOPE_READ}."
    )


def _calls(scope: str) -> bool:
    """Whether the scope lets a key call models by some endpoint."""
    return scope.startswith("model.") and scope.endswith(".request")


def _kind(grant: grant_pb2.Grant, _facts: CallFacts, _now: float) -> GatewayError | None:
    if grant.kind == grant_pb2.KEY_KIND_PROJECT:
        return None
    return GatewayError(
        error_pb2.ERROR_REASON_SCOPE_MISSING,
        "This is an admin key: it administers and calls no models. Use a project's key (sk-og-…).",
    )


def _enabled(grant: grant_pb2.Grant, _facts: CallFacts, _now: float) -> GatewayError | None:
    if not grant.disabled:
        return None
    return GatewayError(
        error_pb2.ERROR_REASON_KEY_DISABLED,
        "This key is disabled; ask an administrator to enable it, or use another one.",
    )


def _expiry(grant: grant_pb2.Grant, _facts: CallFacts, now_unix_s: float) -> GatewayError | None:
    if not grant.HasField("expires_at"):
        return None
    if now_unix_s < grant.expires_at.seconds + grant.expires_at.nanos / 1e9:
        return None
    return GatewayError(
        error_pb2.ERROR_REASON_KEY_EXPIRED, "This key has expired; ask for a new one."
    )


def _network(grant: grant_pb2.Grant, facts: CallFacts, _now: float) -> GatewayError | None:
    if not grant.networks_allowed or is_inside(facts.client_address, grant.networks_allowed):
        return None
    return GatewayError(
        error_pb2.ERROR_REASON_ADDRESS_FORBIDDEN,
        f"This key does not work from {facts.client_address or 'an unknown address'}.",
    )


def _scope(grant: grant_pb2.Grant, facts: CallFacts, _now: float) -> GatewayError | None:
    if not grant.scopes or facts.scope in grant.scopes or SCOPE_CALL in grant.scopes:
        return None
    return GatewayError(
        error_pb2.ERROR_REASON_SCOPE_MISSING, f"This key lacks the scope {facts.scope}."
    )


def _model(grant: grant_pb2.Grant, facts: CallFacts, _now: float) -> GatewayError | None:
    allowed, denied = grant.models_allowed, grant.models_denied
    if not (allowed or denied) or allows(allowed, denied, facts.model):
        return None
    return GatewayError(
        error_pb2.ERROR_REASON_MODEL_FORBIDDEN,
        f"This key may not use {facts.model}; GET /v1/models lists what it may.",
        param="model",
    )


def no_credential(provider: str) -> GatewayError:
    """The refusal of a call for whose project there is no credential."""
    return GatewayError(
        error_pb2.ERROR_REASON_MODEL_FORBIDDEN,
        f"{provider} has no credential that is for this project; ask the operator for one.",
        param="model",
    )


def _owner(_grant: grant_pb2.Grant, facts: CallFacts, _now: float) -> GatewayError | None:
    return None if facts.reachable else no_credential(facts.model.partition("/")[0])


def _data(_grant: grant_pb2.Grant, facts: CallFacts, _now: float) -> GatewayError | None:
    if facts.data is FREE:
        return None
    return objection(facts.model, facts.handling, facts.data)


def _price(_grant: grant_pb2.Grant, facts: CallFacts, _now: float) -> GatewayError | None:
    if facts.priced:
        return None
    return GatewayError(
        error_pb2.ERROR_REASON_MODEL_PRICE_UNKNOWN,
        f"No price is known for {facts.model}, so it cannot be called: an operator must price it, "
        "or mark its provider free.",
        param="model",
    )


def _price_max(_grant: grant_pb2.Grant, facts: CallFacts, _now: float) -> GatewayError | None:
    if not facts.over_price:
        return None
    return GatewayError(
        error_pb2.ERROR_REASON_INVALID_REQUEST,
        f"{facts.model} costs more than provider.max_price.{facts.over_price} allows.",
        param=f"provider.max_price.{facts.over_price}",
    )


def _cost(_grant: grant_pb2.Grant, facts: CallFacts, _now: float) -> GatewayError | None:
    most = facts.cost_max_nano_usd
    if most is None:
        return None
    bound = facts.cost_bound()
    if bound is not None and bound <= most:
        return None
    could = "cannot be bounded" if bound is None else f"may reach {bound / NANO_PER_USD:.9f} USD"
    return GatewayError(
        error_pb2.ERROR_REASON_INVALID_REQUEST,
        f"The cost of this call {could}, above the bound of {most / NANO_PER_USD:.9f} USD that it "
        "names. Set or lower max_completion_tokens, send less, or raise x-onegate-max-cost.",
        param="x-onegate-max-cost",
    )


POLICIES: Final[tuple[Policy, ...]] = (
    Policy(name="enabled", reason=error_pb2.ERROR_REASON_KEY_DISABLED, judge=_enabled),
    Policy(name="expiry", reason=error_pb2.ERROR_REASON_KEY_EXPIRED, judge=_expiry),
    Policy(name="kind", reason=error_pb2.ERROR_REASON_SCOPE_MISSING, judge=_kind),
    Policy(name="network", reason=error_pb2.ERROR_REASON_ADDRESS_FORBIDDEN, judge=_network),
    Policy(name="scope", reason=error_pb2.ERROR_REASON_SCOPE_MISSING, judge=_scope),
    Policy(name=MODEL, reason=error_pb2.ERROR_REASON_MODEL_FORBIDDEN, judge=_model),
    Policy(name="owner", reason=error_pb2.ERROR_REASON_MODEL_FORBIDDEN, judge=_owner),
    Policy(name="data", reason=error_pb2.ERROR_REASON_DATA_POLICY, judge=_data),
    Policy(name="price", reason=error_pb2.ERROR_REASON_MODEL_PRICE_UNKNOWN, judge=_price),
    Policy(name="price-max", reason=error_pb2.ERROR_REASON_INVALID_REQUEST, judge=_price_max),
    Policy(name="cost", reason=error_pb2.ERROR_REASON_INVALID_REQUEST, judge=_cost),
)
"""In this order: who is asking, from where, for what, with which data, at what price."""
