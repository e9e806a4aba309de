"""The prices that come with the package, against the package's own calculator."""

import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta, timezone
from decimal import ROUND_CEILING, Decimal, localcontext

import genai_prices
import pytest
from genai_prices import data, types

from onegate.common.v1.token_usage_pb2 import TokenUsage
from onegate.usage.v1 import price_pb2
from onegate.usage.v1.price_service_pb2 import ModelFacts
from runtime.money import cost_nano_usd
from services.usage.prices import seed

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
CATALOGUE = seed.catalogue()
PROVIDERS = {provider.id: provider for provider in data.providers}
KINDS = {
    "openai": "openai",
    "anthropic": "anthropic",
    "gemini": "google",
    "azure": "azure",
    "deepseek": "deepseek",
    "xai": "x-ai",
    "mistral": "mistral",
    "groq": "groq",
    "together": "together",
    "fireworks": "fireworks",
    "openrouter": "openrouter",
    "cerebras": "cerebras",
    "perplexity": "perplexity",
    "moonshot": "moonshotai",
    "zai": "zai",
}
MOMENTS = (
    datetime(2025, 1, 15, 0, 29, 59, tzinfo=UTC),
    datetime(2026, 10, 19, tzinfo=UTC),
    datetime(2026, 11, 21, 2, tzinfo=UTC),
    datetime(2026, 11, 21, 16, 30, tzinfo=UTC),
    datetime(2027, 3, 1, 9, 59, tzinfo=UTC),
)


def usages(chosen: random.Random) -> Iterator[tuple[TokenUsage, genai_prices.Usage]]:
    """The same consumption in our words and in theirs."""
    for size in (1, 1_000, 199_999, 300_000):
        text, cached, written, written_1h = (chosen.randrange(size) for _ in range(4))
        audio, cached_audio = chosen.randrange(size), chosen.randrange(size)
        output, reasoning, spoken = (chosen.randrange(size) for _ in range(3))
        searches = chosen.randrange(3)
        total = text + cached + cached_audio + written + written_1h + audio + 1
        yield (
            TokenUsage(
                input_tokens=total,
                cached_input_tokens=cached + cached_audio,
                cached_input_audio_tokens=cached_audio,
                cache_write_tokens=written,
                cache_write_1h_tokens=written_1h,
                input_audio_tokens=audio + cached_audio,
                output_tokens=output + reasoning + spoken,
                reasoning_tokens=reasoning,
                output_audio_tokens=spoken,
                web_searches=searches,
            ),
            genai_prices.Usage(
                input_tokens=total,
                cache_read_tokens=cached + cached_audio,
                cache_audio_read_tokens=cached_audio,
                # Theirs is the total of both lifetimes.
                cache_write_tokens=written + written_1h,
                cache_write_1h_tokens=written_1h,
                input_audio_tokens=audio + cached_audio,
                cache_audio_write_tokens=0,
                output_tokens=output + reasoning + spoken,
                output_reasoning_tokens=reasoning,
                output_audio_tokens=spoken,
                web_searches=searches,
            ),
        )


def oracle(
    provider: str, model: str, usage: genai_prices.Usage, at: datetime, tier: str = ""
) -> tuple[int, bool]:
    """Nano-USD as the source computes them, rounded up; and whether its rates are whole nano-USD
    for a million units. A few of OpenRouter's are recurring decimals, cut short.
    """
    with localcontext(prec=60):
        found = genai_prices.calc_price(
            usage,
            model,
            provider_id=provider,
            genai_request_timestamp=at,
            price_context={"service_tier": tier} if tier else None,
        )
        nano = int((found.total_price * 10**9).to_integral_value(ROUND_CEILING))
        rates = [rate for price in vars(found.model_price).values() for rate in steps(price)]
        return nano, all(rate * 10**9 % 1 == 0 for rate in rates)


def steps(price: Decimal | types.TieredPrices | None) -> list[Decimal]:
    if isinstance(price, types.TieredPrices):
        return [price.base, *(tier.price for tier in price.tiers)]
    return [] if price is None else [price]


