"""Where cool-downs are kept for the other usage processes, and for the next start."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    MetaData,
    String,
    Table,
    delete,
    select,
    update,
)
from sqlalchemy.schema import CreateTable

from runtime.sql import Database, Migration, announce, insert_new
from services.usage.cooldowns.cooldown_board import ENTRIES_MAX

SEAT_CHARS_MAX: Final = 512
CHANNEL: Final = "onegate_cooldowns"
"""Where changes are announced to other processes."""

_METADATA = MetaData()

COOLDOWNS = Table(
    "cooldowns",
    _METADATA,
    Column("seat", String(SEAT_CHARS_MAX), primary_key=True),
    Column("until_us", BigInteger, nullable=False),
)
_C = COOLDOWNS.c

MIGRATIONS: Final = (Migration(version=1, statements=(CreateTable(COOLDOWNS),)),)

NowUs = Callable[[Connection], int]


class CooldownStore:
    """Cool-downs, in a database. Raises STORE_UNAVAILABLE while it is away.

    Args:
        database: where.
        now_us: the clock by which ends are kept, in Unix microseconds; the same for all processes.
    """

    def __init__(self, database: Database, now_us: NowUs) -> None:
        self._database = database
        self._now_us = now_us

    async def migrate(self, *, now: datetime) -> None:
        """Brings the schema up to date; nothing else may be called before."""
        await self._database.migrate("usage_cooldowns", MIGRATIONS, now=now)

    async def put(self, left_s: Mapping[str, float]) -> None:
        """Keeps ends, the later of two; forgets those that are over; tells other processes."""

        def work(connection: Connection) -> None:
            now_us = self._now_us(connection)
            connection.execute(delete(COOLDOWNS).where(_C.until_us <= now_us))
            rows: list[dict[str, Any]] = [
                {"seat": seat, "until_us": now_us + int(left_s[seat] * 1_000_000)}
                for seat in sorted(left_s)
            ]
            insert_new(connection, COOLDOWNS, rows)
            for row in rows:
                later = (_C.seat == row["seat"]) & (_C.until_us < row["until_us"])
                connection.execute(update(COOLDOWNS).where(later).values(until_us=row["until_us"]))
            announce(connection, CHANNEL)

        await self._database.write(work)

    async def in_force(self) -> dict[str, float]:
        """All that hold, with how much longer in seconds."""

        def work(connection: Connection) -> dict[str, float]:
            now_us = self._now_us(connection)
            query = select(_C.seat, _C.until_us).where(_C.until_us > now_us).limit(ENTRIES_MAX)
            return {
                row.seat: (row.until_us - now_us) / 1_000_000 for row in connection.execute(query)
            }

        return await self._database.read(work)

    async def follow(self, heard: Callable[[], None]) -> None:
        """Calls ``heard`` when another process may have kept some, until it is cancelled; returns
        at once when there can be none.
        """
        await self._database.follow(CHANNEL, heard)
