"""Records and clocks that the tests of usage start from."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

from onegate.common.v1.token_usage_pb2 import TokenUsage
from onegate.usage.v1 import usage_record_pb2
from onegate.usage.v1.usage_record_pb2 import Attribution, UsageRecord
from onegate.usage.v1.usage_service_pb2 import UsageDimension
from runtime.clock import Clock
from runtime.rpc import OPERATOR_KEY
from runtime.secrets import Secret
from runtime.sql import open_database
from services.usage.prices.board import Board
from services.usage.prices.price_service import OperatorPrices
from services.usage.prices.price_store import SqlPriceStore
from services.usage.reports.queries import Selection
from services.usage.reports.report_service import columns_of, question_of
from services.usage.reports.report_store import ReportStore
from services.usage.store import SqlStore

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)

TOKEN = Secret("t" * 64)
OPERATOR = ((OPERATOR_KEY, TOKEN.reveal()),)
"""The metadata of an operator's call."""


@asynccontextmanager
async def prices_of(directory: Path, board: Board, clock: Clock) -> AsyncIterator[OperatorPrices]:
    """What operators set, kept in a database of its own."""
    database = open_database(f"sqlite://{directory}/prices.db")
    store = SqlPriceStore(database)
    await store.migrate(now=clock.now())
    try:
        made = OperatorPrices(store, board, clock)
        await made.refresh()
        yield made
    finally:
        await database.close()


async def summed(
    store: SqlStore, selection: Selection, dimensions: Sequence[UsageDimension.ValueType] = ()
) -> list[SimpleNamespace]:
    """What a report of the store's records says, dearest first."""
    question = question_of(selection, columns_of(dimensions, ""), "")
    found = await ReportStore(store.database).totals(question, rows_max=10_000, dearest_first=True)
    return [SimpleNamespace(group=total.group, **total.sums) for total in found]


class SteppedClock:
    """A clock whose face stands still until the test moves it; sleeping is real, but short."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.passed_s)

    def monotonic(self) -> float:
        return 1000.0 + self.passed_s

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(min(delay_s, 0.05))


async def until(condition: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
    """Waits until ``condition`` holds; fails when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        await asyncio.sleep(0.001)


def attempt_id(number: int) -> str:
    return f"01900000-0000-7000-8000-{number:012d}"


def record(number: int, **changes: object) -> UsageRecord:
    """A record that differs from others by its number, a second after the one before."""
    made = UsageRecord(
        attempt_id=attempt_id(number),
        request_id=f"req-{number // 2}",
        attempt_number=1,
        key_id=f"key_{number % 3}",
        project_id=f"proj_{number % 2}",
        organization_id="org_1",
        model_requested="gpt-4o",
        model="openai/gpt-4o",
        provider="openai",
        endpoint="chat.completions",
        stream=True,
        duration_us=1_500_000,
        first_token_us=250_000,
        outcome=usage_record_pb2.OUTCOME_COMPLETED,
        upstream_status=200,
        tokens=TokenUsage(
            input_tokens=100, cached_input_tokens=40, output_tokens=10, reasoning_tokens=4
        ),
        cost_nano_usd=1_000 + number,
        price_version="source:openai/gpt-4o:1",
        certainty=usage_record_pb2.CERTAINTY_REPORTED,
        tags={"team": "search", "environment": "prod"},
        attribution=Attribution(customer="acme", feature="chat"),
        finish_reason="stop",
    )
    made.started_at.FromDatetime(NOON + timedelta(seconds=number))
    for name, value in changes.items():
        setattr(made, name, value)
    return made
