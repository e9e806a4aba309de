"""Tells auth which keys were used: seldom, in batches, and of one key at most once a minute.

What is not told when the process ends is lost: the time of a last use is good to about a minute.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from onegate.auth.v1 import grant_service_pb2
from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.rpc import unary

REPORT_S: Final = 60.0
"""How long auth is told nothing new of a key that it was told of, in seconds."""

TICK_S: Final = 5.0
"""How often it is looked whether there is something to tell, in seconds."""

BATCH_MAX: Final = 1_000
"""Of how many keys auth is told at once."""

TIMEOUT_S: Final = 5.0
"""How long auth may take to take note, in seconds."""

_LOG = logging.getLogger(__name__)


class UseReporter:
    """Reports uses for a process.

    Args:
        report: auth's method.
        clock: turns monotonic seconds into times.
        due: at a monotonic time, the uses to be told, by key id in monotonic seconds; what was
            handed out once is not handed out again.
    """

    def __init__(
        self, report: Any, clock: Clock, due: Callable[[float], Mapping[str, float]]
    ) -> None:
        self._report = report
        self._clock = clock
        self._due = due
        self._untold: dict[str, float] = {}

    async def run(self) -> None:
        """Reports until it is cancelled."""
        while True:
            await self._clock.sleep(TICK_S)
            await self.report()

    async def report(self) -> None:
        """Tells what is due; what auth did not take is told with the next."""
        now_s = self._clock.monotonic()
        uses = {**self._untold, **self._due(now_s)}
        self._untold = {}
        unix_s = self._clock.now().timestamp()
        told = sorted(uses)
        for start in range(0, len(told), BATCH_MAX):
            batch = told[start : start + BATCH_MAX]
            request = grant_service_pb2.ReportUseRequest(
                uses=[
                    grant_service_pb2.KeyUse(
                        key_id=key_id, used_at_s=int(unix_s - (now_s - uses[key_id]))
                    )
                    for key_id in batch
                ]
            )
            try:
                await unary(self._report, request, timeout_s=TIMEOUT_S)
            except GatewayError as error:
                _LOG.debug("auth took no note of used keys: %s", error.message)
                self._untold = {key_id: uses[key_id] for key_id in told[start:]}
                return
