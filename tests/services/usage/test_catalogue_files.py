"""The catalogue as a document, the files that one is made from, and what differs between two."""

import copy
import json
import re
import zlib
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from genai_prices import data

from onegate.usage.v1 import price_pb2
from services.usage.prices import catalogue_document as documents
from services.usage.prices import models_dev, seed
from services.usage.prices.catalogue_changes import ModelChange, Verdict, changes, usd
from services.usage.prices.catalogue_import import Wanted, imported
from services.usage.prices.genai_file import document_of, providers_of

INPUT, OUTPUT = price_pb2.METER_INPUT_TOKENS, price_pb2.METER_OUTPUT_TOKENS
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
SHIPPED = documents.shipped()
EQUALS = {"equals": "m"}


def small(*models: dict[str, Any], facts: dict[str, Any] | None = None) -> dict[str, Any]:
    """A catalogue of a few models of OpenAI's."""
    return {
        "format": documents.FORMAT,
        "prices": {
            "source": "small-1",
            "providers": [{"id": "openai", "name": "OpenAI", "models": list(models)}],
        },
        "facts": {"source": "facts-1", "models": facts or {}},
        "sheets": {},
    }


def row(name: str, usd_in: str = "1", usd_out: str = "2", **more: Any) -> dict[str, Any]:
    prices = {"input_mtok": usd_in, "output_mtok": usd_out}
    return {"id": name, "match": {"equals": name}, "prices": prices} | more


def rates(document: dict[str, Any], model: str) -> dict[int, str] | None:
    sheets = documents.read(document).catalogue.prices(model, at=NOW, until=NOW)
    if not sheets:
        return None
    return {
        rate.meter: usd(rate.nano_usd_per_million)
        for rate in sheets[0].rates
        if not rate.above_input_tokens
    }


def test_the_packages_own_data_survives_its_file_format() -> None:
    told = json.loads(json.dumps(document_of(data.providers)), parse_float=Decimal)
    again = seed.catalogue(providers_of(told), seed.SOURCE)
    before = seed.catalogue()
    assert again.models == before.models
    start, end = datetime(2024, 1, 1, tzinfo=UTC), NOW
    for model in before.models:
        if not model.startswith("deepseek/"):  # Its hours would make a sheet for every day.
            assert again.prices(model, at=start, until=end) == before.prices(
                model, at=start, until=end
            )
        assert again.facts(model) == before.facts(model)
    deepseek = "deepseek/deepseek-v4-flash"
    assert again.prices(deepseek, at=NOW, until=NOW) == before.prices(deepseek, at=NOW, until=NOW)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ({}, "the file is no list"),
        ([7], "a provider is no object"),
        ([{"models": []}], "a provider's id is no text"),
        ([{"id": "x"}], "the models of x is no list"),
        ([{"id": "x", "models": [{"id": "m", "match": {}}]}], "a match that is not known"),
        ([{"id": "x", "models": [{"id": "m", "match": {"like": "m"}}]}], "not known here: like"),
        ([{"id": "x", "models": [{"id": "m", "match": {"regex": "("}}]}], "a pattern that is none"),
        ([{"id": "x", "models": [{"id": "m", "match": EQUALS}]}], "x/m is no object"),
        (
            [{"id": "x", "models": [{"id": "m", "match": EQUALS, "prices": {"input_mtok": -1}}]}],
            "input_mtok is no amount of USD",
        ),
        (
            [{"id": "x", "models": [{"id": "m", "match": EQUALS, "prices": {"input_mtok": 0.1}}]}],
            "is no amount of USD: 0.1",
        ),
        (
            [
                {
                    "id": "x",
                    "models": [
                        {
                            "id": "m",
                            "match": EQUALS,
                            "prices": [{"constraint": {"weekday": 1}, "prices": {}}],
                        }
                    ],
                }
            ],
            "a condition that is not known here: ['weekday']",
        ),
    ],
)
def test_a_file_with_what_is_not_understood_is_refused(rows: object, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        providers_of(rows)


def test_a_pattern_that_nests_without_end_is_refused() -> None:
    match: dict[str, Any] = EQUALS
    for _ in range(50):
        match = {"or": [match]}
    with pytest.raises(ValueError, match="match"):
        providers_of([{"id": "x", "models": [{"id": "m", "match": match}]}])


def test_the_same_content_has_the_same_name_and_any_other_has_another() -> None:
    again = documents.unpacked(documents.packed(SHIPPED))
    assert again == SHIPPED
    assert documents.digest_of(again) == documents.digest_of(SHIPPED)
    changed = copy.deepcopy(again)
    changed["prices"]["providers"][0]["models"][0]["name"] = "other"
    assert documents.digest_of(changed) != documents.digest_of(SHIPPED)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "cut short"),
        (b"nonsense", "cannot be unpacked"),
        (documents.packed(SHIPPED)[:-50], "cut short"),
        (bytes(documents.PACKED_BYTES_MAX + 1), "is longer than"),
        (zlib.compress(bytes(documents.BYTES_MAX + 1)), "is cut short, or longer than"),
        (zlib.compress(b"[]"), "no catalogue of format 1"),
        (zlib.compress(b'{"format": 2}'), "no catalogue of format 1"),
        (zlib.compress(b"{"), "line 1"),
    ],
    ids=str,
)
def test_what_is_no_document_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        documents.unpacked(content)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"prices": {}}, "not complete"),
        ({"facts": None}, "not complete"),
        ({"prices": {"source": "s", "providers": []}}, "no price of any model"),
        ({"sheets": {"nobody/m": {"source": "s", "rates": []}}}, "is no kind/name"),
        ({"sheets": {"openai/m": {"source": "s", "rates": []}}}, "no rates"),
        (
            {"sheets": {"openai/m": {"source": "s", "rates": [["METER_X", "1", 0]]}}},
            "not known here: 'METER_X'",
        ),
        (
            {"sheets": {"openai/m": {"source": "s", "rates": [["METER_INPUT_TOKENS", "?", 0]]}}},
            "no amount of USD",
        ),
        (
            {"sheets": {"openai/m": {"source": "s", "rates": [["METER_INPUT_TOKENS", "9e9", 0]]}}},
            "outside of",
        ),
        ({"facts": {"source": "s", "models": {"openai/m": {"can": "fly"}}}}, "not complete"),
        ({"facts": {"source": "s", "models": {"openai/m": {"context": "9"}}}}, "not complete"),
    ],
)
def test_a_document_that_says_what_cannot_be_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        documents.read({**small(row("m")), **change})


