"""A line of a provider's bill as it was read, and the words and numbers that bills are made of."""

import re
from datetime import UTC, datetime
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Any, Final, NamedTuple

DAY_US: Final = 86_400_000_000
HOUR_US: Final = 3_600_000_000
EXACT: Final = Context(prec=60, traps=[Inexact, InvalidOperation])
"""Amounts are moved and subtracted without rounding: they have at most 42 digits."""

_MILLISECONDS: Final = 10**11
"""Unix times above it are in milliseconds: in seconds they would lie after the year 5000."""
_TOKENS_MAX: Final = 10**12
_DIGITS_MAX: Final = 30
_USD_DIGITS_MAX: Final = 12
_TEXT_CHARS_MAX: Final = 512
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")


class BillError(Exception):
    """A file is no bill that can be read; the line is that of the file, from 1."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line
        self.what = what


class FieldError(Exception):
    """A field of a line cannot be what it says."""


class Row(NamedTuple):
    """What a line says. Times are µs since 1970, the end exclusive; ``None`` where not said.

    A row that only says that a time was looked at has nothing but times.
    """

    from_us: int | None = None
    before_us: int | None = None
    request_id: str = ""
    model: str = ""
    owners: tuple[str, ...] = ()
    """What the provider calls whoever paid: its API key, its project or workspace."""
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    says: bool = True


def text_of(value: Any, name: str) -> str:
    """A text, or nothing. Raises FieldError."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise FieldError(f"{name} must be a text")
    if len(value) > _TEXT_CHARS_MAX:
        raise FieldError(f"{name} is longer than {_TEXT_CHARS_MAX} characters")
    return value.strip()


def count_of(value: Any, name: str) -> int:
    """A whole number, also when it is written as ``3.0``; nothing is 0. Raises FieldError."""
    if type(value) is int:
        found = value
    elif value is None or value == "":
        return 0
    else:
        number = decimal_of(value, name)
        if number != number.to_integral_value():
            raise FieldError(f"{name} must be a whole number, not {str(value)[:40]!r}")
        found = int(number)
    if abs(found) > _TOKENS_MAX:
        raise FieldError(f"{name} is absurd: {found:,}")
    return found


def decimal_of(value: Any, name: str) -> Decimal:
    """A decimal number, exactly as it is written; nothing is 0. Raises FieldError."""
    if value is None or value == "":
        return Decimal(0)
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise FieldError(f"{name} must be a number")
    try:
        found = Decimal(value.strip() if isinstance(value, str) else value)
    except InvalidOperation:
        raise FieldError(f"{name} must be a number, not {str(value)[:40]!r}") from None
    if not found.is_finite():
        raise FieldError(f"{name} must be a number")
    if found and max(found.adjusted(), -int(found.as_tuple().exponent)) > _DIGITS_MAX:
        raise FieldError(f"{name} has too many digits: {str(value)[:60]!r}")
    return found


def usd_of(value: Any, currency: Any, name: str) -> Decimal:
    """An amount in USD. Raises FieldError for another currency."""
    word = text_of(currency, f"the currency of {name}")
    if word.lower() not in ("", "usd"):
        raise FieldError(f"{name} is in {word[:10]}: only USD can be compared")
    amount = decimal_of(value, name)
    if amount.adjusted() >= _USD_DIGITS_MAX:
        raise FieldError(f"{name} is absurd: {str(value)[:60]!r}")
    return amount


def time_of(value: Any, name: str) -> int:
    """A moment: seconds or milliseconds since 1970, or ISO 8601 (UTC unless it says otherwise).
    Raises FieldError.
    """
    if isinstance(value, str) and not value.strip().lstrip("-").replace(".", "").isdigit():
        try:
            found = datetime.fromisoformat(value.strip())
        except ValueError:
            raise FieldError(f"{name} is no time: {value[:40]!r}") from None
        found = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
        since = found - datetime(1970, 1, 1, tzinfo=UTC)
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    number = decimal_of(value, name)
    scale = 3 if number >= _MILLISECONDS else 6
    made = int(number.scaleb(scale))
    if not 0 < made < 2**62:
        raise FieldError(f"{name} is no time: {str(value)[:40]!r}")
    return made


def span_of(value: Any, name: str) -> tuple[int, int]:
    """A UTC day, or the hour that a moment begins. Raises FieldError."""
    from_us = time_of(value, name)
    is_date = isinstance(value, str) and _DATE.fullmatch(value.strip()) is not None
    return from_us, from_us + (DAY_US if is_date else HOUR_US)
