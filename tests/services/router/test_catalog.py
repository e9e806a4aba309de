"""Which model a name means, what is listed, and what is said of it."""

from collections.abc import Iterable

import pytest

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import price_pb2, price_service_pb2
from runtime.errors import GatewayError
from services.router.models import catalog as module
from services.router.models.catalog import Catalog, ConfiguredProvider
from services.router.providers.base import ListedModel


class PriceTable:
    """Prices of some models, by ``kind/model``."""

    def __init__(self, *priced: str) -> None:
        self.sheets = {
            name: price_pb2.PriceSheet(
                model=name,
                version="v1",
                source="sheet",
                rates=[
                    price_pb2.Rate(
                        meter=price_pb2.METER_INPUT_TOKENS, nano_usd_per_million=1_000_000_000
                    ),
                    price_pb2.Rate(
                        meter=price_pb2.METER_INPUT_TOKENS,
                        nano_usd_per_million=2_000_000_000,
                        above_input_tokens=200_000,
                    ),
                    price_pb2.Rate(
                        meter=price_pb2.METER_OUTPUT_TOKENS,
                        nano_usd_per_million=9_000_000_000,
                        service_tier="priority",
                    ),
                    price_pb2.Rate(meter=price_pb2.METER_UNSPECIFIED, nano_usd_per_million=1),
                ],
            )
            for name in priced
        }

    def find(self, model: str) -> price_pb2.PriceSheet | None:
        return self.sheets.get(model)

    def facts(self, model: str) -> price_service_pb2.ModelFacts | None:
        if model not in self.sheets:
            return None
        return price_service_pb2.ModelFacts(
            model=model,
            name="A Name",
            context_tokens_max=1000,
            output_tokens_max=400,
            input_modalities=["text", "image"],
            output_modalities=["text"],
            supported_parameters=["tools"],
            knowledge="2025-03",
            shutdown_on="2026-12-31",
            data_handling=price_service_pb2.DataHandling(region="eu", retention_days=0),
            sources=["facts", "sheet"],
        )

    def names(self, kind: str) -> Iterable[str]:
        return [name.partition("/")[2] for name in self.sheets if name.startswith(f"{kind}/")]


def provider(name: str, kind: str = "", *models: str, free: bool = False) -> ConfiguredProvider:
    return ConfiguredProvider(name=name, kind=kind or name, models=models, free=free)


def not_found(catalog: Catalog, model: str) -> str:
    with pytest.raises(GatewayError) as caught:
        catalog.resolve(model)
    assert caught.value.reason == error_pb2.ERROR_REASON_MODEL_NOT_FOUND
    assert caught.value.param == "model"
    return caught.value.message


@pytest.mark.parametrize(
    "name",
    ["", " ", "a b", "../etc", "a/../b", "a" * 201, "ü", "a\n", "a?b", "openai/", "a\\b", "%2e%2e"],
)
def test_a_name_that_is_none_is_not_found(name: str) -> None:
    assert not_found(Catalog([provider("openai")], PriceTable()), name)


def test_a_full_id_is_the_model_at_that_provider() -> None:
    catalog = Catalog([provider("mine", "openai")], PriceTable("openai/gpt-5"))
    found = catalog.resolve("mine/gpt-5")
    assert (found.id, found.provider, found.model) == ("mine/gpt-5", "mine", "gpt-5")
    assert (found.price_name, found.free) == ("openai/gpt-5", False)
    assert catalog.resolve("mine/gpt-5") is found


def test_a_model_name_may_have_slashes_of_its_own() -> None:
    prices = PriceTable("openrouter/meta-llama/llama-4", "openai/gpt-5")
    catalog = Catalog([provider("openrouter")], prices)
    assert catalog.resolve("openrouter/meta-llama/llama-4").model == "meta-llama/llama-4"
    assert catalog.resolve("meta-llama/llama-4").provider == "openrouter"
    assert catalog.resolve("openrouter/~z-ai/glm-latest").model == "~z-ai/glm-latest"


def test_an_operators_list_is_all_there_is() -> None:
    catalog = Catalog([provider("openai", "", "a", "b")], PriceTable("openai/c"))
    catalog.discovered("openai", [ListedModel("c")])
    assert catalog.resolve("openai/a").model == "a"
    assert catalog.resolve("b").id == "openai/b"
    assert "a, b" in not_found(catalog, "openai/c")
    not_found(catalog, "c")


def test_an_unlisted_model_passes_when_it_may_exist() -> None:
    catalog = Catalog(
        [provider("openai"), provider("home", "ollama", free=True)], PriceTable("openai/old")
    )
    assert catalog.resolve("openai/new").price_name == "openai/new"  # no list yet: who knows
    catalog.discovered("openai", [ListedModel("new")])
    catalog.discovered("home", [ListedModel("llama3:latest")])
    assert catalog.resolve("openai/new").model == "new"
    assert catalog.resolve("openai/old").model == "old"  # priced, though the vendor hides it
    assert catalog.resolve("home/llama3").model == "llama3"  # free: the provider itself says no
    assert "no model 'typo'" in not_found(catalog, "openai/typo")


def test_a_model_that_appears_in_the_vendors_list_can_be_called_at_once() -> None:
    catalog = Catalog([provider("openai")], PriceTable())
    catalog.discovered("openai", [ListedModel("a")])
    not_found(catalog, "openai/b")
    catalog.discovered("openai", [ListedModel("a"), ListedModel("b", output_tokens_max=7)])
    assert catalog.resolve("openai/b").output_tokens_max == 7
    assert catalog.resolve("b").id == "openai/b"


