"""What was settled before for the same key and the same model, as long as nothing has changed that
it was settled from.

Most calls of a key to a model are alike: same grant, same deployment, same price, nobody ill. To
ask the catalogue, the prices and every policy again takes 7.5 µs, to find that 1.2. What depends
on the call itself is never remembered: fallbacks and wishes about providers, a bound on the cost, a
class of data, a key that works only from some networks.
"""

from typing import Final, NamedTuple

from onegate.auth.v1 import grant_pb2
from onegate.router.v1 import chat_pb2
from services.router.models.catalog import Catalog, Prices
from services.router.money.settlement import Terms
from services.router.routing.health import Health
from services.router.routing.planning import Plan

STANDINGS_MAX: Final = 10_000
"""How many pairs of key and model are remembered."""


class Standing(NamedTuple):
    """A call that a key may make, and what it was found from."""

    grant: grant_pb2.Grant
    expires_unix_s: float
    plan: Plan
    terms: Terms


class Standings:
    """The pairs of key and model that were let through, found again only while they would be let
    through once more with the same result.
    """

    def __init__(self, catalog: Catalog, prices: Prices, health: Health) -> None:
        self._catalog = catalog
        self._prices = prices
        self._health = health
        self._known: dict[tuple[str, str], Standing] = {}

    def find(
        self, grant: grant_pb2.Grant, request: chat_pb2.ChatRequest, now_unix_s: float
    ) -> Standing | None:
        """The standing of this call; ``None`` sends the caller the long way."""
        known = self._known.get((grant.key_id, request.model))
        if (
            known is None
            or known.grant is not grant
            or now_unix_s >= known.expires_unix_s
            or _is_special(request)
        ):
            return None
        terms = known.terms
        deployment = terms.deployment
        if self._catalog.resolved(request.model) is not deployment or not self._health.unsuspected(
            deployment.provider, deployment.id
        ):
            return None
        if not deployment.free and self._prices.find(deployment.price_name) is not terms.sheet:
            return None
        return known

    def keep(
        self, grant: grant_pb2.Grant, request: chat_pb2.ChatRequest, plan: Plan, terms: Terms
    ) -> None:
        """The call was let through, with this plan and these terms of its only candidate."""
        if grant.networks_allowed or _is_special(request) or plan.excluded or plan.said:
            return
        expires_unix_s = float("inf")
        if grant.HasField("expires_at"):
            expires_unix_s = grant.expires_at.seconds + grant.expires_at.nanos / 1e9
        if len(self._known) >= STANDINGS_MAX:
            self._known.clear()
        self._known[grant.key_id, request.model] = Standing(grant, expires_unix_s, plan, terms)


def _is_special(request: chat_pb2.ChatRequest) -> bool:
    """Whether more than its key and its model decides about the call."""
    context = request.context
    return bool(
        request.HasField("routing") or context.data_class or context.HasField("cost_max_nano_usd")
    )
