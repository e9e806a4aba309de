"""LiteLLM's price map, as far as it can be counted in full."""

import json
from decimal import Decimal
from typing import Any

import pytest

from onegate.usage.v1 import price_pb2
from services.usage.prices.litellm import Entry, entries


def read(rows: dict[str, Any]) -> dict[str, Entry]:
    document = json.loads(json.dumps(rows), parse_float=Decimal)
    return {entry.model: entry for entry in entries(document, "file")}


def row(**fields: Any) -> dict[str, Any]:
    base = {"input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-05}
    return {"litellm_provider": "openai", "mode": "chat", **base, **fields}


def rates(entry: Entry) -> dict[tuple[str, int, str], int]:
    assert entry.sheet is not None, entry.why_not
    return {
        (
            price_pb2.Meter.Name(rate.meter).removeprefix("METER_").lower(),
            rate.above_input_tokens,
            rate.service_tier,
        ): rate.nano_usd_per_million
        for rate in entry.sheet.rates
    }


def test_figures_become_rates_by_meter_length_and_tier_exactly() -> None:
    (entry,) = read(
        {
            "gpt-9": row(
                cache_read_input_token_cost=1.25e-06,
                cache_creation_input_token_cost_above_1hr=5e-06,
                input_cost_per_token_above_272k_tokens=5e-06,
                input_cost_per_token_above_272k_tokens_priority=1e-05,
                output_cost_per_token_flex=5e-06,
                input_cost_per_request=0.005,
                search_context_cost_per_query={"low": 0.01, "high": 0.025},
                input_cost_per_token_batches=1e-06,
                supports_vision=True,
                output_cost_per_reasoning_token=None,
            )
        }
    ).values()
    assert entry.model == "openai/gpt-9"
    assert rates(entry) == {
        ("input_tokens", 0, ""): 2_500_000_000,
        ("output_tokens", 0, ""): 10_000_000_000,
        ("cached_input_tokens", 0, ""): 1_250_000_000,
        ("cache_write_1h_tokens", 0, ""): 5_000_000_000,
        ("input_tokens", 272_000, ""): 5_000_000_000,
        ("input_tokens", 272_000, "priority"): 10_000_000_000,
        ("output_tokens", 0, "flex"): 5_000_000_000,
        ("requests", 0, ""): 5_000_000_000_000,
        ("web_searches", 0, ""): 25_000_000_000_000,
    }
    assert entry.sheet is not None
    assert entry.sheet.source == "file"


def test_steps_by_length_become_rates() -> None:
    steps = [
        {"input_cost_per_token": 5e-08, "output_cost_per_token": 4e-07, "range": [0, 256000.0]},
        {"input_cost_per_token": 2.5e-07, "output_cost_per_token": 2e-06, "range": [256000.0, 1e6]},
    ]
    found = read(
        {
            "dashscope/qwen": {
                "litellm_provider": "dashscope",
                "mode": "chat",
                "tiered_pricing": steps,
            }
        }
    )
    assert rates(found["alibaba/qwen"]) == {
        ("input_tokens", 0, ""): 50_000_000,
        ("output_tokens", 0, ""): 400_000_000,
        ("input_tokens", 256_000, ""): 250_000_000,
        ("output_tokens", 256_000, ""): 2_000_000_000,
    }


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"output_cost_per_image": 0.04}, "no meter for output_cost_per_image"),
        ({"off_peak_pricing": {}}, "no meter for off_peak_pricing"),
        ({"cache_creation_input_token_cost_above_12hr": 1e-6}, "no meter for cache_creation"),
        ({"input_cost_per_token": None}, "no price for input"),
        ({"output_cost_per_token": None}, "no price for output"),
        ({"input_cost_per_token": 0, "output_cost_per_token": 0.0}, "all zeros"),
    ],
)
def test_a_price_that_cannot_be_counted_in_full_is_left_out_and_says_why(
    fields: dict[str, Any], why: str
) -> None:
    (entry,) = read({"m": row(**fields)}).values()
    assert entry.sheet is None
    assert why in entry.why_not


def test_an_embedding_needs_no_price_for_output() -> None:
    (entry,) = read({"e": row(mode="embedding", output_cost_per_token=None)}).values()
    assert rates(entry) == {("input_tokens", 0, ""): 2_500_000_000}


def test_only_models_that_are_known_here_are_read_each_once() -> None:
    found = read(
        {
            "sample_spec": {"litellm_provider": "one of ...", "mode": "one of: chat, ..."},
            "note": "no row",
            "deepseek-chat": row(litellm_provider="deepseek", output_cost_per_token=9e-05),
            "deepseek/deepseek-chat": row(litellm_provider="deepseek"),
            "azure/eu/gpt-9": row(litellm_provider="azure"),
            "azure/gpt-9": row(litellm_provider="azure"),
            "dall-e": row(mode="image_generation"),
            "bedrock/x": row(litellm_provider="bedrock"),
            "together_ai/Qwen/Q": row(litellm_provider="together_ai"),
        }
    )
    assert list(found) == ["deepseek/deepseek-chat", "azure/gpt-9", "together/Qwen/Q"]
    assert rates(found["deepseek/deepseek-chat"])["output_tokens", 0, ""] == 10_000_000_000
