"""Sets money aside: each hold on all its accounts or on none, a batch in a transaction."""

import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import hold_pb2
from onegate.usage.v1 import hold_service_pb2 as pb
from runtime.errors import GatewayError
from runtime.failpoints import OFF, Failpoint, Failpoints
from runtime.sql import Database, Work
from services.usage.driver_sql import Asked, places, run, run_all, run_together
from services.usage.ledger import holds
from services.usage.ledger.budgets import (
    HARD,
    Account,
    Book,
    account,
    account_named,
    holds_at,
)
from services.usage.ledger.hold_rows import (
    Holder,
    NewHold,
    insert_holds,
    insertion_of,
    locked,
    rewrite,
)
from services.usage.ledger.holds import Held, Room
from services.usage.ledger.ledger_store import LedgerStore, asked_lines, lines_of, rooms_of
from services.usage.ledger.transactions import LedgerError, Tally

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

HELD: Final = pb.HOLD_OUTCOME_HELD
REFUSED: Final = pb.HOLD_OUTCOME_REFUSED
_PENDING: Final = hold_pb2.HOLD_STATE_PENDING
_SLICES: Final = "SELECT id, accounts FROM ledger_holds WHERE state = ? AND slice AND NOT returned"
_RECALL: Final = "UPDATE ledger_holds SET recalled = ? WHERE id = ?"

Placed: TypeAlias = list[pb.HoldAnswer] | GatewayError
"""What one request ends in: an answer for each hold, or that its holder is fenced."""


