"""One version of the catalogue as a document: prices, facts, and where both are from. Pure.

A document is complete: what was in force can be said, compared and brought back from it alone,
whatever package is installed by then. Its name is its digest. Three parts: ``prices`` as
``genai-prices`` writes them, ``facts`` as ``model_facts.json`` has them, and ``sheets``: prices of
single models from elsewhere, which win over ``prices``. The project's own corrections are in none:
they come with the gateway and win over all.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any, Final

from onegate.usage.v1 import price_pb2
from onegate.usage.v1.price_service_pb2 import ModelFacts
from runtime.money import NANO_PER_USD
from runtime.settings import KINDS
from services.usage.prices import seed
from services.usage.prices.facts import FactBook, read_facts, shipped_corrections
from services.usage.prices.genai_file import document_of, providers_of
from services.usage.prices.price_changes import NAME, NANO_USD_PER_MILLION_MAX
from services.usage.prices.pricing import Catalogue, Line, PricedModel, Tariff, Vendor

FORMAT: Final = 1
BYTES_MAX: Final = 64 * 1024 * 1024
"""The longest document, unpacked; what ships is below 3 MiB."""
PACKED_BYTES_MAX: Final = 8 * 1024 * 1024
"""The longest document as it is sent and kept."""

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A document, read: what models cost, and what is known of them beside it."""

    catalogue: Catalogue
    facts: FactBook


def shipped() -> dict[str, Any]:
    """The catalogue that is installed, as a document."""
    return {
        "format": FORMAT,
        "prices": {"source": seed.SOURCE, "providers": document_of(seed.PROVIDERS)},
        "facts": read_facts(),
        "sheets": {},
    }


def packed(document: Document) -> bytes:
    """The document as it is sent and kept: the same content is the same bytes."""
    return zlib.compress(_text(document), 9)


def digest_of(document: Document) -> str:
    """What names a document: SHA-256 of its content, as hexadecimal digits."""
    return hashlib.sha256(_text(document)).hexdigest()


def _text(document: Document) -> bytes:
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str
    )
    return text.encode("utf-8")


def unpacked(content: bytes) -> dict[str, Any]:
    """The document in what :func:`packed` made. Raises ``ValueError``."""
    if len(content) > PACKED_BYTES_MAX:
        raise ValueError(f"it is longer than {PACKED_BYTES_MAX:,} bytes")
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(content, BYTES_MAX)
    except zlib.error as error:
        raise ValueError(f"it cannot be unpacked: {error}") from None
    if not reader.eof:
        raise ValueError(f"it is cut short, or longer than {BYTES_MAX:,} bytes")
    document = json.loads(text, parse_float=str)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"it is no catalogue of format {FORMAT}")
    return document


def read(document: Document) -> Reading:
    """What a document says. Raises ``ValueError`` for what it cannot say."""
    try:
        prices = document["prices"]
        providers = providers_of(prices["providers"])
        base = seed.catalogue(providers, str(prices["source"]))
        facts = FactBook(document["facts"], shipped_corrections())
        for model in facts.models:
            facts.find(model)
        catalogue = _with_sheets(base, document["sheets"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is not complete: {error!r}") from None
    if not catalogue.models:
        raise ValueError("it has no price of any model")
    return Reading(catalogue=catalogue, facts=facts)


def source_of(document: Document) -> str:
    """Where a document is from, for people."""
    sheets = {str(sheet["source"]) for sheet in document["sheets"].values()}
    parts = [document["prices"]["source"], document["facts"]["source"], *sorted(sheets)]
    return ", ".join(dict.fromkeys(map(str, parts)))


def _with_sheets(base: Catalogue, sheets: Mapping[str, Any]) -> Catalogue:
    vendors = dict(base.vendors)
    by_kind: dict[str, dict[str, PricedModel]] = {}
    for model, row in sheets.items():
        kind, _, name = model.partition("/")
        if kind not in KINDS or NAME.fullmatch(model) is None or not name:
            raise ValueError(f"{model!r} is no kind/name")
        by_kind.setdefault(kind, {})[name] = _priced(model, row)
    for kind, models in by_kind.items():
        vendors[kind] = _overlaid(vendors.get(kind), models)
    return Catalogue(vendors)


def _overlaid(below: Vendor | None, models: Mapping[str, PricedModel]) -> Vendor:
    """The vendor's models, those of the sheets first."""
    if below is None:
        return Vendor(find=models.get, listed=models)
    find = below.find
    return Vendor(
        find=lambda name: models.get(name) or find(name), listed={**below.listed, **models}
    )


def _priced(model: str, row: Mapping[str, Any]) -> PricedModel:
    source = str(row["source"])
    lines = tuple(_line(model, rate) for rate in row["rates"])
    if not lines:
        raise ValueError(f"{model} has no rates")
    return PricedModel(
        id=model,
        source="sheet",
        origin=source,
        tariffs=(Tariff(lines=lines),),
        facts=ModelFacts(),
    )


def _line(model: str, rate: list[Any]) -> Line:
    """A rate: the meter, USD for a million units as text, above how much input, which tier."""
    meter, usd, above, *tier = rate
    if meter not in price_pb2.Meter.keys():  # noqa: SIM118 - an enum wrapper is no mapping
        raise ValueError(f"{model} has a rate for a meter that is not known here: {meter!r}")
    try:
        amount = Decimal(str(usd)) * NANO_PER_USD
        nano = int(amount.to_integral_value(ROUND_CEILING))
    except (InvalidOperation, ValueError, OverflowError):
        raise ValueError(f"{model} has a rate that is no amount of USD: {usd!r}") from None
    if not 0 <= nano <= NANO_USD_PER_MILLION_MAX:
        raise ValueError(f"{model} has a rate outside of 0 to 1,000,000 USD a million")
    return Line(
        meter=price_pb2.Meter.Value(meter),
        nano_usd_per_million=nano,
        above_input_tokens=int(above),
        service_tier=str(tier[0]) if tier else "",
    )
