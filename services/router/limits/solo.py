"""What a router admits of shared limits while it is on its own: its share of each.

It starts with nothing saved up and gains at its share of the limit's rate, from the moment when the
others have certainly stopped counting on its part. So whatever was admitted before, in no interval
do all routers together admit more than the limit and what it gains in that time.

Pure: the caller brings the time, in monotonic seconds.
"""

from dataclasses import dataclass
from typing import Final

from onegate.auth.v1 import grant_pb2

HOPELESS_WAIT_S: Final = 5.0
"""What a caller is told to wait when the share is less than one call."""
BUSY_WAIT_S: Final = 1.0
COUNTERS_MAX: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a call takes of one limit.

    Args:
        rate: the limit.
        key: the name of its counter.
        units: requests or tokens; for places, how many this router holds with this one.
    """

    rate: grant_pb2.RateLimit
    key: str
    units: int

    @property
    def is_place(self) -> bool:
        """Whether it is held for as long as the call lasts."""
        return self.rate.meter == grant_pb2.RATE_METER_CONCURRENCY


@dataclass(slots=True)
class _Bucket:
    level: float
    at_s: float


class Solo:
    """A time without Valkey.

    Args:
        since_s: from when on the share is this router's alone.
        share: how much of every limit, 0 to 1.
    """

    def __init__(self, since_s: float, share: float) -> None:
        self.since_s = since_s
        self.share = share
        self._buckets: dict[str, _Bucket] = {}

    def wait_s(self, claim: Claim, now_s: float) -> float:
        """How long until the claim can be taken; 0 when it can now."""
        cap = claim.rate.amount * self.share
        if claim.is_place:
            if claim.units <= cap and now_s >= self.since_s:
                return 0.0
            return max(BUSY_WAIT_S, self.since_s - now_s)
        taken = self._taken(claim)
        if cap < taken or (len(self._buckets) >= COUNTERS_MAX and claim.key not in self._buckets):
            return HOPELESS_WAIT_S
        lacking = taken - self._level(claim, now_s)
        if lacking <= 0:
            return 0.0
        return max(self.since_s - now_s, 0.0) + lacking / self._speed(claim.rate)

    def take(self, claim: Claim, now_s: float) -> float:
        """Takes it and says what is left."""
        if claim.is_place:
            return claim.rate.amount * self.share - claim.units
        return self.charge(claim, self._taken(claim), now_s)

    def charge(self, claim: Claim, units: int, now_s: float) -> float:
        """Takes so many units whether they are there or not; fewer than none gives back."""
        cap = claim.rate.amount * self.share
        level = min(self._level(claim, now_s) - units, cap)
        self._buckets[claim.key] = _Bucket(level, max(now_s, self.since_s))
        return level

    def _taken(self, claim: Claim) -> int:
        return min(claim.units, max(int(claim.rate.amount * self.share), 1))

    def _speed(self, rate: grant_pb2.RateLimit) -> float:
        return rate.amount * self.share / rate.window_s

    def _level(self, claim: Claim, now_s: float) -> float:
        rate = claim.rate
        bucket = self._buckets.get(claim.key)
        level, at_s = (0.0, self.since_s) if bucket is None else (bucket.level, bucket.at_s)
        level += self._speed(rate) * max(now_s - at_s, 0.0)
        return min(level, rate.amount * self.share)