@dataclass(slots=True, kw_only=True)
class _Batch:
    """What a transaction has decided so far."""

    now_us: int
    rooms: Mapping[str, Room]
    kept: dict[str, Held]
    new: dict[str, NewHold] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    refused: list[tuple[pb.HoldAnswer, tuple[str, ...]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What a transaction found and locked before it decides."""

    now_us: int
    fenced: Collection[tuple[str, int]]
    wants: Mapping[str, Sequence[Account]]
    kept: dict[str, Held]
    rooms: Mapping[str, Room]


class _UnexpectedError(Exception):
    """Something is not as it was: nothing was changed, and the transaction looks in turn."""


class HoldStore:
    """Holds, kept in a database.

    Args:
        database: where they are kept.
        ledger: the accounts that they lie on.
        failpoints: where a test may end this process.
    """

    def __init__(
        self, database: Database, ledger: LedgerStore, failpoints: Failpoints = OFF
    ) -> None:
        self._database = database
        self._failpoints = failpoints
        self._ledger = ledger

    async def place(self, requests: Sequence[pb.PlaceHoldsRequest]) -> list[Placed]:
        """Places the holds of many requests in one transaction; what became of each request."""
        placed, used, lent = await self._write(
            lambda c: self._place(c, requests, expecting=False),
            lambda c: self._place(c, requests, expecting=True),
        )
        self._failpoints.hit(Failpoint.HOLD_PLACED)
        self._ledger.remember(used)
        await self._recall(lent)
        return placed

    async def raise_holds(self, request: pb.RaiseHoldsRequest) -> list[pb.HoldAnswer]:
        """Raises holds. Raises CONFLICT when the holder is fenced."""
        answers, lent = await self._write(lambda c: self._raise(c, request))
        await self._recall(lent)
        return answers

    async def void(self, request: pb.VoidHoldsRequest) -> int:
        """Gives holds back; how many were held. Raises CONFLICT when the holder is fenced."""
        return await self._write(lambda c: self._void(c, request))

    async def take_slice(self, request: pb.TakeSliceRequest) -> pb.HoldAnswer:
        """Sets a slice aside. Raises CONFLICT when the holder is fenced."""
        return await self._write(lambda c: self._take_slice(c, request))

    async def return_slice(self, request: pb.ReturnSliceRequest) -> int:
        """Gives a slice back; how much, in nano-USD. Raises CONFLICT when the holder is fenced."""
        return await self._write(lambda c: self._return_slice(c, request))

    async def _recall(self, slices: Collection[str]) -> None:
        """Calls slices back, in a transaction that locks nothing else."""
        if slices:
            rows = [(True, name) for name in slices]
            await self._database.write(lambda c: run_all(c, _RECALL, rows))

    async def _write(self, work: Work[T], expecting: Work[T] | None = None) -> T:
        try:
            for first in (expecting or work, work):
                try:
                    return await self._database.write(first)
                except (IntegrityError, _UnexpectedError):
                    # Another process placed the same hold meanwhile: now it is known.
                    _LOG.debug("a hold is known already, or something is not as it was")
            return await self._database.write(work)
        except LedgerError as error:
            _LOG.critical("nothing was held or released: %s", error)
            raise GatewayError(
                error_pb2.ERROR_REASON_INTERNAL,
                "The ledger does not add up; nothing was changed. Run `onegate ledger verify`.",
            ) from error

    def _place(
        self, connection: Connection, requests: Sequence[pb.PlaceHoldsRequest], *, expecting: bool
    ) -> tuple[list[Placed], Collection[str], Collection[str]]:
        """What became of each request, the accounts that exist once this commits, and the slices
        to call back.
        """
        look = self._expecting if expecting else self._in_turn
        seen = look(connection, requests)
        batch = _Batch(now_us=seen.now_us, kept=seen.kept, rooms=seen.rooms)
        placed: list[Placed] = []
        for request in requests:
            holder = Holder(name=request.holder, epoch=request.epoch)
            if (holder.name, holder.epoch) in seen.fenced:
                placed.append(is_fenced(holder))
                continue
            placed.append(
                [
                    _placed(batch, holder, hold, seen.wants[hold.attempt_id])
                    for hold in request.holds
                ]
            )
        new = insertion_of(batch.new.values(), seen.now_us)
        self._ledger.admit(connection, batch.tally, new)
        self._failpoints.hit(Failpoint.HOLD_UNCOMMITTED)
        return placed, seen.rooms.keys(), lent_to(connection, batch.refused)

    def _expecting(self, connection: Connection, requests: Sequence[pb.PlaceHoldsRequest]) -> _Seen:
        """Locks, on one way to the database, what the budgets as they were seen last say, taking
        for granted that no hold is known yet: the insertion says so when one is.

        Raises ``_UnexpectedError`` when something is not as it was.
        """
        book, before_us = self._ledger.expected()
        wants = _wanted(book, requests, before_us)
        every = {one.id: one for accounts in wants.values() for one in accounts}
        names = sorted(every)
        holders = {(r.holder, r.epoch) for r in requests}
        if not (before_us and self._ledger.exist(names)):
            raise _UnexpectedError
        asked = [self._ledger.asked_now(connection), _asked_holders(holders)]
        if names:
            asked.append(asked_lines(names))
        now, current, *found = run_together(connection, asked)
        revision, now_us = self._ledger.heard_now(connection, now)
        lines = lines_of(found[0]) if found else {}
        if revision != book.revision or len(lines) != len(names):
            raise _UnexpectedError
        if any(not holds_at(one.span, now_us) for one in every.values()):
            raise _UnexpectedError
        return _Seen(
            now_us=now_us,
            fenced=holders - {(name, epoch) for name, epoch in current},
            wants=wants,
            kept={},
            rooms=rooms_of(every, lines),
        )

    def _in_turn(self, connection: Connection, requests: Sequence[pb.PlaceHoldsRequest]) -> _Seen:
        """Looks at the budgets, the holders, the holds and the accounts one after another."""
        book = self._ledger.book(connection)
        now_us = self._ledger.now(connection)
        fenced = fenced_of(connection, {(r.holder, r.epoch) for r in requests})
        open_ = [r for r in requests if (r.holder, r.epoch) not in fenced]
        wants = _wanted(book, open_, now_us)
        kept = locked(connection, {name for name, accounts in wants.items() if accounts})
        every = {one.id: one for accounts in wants.values() for one in accounts}
        return _Seen(
            now_us=now_us,
            fenced=fenced,
            wants=wants,
            kept=kept,
            rooms=self._ledger.rooms(connection, every.values()),
        )

    def _raise(
        self, connection: Connection, request: pb.RaiseHoldsRequest
    ) -> tuple[list[pb.HoldAnswer], Collection[str]]:
        book = self._ledger.book(connection)
        check_holder(connection, request.holder, request.epoch)
        kept = locked(connection, {one.attempt_id for one in request.raises})
        pending = [hold for hold in kept.values() if hold.state == _PENDING]
        lines = self._ledger.lock(connection, {a for hold in pending for a in hold.accounts})
        rooms = {
            name: Room(
                account=account_named(book, name),
                limit_nano_usd=line.limit_nano_usd,
                posted_nano_usd=line.posted_nano_usd,
                held_nano_usd=line.held_nano_usd,
            )
            for name, line in lines.items()
        }
        tally = Tally()
        refused: list[tuple[pb.HoldAnswer, tuple[str, ...]]] = []
        answers = []
        for one in request.raises:
            hold = kept.get(one.attempt_id)
            answer = _raised(hold, one, rooms, tally)
            if hold is not None and answer.outcome == REFUSED:
                refused.append((answer, hold.accounts))
            answers.append(answer)
        self._ledger.admit(connection, tally)
        rewrite(connection, pending)
        return answers, lent_to(connection, refused)

    def _void(self, connection: Connection, request: pb.VoidHoldsRequest) -> int:
        self._ledger.book(connection)
        holder = check_holder(connection, request.holder, request.epoch)
        now_us = self._ledger.now_us(connection)
        kept = locked(connection, set(request.attempt_ids))
        voided = self.end_all(connection, kept.values(), now_us)
        unknown = dict.fromkeys(one for one in request.attempt_ids if one not in kept)
        insert_holds(connection, [tombstone(one, holder, now_us) for one in unknown], now_us)
        return voided

    def end_all(self, connection: Connection, kept: Collection[Held], now_us: int) -> int:
        """Voids locked holds; how many stood for money until now."""
        open_ = [hold for hold in kept if hold.state in holds.OPEN]
        tally = Tally()
        for hold in open_:
            holds.end(hold, hold_pb2.HOLD_STATE_VOIDED, tally)
        self._ledger.lock(connection, tally.posted.keys() | tally.held.keys())
        self._ledger.apply(connection, tally, now_us)
        rewrite(connection, open_)
        return len(open_)

    def _take_slice(self, connection: Connection, request: pb.TakeSliceRequest) -> pb.HoldAnswer:
        book = self._ledger.book(connection)
        holder = check_holder(connection, request.holder, request.epoch)
        now_us = self._ledger.now_us(connection)
        accounts = counted_on(book, request.payer, now_us)
        if not accounts:
            return pb.HoldAnswer(outcome=pb.HOLD_OUTCOME_NOT_NEEDED)
        known = locked(connection, {request.slice_id}).get(request.slice_id)
        if known is not None:
            return _repeated(known, accounts)
        rooms = list(self._ledger.rooms(connection, accounts).values())
        amount = holds.slice_of(rooms, request.amount_nano_usd)
        if amount <= 0 or amount < request.amount_least_nano_usd:
            refusal = holds.refusal(rooms, request.amount_nano_usd)
            return pb.HoldAnswer(outcome=REFUSED, refusal=refusal)
        names = tuple(sorted(one.id for one in accounts))
        held = Held(
            id=request.slice_id, amount_nano_usd=amount, state=_PENDING, accounts=names, slice=True
        )
        tally = Tally()
        tally.hold(names, amount)
        self._ledger.admit(connection, tally)
        new = NewHold(
            held=held,
            holder=holder,
            request_id="",
            period_end_us=_first_end(accounts),
            lease_expires_at_us=now_us + request.lease_ms * 1000,
        )
        insert_holds(connection, [new], now_us)
        return _held(amount, accounts)

    def _return_slice(self, connection: Connection, request: pb.ReturnSliceRequest) -> int:
        self._ledger.book(connection)
        check_holder(connection, request.holder, request.epoch)
        hold = locked(connection, {request.slice_id}).get(request.slice_id)
        if hold is None or not hold.slice or hold.returned:
            return 0
        tally = Tally()
        reference = f"{hold.id}/returned"
        taken = holds.release(hold, request.amount_nano_usd, reference, tally)
        hold.returned = True
        if not hold.amount_nano_usd and hold.state in holds.OPEN:
            hold.state = hold_pb2.HOLD_STATE_POSTED
        self._ledger.lock(connection, hold.accounts)
        self._ledger.apply(connection, tally, self._ledger.now_us(connection))
        rewrite(connection, [hold])
        return taken


def fenced_of(connection: Connection, holders: Collection[tuple[str, int]]) -> set[tuple[str, int]]:
    """Which of these holders' epochs are not the current ones; the current ones stay so until the
    transaction ends.
    """
    current = {(name, epoch) for name, epoch in run(connection, *_asked_holders(holders))}
    return set(holders) - current


def is_fenced(holder: Holder) -> GatewayError:
    """What a holder is told that must not hold any more."""
    return GatewayError(
        error_pb2.ERROR_REASON_CONFLICT,
        f"Epoch {holder.epoch} of {holder.name[:64]!r} is not open: another process took its place."
        " Open a new epoch.",
    )


def check_holder(connection: Connection, name: str, epoch: int) -> Holder:
    """The holder; raises CONFLICT when it is fenced."""
    holder = Holder(name=name, epoch=epoch)
    if fenced_of(connection, {(name, epoch)}):
        raise is_fenced(holder)
    return holder


def counted_on(book: Book, payer: pb.Payer, now_us: int) -> list[Account]:
    """The accounts that a call must be held on."""
    return [
        account(budget, subject, now_us)
        for budget, subject in book.matching(payer)
        if budget.mode in HARD
    ]


def _asked_holders(holders: Collection[tuple[str, int]]) -> Asked:
    names = sorted({name for name, _ in holders})
    query = (
        "SELECT holder, epoch FROM ledger_holders"  # noqa: S608
        f" WHERE holder IN {places(len(names))} ORDER BY holder FOR SHARE"
    )
    return query, names


def _wanted(
    book: Book, requests: Iterable[pb.PlaceHoldsRequest], now_us: int
) -> dict[str, list[Account]]:
    """The accounts that each hold must be held on, by its attempt."""
    return {
        hold.attempt_id: counted_on(book, hold.payer, now_us)
        for request in requests
        for hold in request.holds
    }


def tombstone(attempt_id: str, holder: Holder, now_us: int) -> NewHold:
    """A hold that never was and can never be."""
    held = Held(id=attempt_id, amount_nano_usd=0, state=hold_pb2.HOLD_STATE_VOIDED, accounts=())
    return NewHold(
        held=held, holder=holder, request_id="", period_end_us=None, lease_expires_at_us=now_us
    )


def lent_to(
    connection: Connection, refused: Sequence[tuple[pb.HoldAnswer, tuple[str, ...]]]
) -> Collection[str]:
    """The slices that lie on the accounts of refused holds, whose callers are told to come again.

    They are only looked at: the accounts are locked by now, and who locks a hold locks it before
    its accounts.
    """
    short = {name for _, accounts in refused for name in accounts}
    if not short:
        return []
    slices = {
        name: {*json.loads(accounts)} for name, accounts in run(connection, _SLICES, [_PENDING])
    }
    found = {name: accounts for name, accounts in slices.items() if short & accounts}
    lent = {name for accounts in found.values() for name in accounts}
    for answer, accounts in refused:
        if lent & set(accounts):
            answer.refusal.retry_after_ms = holds.RECALL_MS
    return sorted(found)


def _placed(
    batch: _Batch, holder: Holder, asked: pb.HoldRequest, accounts: Sequence[Account]
) -> pb.HoldAnswer:
    if not accounts:
        return pb.HoldAnswer(outcome=pb.HOLD_OUTCOME_NOT_NEEDED)
    names = tuple(sorted(one.id for one in accounts))
    rooms = holds.rooms_of(batch.rooms, names)
    known = batch.kept.get(asked.attempt_id)
    if known is not None:
        answer = _repeated(known, accounts)
        if answer.outcome == REFUSED:
            answer.refusal.CopyFrom(holds.refusal(rooms, asked.amount_nano_usd))
        return answer
    taken = holds.admit(rooms, asked.amount_nano_usd, asked.amount_least_nano_usd)
    if taken < 0:
        held = Held(
            id=asked.attempt_id,
            amount_nano_usd=0,
            state=hold_pb2.HOLD_STATE_REFUSED,
            accounts=names,
        )
        refusal = holds.refusal(rooms, asked.amount_nano_usd)
        answer = pb.HoldAnswer(outcome=REFUSED, refusal=refusal)
        batch.refused.append((answer, names))
    else:
        held = Held(id=asked.attempt_id, amount_nano_usd=taken, state=_PENDING, accounts=names)
        batch.tally.hold(names, taken)
        answer = _held(taken, accounts)
    batch.kept[held.id] = held
    batch.new[held.id] = NewHold(
        held=held,
        holder=holder,
        request_id=asked.request_id,
        period_end_us=_first_end(accounts),
        lease_expires_at_us=batch.now_us + asked.lease_ms * 1000,
    )
    return answer


def _raised(
    hold: Held | None, asked: pb.HoldRaise, rooms: Mapping[str, Room], tally: Tally
) -> pb.HoldAnswer:
    if hold is None:
        return pb.HoldAnswer(outcome=pb.HOLD_OUTCOME_UNKNOWN)
    if hold.state != _PENDING:
        return pb.HoldAnswer(
            outcome=pb.HOLD_OUTCOME_ALREADY, state=hold_pb2.HoldState.ValueType(hold.state)
        )
    more = asked.amount_nano_usd - hold.amount_nano_usd
    if more > 0:
        own = holds.rooms_of(rooms, hold.accounts)
        enough = 0 < asked.amount_least_nano_usd <= hold.amount_nano_usd
        least = 1 if enough else max(asked.amount_least_nano_usd - hold.amount_nano_usd, 0)
        taken = holds.admit(own, more, least)
        if taken < 0 and not enough:
            return pb.HoldAnswer(
                outcome=REFUSED,
                amount_nano_usd=hold.amount_nano_usd,
                refusal=holds.refusal(own, more),
            )
        tally.hold(hold.accounts, max(taken, 0))
        hold.amount_nano_usd += max(taken, 0)
    return pb.HoldAnswer(outcome=HELD, amount_nano_usd=hold.amount_nano_usd)


def _repeated(known: Held, accounts: Sequence[Account]) -> pb.HoldAnswer:
    """What is said to a request that came before."""
    if known.state == _PENDING:
        return _held(known.amount_nano_usd, accounts)
    if known.state == hold_pb2.HOLD_STATE_REFUSED:
        return pb.HoldAnswer(outcome=REFUSED)
    return pb.HoldAnswer(
        outcome=pb.HOLD_OUTCOME_ALREADY, state=hold_pb2.HoldState.ValueType(known.state)
    )


def _held(amount: int, accounts: Sequence[Account]) -> pb.HoldAnswer:
    answer = pb.HoldAnswer(outcome=HELD, amount_nano_usd=amount)
    end_us = _first_end(accounts)
    if end_us is not None:
        answer.period_ends_at.FromMicroseconds(end_us)
    return answer


def _first_end(accounts: Iterable[Account]) -> int | None:
    ends = [one.span.end_us for one in accounts if one.span.end_us is not None]
    return min(ends, default=None)
