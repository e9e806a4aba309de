"""Where identity is kept: organisations, projects, keys, and the log of what changed.

The log is what makes revocation prompt: every change of a key takes the next revision in the same
transaction, so revisions grow in the order of commits, whichever process writes. A key's version
is the revision of its last change.
"""

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    RowMapping,
    Select,
    String,
    Table,
    Text,
    TypeDecorator,
    delete,
    insert,
    select,
    true,
    update,
)
from sqlalchemy.schema import CreateIndex, CreateTable

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from runtime.sql import Database, Migration, Timestamp
from services.auth.policy import Policy, from_json, to_json
from services.auth.records import (
    Change,
    Changes,
    Founding,
    KeyDraft,
    KeyFilter,
    KeyRecord,
    Lineage,
    Listing,
    NewKey,
    OrganizationRecord,
    Page,
    ProjectDraft,
    ProjectRecord,
)

CHANGES_KEPT: Final = 10_000
"""How many revisions the log remembers; whoever is further behind starts anew."""


class PolicyJson(TypeDecorator[Policy]):
    """A level's policy as JSON."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Policy | None, dialect: Dialect) -> str | None:
        """Written as :func:`to_json` says."""
        del dialect
        return None if value is None else to_json(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Policy | None:
        """Read as :func:`from_json` says."""
        del dialect
        return None if value is None else from_json(value)


_METADATA = MetaData()
_ID = String(64)

ORGANIZATIONS = Table(
    "organizations",
    _METADATA,
    Column("id", _ID, primary_key=True),
    Column("name", String(200), nullable=False),
    Column("policy", PolicyJson, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_revision", BigInteger, nullable=False, unique=True),
    Column("created_at_us", Timestamp, nullable=False),
)

PROJECTS = Table(
    "projects",
    _METADATA,
    Column("id", _ID, primary_key=True),
    Column("organization_id", _ID, ForeignKey(ORGANIZATIONS.c.id), nullable=False),
    Column("name", String(200), nullable=False),
    Column("policy", PolicyJson, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_revision", BigInteger, nullable=False, unique=True),
    Column("created_at_us", Timestamp, nullable=False),
)

KEYS = Table(
    "keys",
    _METADATA,
    Column("id", _ID, primary_key=True),
    Column("organization_id", _ID, ForeignKey(ORGANIZATIONS.c.id), nullable=False),
    Column("project_id", _ID, ForeignKey(PROJECTS.c.id)),
    Column("principal_id", _ID, nullable=False),
    Column("kind", Integer, nullable=False),
    Column("name", String(200), nullable=False),
    Column("mac", LargeBinary(32), nullable=False, unique=True),
    Column("redacted_value", String(32), nullable=False),
    Column("policy", PolicyJson, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_revision", BigInteger, nullable=False, unique=True),
    Column("created_at_us", Timestamp, nullable=False),
    Column("expires_at_us", Timestamp),
    Column("revoked_at_us", Timestamp),
)

CHANGES = Table(
    "changes",
    _METADATA,
    # One change of a project will be one revision of many keys.
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("key_id", _ID, primary_key=True),
    Column("revoked", Integer, nullable=False),
    Column("changed_at_us", Timestamp, nullable=False),
)

REVISIONS = Table(
    "revisions",
    _METADATA,
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    Column("newest", BigInteger, nullable=False),
    # The log holds every change after this revision.
    Column("forgotten", BigInteger, nullable=False),
)

REQUESTS = Table(
    "requests",
    _METADATA,
    Column("organization_id", _ID, ForeignKey(ORGANIZATIONS.c.id), primary_key=True),
    Column("request_id", String(64), primary_key=True),
    Column("fingerprint", LargeBinary(32), nullable=False),
    Column("key_id", _ID, ForeignKey(KEYS.c.id), nullable=False),
    Column("made_at_us", Timestamp, nullable=False),
)

PEPPERS = Table(
    "peppers",
    _METADATA,
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    Column("fingerprint", LargeBinary(32), nullable=False),
)

_TABLES = (ORGANIZATIONS, PROJECTS, KEYS, CHANGES, REVISIONS, REQUESTS, PEPPERS)
_INDEXES = (
    Index("keys_by_organization", KEYS.c.organization_id, KEYS.c.created_revision),
    Index("keys_by_project", KEYS.c.project_id, KEYS.c.created_revision),
    Index("projects_by_organization", PROJECTS.c.organization_id, PROJECTS.c.created_revision),
)

MIGRATIONS: Final = (
    Migration(
        version=1,
        statements=(
            *map(CreateTable, _TABLES),
            *map(CreateIndex, _INDEXES),
            "INSERT INTO revisions (id, newest, forgotten) VALUES (1, 0, 0)",
        ),
    ),
)


class SqlStore:
    """The store on any SQL database that ``runtime.sql`` knows."""

    def __init__(self, database: Database, *, changes_kept: int = CHANGES_KEPT) -> None:
        self._database = database
        self._changes_kept = changes_kept

    async def migrate(self, *, now: datetime) -> None:
        """See :class:`Store`."""
        await self._database.migrate("auth", MIGRATIONS, now=now)

    async def close(self) -> None:
        """See :class:`Store`."""
        await self._database.close()

    async def found(self, founding: Founding) -> bool:
        """See :class:`Store`."""
        return await self._database.write(lambda c: self._found(c, founding))

    def _found(self, connection: Connection, founding: Founding) -> bool:
        _serialise(connection)
        if connection.execute(select(ORGANIZATIONS.c.id).limit(1)).first() is not None:
            return False
        revision = _next_revision(connection)
        connection.execute(
            insert(ORGANIZATIONS).values(
                id=founding.organization_id,
                name=founding.name,
                policy=Policy(),
                version=revision,
                created_revision=revision,
                created_at_us=founding.now,
            )
        )
        project = ProjectDraft(
            id=founding.project_id,
            organization_id=founding.organization_id,
            name=founding.name,
            now=founding.now,
        )
        self._add_project(connection, project)
        for draft in founding.keys:
            self._add_key(connection, draft)
        return True

    async def pin_pepper(self, fingerprint: bytes) -> bool:
        """See :class:`Store`."""

        def work(connection: Connection) -> bool:
            _serialise(connection)
            pinned = connection.execute(select(PEPPERS.c.fingerprint)).scalar_one_or_none()
            if pinned is None:
                connection.execute(insert(PEPPERS).values(id=1, fingerprint=fingerprint))
            return pinned in (None, fingerprint)

        return await self._database.write(work)

    async def add_project(self, draft: ProjectDraft) -> ProjectRecord:
        """See :class:`Store`."""

        def work(connection: Connection) -> ProjectRecord:
            _serialise(connection)
            return self._add_project(connection, draft)

        return await self._database.write(work)

    def _add_project(self, connection: Connection, draft: ProjectDraft) -> ProjectRecord:
        revision = _next_revision(connection)
        connection.execute(
            insert(PROJECTS).values(
                id=draft.id,
                organization_id=draft.organization_id or _first_organization(connection),
                name=draft.name,
                policy=Policy(),
                version=revision,
                created_revision=revision,
                created_at_us=draft.now,
            )
        )
        found = connection.execute(select(PROJECTS).where(PROJECTS.c.id == draft.id))
        return _project(found.mappings().one())

    async def list_projects(
        self, organization_id: str | None, page: Page
    ) -> Listing[ProjectRecord]:
        """See :class:`Store`."""
        query = select(PROJECTS).where(_within(PROJECTS, organization_id))
        rows, next_before = await self._database.read(lambda c: _page(c, PROJECTS, query, page))
        return Listing(rows=[_project(row) for row in rows], next_before=next_before)

    async def add_key(self, draft: KeyDraft) -> tuple[KeyRecord, bool]:
        """See :class:`Store`."""

        def work(connection: Connection) -> tuple[KeyRecord, bool]:
            _serialise(connection)
            return self._add_key(connection, draft)

        return await self._database.write(work)

    def _add_key(self, connection: Connection, draft: KeyDraft) -> tuple[KeyRecord, bool]:
        organization_id, project_id = _place(connection, draft)
        fingerprint = _fingerprint(draft.asked)
        if draft.asked.request_id:
            earlier = _earlier(connection, organization_id, draft.asked.request_id, fingerprint)
            if earlier is not None:
                return earlier, False
        revision = _next_revision(connection)
        connection.execute(
            insert(KEYS).values(
                id=draft.id,
                organization_id=organization_id,
                project_id=project_id,
                principal_id="",
                kind=draft.asked.kind,
                name=draft.asked.name,
                mac=draft.mac,
                redacted_value=draft.redacted_value,
                policy=draft.asked.policy,
                version=revision,
                created_revision=revision,
                created_at_us=draft.now,
                expires_at_us=draft.expires_at,
            )
        )
        self._log(connection, Change(revision=revision, key_id=draft.id, revoked=False), draft.now)
        if draft.asked.request_id:
            connection.execute(
                insert(REQUESTS).values(
                    organization_id=organization_id,
                    request_id=draft.asked.request_id,
                    fingerprint=fingerprint,
                    key_id=draft.id,
                    made_at_us=draft.now,
                )
            )
        made = connection.execute(select(KEYS).where(KEYS.c.id == draft.id))
        return _key(made.mappings().one()), True

    async def find_key(self, organization_id: str | None, key_id: str) -> KeyRecord | None:
        """See :class:`Store`."""
        return await self._database.read(lambda c: _find_key(c, organization_id, key_id))

    async def list_keys(self, wanted: KeyFilter, page: Page) -> Listing[KeyRecord]:
        """See :class:`Store`."""
        query = select(KEYS).where(_within(KEYS, wanted.organization_id))
        if wanted.project_id:
            query = query.where(KEYS.c.project_id == wanted.project_id)
        if not wanted.include_revoked:
            query = query.where(KEYS.c.revoked_at_us.is_(None))
        rows, next_before = await self._database.read(lambda c: _page(c, KEYS, query, page))
        return Listing(rows=[_key(row) for row in rows], next_before=next_before)

    async def revoke_key(
        self, organization_id: str | None, key_id: str, *, now: datetime
    ) -> KeyRecord | None:
        """See :class:`Store`."""

        def work(connection: Connection) -> KeyRecord | None:
            _serialise(connection)
            key = _find_key(connection, organization_id, key_id)
            if key is None or key.revoked_at is not None:
                return key
            revision = _next_revision(connection)
            connection.execute(
                update(KEYS).where(KEYS.c.id == key_id).values(version=revision, revoked_at_us=now)
            )
            self._log(connection, Change(revision=revision, key_id=key_id, revoked=True), now)
            return _find_key(connection, organization_id, key_id)

        return await self._database.write(work)

    async def find_lineage(self, mac: bytes) -> Lineage | None:
        """See :class:`Store`."""
        query = (
            select(KEYS, PROJECTS, ORGANIZATIONS)
            .join(ORGANIZATIONS, KEYS.c.organization_id == ORGANIZATIONS.c.id)
            .outerjoin(PROJECTS, KEYS.c.project_id == PROJECTS.c.id)
            .where(KEYS.c.mac == mac)
        )
        row = await self._database.read(lambda c: c.execute(query).mappings().one_or_none())
        if row is None:
            return None
        return Lineage(
            organization=_organization(row),
            project=None if row[PROJECTS.c.id] is None else _project(row),
            key=_key(row),
        )

    async def changes_after(self, revision: int, *, rows_max: int) -> Changes:
        """See :class:`Store`."""
        query = (
            select(CHANGES.c.revision, CHANGES.c.key_id, CHANGES.c.revoked)
            .where(CHANGES.c.revision > revision)
            .order_by(CHANGES.c.revision, CHANGES.c.key_id)
            .limit(rows_max + 1)
        )

        def work(connection: Connection) -> Changes:
            newest, forgotten = connection.execute(
                select(REVISIONS.c.newest, REVISIONS.c.forgotten)
            ).one()
            rows = connection.execute(query).all() if forgotten <= revision < newest else ()
            complete = forgotten <= revision <= newest and len(rows) <= rows_max
            return Changes(
                revision=newest,
                rows=[
                    Change(revision=row.revision, key_id=row.key_id, revoked=bool(row.revoked))
                    for row in rows
                    if complete
                ],
                complete=complete,
            )

        return await self._database.read(work)

    def _log(self, connection: Connection, change: Change, now: datetime) -> None:
        """Appends to the log and forgets what is too old."""
        connection.execute(
            insert(CHANGES).values(
                revision=change.revision,
                key_id=change.key_id,
                revoked=int(change.revoked),
                changed_at_us=now,
            )
        )
        forgotten = change.revision - self._changes_kept
        if forgotten > 0:
            connection.execute(delete(CHANGES).where(CHANGES.c.revision <= forgotten))
            connection.execute(
                update(REVISIONS)
                .where(REVISIONS.c.forgotten < forgotten)
                .values(forgotten=forgotten)
            )


def _serialise(connection: Connection) -> None:
    """Holds back every other writer until this transaction ends, whatever the database: revisions
    then grow in the order of commits, and what is read next stays true.
    """
    connection.execute(update(REVISIONS).values(newest=REVISIONS.c.newest))


def _next_revision(connection: Connection) -> int:
    taken = update(REVISIONS).values(newest=REVISIONS.c.newest + 1).returning(REVISIONS.c.newest)
    revision: int = connection.execute(taken).scalar_one()
    return revision


def _within(table: Table, organization_id: str | None) -> ColumnElement[bool]:
    """Only rows of the organisation; ``None`` for all."""
    return true() if organization_id is None else table.c.organization_id == organization_id


def _first_organization(connection: Connection) -> str:
    found: str | None = connection.execute(
        select(ORGANIZATIONS.c.id).order_by(ORGANIZATIONS.c.created_revision).limit(1)
    ).scalar_one_or_none()
    if found is None:
        raise GatewayError(
            error_pb2.ERROR_REASON_NOT_FOUND,
            "There is no organisation yet: the first start of the gateway makes one.",
        )
    return found


def _place(connection: Connection, draft: KeyDraft) -> tuple[str, str | None]:
    """The organisation and project that a new key belongs to. Raises NOT_FOUND."""
    if draft.asked.kind == grant_pb2.KEY_KIND_ADMIN:
        return draft.organization_id or _first_organization(connection), None
    query = select(PROJECTS.c.organization_id, PROJECTS.c.id)
    if draft.asked.project_id:
        query = query.where(
            PROJECTS.c.id == draft.asked.project_id, _within(PROJECTS, draft.organization_id)
        )
    else:
        organization_id = draft.organization_id or _first_organization(connection)
        query = query.where(PROJECTS.c.organization_id == organization_id)
    found = connection.execute(query.order_by(PROJECTS.c.created_revision).limit(1)).one_or_none()
    if found is None:
        raise GatewayError(
            error_pb2.ERROR_REASON_NOT_FOUND,
            f"There is no project {draft.asked.project_id!r}: list the projects, or make one.",
            param="project_id",
        )
    return found.organization_id, found.id


def _earlier(
    connection: Connection, organization_id: str, request_id: str, fingerprint: bytes
) -> KeyRecord | None:
    """The key that a request of this id made. Raises IDEMPOTENCY_MISMATCH when it asked for
    another.
    """
    found = connection.execute(
        select(REQUESTS.c.fingerprint, REQUESTS.c.key_id).where(
            REQUESTS.c.organization_id == organization_id, REQUESTS.c.request_id == request_id
        )
    ).one_or_none()
    if found is None:
        return None
    if found.fingerprint != fingerprint:
        raise GatewayError(
            error_pb2.ERROR_REASON_IDEMPOTENCY_MISMATCH,
            "Another request used this request_id for a different key: choose a new one.",
            param="request_id",
        )
    return _find_key(connection, organization_id, found.key_id)


def _fingerprint(asked: NewKey) -> bytes:
    """Tells requests apart by all that they ask for."""
    content = [asked.name, asked.kind, asked.project_id, asked.expires_in_s, to_json(asked.policy)]
    return hashlib.sha256(json.dumps(content).encode()).digest()


def _find_key(connection: Connection, organization_id: str | None, key_id: str) -> KeyRecord | None:
    query = select(KEYS).where(KEYS.c.id == key_id, _within(KEYS, organization_id))
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _key(row)


def _page(
    connection: Connection, table: Table, query: Select[Any], page: Page
) -> tuple[Sequence[RowMapping], int | None]:
    """A page's rows and where the next one starts."""
    if page.before is not None:
        query = query.where(table.c.created_revision < page.before)
    query = query.order_by(table.c.created_revision.desc()).limit(page.size + 1)
    rows = connection.execute(query).mappings().all()
    if len(rows) <= page.size:
        return rows, None
    return rows[: page.size], rows[page.size - 1][table.c.created_revision]


def _organization(row: RowMapping) -> OrganizationRecord:
    columns = ORGANIZATIONS.c
    return OrganizationRecord(
        id=row[columns.id],
        name=row[columns.name],
        policy=row[columns.policy],
        version=row[columns.version],
        created_at=row[columns.created_at_us],
    )


def _project(row: RowMapping) -> ProjectRecord:
    columns = PROJECTS.c
    return ProjectRecord(
        id=row[columns.id],
        organization_id=row[columns.organization_id],
        name=row[columns.name],
        policy=row[columns.policy],
        version=row[columns.version],
        created_at=row[columns.created_at_us],
    )


def _key(row: RowMapping) -> KeyRecord:
    columns = KEYS.c
    return KeyRecord(
        id=row[columns.id],
        organization_id=row[columns.organization_id],
        project_id=row[columns.project_id],
        principal_id=row[columns.principal_id],
        kind=row[columns.kind],
        name=row[columns.name],
        redacted_value=row[columns.redacted_value],
        policy=row[columns.policy],
        version=row[columns.version],
        created_at=row[columns.created_at_us],
        expires_at=row[columns.expires_at_us],
        revoked_at=row[columns.revoked_at_us],
    )
