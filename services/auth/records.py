"""What auth keeps, and the port through which it is kept: :class:`Store`.

Pure. A key's secret is in no record: only the HMAC of its digest is kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from onegate.auth.v1 import grant_pb2
from runtime.apikeys import KeyKind
from services.auth.policy import Policy

R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationRecord:
    """An organisation as it is kept.

    Args:
        policy: what all its keys are held to.
        retention: OpenAI's word for how long data may be kept; empty when not set.
        model_mode: ``allow`` or ``deny`` the ``models``; empty when nobody said.
        key_lifetime_max_s: the longest that a key's secret may work; ``None`` for no limit.
        key_lifetime_s: how long a key works whose maker does not say; ``None`` for as long as may
            be.
    """

    id: str
    name: str
    policy: Policy
    version: int
    created_at: datetime
    retention: str = ""
    model_mode: str = ""
    models: tuple[str, ...] = ()
    key_lifetime_max_s: int | None = None
    key_lifetime_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectRecord:
    """A project as it is kept.

    Args:
        policy: what follows from its model permissions and rate limits, and what is said of keys.
        archived_at: when it ended for good; ``None`` while it is active.
        residency: OpenAI's word for where data may be; empty for anywhere.
        retention: OpenAI's word for how long; empty for what the organisation says.
        model_mode: ``allow`` or ``deny`` the ``models``; empty when nobody said.
        key_lifetime_max_s: the longest that a key's secret may work; ``None`` for no limit.
        key_lifetime_s: how long a key works whose maker does not say; ``None`` for as long as may
            be.
    """

    id: str
    organization_id: str
    name: str
    policy: Policy
    version: int
    created_at: datetime
    archived_at: datetime | None = None
    residency: str = ""
    retention: str = ""
    model_mode: str = ""
    models: tuple[str, ...] = ()
    key_lifetime_max_s: int | None = None
    key_lifetime_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A key as it is kept.

    Args:
        project_id: ``None`` for an admin key.
        version: the revision of its last change.
        disabled_at: since when it is refused, until somebody enables it.
        last_used_at: to within a minute or so; ``None`` when it never was. No change of the key.
        rotated_at: when its present secret was made; ``None`` for the first.
    """

    id: str
    organization_id: str
    project_id: str | None
    principal_id: str
    kind: KeyKind
    name: str
    redacted_value: str
    policy: Policy
    version: int
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    disabled_at: datetime | None = None
    last_used_at: datetime | None = None
    rotated_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """A key and everything that it inherits from. ``secret_ends_at`` is when the secret by which it
    was found stops working; ``None`` for the key's present one.
    """

    organization: OrganizationRecord
    project: ProjectRecord | None
    key: KeyRecord
    secret_ends_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """What a checked request asks for; ``expires_in_s`` is ``None`` for never, ``principal_id`` is
    empty for a key of the organisation's own.
    """

    name: str
    kind: KeyKind
    project_id: str
    expires_in_s: int | None
    policy: Policy
    request_id: str
    principal_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A part of the rows of one kind.

    Args:
        size: at most so many.
        after: the value of ``order`` after which it begins, in reading order.
        before: the value of ``order`` before which it ends, in reading order.
        ascending: smallest first.
        order: the column; ids grow with time.
    """

    size: int
    after: object = None
    before: object = None
    ascending: bool = False
    order: str = "id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A slice of a listing, newest first: at most ``size`` rows made before revision ``before``;
    or, when ``ascending``, oldest first and made after it.
    """

    size: int
    before: int | None = None
    ascending: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing(Generic[T]):
    """A page's rows; ``next_before`` starts the next page and is ``None`` on the last."""

    rows: Sequence[T]
    next_before: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFilter:
    """Which keys to list; ``None`` and the empty id stand for all."""

    organization_id: str | None
    project_id: str = ""
    include_revoked: bool = False
    kind: KeyKind = grant_pb2.KEY_KIND_UNSPECIFIED


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectDraft:
    """A project about to be kept; ``organization_id`` is ``None`` for the first organisation."""

    id: str
    organization_id: str | None
    name: str
    now: datetime
    residency: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDraft:
    """A key about to be kept; ``organization_id`` is ``None`` for the project's, or the first."""

    id: str
    organization_id: str | None
    mac: bytes
    redacted_value: str
    asked: NewKey
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Founding:
    """The first organisation, its first project and one key of each kind."""

    organization_id: str
    project_id: str
    name: str
    keys: tuple[KeyDraft, ...]
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One key's change; ``revision`` is its new version."""

    revision: int
    key_id: str
    revoked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The log after some revision.

    Args:
        revision: the newest revision there is.
        rows: the changes, in order; empty when not ``complete``.
        complete: whether nothing is missing; if not, the reader starts anew at ``revision``.
    """

    revision: int
    rows: Sequence[Change]
    complete: bool


class Session(Protocol):
    """One transaction, in which rows are read and written as records of their type."""

    def next_revision(self) -> int:
        """Takes the next revision."""
        ...

    def find(self, kind: type[R], where: Mapping[str, object]) -> R | None:
        """The row with these values; ``None`` when there is none. The first made, of several."""
        ...

    def select(self, kind: type[R], where: Mapping[str, object], part: Slice) -> list[R]:
        """Rows with these values, in the order of ``part``. A value of ``None`` asks for NULL, a
        list or a set for one of its members.
        """
        ...

    def position(self, kind: type[object], record_id: str) -> int | None:
        """When the row was made, as the revision of that time."""
        ...

    def insert(self, record: object, more: Mapping[str, object] | None = None) -> None:
        """Keeps a new row; ``more`` are columns that no record shows."""
        ...

    def replace(self, record: object, more: Mapping[str, object] | None = None) -> None:
        """Keeps a row as the record has it, by its id; ``more`` are columns that no record
        shows.
        """
        ...

    def secret_mac(self, key_id: str) -> bytes:
        """The HMAC of the digest of a key's present secret."""
        ...

    def note_use(self, key_id: str, used_at: datetime) -> None:
        """Notes when a key was used; a later use that is known stays."""
        ...

    def delete(self, kind: type[object], where: Mapping[str, object]) -> None:
        """Drops the rows with these values."""
        ...

    def log(self, changes: Sequence[Change], now: datetime) -> None:
        """Appends changes of one revision to the log and forgets what is too old."""
        ...

    def request(self, organization_id: str, request_id: str) -> tuple[bytes, str] | None:
        """The fingerprint of an earlier request and the key that it made."""
        ...

    def keep_request(self, key: KeyRecord, request_id: str, fingerprint: bytes) -> None:
        """Remembers which request made a key."""
        ...

    def lineage(self, mac: bytes) -> Lineage | None:
        """The key whose digest has this HMAC, with what it inherits from."""
        ...


