"""What auth keeps, and the port through which it is kept: :class:`Store`.

Pure. A key's secret is in no record: only the HMAC of its digest is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from runtime.apikeys import KeyKind
from services.auth.policy import Policy

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationRecord:
    """An organisation as it is kept."""

    id: str
    name: str
    policy: Policy
    version: int
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectRecord:
    """A project as it is kept."""

    id: str
    organization_id: str
    name: str
    policy: Policy
    version: int
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A key as it is kept. ``project_id`` is ``None`` for an admin key; ``version`` is the
    revision of its last change.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """A key and everything that it inherits from."""

    organization: OrganizationRecord
    project: ProjectRecord | None
    key: KeyRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """What a checked request asks for; ``expires_in_s`` is ``None`` for never."""

    name: str
    kind: KeyKind
    project_id: str
    expires_in_s: int | None
    policy: Policy
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A slice of a listing, newest first: at most ``size`` rows made before revision ``before``."""

    size: int
    before: int | None = None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectDraft:
    """A project about to be kept; ``organization_id`` is ``None`` for the first organisation."""

    id: str
    organization_id: str | None
    name: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDraft:
    """A key about to be kept; ``organization_id`` is ``None`` for the project's, or the first."""

    id: str
    organization_id: str | None
    mac: bytes
    redacted_value: str
    asked: NewKey
    now: datetime
    expires_at: datetime | None


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


class Store(Protocol):
    """What auth asks of its store. Raises STORE_UNAVAILABLE when it is away."""

    async def migrate(self, *, now: datetime) -> None:
        """Brings the schema up to date."""
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

    async def close(self) -> None:
        """Lets go of the store."""
        ...
