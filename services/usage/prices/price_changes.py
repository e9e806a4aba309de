"""Prices that operators set: what may be set, and which price applies when. Pure.

A change is never altered: a new one takes over at its date, and of two for the same date the later
said one counts. Where the last change in force withdrew the operator's price, or there is none
yet, what ships with the gateway applies.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import price_pb2, price_service_pb2
from onegate.usage.v1.price_pb2 import PriceSheet
from runtime.errors import GatewayError
from runtime.settings import KINDS

CHANGES_MAX: Final = 10_000
"""The most changes of one request."""
RATES_MAX: Final = 200
NANO_USD_PER_MILLION_MAX: Final = 10**15
"""A dollar for a token is a mistake that a person must look at."""
SOURCE_CHARS_MAX: Final = 500
TIER_CHARS_MAX: Final = 64
ABOVE_MAX: Final = 10**9

NAME: Final = re.compile(r"[A-Za-z0-9._~:/@+-]{1,200}")
_YEAR_MIN: Final = 2020
_YEAR_MAX: Final = 2100

Shipped: TypeAlias = Callable[[datetime, datetime], list[PriceSheet]]
"""The shipped sheets of a model that apply from the first moment until the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an operator said about one model.

    Args:
        number: grows with every change that is kept.
        price: ``None`` where the operator's price is withdrawn.
    """

    number: int
    model: str
    price: PriceSheet | None
    valid_from: datetime
    recorded_at: datetime

    def to_proto(self) -> price_service_pb2.PriceChange:
        """As an operator is told."""
        told = price_service_pb2.PriceChange(model=self.model, price=self.price)
        told.valid_from.FromDatetime(self.valid_from)
        told.recorded_at.FromDatetime(self.recorded_at)
        return told


def in_force(changes: Sequence[Change], at: datetime) -> Change | None:
    """The change of one model that counts at ``at``."""
    past = [change for change in changes if change.valid_from <= at]
    return max(past, key=lambda change: (change.valid_from, change.number), default=None)


def overlaid(
    changes: Sequence[Change], shipped: Shipped, *, at: datetime, until: datetime
) -> list[PriceSheet]:
    """The sheets of one model from ``at`` until ``until``, oldest first."""
    spans: dict[datetime, Change | None] = {at: in_force(changes, at)}
    for start in sorted({c.valid_from for c in changes if at < c.valid_from < until}):
        spans[start] = in_force(changes, start)
    sheets: list[PriceSheet] = []
    starts = list(spans)
    for start, end in zip(starts, [*starts[1:], until], strict=True):
        change = spans[start]
        if change is not None and change.price is not None:
            sheets.append(change.price)
        else:
            sheets += _from(shipped(start, end), None if start == at else start)
    return sheets


def _from(sheets: list[PriceSheet], start: datetime | None) -> list[PriceSheet]:
    """The sheets, the first of which takes over at ``start`` and not when it once came up."""
    if start is None or not sheets:
        return sheets
    first = PriceSheet()
    first.CopyFrom(sheets[0])
    first.valid_from.FromDatetime(start)
    return [first, *sheets[1:]]


def checked(sheet: PriceSheet, now: datetime) -> PriceSheet:
    """The sheet as it is kept: with its version, and from when it applies.

    Raises INVALID_REQUEST for what cannot be charged, or only in part.
    """
    check_model(sheet.model)
    if not 0 < len(sheet.source) <= SOURCE_CHARS_MAX:
        raise _invalid(sheet.model, f"needs a source of at most {SOURCE_CHARS_MAX} characters")
    check_rates(sheet)
    kept = PriceSheet()
    kept.CopyFrom(sheet)
    kept.version = f"operator:{sheet.model}:{_digest(sheet)}"
    if not sheet.HasField("valid_from"):
        kept.valid_from.FromDatetime(now)
    try:
        year = kept.valid_from.ToDatetime(UTC).year
    except ValueError:
        year = 0
    if not _YEAR_MIN <= year <= _YEAR_MAX:
        raise _invalid(sheet.model, f"must apply from a day between {_YEAR_MIN} and {_YEAR_MAX}")
    return kept


def check_model(model: str) -> None:
    """Raises INVALID_REQUEST for a name that no price can have."""
    kind, _, name = model.partition("/")
    if kind not in KINDS:
        raise _invalid(model, f"must start with a kind of provider: {', '.join(KINDS)}")
    if NAME.fullmatch(name) is None:
        raise _invalid(model, "is no `kind/name`, the name as the provider has it")


def check_rates(sheet: PriceSheet) -> None:
    """Raises INVALID_REQUEST for rates that cannot be charged, or only in part."""
    if sheet.free:
        if sheet.rates:
            raise _invalid(sheet.model, "cannot be free and have rates")
        return
    if len(sheet.rates) > RATES_MAX:
        raise _invalid(sheet.model, f"may have at most {RATES_MAX} rates")
    for rate in sheet.rates:
        if rate.meter not in price_pb2.Meter.values() or not rate.meter:
            raise _invalid(sheet.model, "has a rate for a meter that is not known here")
        if not 0 <= rate.nano_usd_per_million <= NANO_USD_PER_MILLION_MAX:
            raise _invalid(sheet.model, "has a rate outside of 0 to 1,000,000 USD a million")
        words = (rate.service_tier, rate.size, rate.quality, rate.mode)
        if not 0 <= rate.above_input_tokens <= ABOVE_MAX or max(map(len, words)) > TIER_CHARS_MAX:
            raise _invalid(sheet.model, "has a tier that cannot be")
        if (rate.size or rate.quality) and rate.meter not in _BY_LOOKS:
            raise _invalid(sheet.model, "has a size or quality where only pictures and videos do")
    if len({_place(rate) for rate in sheet.rates}) < len(sheet.rates):
        raise _invalid(sheet.model, "has two rates for the same")
    base = {r.meter for r in sheet.rates if not any((r.above_input_tokens, r.service_tier, r.mode))}
    needed = {price_pb2.METER_INPUT_TOKENS}
    if "embed" not in sheet.model:
        needed.add(price_pb2.METER_OUTPUT_TOKENS)
    if not needed <= base and (needed & base or not base & _UNITS):
        # A meter without a rate would cost nothing.
        raise _invalid(sheet.model, "needs a rate for input and one for output, or to be free")


_BY_LOOKS: Final = frozenset({price_pb2.METER_IMAGES, price_pb2.METER_OUTPUT_VIDEO_SECONDS})
_UNITS: Final = frozenset(range(price_pb2.METER_IMAGES, price_pb2.METER_SEARCHES + 1))
"""Meters that can be all that a model is charged by: it needs no price for tokens then."""


def _place(rate: price_pb2.Rate) -> tuple[int, str, int, str, str, str]:
    tier = rate.service_tier, rate.above_input_tokens
    return rate.meter, *tier, rate.size, rate.quality, rate.mode


def _digest(sheet: PriceSheet) -> str:
    """Names what is charged: same rates, same version, whoever sets them and whenever."""
    lines: list[tuple[Any, ...]] = []
    for rate in sheet.rates:
        place = _place(rate)
        # Rates without looks and mode are named as they were before there were any.
        more = (place[3:],) if any(place[3:]) else ()
        lines.append((*place[:3], rate.nano_usd_per_million, *more))
    content = repr((sheet.free, sorted(lines)))
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _invalid(model: str, what: str) -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_INVALID_REQUEST,
        f"The price of {model[:80]!r} {what}.",
        param="model",
    )
