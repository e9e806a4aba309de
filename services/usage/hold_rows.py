"""Holds as rows: locked, inserted, rewritten."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, bindparam, insert, select, update

from services.usage.holds import Held
from services.usage.ledger import LedgerError
from services.usage.ledger_schema import HOLDS

_H = HOLDS.c
_COLUMNS: Final = (_H.id, _H.amount_nano_usd, _H.state, _H.accounts, _H.slice, _H.returned)
_REWRITE: Final = (
    update(HOLDS)
    .where(_H.id == bindparam("hold"))
    .values(
        amount_nano_usd=bindparam("amount"),
        state=bindparam("stands"),
        returned=bindparam("is_returned"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds: a router's name and epoch. Nobody, with an empty name."""

    name: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewHold:
    """A hold that is about to be kept."""

    held: Held
    holder: Holder
    request_id: str
    period_end_us: int | None
    lease_expires_at_us: int


def locked(connection: Connection, ids: Collection[str]) -> dict[str, Held]:
    """The holds among these ids, by id; nobody else changes them until the transaction ends."""
    return matching(connection, [_H.id.in_(sorted(ids))]) if ids else {}


def matching(
    connection: Connection, conditions: Sequence[ColumnElement[bool]], count_max: int | None = None
) -> dict[str, Held]:
    """The holds that meet conditions, locked in the order of their ids."""
    query = select(*_COLUMNS).where(*conditions).order_by(_H.id).with_for_update()
    if count_max is not None:
        query = query.limit(count_max)
    return {row.id: held_of(row) for row in connection.execute(query)}


def held_of(row: Any) -> Held:
    """A hold, as its row says."""
    return Held(
        id=row.id,
        amount_nano_usd=row.amount_nano_usd,
        state=row.state,
        accounts=tuple(json.loads(row.accounts)),
        slice=row.slice,
        returned=row.returned,
    )


def insert_holds(connection: Connection, new: Iterable[NewHold], now_us: int) -> None:
    """Keeps new holds."""
    rows = [
        {
            "id": one.held.id,
            "holder": one.holder.name,
            "epoch": one.holder.epoch,
            "request_id": one.request_id,
            "slice": one.held.slice,
            "returned": False,
            "recalled": False,
            "state": one.held.state,
            "amount_nano_usd": one.held.amount_nano_usd,
            "accounts": json.dumps(one.held.accounts),
            "period_end_us": one.period_end_us,
            "lease_expires_at_us": one.lease_expires_at_us,
            "created_at_us": now_us,
        }
        for one in new
    ]
    if rows:
        connection.execute(insert(HOLDS), rows)


def rewrite(connection: Connection, changed: Collection[Held]) -> None:
    """Keeps what became of holds that the transaction has locked."""
    rows = [
        {
            "hold": hold.id,
            "amount": hold.amount_nano_usd,
            "stands": hold.state,
            "is_returned": hold.returned,
        }
        for hold in changed
    ]
    if rows and connection.execute(_REWRITE, rows).rowcount != len(rows):
        raise LedgerError("A hold is gone while it is locked.")
