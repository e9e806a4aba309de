"""Answers to calls with an idempotency key, kept for their window and for nobody but their caller.

A claim is a row that says who makes the call; the answer's pieces are rows beside it, sealed by the
router. A claim whose router has fallen silent is given to nobody until that router, come back, has
had its journal settled: only then is it known what the first call cost.
"""

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.schema import CreateIndex, CreateTable

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import idempotency_service_pb2 as pb
from runtime.errors import GatewayError
from runtime.sql import Database, Migration, insert_new, serialise
from services.usage.ledger.ledger_store import NowUs

NEW_US: Final = 30 * 1_000_000
"""A claim so young may be one whose router has not heard of it yet, in microseconds."""
READ_BYTES_MAX: Final = 4 * 1024 * 1024
"""How much of an answer one message brings."""
EXPIRED_MAX: Final = 500
"""Claims that one transaction of the sweeper deletes."""

_METADATA = MetaData()

CLAIMS = Table(
    "idempotency_claims",
    _METADATA,
    # The digest of API key and idempotency key.
    Column("id", String(64), primary_key=True),
    Column("claim_id", String(36), nullable=False, unique=True),
    Column("body", LargeBinary, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("owner", String(128), nullable=False),
    Column("life", String(36), nullable=False),
    # RUNNING, DONE or TOO_LARGE.
    Column("state", Integer, nullable=False),
    Column("lease_expires_at_us", BigInteger, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("expires_at_us", BigInteger, nullable=False),
)

CHUNKS = Table(
    "idempotency_chunks",
    _METADATA,
    Column("claim_id", String(36), primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("chunk", LargeBinary, nullable=False),
)

MIGRATIONS: Final = (
    Migration(
        version=1,
        statements=(
            CreateTable(CLAIMS),
            CreateTable(CHUNKS),
            CreateIndex(Index("idempotency_claims_by_owner", CLAIMS.c.owner, CLAIMS.c.state)),
            CreateIndex(Index("idempotency_claims_by_expiry", CLAIMS.c.expires_at_us)),
        ),
    ),
)

_C: Final = CLAIMS.c
_RUNNING: Final = pb.CLAIM_STATE_RUNNING


class IdempotencyStore:
    """Claims and answers, kept in a database.

    Args:
        database: where.
        now_us: the clock of leases and windows.
    """

    def __init__(self, database: Database, now_us: NowUs) -> None:
        self._database = database
        self._now_us = now_us

    async def claim(self, request: pb.ClaimAnswerRequest) -> pb.ClaimAnswerResponse:
        """How the call stands; it is the asker's when it is the first."""
        return await self._database.write(lambda c: self._claim(c, request))

    async def append(self, request: pb.AppendAnswerRequest) -> None:
        """Keeps a piece. Raises CONFLICT when the claim is not running."""
        await self._database.write(lambda c: _append(c, request))

    async def read(self, request: pb.ReadAnswerRequest) -> pb.ReadAnswerResponse:
        """Pieces from one on."""
        return await self._database.read(lambda c: self._read(c, request))

    async def keep(self, request: pb.KeepClaimsRequest) -> int:
        """Renews leases and ends what nobody is at; how many were ended."""
        return await self._database.write(lambda c: self._keep(c, request))

    async def spare(self, lease_us: int) -> None:
        """Gives every router time to say that it lives: nobody could while usage was away."""
        running = update(CLAIMS).where(_C.state == _RUNNING)
        await self._database.write(
            lambda c: c.execute(running.values(lease_expires_at_us=self._now_us(c) + lease_us))
        )

    async def expire(self) -> int:
        """Deletes some of what is past its window; how many answers."""
        return await self._database.write(self._expire)

    def _claim(
        self, connection: Connection, request: pb.ClaimAnswerRequest
    ) -> pb.ClaimAnswerResponse:
        serialise(connection, f"idempotency {request.id}")
        now_us = self._now_us(connection)
        row = connection.execute(select(CLAIMS).where(_C.id == request.id)).one_or_none()
        if row is not None and row.expires_at_us <= now_us and not _runs(row, now_us):
            _drop(connection, [row.claim_id])
            row = None
        if row is None:
            connection.execute(
                insert(CLAIMS).values(
                    id=request.id,
                    claim_id=request.claim_id,
                    body=request.body,
                    request_id=request.request_id,
                    owner=request.owner,
                    life=request.life,
                    state=_RUNNING,
                    lease_expires_at_us=now_us + request.lease_ms * 1000,
                    created_at_us=now_us,
                    expires_at_us=now_us + request.window_ms * 1000,
                )
            )
            return pb.ClaimAnswerResponse(
                state=pb.CLAIM_STATE_FIRST,
                claim_id=request.claim_id,
                request_id=request.request_id,
            )
        if row.body != request.body:
            state = pb.CLAIM_STATE_MISMATCH
        elif row.claim_id == request.claim_id:
            state = pb.CLAIM_STATE_FIRST
        else:
            state = _state(row, now_us)
        return pb.ClaimAnswerResponse(state=state, claim_id=row.claim_id, request_id=row.request_id)

    def _read(self, connection: Connection, request: pb.ReadAnswerRequest) -> pb.ReadAnswerResponse:
        query = select(CLAIMS).where(_C.claim_id == request.claim_id)
        row = connection.execute(query).one_or_none()
        if row is None:
            return pb.ReadAnswerResponse(state=pb.CLAIM_STATE_GONE)
        mine = CHUNKS.c.claim_id == request.claim_id
        count = select(func.count()).select_from(CHUNKS).where(mine)
        response = pb.ReadAnswerResponse(
            state=_state(row, self._now_us(connection)),
            count=connection.execute(count).scalar_one(),
        )
        later = select(CHUNKS.c.chunk).where(mine, CHUNKS.c.sequence >= request.sequence)
        size = 0
        for chunk in connection.execute(later.order_by(CHUNKS.c.sequence)).scalars():
            size += len(chunk)
            if response.chunks and size > READ_BYTES_MAX:
                break
            response.chunks.append(chunk)
        return response

    def _keep(self, connection: Connection, request: pb.KeepClaimsRequest) -> int:
        now_us = self._now_us(connection)
        mine = (_C.owner == request.owner, _C.state == _RUNNING)
        this_life = (*mine, _C.life == request.life)
        named = set(request.claim_ids)
        if named:
            renewed = update(CLAIMS).where(*this_life, _C.claim_id.in_(sorted(named)))
            connection.execute(renewed.values(lease_expires_at_us=now_us + request.lease_ms * 1000))
        old = select(_C.claim_id).where(*this_life, _C.created_at_us < now_us - NEW_US)
        ended = set(connection.execute(old).scalars()) - named
        if request.former_settled:
            # A life is a UUIDv7: former ones come before it.
            former = select(_C.claim_id).where(*mine, _C.life < request.life)
            ended.update(connection.execute(former).scalars())
        _drop(connection, sorted(ended))
        return len(ended)

    def _expire(self, connection: Connection) -> int:
        now_us = self._now_us(connection)
        over = or_(_C.state != _RUNNING, _C.lease_expires_at_us < now_us)
        past = select(_C.claim_id).where(_C.expires_at_us <= now_us, over)
        expired = list(connection.execute(past.limit(EXPIRED_MAX)).scalars())
        _drop(connection, sorted(expired))
        return len(expired)


def _runs(row: Row[Any], now_us: int) -> bool:
    return bool(row.state == _RUNNING and row.lease_expires_at_us >= now_us)


def _state(row: Row[Any], now_us: int) -> pb.ClaimState.ValueType:
    if row.state == _RUNNING and not _runs(row, now_us):
        return pb.CLAIM_STATE_ABANDONED
    return pb.ClaimState.ValueType(row.state)


def _append(connection: Connection, request: pb.AppendAnswerRequest) -> None:
    query = select(_C.state).where(_C.claim_id == request.claim_id).with_for_update()
    state = connection.execute(query).scalar_one_or_none()
    if state is None and request.end == pb.CLAIM_STATE_GONE:
        return
    if state == request.end and state is not None:
        return  # the same word again, because its answer was lost
    if state != _RUNNING:
        raise GatewayError(
            error_pb2.ERROR_REASON_CONFLICT,
            "The claim is not running: another life of the router has ended it.",
        )
    if request.end in (pb.CLAIM_STATE_GONE, pb.CLAIM_STATE_TOO_LARGE):
        connection.execute(delete(CHUNKS).where(CHUNKS.c.claim_id == request.claim_id))
    elif request.chunk:
        row = {
            "claim_id": request.claim_id,
            "sequence": request.sequence,
            "chunk": request.chunk,
        }
        insert_new(connection, CHUNKS, [row])
    if request.end == pb.CLAIM_STATE_GONE:
        connection.execute(delete(CLAIMS).where(_C.claim_id == request.claim_id))
    elif request.end:
        ended = update(CLAIMS).where(_C.claim_id == request.claim_id)
        connection.execute(ended.values(state=request.end))


def _drop(connection: Connection, claim_ids: list[str]) -> None:
    if claim_ids:
        # The claim first: whoever is adding a piece to it has locked it.
        connection.execute(delete(CLAIMS).where(_C.claim_id.in_(claim_ids)))
        connection.execute(delete(CHUNKS).where(CHUNKS.c.claim_id.in_(claim_ids)))
