"""How long a key's secret may work, and does when its maker does not say. Pure.

Organisation and project may each name a longest time and a usual one. The longest counts from when
a secret was made: rotating a key, not changing its date, is how it goes on.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError


class Level(Protocol):
    """An organisation or a project."""

    @property
    def key_lifetime_max_s(self) -> int | None:
        """The longest that a secret may work, in seconds; ``None`` for no limit."""
        ...

    @property
    def key_lifetime_s(self) -> int | None:
        """How long it works when nobody says, in seconds; ``None`` for as long as may be."""
        ...


def longest_s(levels: Sequence[Level]) -> int | None:
    """The longest that a secret may work under all levels, in seconds; ``None`` for no limit."""
    said = [level.key_lifetime_max_s for level in levels]
    return min((limit for limit in said if limit is not None), default=None)


def first_expiry(levels: Sequence[Level], asked_s: int | None, now: datetime) -> datetime | None:
    """When a new key ends; the level nearest to the key comes last.

    Args:
        levels: what the key inherits from.
        asked_s: for how long its maker wants it, in seconds; ``None`` where nothing was said.
        now: when it is made.

    Raises INVALID_REQUEST for more than may be.
    """
    most_s = longest_s(levels)
    if asked_s is not None:
        _check(asked_s, most_s)
        return now + timedelta(seconds=asked_s)
    usual = [level.key_lifetime_s for level in levels if level.key_lifetime_s is not None]
    bounds = [bound for bound in (usual[-1] if usual else None, most_s) if bound is not None]
    return now + timedelta(seconds=min(bounds)) if bounds else None


def check_expiry(
    levels: Sequence[Level], secret_made_at: datetime, expires_at: datetime | None
) -> None:
    """Raises INVALID_REQUEST when a secret would work for longer than may be."""
    most_s = longest_s(levels)
    if most_s is None:
        return
    if expires_at is None:
        raise _too_long(most_s)
    _check((expires_at - secret_made_at).total_seconds(), most_s)


def kept_expiry(
    levels: Sequence[Level], expires_at: datetime | None, now: datetime
) -> datetime | None:
    """When a key ends that is rotated now and says nothing new: as before, or earlier where that
    would be too long.
    """
    most_s = longest_s(levels)
    if most_s is None:
        return expires_at
    end = now + timedelta(seconds=most_s)
    return end if expires_at is None else min(expires_at, end)


def _check(asked_s: float, most_s: int | None) -> None:
    if most_s is not None and asked_s > most_s:
        raise _too_long(most_s)


def _too_long(most_s: int) -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_INVALID_REQUEST,
        f"`expires_in_seconds` must be at most {most_s}: no secret here may work for longer than"
        " that from when it is made. Rotate the key to go on with it.",
        param="expires_in_seconds",
    )
