"""From the names that a caller writes to the deployments behind them, in the order in which they
should be tried: routes, bare names that several providers have, and the caller's own wishes.

Pure: facts in, names out. The same key always leads to the same order while the facts are the same,
in every router: a call's own id spreads calls by weight, a session's keeps its calls together.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.route_settings import RouteSettings, RouteTarget
from services.router.routing.observed import Seen

SUFFIXES: Final = {
    "floor": chat_pb2.PROVIDER_SORT_PRICE,
    "nitro": chat_pb2.PROVIDER_SORT_THROUGHPUT,
}
"""What may stand behind a model's name (https://openrouter.ai/docs/features/provider-routing)."""
NAMES_MAX: Final = 64
"""How many deployments one call considers at most."""

_BY_SORT: Final[Mapping[int, str]] = {
    chat_pb2.PROVIDER_SORT_PRICE: "cost",
    chat_pb2.PROVIDER_SORT_THROUGHPUT: "throughput",
    chat_pb2.PROVIDER_SORT_LATENCY: "latency",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a call names, and what makes it like others.

    Attributes:
        models: in the caller's order, at least one.
        preferences: what it wants of providers; ``None`` for no wishes.
        key: its own, different for each call.
        session: the same for all calls that share a prompt's beginning.
        input_tokens: about how many.
        request: the call itself, for what only policies ask.
    """

    models: tuple[str, ...]
    preferences: chat_pb2.RoutingPreferences | None = None
    key: bytes = b""
    session: bytes = b""
    input_tokens: int = 0
    request: chat_pb2.ChatRequest = field(default_factory=chat_pb2.ChatRequest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is known at this moment, for deployments by name.

    Attributes:
        seen: what has been observed; ``None`` for nothing.
        rate: its price, for comparison only; infinite when it is not known.
        window: its most tokens; 0 when that is not known.
        lacks: whether it is known not to have one of some ``ChatFeature``.
        offering: the deployments that have a bare name.
        resolves: whether a name means one deployment as it stands.
        broken_s: for how much longer a deployment's breaker keeps calls away; 0 for not at all.
        full: whether its provider has said that it would refuse a call now.
        now_s: monotonic seconds.
    """

    seen: Callable[[str], Seen | None]
    rate: Callable[[str], float]
    window: Callable[[str], int]
    lacks: Callable[[str, frozenset[int]], bool]
    offering: Callable[[str], Sequence[str]]
    resolves: Callable[[str], bool]
    broken_s: Callable[[str], float]
    full: Callable[[str], bool]
    now_s: float


@dataclass(slots=True, kw_only=True)
class Expanded:
    """The names to try.

    Attributes:
        models: deployments, or what the caller wrote where it is none.
        rescue: deployments to try only after a failure for a reason.
        said: which route was taken and by what it chose, for people; empty for none.
        route: the first that was taken.
    """

    models: list[str] = field(default_factory=list)
    rescue: dict[error_pb2.ErrorReason.ValueType, list[str]] = field(default_factory=dict)
    said: str = ""
    route: RouteSettings | None = None


class Policies(Protocol):
    """What chooses by what a call is like. ``services/router/routing/policies.py``."""

    @property
    def names(self) -> Sequence[str]:
        """The names that callers may use, in order."""
        ...

    def models(self, name: str) -> Sequence[str]:
        """All deployments that the policy of this name may choose; none when there is none."""
        ...

    def choose(
        self, name: str, request: chat_pb2.ChatRequest, look: "Look"
    ) -> tuple[list[str], str]:
        """The deployments for a call, the best first; and by what they were chosen."""
        ...


class NoPolicies:
    """Nothing is chosen by what a call is like."""

    names: Sequence[str] = ()

    def models(self, _name: str) -> Sequence[str]:
        """None."""
        return ()

    def choose(
        self, name: str, _request: chat_pb2.ChatRequest, _look: "Look"
    ) -> tuple[list[str], str]:
        """Never asked."""
        return [name], ""


class Routes:
    """The routes as they are configured, and the policies beside them."""

    def __init__(
        self, settings: Iterable[RouteSettings] = (), policies: Policies | None = None
    ) -> None:
        self._by_name = {route.name: route for route in settings}
        self._policies: Policies = policies or NoPolicies()

    @property
    def names(self) -> Sequence[str]:
        """What callers may name beside models: routes, then policies."""
        return [*self._by_name, *self._policies.names]

    def is_policy(self, name: str) -> bool:
        """Whether something is chosen for each call of this name by what the call is like."""
        return name not in self._by_name and name in self._policies.names

    def find(self, name: str) -> RouteSettings | None:
        """The route of this name, also with a suffix behind it."""
        return self._by_name.get(name) or self._by_name.get(_split(name)[0])

    def reachable(self, name: str) -> list[str]:
        """Every deployment that a call of this name may come to; the name itself for no route."""
        first = self.find(name)
        if first is None:
            return list(self._policies.models(name)) or [name]
        found: dict[str, None] = {}
        ahead, seen = [first], {first.name}
        while ahead:
            route = ahead.pop()
            found.update(dict.fromkeys(target.model for target in route.to))
            found.update(dict.fromkeys((*route.context_fallbacks, *route.content_fallbacks)))
            for fallback in route.fallbacks:
                following = self._by_name.get(fallback)
                if following is None:
                    found[fallback] = None
                elif following.name not in seen:
                    seen.add(following.name)
                    ahead.append(following)
        return list(found)

    def concerns(self, asked: Asked) -> bool:
        """Whether there is anything to expand: no for a call that names deployments only."""
        if asked.preferences is not None:
            return True
        return any(
            self.find(name) is not None or _split(name)[1] or self._policies.models(name)
            for name in asked.models
        )

    def expand(self, asked: Asked, look: Look) -> Expanded:
        """The names behind the names."""
        expanded = Expanded()
        for name in asked.models:
            self._take(name, asked, look, expanded)
        # Each once, where it comes first.
        expanded.models = list(dict.fromkeys(expanded.models))[:NAMES_MAX]
        return expanded

    def _take(self, name: str, asked: Asked, look: Look, into: Expanded) -> None:
        wishes = asked.preferences
        sort = wishes.sort if wishes is not None else chat_pb2.PROVIDER_SORT_UNSPECIFIED
        route = self._by_name.get(name)
        if route is None and self._policies.models(name):
            models, said = self._policies.choose(name, asked.request, look)
            into.models += models
            into.said = into.said or said
            return
        if route is None and not look.resolves(name):
            base, suffix = _split(name)
            if suffix:
                name, sort, route = base, suffix, self._by_name.get(base)
        if route is not None:
            self._follow(route, _BY_SORT.get(sort, ""), asked, look, into)
            return
        choosy = wishes is not None and (wishes.provider_order or wishes.provider_only)
        offered = look.offering(name) if (sort or choosy) and not look.resolves(name) else ()
        targets = [RouteTarget(model=model) for model in offered]
        by = _BY_SORT.get(sort, "weight")
        into.models += ranked(targets, by, asked.key, asked.input_tokens, look) or [name]
        if sort and offered:
            into.said = into.said or f"{name}; {by}"

    def _follow(
        self, route: RouteSettings, sort: str, asked: Asked, look: Look, into: Expanded
    ) -> None:
        by = sort or ("affinity" if route.affinity else route.spread)
        key = asked.session if by == "affinity" else asked.key
        if all(0 < look.window(target.model) < asked.input_tokens for target in route.to):
            into.models += route.context_fallbacks
        into.models += ranked(route.to, by, key, asked.input_tokens, look)
        if into.route is None:
            into.route = route
            into.said = f"{route.name}; {by}"
        for reason, names in (
            (error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED, route.context_fallbacks),
            (error_pb2.ERROR_REASON_CONTENT_POLICY, route.content_fallbacks),
        ):
            if names:
                into.rescue.setdefault(reason, []).extend(names)
        for fallback in route.fallbacks:
            following = self._by_name.get(fallback)
            if following is None:
                into.models.append(fallback)
            elif len(into.models) < NAMES_MAX:
                self._follow(following, sort, asked, look, into)


def ranked(
    targets: Sequence[RouteTarget], by: str, key: bytes, input_tokens: int, look: Look
) -> list[str]:
    """Deployments in the order in which they should be tried.

    Those that can take the input go before those whose window is certainly too small for it, those
    whose limit is used up after the others; then priority, then what the spread measures, then
    chance by weight.
    """

    def place(target: RouteTarget) -> tuple[float, ...]:
        model = target.model
        window = look.window(model)
        seen = look.seen(model)
        return (
            0 < window < input_tokens,
            look.full(model),
            target.weight == 0,
            target.priority,
            _measure(by, target, seen, look),
            -share(key, model, target.weight),
        )

    return [target.model for target in sorted(targets, key=place)]


def share(key: bytes, model: str, weight: float) -> float:
    """How strongly the key belongs to the deployment: over all keys, each is first for its weight's
    share of them, and when one leaves only its own keys move (weighted rendezvous hashing,
    https://datatracker.ietf.org/doc/html/draft-ietf-bess-weighted-hrw).
    """
    mixed = hashlib.blake2b(key + b"\0" + model.encode(), digest_size=8).digest()
    chance = (int.from_bytes(mixed, "big") + 0.5) / 2**64
    return -weight / math.log(chance) if chance < 1.0 else math.inf


def _measure(by: str, target: RouteTarget, seen: Seen | None, look: Look) -> float:
    """What the spread goes by; less is better."""
    if by == "cost":
        return look.rate(target.model)
    if seen is None:
        # Whoever was never asked is asked: nothing else would tell.
        return -math.inf if by == "throughput" else 0.0
    if by == "least-outstanding":
        return seen.outstanding / (target.weight or 1.0)
    if by == "latency":
        return seen.latency_s(look.now_s)
    if by == "throughput":
        return -seen.tokens_per_s
    return 0.0


def _split(name: str) -> tuple[str, chat_pb2.ProviderSort.ValueType]:
    """The name and what its suffix asks for."""
    base, colon, suffix = name.rpartition(":")
    if colon and base and suffix in SUFFIXES:
        return base, SUFFIXES[suffix]
    return name, chat_pb2.PROVIDER_SORT_UNSPECIFIED
