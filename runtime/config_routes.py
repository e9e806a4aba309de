"""Reads ``[[route]]`` and ``[[policy]]`` tables: what each says, and whether they fit together."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from runtime.config_fields import Field, checked, fields_of
from runtime.route_settings import (
    PolicyModel,
    PolicyRule,
    PolicySettings,
    RouteSettings,
    RouteTarget,
)
from runtime.rules import did_you_mean

ROUTES_MAX: Final = 1000
"""How many routes there may be."""
TARGETS_MAX: Final = 64
"""How many deployments one route may have."""

_ROUTE: Final = "route"
_TO: Final = "to"
_FIELDS: Final = {k: f for k, f in fields_of(RouteSettings).items() if k != _TO}
_TARGET_FIELDS: Final = fields_of(RouteTarget)
_POLICY: Final = "policy"
_POLICY_FIELDS: Final = {
    k: f for k, f in fields_of(PolicySettings).items() if k not in ("model", "rule")
}
_POLICY_PARTS: Final[Mapping[str, type[Any]]] = {"model": PolicyModel, "rule": PolicyRule}
_NEEDED: Final[Mapping[str, tuple[str, ...]]] = {"model": ("model",), "rule": ("name", "models")}
_PARTS: Final[Mapping[str | int, tuple[str, ...]]] = {
    _ROUTE: (_TO,),
    _POLICY: tuple(_POLICY_PARTS),
}
_DEPLOYMENTS: Final = ("context_fallbacks", "content_fallbacks")

Where = Callable[..., str]
"""``file:line`` of a setting, by its path."""
Refuse = Callable[[str, str], None]
"""Takes note of a fault: where, and what is wrong."""


@dataclass(frozen=True, slots=True)
class _Reader:
    where: Where
    refuse: Refuse

    def table(
        self, table: Mapping[str, Any], known: Mapping[str, Field], path: Sequence[str | int]
    ) -> dict[str, Any] | None:
        """The settings of one table; ``None`` when something is wrong with them."""
        name = ".".join(part for part in path if isinstance(part, str))
        values: dict[str, Any] = {}
        sound = True
        for key, value in table.items():
            if key not in known:
                guess = did_you_mean(key, {*known, *(_PARTS[path[0]] if len(path) == 2 else ())})
                self.refuse(self.where(*path, key), f"there is no setting {name}.{key}{guess}")
                sound = False
                continue
            try:
                values[key] = checked(value, known[key])
            except ValueError as error:
                self.refuse(self.where(*path, key), f"{name}.{key} {error}")
                sound = False
        return values if sound else None

    def tables(self, value: object, path: Sequence[str | int]) -> list[dict[str, Any]]:
        """An array of tables; empty when it is none."""
        if isinstance(value, list) and all(isinstance(table, dict) for table in value):
            return value
        name = ".".join(part for part in path if isinstance(part, str))
        self.refuse(self.where(*path), f"{name} is written as [[{name}]] tables")
        return []


def take_routes(
    document: Mapping[str, Any], where: Where, refuse: Refuse, providers: Iterable[str] | None
) -> tuple[RouteSettings, ...]:
    """Every ``[[route]]`` that can be understood.

    Args:
        document: the whole file.
        where: says where in it a setting stands.
        refuse: told of every fault.
        providers: the names of all providers; ``None`` where they are not known.
    """
    reader = _Reader(where, refuse)
    tables = reader.tables(document[_ROUTE], (_ROUTE,))
    if len(tables) > ROUTES_MAX:
        refuse(where(_ROUTE), f"there are more than {ROUTES_MAX:,} routes")
        return ()
    routes: dict[str, RouteSettings] = {}
    for index, table in enumerate(tables):
        route = _route(reader, index, table)
        if route is None:
            continue
        if route.name in routes:
            refuse(where(_ROUTE, index, "name"), f'there is a route "{route.name}" already')
        routes[route.name] = route
        if providers is not None:
            _check_providers(reader, index, route, set(providers))
    for index, table in enumerate(tables):
        _check_fallbacks(reader, index, table, routes)
    return tuple(routes.values())


def _route(reader: _Reader, index: int, table: dict[str, Any]) -> RouteSettings | None:
    own = {key: value for key, value in table.items() if key != _TO}
    values = reader.table(own, _FIELDS, (_ROUTE, index))
    place = reader.where(_ROUTE, index)
    targets = reader.tables(table[_TO], (_ROUTE, index, _TO)) if _TO in table else []
    taken: list[RouteTarget] = []
    for number, target in enumerate(targets):
        path = (_ROUTE, index, _TO, number)
        said = reader.table(target, _TARGET_FIELDS, path)
        if said is None:
            values = None
        elif "model" not in said:
            reader.refuse(reader.where(*path), "a route.to needs model")
            values = None
        else:
            taken.append(RouteTarget(**said))
    if "name" not in table:
        reader.refuse(place, "a route needs name")
        return None
    if not targets or len(targets) > TARGETS_MAX:
        reader.refuse(place, f"a route needs 1 to {TARGETS_MAX} deployments: [[route.to]]")
        return None
    if len({target.model for target in taken}) < len(taken):
        reader.refuse(place, "a route names each deployment once")
        return None
    if values is None:
        return None
    route = RouteSettings(**values, to=tuple(taken))
    if bool(route.mirror_to) is not bool(route.mirror_percent):
        reader.refuse(place, "a route that mirrors needs mirror_to and mirror_percent")
    return route


def _check_providers(
    reader: _Reader, index: int, route: RouteSettings, providers: set[str]
) -> None:
    named = [
        *((target.model, (_TO, number, "model")) for number, target in enumerate(route.to)),
        *((model, (key,)) for key in _DEPLOYMENTS for model in getattr(route, key)),
        *([(route.mirror_to, ("mirror_to",))] if route.mirror_to else []),
    ]
    for model, path in named:
        provider = model.partition("/")[0]
        if providers and provider not in providers:
            guess = did_you_mean(provider, providers)
            reader.refuse(
                reader.where(_ROUTE, index, *path), f'there is no provider "{provider}"{guess}'
            )


def _check_fallbacks(
    reader: _Reader, index: int, table: Mapping[str, Any], routes: Mapping[str, RouteSettings]
) -> None:
    """A fallback is another route or a deployment, and no chain comes back to where it began."""
    name = table.get("name")
    route = routes.get(name) if isinstance(name, str) else None
    if route is None:
        return
    for fallback in route.fallbacks:
        if fallback not in routes and "/" not in fallback:
            where = reader.where(_ROUTE, index, "fallbacks")
            guess = did_you_mean(fallback, routes)
            reader.refuse(where, f'route.fallbacks: there is no route "{fallback}"{guess}')
    seen: set[str] = set()
    ahead = list(route.fallbacks)
    while ahead:
        following = ahead.pop()
        if following == route.name:
            where = reader.where(_ROUTE, index, "fallbacks")
            reader.refuse(where, f'route.fallbacks lead from "{route.name}" back to itself')
            return
        if following in routes and following not in seen:
            seen.add(following)
            ahead += routes[following].fallbacks


def take_policies(
    document: Mapping[str, Any], where: Where, refuse: Refuse, providers: Iterable[str] | None
) -> tuple[PolicySettings, ...]:
    """Every ``[[policy]]`` that can be understood; as :func:`take_routes`."""
    reader = _Reader(where, refuse)
    tables = reader.tables(document[_POLICY], (_POLICY,))
    if len(tables) > ROUTES_MAX:
        refuse(where(_POLICY), f"there are more than {ROUTES_MAX:,} policies")
        return ()
    names = {table.get("name") for table in document.get(_ROUTE) or () if isinstance(table, dict)}
    policies: dict[str, PolicySettings] = {}
    for index, table in enumerate(tables):
        policy = _policy(reader, index, table)
        if policy is None:
            continue
        if policy.name in policies or policy.name in names:
            place = where(_POLICY, index, "name")
            refuse(place, f'there is a route or policy "{policy.name}" already')
        policies[policy.name] = policy
        for number, one in enumerate(policy.model):
            provider = one.model.partition("/")[0]
            if providers and provider not in set(providers):
                place = where(_POLICY, index, "model", number, "model")
                refuse(
                    place, f'there is no provider "{provider}"{did_you_mean(provider, providers)}'
                )
    return tuple(policies.values())


def _policy(reader: _Reader, index: int, table: dict[str, Any]) -> PolicySettings | None:
    place = reader.where(_POLICY, index)
    own = {key: value for key, value in table.items() if key not in _POLICY_PARTS}
    values = reader.table(own, _POLICY_FIELDS, (_POLICY, index))
    parts: dict[str, list[Any]] = {}
    for key, cls in _POLICY_PARTS.items():
        found = reader.tables(table[key], (_POLICY, index, key)) if key in table else []
        parts[key] = []
        for number, inner in enumerate(found):
            path = (_POLICY, index, key, number)
            said = reader.table(inner, fields_of(cls), path)
            needed = [name for name in _NEEDED[key] if name not in inner]
            for name in needed:
                reader.refuse(reader.where(*path), f"a policy.{key} needs {name}")
            if said is None or needed:
                values = None
            else:
                parts[key].append(cls(**said))
    if "name" not in table:
        reader.refuse(place, "a policy needs name")
        return None
    if not 1 <= len(table.get("model", ())) <= TARGETS_MAX:
        reader.refuse(place, f"a policy needs 1 to {TARGETS_MAX} models: [[policy.model]]")
        return None
    known = {one.model for one in parts["model"]}
    for number, rule in enumerate(parts["rule"]):
        for model in sorted(set(rule.models) - known):
            named = reader.where(_POLICY, index, "rule", number, "models")
            guess = did_you_mean(model, known)
            reader.refuse(named, f'the policy has no model "{model}"{guess}')
    if values is None:
        return None
    return PolicySettings(**values, model=tuple(parts["model"]), rule=tuple(parts["rule"]))
