"""What reports ask for, checked: which records, which page, which sums. Pure.

A page token says where the next page starts and for which selection it was made; a token that was
cut, made up or kept from another question is refused. Sums are whole numbers throughout.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import usage_service_pb2
from onegate.usage.v1.usage_service_pb2 import UsageDimension, UsageFilter, UsageSummary
from runtime.errors import GatewayError

PAGE_SIZE: Final = 100
PAGE_SIZE_MAX: Final = 1_000
ROWS_MAX: Final = 10_000
"""The most groups that one answer holds."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SEAL_BYTES: Final = 8


SELECTED: Final = (
    "organization_id",
    "project_id",
    "key_id",
    "model",
    "request_id",
    "provider",
    "customer",
    "feature",
    "run",
    "team",
    "end_user",
)
"""What a filter may choose beside the time: fields of it, and columns of records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which records: all that is set must match. Times are µs since 1970, the end exclusive."""

    from_us: int | None = None
    before_us: int | None = None
    organization_id: str = ""
    project_id: str = ""
    key_id: str = ""
    model: str = ""
    request_id: str = ""
    provider: str = ""
    customer: str = ""
    feature: str = ""
    run: str = ""
    team: str = ""
    end_user: str = ""

    def wanted(self) -> dict[str, str]:
        """The columns of records that are chosen, each with its value."""
        named = {name: getattr(self, name) for name in SELECTED}
        return {name: value for name, value in named.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """The last record of a page; the next page holds what is older."""

    started_at_us: int
    attempt_id: str


def selection_of(wanted: UsageFilter) -> Selection:
    """The selection that a filter means. Raises INVALID_REQUEST for a time out of range and for a
    span that ends before it starts.
    """
    start = (
        _micros(wanted.started_from, "started_from") if wanted.HasField("started_from") else None
    )
    end = (
        _micros(wanted.started_before, "started_before")
        if wanted.HasField("started_before")
        else None
    )
    if start is not None and end is not None and end < start:
        raise _invalid("filter.started_before", "must not lie before `filter.started_from`")
    return Selection(
        from_us=start,
        before_us=end,
        organization_id=wanted.organization_id,
        project_id=wanted.project_id,
        key_id=wanted.key_id,
        model=wanted.model,
        request_id=wanted.request_id,
        provider=wanted.provider,
        customer=wanted.customer,
        feature=wanted.feature,
        run=wanted.run,
        team=wanted.team,
        end_user=wanted.end_user,
    )


def _micros(moment: Timestamp, name: str) -> int:
    try:
        moment.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise _invalid(f"filter.{name}", "must be a time between the years 1 and 9999") from None
    return moment.ToMicroseconds()


def page_size_of(size: int) -> int:
    """How many rows a page holds. Raises INVALID_REQUEST for less than none."""
    if size < 0:
        raise _invalid("page_size", f"must be 0 (for {PAGE_SIZE}) to {PAGE_SIZE_MAX}")
    return min(size or PAGE_SIZE, PAGE_SIZE_MAX)


def token_of(place: str, question: object) -> str:
    """A page token for ``place`` in the answer to ``question``, whose ``repr`` must say it all."""
    return base64.urlsafe_b64encode(_seal(place, question) + place.encode()).decode().rstrip("=")


def place_of(token: str, question: object) -> str | None:
    """The place that a token of the same question means; ``None`` for the first page.

    Raises INVALID_REQUEST for any other token.
    """
    if not token:
        return None
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        place = raw[_SEAL_BYTES:].decode()
    except (binascii.Error, ValueError):
        raise _bad_token() from None
    if token_of(place, question) != token:
        raise _bad_token()
    return place


def _seal(place: str, question: object) -> bytes:
    """Ties a place to its question. It guards against mistakes, not against an attacker: what a
    token says can be asked for openly.
    """
    return hashlib.sha256(f"{question!r}\n{place}".encode()).digest()[:_SEAL_BYTES]


def cursor_token(cursor: Cursor, selection: Selection) -> str:
    """The page token for what is older than ``cursor``."""
    return token_of(f"{cursor.started_at_us}/{cursor.attempt_id}", selection)


def cursor_of(token: str, selection: Selection) -> Cursor | None:
    """Where a page starts; ``None`` for the first. Raises INVALID_REQUEST."""
    place = place_of(token, selection)
    if place is None:
        return None
    started_at_us, _, attempt_id = place.partition("/")
    return Cursor(started_at_us=int(started_at_us), attempt_id=attempt_id)


def dimensions_of(
    group_by: Sequence[UsageDimension.ValueType],
) -> tuple[UsageDimension.ValueType, ...]:
    """What to group by. Raises INVALID_REQUEST for what is unknown or named twice."""
    known = set(UsageDimension.values()) - {usage_service_pb2.USAGE_DIMENSION_UNSPECIFIED}
    if not known.issuperset(group_by):
        raise _invalid("group_by", "holds a dimension that this version does not know")
    if len(set(group_by)) < len(group_by):
        raise _invalid("group_by", "names a dimension twice")
    return tuple(group_by)


def summary(group: Sequence[str | int], sums: Mapping[str, int]) -> usage_service_pb2.UsageSummary:
    """A row of the answer. Days are numbers inside and dates (``2026-11-21``) outside."""
    return UsageSummary(
        group=[_date(value) if isinstance(value, int) else value for value in group],
        attempts=sums["attempts"],
        input_tokens=sums["input_tokens"],
        cached_input_tokens=sums["cached_input_tokens"],
        output_tokens=sums["output_tokens"],
        cost_nano_usd=sums["cost_nano_usd"],
        failures=sums["failures"],
        uncertain_nano_usd=sums["uncertain_nano_usd"],
    )


def _date(day: int) -> str:
    return (_EPOCH + timedelta(days=day)).date().isoformat()


def _bad_token() -> GatewayError:
    return _invalid("page_token", "must be the next_page_token of the page before, same filter")


def _invalid(param: str, what: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, f"`{param}` {what}.", param=param)
