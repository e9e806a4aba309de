"""Who holds: epochs that fence a router's former life, leases, and what becomes of those that end.

A lease that runs out never gives money back: what was held is posted as uncertain, until the
attempt's record says what it was.
"""

from typing import Final

from sqlalchemy import Connection, and_, delete, or_, select, update

from onegate.usage.v1 import hold_pb2
from onegate.usage.v1 import hold_service_pb2 as pb
from onegate.usage.v1.hold_pb2 import Hold
from runtime.sql import Database, insert_new
from services.usage.ledger import holds
from services.usage.ledger.hold_rows import held_of, matching, rewrite
from services.usage.ledger.hold_store import HoldStore, check_holder
from services.usage.ledger.ledger_schema import HOLDERS, HOLDS
from services.usage.ledger.ledger_store import LedgerStore
from services.usage.ledger.transactions import Tally
from services.usage.store import RECORDS

LEASE_MS: Final = 30_000
"""How long a holder may be silent when it does not say, in milliseconds."""

SWEPT_MAX: Final = 500
"""Holds that one transaction of the sweeper ends."""

ENDED_KEPT_US: Final = 24 * 3600 * 1_000_000
"""How long a hold that has ended is remembered, so that a late duplicate is known: no message is
under way for a day."""

UNCERTAIN_KEPT_US: Final = 92 * 24 * 3600 * 1_000_000
"""How long the truth about an uncertain hold is waited for."""

_PENDING: Final = hold_pb2.HOLD_STATE_PENDING
_UNCERTAIN: Final = hold_pb2.HOLD_STATE_UNCERTAIN
_ENDED: Final = (
    hold_pb2.HOLD_STATE_POSTED,
    hold_pb2.HOLD_STATE_VOIDED,
    hold_pb2.HOLD_STATE_REFUSED,
)
_H = HOLDS.c


