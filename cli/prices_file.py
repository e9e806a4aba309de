"""Prices in a file of our own, TOML or JSON: every meter, every tier.

```toml
[[price]]
model = "openai/gpt-image-1"
source = "https://openai.com/api/pricing"
from = 2026-12-01                    # or a time; left out: from now on

[[price.rate]]
meter = "input_tokens"
usd = "5.00"                         # for a million tokens

[[price.rate]]
meter = "images"
size = "1024x1024"
quality = "high"
usd = "0.167"                        # for one picture
```

Money is for a million units of meters that count tokens and for one unit of all others. It is read
as a decimal, whether it is written as text or as a number.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any, Final

from onegate.usage.v1 import price_pb2
from onegate.usage.v1.price_pb2 import PriceSheet, Rate
from runtime.money import NANO_PER_USD

_PREFIX: Final = "METER_"
_MILLION: Final = 1_000_000
_RATE_FIELDS: Final = frozenset(
    {"meter", "usd", "above_input_tokens", "tier", *("size", "quality")}
)
_SHEET_FIELDS: Final = frozenset({"model", "source", "from", "free", "rate"})

METERS: Final[Mapping[str, price_pb2.Meter.ValueType]] = {
    price_pb2.Meter.Name(number).removeprefix(_PREFIX).lower(): number
    for number in price_pb2.Meter.values()
    if number
}
"""Meters by the names that people write."""

UNITS: Final[Mapping[int, str]] = {
    price_pb2.METER_REQUESTS: "request",
    price_pb2.METER_WEB_SEARCHES: "search",
    price_pb2.METER_IMAGES: "image",
    price_pb2.METER_INPUT_AUDIO_SECONDS: "second",
    price_pb2.METER_OUTPUT_AUDIO_SECONDS: "second",
    price_pb2.METER_INPUT_VIDEO_SECONDS: "second",
    price_pb2.METER_OUTPUT_VIDEO_SECONDS: "second",
    price_pb2.METER_INPUT_CHARACTERS: "character",
    price_pb2.METER_OUTPUT_CHARACTERS: "character",
    price_pb2.METER_PAGES: "page",
    price_pb2.METER_SEARCHES: "search",
}
"""What the price of a meter is for; all others are for a million tokens."""


class PriceFileError(Exception):
    """What is wrong with a file or a rate, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which rate of a sheet: its meter and what restricts it."""

    meter: str
    tier: str = ""
    above_input_tokens: int = 0
    size: str = ""
    quality: str = ""
    mode: str = ""

    def __str__(self) -> str:
        """``images size=1024x1024``."""
        above = self.above_input_tokens
        limits = {
            "tier": self.tier,
            "above": f"{above}" if above else "",
            "size": self.size,
            "quality": self.quality,
            "mode": self.mode,
        }
        return " ".join([self.meter, *(f"{name}={word}" for name, word in limits.items() if word)])


def meter_name(meter: int) -> str:
    """A meter as people write it; ``meter 99`` for one that this version does not know."""
    try:
        return price_pb2.Meter.Name(price_pb2.Meter.ValueType(meter))[len(_PREFIX) :].lower()
    except ValueError:
        return f"meter {meter}"


def places(sheet: PriceSheet) -> dict[Place, Rate]:
    """A sheet's rates by what they are for, in a fixed order."""
    found = {
        Place(
            meter=meter_name(rate.meter),
            tier=rate.service_tier,
            above_input_tokens=rate.above_input_tokens,
            size=rate.size,
            quality=rate.quality,
            mode=rate.mode,
        ): rate
        for rate in sheet.rates
    }
    return dict(sorted(found.items(), key=lambda one: (one[1].meter, str(one[0]))))


def usd_of(rate: Rate) -> Decimal:
    """USD for a million tokens, or for one of what else the meter counts; exact."""
    nano = Decimal(rate.nano_usd_per_million) / NANO_PER_USD
    return nano / _MILLION if rate.meter in UNITS else nano


def unit_of(rate: Rate) -> str:
    """What :func:`usd_of` is for."""
    return UNITS.get(rate.meter, "1M tokens")


