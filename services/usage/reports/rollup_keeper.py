"""Moves the cubes on while a usage process runs; of several processes, whoever is first."""

import logging
from typing import Final

from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.sql import unix_micros
from services.usage.reports.rollup_store import Rollups

ROUND_S: Final = 20.0
"""How often what is due is looked for, in seconds."""

_LOG = logging.getLogger(__name__)


class RollupKeeper:
    """Runs beside the services of one usage process."""

    def __init__(self, rollups: Rollups, clock: Clock) -> None:
        self._rollups = rollups
        self._clock = clock

    async def run(self) -> None:
        """Until it is cancelled; while the store is away, everything waits."""
        while True:
            try:
                while await self._rollups.advance(unix_micros(self._clock.now())):
                    # Whoever wants to write gets between two hours of a long history.
                    await self._clock.sleep(0)
            except GatewayError as error:
                _LOG.warning("reports are summed up later: %s", error.message)
            await self._clock.sleep(ROUND_S)
