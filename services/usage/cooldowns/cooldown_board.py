"""Which deployments are left alone at this moment, as routers told. Pure.

The caller brings the time, in monotonic seconds. An end is never brought forward, whoever tells
what; the number of entries is bounded.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from onegate.usage.v1.cooldown_service_pb2 import Cooldown

ENTRIES_MAX: Final = 10_000
"""How many deployments are kept at most; what does not fit is not passed on."""
LEFT_MAX_S: Final = 3600.0
"""The longest time that is believed."""


class CooldownBoard:
    """Everything that cools down, in the order in which it was told."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, int]] = {}
        self.revision = 0
        """Grows with whatever is news."""

    def take(self, left_s: Mapping[str, float], now_s: float) -> dict[str, float]:
        """Takes in what was told; returns what of it is news."""
        if len(self._until) + len(left_s) > ENTRIES_MAX:
            self._until = {k: v for k, v in self._until.items() if v[0] > now_s}
        news: dict[str, float] = {}
        for seat, wait_s in left_s.items():
            until_s = now_s + min(wait_s, LEFT_MAX_S)
            known = self._until.get(seat)
            if known is None and len(self._until) >= ENTRIES_MAX:
                continue
            if until_s > (now_s if known is None else known[0]):
                self.revision += 1
                self._until[seat] = until_s, self.revision
                news[seat] = until_s - now_s
        return news

    def since(self, revision: int, now_s: float) -> Iterator[Cooldown]:
        """What has been told since a revision and still holds."""
        for seat, (until_s, told) in self._until.items():
            if told > revision and until_s > now_s:
                # One more, for what rounding down loses: it is never less than was asked.
                yield Cooldown(seat=seat, left_ms=int((until_s - now_s) * 1000) + 1)
