"""Which of a provider's credentials a call goes out with.

A provider has one credential, or several: each with its share of the calls, each for everybody or
only for some organisations or projects. Who has a credential of its own uses that one and no
other: its calls are never billed to somebody else's account, nor its data sent under somebody
else's contract. What health knows of a deployment it knows of each pair of deployment and
credential, called a *seat*, under the names ``provider/model#credential`` and
``provider#credential``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from onegate.auth.v1 import grant_pb2
from runtime.clock import Entropy
from services.router.limits.admission import no_credential
from services.router.models.catalog import Deployment
from services.router.routing.health import Health
from services.router.routing.illness import ill
from services.router.routing.observed import Observed
from services.router.upstream.client import Target

_NEVER_MS: Final = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """One of several. ``weight`` is its share, beside the others' weights; ``organizations`` and
    ``projects`` are ids of those whom alone it is for.
    """

    name: str
    target: Target
    weight: int = 1
    organizations: frozenset[str] = frozenset()
    projects: frozenset[str] = frozenset()

    def seat(self, deployment: Deployment) -> Deployment:
        """The deployment with this credential, as health knows it."""
        return replace(
            deployment,
            id=f"{deployment.id}#{self.name}",
            provider=f"{deployment.provider}#{self.name}",
        )


class Way(NamedTuple):
    """How a deployment is reached, what health knows that by, and which of several credentials it
    takes.
    """

    target: Target
    seat: Deployment
    credential: str = ""


def open_to(credentials: Sequence[Credential], grant: grant_pb2.Grant) -> list[Credential]:
    """Those that the grant's project has of its own, else those of its organisation, else those
    that are for everybody.
    """
    mine = [c for c in credentials if grant.project_id in c.projects]
    mine = mine or [c for c in credentials if grant.organization_id in c.organizations]
    return mine or [c for c in credentials if not (c.projects or c.organizations)]


def best_seat(
    credentials: Iterable[Credential], deployment: Deployment, health: Health, now_s: float
) -> Deployment:
    """A seat that can be asked, if there is one; else the one that can be soonest. The deployment
    itself without credentials.
    """
    waits: list[tuple[int, Deployment]] = []
    for credential in credentials:
        seat = credential.seat(deployment)
        why = ill(health, seat, now_s)
        if why is None:
            return seat
        waits.append((why.retry_after_ms or _NEVER_MS, seat))
    return min(waits, key=lambda wait: wait[0])[1] if waits else deployment


class Chooser:
    """Chooses among the credentials for one call, and remembers which it has tried.

    Args:
        health: who cools down or was refused.
        observed: who keeps failing, and whose limit is used up.
        entropy: for the spread.
    """

    __slots__ = ("_entropy", "_health", "_observed", "_tried")

    def __init__(self, health: Health, observed: Observed, entropy: Entropy) -> None:
        self._health = health
        self._observed = observed
        self._entropy = entropy
        self._tried: set[str] = set()

    def way(self, credentials: Sequence[Credential], deployment: Deployment, now_s: float) -> Way:
        """By weight, among those that can be asked: one that was not tried before any that was,
        then one that does not keep failing, then one whose limit is not used up.

        Raises why none can be asked.
        """
        seats = [(one, one.seat(deployment)) for one in credentials]
        well = [pair for pair in seats if ill(self._health, pair[1], now_s) is None]
        if not well:
            best = best_seat(credentials, deployment, self._health, now_s)
            raise ill(self._health, best, now_s) or no_credential(deployment.provider)
        fresh = [pair for pair in well if pair[1].id not in self._tried]
        credential, seat = self._drawn(self._best(fresh or well, now_s))
        self._tried.add(seat.id)
        return Way(credential.target, seat, credential.name)

    def has_another(
        self, credentials: Iterable[Credential], deployment: Deployment, now_s: float
    ) -> bool:
        """Whether there is a credential that can be asked and was not."""
        seats = (credential.seat(deployment) for credential in credentials)
        return any(
            seat.id not in self._tried and ill(self._health, seat, now_s) is None for seat in seats
        )

    def _best(
        self, pairs: list[tuple[Credential, Deployment]], now_s: float
    ) -> list[tuple[Credential, Deployment]]:
        """Those that are in order, where there are any: nobody is left out for good by this."""
        if len(pairs) == 1:
            return pairs
        seen = self._observed
        sound = [pair for pair in pairs if not seen.broken_s(pair[1].id, now_s)] or pairs
        return [pair for pair in sound if not seen.full(pair[1].id, now_s)] or sound

    def _drawn(
        self, pairs: Sequence[tuple[Credential, Deployment]]
    ) -> tuple[Credential, Deployment]:
        if len(pairs) == 1:
            return pairs[0]
        total = sum(credential.weight for credential, _ in pairs)
        drawn = int.from_bytes(self._entropy.bytes(4), "big") * total // 2**32
        for pair in pairs:
            drawn -= pair[0].weight
            if drawn < 0:
                return pair
        return pairs[-1]
