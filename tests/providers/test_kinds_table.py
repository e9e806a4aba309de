"""The table of kinds in the documents, held against the code."""

import re
from pathlib import Path
from typing import Final

from runtime.credentials import WELL_KNOWN
from runtime.settings import KINDS
from services.router.providers import PROVIDERS
from services.router.providers.openai import OpenAIWire

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "providers.md"
AT_HOME: Final = {"ollama", "ollama-native", "vllm", "llamacpp", "lmstudio", "tgi", "tgi-native"}
"""Servers that operators run."""
ANYBODY: Final = {"compatible", "demo"}
ROW: Final = re.compile(r"\| `([\w-]+)` \|([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)\|")


def table() -> dict[str, list[str]]:
    """By kind: the vendor, the wire, the variables, how many exchanges were replayed."""
    section = DOCUMENT.read_text("utf-8").partition("## Kinds")[2].partition("\n## ")[0]
    return {kind: [cell.strip() for cell in rest] for kind, *rest in ROW.findall(section)}


def test_the_table_names_every_kind_its_wire_and_its_variables() -> None:
    rows = table()
    assert list(rows) == sorted(rows)
    assert set(rows) == set(KINDS) == set(PROVIDERS)
    for kind, (_, wire, variables, _) in rows.items():
        openais = isinstance(PROVIDERS[kind], OpenAIWire)
        assert (wire == "OpenAI's") is openais, kind
        wanted = ", ".join(f"`{name}`" for name in WELL_KNOWN.get(kind, ()))
        assert variables == wanted, kind


def test_there_are_more_vendors_than_the_fingers_of_four_hands() -> None:
    rows = table()
    vendors = {vendor for kind, (vendor, *_) in rows.items() if kind not in AT_HOME | ANYBODY}
    replayed = {vendor for vendor, _, _, count in rows.values() if count}
    assert len(vendors) >= 24
    assert len(replayed & vendors) >= 14
    assert len(rows) >= 30
