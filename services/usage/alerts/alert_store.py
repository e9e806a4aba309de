"""The outbox of alerts: what is decided is kept in the transaction that marks it as told.

A message is claimed for a time before it is sent. Whoever dies in between leaves it to the next,
so that it is sent at least once; its id is the same each time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Index,
    select,
    update,
)
from sqlalchemy.schema import CreateIndex, CreateTable

from onegate.usage.v1 import alert_service_pb2 as pb
from onegate.usage.v1.budget_pb2 import Budget
from runtime.sql import Database, Migration, insert_new, serialise
from services.usage.alerts import messages
from services.usage.alerts.alert_rows import OUTBOX, WEBHOOK, iso, new_row
from services.usage.alerts.rate_store import MIGRATION
from services.usage.ledger.budgets import Book, account_named
from services.usage.ledger.ledger_schema import BUDGETS, CROSSINGS
from services.usage.ledger.ledger_store import NowUs

TAKEN_MAX: Final = 100
CLAIM_US: Final = 120 * 1_000_000
"""How long a message is one process's to send, in microseconds; longer than any sending takes."""

_O, _X = OUTBOX.c, CROSSINGS.c

MIGRATIONS: Final = (
    Migration(
        version=1,
        statements=(
            CreateTable(OUTBOX),
            CreateIndex(Index("alert_outbox_due", _O.state, _O.due_at_us)),
            CreateIndex(Index("alert_outbox_by_time", _O.created_at_us)),
        ),
    ),
    MIGRATION,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A message that is to be sent now; ``prefix`` begins the subject of a mail."""

    id: str
    target: str
    payload: bytes
    prefix: str
    attempts: int


class AlertStore:
    """The outbox, in the ledger's database."""

    def __init__(self, database: Database, now_us: NowUs) -> None:
        self._database = database
        self._now_us = now_us

    async def migrate(self, *, now: datetime) -> None:
        """Brings the schema up to date; the ledger's own must be there."""
        await self._database.migrate("usage_alerts", MIGRATIONS, now=now)

    async def gather(self, *, webhook: bool, mail: bool) -> int:
        """Turns crossings that nobody was told of into messages; how many crossings.

        A crossing is marked in the same transaction, so it becomes messages exactly once.
        """
        return await self._database.write(lambda c: self._gather(c, webhook=webhook, mail=mail))

    async def put_trial(self, name: str, targets: Sequence[str]) -> list[str]:
        """Puts a trial into the outbox; the ids of its messages."""

        def work(connection: Connection) -> list[str]:
            now_us = self._now_us(connection)
            payload = messages.body_of(messages.trial(iso(now_us)))
            made = (new_row("test", (name, one), payload, now_us) for one in dict.fromkeys(targets))
            rows = sorted(made, key=_id_of)
            insert_new(connection, OUTBOX, rows)
            return [str(row["id"]) for row in rows]

        return await self._database.write(work)

    async def claim(self) -> list[Letter]:
        """Messages that are due, which are this process's to send for a while."""
        return await self._database.write(self._claim)

    async def done(
        self, letter: Letter, state: pb.AlertState.ValueType, error: str, wait_us: int
    ) -> None:
        """Keeps what became of a message; a pending one is due again after ``wait_us``."""

        def work(connection: Connection) -> None:
            connection.execute(
                update(OUTBOX)
                .where(_O.id == letter.id, _O.state == int(pb.ALERT_STATE_PENDING))
                .values(
                    state=int(state),
                    error=error[:500],
                    due_at_us=self._now_us(connection) + wait_us,
                )
            )

        await self._database.write(work)

    async def latest(self, state: pb.AlertState.ValueType, count_max: int) -> list[pb.Alert]:
        """Messages, newest first."""
        query = select(OUTBOX).order_by(_O.created_at_us.desc(), _O.id).limit(count_max)
        if state:
            query = query.where(_O.state == int(state))
        rows = await self._database.read(lambda c: c.execute(query).all())
        return [_message(row) for row in rows]

    def _gather(self, connection: Connection, *, webhook: bool, mail: bool) -> int:
        serialise(connection, "onegate_alerts")
        query = (
            select(CROSSINGS).where(_X.told_at_us.is_(None)).order_by(_X.crossed_at_us, _X.percent)
        )
        found = connection.execute(query.limit(TAKEN_MAX)).all()
        if not found:
            return 0
        budget_ids = {row.account_id.split("/", 1)[0] for row in found}
        kept = connection.execute(select(BUDGETS.c.budget).where(BUDGETS.c.id.in_(budget_ids)))
        book = Book([Budget.FromString(raw) for raw in kept.scalars()])
        now_us = self._now_us(connection)
        rows: dict[str, dict[str, object]] = {}
        for crossing in found:
            account = account_named(book, crossing.account_id)
            at = iso(crossing.crossed_at_us)
            content = messages.threshold(account, crossing.percent, crossing.spent_nano_usd, at)
            alert = account.budget.alert
            targets = [WEBHOOK] * webhook + list(alert.recipients) * mail
            for target in targets:
                named = (crossing.account_id, crossing.percent, target)
                row = new_row("budget.threshold", named, messages.body_of(content), now_us)
                rows[str(row["id"])] = {**row, "prefix": alert.subject_prefix}
        insert_new(connection, OUTBOX, [rows[name] for name in sorted(rows)])
        for crossing in found:
            connection.execute(
                update(CROSSINGS)
                .where(_X.account_id == crossing.account_id, _X.percent == crossing.percent)
                .values(told_at_us=now_us)
            )
        return len(found)

    def _claim(self, connection: Connection) -> list[Letter]:
        serialise(connection, "onegate_alerts")
        now_us = self._now_us(connection)
        query = (
            select(OUTBOX)
            .where(_O.state == int(pb.ALERT_STATE_PENDING), _O.due_at_us <= now_us)
            .order_by(_O.due_at_us, _O.id)
            .limit(1)
        )
        rows = connection.execute(query).all()
        for row in rows:
            connection.execute(
                update(OUTBOX)
                .where(_O.id == row.id)
                .values(attempts=row.attempts + 1, due_at_us=now_us + CLAIM_US)
            )
        return [
            Letter(
                id=row.id,
                target=row.target,
                payload=row.payload,
                prefix=row.prefix,
                attempts=row.attempts + 1,
            )
            for row in rows
        ]


def _id_of(row: dict[str, object]) -> str:
    return str(row["id"])


def _message(row: Any) -> pb.Alert:
    made = pb.Alert(
        id=row.id,
        type=row.type,
        target=row.target,
        state=row.state,
        attempts=row.attempts,
        error=row.error,
        payload=row.payload,
    )
    made.created_at.FromMicroseconds(row.created_at_us)
    return made
