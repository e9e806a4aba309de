"""Which parts of a span of time are summed from records, and which from cubes. Pure."""

import enum
from dataclasses import dataclass
from typing import Final

HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US


class Source(enum.Enum):
    """Where sums are read."""

    RECORDS = enum.auto()
    HOURS = enum.auto()
    DAYS = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A part of the time, the end exclusive, in microseconds since 1970."""

    source: Source
    from_us: int
    before_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """How far the cubes go: everything that started before is in them, or is known to be late.
    Records of what started before ``kept_us`` may be gone.
    """

    hours_us: int
    days_us: int
    kept_us: int = 0


def spans(from_us: int, before_us: int, marks: Marks, *, unit_us: int) -> list[Span]:
    """The parts of a span, each with where it is read, in order and without a gap.

    Args:
        unit_us: of which length the caller tells times apart: a cube's rows must not be longer.
    """
    middle = _whole(from_us, min(before_us, marks.hours_us), HOUR_US)
    if unit_us < HOUR_US or middle is None:
        return _filled([Span(source=Source.RECORDS, from_us=from_us, before_us=before_us)])
    first, last = middle
    inner = _whole(first, min(last, marks.days_us), DAY_US) if unit_us >= DAY_US else None
    day_first, day_last = inner or (first, first)
    return _filled(
        [
            Span(source=Source.RECORDS, from_us=from_us, before_us=first),
            Span(source=Source.HOURS, from_us=first, before_us=day_first),
            Span(source=Source.DAYS, from_us=day_first, before_us=day_last),
            Span(source=Source.HOURS, from_us=day_last, before_us=last),
            Span(source=Source.RECORDS, from_us=last, before_us=before_us),
        ]
    )


def _whole(from_us: int, before_us: int, unit_us: int) -> tuple[int, int] | None:
    """The whole units within a span; ``None`` where there is none."""
    first = -(-from_us // unit_us) * unit_us
    last = before_us // unit_us * unit_us
    return (first, last) if first < last else None


def _filled(parts: list[Span]) -> list[Span]:
    return [part for part in parts if part.from_us < part.before_us]