def names(kind: str) -> list[str]:
    """Names that callers may use: all that are listed; for Azure, what it borrows too."""
    if kind == "azure":
        lenders = ["azure", *(PROVIDERS["azure"].fallback_model_providers or ())]
        return [model.id for lender in lenders for model in PROVIDERS[lender].models]
    return [m.partition("/")[2] for m in CATALOGUE.models if m.startswith(f"{kind}/")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_costs_what_the_source_itself_computes(kind: str) -> None:
    chosen = random.Random(kind)
    checked = 0
    for name in names(kind):
        at = chosen.choice(MOMENTS)
        sheet = CATALOGUE.price_for(kind, name, at)
        if sheet is None:
            continue
        for usage, theirs in usages(chosen):
            expected, exact = oracle(KINDS[kind], name, theirs, at)
            cost = cost_nano_usd(sheet, usage)
            assert expected <= cost <= expected + (0 if exact else 2), (name, at, usage)
            checked += 1
    assert checked >= 4 * {"azure": 100, "openrouter": 900, "openai": 90}.get(kind, 7)


@pytest.mark.parametrize("tier", ["flex", "priority", "fast", "default", "unheard-of"])
@pytest.mark.parametrize("kind", ["openai", "gemini", "anthropic"])
def test_a_service_tier_costs_what_the_source_itself_computes(kind: str, tier: str) -> None:
    chosen = random.Random(f"{kind}{tier}")
    for name in names(kind):
        sheet = CATALOGUE.price_for(kind, name, NOW)
        assert sheet is not None
        for usage, theirs in usages(chosen):
            usage.service_tier = tier
            if kind == "anthropic" and tier == "fast":
                continue  # Anthropic calls it speed, and the oracle has one context only.
            assert cost_nano_usd(sheet, usage) == oracle(KINDS[kind], name, theirs, NOW, tier)[0]


def test_anthropics_fast_mode_is_a_service_tier() -> None:
    usage = TokenUsage(input_tokens=1000, output_tokens=10, service_tier="fast")
    theirs = genai_prices.Usage(input_tokens=1000, output_tokens=10)
    dearer = 0
    for name in names("anthropic"):
        sheet = CATALOGUE.price_for("anthropic", name, NOW)
        assert sheet is not None
        found = genai_prices.calc_price(
            theirs,
            name,
            provider_id="anthropic",
            genai_request_timestamp=NOW,
            price_context={"speed": "fast"},
        )
        assert cost_nano_usd(sheet, usage) == found.total_price * 10**9
        dearer += any(rate.service_tier == "fast" for rate in sheet.rates)
    assert dearer >= 5


@pytest.mark.parametrize("route", ["groq", "fireworks-ai", "novita", "together"])
def test_a_hugging_face_name_is_priced_by_whom_it_is_routed_to(route: str) -> None:
    priced = [
        m for m in CATALOGUE.models if m.startswith("huggingface/") and m.endswith(f":{route}")
    ]
    assert priced
    usage = TokenUsage(input_tokens=12_345, output_tokens=678)
    theirs = genai_prices.Usage(input_tokens=12_345, output_tokens=678)
    for model in priced:
        name = model.removeprefix("huggingface/")
        sheet = CATALOGUE.price_for("huggingface", name, NOW)
        assert sheet is not None
        bare = name.removesuffix(f":{route}")
        expected, _ = oracle(f"huggingface_{route}", bare, theirs, NOW)
        assert cost_nano_usd(sheet, usage) == expected


@pytest.mark.parametrize(
    ("kind", "name", "source"),
    [
        ("openai", "gpt-4o-2024-08-06", "openai/gpt-4o"),
        ("openai", "GPT-4o", "openai/gpt-4o"),
        ("openai", "gpt-5.2-20251211", "openai/gpt-5.2"),
        ("anthropic", "claude-3-5-haiku-20241022", "anthropic/claude-3-5-haiku-latest"),
        ("gemini", "gemini-2.5-pro", "google/gemini-2.5-pro"),
        ("bedrock", "amazon.nova-pro-v1:0", "aws/amazon.nova-pro-v1:0"),
        (
            "bedrock",
            "eu.anthropic.claude-sonnet-4-5-20250929-v1:0",
            "aws/regional.anthropic.claude-sonnet-4-5-20250929-v1:0",
        ),
        (
            "bedrock",
            "global.anthropic.claude-sonnet-4-5-20250929-v1:0",
            "aws/global.anthropic.claude-sonnet-4-5-20250929-v1:0",
        ),
        ("cohere", "command-a-03-2025", "cohere/command-a"),
        ("azure", "gpt-4o", "openai/gpt-4o"),
        ("openrouter", "openai/gpt-4o", "openrouter/openai/gpt-4o"),
        ("together", "MiniMaxAI/MiniMax-M3", "together/MiniMaxAI/MiniMax-M3"),
        ("fireworks", "accounts/fireworks/models/glm-5p3", "fireworks/glm-5p3"),
        ("groq", "openai/gpt-oss-120b", "groq/openai/gpt-oss-120b"),
        ("huggingface", "Qwen/Qwen3-32B:groq", "huggingface_groq/Qwen/Qwen3-32B"),
    ],
)
def test_a_name_is_matched_as_its_provider_writes_it(kind: str, name: str, source: str) -> None:
    sheet = CATALOGUE.price_for(kind, name, NOW)
    assert sheet is not None
    assert sheet.model == f"{kind}/{name}"
    release, _, rest = sheet.version.partition(":")
    assert release == f"genai-prices-{genai_prices.__version__}"
    assert rest.rpartition(":")[0] == source


@pytest.mark.parametrize(
    ("kind", "name", "why"),
    [
        ("openai", "gpt-4o-of-tomorrow-x", "nobody knows it"),
        ("openai", "", "no name"),
        ("nobody", "gpt-4o", "no such kind"),
        ("ollama", "llama3", "an operator says that it is free"),
        ("demo", "demo", "an operator says that it is free"),
        ("compatible", "gpt-4o", "anybody may serve it"),
        ("azure", "my-deployment", "only the operator knows what it is"),
        (
            "bedrock",
            "arn:aws:bedrock:us-east-1:1:application-inference-profile/mi1dadi0g15f",
            "only the operator knows what it leads to",
        ),
        ("ollama-native", "llama3", "an operator says that it is free"),
        ("gemini", "claude-3-opus", "another API of Google's sells it"),
        ("huggingface", "Qwen/Qwen3-32B", "Hugging Face chooses who serves"),
        ("huggingface", "Qwen/Qwen3-32B:fastest", "Hugging Face chooses who serves"),
        ("openai", "whisper-1", "priced by the hour of audio"),
        ("openai", "gpt-realtime", "cached images have a rate and no meter"),
        ("perplexity", "sonar-deep-research", "citation tokens have a rate and no meter"),
        ("cerebras", "qwen-3-coder-480b", "the source has no figure and no word that it is free"),
        ("azure", "davinci", "the source forgot the output"),
        ("mistral", "mistral-nemo:free", "another vendor's offer"),
    ],
)
def test_what_cannot_be_priced_in_full_has_no_price(kind: str, name: str, why: str) -> None:
    assert CATALOGUE.price_for(kind, name, NOW) is None, why


@pytest.mark.parametrize(
    ("kind", "name"),
    [("openrouter", "qwen/qwq-32b:free"), ("gemini", "gemma-3-27b-it"), ("openai", "moderation")],
)
def test_what_the_vendor_gives_away_has_an_explicit_zero_and_a_source(kind: str, name: str) -> None:
    sheet = CATALOGUE.price_for(kind, name, NOW)
    assert sheet is not None
    assert not sheet.free
    assert {rate.nano_usd_per_million for rate in sheet.rates} == {0}
    assert sheet.source.startswith("https://")


def test_every_listed_name_has_a_price_and_the_facts_follow_the_list() -> None:
    assert len(CATALOGUE.models) > 1500
    assert all(CATALOGUE.prices(model, at=NOW, until=NOW) for model in CATALOGUE.models)
    known = {model: CATALOGUE.facts(model) or ModelFacts() for model in CATALOGUE.models}
    assert all(facts.model == model for model, facts in known.items())
    assert known["openai/gpt-4o"].context_tokens_max == 128_000
    assert known["openai/gpt-4o"].name
    assert any(facts.deprecated for facts in known.values())


def test_a_version_names_the_same_rates_on_every_machine_and_day() -> None:
    sheet = CATALOGUE.price_for("openai", "gpt-4o-mini", NOW)
    later = seed.catalogue().price_for("openai", "gpt-4o-mini", NOW + timedelta(days=100))
    assert sheet is not None
    assert later is not None
    assert sheet.version == later.version
    other = CATALOGUE.price_for("openai", "gpt-4o", NOW)
    assert other is not None
    assert other.version != sheet.version


def test_no_two_sheets_of_all_time_share_a_version_and_differ() -> None:
    rates: dict[str, list[price_pb2.Rate]] = {}
    start = datetime(2020, 1, 1, tzinfo=UTC)
    for model in CATALOGUE.models:
        if model.startswith("deepseek/"):
            continue  # Its hours would make a sheet for each day of the years.
        for sheet in CATALOGUE.prices(model, at=start, until=start + timedelta(days=4000)):
            assert rates.setdefault(sheet.version, list(sheet.rates)) == list(sheet.rates)
    assert len(rates) > 1500


def test_no_connection_is_opened_to_learn_the_prices() -> None:
    program = """
import sys
def refuse(event, arguments):
    if event.startswith("socket."):
        raise RuntimeError(f"{event} {arguments}")
sys.addaudithook(refuse)
from services.usage.prices import seed
print(len(seed.catalogue().models))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(CATALOGUE.models)


def test_an_hour_in_another_zone_stops_the_start_instead_of_moving_the_price() -> None:
    assert seed._utc(time(1, 30)) == time(1, 30, tzinfo=UTC)
    with pytest.raises(ValueError, match="another zone"):
        seed._utc(time(1, 30, tzinfo=timezone(timedelta(hours=8))))
