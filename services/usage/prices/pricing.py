"""Which price sheet applies to a model name at a moment: pure, whatever the source of the prices.

A source (:mod:`services.usage.prices.seed`) says for every kind of provider how its names are
matched and what each model costs, by date, hour of the day and service tier. This module turns
that into ``PriceSheet``: flat, dated, named for ever by a hash of what it charges. It refuses
nothing: a name without a price is ``None``, and who asked decides.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from onegate.usage.v1 import price_pb2, price_service_pb2
from onegate.usage.v1.price_pb2 import PriceSheet

_MIDNIGHT = time(0, tzinfo=UTC)
_DAY = timedelta(days=1)
_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Line:
    """One ``Rate``: what a million units of a meter cost, in nano-USD, and when that applies."""

    meter: int
    service_tier: str = ""
    above_input_tokens: int = 0
    nano_usd_per_million: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """Lines that apply together, from a UTC day on or between two hours (UTC) of every day.

    The hours may pass midnight; the end is exclusive. With neither, they always apply.
    """

    lines: tuple[Line, ...]
    starts_on: date | None = None
    hours: tuple[time, time] | None = None

    def active(self, at: datetime) -> bool:
        """Whether the lines apply at ``at``, a moment in UTC."""
        if self.hours is not None:
            start, end = self.hours
            now = at.timetz()
            return start <= now < end if start <= end else now >= start or now < end
        return self.starts_on is None or at.date() >= self.starts_on


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedModel:
    """Everything a source says about one model.

    Args:
        id: the model as the source names it (``openai/gpt-4o``); part of every version.
        source: the source and its release (``genai-prices-0.2.3``).
        tariffs: the standard prices; the last one that is active applies, the first when none is.
        tiers: prices by service tier; for each tier and meter the first active one applies.
        origin: what a sheet says of where its figures come from.
        facts: the rest; its ``model`` is not set.
    """

    id: str
    source: str
    origin: str
    tariffs: tuple[Tariff, ...]
    tiers: tuple[Tariff, ...] = ()
    facts: price_service_pb2.ModelFacts

    def lines(self, at: datetime) -> tuple[Line, ...]:
        """All that applies at ``at``, in a fixed order."""
        standard = next((t for t in reversed(self.tariffs) if t.active(at)), self.tariffs[0])
        lines = list(standard.lines)
        taken: set[tuple[str, int]] = set()
        for tariff in self.tiers:
            if tariff.active(at):
                new = [ln for ln in tariff.lines if (ln.service_tier, ln.meter) not in taken]
                taken.update((line.service_tier, line.meter) for line in new)
                lines.extend(new)
        return tuple(sorted(lines))

    def changes(self, start: datetime, end: datetime) -> list[datetime]:
        """The moments within ``[start, end)`` at which prices may change, in order."""
        moments: set[datetime] = set()
        for tariff in (*self.tariffs, *self.tiers):
            if tariff.starts_on is not None:
                moments.add(datetime.combine(tariff.starts_on, _MIDNIGHT))
            if tariff.hours is not None:
                day = start.date()
                while day <= end.date():
                    moments.update(datetime.combine(day, hour) for hour in tariff.hours)
                    day += _DAY
        return sorted(moment for moment in moments if start <= moment < end)


def schedule(
    priced: PricedModel, model: str, *, at: datetime, until: datetime
) -> list[price_pb2.PriceSheet]:
    """The sheet in force at ``at``, then each that takes over before ``until``, oldest first.

    ``model`` is the name that the sheets carry. The first sheet's ``valid_from`` is when its
    prices came into force, unset when they always were.
    """
    lines = priced.lines(at)
    sheets = [_sheet(priced, model, lines, _since(priced, lines, at))]
    for moment in priced.changes(at + _INSTANT, until):
        if (changed := priced.lines(moment)) != lines:
            lines = changed
            sheets.append(_sheet(priced, model, lines, moment))
    return sheets


def _since(priced: PricedModel, lines: tuple[Line, ...], at: datetime) -> datetime | None:
    """When ``lines``, in force at ``at``, came into force."""
    starts = [t.starts_on for t in (*priced.tariffs, *priced.tiers) if t.starts_on is not None]
    # Hours repeat, so a day before the moment or before the last change of date says it all.
    first = min([*starts, at.date()])
    hourly = any(t.hours is not None for t in priced.tariffs)
    begin = datetime.combine(at.date() if hourly else first, _MIDNIGHT) - _DAY
    for moment in reversed(priced.changes(begin, at + _INSTANT)):
        if priced.lines(moment - _INSTANT) != lines:
            return moment
    return None


def _sheet(
    priced: PricedModel, model: str, lines: tuple[Line, ...], since: datetime | None
) -> PriceSheet:
    sheet = PriceSheet(
        model=model,
        version=_version(priced, lines),
        source=priced.origin,
        rates=[
            price_pb2.Rate(
                meter=price_pb2.Meter.ValueType(line.meter),
                nano_usd_per_million=line.nano_usd_per_million,
                above_input_tokens=line.above_input_tokens,
                service_tier=line.service_tier,
            )
            for line in lines
        ],
    )
    if since is not None:
        sheet.valid_from.FromDatetime(since)
    return sheet


def _version(priced: PricedModel, lines: tuple[Line, ...]) -> str:
    """Names what is charged, for ever: same source, model and lines, same version.

    The date is no part of it: prices by the hour come back every day.
    """
    content = ";".join(
        f"{ln.meter},{ln.service_tier},{ln.above_input_tokens},{ln.nano_usd_per_million}"
        for ln in lines
    )
    return f"{priced.source}:{priced.id}:{hashlib.sha256(content.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """The models of one kind of provider.

    Args:
        find: the model behind one of its names, or ``None``.
        listed: one name of each model, for catalogues; ``find`` knows them all.
    """

    find: Callable[[str], PricedModel | None]
    listed: Mapping[str, PricedModel]


class Catalogue:
    """All prices. Models are ``kind/name``: the kind of provider, the provider's own name."""

    def __init__(self, vendors: Mapping[str, Vendor]) -> None:
        self.vendors = vendors
        """The models by the kind of their provider."""
        self.models: Sequence[str] = sorted(
            f"{kind}/{name}" for kind, vendor in vendors.items() for name in vendor.listed
        )
        """One name of every model, in order."""

    def price_for(self, kind: str, model: str, at: datetime) -> PriceSheet | None:
        """What the provider's ``model`` costs at ``at``; ``None`` when nobody knows."""
        return next(iter(self.prices(f"{kind}/{model}", at=at, until=at)), None)

    def prices(self, model: str, *, at: datetime, until: datetime) -> list[PriceSheet]:
        """As :func:`schedule`, under the name that was asked for; empty when nobody knows."""
        priced = self._find(model)
        at, until = at.astimezone(UTC), until.astimezone(UTC)
        return [] if priced is None else schedule(priced, model, at=at, until=until)

    def facts(self, model: str) -> price_service_pb2.ModelFacts | None:
        """What is known of a model beside its price; ``None`` for a name without one."""
        priced = self._find(model)
        if priced is None:
            return None
        facts = price_service_pb2.ModelFacts(model=model, sources=[priced.source])
        facts.MergeFrom(priced.facts)
        return facts

    def _find(self, model: str) -> PricedModel | None:
        kind, _, name = model.partition("/")
        vendor = self.vendors.get(kind)
        if vendor is None or not name:
            return None
        # Matching a name against a vendor's patterns takes a thousand times longer than this.
        return vendor.listed.get(name) or vendor.find(name)