def test_a_new_price_file_replaces_all_prices_and_keeps_the_facts() -> None:
    file = [{"id": "openai", "models": [row("m", "3", "4"), row("n")]}]
    after = imported(small(row("m"), row("gone")), file, "p.json sha256:1", Wanted(), NOW)
    assert rates(after, "openai/m") == {INPUT: "3.00", OUTPUT: "4.00"}
    assert documents.read(after).catalogue.models == ["openai/m", "openai/n"]
    assert documents.source_of(after) == "genai-prices p.json sha256:1, facts-1"


def test_new_facts_replace_the_old_ones_and_corrections_win_over_both() -> None:
    file = {
        "source": "facts-2",
        "models": {"openai/m": {"context": 9}, "openai/gpt-5": {"shutdown_on": "2030-01-01"}},
    }
    before = small(row("m"), facts={"openai/m": {"context": 5, "output": 3}})
    after = imported(before, file, "f.json", Wanted(), NOW)
    book = documents.read(after).facts
    facts, corrected = book.find("openai/m"), book.find("openai/gpt-5")
    assert facts is not None
    assert (facts.context_tokens_max, facts.output_tokens_max) == (9, 0)
    assert corrected is not None
    assert corrected.shutdown_on == "2026-12-11"
    assert rates(after, "openai/m") == rates(before, "openai/m")


API = {
    "openai": {
        "id": "openai",
        "models": {
            "m": {
                "id": "m",
                "name": "M",
                "tool_call": True,
                "reasoning": False,
                "modalities": {"input": ["text", "pdf"], "output": ["text"]},
                "limit": {"context": 100, "output": 10},
                "knowledge": "2026-01",
                "status": "deprecated",
                "cost": {"input": Decimal(7), "output": Decimal(8)},
            },
            "new": {
                "id": "new",
                "cost": {
                    "input": Decimal("0.1"),
                    "output": Decimal("0.2"),
                    "cache_read": Decimal("0.01"),
                    "context_over_200k": {"input": Decimal("0.3"), "output": Decimal("0.4")},
                },
            },
            "subscribed": {"id": "subscribed", "cost": {"input": 0, "output": 0}},
            "half": {"id": "half", "cost": {"input": Decimal(1)}},
            "odd": {"id": "odd", "cost": {"input": 1, "output": 1, "minutes": 1}},
            "embed-1": {"id": "embed-1", "limit": {"output": 3072}, "cost": {"input": 1}},
        },
    },
    "nvidia": {"models": {"n": {"id": "n", "cost": {"input": 1, "output": 2}}}},
    "somebody": {"models": {"x": {"id": "x", "cost": {"input": 1, "output": 2}}}},
}


def test_models_dev_tells_facts_and_prices_only_what_nobody_else_prices() -> None:
    after = imported(small(row("m")), API, "api.json", Wanted(), NOW)
    assert rates(after, "openai/m") == rates(small(row("m")), "openai/m")
    priced = {m for m in documents.read(after).catalogue.models if m != "openai/m"}
    assert priced == {"openai/new", "openai/embed-1", "nvidia/n"}
    new = documents.read(after).catalogue.prices("openai/new", at=NOW, until=NOW)[0]
    assert [(r.above_input_tokens, r.nano_usd_per_million) for r in new.rates] == [
        (0, 100_000_000),
        (200_000, 300_000_000),
        (0, 10_000_000),
        (0, 200_000_000),
        (200_000, 400_000_000),
    ]
    assert new.source == "models.dev api.json"
    facts = documents.read(after).facts.find("openai/m")
    assert facts is not None
    assert (facts.name, facts.context_tokens_max, facts.deprecated) == ("M", 100, True)
    assert list(facts.input_modalities) == ["text", "file"]
    embedding = documents.read(after).facts.find("openai/embed-1")
    assert embedding is None or embedding.output_tokens_max == 0
    narrow = imported(small(row("m")), API, "a", Wanted(models="nvidia/*"), NOW)
    assert list(narrow["sheets"]) == ["nvidia/n"]


