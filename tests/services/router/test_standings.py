"""A call that was let through once is let through again without asking, until anything changes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from onegate.usage.v1 import price_pb2, price_service_pb2
from runtime.errors import GatewayError
from services.router.models.catalog import Catalog, ConfiguredProvider
from services.router.money.settlement import Terms
from services.router.providers.base import ListedModel
from services.router.routing.health import Health
from services.router.routing.planning import Excluded, Plan
from services.router.routing.standings import STANDINGS_MAX, Standings

NOW_S = 1_800_000_000.0
MODEL = "openai/m"


class OnePrice:
    """A price table that a test changes."""

    def __init__(self) -> None:
        self.sheet: price_pb2.PriceSheet | None = price_pb2.PriceSheet(version="1")

    def find(self, _model: str) -> price_pb2.PriceSheet | None:
        return self.sheet

    def facts(self, _model: str) -> price_service_pb2.ModelFacts | None:
        return None

    def names(self, _kind: str) -> Iterable[str]:
        return ("m",)


def grant(**fields: object) -> grant_pb2.Grant:
    return grant_pb2.Grant(key_id="key_1", version=1, **fields)  # type: ignore[arg-type]


def call(**fields: object) -> chat_pb2.ChatRequest:
    return chat_pb2.ChatRequest(model=MODEL, **fields)  # type: ignore[arg-type]


@dataclass
class Scene:
    """A key that called a model, and all that this depended on."""

    free: bool = False
    prices: OnePrice = field(default_factory=OnePrice)
    health: Health = field(default_factory=Health)
    grant: grant_pb2.Grant = field(default_factory=grant)

    def __post_init__(self) -> None:
        provider = ConfiguredProvider(name="openai", kind="openai", free=self.free)
        self.catalog = Catalog([provider], self.prices)
        self.standings = Standings(self.catalog, self.prices, self.health)

    def keep(self, request: chat_pb2.ChatRequest | None = None, *left_out: Excluded) -> Terms:
        """What the long way ends with."""
        deployment = self.catalog.resolve(MODEL)
        sheet = None if self.free else self.prices.find(deployment.price_name)
        terms = Terms(self.grant, MODEL, deployment, sheet)
        plan = Plan(candidates=(deployment,), excluded=left_out)
        self.standings.keep(self.grant, request or call(), plan, terms)
        return terms

    def found(
        self, request: chat_pb2.ChatRequest | None = None, now_unix_s: float = NOW_S
    ) -> Terms | None:
        standing = self.standings.find(self.grant, request or call(), now_unix_s)
        return standing and standing.terms


@pytest.mark.parametrize("free", [False, True])
def test_the_same_call_is_found_again(free: bool) -> None:
    scene = Scene(free=free)
    assert scene.found() is None
    terms = scene.keep()
    assert scene.found() is terms


def new_price(scene: Scene) -> None:
    scene.prices.sheet = price_pb2.PriceSheet(version="2")


def no_price(scene: Scene) -> None:
    scene.prices.sheet = None


def changed_grant(scene: Scene) -> None:
    scene.grant = grant()


def another_key(scene: Scene) -> None:
    scene.grant = grant_pb2.Grant(key_id="key_2")


def new_models(scene: Scene) -> None:
    scene.catalog.discovered("openai", [ListedModel("other")])


def new_facts(scene: Scene) -> None:
    scene.catalog.discovered("openai", [ListedModel("m", output_tokens_max=5)])
    scene.catalog.resolve(MODEL)


def cooling(scene: Scene) -> None:
    scene.health.cool_down(MODEL, 5.0, 1.0)


def quarantined_model(scene: Scene) -> None:
    scene.health.quarantine(MODEL, 1.0)


def quarantined_provider(scene: Scene) -> None:
    scene.health.quarantine("openai", 1.0)


@pytest.mark.parametrize(
    "change",
    [
        new_price,
        no_price,
        changed_grant,
        another_key,
        new_models,
        new_facts,
        cooling,
        quarantined_model,
        quarantined_provider,
    ],
)
def test_whatever_changes_sends_the_call_the_long_way(change: Callable[[Scene], None]) -> None:
    scene = Scene()
    scene.keep()
    change(scene)
    assert scene.found() is None


def test_somebody_else_s_illness_sends_nobody_the_long_way() -> None:
    scene = Scene()
    terms = scene.keep()
    scene.health.cool_down("openai/other", 5.0, 1.0)
    scene.health.quarantine("mistral", 1.0)
    assert scene.found() is terms


def test_a_standing_ends_when_its_key_does() -> None:
    scene = Scene()
    scene.grant.expires_at.FromNanoseconds(int(NOW_S + 10) * 10**9)
    terms = scene.keep()
    assert scene.found(now_unix_s=NOW_S + 9.9) is terms
    assert scene.found(now_unix_s=NOW_S + 10) is None


SPECIAL = [
    call(routing=chat_pb2.RoutingPreferences()),
    call(context=chat_pb2.CallContext(cost_max_nano_usd=0)),
    call(context=chat_pb2.CallContext(data_class="public")),
]


@pytest.mark.parametrize("request_", SPECIAL)
def test_what_hangs_on_the_call_itself_is_always_asked(request_: chat_pb2.ChatRequest) -> None:
    scene = Scene()
    scene.keep()
    assert scene.found(request_) is None
    other = Scene()
    other.keep(request_)
    assert other.found() is None


def test_a_key_of_some_networks_is_always_asked() -> None:
    scene = Scene(grant=grant(networks_allowed=["10.0.0.0/8"]))
    scene.keep()
    assert scene.found() is None


def test_a_plan_that_left_somebody_out_is_not_remembered() -> None:
    scene = Scene()
    why = GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, "x")
    scene.keep(None, Excluded(model="openai/n", why=why))
    assert scene.found() is None


def test_no_more_is_remembered_than_a_bound() -> None:
    scene = Scene()
    for number in range(STANDINGS_MAX):
        scene.grant = grant_pb2.Grant(key_id=f"key_{number}")
        scene.keep()
    assert scene.found() is not None
    first = scene.grant
    scene.grant = grant_pb2.Grant(key_id="one more")
    terms = scene.keep()
    assert scene.found() is terms
    scene.grant = first
    assert scene.found() is None
