"""What differs between two versions of the catalogue, model by model. Pure."""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from onegate.usage.v1 import price_pb2
from onegate.usage.v1.price_pb2 import PriceSheet
from onegate.usage.v1.price_service_pb2 import ModelFacts
from services.usage.prices.catalogue_document import Reading
from services.usage.prices.facts import merged

_NANO_DIGITS: Final = 9
_LISTS: Final = ("input_modalities", "output_modalities", "supported_parameters")
_FACTS: Final = {
    "name": "name",
    "context_tokens_max": "context_length",
    "output_tokens_max": "max_output_tokens",
    "input_modalities": "input_modalities",
    "output_modalities": "output_modalities",
    "supported_parameters": "supported_parameters",
    "knowledge": "knowledge",
    "shutdown_on": "shutdown_date",
    "deprecated": "deprecated",
}
"""Fields of facts, and what they are called where models are listed."""


class Verdict(enum.StrEnum):
    """What became of a model."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One thing that is said of a model, before and after; empty where it is not said."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChange:
    """What a version says otherwise of one model. Prices are USD for a million units."""

    model: str
    verdict: Verdict
    fields: tuple[Field, ...]


def changes(before: Reading, after: Reading, at: datetime) -> Iterator[ModelChange]:
    """What differs, by model, with the prices that apply at ``at``."""
    old, new = _names(before), _names(after)
    for key in sorted(old.keys() | new.keys()):
        verdict = Verdict.CHANGED
        if key not in old:
            verdict = Verdict.ADDED
        elif key not in new:
            verdict = Verdict.REMOVED
        model = new.get(key) or old[key]
        said = _said(before, old[key], at) if key in old else {}
        says = _said(after, model, at) if key in new else {}
        fields = tuple(
            Field(name=name, before=said.get(name, ""), after=says.get(name, ""))
            for name in dict.fromkeys([*said, *says])
            if said.get(name, "") != says.get(name, "")
        )
        if fields:
            yield ModelChange(model=model, verdict=verdict, fields=fields)


def _names(reading: Reading) -> dict[str, str]:
    """The models of a version. Vendors take a name in any case, and lists differ in theirs."""
    names = {model.lower(): model for model in reading.facts.models}
    return {**names, **{model.lower(): model for model in reading.catalogue.models}}


def _said(reading: Reading, model: str, at: datetime) -> Mapping[str, str]:
    """All that a version says of one model, as text."""
    sheets = reading.catalogue.prices(model, at=at, until=at)
    facts = merged(reading.catalogue.facts(model), reading.facts.find(model))
    return {**(_prices(sheets[0]) if sheets else {}), **_facts(facts or ModelFacts())}


def _prices(sheet: PriceSheet) -> dict[str, str]:
    return {_rate_name(rate): usd(rate.nano_usd_per_million) for rate in sheet.rates}


def _rate_name(rate: price_pb2.Rate) -> str:
    name = price_pb2.Meter.Name(rate.meter).removeprefix("METER_").lower()
    if rate.above_input_tokens:
        name += f" above {rate.above_input_tokens:,}"
    return f"{name} ({rate.service_tier})" if rate.service_tier else name


def usd(nano: int) -> str:
    """Nano-USD as USD, exactly."""
    whole, part = divmod(nano, 10**_NANO_DIGITS)
    digits = f"{part:0{_NANO_DIGITS}d}".rstrip("0").ljust(2, "0")
    return f"{whole}.{digits}"


def _facts(facts: ModelFacts) -> dict[str, str]:
    found: dict[str, str] = {}
    for field, name in _FACTS.items():
        value = getattr(facts, field)
        text = " ".join(value) if field in _LISTS else str(value)
        if value:
            found[name] = "yes" if value is True else text
    return found
