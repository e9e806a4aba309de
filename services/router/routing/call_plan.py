"""The whole plan of a call: names become deployments, rules judge them, breakers leave some out.

A call and a dry run ask here, so that what is explained is what happens. Pure.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Protocol

from onegate.auth.v1 import grant_pb2
from onegate.router.v1 import chat_pb2
from onegate.usage.v1 import price_pb2
from runtime.errors import GatewayError
from runtime.route_settings import RouteSettings
from services.router.limits import bounds
from services.router.models.catalog import Deployment
from services.router.routing.observed import Observed
from services.router.routing.planning import Plan, is_alone, make_plan, with_rescue, without_broken
from services.router.routing.routes import Asked, Look, Routes

PREFIX_BYTES: Final = 1024
"""How much of a prompt's beginning tells which session it belongs to, where nothing else does."""

Resolve = Callable[[str], Deployment]
Judge = Callable[[Deployment], GatewayError | None]
Seats = Callable[[Deployment], Sequence[str]]


class Models(Protocol):
    """What is asked of the catalogue."""

    def resolve(self, model: str) -> Deployment:
        """The deployment of a name. Raises MODEL_NOT_FOUND."""
        ...

    def offering(self, model: str) -> Sequence[str]:
        """The deployments that have a bare name."""
        ...

    def lacks(self, deployment: Deployment, needs: frozenset[int]) -> bool:
        """Whether the deployment is known not to have one of some ``ChatFeature``."""
        ...


class Prices(Protocol):
    """What is asked of the price book."""

    def find(self, model: str) -> price_pb2.PriceSheet | None:
        """The sheet in force."""
        ...


def plan_call(
    asked: Asked, routes: Routes, look: Callable[[], Look], resolve: Resolve, judge: Judge
) -> Plan:
    """Whom to try, in which order, and why nobody else.

    Args:
        asked: what the call names.
        routes: as they are configured.
        look: what is known at this moment; asked for only where it counts.
        resolve: finds a deployment by name, or raises.
        judge: why a deployment cannot serve at this moment; ``None`` when it can.
    """
    if not routes.concerns(asked):
        return make_plan(asked.models, asked.preferences, resolve, judge)
    known = look()
    expanded = routes.expand(asked, known)
    plan = make_plan(expanded.models, asked.preferences, resolve, judge)
    if expanded.said:
        # What the caller names itself is asked, whatever has happened there.
        plan = without_broken(plan, known.broken_s)
    if expanded.rescue and not is_alone(asked.preferences):
        others = {
            int(reason): make_plan(names, asked.preferences, resolve, judge)
            for reason, names in expanded.rescue.items()
        }
        plan = with_rescue(plan, others)
    return replace(plan, route=expanded.route, said=expanded.said)


def asked_of(grant: grant_pb2.Grant, request: chat_pb2.ChatRequest, request_id: str) -> Asked:
    """What a call names, and what makes it like others."""
    routing = request.routing if request.HasField("routing") else None
    return Asked(
        models=(request.model, *routing.fallback_models) if routing else (request.model,),
        preferences=routing,
        key=request_id.encode(),
        session=_session(grant, request),
        input_tokens=bounds.input_tokens_guess(request),
        request=request,
    )


def look_of(
    models: Models,
    prices: Prices,
    observed: Observed,
    now_s: float,
    seats: Seats = lambda deployment: (deployment.id,),
) -> Look:
    """What is known at this moment. ``seats`` are the names under which failures and limits of a
    deployment are seen: one for each credential that the call may go out with.
    """

    def deployment(name: str) -> Deployment | None:
        try:
            return models.resolve(name)
        except GatewayError:
            return None

    def rate(name: str) -> float:
        found = deployment(name)
        if found is None:
            return float("inf")
        sheet = None if found.free else prices.find(found.price_name)
        return 0.0 if found.free or (sheet and sheet.free) else _blended(sheet)

    def seated(name: str) -> Sequence[str]:
        found = deployment(name)
        return (found and seats(found)) or (name,)

    return Look(
        seen=observed.find,
        rate=rate,
        window=lambda name: found.context_tokens_max if (found := deployment(name)) else 0,
        lacks=lambda name, needs: bool((found := deployment(name)) and models.lacks(found, needs)),
        offering=models.offering,
        resolves=lambda name: deployment(name) is not None,
        # A deployment fails, or is used up, when it does with every credential.
        broken_s=lambda name: min(observed.broken_s(seat, now_s) for seat in seated(name)),
        full=lambda name: all(observed.full(seat, now_s) for seat in seated(name)),
        now_s=now_s,
    )


def hedge_after_s(route: RouteSettings, observed: Observed, model: str, *, stream: bool) -> float:
    """How long an attempt at a deployment may be silent before another one is made beside it; 0
    for as long as it may be anyway.
    """
    if not route.hedge:
        return 0.0
    seen = observed.find(model)
    return route.hedge_after_s or (seen.slow_s(stream=stream) if seen is not None else 0.0)


def _blended(sheet: price_pb2.PriceSheet | None) -> float:
    """A token in and a token out, as good as any mixture to compare prices by."""
    if sheet is None:
        return float("inf")
    return sum(
        rate.nano_usd_per_million
        for rate in sheet.rates
        if rate.meter in (price_pb2.METER_INPUT_TOKENS, price_pb2.METER_OUTPUT_TOKENS)
        and not (rate.above_input_tokens or rate.service_tier)
    )


def _session(grant: grant_pb2.Grant, request: chat_pb2.ChatRequest) -> bytes:
    """The same for calls that share a prompt's beginning: what the caller says, else how it
    begins. Sessions of different projects have nothing in common.
    """
    said = request.prompt_cache_key or request.context.run
    if said:
        return f"{grant.project_id}\0{said}".encode()
    if request.HasField("native"):
        begins = request.native.body[:PREFIX_BYTES]
    else:
        begins = b"".join(m.SerializeToString() for m in request.messages[:2])[:PREFIX_BYTES]
    return grant.project_id.encode() + b"\0" + begins