def rate_of(text: str) -> Rate:
    """A rate as the command line has it: ``images,size=1024x1024,quality=hd=0.04``.

    Raises ``PriceFileError``.
    """
    where, separator, usd = text.rpartition("=")
    meter, *limits = where.split(",")
    fields: dict[str, Any] = {"meter": meter, "usd": usd}
    for limit in limits:
        name, equals, word = limit.partition("=")
        if not equals or name in fields:
            separator = ""
        fields["above_input_tokens" if name == "above" else name] = word
    if not separator:
        raise PriceFileError(f"{text!r} is no rate: write images,size=1024x1024,quality=hd=0.04")
    if (above := fields.get("above_input_tokens", "0")).isdecimal():
        fields["above_input_tokens"] = int(above)
    return _rate(fields)


def sheets_of(raw: bytes, *, is_json: bool) -> list[PriceSheet]:
    """The sheets of a file. Raises ``PriceFileError``."""
    try:
        text = raw.decode()
        if is_json:
            document: Any = json.loads(text, parse_float=Decimal)
        else:
            document = tomllib.loads(text, parse_float=Decimal)
    except ValueError as error:
        raise PriceFileError(f"it is no {'JSON' if is_json else 'TOML'}: {error}") from None
    prices = document.get("price") if isinstance(document, dict) else None
    if not isinstance(prices, list) or not prices or document.keys() - {"price"}:
        raise PriceFileError("it must be a list of [[price]] and nothing else")
    found = []
    for number, price in enumerate(prices, 1):
        try:
            found.append(_sheet(price))
        except PriceFileError as error:
            name = price.get("model", "") if isinstance(price, dict) else ""
            raise PriceFileError(f"price {number} {name!r}: {error}") from None
    return found


def _sheet(price: Any) -> PriceSheet:
    _check_fields(price, _SHEET_FIELDS)
    rates = price.get("rate", [])
    if not isinstance(rates, list):
        raise PriceFileError("`rate` must be a list of [[price.rate]]")
    made = PriceSheet(
        model=_word(price, "model"),
        source=_word(price, "source"),
        free=price.get("free", False) is True,
        rates=[_rate(rate) for rate in rates],
    )
    if "from" in price:
        made.valid_from.FromDatetime(_moment(price["from"]))
    return made


def _rate(fields: Any) -> Rate:
    _check_fields(fields, _RATE_FIELDS | {"mode"})
    meter = METERS.get(_word(fields, "meter"))
    if meter is None:
        raise PriceFileError(f"{fields.get('meter')!r} is no meter; there are {', '.join(METERS)}")
    above = fields.get("above_input_tokens", 0)
    if not isinstance(above, int) or isinstance(above, bool) or above < 0:
        raise PriceFileError("`above_input_tokens` must be a whole number")
    return Rate(
        meter=meter,
        nano_usd_per_million=nano_per_million(meter, str(fields.get("usd", ""))),
        above_input_tokens=above,
        service_tier=_word(fields, "tier"),
        size=_word(fields, "size"),
        quality=_word(fields, "quality"),
        mode=_word(fields, "mode"),
    )


def nano_per_million(meter: int, usd: str) -> int:
    """A price as people write it, in nano-USD for a million units, rounded up.

    Raises ``PriceFileError``.
    """
    try:
        amount = Decimal(usd) * NANO_PER_USD * (_MILLION if meter in UNITS else 1)
        nano = int(amount.to_integral_value(ROUND_CEILING))
    except (InvalidOperation, ValueError, OverflowError):
        raise PriceFileError(f"{usd!r} is no amount of USD: write 2.5") from None
    if not 0 <= nano < 2**63:
        raise PriceFileError(f"{usd} USD is no price")
    return nano


def _check_fields(value: Any, known: frozenset[str]) -> None:
    if not isinstance(value, dict):
        raise PriceFileError("must be a table")
    if unknown := sorted(value.keys() - known):
        raise PriceFileError(f"{unknown[0]!r} is not known; there are {', '.join(sorted(known))}")


def _word(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise PriceFileError(f"`{name}` must be text")
    return value


def _moment(value: Any) -> datetime:
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if isinstance(found, date) and not isinstance(found, datetime):
        found = datetime.combine(found, time(0))
    if not isinstance(found, datetime):
        raise PriceFileError("`from` must be a day or a time, such as 2026-12-01")
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