class HolderStore:
    """Holders and their leases, kept in a database."""

    def __init__(self, database: Database, ledger: LedgerStore, hold_store: HoldStore) -> None:
        self._database = database
        self._ledger = ledger
        self._holds = hold_store

    async def open_epoch(self, request: pb.OpenEpochRequest) -> pb.OpenEpochResponse:
        """Gives a holder its next epoch."""
        return await self._database.write(lambda c: self._open_epoch(c, request))

    async def close_epochs(self, request: pb.CloseEpochsRequest) -> int:
        """Voids what older epochs hold; how many holds. Raises CONFLICT when fenced."""
        return await self._database.write(lambda c: self._close_epochs(c, request))

    async def renew(self, request: pb.RenewLeasesRequest) -> list[str]:
        """Renews a holder's leases; its slices that are called back. Raises CONFLICT."""
        return await self._database.write(lambda c: self._renew(c, request))

    async def sweep(self) -> tuple[int, int]:
        """Ends some holds whose lease has run out.

        Returns:
            How many were posted as uncertain, and how many ended because their record is there.
        """
        return await self._database.write(self._sweep)

    async def spare(self, lease_us: int) -> None:
        """Gives every holder time to say that it lives: nobody could while usage was away."""
        await self._database.write(
            lambda c: c.execute(
                update(HOLDERS).values(lease_expires_at_us=self._ledger.now_us(c) + lease_us)
            )
        )

    async def forget(self) -> int:
        """Deletes what ended long ago; how many holds."""
        return await self._database.write(self._forget)

    async def open_holds(self, holder: str, after: str, count_max: int) -> list[Hold]:
        """Holds that are not settled, by id."""
        query = select(HOLDS).where(_H.state.in_((_PENDING, _UNCERTAIN)), _H.id > after)
        if holder:
            query = query.where(_H.holder == holder)
        query = query.order_by(_H.id).limit(count_max)
        rows = await self._database.read(lambda c: c.execute(query).all())
        found = []
        for row in rows:
            held = held_of(
                (row.id, row.amount_nano_usd, row.state, row.accounts, row.slice, row.returned)
            )
            hold = Hold(
                attempt_id=held.id,
                holder=row.holder,
                epoch=row.epoch,
                account_ids=held.accounts,
                amount_nano_usd=held.amount_nano_usd,
                state=hold_pb2.HoldState.ValueType(held.state),
                slice=held.slice,
            )
            hold.lease_expires_at.FromMicroseconds(row.lease_expires_at_us)
            found.append(hold)
        return found

    async def recalled(self) -> list[str]:
        """The slices that are called back and not returned yet."""
        query = select(_H.id).where(
            _H.state == _PENDING, _H.slice.is_(True), _H.recalled.is_(True), _H.returned.is_(False)
        )
        return await self._database.read(lambda c: list(c.execute(query).scalars()))

    def _open_epoch(
        self, connection: Connection, request: pb.OpenEpochRequest
    ) -> pb.OpenEpochResponse:
        self._ledger.book(connection)
        now_us = self._ledger.now_us(connection)
        lease_us = (request.lease_ms or LEASE_MS) * 1000
        lease = {"lease_us": lease_us, "lease_expires_at_us": now_us + lease_us}
        # Two lives of a new holder may open at once: the row is there before it is locked.
        insert_new(connection, HOLDERS, [{"holder": request.holder, "epoch": 0, **lease}])
        mine = HOLDERS.c.holder == request.holder
        query = select(HOLDERS.c.epoch).where(mine).with_for_update()
        last: int = connection.execute(query).scalar_one()
        # A journal may know later epochs than a database that was restored from a copy.
        epoch = max(last, request.journal_epoch) + 1
        connection.execute(update(HOLDERS).where(mine).values(epoch=epoch, **lease))
        lost = matching(
            connection,
            "holder = ? AND epoch > ? AND state IN (?, ?)",
            [request.holder, request.journal_epoch, _PENDING, _UNCERTAIN],
        )
        uncertain = self._expire(connection, lost, now_us)
        if lost:
            # No journal knows what became of them, so no later epoch may void them.
            disowned = update(HOLDS).where(_H.id.in_(sorted(lost)))
            connection.execute(disowned.values(holder="", epoch=0))
        return pb.OpenEpochResponse(epoch=epoch, uncertain=uncertain)

    def _close_epochs(self, connection: Connection, request: pb.CloseEpochsRequest) -> int:
        self._ledger.book(connection)
        check_holder(connection, request.holder, request.epoch)
        kept = matching(
            connection,
            "holder = ? AND epoch < ? AND state IN (?, ?)",
            [request.holder, request.epoch, _PENDING, _UNCERTAIN],
        )
        return self._holds.end_all(connection, kept.values(), self._ledger.now_us(connection))

    def _renew(self, connection: Connection, request: pb.RenewLeasesRequest) -> list[str]:
        check_holder(connection, request.holder, request.epoch)
        now_us = self._ledger.now_us(connection)
        lives = update(HOLDERS).where(HOLDERS.c.holder == request.holder)
        connection.execute(lives.values(lease_expires_at_us=HOLDERS.c.lease_us + now_us))
        mine = and_(_H.holder == request.holder, _H.epoch == request.epoch, _H.state == _PENDING)
        if request.attempt_ids:
            longer = update(HOLDS).where(mine, _H.id.in_(sorted(set(request.attempt_ids))))
            connection.execute(longer.values(lease_expires_at_us=now_us + request.lease_ms * 1000))
        query = select(_H.id).where(
            mine, _H.slice.is_(True), _H.recalled.is_(True), _H.returned.is_(False)
        )
        return list(connection.execute(query).scalars())

    def _sweep(self, connection: Connection) -> tuple[int, int]:
        self._ledger.book(connection)
        now_us = self._ledger.now_us(connection)
        silent = "SELECT holder FROM ledger_holders WHERE lease_expires_at_us < ?"
        expired = matching(
            connection,
            f"state = ? AND (lease_expires_at_us < ? OR holder IN ({silent}))",
            [_PENDING, now_us, now_us],
            SWEPT_MAX,
        )
        if not expired:
            return 0, 0
        # A hold that was placed after its attempt's record came, by a message that was late.
        query = select(RECORDS.c.attempt_id).where(RECORDS.c.attempt_id.in_(sorted(expired)))
        posted = {name: expired.pop(name) for name in connection.execute(query).scalars()}
        self._holds.end_all(connection, posted.values(), now_us)
        return self._expire(connection, expired, now_us), len(posted)

    def _expire(self, connection: Connection, kept: dict[str, holds.Held], now_us: int) -> int:
        tally = Tally()
        pending = [hold for hold in kept.values() if hold.state == _PENDING]
        for hold in pending:
            holds.expire(hold, tally)
        self._ledger.lock(connection, tally.posted.keys() | tally.held.keys())
        self._ledger.apply(connection, tally, now_us)
        rewrite(connection, pending)
        return len(pending)

    def _forget(self, connection: Connection) -> int:
        now_us = self._ledger.now_us(connection)
        long_ago = and_(_H.state.in_(_ENDED), _H.created_at_us < now_us - ENDED_KEPT_US)
        given_up = and_(_H.state == _UNCERTAIN, _H.created_at_us < now_us - UNCERTAIN_KEPT_US)
        return connection.execute(delete(HOLDS).where(or_(long_ago, given_up))).rowcount
