"""The prices that a fresh installation starts with: those of the ``genai-prices`` package.

They come with the package, as of its release: nothing is fetched, a start without a network is the
same as one with. This module only translates: its provider ids to our kinds, its price keys to our
meters, its matching of names as it is.

A price that cannot be counted in full is no price: a model whose price has a key without a meter
(audio by the hour, pages, video) is left out, so that it is refused instead of billed in part.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, time
from decimal import ROUND_CEILING, Decimal
from importlib.metadata import version
from typing import Final, assert_never

from genai_prices import data, types

from onegate.usage.v1 import price_pb2, price_service_pb2
from runtime.money import NANO_PER_USD
from services.usage.prices.pricing import Catalogue, Line, PricedModel, Tariff, Vendor

SOURCE: Final = f"genai-prices-{version('genai-prices')}"
"""The installed package and its release."""

PROVIDERS: Final[Sequence[types.Provider]] = data.providers
"""What the installed package says."""

_METERS: Final[Mapping[str, tuple[int, int]]] = {
    "input_mtok": (price_pb2.METER_INPUT_TOKENS, 1),
    "cache_read_mtok": (price_pb2.METER_CACHED_INPUT_TOKENS, 1),
    "cache_write_mtok": (price_pb2.METER_CACHE_WRITE_TOKENS, 1),
    "cache_write_1h_mtok": (price_pb2.METER_CACHE_WRITE_1H_TOKENS, 1),
    "input_audio_mtok": (price_pb2.METER_INPUT_AUDIO_TOKENS, 1),
    "cache_audio_read_mtok": (price_pb2.METER_CACHED_INPUT_AUDIO_TOKENS, 1),
    "input_image_mtok": (price_pb2.METER_INPUT_IMAGE_TOKENS, 1),
    "output_mtok": (price_pb2.METER_OUTPUT_TOKENS, 1),
    "output_reasoning_mtok": (price_pb2.METER_REASONING_TOKENS, 1),
    "output_audio_mtok": (price_pb2.METER_OUTPUT_AUDIO_TOKENS, 1),
    "output_image_mtok": (price_pb2.METER_OUTPUT_IMAGE_TOKENS, 1),
    "requests_kcount": (price_pb2.METER_REQUESTS, 1000),
    "web_searches_kcount": (price_pb2.METER_WEB_SEARCHES, 1000),
}
"""Price key to meter, and by what to multiply its USD to get the price of a million units."""

_NOT_SOLD: Final = frozenset({"storage_searches_kcount"})
"""Keys for what no endpoint of the gateway can consume: OpenAI's file search runs in its Responses
API only (https://platform.openai.com/docs/guides/tools-file-search).
"""

_TIER_KEYS: Final = ("service_tier", "speed")
"""The variants that a single call can choose; Anthropic's fast mode is its ``speed``
(https://platform.claude.com/docs/en/build-with-claude/fast-mode).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """Where a kind's prices stand.

    Args:
        provider: the provider's id at the source.
        names: only names that start with one of these are the kind's own; empty for all.
        fallback: other providers' models are priced too, as the source says.
        listed: the models make sense in a catalogue.
    """

    provider: str
    names: tuple[str, ...] = ("",)
    fallback: bool = False
    listed: bool = True


_KINDS: Final[Mapping[str, _Kind]] = {
    "openai": _Kind(provider="openai"),
    "anthropic": _Kind(provider="anthropic"),
    # The source's Google also sells Claude and others on Vertex AI, which is another API.
    "gemini": _Kind(provider="google", names=("gemini-", "gemma-")),
    "vertex": _Kind(provider="google", names=("gemini-", "claude-")),
    "cohere": _Kind(provider="cohere"),
    # The source's names stand for the models of many regions (`regional.…`) and call none of them.
    "bedrock": _Kind(provider="aws", listed=False),
    # Azure's models are what an operator deployed. A deployment that is named as its model has
    # that model's price; any other name has none.
    "azure": _Kind(provider="azure", fallback=True, listed=False),
    "azure-deployments": _Kind(provider="azure", fallback=True, listed=False),
    "deepseek": _Kind(provider="deepseek"),
    "xai": _Kind(provider="x-ai"),
    "mistral": _Kind(provider="mistral"),
    "groq": _Kind(provider="groq"),
    "together": _Kind(provider="together"),
    "fireworks": _Kind(provider="fireworks"),
    "openrouter": _Kind(provider="openrouter"),
    "cerebras": _Kind(provider="cerebras"),
    "perplexity": _Kind(provider="perplexity"),
    "moonshot": _Kind(provider="moonshotai"),
    "zai": _Kind(provider="zai"),
}
"""Kinds that are missing here have no price at the source: a model of theirs must be marked free
or priced by its operator.
"""

_HUGGINGFACE: Final = "huggingface_"
"""Provider ids of what Hugging Face routes to; the rest is the suffix of its model names
(``Qwen/Qwen3-32B:groq``, https://huggingface.co/docs/inference-providers).
"""

_FREE: Final[Mapping[str, tuple[Callable[[str], bool], str]]] = {
    "openrouter": (
        lambda name: name.endswith(":free"),
        "https://openrouter.ai/docs/guides/routing/model-variants/free",
    ),
    "google": (
        lambda name: name.startswith("gemma-"),
        "https://ai.google.dev/gemini-api/docs/pricing",
    ),
    "openai": (
        lambda name: name == "moderation",
        "https://platform.openai.com/docs/guides/moderation",
    ),
}
"""By provider id: which of the models without any figure cost nothing, and where the vendor says
so. Elsewhere a price without a figure is unknown.
"""


def catalogue(providers: Sequence[types.Provider] = PROVIDERS, source: str = SOURCE) -> Catalogue:
    """All prices of some release of ``genai-prices``, by default of the installed one.

    Args:
        providers: what it says.
        source: the release (``genai-prices-0.2.3``).
    """
    by_id = {provider.id: provider for provider in providers}
    book = _Book(providers=list(providers), source=source)
    vendors = {
        kind: _vendor(by_id[entry.provider], entry, book)
        for kind, entry in _KINDS.items()
        if entry.provider in by_id
    }
    vendors["huggingface"] = _huggingface(book)
    return Catalogue(vendors)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Book:
    """All that one release says, and its name."""

    providers: list[types.Provider]
    source: str


def _vendor(provider: types.Provider, kind: _Kind, book: _Book) -> Vendor:
    others = book.providers if kind.fallback else None
    lent = provider.fallback_model_providers if kind.fallback else None
    lenders = [p for p in book.providers if p.id in (lent or ())]
    priced = {id(m): _priced(p.id, m, book.source) for p in (provider, *lenders) for m in p.models}

    def find(name: str) -> PricedModel | None:
        if not name.lower().startswith(kind.names):
            return None
        model = provider.find_model(name, all_providers=others)
        return None if model is None else priced[id(model)]

    return Vendor(find=find, listed=dict(_listed(provider, find)) if kind.listed else {})


def _huggingface(book: _Book) -> Vendor:
    """Names end in whom Hugging Face shall route to. Without that it chooses, and so the price."""
    routes = {
        provider.id.removeprefix(_HUGGINGFACE): _vendor(provider, _Kind(provider=provider.id), book)
        for provider in book.providers
        if provider.id.startswith(_HUGGINGFACE)
    }

    def find(name: str) -> PricedModel | None:
        model, _, route = name.rpartition(":")
        vendor = routes.get(route)
        return None if vendor is None else vendor.find(model)

    listed = {
        f"{name}:{route}": priced
        for route, vendor in routes.items()
        for name, priced in vendor.listed.items()
    }
    return Vendor(find=find, listed=listed)


def _listed(
    provider: types.Provider, find: Callable[[str], PricedModel | None]
) -> Iterator[tuple[str, PricedModel]]:
    """For each model its first name that leads to it; patterns alone name nothing."""
    for model in provider.models:
        for name in (model.id, *_equals(model.match)):
            found = find(name)
            if found is not None and found.id == f"{provider.id}/{model.id}":
                yield name, found
                break


def _equals(clause: object) -> Iterator[str]:
    match clause:
        case types.ClauseEquals(equals=name):
            yield name
        case types.ClauseOr(or_=clauses):
            for inner in clauses:
                yield from _equals(inner)
        case _:
            return


def _priced(provider_id: str, model: types.ModelInfo, source: str) -> PricedModel | None:
    """The model with all its prices, or ``None`` when it has none that can be counted."""
    prices = model.prices
    if isinstance(prices, types.ModelPrice):
        prices = [types.ConditionalPrice(prices=prices)]
    tariffs = [_tariff(price.prices, price.constraint, "") for price in prices]
    tiers = [
        _tariff(variant.prices, variant.constraint, variant.when[key])
        for variant in model.price_variants or ()
        for key in _TIER_KEYS
        if [*variant.when] == [key]
    ]
    origin = source
    if not any(_figures(price.prices) for price in prices):
        is_free, origin = _FREE.get(provider_id, (lambda _: False, ""))
        tariffs = [_NOTHING] if is_free(model.id) else []
    sold = [tariff for tariff in tariffs if tariff is not None and _covers(tariff, model.id)]
    known_tiers = [tariff for tariff in tiers if tariff is not None]
    if not tariffs or len(sold) < len(tariffs) or len(known_tiers) < len(tiers):
        return None
    return PricedModel(
        id=f"{provider_id}/{model.id}",
        source=source,
        origin=origin,
        tariffs=tuple(sold),
        tiers=tuple(tariff for tariff in known_tiers if tariff.lines),
        facts=price_service_pb2.ModelFacts(
            name=model.name or "",
            context_tokens_max=model.context_window or 0,
            deprecated=bool(model.deprecated),
        ),
    )


_NOTHING: Final = Tariff(
    lines=(
        Line(meter=price_pb2.METER_INPUT_TOKENS, nano_usd_per_million=0),
        Line(meter=price_pb2.METER_OUTPUT_TOKENS, nano_usd_per_million=0),
    )
)
"""What is free says so, line by line."""


def _covers(tariff: Tariff, model_id: str) -> bool:
    """Whether standard prices cover what a model consumes. Only an embedding has no output: a
    price without an output rate is otherwise one that the source did not write down.
    """
    needed = {price_pb2.METER_INPUT_TOKENS}
    if "embed" not in model_id:
        needed.add(price_pb2.METER_OUTPUT_TOKENS)
    return needed <= {line.meter for line in tariff.lines}


def _figures(prices: types.ModelPrice) -> dict[str, Decimal | types.TieredPrices]:
    """The prices that matter here, by the source's key."""
    return {
        key: price
        for key, price in vars(prices).items()
        if key not in _NOT_SOLD and price is not None
    }


def _tariff(
    prices: types.ModelPrice,
    constraint: types.StartDateConstraint | types.TimeOfDateConstraint | None,
    service_tier: str,
) -> Tariff | None:
    """One set of prices; ``None`` when a part of it cannot be counted."""
    figures = _figures(prices)
    if figures.keys() - _METERS.keys():
        return None
    lines = tuple(ln for key, price in figures.items() for ln in _lines(key, price, service_tier))
    match constraint:
        case types.StartDateConstraint(start_date=day):
            return Tariff(lines=lines, starts_on=day)
        case types.TimeOfDateConstraint(start_time=start, end_time=end):
            return Tariff(lines=lines, hours=(_utc(start), _utc(end)))
        case None:
            return Tariff(lines=lines)
        case _:
            assert_never(constraint)


def _utc(hour: time) -> time:
    """The source writes hours in UTC; another zone would need a date to be exact."""
    if hour.utcoffset():
        raise ValueError(f"{SOURCE} has a price by the hour in another zone than UTC: {hour}")
    return hour.replace(tzinfo=UTC)


def _lines(key: str, price: Decimal | types.TieredPrices, service_tier: str) -> Iterator[Line]:
    meter, factor = _METERS[key]
    steps = [(0, price)] if isinstance(price, Decimal) else [(0, price.base)]
    if isinstance(price, types.TieredPrices):
        steps += [(tier.start, tier.price) for tier in price.tiers]
    for above, usd in steps:
        # A few rates are recurring decimals cut short (1/12 USD): rounding up never undercharges.
        nano = (usd * factor * NANO_PER_USD).to_integral_value(ROUND_CEILING)
        yield Line(
            meter=meter,
            service_tier=service_tier,
            above_input_tokens=above,
            nano_usd_per_million=int(nano),
        )
