"""Whether somebody spends far more than is usual for them. Pure.

What is usual is a median, and how far it varies the median of distances from it (MAD,
https://en.wikipedia.org/wiki/Median_absolute_deviation): one wild hour of last week moves neither.
Nothing is extrapolated: an hour that is not over is taken as it is, so that it can only be told of
too late, never for nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from types import MappingProxyType
from typing import Any, Final

from services.usage.reports.spans import DAY_US, HOUR_US

WEEK_US: Final = 7 * DAY_US
WEEKS_MIN: Final = 5
"""From so many known weeks on, an hour or day is compared with the same one of each week."""

MAD_OF_NORMAL: Final = 1.4826
"""The MAD of a normal distribution times this is its standard deviation."""

DEVIATIONS: Final = 6.0
"""How many deviations above the median are still usual."""

SOURCE_DAYS: Final = 56
"""How far back history is read, in days."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When somebody is told of.

    Attributes:
        factor: spending up to so many times the median is usual.
        floor_nano_usd: spending up to this is nobody's concern.
        days_min: of how many days something must be known before anything is said.
        floors: other floors, by organisation, project or key; ``None`` for never.
    """

    factor: float = 3.0
    floor_nano_usd: int = 10 * 10**9
    days_min: int = 7
    floors: Mapping[str, int | None] = field(default_factory=lambda: MappingProxyType({}))

    def floor_of(self, ids: Sequence[str]) -> int | None:
        """The floor of a subject, given with what it belongs to, the nearest first; ``None`` for
        never.
        """
        named = next((one for one in ids if one in self.floors), None)
        return self.floor_nano_usd if named is None else self.floors[named]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """That somebody spends too fast.

    Attributes:
        usual_nano_usd: the median of what it is compared with.
        limit_nano_usd: up to what it would be usual.
        samples: how many hours or days it is compared with.
    """

    usual_nano_usd: int
    limit_nano_usd: int
    samples: int


def judge(
    spent_nano_usd: int, history: Mapping[int, int], start_us: int, unit_us: int, rule: Rule
) -> Verdict | None:
    """What is to be said of an hour or day that began at ``start_us``; ``None`` for nothing.

    Args:
        spent_nano_usd: what was spent in it until now.
        history: what was spent in those before, by when they began; absent for nothing.
        unit_us: how long they are.
        rule: its floor is the subject's own.
    """
    if spent_nano_usd <= rule.floor_nano_usd:
        return None
    known = {at_us: spent for at_us, spent in history.items() if at_us < start_us and spent > 0}
    first_us = min(known, default=start_us)
    if start_us - first_us < rule.days_min * DAY_US:
        return None
    samples = _samples(known, first_us, start_us, unit_us)
    if not samples:
        return None
    usual = median(samples)
    deviation = median(abs(one - usual) for one in samples) * MAD_OF_NORMAL
    limit = max(rule.floor_nano_usd, usual * rule.factor, usual + DEVIATIONS * deviation)
    if spent_nano_usd <= limit:
        return None
    return Verdict(usual_nano_usd=int(usual), limit_nano_usd=math.ceil(limit), samples=len(samples))


def _samples(known: Mapping[int, int], first_us: int, start_us: int, unit_us: int) -> list[int]:
    """What is compared: the same hour or day of each week, or of each day, since something is
    known. Where most of these are quiet, the busy ones of any time stand for them: who works now
    and then is measured by the times at which they work.
    """
    weekly = _each(known, first_us, start_us, WEEK_US)
    step_us = DAY_US if unit_us == HOUR_US else unit_us
    found = weekly if len(weekly) >= WEEKS_MIN else _each(known, first_us, start_us, step_us)
    if sum(one > 0 for one in found) * 2 > len(found):
        return found
    busy = list(known.values())
    return busy if len(busy) >= WEEKS_MIN else []


def _each(known: Mapping[int, int], first_us: int, start_us: int, step_us: int) -> list[int]:
    places = range(start_us - step_us, first_us - 1, -step_us)
    return [known.get(place, 0) for place in places]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whose spending is watched: a key, else a project, else an organisation."""

    organization_id: str
    project_id: str = ""
    key_id: str = ""

    @property
    def ids(self) -> tuple[str, ...]:
        """It and what it belongs to, the nearest first."""
        return tuple(filter(None, (self.key_id, self.project_id, self.organization_id)))

    @property
    def wider(self) -> "tuple[Subject, ...]":
        """What it belongs to."""
        whole = Subject(organization_id=self.organization_id)
        if self.key_id:
            project = Subject(organization_id=self.organization_id, project_id=self.project_id)
            return (project, whole)
        return (whole,) if self.project_id else ()


def subjects_of(spent: Mapping[Subject, int]) -> dict[Subject, int]:
    """What keys spent, added up for their projects and organisations too."""
    found: dict[Subject, int] = {}
    for key, amount in spent.items():
        for one in (key, *key.wider):
            found[one] = found.get(one, 0) + amount
    return found


def narrowest(found: Mapping[Subject, int]) -> list[Subject]:
    """Of those that spend too much, the ones that nobody inside them accounts for: a project is
    not told of when one of its keys that is told of spent half of what it did.
    """
    covered = {
        wide
        for one, amount in found.items()
        for wide in one.wider
        if wide in found and amount * 2 >= found[wide]
    }
    return [one for one in found if one not in covered]


def floors_of(entries: Sequence[str]) -> dict[str, int | None]:
    """Floors by id, from ``id=dollars`` or ``id=off``. Raises ``ValueError``."""
    found: dict[str, int | None] = {}
    for entry in entries:
        name, _, amount = entry.partition("=")
        if not name or (amount != "off" and not amount.isdecimal()):
            raise ValueError(f"{entry!r} must look like proj_…=25 (dollars) or key_…=off")
        found[name] = None if amount == "off" else int(amount) * 10**9
    return found


def content(
    subject: Subject, unit_us: int, spent_nano_usd: int, verdict: Verdict
) -> dict[str, Any]:
    """What is told, without its time; money in nano-USD."""
    return {
        "organization_id": subject.organization_id,
        "project_id": subject.project_id,
        "key_id": subject.key_id,
        "period": "hour" if unit_us == HOUR_US else "day",
        "spent_nano_usd": spent_nano_usd,
        "usual_nano_usd": verdict.usual_nano_usd,
        "limit_nano_usd": verdict.limit_nano_usd,
        "samples": verdict.samples,
    }
