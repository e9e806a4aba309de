"""Where identity is kept: organisations, projects, keys, what is administered around them, and the
log of what changed.

The log is what makes revocation prompt: every change of a key takes the next revision in the same
transaction, so revisions grow in the order of commits, whichever process writes. A key's version
is the revision of its last change.

All work is done through a :class:`Session`: one transaction, in which rows are read and written as
records. What the rows mean is said elsewhere (``key_rows.py``, the ``*_rows.py`` beside it).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, Final, TypeVar, get_type_hints

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
from sqlalchemy.types import TypeEngine

from runtime.sql import Database, Migration, Timestamp, announce
from services.auth import key_rows, objects, schema
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
    OrganizationRecord,
    Page,
    ProjectDraft,
    ProjectRecord,
    Slice,
)

CHANGES_KEPT: Final = 10_000
"""How many revisions the log remembers; whoever is further behind starts anew."""

CHANNEL: Final = "onegate_grants"
"""Where changes of the log are announced to other processes."""

R = TypeVar("R")
T = TypeVar("T")


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


class NamesJson(TypeDecorator[tuple[str, ...]]):
    """A tuple of texts as JSON."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> str | None:
        """A JSON array."""
        del dialect
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[str, ...] | None:
        """A tuple again."""
        del dialect
        return None if value is None else tuple(json.loads(value))


# The first migration's tables; later ones are in ``schema.py``.
_METADATA = MetaData()
_ID = String(64)

