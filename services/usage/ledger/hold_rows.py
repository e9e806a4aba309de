"""Holds as rows: locked, inserted, rewritten."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import Connection

from services.usage.driver_sql import Change, insertion, places, run, run_all
from services.usage.ledger.holds import Held
from services.usage.ledger.ledger_schema import HOLDS
from services.usage.ledger.transactions import LedgerError

_SELECT: Final = (
    "SELECT id, amount_nano_usd, state, accounts, slice, returned FROM ledger_holds WHERE"
)
_INSERT: Final = insertion(HOLDS.name, HOLDS.c.keys())
_REWRITE: Final = (
    "UPDATE ledger_holds SET amount_nano_usd = ?, state = ?, returned = ? WHERE id = ?"
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
    names = sorted(set(ids))
    return matching(connection, f"id IN {places(len(names))}", names) if names else {}


def matching(
    connection: Connection, condition: str, values: Sequence[object], count_max: int = 0
) -> dict[str, Held]:
    """The holds that meet a condition, locked in the order of their ids; all, for 0 at most."""
    most = f" LIMIT {count_max}" if count_max else ""
    query = f"{_SELECT} {condition} ORDER BY id{most} FOR UPDATE"
    return {row[0]: held_of(row) for row in run(connection, query, values)}


def held_of(row: Any) -> Held:
    """A hold, as its row says: its id, amount, state, accounts, whether a slice, and returned."""
    name, amount, state, accounts, slice_, returned = row
    return Held(
        id=name,
        amount_nano_usd=amount,
        state=state,
        accounts=tuple(json.loads(accounts)),
        slice=bool(slice_),
        returned=bool(returned),
    )


def insert_holds(connection: Connection, new: Iterable[NewHold], now_us: int) -> None:
    """Keeps new holds."""
    run_all(connection, *insertion_of(new, now_us))


def insertion_of(new: Iterable[NewHold], now_us: int) -> Change:
    """Keeps new holds, as a change that goes together with others."""
    rows = [
        (
            one.held.id,
            one.holder.name,
            one.holder.epoch,
            one.request_id,
            one.held.slice,
            False,
            False,
            one.held.state,
            one.held.amount_nano_usd,
            json.dumps(one.held.accounts),
            one.period_end_us,
            one.lease_expires_at_us,
            now_us,
        )
        for one in new
    ]
    # In one order everywhere, or two transactions with the same holds may wait for each other.
    return _INSERT, sorted(rows, key=itemgetter(0))


def rewrite(connection: Connection, changed: Collection[Held]) -> None:
    """Keeps what became of holds that the transaction has locked."""
    rows = [(hold.amount_nano_usd, hold.state, hold.returned, hold.id) for hold in changed]
    if run_all(connection, _REWRITE, rows) != len(rows):
        raise LedgerError("A hold is gone while it is locked.")
