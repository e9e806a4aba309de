"""Where the prices that operators set are kept: a row a change, for ever."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    LargeBinary,
    MetaData,
    Row,
    Table,
    Text,
    insert,
    select,
)
from sqlalchemy.schema import CreateTable

from onegate.usage.v1.price_pb2 import PriceSheet
from runtime.sql import Database, Migration, RowNumber, announce, serialise, unix_micros
from services.usage.prices.price_changes import Change

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_METADATA = MetaData()

CHANGES = Table(
    "price_changes",
    _METADATA,
    Column("number", RowNumber, primary_key=True),
    Column("model", Text, nullable=False),
    Column("valid_from_us", BigInteger, nullable=False),
    Column("recorded_at_us", BigInteger, nullable=False),
    # What reports join postings with; empty where the price was withdrawn.
    Column("version", Text, nullable=False),
    # The sheet as it was set; absent where it was withdrawn.
    Column("sheet", LargeBinary, nullable=True),
)

CHANNEL: Final = "onegate_prices"
"""Where changes are announced to other processes."""

MIGRATIONS: Final = (Migration(version=1, statements=(CreateTable(CHANGES),)),)


class PriceStore(Protocol):
    """Keeps price changes. Raises STORE_UNAVAILABLE while the database is away."""

    async def migrate(self, *, now: datetime) -> None:
        """Brings the schema up to date; nothing else may be called before."""
        ...

    async def add(self, changes: Sequence[Change]) -> None:
        """Keeps changes, all or none; their numbers are the store's to give."""
        ...

    async def after(self, number: int) -> list[Change]:
        """The changes with a greater number, in order."""
        ...

    async def follow(self, heard: Callable[[], None]) -> None:
        """Calls ``heard`` when another process may have made changes, until it is cancelled;
        returns at once when there can be none.
        """
        ...


class SqlPriceStore:
    """The store on any SQL database that ``runtime.sql`` knows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def migrate(self, *, now: datetime) -> None:
        """See :class:`PriceStore`."""
        await self._database.migrate("usage_prices", MIGRATIONS, now=now)

    async def add(self, changes: Sequence[Change]) -> None:
        """See :class:`PriceStore`."""
        rows = [_values(change) for change in changes]

        def work(connection: Connection) -> None:
            # Numbers grow in the order of commits, or a reader could pass one by.
            serialise(connection, CHANNEL)
            connection.execute(insert(CHANGES), rows)
            announce(connection, CHANNEL)

        if rows:
            await self._database.write(work)

    async def after(self, number: int) -> list[Change]:
        """See :class:`PriceStore`."""
        query = select(CHANGES).where(CHANGES.c.number > number).order_by(CHANGES.c.number)
        found = await self._database.read(lambda c: c.execute(query).all())
        return [_change(row) for row in found]

    async def follow(self, heard: Callable[[], None]) -> None:
        """See :class:`PriceStore`."""
        await self._database.follow(CHANNEL, heard)


def _values(change: Change) -> dict[str, object]:
    return {
        "model": change.model,
        "valid_from_us": unix_micros(change.valid_from),
        "recorded_at_us": unix_micros(change.recorded_at),
        "version": change.price.version if change.price else "",
        "sheet": change.price.SerializeToString() if change.price else None,
    }


def _change(row: Row[Any]) -> Change:
    return Change(
        number=row.number,
        model=row.model,
        price=None if row.sheet is None else PriceSheet.FromString(row.sheet),
        valid_from=_EPOCH + timedelta(microseconds=row.valid_from_us),
        recorded_at=_EPOCH + timedelta(microseconds=row.recorded_at_us),
    )