class Store(Protocol):
    """What auth asks of its store. Raises STORE_UNAVAILABLE when it is away."""

    async def migrate(self, *, now: datetime) -> None:
        """Brings the schema up to date."""
        ...

    async def view(self, work: Callable[[Session], T]) -> T:
        """Reads, in one transaction."""
        ...

    async def change(self, work: Callable[[Session], T]) -> T:
        """Reads and writes, in one transaction that no other writer comes between."""
        ...

    async def found(self, founding: Founding) -> bool:
        """Sets up an empty store; ``False`` when somebody already has, and nothing is changed."""
        ...

    async def pin_pepper(self, fingerprint: bytes) -> bool:
        """Whether keys are stored under this pepper; the first one asked about is."""
        ...

    async def add_project(self, draft: ProjectDraft) -> ProjectRecord:
        """Keeps a project. Raises NOT_FOUND when there is no organisation yet."""
        ...

    async def list_projects(
        self, organization_id: str | None, page: Page
    ) -> Listing[ProjectRecord]:
        """Projects, newest first."""
        ...

    async def add_key(self, draft: KeyDraft) -> tuple[KeyRecord, bool]:
        """Keeps a key; with ``False`` the one that the same request made earlier.

        Raises NOT_FOUND for the project, IDEMPOTENCY_MISMATCH when another request had the id.
        """
        ...

    async def find_key(self, organization_id: str | None, key_id: str) -> KeyRecord | None:
        """One key of the organisation (``None``: of any)."""
        ...

    async def list_keys(self, wanted: KeyFilter, page: Page) -> Listing[KeyRecord]:
        """Keys, newest first."""
        ...

    async def revoke_key(
        self, organization_id: str | None, key_id: str, *, now: datetime
    ) -> KeyRecord | None:
        """Ends a key for good; a key that has ended stays as it is. ``None``: no such key."""
        ...

    async def find_lineage(self, mac: bytes) -> Lineage | None:
        """The key whose digest has this HMAC, with what it inherits from."""
        ...

    async def changes_after(self, revision: int, *, rows_max: int) -> Changes:
        """The log after ``revision``; incomplete when it is too old, unknown or too far behind."""
        ...

    async def follow(self, heard: Callable[[], None]) -> None:
        """Calls ``heard`` when another process may have changed the log, until it is cancelled;
        returns at once when there can be none.
        """
        ...

    async def close(self) -> None:
        """Lets go of the store."""
        ...
