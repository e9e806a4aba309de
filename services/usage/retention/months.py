"""Which month a record lies in. Pure.

The parts of the table are told apart by the attempt's id, which begins with the time at which it
was made (UUIDv7, https://www.rfc-editor.org/rfc/rfc9562#section-5.7). The same attempt therefore
always comes to the same part, and the key of that part alone refuses to count it twice: no guard
over all parts is needed. An id that says no time is as good as any other; it only lies elsewhere.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_NAME: Final = re.compile(r"usage_records_(m|until_)(\d{4})(\d{2})")
_MONTHS: Final = 12

REST: Final = "usage_records_rest"
"""The part for ids that belong to no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """A calendar month in UTC."""

    year: int
    month: int

    @classmethod
    def of(cls, at_us: int) -> "Month":
        """The month of a moment, in microseconds since 1970."""
        at = _EPOCH + timedelta(microseconds=at_us)
        return cls(year=at.year, month=at.month)

    def later(self, months: int) -> "Month":
        """So many months later."""
        year, month = divmod(self.year * _MONTHS + self.month - 1 + months, _MONTHS)
        return Month(year=year, month=month + 1)

    @property
    def start_us(self) -> int:
        """When it begins, in microseconds since 1970."""
        return (datetime(self.year, self.month, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND

    @property
    def part(self) -> str:
        """The table of the records of this month."""
        return f"usage_records_m{self.year:04d}{self.month:02d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the table: of one month, or of everything before one."""

    name: str
    before: Month
    whole_past: bool


def part_of(name: str) -> Part | None:
    """What a table's name says; ``None`` for the rest and for what is no part."""
    found = _NAME.fullmatch(name)
    if found is None or not 1 <= int(found[3]) <= _MONTHS:
        return None
    month = Month(year=int(found[2]), month=int(found[3]))
    past = found[1] == "until_"
    return Part(name=name, before=month if past else month.later(1), whole_past=past)


def first_id(at_us: int) -> str:
    """The least id that is made at a moment, in microseconds since 1970, or later."""
    time = f"{at_us // 1000 & 0xFFFF_FFFF_FFFF:012x}"
    return f"{time[:8]}-{time[8:]}-0000-0000-000000000000"


def missing(names: set[str], now_us: int, ahead: int) -> list[Month]:
    """The months from this one on that have no part yet.

    Args:
        names: the parts that are there.
        ahead: how many months after this one are to be there.
    """
    parts = [part for name in names if (part := part_of(name)) is not None]
    past_us = max((part.before.start_us for part in parts if part.whole_past), default=0)
    months = [Month.of(now_us).later(count) for count in range(ahead + 1)]
    return [one for one in months if one.part not in names and one.start_us >= past_us]


def over(names: set[str], kept_us: int) -> list[Part]:
    """The parts all of whose ids were made before a moment, oldest first."""
    parts = [part for name in names if (part := part_of(name)) is not None]
    found = [part for part in parts if part.before.start_us <= kept_us]
    return sorted(found, key=lambda part: part.before.start_us)
