"""What calls cost at the prices that are known now for their time. Pure."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from onegate.usage.v1 import usage_record_pb2
from onegate.usage.v1.price_pb2 import PriceSheet
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.money import Tariff

Sheets: TypeAlias = Callable[[str, datetime, datetime], Sequence[PriceSheet]]
"""The sheets of a model (``kind/name``) for a time, oldest first."""

_OPERATOR: Final = "operator"
_INSTANT: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerated:
    """What a call costs now; ``cost_nano_usd`` is ``None`` for what stays as it is."""

    record: UsageRecord
    cost_nano_usd: int | None = None
    price_version: str = ""


@dataclass(slots=True, kw_only=True)
class Batch:
    """Some calls, worked out."""

    found: list[Rerated] = field(default_factory=list)
    left: int = 0
    unpriced: int = 0


def rerated(records: Sequence[UsageRecord], sheets: Sheets) -> Batch:
    """Works out some calls. Two kinds stay: calls of which nobody knows what they used (what was
    set aside stands in for it), and calls that were free because the configuration said so.
    """
    made = Batch()
    counted = [one for one in records if _counts(one)]
    made.left = len(records) - len(counted)
    made.found += [Rerated(record=one) for one in records if not _counts(one)]
    by_name: dict[str, list[UsageRecord]] = {}
    for one in counted:
        by_name.setdefault(price_name(one), []).append(one)
    for name, some in by_name.items():
        times = [one.started_at.ToDatetime(UTC) for one in some]
        tariffs = _Timeline(sheets(name, min(times), max(times) + _INSTANT))
        for one, at in zip(some, times, strict=True):
            sheet = tariffs.at(at)
            if sheet is None:
                made.unpriced += 1
                made.found.append(Rerated(record=one))
                continue
            version, tariff = sheet
            cost = tariff(one.tokens)
            made.found.append(Rerated(record=one, cost_nano_usd=cost, price_version=version))
    return made


def price_name(record: UsageRecord) -> str:
    """The model that a call was priced as."""
    if record.price_model:
        return record.price_model
    source, _, rest = record.price_version.partition(":")
    if source == _OPERATOR:
        # Records from before they said it: the version of an operator's price holds the model.
        return rest.rpartition(":")[0]
    return record.model


def _counts(record: UsageRecord) -> bool:
    known = record.certainty != usage_record_pb2.CERTAINTY_UNCERTAIN
    return known and bool(record.price_version)


class _Timeline:
    """Sheets of one model by when they begin."""

    def __init__(self, sheets: Sequence[PriceSheet]) -> None:
        self._made = [(one.version, Tariff(one)) for one in sheets]
        # The first one applied before, unless it says that it begins later.
        self._starts = [one.valid_from.ToDatetime(UTC) for one in sheets]

    def at(self, moment: datetime) -> tuple[str, Tariff] | None:
        place = bisect_right(self._starts, moment) - 1
        return self._made[place] if place >= 0 else None
