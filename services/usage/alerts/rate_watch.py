"""Looks whether somebody spends far more than usual, in one usage process at a time."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from runtime.clock import Clock
from runtime.config import AlertSettings
from runtime.errors import GatewayError
from services.usage.alerts.alert_rows import WEBHOOK
from services.usage.alerts.rate_store import SUBJECTS_MAX, RateStore, Spike
from services.usage.alerts.rates import (
    SOURCE_DAYS,
    Rule,
    Subject,
    floors_of,
    judge,
    narrowest,
    subjects_of,
)
from services.usage.reports.spans import DAY_US, HOUR_US

ROUND_S: Final = 60.0
"""How often is looked, in seconds."""

QUIET_US: Final = DAY_US
"""For how long a subject that was told of is left alone, in microseconds."""

_LOG = logging.getLogger(__name__)


def rule_of(settings: AlertSettings) -> Rule:
    """The rule that the settings mean. Raises ``ValueError``."""
    return Rule(
        factor=settings.spend_rate_factor,
        floor_nano_usd=settings.spend_rate_floor_usd * 10**9,
        days_min=settings.spend_rate_days,
        floors=floors_of(settings.spend_rate_floors),
    )


class RateWatch:
    """Runs beside the services of one usage process; does nothing when it is switched off or
    nobody can be told.
    """

    def __init__(self, store: RateStore, settings: AlertSettings, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._rule = rule_of(settings)
        mail = settings.spend_rate_mail if settings.smtp_host else ()
        hook = (WEBHOOK,) if settings.webhook_url else ()
        self._targets: Sequence[str] = (*hook, *mail) if settings.spend_rate else ()
        # What hours and days that are over came to, for those that may be spending too much.
        self._known: dict[tuple[Subject, int], tuple[int, Mapping[int, int]]] = {}

    async def run(self) -> None:
        """Until it is cancelled; while the store is away, everything waits."""
        while self._targets:
            await self._clock.sleep(ROUND_S)
            try:
                await self.round()
            except GatewayError as error:
                _LOG.warning("nobody looks at who spends how fast: %s", error.message)

    async def round(self) -> list[Spike]:
        """Looks, if it is this process's turn; what was told. Raises STORE_UNAVAILABLE."""
        now_us = await self._store.take_turn(int(ROUND_S * 900_000))
        if now_us is None:
            return []
        told: list[Spike] = []
        for unit_us in (HOUR_US, DAY_US):
            found = await self._spikes(unit_us, now_us)
            if found:
                told += await self._store.tell(found, self._targets, QUIET_US)
        for one in told:
            _LOG.warning(
                "%s spent %.2f USD within this %s; up to %.2f is usual",
                " of ".join(one.subject.ids),
                one.spent_nano_usd / 1e9,
                "hour" if one.unit_us == HOUR_US else "day",
                one.verdict.limit_nano_usd / 1e9,
            )
        return told

    async def _spikes(self, unit_us: int, now_us: int) -> list[Spike]:
        start_us = now_us // unit_us * unit_us
        spent = subjects_of(await self._store.spent(start_us, now_us + 1))
        found: dict[Subject, Spike] = {}
        for subject in self._watched(spent):
            rule = replace(self._rule, floor_nano_usd=self._rule.floor_of(subject.ids) or 0)
            history = await self._history(subject, unit_us, start_us)
            verdict = judge(spent[subject], history, start_us, unit_us, rule)
            if verdict is not None:
                found[subject] = Spike(
                    subject=subject,
                    unit_us=unit_us,
                    start_us=start_us,
                    spent_nano_usd=spent[subject],
                    verdict=verdict,
                )
        chosen = narrowest({subject: spike.spent_nano_usd for subject, spike in found.items()})
        return [found[subject] for subject in chosen]

    def _watched(self, spent: Mapping[Subject, int]) -> list[Subject]:
        """Who spent more than their floor, dearest first: nobody else needs their history read."""
        over = [
            subject
            for subject, amount in spent.items()
            if (floor := self._rule.floor_of(subject.ids)) is not None and amount > floor
        ]
        return sorted(over, key=lambda one: -spent[one])[:SUBJECTS_MAX]

    async def _history(self, subject: Subject, unit_us: int, start_us: int) -> Mapping[int, int]:
        name = (subject, unit_us)
        known = self._known.get(name)
        if known is None or known[0] != start_us:
            if len(self._known) >= 4 * SUBJECTS_MAX:
                self._known.clear()
            found = await self._store.history(
                subject, unit_us, start_us - SOURCE_DAYS * DAY_US, start_us
            )
            self._known[name] = known = (start_us, found)
        return known[1]
