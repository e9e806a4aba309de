"""What was spent by the hour and by the day, and who was told that it is too much.

History is read from the cubes alone, a week at a time; what is spent now comes from a report, which
holds what no cube has yet. One process of several looks at a time: it takes the turn before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    MetaData,
    Select,
    String,
    Table,
    func,
    select,
    update,
)
from sqlalchemy.schema import CreateTable

from runtime.sql import Database, Migration, insert_new, serialise
from services.usage.alerts import messages
from services.usage.alerts.alert_rows import OUTBOX, iso, new_row
from services.usage.alerts.rates import WEEK_US, Subject, Verdict, content
from services.usage.ledger.ledger_store import NowUs
from services.usage.reports.report_store import Question, ReportStore
from services.usage.reports.rollup_schema import CUBES
from services.usage.reports.spans import HOUR_US

SUBJECTS_MAX: Final = 500
"""How many subjects are looked at in one round: the ones that spend most."""

KEYS_MAX: Final = 10_000
"""How many keys are asked about."""

_METADATA = MetaData()
_ID: Final = String(64)

TOLD = Table(
    "spend_rates_told",
    _METADATA,
    Column("organization_id", _ID, primary_key=True),
    Column("project_id", _ID, primary_key=True),
    Column("key_id", _ID, primary_key=True),
    Column("unit_us", BigInteger, primary_key=True, autoincrement=False),
    # The hour or day of the latest message.
    Column("start_us", BigInteger, nullable=False),
    Column("spent_nano_usd", BigInteger, nullable=False),
    Column("told_at_us", BigInteger, nullable=False),
)

TURNS = Table(
    "spend_rate_turns",
    _METADATA,
    Column("name", String(16), primary_key=True),
    Column("next_at_us", BigInteger, nullable=False),
)

MIGRATION: Final = Migration(
    version=2,
    statements=(
        *map(CreateTable, (TOLD, TURNS)),
        "INSERT INTO spend_rate_turns (name, next_at_us) VALUES ('look', 0)",
    ),
)

_T = TOLD.c


@dataclass(frozen=True, slots=True, kw_only=True)
class Spike:
    """What is to be told."""

    subject: Subject
    unit_us: int
    start_us: int
    spent_nano_usd: int
    verdict: Verdict


class RateStore:
    """Reads what was spent and keeps what is told, beside the outbox."""

    def __init__(self, database: Database, now_us: NowUs) -> None:
        self._database = database
        self._now_us = now_us
        self._reports = ReportStore(database)

    async def take_turn(self, wait_us: int) -> int | None:
        """What time it is when it is this process's turn to look; ``None`` when another did less
        than ``wait_us`` ago.
        """

        def work(connection: Connection) -> int | None:
            now_us = self._now_us(connection)
            due = update(TURNS).where(TURNS.c.next_at_us <= now_us)
            taken = connection.execute(due.values(next_at_us=now_us + wait_us)).rowcount
            return now_us if taken else None

        return await self._database.write(work)

    async def spent(self, from_us: int, before_us: int) -> dict[Subject, int]:
        """What keys spent in a span, dearest first."""
        groups = ("organization_id", "project_id", "key_id")
        question = Question(from_us=from_us, before_us=before_us, groups=groups, uncertain=False)
        found = await self._reports.totals(question, rows_max=KEYS_MAX, dearest_first=True)
        return {
            Subject(
                organization_id=str(one.group[0]),
                project_id=str(one.group[1]),
                key_id=str(one.group[2]),
            ): one.sums["cost_nano_usd"]
            for one in found
        }

    async def history(
        self, subject: Subject, unit_us: int, from_us: int, before_us: int
    ) -> dict[int, int]:
        """What a subject spent in each hour or day of a span, by when it began."""
        table = CUBES[0].hours if unit_us == HOUR_US else CUBES[0].days
        sums = select(table.c.start_us, func.sum(table.c.cost_nano_usd)).where(
            table.c.organization_id == subject.organization_id
        )
        if subject.project_id:
            sums = sums.where(table.c.project_id == subject.project_id)
        if subject.key_id:
            sums = sums.where(table.c.key_id == subject.key_id)
        found: dict[int, int] = {}
        for start_us in range(from_us, before_us, WEEK_US):
            end_us = min(start_us + WEEK_US, before_us)
            week = sums.where(table.c.start_us >= start_us, table.c.start_us < end_us)
            found |= await self._database.read(partial(_pairs, week.group_by(table.c.start_us)))
        return found

    async def tell(
        self, spikes: Sequence[Spike], targets: Sequence[str], quiet_us: int
    ) -> list[Spike]:
        """Puts messages into the outbox; of what. Each subject is told of once in an hour or day,
        and again within ``quiet_us`` only if it spends twice as much as it was told with.
        """
        return await self._database.write(lambda c: self._tell(c, spikes, targets, quiet_us))

    def _tell(
        self,
        connection: Connection,
        spikes: Sequence[Spike],
        targets: Sequence[str],
        quiet_us: int,
    ) -> list[Spike]:
        serialise(connection, "onegate_alerts")
        now_us = self._now_us(connection)
        told = [one for one in spikes if _marked(connection, one, now_us, quiet_us)]
        rows: dict[str, Mapping[str, object]] = {}
        for one in told:
            said = content(one.subject, one.unit_us, one.spent_nano_usd, one.verdict)
            payload = messages.body_of(
                {
                    "type": messages.SPEND_RATE,
                    "timestamp": iso(now_us),
                    "data": {**said, "period_starts_us": one.start_us},
                }
            )
            for target in targets:
                named = (*one.subject.ids, one.unit_us, one.start_us, target)
                row = new_row(messages.SPEND_RATE, named, payload, now_us)
                rows[str(row["id"])] = row
        insert_new(connection, OUTBOX, [rows[name] for name in sorted(rows)])
        return told


def _pairs(query: Select[Any], connection: Connection) -> dict[int, int]:
    return {int(row[0]): int(row[1]) for row in connection.execute(query)}


def _marked(connection: Connection, spike: Spike, now_us: int, quiet_us: int) -> bool:
    """Marks a spike as told; false when it was, or is too like one that was."""
    subject = spike.subject
    named = {
        "organization_id": subject.organization_id,
        "project_id": subject.project_id,
        "key_id": subject.key_id,
        "unit_us": spike.unit_us,
    }
    said = {
        "start_us": spike.start_us,
        "spent_nano_usd": spike.spent_nano_usd,
        "told_at_us": now_us,
    }
    if insert_new(connection, TOLD, [{**named, **said}]):
        return True
    mine = [_T[name] == value for name, value in named.items()]
    last = connection.execute(select(TOLD).where(*mine)).one()
    if last.start_us >= spike.start_us:
        return False
    if now_us - last.told_at_us < quiet_us and spike.spent_nano_usd < 2 * last.spent_nano_usd:
        return False
    connection.execute(update(TOLD).where(*mine).values(**said))
    return True
