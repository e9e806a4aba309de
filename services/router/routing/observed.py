"""What this router has seen of deployments: how busy they are, how fast, how often they fail, and
whether one fails so much that it should be left alone for a while.

Where a provider has several credentials, failures and limits are seen of each pair of deployment
and credential (``provider/model#credential``): one that fails or is used up says nothing of the
others.

Pure: the caller brings the time, in monotonic seconds. Bounded, whatever names callers think of.
"""

import math
from collections import deque
from typing import Final

ENTRIES_MAX: Final = 10_000
"""Deployments that are remembered at most."""
DECAY_S: Final = 10.0
"""A peak of latency is forgotten with this time constant; a rise counts at once (peak-EWMA)."""
UNSEEN_S: Final = 1.0
"""What each call under way counts for at a deployment that has never answered."""
ERRORS_SHARE: Final = 0.05
"""How much one call moves the error rate: about the last twenty count."""
STREAK_MAX: Final = 5
"""So many failures in a row open the breaker."""
ERROR_RATE_MAX: Final = 0.5
"""So does this error rate, once there have been enough calls."""
CALLS_MIN: Final = 20
REST_S: Final = 5.0
"""How long an open breaker keeps calls away the first time; twice as long each time after."""
REST_MAX_S: Final = 60.0
PROBE_MAX_S: Final = 60.0
"""How long the one call that looks whether it works again may keep the others away."""
EJECTED_SHARE_MAX: Final = 0.5
"""At most this share of those that could serve a call is left out by breakers."""
FULL_MAX_S: Final = 120.0
"""The longest time for which a provider's word that its limit is used up is believed."""
FIRSTS_MAX: Final = 100
"""Of how many calls the time to the first token is kept, where somebody asks for the slowest."""
FIRSTS_MIN: Final = 20
"""Of how many it must be known before anything is made of it."""
SLOW: Final = 0.95


