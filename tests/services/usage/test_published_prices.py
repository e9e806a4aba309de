"""Spot checks: prices that ship, against the figures that vendors publish.

Each row says whose page it is and on which day its figures were read there; ``quoted`` is who read
them when it was not the page itself. A row that fails after an update of the price
source is a question for a person: either the vendor changed its price, and the row is to be
renewed from the page, or the source is wrong.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from urllib.parse import urlsplit

import pytest

from onegate.usage.v1 import price_pb2
from services.usage.prices import seed

CATALOGUE = seed.catalogue()

CLAUDE = "https://platform.claude.com/docs/en/about-claude/pricing"
CLAUDE_QUOTED = "https://docs.rs/synaps/0.10.2/synaps_cli/pricing/index.html"
OPENAI = "https://developers.openai.com/api/docs/pricing"
OPENAI_JUNE = "https://www.morphllm.com/openai-api-pricing"
OPENAI_SEPTEMBER = "https://github.com/TheKrush/PromptFuel/releases/tag/v1.0.19"
KIMI = "https://platform.moonshot.ai/docs/pricing/chat"
KIMI_MARCH = (
    "https://megalodon.jp/ref/2026-0326-0135-31/https://platform.moonshot.ai:443/docs/pricing/chat"
)
KIMI_JUNE = "https://developer.puter.com/tutorials/kimi-api-pricing/"
XAI = "https://docs.x.ai/docs/models"
XAI_ARCHIVED = "https://archive.fo/dYUtw"
GROQ = "https://console.groq.com/docs/models"
GROQ_QUOTED = "https://github.com/braintrustdata/braintrust-proxy/issues/566"
CEREBRAS = "https://inference-docs.cerebras.ai/models/overview"
CEREBRAS_QUOTED = "https://docs.rs/crate/harn-vm/0.8.113/source/src/llm/catalog_sources/60-models/30-cerebras.toml"
ZAI = "https://docs.z.ai/guides/overview/pricing"
ZAI_AUGUST = "https://github.com/VladoIvankovic/Codeep/releases/tag/v2.20.0"


@dataclass(frozen=True, slots=True)
class Published:
    """Figures of a page, in USD for a million tokens: input, read from the cache, output, and
    written to the cache for five minutes and for an hour. An empty one is not checked.
    """

    model: str
    usd: str
    page: str
    on: date
    quoted: str = ""


PUBLISHED = [
    Published("anthropic/claude-fable-5-1", "10 0.25 50 12.5 20", CLAUDE, date(2026, 11, 21)),
    Published("anthropic/claude-fable-5", "10 1 50 12.5 20", CLAUDE, date(2026, 11, 21)),
    Published("anthropic/claude-opus-5", "5 0.5 25 6.25 10", CLAUDE, date(2026, 11, 21)),
    Published("anthropic/claude-opus-4-8", "5 0.5 25 6.25 10", CLAUDE, date(2026, 11, 21)),
    Published("anthropic/claude-opus-4-7", "5 0.5 25 6.25 10", CLAUDE, date(2026, 11, 21)),
    Published("anthropic/claude-opus-4-6", "5 0.5 25 6.25 10", CLAUDE, date(2026, 11, 21)),
    Published("anthropic/claude-opus-4-5", "5 0.5 25 6.25 10", CLAUDE, date(2026, 11, 21)),
    Published("anthropic/claude-opus-4-1", "15 1.5 75 18.75 30", CLAUDE, date(2026, 11, 21)),
    Published("anthropic/claude-opus-5-5", "4 0.2 20", CLAUDE, date(2026, 10, 10), CLAUDE_QUOTED),
    Published("anthropic/claude-sonnet-5-5", "2 0.1 10", CLAUDE, date(2026, 10, 10), CLAUDE_QUOTED),
    Published(
        "anthropic/claude-haiku-5-5", "0.1 0.01 0.5", CLAUDE, date(2026, 10, 10), CLAUDE_QUOTED
    ),
    Published("openai/gpt-5.5", "5 0.5 30", OPENAI, date(2026, 6, 1), OPENAI_JUNE),
    Published("openai/gpt-5.5-pro", "30 - 180", OPENAI, date(2026, 6, 1), OPENAI_JUNE),
    Published("openai/gpt-5.4", "2.5 0.25 15", OPENAI, date(2026, 6, 1), OPENAI_JUNE),
    Published("openai/gpt-5.4-mini", "0.75 0.075 4.5", OPENAI, date(2026, 6, 1), OPENAI_JUNE),
    Published("openai/gpt-5.4-nano", "0.2 0.02 1.25", OPENAI, date(2026, 6, 1), OPENAI_JUNE),
    Published("openai/gpt-5.4-pro", "30 - 180", OPENAI, date(2026, 6, 1), OPENAI_JUNE),
    Published("openai/gpt-5.6-terra", "2 0.2 12", OPENAI, date(2026, 9, 7), OPENAI_SEPTEMBER),
    Published("openai/gpt-5.6-luna", "0.2 0.02 1.2", OPENAI, date(2026, 9, 7), OPENAI_SEPTEMBER),
    Published("openai/gpt-6-astra", "10 1 50", OPENAI, date(2026, 9, 7), OPENAI_SEPTEMBER),
    Published("moonshot/kimi-k2.5", "0.6 0.1 3", KIMI, date(2026, 3, 26), KIMI_MARCH),
    Published("moonshot/kimi-k2-0905-preview", "0.6 0.15 2.5", KIMI, date(2026, 3, 26), KIMI_MARCH),
    Published("moonshot/kimi-k2.6", "0.95 0.16 4", KIMI, date(2026, 6, 1), KIMI_JUNE),
    Published("moonshot/kimi-k2.7-code", "0.95 0.19 4", KIMI, date(2026, 6, 1), KIMI_JUNE),
    Published("xai/grok-3", "3 0.75 15", XAI, date(2025, 6, 2), XAI_ARCHIVED),
    Published("xai/grok-3-fast", "5 1.25 25", XAI, date(2025, 6, 2), XAI_ARCHIVED),
    Published("xai/grok-3-mini", "0.3 0.075 0.5", XAI, date(2025, 6, 2), XAI_ARCHIVED),
    Published("xai/grok-3-mini-fast", "0.6 0.15 4", XAI, date(2025, 6, 2), XAI_ARCHIVED),
    Published("groq/openai/gpt-oss-120b", "0.15 - 0.6", GROQ, date(2026, 5, 19), GROQ_QUOTED),
    Published("cerebras/gpt-oss-120b", "0.35 - 0.75", CEREBRAS, date(2026, 6, 12), CEREBRAS_QUOTED),
    Published("zai/glm-5.3", "1.4 - 4.4", ZAI, date(2026, 8, 20), ZAI_AUGUST),
]

METERS = (
    price_pb2.METER_INPUT_TOKENS,
    price_pb2.METER_CACHED_INPUT_TOKENS,
    price_pb2.METER_OUTPUT_TOKENS,
    price_pb2.METER_CACHE_WRITE_TOKENS,
    price_pb2.METER_CACHE_WRITE_1H_TOKENS,
)


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda row: row.model)
def test_what_ships_is_what_the_vendor_publishes(published: Published) -> None:
    kind, _, name = published.model.partition("/")
    on = published.on
    sheet = CATALOGUE.price_for(kind, name, datetime(on.year, on.month, on.day, 12, tzinfo=UTC))
    assert sheet is not None
    base = {
        rate.meter: Decimal(rate.nano_usd_per_million) / 10**9
        for rate in sheet.rates
        if not rate.above_input_tokens and not rate.service_tier
    }
    told = {
        meter: Decimal(figure)
        for meter, figure in zip(METERS, published.usd.split(), strict=False)
        if figure != "-"
    }
    assert {meter: base.get(meter) for meter in told} == told


def test_thirty_prices_of_seven_vendors_are_checked_and_each_says_where_it_is_from() -> None:
    assert len(PUBLISHED) >= 30
    assert len({row.model.partition("/")[0] for row in PUBLISHED}) >= 7
    for row in PUBLISHED:
        for url in filter(None, (row.page, row.quoted)):
            assert urlsplit(url).scheme == "https"
