"""What vendors publish, as it was read: the figures that the shipped prices are checked against.

Each row says whose page it is and on which day its figures were read there; ``quoted`` is who read
them when it was not the page itself. ``python -m tests.services.usage.published`` writes
``docs/published-prices.md`` from them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

DOCUMENT: Final = Path(__file__).resolve().parents[3] / "docs" / "published-prices.md"

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
GEMINI = "https://ai.google.dev/gemini-api/docs/pricing"
GEMINI_JANUARY = "https://aifreeapi.com/en/posts/gemini-api-pricing-2026"
GEMINI_MARCH = "https://deploybase.ai/articles/gemini-api-pricing"
DEEPSEEK = "https://api-docs.deepseek.com/quick_start/pricing"
DEEPSEEK_APRIL = "https://tokenmix.ai/blog/deepseek-api-pricing"
MISTRAL = "https://mistral.ai/pricing"
MISTRAL_MAY = "https://github.com/braintrustdata/braintrust-proxy/issues/802"
BEDROCK = "https://aws.amazon.com/bedrock/pricing/"
BEDROCK_MAY = "https://www.swfte.com/de/blog/amazon-nova-pro-pricing"
COHERE = "https://cohere.com/pricing"
COHERE_APRIL = "https://github.com/Portkey-AI/models/pull/697"
FIREWORKS = "https://docs.fireworks.ai/serverless/pricing"
TOGETHER = "https://docs.together.ai/docs/serverless/models"
SONAR = "https://docs.perplexity.ai/guides/pricing"
SONAR_GUIDE = "https://perplexity.mintlify.app/guides/models/sonar"
ZAI = "https://docs.z.ai/guides/overview/pricing"
ZAI_QUOTED = "https://docs.wolffi.sh/configuration/zai.md"
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


def fireworks(model: str) -> str:
    """A model's name at Fireworks."""
    return f"fireworks/accounts/fireworks/models/{model}"


PUBLISHED: Final = [
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
    Published("gemini/gemini-2.5-pro", "1.25 - 10", GEMINI, date(2026, 3, 1), GEMINI_MARCH),
    Published("gemini/gemini-2.5-flash", "0.3 - 2.5", GEMINI, date(2026, 3, 1), GEMINI_MARCH),
    Published(
        "gemini/gemini-2.5-flash-lite", "0.1 - 0.4", GEMINI, date(2026, 1, 1), GEMINI_JANUARY
    ),
    Published("gemini/gemini-3-pro-preview", "2 - 12", GEMINI, date(2026, 1, 1), GEMINI_JANUARY),
    Published(
        "deepseek/deepseek-v4-flash",
        "0.14 0.0028 0.28",
        DEEPSEEK,
        date(2026, 4, 30),
        DEEPSEEK_APRIL,
    ),
    Published(
        "deepseek/deepseek-v4-pro",
        "0.435 0.003625 0.87",
        DEEPSEEK,
        date(2026, 4, 30),
        DEEPSEEK_APRIL,
    ),
    Published("mistral/mistral-medium-3-5", "1.5 - 7.5", MISTRAL, date(2026, 5, 22), MISTRAL_MAY),
    Published(
        "bedrock/amazon.nova-pro-v1:0", "0.8 0.2 3.2", BEDROCK, date(2026, 5, 1), BEDROCK_MAY
    ),
    Published("cohere/command-a-03-2025", "2.5 - 10", COHERE, date(2026, 4, 14), COHERE_APRIL),
    Published("cohere/command-r-08-2024", "0.15 - 0.6", COHERE, date(2026, 4, 14), COHERE_APRIL),
    Published(
        "cohere/command-r7b-12-2024", "0.0375 - 0.15", COHERE, date(2026, 4, 14), COHERE_APRIL
    ),
    Published("perplexity/sonar", "1 - 1", SONAR, date(2025, 4, 18), SONAR_GUIDE),
    Published(fireworks("kimi-k2p6"), "0.95 0.16 4", FIREWORKS, date(2026, 11, 22)),
    Published(fireworks("kimi-k2p5"), "0.6 0.1 3", FIREWORKS, date(2026, 11, 22)),
    Published(fireworks("deepseek-v4-pro"), "1.74 0.145 3.48", FIREWORKS, date(2026, 11, 22)),
    Published(fireworks("glm-5p1"), "1.4 0.26 4.4", FIREWORKS, date(2026, 11, 22)),
    Published(fireworks("glm-4p7"), "0.6 - 2.2", FIREWORKS, date(2026, 11, 22)),
    Published(fireworks("minimax-m2p7"), "0.3 0.06 1.2", FIREWORKS, date(2026, 11, 22)),
    Published(fireworks("gpt-oss-120b"), "0.15 0.015 0.6", FIREWORKS, date(2026, 11, 22)),
    Published(fireworks("gpt-oss-20b"), "0.07 0.035 0.3", FIREWORKS, date(2026, 11, 22)),
    Published(
        "together/openai/gpt-oss-120b", "0.15 - 0.6", TOGETHER, date(2026, 5, 19), GROQ_QUOTED
    ),
    Published("zai/glm-5.1", "1.4 0.26 4.4", ZAI, date(2026, 11, 22), ZAI_QUOTED),
    Published("zai/glm-5", "1 0.2 3.2", ZAI, date(2026, 11, 22), ZAI_QUOTED),
    Published("zai/glm-4.7", "0.6 0.11 2.2", ZAI, date(2026, 11, 22), ZAI_QUOTED),
    Published("zai/glm-5.3", "1.4 - 4.4", ZAI, date(2026, 8, 20), ZAI_AUGUST),
]

HEAD: Final = """# Prices against what vendors publish

The prices that ship with the gateway, beside the figures on vendors' own pages: the test suite
compares them for the day on which each was read (`tests/services/usage/published.py`, from which
this table is written). USD for a million tokens. Where the page itself could not be read that day,
the second link is who quotes it.

| model | input | from the cache | output | the vendor's page | seen | as quoted by |
|---|---|---|---|---|---|---|
"""


def lines() -> Iterator[str]:
    """The table, a line a model."""
    for row in sorted(PUBLISHED, key=lambda row: row.model):
        told, cached, answered = (row.usd.split() + ["-"] * 3)[:3]
        quoted = f"[quoted]({row.quoted})" if row.quoted else "-"
        page = f"[page]({row.page})"
        yield f"| `{row.model}` | {told} | {cached} | {answered} | {page} | {row.on} | {quoted} |"


def document() -> str:
    """The whole document."""
    return HEAD + "\n".join(lines()) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
