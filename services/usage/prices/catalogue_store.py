"""Where the versions of the catalogue are kept: a row a version, a content once, for ever."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    func,
    insert,
    select,
)
from sqlalchemy.schema import CreateTable

from onegate.common.v1 import error_pb2
from onegate.usage.v1.catalogue_service_pb2 import CatalogueVersion
from runtime.errors import GatewayError
from runtime.sql import Database, Migration, RowNumber, announce, insert_new, serialise, unix_micros

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_METADATA = MetaData()

CONTENTS = Table(
    "catalogue_contents",
    _METADATA,
    Column("digest", Text, primary_key=True),
    # JSON, compressed with zlib.
    Column("content", LargeBinary, nullable=False),
)

VERSIONS = Table(
    "catalogue_versions",
    _METADATA,
    Column("number", RowNumber, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("actor", Text, nullable=False),
    # The number of the version that this one brought back; 0 for none.
    Column("restores", BigInteger, nullable=False),
    Column("models", BigInteger, nullable=False),
    Column("recorded_at_us", BigInteger, nullable=False),
)

CHANNEL: Final = "onegate_catalogue"
"""Where versions are announced to other processes."""

MIGRATIONS: Final = (
    Migration(version=1, statements=tuple(map(CreateTable, (CONTENTS, VERSIONS)))),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version of the catalogue; its number is the store's to give."""

    number: int = 0
    digest: str
    source: str
    actor: str
    restores: int = 0
    models: int
    recorded_at: datetime | None = None

    def to_proto(self) -> CatalogueVersion:
        """As an operator is told."""
        told = CatalogueVersion(
            number=self.number,
            digest=self.digest,
            source=self.source,
            actor=self.actor,
            restores=self.restores,
            models=self.models,
        )
        if self.recorded_at is not None:
            told.recorded_at.FromDatetime(self.recorded_at)
        return told


class CatalogueStore(Protocol):
    """Keeps versions. Raises STORE_UNAVAILABLE while the database is away."""

    async def migrate(self, *, now: datetime) -> None:
        """Brings the schema up to date; nothing else may be called before."""
        ...

    async def add(
        self, versions: Sequence[tuple[Version, bytes]], *, after: int, now: datetime
    ) -> None:
        """Keeps versions with their contents, all or none. Raises CONFLICT when ``after`` is no
        longer the number of the last one.
        """
        ...

    async def last(self) -> Version | None:
        """The version in force; ``None`` while there was never one."""
        ...

    async def find(self, number: int) -> Version | None:
        """The version of a number."""
        ...

    async def before(self, number: int | None, count_max: int) -> list[Version]:
        """Up to so many versions older than a number, newest first."""
        ...

    async def content(self, digest: str) -> bytes:
        """What is kept under a digest."""
        ...

    async def follow(self, heard: Callable[[], None]) -> None:
        """Calls ``heard`` when another process may have added a version, until it is cancelled;
        returns at once when there can be none.
        """
        ...


class SqlCatalogueStore:
    """The store on any SQL database that ``runtime.sql`` knows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def migrate(self, *, now: datetime) -> None:
        """See :class:`CatalogueStore`."""
        await self._database.migrate("usage_catalogue", MIGRATIONS, now=now)

    async def add(
        self, versions: Sequence[tuple[Version, bytes]], *, after: int, now: datetime
    ) -> None:
        """See :class:`CatalogueStore`."""
        at_us = unix_micros(now)

        def work(connection: Connection) -> None:
            serialise(connection, CHANNEL)
            last = connection.execute(select(func.max(VERSIONS.c.number))).scalar() or 0
            if last != after:
                raise GatewayError(
                    error_pb2.ERROR_REASON_CONFLICT,
                    "Another version of the catalogue was put in force meanwhile: compare again.",
                )
            contents = {version.digest: content for version, content in versions}
            rows = [{"digest": digest, "content": kept} for digest, kept in contents.items()]
            insert_new(connection, CONTENTS, rows)
            connection.execute(insert(VERSIONS), [_values(v, at_us) for v, _ in versions])
            announce(connection, CHANNEL)

        await self._database.write(work)

    async def last(self) -> Version | None:
        """See :class:`CatalogueStore`."""
        found = await self.before(None, 1)
        return found[0] if found else None

    async def find(self, number: int) -> Version | None:
        """See :class:`CatalogueStore`."""
        query = select(VERSIONS).where(VERSIONS.c.number == number)
        row = await self._database.read(lambda c: c.execute(query).first())
        return None if row is None else _version(row)

    async def before(self, number: int | None, count_max: int) -> list[Version]:
        """See :class:`CatalogueStore`."""
        query = select(VERSIONS).order_by(VERSIONS.c.number.desc()).limit(count_max)
        if number is not None:
            query = query.where(VERSIONS.c.number < number)
        rows = await self._database.read(lambda c: c.execute(query).all())
        return [_version(row) for row in rows]

    async def content(self, digest: str) -> bytes:
        """See :class:`CatalogueStore`."""
        query = select(CONTENTS.c.content).where(CONTENTS.c.digest == digest)
        return bytes(await self._database.read(lambda c: c.execute(query).scalar_one()))

    async def follow(self, heard: Callable[[], None]) -> None:
        """See :class:`CatalogueStore`."""
        await self._database.follow(CHANNEL, heard)


def _values(version: Version, at_us: int) -> dict[str, object]:
    return {
        "digest": version.digest,
        "source": version.source,
        "actor": version.actor,
        "restores": version.restores,
        "models": version.models,
        "recorded_at_us": at_us,
    }


def _version(row: Row[Any]) -> Version:
    return Version(
        number=row.number,
        digest=row.digest,
        source=row.source,
        actor=row.actor,
        restores=row.restores,
        models=row.models,
        recorded_at=_EPOCH + timedelta(microseconds=row.recorded_at_us),
    )
