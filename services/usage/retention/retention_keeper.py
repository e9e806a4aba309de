"""Makes room for what comes and forgets what is old, while a usage process runs."""

import logging
from typing import Final

from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.sql import unix_micros
from services.usage.retention.retention_store import Retention

ROUND_S: Final = 600.0
"""How often what is due is looked for, in seconds."""

STEP_S: Final = 0.05
"""How long others have the database between two pieces of work, in seconds."""

_LOG = logging.getLogger(__name__)


class RetentionKeeper:
    """Runs beside the services of one usage process."""

    def __init__(self, retention: Retention, clock: Clock) -> None:
        self._retention = retention
        self._clock = clock

    async def run(self) -> None:
        """Until it is cancelled; while the store is away, everything waits."""
        while True:
            try:
                await self._retention.prepare(unix_micros(self._clock.now()))
                while await self._retention.advance(unix_micros(self._clock.now())):
                    await self._clock.sleep(STEP_S)
            except GatewayError as error:
                _LOG.warning("old records are removed later: %s", error.message)
            await self._clock.sleep(ROUND_S)
