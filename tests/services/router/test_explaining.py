"""A dry run: the plan that it tells is the plan that a call follows, in any situation; it calls
nobody, and tells a key nothing that the key may not know.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from onegate.auth.v1 import data_policy_pb2, grant_pb2
from onegate.router.v1 import chat_pb2, chat_service_pb2, plan_pb2
from onegate.usage.v1 import price_pb2, price_service_pb2
from runtime.errors import GatewayError
from runtime.route_settings import (
    SPREADS,
    PolicyModel,
    PolicyRule,
    PolicySettings,
    RouteSettings,
    RouteTarget,
)
from services.router.limits import bounds
from services.router.limits.admission import POLICIES, CallFacts, refusal
from services.router.mirroring import is_mirrored
from services.router.models.catalog import Catalog, ConfiguredProvider, Deployment
from services.router.routing.call_plan import asked_of, hedge_after_s, look_of, plan_call
from services.router.routing.data_rules import DataHandling, call_data
from services.router.routing.explaining import Situation, explained
from services.router.routing.health import Health
from services.router.routing.illness import ILLNESSES, ill
from services.router.routing.observed import FIRSTS_MIN, STREAK_MAX, Observed
from services.router.routing.planning import BREAKER, FALLBACKS, Plan
from services.router.routing.policies import SetPolicies
from services.router.routing.routes import Routes
from tests.fake_provider import FakeProvider, Reply
from tests.services.router.rig import (
    PRICED,
    Rig,
    hello,
    provider,
    running,
    settings_in,
    sheet,
    typed,
)

NOW_UNIX_S = 1_800_000_000.0
NOW_S = 500.0
CLASSES = ("public", "internal", "confidential")
DRY = chat_pb2.CallContext(dry_run=True)
MODELS = [f"{name}/{model}" for name in "abcd" for model in ("m", "n")]
ROUTES = ("r1", "r2")


class Table:
    """Prices of some models."""

    def __init__(self, names: Iterable[str]) -> None:
        self.sheets = {name: sheet(name) for name in names}

    def find(self, model: str) -> price_pb2.PriceSheet | None:
        return self.sheets.get(model)

    def facts(self, model: str) -> price_service_pb2.ModelFacts | None:
        return None

    def names(self, kind: str) -> Iterable[str]:
        return [name.partition("/")[2] for name in self.sheets if name.startswith(f"{kind}/")]


def some(dice: random.Random, choices: Iterable[str]) -> list[str]:
    """A few of them, mostly none."""
    return [one for one in choices if dice.random() < 0.25]


def a_grant(dice: random.Random) -> grant_pb2.Grant:
    rules = [
        data_policy_pb2.DataRule(
            level=dice.choice((1, 2, 3)),  # type: ignore[arg-type]
            data_class=dice.choice(("", *CLASSES)),
            class_min=dice.choice(("", "", *CLASSES)),
            demands=data_policy_pb2.DataDemands(
                regions=some(dice, ("eu", "us")),
                retention_days_max=dice.choice((None, None, 0, 30)),
                no_training=dice.random() < 0.2,
            ),
        )
        for _ in range(dice.choice((0, 0, 1, 2)))
    ]
    grant = grant_pb2.Grant(
        key_id="key_1",
        kind=grant_pb2.KEY_KIND_PROJECT if dice.random() < 0.95 else grant_pb2.KEY_KIND_ADMIN,
        models_allowed=some(dice, ("a/*", "*/m", "b/n", "*")),
        models_denied=some(dice, ("c/*", "*/n")),
        scopes=some(dice, ("model.request", "model.read")),
        networks_allowed=some(dice, ("10.0.0.0/8",)),
        rate_limits=[grant_pb2.RateLimit(meter=1, amount=5, window_s=60, model=model)  # type: ignore[arg-type]
                     for model in some(dice, ("", "a/*", "b/m"))],
        data_policy=data_policy_pb2.DataPolicy(
            version="dp-1" if rules else "", classes=CLASSES, rules=rules
        ),
    )  # fmt: skip
    grant.disabled = dice.random() < 0.03
    if dice.random() < 0.05:
        grant.expires_at.seconds = int(NOW_UNIX_S) + dice.choice((-1, 1))
    return grant


def a_request(dice: random.Random) -> chat_pb2.ChatRequest:
    names = [*MODELS, *ROUTES, *ROUTES, "auto", "r1:floor", "m", "n:nitro", "nowhere/x", "a/none"]
    asked = dice.choices(names, k=dice.randint(1, 4))
    routing = chat_pb2.RoutingPreferences(
        fallback_models=asked[1:],
        provider_order=some(dice, "dcb"),
        provider_only=some(dice, "abc") if dice.random() < 0.3 else (),
        provider_ignore=some(dice, "ad"),
        allow_fallbacks=dice.choice((None, None, True, False)),
        no_training=dice.random() < 0.1,
        zero_retention=dice.random() < 0.1,
        sort=dice.choice((0, 0, 1, 2, 3)),  # type: ignore[arg-type]
        input_rate_max_nano_usd=dice.choice((None, None, None, 1, 10**9)),
    )
    return chat_pb2.ChatRequest(
        model=asked[0],
        output_tokens_max=dice.choice((None, 10, 1000)),
        routing=routing if len(asked) > 1 or dice.random() < 0.5 else None,
        context=chat_pb2.CallContext(
            client_address=dice.choice(("", "10.1.1.1", "8.8.8.8")),
            data_class=dice.choice(("", "", *CLASSES)),
            cost_max_nano_usd=dice.choice((None, None, 1, 10**9)),
        ),
    )


def a_catalog(dice: random.Random) -> Catalog:
    kinds = {"a": "openai", "b": "deepseek", "c": "mistral", "d": "groq"}
    priced = some(dice, [f"{kind}/{model}" for kind in kinds.values() for model in ("m", "n")])
    return Catalog(
        [
            ConfiguredProvider(
                name=name,
                kind=kind,
                free=dice.random() < 0.4,
                models=("m", "n") if dice.random() < 0.7 else (),
                data=DataHandling(
                    regions=tuple(some(dice, ("eu", "us", "de"))),
                    retention_days=dice.choice((None, 0, 30)),
                    training=dice.choice((None, True, False)),
                ),
            )
            for name, kind in kinds.items()
        ],
        Table([*priced, *(f"{kind}/m" for kind in kinds.values() if dice.random() < 0.5)]),
    )


def a_health(dice: random.Random) -> Health:
    health = Health()
    for model in some(dice, MODELS):
        health.cool_down(model, dice.choice((1, 100)), NOW_S - 50)
    for name in some(dice, ("a", "b/m", "c", "d/n")):
        health.quarantine(name, NOW_S - 10)
    return health


def some_routes(dice: random.Random) -> Routes:
    """A few routes; the first may lead to the second."""
    return Routes(
        (
            RouteSettings(
                name=name,
                to=tuple(
                    RouteTarget(
                        model=model,
                        weight=dice.choice((0.0, 1.0, 5.0)),
                        priority=dice.choice((0, 0, 1)),
                    )
                    for model in dice.sample(MODELS, dice.randint(1, 4))
                ),
                spread=dice.choice(SPREADS),
                affinity=dice.random() < 0.3,
                fallbacks=tuple(some(dice, ("d/m", *({"r1": ["r2"]}.get(name, []))))),
                context_fallbacks=tuple(some(dice, MODELS[:3])),
                content_fallbacks=tuple(some(dice, MODELS[3:])),
                hedge=dice.random() < 0.5,
                hedge_after_s=dice.choice((0.0, 0.5)),
                mirror_to=dice.choice(("", *MODELS, "nowhere/x")),
                mirror_percent=50.0,
            )
            for name in ROUTES
        ),
        SetPolicies([a_policy(dice)]),
    )


def a_policy(dice: random.Random) -> PolicySettings:
    models = dice.sample(MODELS, 3)
    return PolicySettings(
        name="auto",
        model=tuple(PolicyModel(model=model, quality=dice.random()) for model in models),
        rule=(
            PolicyRule(name="long", models=tuple(models[:2]), input_tokens_min=dice.choice((0, 9))),
        ),
        cost=dice.random(),
        latency=dice.random(),
    )


def an_observed(dice: random.Random) -> Observed:
    observed = Observed()
    for model in (*some(dice, MODELS), *(f"{name}#key" for name in some(dice, MODELS))):
        seen = observed.of(model)
        seen.begin(NOW_S - 2)
        seen.succeeded(dice.random(), dice.randint(1, 100), dice.random(), NOW_S - 2)
        for _ in range(dice.choice((0, FIRSTS_MIN))):
            seen.sampled(dice.random(), stream=False)
        if dice.random() < 0.5:
            seen.full_until_s = NOW_S + dice.choice((-1, 1))
        if dice.random() < 0.5:
            for _ in range(STREAK_MAX):
                observed.failed(model, NOW_S - dice.choice((1, 100)))
    return observed


def some_seats(dice: random.Random) -> Callable[[Deployment], list[str]]:
    """Some have two credentials, of which one may be seen to fail or to be used up."""
    keyed = set(some(dice, MODELS))

    def seats(deployment: Deployment) -> list[str]:
        names = ("key", "other") if deployment.id in keyed else ()
        return [f"{deployment.id}#{name}" for name in names]

    return seats


def beside(plan: Plan, observed: Observed, request_id: str) -> tuple[float, str]:
    """After how long a second attempt would be made, and where a copy would go."""
    route = plan.route
    if route is None or not plan.candidates:
        return 0.0, ""
    hedged_s = hedge_after_s(route, observed, plan.candidates[0].id, stream=False)
    return hedged_s, route.mirror_to if is_mirrored(route, request_id) else ""


@dataclass(frozen=True)
class Drawn:
    """A generated situation, and what a call would follow in it."""

    plan: Plan
    judge: Callable[[Deployment], GatewayError | None]
    situation: Situation


def drawn(number: int, *, tells_all: bool = False) -> Drawn:
    """Situation number so-and-so, planned as a call is."""
    dice = random.Random(number)
    catalog, health, grant, request = (
        a_catalog(dice),
        a_health(dice),
        a_grant(dice),
        a_request(dice),
    )
    routing = request.routing if request.HasField("routing") else None
    data = call_data(grant, request.context.data_class, routing)
    prices = catalog._prices
    closed = random.Random(-number).choice((*[""] * 38, "a", "d"))

    def facts(deployment: Deployment) -> CallFacts:
        found = None if deployment.free else prices.find(deployment.price_name)
        context = request.context
        return CallFacts(
            model=deployment.id,
            priced=deployment.free or found is not None,
            client_address=context.client_address,
            cost_max_nano_usd=(
                context.cost_max_nano_usd if context.HasField("cost_max_nano_usd") else None
            ),
            cost_bound=lambda: bounds.cost_bound(request, found, 0, 0),
            data=data,
            handling=deployment.data,
            reachable=deployment.provider != closed,
            over_price=bounds.over_price(found, routing),
        )

    def judge(deployment: Deployment) -> GatewayError | None:
        return refusal(grant, facts(deployment), NOW_UNIX_S) or ill(health, deployment, NOW_S)

    observed, seats = an_observed(dice), some_seats(dice)
    plan = plan_call(
        asked_of(grant, request, f"{number}"),
        some_routes(dice),
        lambda: look_of(catalog, prices, observed, NOW_S, seats),
        catalog.resolve,
        judge,
    )
    hedged_s, mirror = beside(plan, observed, f"{number}")
    speakable = dice.random() < 0.8
    unspeakable = {
        d.id: GatewayError(31, "the wire has no such word")
        for d in plan.candidates
        if not speakable and dice.random() < 0.5
    }
    return Drawn(
        plan,
        judge,
        Situation(
            grant=grant,
            request=request,
            data=data,
            plan=plan,
            resolve=catalog.resolve,
            facts=facts,
            health=health,
            unspeakable=unspeakable,
            now_unix_s=NOW_UNIX_S,
            now_s=NOW_S,
            hedge_after_s=hedged_s,
            mirror=mirror,
            tells_all=tells_all,
        ),
    )


def refusals(one: plan_pb2.ConsideredDeployment) -> list[int]:
    """The reasons of one deployment, in the order of the rules."""
    return [verdict.reason for verdict in one.verdicts if verdict.reason]


def check_hedge(told: plan_pb2.Plan, case: Drawn, followed: int) -> bool:
    """A second attempt is told where there is one, and after how long."""
    wanted = case.situation.hedge_after_s if followed > 1 else 0.0
    assert told.HasField("hedge_after_ms") == bool(wanted)
    assert told.hedge_after_ms == int(wanted * 1000)
    return bool(wanted)


def check_mirror(told: plan_pb2.Plan, case: Drawn) -> bool:
    """Who would get a copy is judged as if the call had named it; whether it would get one."""
    if not told.HasField("mirror"):
        return False
    situation = case.situation
    try:
        target = situation.resolve(situation.mirror)
        why = case.judge(target) or situation.unspeakable.get(target.id)
    except GatewayError as missing:
        why = missing
    wishes = [v.reason for v in told.mirror.verdicts if v.rule == "wishes" and v.reason]
    reasons = wishes + ([why.reason] if why is not None else [])
    assert refusals(told.mirror)[:1] == reasons[:1]
    return not reasons


def test_the_plan_that_is_told_is_the_plan_that_is_followed_in_ten_thousand_situations() -> None:
    seen: set[tuple[str, int]] = set()
    tried = routed = rescued = hedged = mirrored = 0
    for number in range(10_000):
        case = drawn(number)
        told = explained(case.situation)
        followed = [d.id for d in case.plan.candidates if d.id not in case.situation.unspeakable]
        assert [one.model for one in told.considered if one.place] == followed, number
        assert [one.place for one in told.considered if one.place] == [
            *range(1, len(followed) + 1)
        ], number
        by_model = {one.model: one for one in told.considered}
        for out in case.plan.excluded:
            assert refusals(by_model[out.model])[0] == out.why.reason, (number, out.model)
        for model in followed:
            assert refusals(by_model[model]) == [], (number, model)
        for model, why in case.situation.unspeakable.items():
            assert refusals(by_model[model]) == [why.reason], (number, model)
        assert told.HasField("refusal") == (not followed), number
        rescue = [(int(r), d.id) for r, found in case.plan.rescue.items() for d in found]
        assert [(one.only_after, one.model) for one in told.considered if one.only_after] == rescue
        assert not {model for _, model in rescue} & set(followed), number
        assert told.route == case.plan.said
        hedged += check_hedge(told, case, len(followed))
        mirrored += check_mirror(told, case)
        routed += bool(told.route)
        rescued += bool(rescue)
        if not followed and not case.situation.unspeakable:
            assert told.refusal.reason == case.plan.refusal().reason, number
        tried += bool(followed)
        seen |= {(v.rule, v.reason) for one in told.considered for v in one.verdicts if v.reason}
    # The situations are worth something: every rule has refused, for its own reason alone, and
    # many calls would be made.
    rules = {rule for rule, _ in seen}
    own = {**{p.name: p.reason for p in POLICIES}, **{i.name: i.reason for i in ILLNESSES}}
    for name, reason in own.items():
        assert {found for rule, found in seen if rule == name} == {reason}
    assert rules >= {*own, "found", "wishes", FALLBACKS, "wire", BREAKER}
    assert routed > 2_000
    assert rescued > 200
    assert hedged > 50
    assert mirrored > 50
    assert 1_000 < tried < 9_000


def test_a_key_learns_nothing_of_a_model_that_it_may_not_know() -> None:
    withheld = 0
    for number in range(2_000):
        for one in explained(drawn(number).situation).considered:
            names = [verdict.rule for verdict in one.verdicts if verdict.reason]
            if "model" not in names:
                assert not any(verdict.withheld for verdict in one.verdicts)
                continue
            after = [verdict.rule for verdict in one.verdicts].index("model") + 1
            assert all(v.withheld and not v.reason and not v.detail for v in one.verdicts[after:])
            assert not one.HasField("cost_bound_nano_usd")
            withheld += 1
        for one in explained(drawn(number, tells_all=True).situation).considered:
            assert not any(verdict.withheld for verdict in one.verdicts)
    assert withheld > 100


async def dry(rig: Rig, key: str, models: list[str], **routing: object) -> plan_pb2.Plan:
    """What a dry run tells."""
    wishes = chat_pb2.RoutingPreferences(fallback_models=models[1:])
    wishes.MergeFrom(chat_pb2.RoutingPreferences(**routing))  # type: ignore[arg-type]
    said = await rig.chat(hello(models[0]), key=key, routing=wishes, context=DRY)
    assert said.error is None, said.error
    (event,) = said.events
    return event.plan


@pytest.mark.anyio
async def test_what_a_dry_run_says_is_what_a_router_then_does(tmp_path: Path) -> None:
    dice = random.Random(11)
    async with FakeProvider() as a, FakeProvider() as b, FakeProvider() as c:
        fakes = {"a": a, "b": b, "c": c}
        settings = settings_in(
            tmp_path,
            provider("a", a, region=("us",), retention_days=30),
            provider("b", b, region=("eu",), retention_days=0),
            provider("c", c, "deepseek", region=("eu",)),
        )
        order: list[str] = []

        def answer(name: str, status: int) -> None:
            def choose(_: object) -> Reply:
                order.append(name)
                return Reply(status=status)

            fakes[name].choose = choose

        async with running(settings, PRICED) as rig:
            for _ in range(60):
                for name in fakes:
                    answer(name, dice.choice((200, 200, 500, 503, 403)))
                grant = a_grant(dice)
                grant.kind = grant_pb2.KEY_KIND_PROJECT
                grant.ClearField("networks_allowed")
                grant.ClearField("disabled")
                fields = {f.name: v for f, v in grant.ListFields() if f.name != "key_id"}
                key = rig.add_key(**fields)
                models = [f"{name}/m" for name in dice.sample("abc", dice.randint(1, 3))]
                routing = {
                    "provider_order": some(dice, "cb"),
                    "zero_retention": dice.random() < 0.2,
                }
                order.clear()
                plan = await dry(rig, key, models, **routing)
                assert order == []
                told = [one.model.partition("/")[0] for one in plan.considered if one.place]
                wishes = chat_pb2.RoutingPreferences(fallback_models=models[1:], **routing)  # type: ignore[arg-type]
                said = await rig.chat(hello(models[0]), key=key, routing=wishes)
                met = list(dict.fromkeys(order))
                assert met == told[: len(met)], (told, order)
                if not told:
                    assert said.error is not None
                    assert said.error.reason == plan.refusal.reason
                elif said.error is None:
                    assert said.served.model == f"{met[-1]}/m"
                else:
                    assert met
            # Whatever was posted was called: dry runs are nobody's attempts.
            await rig.records(sum(len(fake.chats) for fake in fakes.values()))


@pytest.mark.anyio
async def test_a_dry_run_counts_towards_no_limit_and_says_which_would_apply(
    tmp_path: Path,
) -> None:
    one = grant_pb2.RateLimit(
        meter=grant_pb2.RATE_METER_REQUESTS,
        amount=1,
        window_s=60,
        scope=grant_pb2.RATE_SCOPE_KEY,
    )
    async with FakeProvider() as fake:
        settings = settings_in(tmp_path, provider("a", fake))
        async with running(settings, PRICED) as rig:
            key = rig.add_key(rate_limits=[one])
            for _ in range(3):
                plan = await dry(rig, key, ["a/m"])
                assert list(plan.rate_limits) == [one]
                assert not plan.considered[0].HasField("cost_bound_nano_usd")
            assert (await rig.chat(hello("a/m"), key=key)).error is None
            assert (await rig.chat(hello("a/m"), key=key)).reason == "rate_limit_exceeded"


@pytest.mark.anyio
async def test_what_a_wire_cannot_say_is_in_the_plan(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        settings = settings_in(
            tmp_path,
            provider("a", fake),
            provider("c", fake, "anthropic", free=True, models=("m",)),
        )
        # The fake's typed form leaves out what Anthropic has no word for, so it is put in here.
        request = typed(hello("c/m"))
        request.seed = 7
        request.routing.fallback_models.append("a/m")
        request.context.dry_run = True
        async with running(settings, PRICED) as rig:
            call = rig.open(request)
            payload = await call.receive()
            assert payload is not None
            (event,) = chat_service_pb2.ChatResponse.FromString(payload).events
            assert await call.receive() is None
            assert [(one.model, one.place) for one in event.plan.considered] == [
                ("a/m", 1),
                ("c/m", 0),
            ]
            assert event.plan.considered[1].verdicts[-1].rule == "wire"
            native = await rig.chat(hello("c/m"), context=DRY)
            assert native.typed_asked == 1
            assert native.events[0].plan.considered[0].place == 1
            assert fake.chats == []
