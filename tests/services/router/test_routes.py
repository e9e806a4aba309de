"""Routes: from a logical model to deployments in the order in which they are tried."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.route_settings import RouteSettings, RouteTarget
from services.router.routing.observed import Observed
from services.router.routing.routes import NAMES_MAX, Asked, Look, Routes

NOW_S = 1000.0
CONTEXT = error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED
CONTENT = error_pb2.ERROR_REASON_CONTENT_POLICY


def target(model: str, weight: float = 1.0, priority: int = 0) -> RouteTarget:
    return RouteTarget(model=model, weight=weight, priority=priority)


def route(*to: RouteTarget, name: str = "r", **fields: Any) -> RouteSettings:
    return RouteSettings(name=name, to=to, **fields)


def look(
    observed: Observed | None = None,
    rates: Mapping[str, float] | None = None,
    windows: Mapping[str, int] | None = None,
    offers: Mapping[str, Sequence[str]] | None = None,
) -> Look:
    return Look(
        seen=(observed or Observed()).find,
        rate=lambda model: (rates or {}).get(model, float("inf")),
        window=lambda model: (windows or {}).get(model, 0),
        lacks=lambda _model, _needs: False,
        offering=lambda model: (offers or {}).get(model, ()),
        resolves=lambda model: "/" in model,
        broken_s=lambda _: 0.0,
        full=lambda model: (observed or Observed()).full(model, NOW_S),
        now_s=NOW_S,
    )


def tried(
    *routes: RouteSettings, asked: str | Asked = "r", known: Look | None = None, key: str = "k"
) -> list[str]:
    if isinstance(asked, str):
        asked = Asked(models=(asked,), key=key.encode(), session=key.encode())
    return Routes(routes).expand(asked, known or look()).models


def test_a_name_that_is_no_route_stays_as_it_is() -> None:
    assert tried(route(target("a/m")), asked="b/m") == ["b/m"]
    assert tried(asked="nowhere") == ["nowhere"]
    assert not Routes().concerns(Asked(models=("b/m",)))


def test_calls_spread_by_weight() -> None:
    both = route(target("a/m", 9.0), target("b/m", 1.0))
    first = Counter(tried(both, key=f"call-{n}")[0] for n in range(10_000))
    assert 8_850 < first["a/m"] < 9_150
    assert set(tried(both)) == {"a/m", "b/m"}


def test_a_deployment_of_no_weight_waits_until_all_others_have_failed() -> None:
    both = route(target("a/m", 0.0), target("b/m", 0.001), target("c/m", 1.0, priority=5))
    assert {tuple(tried(both, key=f"{n}")) for n in range(100)} == {("b/m", "c/m", "a/m")}


def test_a_lower_priority_goes_first_whatever_the_weight() -> None:
    both = route(target("a/m", 1000.0, 1), target("b/m", 0.001, 0))
    assert {tried(both, key=f"{n}")[0] for n in range(200)} == {"b/m"}


def test_a_session_stays_where_it_is_and_only_the_sessions_of_a_lost_deployment_move() -> None:
    three = [target("a/m"), target("b/m"), target("c/m")]
    before = {n: tried(route(*three, affinity=True), key=f"{n}")[0] for n in range(500)}
    after = {n: tried(route(*three[:2], affinity=True), key=f"{n}")[0] for n in range(500)}
    assert all(after[n] == before[n] for n in before if before[n] != "c/m")
    assert len(set(before.values())) == 3


def test_affinity_goes_by_the_session_and_weight_by_the_call() -> None:
    calls = [Asked(models=("r",), key=f"{n}".encode(), session=b"s") for n in range(50)]
    two = (target("a/m"), target("b/m"))
    assert len({tried(route(*two, affinity=True), asked=call)[0] for call in calls}) == 1
    assert len({tried(route(*two), asked=call)[0] for call in calls}) == 2


def test_the_least_busy_goes_first_for_its_weight() -> None:
    observed = Observed()
    for model, calls in (("a/m", 3), ("b/m", 2), ("c/m", 9)):
        for _ in range(calls):
            observed.of(model).begin(NOW_S)
    busy = route(target("a/m"), target("b/m"), target("c/m", 10.0), spread="least-outstanding")
    assert tried(busy, known=look(observed)) == ["c/m", "b/m", "a/m"]


def test_the_quickest_goes_first_and_who_is_new_before_all() -> None:
    observed = Observed()
    for model, first_s in (("a/m", 0.9), ("b/m", 0.2)):
        observed.of(model).succeeded(first_s, 10, 1.0, NOW_S)
    quick = route(target("a/m"), target("b/m"), target("c/m"), spread="latency")
    assert tried(quick, known=look(observed)) == ["c/m", "b/m", "a/m"]
    for _ in range(9):
        observed.of("b/m").begin(NOW_S)
        observed.of("c/m").begin(NOW_S)
    assert tried(quick, known=look(observed)) == ["a/m", "b/m", "c/m"]


def test_the_one_that_streams_fastest_goes_first() -> None:
    observed = Observed()
    for model, tokens in (("a/m", 50), ("b/m", 500)):
        observed.of(model).succeeded(0.1, tokens, 1.0, NOW_S)
    fast = route(target("a/m"), target("b/m"), spread="throughput")
    assert tried(fast, known=look(observed)) == ["b/m", "a/m"]


def test_the_cheapest_goes_first_and_who_has_no_price_last() -> None:
    cheap = route(target("a/m"), target("b/m"), target("c/m"), spread="cost")
    assert tried(cheap, known=look(rates={"b/m": 5.0, "c/m": 2.0})) == ["c/m", "b/m", "a/m"]


def test_who_has_said_that_its_limit_is_used_up_goes_last_until_it_is_not() -> None:
    observed = Observed()
    observed.of("a/m").limited(2.0, NOW_S - 1)
    both = route(target("a/m", 1000.0), target("b/m", 0.1, priority=1))
    assert tried(both, known=look(observed)) == ["b/m", "a/m"]
    observed = Observed()
    observed.of("a/m").limited(2.0, NOW_S - 3)
    assert tried(both, known=look(observed)) == ["a/m", "b/m"]


def test_fallbacks_follow_routes_and_deployments_once_each() -> None:
    first = route(target("a/m"), fallbacks=("s", "d/m"))
    second = route(target("b/m"), target("a/m", priority=1), name="s", fallbacks=("c/m",))
    assert tried(first, second) == ["a/m", "b/m", "c/m", "d/m"]
    routes = Routes([first, second])
    assert set(routes.reachable("r")) == {"a/m", "b/m", "c/m", "d/m"}
    assert routes.reachable("x/m") == ["x/m"]


def test_fallbacks_for_a_reason_are_kept_apart() -> None:
    one = route(target("a/m"), context_fallbacks=("long/m",), content_fallbacks=("free/m",))
    expanded = Routes([one]).expand(Asked(models=("r",)), look())
    assert expanded.models == ["a/m"]
    assert expanded.rescue == {CONTEXT: ["long/m"], CONTENT: ["free/m"]}
    assert set(Routes([one]).reachable("r")) == {"a/m", "long/m", "free/m"}


def test_an_input_that_fits_nowhere_goes_to_the_fallback_for_it_at_once() -> None:
    one = route(target("a/m"), target("b/m", 0.001), context_fallbacks=("long/m",))
    known = look(windows={"a/m": 100, "b/m": 5_000})
    short, longer, longest = (
        Asked(models=("r",), key=b"0", input_tokens=tokens) for tokens in (50, 500, 50_000)
    )
    assert tried(one, asked=short, known=known) == ["a/m", "b/m"]
    assert tried(one, asked=longer, known=known) == ["b/m", "a/m"]
    assert tried(one, asked=longest, known=known)[0] == "long/m"


@pytest.mark.parametrize(("suffix", "first"), [("floor", "a/m"), ("nitro", "b/m")])
def test_a_suffix_orders_by_price_or_speed(suffix: str, first: str) -> None:
    observed = Observed()
    observed.of("a/m").succeeded(0.1, 10, 1.0, NOW_S)
    observed.of("b/m").succeeded(0.1, 99, 1.0, NOW_S)
    known = look(observed, {"a/m": 1.0, "b/m": 2.0}, offers={"m": ["b/m", "a/m"]})
    both = route(target("a/m", 0.5), target("b/m", 0.5))
    assert tried(both, asked=f"r:{suffix}", known=known)[0] == first
    assert tried(asked=f"m:{suffix}", known=known)[0] == first
    # A deployment that is really called so is left alone.
    assert tried(asked=f"a/m:{suffix}", known=known) == [f"a/m:{suffix}"]


def test_a_bare_name_means_all_who_have_it_when_the_caller_says_how_to_choose() -> None:
    known = look(rates={"a/m": 2.0, "b/m": 1.0}, offers={"m": ["a/m", "b/m"]})
    wishes = chat_pb2.RoutingPreferences(sort=chat_pb2.PROVIDER_SORT_PRICE)
    assert tried(asked=Asked(models=("m",), preferences=wishes), known=known) == ["b/m", "a/m"]
    wishes = chat_pb2.RoutingPreferences(provider_order=["b"])
    found = tried(asked=Asked(models=("m",), preferences=wishes), known=known)
    assert sorted(found) == ["a/m", "b/m"]
    assert tried(asked=Asked(models=("m",)), known=known) == ["m"]


def test_what_is_said_names_the_route_and_what_it_chose_by() -> None:
    one = route(target("a/m"), spread="cost", fallbacks=("s",))
    two = route(target("b/m"), name="s", affinity=True)
    routes = Routes([one, two])
    assert routes.expand(Asked(models=("r",)), look()).said == "r; cost"
    assert routes.expand(Asked(models=("s",)), look()).said == "s; affinity"
    assert routes.expand(Asked(models=("x/m",)), look()).said == ""


def test_a_call_considers_only_so_many() -> None:
    wide = [
        route(*(target(f"{n}/{i}") for i in range(60)), name=f"n{n}", fallbacks=(f"n{n + 1}",))
        for n in range(10)
    ]
    assert len(tried(*wide, asked="n0")) == NAMES_MAX