_FIRST_ORGANIZATIONS = Table(
    "organizations",
    _METADATA,
    Column("id", _ID, primary_key=True),
    Column("name", String(200), nullable=False),
    Column("policy", PolicyJson, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_revision", BigInteger, nullable=False, unique=True),
    Column("created_at_us", Timestamp, nullable=False),
)

_FIRST_PROJECTS = Table(
    "projects",
    _METADATA,
    Column("id", _ID, primary_key=True),
    Column("organization_id", _ID, ForeignKey(_FIRST_ORGANIZATIONS.c.id), nullable=False),
    Column("name", String(200), nullable=False),
    Column("policy", PolicyJson, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_revision", BigInteger, nullable=False, unique=True),
    Column("created_at_us", Timestamp, nullable=False),
)

_FIRST_KEYS = Table(
    "keys",
    _METADATA,
    Column("id", _ID, primary_key=True),
    Column("organization_id", _ID, ForeignKey(_FIRST_ORGANIZATIONS.c.id), nullable=False),
    Column("project_id", _ID, ForeignKey(_FIRST_PROJECTS.c.id)),
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
    Column("organization_id", _ID, ForeignKey(_FIRST_ORGANIZATIONS.c.id), primary_key=True),
    Column("request_id", String(64), primary_key=True),
    Column("fingerprint", LargeBinary(32), nullable=False),
    Column("key_id", _ID, ForeignKey(_FIRST_KEYS.c.id), nullable=False),
    Column("made_at_us", Timestamp, nullable=False),
)

PEPPERS = Table(
    "peppers",
    _METADATA,
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    Column("fingerprint", LargeBinary(32), nullable=False),
)

_TABLES = (
    _FIRST_ORGANIZATIONS,
    _FIRST_PROJECTS,
    _FIRST_KEYS,
    CHANGES,
    REVISIONS,
    REQUESTS,
    PEPPERS,
)
_INDEXES = (
    Index("keys_by_organization", _FIRST_KEYS.c.organization_id, _FIRST_KEYS.c.created_revision),
    Index("keys_by_project", _FIRST_KEYS.c.project_id, _FIRST_KEYS.c.created_revision),
    Index(
        "projects_by_organization",
        _FIRST_PROJECTS.c.organization_id,
        _FIRST_PROJECTS.c.created_revision,
    ),
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
    Migration(version=2, statements=schema.ADMINISTRATION),
    Migration(version=3, statements=schema.PEOPLE),
    Migration(version=4, statements=schema.AUDIT),
    Migration(version=5, statements=schema.KEY_LIFE),
    Migration(version=6, statements=schema.WATCHERS),
    Migration(version=7, statements=schema.SIGN_IN),
    Migration(version=8, statements=schema.PROVIDERS),
    Migration(version=9, statements=schema.PROVIDER_DATA),
)

_TYPES: Final[Mapping[object, TypeEngine[Any]]] = {
    str: Text(),
    int: BigInteger(),
    str | None: Text(),
    int | None: BigInteger(),
    datetime: Timestamp(),
    datetime | None: Timestamp(),
    tuple[str, ...]: NamesJson(),
    Policy: PolicyJson(),
}


_CURRENT = MetaData()


def _table(name: str, record: type[Any], *more: Column[Any]) -> Table:
    """The table of a record, as it is now."""
    hints = get_type_hints(record)
    columns = [
        Column(
            _column_name(field.name, hints[field.name]),
            # An enum's value is a plain number to the database.
            _TYPES.get(hints[field.name], BigInteger()),
            primary_key=field.name == "id",
        )
        for field in fields(record)
    ]
    return Table(name, _CURRENT, *columns, *more)


def _column_name(field: str, hint: object) -> str:
    return f"{field}_us" if hint in (datetime, datetime | None) else field


ORGANIZATIONS: Final = _table(
    "organizations", OrganizationRecord, Column("created_revision", BigInteger)
)
PROJECTS: Final = _table("projects", ProjectRecord, Column("created_revision", BigInteger))
KEYS: Final = _table(
    "keys", KeyRecord, Column("created_revision", BigInteger), Column("mac", LargeBinary)
)
_TABLE_OF: Final[Mapping[type[Any], Table]] = {
    OrganizationRecord: ORGANIZATIONS,
    ProjectRecord: PROJECTS,
    KeyRecord: KEYS,
    objects.UserIdentityRecord: _table("user_identities", objects.UserIdentityRecord),
    objects.SignInRecord: _table("sign_ins", objects.SignInRecord),
    objects.SessionRecord: _table("sessions", objects.SessionRecord),
    objects.ServiceAccountRecord: _table("service_accounts", objects.ServiceAccountRecord),
    objects.FormerSecretRecord: _table("former_secrets", objects.FormerSecretRecord),
    objects.RateLimitRecord: _table("project_rate_limits", objects.RateLimitRecord),
    objects.UserRecord: _table("users", objects.UserRecord),
    objects.ProjectUserRecord: _table("project_users", objects.ProjectUserRecord),
    objects.InviteRecord: _table("invites", objects.InviteRecord),
    objects.GroupRecord: _table("user_groups", objects.GroupRecord),
    objects.GroupUserRecord: _table("group_users", objects.GroupUserRecord),
    objects.ProjectGroupRecord: _table("project_groups", objects.ProjectGroupRecord),
    objects.RoleRecord: _table("roles", objects.RoleRecord),
    objects.AssignmentRecord: _table("role_assignments", objects.AssignmentRecord),
    objects.ProviderRecord: _table("providers", objects.ProviderRecord),
    objects.CredentialRecord: _table("provider_credentials", objects.CredentialRecord),
    objects.AuditRecord: _table("audit_events", objects.AuditRecord),
    objects.AuditHeadRecord: _table("audit_heads", objects.AuditHeadRecord),
    objects.WatcherRecord: _table("watchers", objects.WatcherRecord),
}
_COLUMNS: Final[Mapping[type[Any], Mapping[str, Column[Any]]]] = {
    record: {
        field.name: table.c[_column_name(field.name, get_type_hints(record)[field.name])]
        for field in fields(record)
    }
    for record, table in _TABLE_OF.items()
}


class Session:
    """One transaction. Reads and writes rows as records of their type."""

    def __init__(self, connection: Connection, changes_kept: int) -> None:
        self._connection = connection
        self._changes_kept = changes_kept

    def serialise(self) -> None:
        """Holds back every other writer until this transaction ends, whatever the database:
        revisions then grow in the order of commits, and what is read next stays true.
        """
        self._connection.execute(update(REVISIONS).values(newest=REVISIONS.c.newest))

    def next_revision(self) -> int:
        """Takes the next revision."""
        newest = REVISIONS.c.newest
        taken = update(REVISIONS).values(newest=newest + 1).returning(newest)
        revision: int = self._connection.execute(taken).scalar_one()
        return revision

    def find(self, kind: type[R], where: Mapping[str, object]) -> R | None:
        """The row with these values; ``None`` when there is none. The first made, of several."""
        rows = self.select(kind, where, Slice(size=1, ascending=True))
        return rows[0] if rows else None

    def select(self, kind: type[R], where: Mapping[str, object], part: Slice) -> list[R]:
        """Rows with these values, in the order of ``part``. A value of ``None`` asks for NULL, a
        list or a set for one of its members.
        """
        columns = _COLUMNS[kind]
        query = select(*columns.values()).where(*_conditions(columns, where))
        table = _TABLE_OF[kind]
        order = columns[part.order] if part.order in columns else table.c[part.order]
        if part.after is not None:
            query = query.where(order > part.after if part.ascending else order < part.after)
        if part.before is not None:
            query = query.where(order < part.before if part.ascending else order > part.before)
        query = query.order_by(order if part.ascending else order.desc()).limit(part.size)
        return [_record(kind, row) for row in self._connection.execute(query).mappings()]

    def position(self, kind: type[Any], record_id: str) -> int | None:
        """When the row was made, as the revision of that time."""
        table = _TABLE_OF[kind]
        query = select(table.c.created_revision).where(table.c.id == record_id)
        found: int | None = self._connection.execute(query).scalar_one_or_none()
        return found

    def insert(self, record: object, more: Mapping[str, object] | None = None) -> None:
        """Keeps a new row; ``more`` are columns that no record shows."""
        values = {**_values(record), **(more or {})}
        self._connection.execute(insert(_TABLE_OF[type(record)]).values(values))

    def replace(self, record: Any, more: Mapping[str, object] | None = None) -> None:
        """Keeps a row as the record has it, by its id; ``more`` are columns that no record
        shows.
        """
        table = _TABLE_OF[type(record)]
        values = {**_values(record), **(more or {})}
        self._connection.execute(update(table).where(table.c.id == record.id).values(values))

    def secret_mac(self, key_id: str) -> bytes:
        """The HMAC of the digest of a key's present secret."""
        query = select(KEYS.c.mac).where(KEYS.c.id == key_id)
        mac: bytes = self._connection.execute(query).scalar_one()
        return mac

    def note_use(self, key_id: str, used_at: datetime) -> None:
        """Notes when a key was used; a later use that is known stays."""
        known = KEYS.c.last_used_at_us
        is_news = known.is_(None) | (known < used_at)
        self._connection.execute(
            update(KEYS).where(KEYS.c.id == key_id, is_news).values(last_used_at_us=used_at)
        )

    def delete(self, kind: type[Any], where: Mapping[str, object]) -> None:
        """Drops the rows with these values."""
        conditions = _conditions(_COLUMNS[kind], where)
        self._connection.execute(delete(_TABLE_OF[kind]).where(*conditions))

    def log(self, changes: Sequence[Change], now: datetime) -> None:
        """Appends changes of one revision to the log and forgets what is too old."""
        if not changes:
            return
        rows = [
            {
                "revision": change.revision,
                "key_id": change.key_id,
                "revoked": int(change.revoked),
                "changed_at_us": now,
            }
            for change in changes
        ]
        self._connection.execute(insert(CHANGES), rows)
        announce(self._connection, CHANNEL)
        forgotten = changes[0].revision - self._changes_kept
        if forgotten > 0:
            self._connection.execute(delete(CHANGES).where(CHANGES.c.revision <= forgotten))
            self._connection.execute(
                update(REVISIONS)
                .where(REVISIONS.c.forgotten < forgotten)
                .values(forgotten=forgotten)
            )

    def request(self, organization_id: str, request_id: str) -> tuple[bytes, str] | None:
        """The fingerprint of an earlier request and the key that it made."""
        query = select(REQUESTS.c.fingerprint, REQUESTS.c.key_id).where(
            REQUESTS.c.organization_id == organization_id, REQUESTS.c.request_id == request_id
        )
        row = self._connection.execute(query).one_or_none()
        return None if row is None else (row.fingerprint, row.key_id)

    def keep_request(self, key: KeyRecord, request_id: str, fingerprint: bytes) -> None:
        """Remembers which request made a key."""
        self._connection.execute(
            insert(REQUESTS).values(
                organization_id=key.organization_id,
                request_id=request_id,
                fingerprint=fingerprint,
                key_id=key.id,
                made_at_us=key.created_at,
            )
        )

    def lineage(self, mac: bytes) -> Lineage | None:
        """See :meth:`Store.find_lineage`."""
        found = self._lineage(KEYS.c.mac == mac)
        if found is None:
            former = self.find(objects.FormerSecretRecord, {"mac": mac.hex()})
            if former is not None:
                found = self._lineage(KEYS.c.id == former.key_id, former.ends_at)
        return found

    def _lineage(
        self, condition: ColumnElement[bool], secret_ends_at: datetime | None = None
    ) -> Lineage | None:
        query = (
            select(KEYS, PROJECTS, ORGANIZATIONS)
            .join(ORGANIZATIONS, KEYS.c.organization_id == ORGANIZATIONS.c.id)
            .outerjoin(PROJECTS, KEYS.c.project_id == PROJECTS.c.id)
            .where(condition)
        )
        row = self._connection.execute(query).mappings().one_or_none()
        if row is None:
            return None
        return Lineage(
            secret_ends_at=secret_ends_at,
            organization=_record(OrganizationRecord, row),
            project=None if row[PROJECTS.c.id] is None else _record(ProjectRecord, row),
            key=_record(KeyRecord, row),
        )

    def pin_pepper(self, fingerprint: bytes) -> bool:
        """See :meth:`Store.pin_pepper`."""
        self.serialise()
        query = select(PEPPERS.c.fingerprint)
        pinned = self._connection.execute(query).scalar_one_or_none()
        if pinned is None:
            self._connection.execute(insert(PEPPERS).values(id=1, fingerprint=fingerprint))
        return pinned in (None, fingerprint)

    def changes_after(self, revision: int, rows_max: int) -> Changes:
        """See :meth:`Store.changes_after`."""
        query = (
            select(CHANGES.c.revision, CHANGES.c.key_id, CHANGES.c.revoked)
            .where(CHANGES.c.revision > revision)
            .order_by(CHANGES.c.revision, CHANGES.c.key_id)
            .limit(rows_max + 1)
        )
        newest, forgotten = self._connection.execute(
            select(REVISIONS.c.newest, REVISIONS.c.forgotten)
        ).one()
        is_known = forgotten <= revision < newest
        rows = self._connection.execute(query).all() if is_known else ()
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

    async def view(self, work: Callable[[Session], T]) -> T:
        """See :class:`Store`."""
        return await self._database.read(lambda c: work(Session(c, self._changes_kept)))

    async def change(self, work: Callable[[Session], T]) -> T:
        """See :class:`Store`."""

        def serialised(connection: Connection) -> T:
            session = Session(connection, self._changes_kept)
            session.serialise()
            return work(session)

        return await self._database.write(serialised)

    async def found(self, founding: Founding) -> bool:
        """See :class:`Store`."""
        return await self.change(lambda s: key_rows.found(s, founding))

    async def pin_pepper(self, fingerprint: bytes) -> bool:
        """See :class:`Store`."""
        return await self.change(lambda s: s.pin_pepper(fingerprint))

    async def add_project(self, draft: ProjectDraft) -> ProjectRecord:
        """See :class:`Store`."""
        return await self.change(lambda s: key_rows.add_project(s, draft))

    async def list_projects(
        self, organization_id: str | None, page: Page
    ) -> Listing[ProjectRecord]:
        """See :class:`Store`."""
        where = key_rows.within(organization_id)
        return await self.view(lambda s: key_rows.listed(s, ProjectRecord, where, page))

    async def add_key(self, draft: KeyDraft) -> tuple[KeyRecord, bool]:
        """See :class:`Store`."""
        return await self.change(lambda s: key_rows.add_key(s, draft))

    async def find_key(self, organization_id: str | None, key_id: str) -> KeyRecord | None:
        """See :class:`Store`."""
        return await self.view(lambda s: key_rows.find_key(s, organization_id, key_id))

    async def list_keys(self, wanted: KeyFilter, page: Page) -> Listing[KeyRecord]:
        """See :class:`Store`."""
        where = key_rows.wanted_keys(wanted)
        return await self.view(lambda s: key_rows.listed(s, KeyRecord, where, page))

    async def revoke_key(
        self, organization_id: str | None, key_id: str, *, now: datetime
    ) -> KeyRecord | None:
        """See :class:`Store`."""
        return await self.change(lambda s: key_rows.revoke_key(s, organization_id, key_id, now))

    async def find_lineage(self, mac: bytes) -> Lineage | None:
        """See :class:`Store`."""
        return await self.view(lambda s: s.lineage(mac))

    async def changes_after(self, revision: int, *, rows_max: int) -> Changes:
        """See :class:`Store`."""
        return await self.view(lambda s: s.changes_after(revision, rows_max))

    async def follow(self, heard: Callable[[], None]) -> None:
        """See :class:`Store`."""
        await self._database.follow(CHANNEL, heard)


def _conditions(
    columns: Mapping[str, Column[Any]], where: Mapping[str, object]
) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [true()]
    for name, value in where.items():
        column = columns[name]
        if value is None:
            found.append(column.is_(None))
        elif isinstance(value, list | set | frozenset):
            found.append(column.in_(value))
        else:
            found.append(column == value)
    return found


def _record(kind: type[R], row: RowMapping) -> R:
    return kind(**{name: row[column] for name, column in _COLUMNS[kind].items()})


def _values(record: Any) -> dict[str, object]:
    """A record's columns. Not ``asdict``: what is in a column stays what it is."""
    columns = _COLUMNS[type(record)]
    return {column.name: getattr(record, name) for name, column in columns.items()}
