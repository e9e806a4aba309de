"""What ships of models beside their prices, and what wins when two sources differ."""

import json
from importlib import resources
from urllib.parse import urlsplit

import pytest

from onegate.usage.v1.price_service_pb2 import ModelFacts
from services.usage.prices import facts as module
from services.usage.prices import seed
from services.usage.prices.facts import FactBook, merged, shipped_facts

BOOK = shipped_facts()
CATALOGUE = seed.catalogue()


def known(model: str) -> ModelFacts:
    found = BOOK.find(model)
    assert found is not None, model
    return found


def test_a_model_has_limits_modalities_parameters_and_dates() -> None:
    facts = known("openai/gpt-4o")
    assert (facts.context_tokens_max, facts.output_tokens_max) == (128_000, 16_384)
    assert list(facts.input_modalities) == ["text", "image", "file"]
    assert list(facts.output_modalities) == ["text"]
    assert {"tools", "tool_choice", "response_format", "temperature"} <= {
        *facts.supported_parameters
    }
    assert facts.knowledge == "2023-09"
    assert (facts.shutdown_on, facts.deprecated) == ("2027-01-14", True)
    assert (facts.data_handling.retention_days, facts.data_handling.training) == (30, False)
    assert facts.sources[0].startswith("models.dev of 20")
    assert all(source.startswith("https://") for source in facts.sources[1:])


def test_a_model_that_thinks_and_ignores_temperature_says_so() -> None:
    facts = known("openai/gpt-5")
    assert "reasoning_effort" in facts.supported_parameters
    assert "temperature" not in facts.supported_parameters


@pytest.mark.parametrize(
    ("asked", "like"),
    [
        ("openai/gpt-5-2025-08-07", "openai/gpt-5"),
        ("anthropic/claude-opus-4-8-latest", "anthropic/claude-opus-4-8"),
        ("zai/GLM-4.6", "zai/glm-4.6"),
    ],
)
def test_an_edition_has_the_facts_of_its_model(asked: str, like: str) -> None:
    facts = known(asked)
    assert facts.model == asked
    assert facts.output_tokens_max == known(like).output_tokens_max > 0


def test_an_edition_with_facts_of_its_own_keeps_them() -> None:
    assert known("openai/gpt-4o-2024-05-13").output_tokens_max == 4096


@pytest.mark.parametrize("model", ["openrouter/none", "compatible/gpt-4o", "openai", "", "gpt-4o"])
def test_what_nobody_knows_has_no_facts(model: str) -> None:
    assert BOOK.find(model) is None


def test_a_vector_is_no_answer() -> None:
    facts = known("openai/text-embedding-3-large")
    assert (facts.context_tokens_max, facts.output_tokens_max) == (8191, 0)


def test_a_correction_wins_field_by_field() -> None:
    book = FactBook(
        {"source": "shipped-1", "models": {"k/m": {"name": "M", "context": 5, "reads": "text"}}},
        {
            "vendors": {"k": {"region": "eu", "source": "https://k/terms"}},
            "models": {
                "k/m": {"context": 9, "reads": "text pdf", "training": True, "source": "https://k"},
                "k/new": {"output": 3, "source": "https://k/new"},
            },
        },
    )
    facts = book.find("k/m")
    assert facts is not None
    assert (facts.name, facts.context_tokens_max) == ("M", 9)
    assert list(facts.input_modalities) == ["text", "file"]
    assert (facts.data_handling.region, facts.data_handling.training) == ("eu", True)
    assert not facts.data_handling.HasField("retention_days")
    assert list(facts.sources) == ["shipped-1", "https://k/terms", "https://k"]
    new = book.find("k/new")
    assert new is not None
    assert (new.output_tokens_max, list(new.sources)) == (3, ["https://k/terms", "https://k/new"])


def test_what_the_price_table_says_stands_where_nothing_better_is_known() -> None:
    priced = ModelFacts(model="k/m", name="Priced", context_tokens_max=7, sources=["prices-1"])
    found = FactBook(
        {"source": "shipped-1", "models": {"k/m": {"output": 3}}}, {"vendors": {}, "models": {}}
    ).find("k/m")
    facts = merged(priced, found)
    assert facts is not None
    assert (facts.name, facts.context_tokens_max, facts.output_tokens_max) == ("Priced", 7, 3)
    assert list(facts.sources) == ["prices-1", "shipped-1"]
    assert merged(priced, None) is priced
    assert merged(None, found) is found
    assert merged(None, None) is None


def test_every_row_that_ships_can_be_read() -> None:
    rows = json.loads((resources.files("services.usage") / module.FACTS_FILE).read_text())
    assert len(rows["models"]) > 900
    for model in rows["models"]:
        facts = known(model)
        assert facts.context_tokens_max >= 0
        assert facts.output_tokens_max >= 0


def test_every_correction_names_its_source_and_a_model_or_vendor_that_exists() -> None:
    rows = json.loads((resources.files("services.usage") / module.CORRECTIONS_FILE).read_text())
    kinds = {model.partition("/")[0] for model in CATALOGUE.models}
    for model, row in {**rows["models"], **rows["vendors"]}.items():
        assert urlsplit(row["source"]).scheme == "https", model
        assert model.partition("/")[0] in kinds
    assert list(rows["models"]) == sorted(rows["models"])


def test_five_hundred_models_of_fourteen_vendors_have_prices_and_limits() -> None:
    limited = {
        model
        for model in CATALOGUE.models
        if (facts := merged(CATALOGUE.facts(model), BOOK.find(model))) is not None
        and facts.context_tokens_max
    }
    assert len(limited) > 900
    assert len({model.partition("/")[0] for model in limited}) >= 14
