"""Makes the next version of the catalogue from a file in one of four formats. Pure.

========================  ==========================================================================
``genai-prices``' file    all prices (``prices``)
``model_facts.json``      all facts, as ``tools/model_facts.py`` writes them
models.dev's ``api.json`` all facts, and the prices of models that have none otherwise
LiteLLM's price map       the prices that differ or are new, and the limits and dates it knows
========================  ==========================================================================

Which of them it is shows in the file itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from onegate.usage.v1 import price_pb2
from onegate.usage.v1.price_pb2 import PriceSheet
from runtime.money import NANO_PER_USD
from runtime.patterns import matches
from services.usage.prices import catalogue_document, litellm, models_dev
from services.usage.prices.catalogue_document import Document
from services.usage.prices.genai_file import document_of, providers_of
from services.usage.prices.pricing import Catalogue

_LITELLM_CAN: Final = {
    "supports_function_calling": "tool_call",
    "supports_response_schema": "structured_output",
    "supports_reasoning": "reasoning",
}
_LITELLM_READS: Final = {
    "supports_vision": "image",
    "supports_pdf_input": "pdf",
    "supports_audio_input": "audio",
    "supports_video_input": "video",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What of a file is wanted.

    Attributes:
        models: only prices and limits of models that match, from LiteLLM's map and models.dev.
        new_only: only prices of models without one.
    """

    models: str = "*"
    new_only: bool = False


def imported(
    before: Document, file: Any, origin: str, wanted: Wanted, at: datetime
) -> dict[str, Any]:
    """The next version.

    Args:
        before: the version in force.
        file: the file, parsed with ``parse_float=Decimal``.
        origin: what the version says of where it is from.
        wanted: what of it.
        at: when prices are compared.

    Raises ``ValueError`` for a file in none of the formats.
    """
    after = dict(before)
    is_facts = (
        isinstance(file, Mapping)
        and isinstance(file.get("models"), Mapping)
        and isinstance(file.get("source"), str)
    )
    if (isinstance(file, list) or is_facts) and wanted != Wanted():
        raise ValueError("it is taken as a whole: no models can be picked from it")
    if isinstance(file, list):
        providers = document_of(providers_of(file))
        return {**after, "prices": {"source": f"genai-prices {origin}", "providers": providers}}
    if not isinstance(file, Mapping):
        raise ValueError("it is in none of the known formats")  # noqa: TRY004 - the file is
    if is_facts:
        return {**after, "facts": {"source": file["source"], "models": dict(file["models"])}}
    catalogue = catalogue_document.read(before).catalogue
    if models_dev.is_api(file):
        name = f"models.dev {origin}"
        facts = {"source": name, "models": models_dev.facts_in(file)}
        sheets = dict(_from_models_dev(file, catalogue, name, wanted, at))
        return {**after, "facts": facts, "sheets": {**before["sheets"], **sheets}}
    entries = list(_litellm_entries(file, f"LiteLLM {origin}", wanted))
    if not entries:
        raise ValueError("it is in none of the known formats, or has no model that is wanted")
    return {
        **after,
        "facts": _with_limits(before["facts"], file, entries, f"LiteLLM {origin}"),
        "sheets": {**before["sheets"], **dict(_changed(entries, catalogue, wanted, at))},
    }


def _from_models_dev(
    file: Mapping[str, Any], catalogue: Catalogue, origin: str, wanted: Wanted, at: datetime
) -> Iterator[tuple[str, dict[str, Any]]]:
    for model, rates in models_dev.prices_in(file).items():
        known = catalogue.prices(model, at=at, until=at)
        if not known and matches(wanted.models, model) and _is_whole(model, rates):
            yield model, {"source": origin, "rates": rates}


def _is_whole(model: str, rates: list[list[Any]]) -> bool:
    """Whether a call can be charged in full: a meter without a rate would cost nothing."""
    base = {rate[0] for rate in rates if not rate[2]}
    needed = {"METER_INPUT_TOKENS"}
    if "embed" not in model:
        needed.add("METER_OUTPUT_TOKENS")
    return needed <= base


def _litellm_entries(
    file: Mapping[str, Any], origin: str, wanted: Wanted
) -> Iterator[litellm.Entry]:
    try:
        for entry in litellm.entries(file, origin):
            if matches(wanted.models, entry.model):
                yield entry
    except (ArithmeticError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"it is not as LiteLLM has it: {error}") from None


def _changed(
    entries: list[litellm.Entry], catalogue: Catalogue, wanted: Wanted, at: datetime
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The prices that say something else than those known: what agrees keeps its tiers."""
    for entry in entries:
        if entry.sheet is None:
            continue
        known = catalogue.prices(entry.model, at=at, until=at)
        if known and (wanted.new_only or _base(known[0]) == _base(entry.sheet)):
            continue
        rates = [
            [
                price_pb2.Meter.Name(rate.meter),
                str(Decimal(rate.nano_usd_per_million) / NANO_PER_USD),
                rate.above_input_tokens,
                rate.service_tier,
            ]
            for rate in entry.sheet.rates
        ]
        yield entry.model, {"source": entry.sheet.source, "rates": rates}


def _base(sheet: PriceSheet) -> dict[int, int]:
    """The standard rates of a sheet."""
    return {
        rate.meter: rate.nano_usd_per_million
        for rate in sheet.rates
        if not rate.above_input_tokens and not rate.service_tier
    }


def _with_limits(
    facts: Mapping[str, Any], file: Mapping[str, Any], entries: list[litellm.Entry], origin: str
) -> dict[str, Any]:
    """The facts, and over them what LiteLLM's map knows of limits, capabilities and dates."""
    rows = dict(facts["models"])
    spelt = {name.lower(): name for name in rows}
    for entry in entries:
        row = _row_of(file, entry.model)
        name = spelt.get(entry.model.lower(), entry.model)
        # What it does not say that a model can, it does not deny.
        found = {**_abilities(row), **rows.get(name, {}), **_limits(row)}
        if found:
            rows[name] = found
    if rows == facts["models"]:
        return dict(facts)
    sources = [part for part in str(facts["source"]).split("; ") if not part.startswith("LiteLLM")]
    return {"source": "; ".join([*sources, origin]), "models": rows}


def _row_of(file: Mapping[str, Any], model: str) -> Mapping[str, Any]:
    kind, _, name = model.partition("/")
    providers = [theirs for theirs, ours in litellm.KINDS.items() if ours == kind]
    keys = [key for provider in providers for key in (f"{provider}/{name}", name) if key in file]
    found: Mapping[str, Any] = file[keys[0]] if keys else {}
    return found


def _limits(row: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field, key in (("context", "max_input_tokens"), ("output", "max_output_tokens")):
        if isinstance(row.get(key), int) and row[key] > 0 and row.get("mode") != "embedding":
            found[field] = row[key]
    if isinstance(row.get("deprecation_date"), str):
        found["shutdown_on"] = row["deprecation_date"]
    return found


def _abilities(row: Mapping[str, Any]) -> dict[str, Any]:
    can = [word for key, word in _LITELLM_CAN.items() if row.get(key)]
    reads = [word for key, word in _LITELLM_READS.items() if row.get(key)]
    return models_dev.row(can=" ".join(can), reads=" ".join(["text", *reads]) if reads else "")