def test_a_bare_name_must_mean_one_deployment() -> None:
    prices = PriceTable("openai/gpt", "azure/gpt", "openai/only")
    catalog = Catalog([provider("openai"), provider("azure")], prices)
    assert "openai/gpt, azure/gpt" in not_found(catalog, "gpt")
    assert catalog.resolve("only").id == "openai/only"
    assert "No configured provider" in not_found(catalog, "none")
    catalog.discovered("openai", [ListedModel("gpt")])
    assert catalog.resolve("gpt").id == "openai/gpt"  # who lists it is surer than who is priced
    catalog.discovered("azure", [ListedModel("gpt")])
    not_found(catalog, "gpt")


def test_names_of_a_list_that_nobody_could_say_are_left_out() -> None:
    catalog = Catalog([provider("home", "ollama", free=True)], PriceTable())
    catalog.discovered("home", [ListedModel("a b"), ListedModel("../x"), ListedModel("ok")])
    assert [model.id for model in catalog.models(lambda _: True)] == ["home/ok"]


def test_answers_are_remembered_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESOLVED_MAX", 3)
    catalog = Catalog([provider("home", "ollama", free=True)], PriceTable())
    for index in range(10):
        assert catalog.resolve(f"home/m{index}").model == f"m{index}"
    assert len(catalog._resolved) <= 3


def test_the_list_shows_what_is_known_to_whom_it_may() -> None:
    prices = PriceTable("openai/a", "openai/b", "anthropic/c d")
    catalog = Catalog(
        [provider("openai"), provider("anthropic"), provider("demo", "", "echo")], prices
    )
    catalog.discovered("openai", [ListedModel("z", 12, "owner", "Zed", 100, 10)])
    listed = {model.id: model for model in catalog.models(lambda id_: id_ != "openai/b")}
    assert list(listed) == ["openai/a", "openai/z", "demo/echo"]
    priced, unpriced = listed["openai/a"], listed["openai/z"]
    assert (priced.name, priced.owner, priced.context_tokens_max) == ("A Name", "openai", 1000)
    assert (priced.callable, priced.free, list(priced.aliases)) == (True, False, ["a"])
    assert [(r.name, r.nano_usd_per_million) for r in priced.rates] == [("prompt", 1_000_000_000)]
    assert list(priced.endpoints) == ["chat.completions"]
    assert (unpriced.name, unpriced.owner, unpriced.created_unix_s) == ("Zed", "owner", 12)
    assert (unpriced.context_tokens_max, unpriced.output_tokens_max) == (100, 10)
    assert (unpriced.callable, list(unpriced.rates)) == (False, [])


def test_what_is_known_beside_the_price_is_told_with_its_sources() -> None:
    catalog = Catalog([provider("openai")], PriceTable("openai/a"))
    (model,) = catalog.models(lambda _: True)
    assert (model.context_tokens_max, model.output_tokens_max) == (1000, 400)
    assert list(model.input_modalities) == ["text", "image"]
    assert list(model.output_modalities) == ["text"]
    assert list(model.supported_parameters) == ["tools"]
    assert (model.knowledge, model.shutdown_on, model.deprecated) == (
        "2025-03",
        "2026-12-31",
        False,
    )
    assert (model.data_policy.region, model.data_policy.retention_days) == ("eu", 0)
    assert model.data_policy.HasField("retention_days")
    assert not model.data_policy.HasField("training")
    assert list(model.sources) == ["sheet", "facts"]
    assert catalog.resolve("openai/a").output_tokens_max == 400
    assert catalog.resolve("openai/a").context_tokens_max == 1000


def test_the_vendors_own_list_is_believed_first() -> None:
    catalog = Catalog([provider("openai")], PriceTable("openai/a"))
    mine = ListedModel("a", context_tokens_max=7, output_tokens_max=3, shutdown_on="2027-01-01")
    catalog.discovered("openai", [mine])
    found = catalog.resolve("openai/a")
    assert (found.context_tokens_max, found.output_tokens_max) == (7, 3)
    model = catalog.model(found)
    assert (model.context_tokens_max, model.output_tokens_max) == (7, 3)
    assert (model.shutdown_on, model.deprecated) == ("2027-01-01", True)


def test_no_training_is_told_as_that_and_not_as_unknown() -> None:
    class Told(PriceTable):
        def facts(self, model: str) -> price_service_pb2.ModelFacts | None:
            handling = price_service_pb2.DataHandling(training=False)
            return price_service_pb2.ModelFacts(data_handling=handling)

    (model,) = Catalog([provider("openai")], Told("openai/a")).models(lambda _: True)
    assert model.data_policy.HasField("training")
    assert not model.data_policy.training


def test_free_models_have_no_rates_and_can_be_called() -> None:
    prices = PriceTable("ollama/a", "openai/b")
    prices.sheets["openai/b"].free = True
    catalog = Catalog([provider("home", "ollama", free=True), provider("openai")], prices)
    for model in catalog.models(lambda _: True):
        assert (model.free, model.callable, list(model.rates)) == (True, True, [])
    assert catalog.model(catalog.resolve("home/unheard")).callable


def test_an_alias_is_told_only_where_it_leads_here() -> None:
    prices = PriceTable("a/x", "b/x", "a/b/y", "a/z", "b/z")
    catalog = Catalog([provider("a"), provider("b")], prices)
    catalog.discovered("a", [ListedModel("z")])
    aliases = {model.id: list(model.aliases) for model in catalog.models(lambda _: True)}
    assert aliases == {"a/b/y": [], "a/x": [], "a/z": ["z"], "b/x": [], "b/z": []}