class Seen:
    """One deployment.

    Attributes:
        outstanding: calls under way.
        calls: calls that ended.
        errors: the share of them that failed, the latest counting most.
        tokens_per_s: output tokens a second once a stream has begun; 0 before any.
        open_until_s: until when the breaker keeps calls away; 0 while it is closed.
        full_until_s: until when the provider has said that its limit is used up.
    """

    __slots__ = (
        "_firsts_s",
        "_latency_at_s",
        "_latency_s",
        "_probe_until_s",
        "_rest_s",
        "_streak",
        "calls",
        "errors",
        "full_until_s",
        "open_until_s",
        "outstanding",
        "tokens_per_s",
    )

    def __init__(self) -> None:
        self.outstanding = 0
        self.calls = 0
        self.errors = 0.0
        self.tokens_per_s = 0.0
        self.open_until_s = 0.0
        self.full_until_s = 0.0
        self._firsts_s: dict[bool, deque[float]] = {}
        self._latency_s = 0.0
        self._latency_at_s = 0.0
        self._probe_until_s = 0.0
        self._rest_s = 0.0
        self._streak = 0

    def begin(self, now_s: float) -> None:
        """A call is sent. After a rest, it is the one that looks whether all is well again."""
        self.outstanding += 1
        if 0.0 < self.open_until_s <= now_s:
            self._probe_until_s = now_s + PROBE_MAX_S

    def end(self) -> None:
        """A call is over, in whatever way."""
        self.outstanding -= 1

    def succeeded(self, first_token_s: float, tokens: int, streamed_s: float, now_s: float) -> None:
        """A call went well.

        Args:
            first_token_s: from sending it to its first content.
            tokens: of output.
            streamed_s: from the first content to the end; 0 for an answer in one piece.
            now_s: the time.
        """
        self.calls += 1
        self.errors -= self.errors * ERRORS_SHARE
        self._streak = 0
        if self.open_until_s and self.open_until_s <= now_s:
            # The one that looked: what was before its rest says nothing any more.
            self._rest_s = self.open_until_s = self._probe_until_s = self.errors = 0.0
        peak_s = self._decayed(first_token_s, now_s)
        self._latency_s = max(first_token_s, peak_s)
        self._latency_at_s = now_s
        if streamed_s > 0 and tokens > 1:
            rate = (tokens - 1) / streamed_s
            self.tokens_per_s += (rate - self.tokens_per_s) * (0.2 if self.tokens_per_s else 1.0)

    def failed(self, now_s: float) -> None:
        """A call failed by the deployment's own fault."""
        self.calls += 1
        self.errors += (1.0 - self.errors) * ERRORS_SHARE
        self._streak += 1
        often = self.calls >= CALLS_MIN and self.errors >= ERROR_RATE_MAX
        probing = self._probe_until_s > now_s
        if probing or ((often or self._streak >= STREAK_MAX) and self.open_until_s <= now_s):
            self._rest_s = min(self._rest_s * 2, REST_MAX_S) or REST_S
            self.open_until_s = now_s + self._rest_s
            self._probe_until_s = 0.0

    def broken_s(self, now_s: float) -> float:
        """How much longer the breaker keeps calls away; 0 when one may be sent."""
        return max(self.open_until_s - now_s, self._probe_until_s - now_s, 0.0)

    def latency_s(self, now_s: float) -> float:
        """What a further call can expect: the recent peak of the time to the first token, for each
        call under way and one more. 0 where nothing is known and nobody waits.
        """
        if not self._latency_at_s:
            return UNSEEN_S * self.outstanding
        return self._decayed(0.0, now_s) * (self.outstanding + 1)

    def limited(self, wait_s: float | None, now_s: float) -> None:
        """The provider has said for how long its limits are used up, 0 for not at all; the latest
        word counts. ``None`` says nothing.
        """
        if wait_s is not None:
            self.full_until_s = now_s + min(wait_s, FULL_MAX_S)

    def sampled(self, first_token_s: float, *, stream: bool) -> None:
        """A call went well, and its route wants to know what is slow: streams, whose first token
        counts, and answers in one piece, which take as long as all their tokens, apart.
        """
        firsts_s = self._firsts_s.get(stream)
        if firsts_s is None:
            firsts_s = self._firsts_s[stream] = deque(maxlen=FIRSTS_MAX)
        firsts_s.append(first_token_s)

    def slow_s(self, *, stream: bool) -> float:
        """The time to the first token that one of twenty calls exceeds; 0 when it is not known."""
        firsts_s = self._firsts_s.get(stream)
        if firsts_s is None or len(firsts_s) < FIRSTS_MIN:
            return 0.0
        return sorted(firsts_s)[int(len(firsts_s) * SLOW)]

    def _decayed(self, toward_s: float, now_s: float) -> float:
        """The peak as it is remembered; what is slow is asked again once that has faded."""
        gone = math.exp(-max(now_s - self._latency_at_s, 0.0) / DECAY_S)
        return toward_s + (self._latency_s - toward_s) * gone


class Observed:
    """All deployments."""

    def __init__(self) -> None:
        self._seen: dict[str, Seen] = {}
        self._failing: set[str] = set()

    def of(self, deployment: str) -> Seen:
        """What is seen of it, to be added to."""
        seen = self._seen.get(deployment)
        if seen is None:
            if len(self._seen) >= ENTRIES_MAX:
                self._seen = {name: old for name, old in self._seen.items() if old.outstanding}
                self._failing &= self._seen.keys()
            seen = self._seen[deployment] = Seen()
        return seen

    def find(self, deployment: str) -> Seen | None:
        """What is seen of it; ``None`` when it was never called."""
        return self._seen.get(deployment)

    def failed(self, deployment: str, now_s: float) -> None:
        """A call failed by the deployment's own fault."""
        seen = self.of(deployment)
        seen.failed(now_s)
        if seen.open_until_s:
            self._failing.add(deployment)

    def full(self, deployment: str, now_s: float) -> bool:
        """Whether the provider has said that it would refuse a call now."""
        seen = self._seen.get(deployment)
        return seen is not None and seen.full_until_s > now_s

    def broken_s(self, deployment: str, now_s: float) -> float:
        """How much longer its breaker keeps calls away; 0 when one may be sent."""
        if deployment not in self._failing:
            return 0.0
        seen = self._seen[deployment]
        if not seen.open_until_s:
            self._failing.discard(deployment)
            return 0.0
        return seen.broken_s(now_s)
