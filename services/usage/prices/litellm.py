"""Reads prices in the format of LiteLLM's ``model_prices_and_context_window.json``. Pure.

It is a format to import from, nothing more: what is read becomes an operator's price
(https://docs.litellm.ai/docs/provider_registration/add_model_pricing). A price that cannot be
counted in full is no price: an entry with a figure for which there is no meter is left out, and
says why.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final

from onegate.usage.v1 import price_pb2
from onegate.usage.v1.price_pb2 import PriceSheet, Rate
from runtime.money import NANO_PER_USD

KINDS: Final[Mapping[str, str]] = {
    "anthropic": "anthropic",
    "azure": "azure",
    "cerebras": "cerebras",
    "dashscope": "alibaba",
    "deepinfra": "deepinfra",
    "deepseek": "deepseek",
    "fireworks_ai": "fireworks",
    "gemini": "gemini",
    "github": "github",
    "groq": "groq",
    "huggingface": "huggingface",
    "mistral": "mistral",
    "moonshot": "moonshot",
    "nvidia_nim": "nvidia",
    "openai": "openai",
    "openrouter": "openrouter",
    "perplexity": "perplexity",
    "sambanova": "sambanova",
    "together_ai": "together",
    "xai": "xai",
    "zai": "zai",
}
"""Its providers, and our kinds."""

MODES: Final = frozenset({"chat", "completion", "responses", "embedding"})
"""What is charged by tokens; the rest of its modes are other endpoints."""

_METERS: Final[Mapping[str, price_pb2.Meter.ValueType]] = {
    "input_cost_per_token": price_pb2.METER_INPUT_TOKENS,
    "output_cost_per_token": price_pb2.METER_OUTPUT_TOKENS,
    "cache_read_input_token_cost": price_pb2.METER_CACHED_INPUT_TOKENS,
    "cache_creation_input_token_cost": price_pb2.METER_CACHE_WRITE_TOKENS,
    "cache_creation_input_token_cost_above_1hr": price_pb2.METER_CACHE_WRITE_1H_TOKENS,
    "output_cost_per_reasoning_token": price_pb2.METER_REASONING_TOKENS,
    "input_cost_per_audio_token": price_pb2.METER_INPUT_AUDIO_TOKENS,
    "output_cost_per_audio_token": price_pb2.METER_OUTPUT_AUDIO_TOKENS,
    "cache_read_input_audio_token_cost": price_pb2.METER_CACHED_INPUT_AUDIO_TOKENS,
    "input_cost_per_image_token": price_pb2.METER_INPUT_IMAGE_TOKENS,
    "output_cost_per_image_token": price_pb2.METER_OUTPUT_IMAGE_TOKENS,
    "input_cost_per_request": price_pb2.METER_REQUESTS,
}
_SEARCHES: Final = "search_context_cost_per_query"
_STEPS: Final = "tiered_pricing"
_FIGURE: Final = re.compile(
    rf"({'|'.join(sorted(_METERS, key=len, reverse=True))})"
    r"(?:_above_([0-9]+)k_tokens)?(?:_(flex|priority|ultrafast))?"
)
_NOT_SOLD: Final = re.compile(
    r".*_batches|(code_interpreter|file_search|vector_store|computer_use|google_maps)_.*"
    r"|input_cost_per_token_cache_hit"
)
"""Figures for what no endpoint of the gateway consumes; the last is an older name of a read from
the cache, which is there by its present name too."""
_PER: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry: a sheet, or why there is none."""

    model: str
    sheet: PriceSheet | None = None
    why_not: str = ""


def entries(document: Mapping[str, Any], source: str) -> Iterator[Entry]:
    """The entries of providers that are known here, each model once.

    Args:
        document: the file, parsed with ``parse_float=Decimal``: floats are not exact.
        source: what the sheets say of where they are from.
    """
    told: set[str] = set()
    # `deepseek/deepseek-chat` and `deepseek-chat` are one model; the full name is the newer row.
    for key in sorted(document, key=lambda key: "/" not in key):
        row = document[key]
        provider = str(row.get("litellm_provider")) if isinstance(row, dict) else ""
        if provider not in KINDS or row.get("mode") not in MODES:
            continue
        name = key.removeprefix(f"{provider}/")
        model = f"{KINDS[provider]}/{name}"
        if model in told or (provider == "azure" and "/" in name):
            continue
        told.add(model)
        yield _entry(model, row, source)


def _entry(model: str, row: Mapping[str, Any], source: str) -> Entry:
    rates: list[Rate] = []
    for field, value in row.items():
        if value is None or _NOT_SOLD.fullmatch(field):
            continue
        found = _FIGURE.fullmatch(field)
        if field == _SEARCHES:
            rates.append(_rate(price_pb2.METER_WEB_SEARCHES, max(value.values())))
        elif field == _STEPS:
            rates += _steps(value)
        elif found is not None:
            above = int(found[2] or 0) * 1000
            rates.append(_rate(_METERS[found[1]], value, above, found[3] or ""))
        elif "cost" in field or "pricing" in field:
            return Entry(model=model, why_not=f"there is no meter for {field}")
    base = {r.meter: r for r in rates if not r.above_input_tokens and not r.service_tier}
    if price_pb2.METER_INPUT_TOKENS not in base:
        return Entry(model=model, why_not="it has no price for input")
    if row["mode"] != "embedding" and price_pb2.METER_OUTPUT_TOKENS not in base:
        return Entry(model=model, why_not="it has no price for output")
    if not any(rate.nano_usd_per_million for rate in rates):
        return Entry(model=model, why_not="it is all zeros, which may mean that nobody knows")
    return Entry(model=model, sheet=PriceSheet(model=model, rates=rates, source=source))


def _steps(steps: list[Mapping[str, Any]]) -> Iterator[Rate]:
    """Rates by the length of the input."""
    for step in steps:
        for field, value in step.items():
            if field in _METERS:
                yield _rate(_METERS[field], value, int(step["range"][0]))


def _rate(
    meter: price_pb2.Meter.ValueType, usd: Decimal | int, above: int = 0, tier: str = ""
) -> Rate:
    nano = (Decimal(usd) * _PER * NANO_PER_USD).to_integral_value(ROUND_CEILING)
    return Rate(
        meter=meter,
        nano_usd_per_million=int(nano),
        above_input_tokens=above,
        service_tier=tier,
    )