def test_the_packages_api_and_its_file_make_the_same_rows() -> None:
    assert models_dev.is_api(API)
    assert not models_dev.is_api({})
    assert not models_dev.is_api({"gpt-4o": {"litellm_provider": "openai"}})
    with pytest.raises(ValueError, match="openai/m is not as"):
        models_dev.facts_in({"openai": {"models": {"m": 7}}})


LITELLM = {
    "sample_spec": {"mode": "chat"},
    "m": {
        "litellm_provider": "openai",
        "mode": "chat",
        "input_cost_per_token": Decimal("1e-6"),
        "output_cost_per_token": Decimal("2e-6"),
        "max_input_tokens": 50,
        "max_output_tokens": 5,
        "deprecation_date": "2027-02-03",
        "supports_vision": True,
        "supports_function_calling": True,
    },
    "other": {
        "litellm_provider": "openai",
        "mode": "chat",
        "input_cost_per_token": Decimal("5e-6"),
        "output_cost_per_token": Decimal("6e-6"),
    },
    "xai/new": {
        "litellm_provider": "xai",
        "mode": "chat",
        "input_cost_per_token": Decimal("1e-6"),
        "output_cost_per_token": Decimal("1e-6"),
    },
}


def test_litellms_map_changes_what_differs_and_keeps_the_tiers_of_what_agrees() -> None:
    before = small(row("m"), row("other"), facts={"openai/M": {"context": 1, "can": "reasoning"}})
    after = imported(before, LITELLM, "l.json", Wanted(), NOW)
    assert sorted(after["sheets"]) == ["openai/other", "xai/new"]
    assert rates(after, "openai/other") != rates(before, "openai/other")
    facts = documents.read(after).facts.find("openai/m")
    assert facts is not None
    assert (facts.context_tokens_max, facts.shutdown_on) == (50, "2027-02-03")
    # What was known that it can is not lost for what the map does not say.
    assert list(facts.supported_parameters) == ["reasoning_effort"]
    assert list(facts.input_modalities) == ["text", "image"]
    only = imported(before, LITELLM, "l.json", Wanted(new_only=True), NOW)
    assert list(only["sheets"]) == ["xai/new"]
    again = imported(after, LITELLM, "l.json", Wanted(), NOW)
    assert again["facts"]["source"].count("LiteLLM") == 1


@pytest.mark.parametrize("file", [7, {}, {"a": 1}, {"m": {"litellm_provider": "openai"}}])
def test_a_file_of_no_known_format_is_refused(file: object) -> None:
    with pytest.raises(ValueError, match="none of the known formats"):
        imported(small(row("m")), file, "x", Wanted(), NOW)


def test_from_a_file_that_is_taken_as_a_whole_nothing_can_be_picked() -> None:
    with pytest.raises(ValueError, match="as a whole"):
        imported(small(row("m")), [], "x", Wanted(models="openai/*"), NOW)


def differing(old: dict[str, Any], new: dict[str, Any]) -> list[ModelChange]:
    return list(changes(documents.read(old), documents.read(new), NOW))


def test_nothing_differs_between_a_version_and_itself() -> None:
    assert differing(SHIPPED, SHIPPED) == []


def test_what_is_new_gone_or_changed_is_told_with_before_and_after() -> None:
    old = small(row("gone"), row("m"), row("same"), facts={"openai/M": {"context": 5}})
    new = small(
        row("fresh", context_window=3),
        row("m", "1.5"),
        row("same"),
        facts={"openai/m": {"context": 6, "shutdown_on": "2027-01-01"}},
    )
    found = {change.model: change for change in differing(old, new)}
    assert {model: change.verdict for model, change in found.items()} == {
        "openai/fresh": Verdict.ADDED,
        "openai/gone": Verdict.REMOVED,
        "openai/m": Verdict.CHANGED,
    }
    said = {field.name: (field.before, field.after) for field in found["openai/m"].fields}
    assert said == {
        "input_tokens": ("1.00", "1.50"),
        "context_length": ("5", "6"),
        "deprecated": ("", "yes"),
        "shutdown_date": ("", "2027-01-01"),
    }
    added = {field.name: (field.before, field.after) for field in found["openai/fresh"].fields}
    assert added["input_tokens"] == ("", "1.00")
    assert added["context_length"] == ("", "3")


@pytest.mark.parametrize(
    ("nano", "text"), [(0, "0.00"), (1, "0.000000001"), (2_500_000_000, "2.50"), (10**9, "1.00")]
)
def test_an_amount_is_told_exactly(nano: int, text: str) -> None:
    assert usd(nano) == text
