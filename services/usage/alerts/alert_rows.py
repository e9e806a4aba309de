"""The outbox's table, and how a message lies in it."""

from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, MetaData, String, Table, Text

from onegate.usage.v1 import alert_service_pb2 as pb
from services.usage.alerts import messages

WEBHOOK: Final = "webhook"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_METADATA = MetaData()

OUTBOX = Table(
    "alert_outbox",
    _METADATA,
    Column("id", String(64), primary_key=True),
    Column("type", String(64), nullable=False),
    # `webhook`, or an address.
    Column("target", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("prefix", Text, nullable=False),
    Column("state", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due_at_us", BigInteger, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("error", Text, nullable=False),
)


def new_row(kind: str, named: tuple[object, ...], payload: bytes, now_us: int) -> dict[str, object]:
    """A new message; the last of its names is where it goes."""
    return {
        "id": messages.message_id(kind, *named),
        "type": kind,
        "target": str(named[-1]),
        "payload": payload,
        "prefix": "",
        "state": int(pb.ALERT_STATE_PENDING),
        "attempts": 0,
        "due_at_us": now_us,
        "created_at_us": now_us,
        "error": "",
    }


def iso(at_us: int) -> str:
    """A moment in ISO 8601; ``at_us`` in microseconds since 1970."""
    moment = _EPOCH + timedelta(microseconds=at_us)
    return moment.isoformat().replace("+00:00", "Z")
