"""What is known about deployments right now: who cools down, whose credential was refused, and how
many retries may still be spent.

Pure: the caller brings the time, in monotonic seconds, and no entry outlives its use.
"""

from dataclasses import dataclass
from typing import Final

ENTRIES_MAX: Final = 10_000
"""Names that are remembered at most; a free provider takes any model name, and any may fail."""
COOL_DOWN_MAX_S: Final = 3600.0
"""The longest ``Retry-After`` that is believed."""
QUARANTINE_S: Final = 60.0
"""How long a refused credential rests the first time; twice as long each time after."""
QUARANTINE_MAX_S: Final = 900.0
RETRIES_PER_S: Final = 3.0
"""Retries that are always allowed, so that a quiet gateway retries too."""
RETRIES_SAVED_MAX: Final = 100.0
"""How many unused retries may add up."""


@dataclass(slots=True)
class _Quarantine:
    until_s: float
    rest_s: float


class Health:
    """Cool-downs by deployment, quarantines by credential or deployment."""

    def __init__(self) -> None:
        self._cooling: dict[str, float] = {}
        self._quarantined: dict[str, _Quarantine] = {}

    def unsuspected(self, provider: str, deployment: str) -> bool:
        """Nothing is known against the deployment, not even something that is over."""
        if not (self._cooling or self._quarantined):
            return True
        return (
            deployment not in self._cooling
            and deployment not in self._quarantined
            and provider not in self._quarantined
        )

    def cool_down(self, deployment: str, wait_s: float, now_s: float) -> None:
        """The provider asked for quiet until ``now_s + wait_s``. Never shortens an earlier wish."""
        until_s = now_s + min(wait_s, COOL_DOWN_MAX_S)
        if until_s > self._cooling.get(deployment, now_s):
            if len(self._cooling) >= ENTRIES_MAX:
                self._cooling = {k: v for k, v in self._cooling.items() if v > now_s}
            if len(self._cooling) < ENTRIES_MAX or deployment in self._cooling:
                self._cooling[deployment] = until_s

    def cooling(self, now_s: float) -> dict[str, float]:
        """Every deployment that cools down, with how much longer in seconds."""
        return {name: until_s - now_s for name, until_s in self._cooling.items() if until_s > now_s}

    def cooling_s(self, deployment: str, now_s: float) -> float:
        """How much longer the deployment is left alone, in seconds; 0 when it is not."""
        until_s = self._cooling.get(deployment)
        if until_s is None:
            return 0.0
        if until_s <= now_s:
            del self._cooling[deployment]
            return 0.0
        return until_s - now_s

    def quarantine(self, name: str, now_s: float) -> bool:
        """The credential of a provider, or of one deployment, was refused.

        Returns whether that is news: true until it works again once.
        """
        known = self._quarantined.get(name)
        if known is None:
            if len(self._quarantined) < ENTRIES_MAX:
                self._quarantined[name] = _Quarantine(now_s + QUARANTINE_S, QUARANTINE_S)
            return True
        if known.until_s <= now_s:  # else another call was under way when the first one failed
            known.rest_s = min(known.rest_s * 2, QUARANTINE_MAX_S)
            known.until_s = now_s + known.rest_s
        return False

    def quarantined(self, name: str, now_s: float) -> bool:
        """Whether the credential rests."""
        known = self._quarantined.get(name)
        return known is not None and known.until_s > now_s

    def refused(self) -> int:
        """How many credentials were refused and have not worked since."""
        return len(self._quarantined)

    def forget(self, provider: str) -> None:
        """The provider's credentials are new: what was held against the old ones is void."""
        signs = (f"{provider}/", f"{provider}#")
        for known in (self._quarantined, self._cooling):
            for name in [n for n in known if n == provider or n.startswith(signs)]:
                del known[name]

    def restore(self, provider: str, deployment: str) -> None:
        """A call went through: the credential works."""
        if self._quarantined:
            self._quarantined.pop(provider, None)
            self._quarantined.pop(deployment, None)


class RetryBudget:
    """Retries in proportion to calls, so that a failing provider is not stormed.

    Each call earns ``ratio`` of a retry, each second ``RETRIES_PER_S``; a retry costs one.
    """

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._saved = RETRIES_PER_S
        self._earned_at_s = 0.0

    def earn(self, now_s: float) -> None:
        """A call begins."""
        self._saved = min(self._saved + self._ratio, RETRIES_SAVED_MAX)
        self._tick(now_s)

    def spend(self, now_s: float) -> bool:
        """Whether a retry may be made; it is paid for when it may."""
        self._tick(now_s)
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True

    def _tick(self, now_s: float) -> None:
        # Time fills up only to its own small share: an hour's silence does not pay for a storm.
        if self._saved < RETRIES_PER_S:
            earned = (now_s - self._earned_at_s) * RETRIES_PER_S
            self._saved = min(self._saved + max(earned, 0.0), RETRIES_PER_S)
        self._earned_at_s = now_s
