"""The objects of administration as they are kept: people, groups, roles, service accounts, limits,
and the log of what was done. Pure.

Each class is a row: the table's columns are its fields, a time's with ``_us`` behind it.
"""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRecord:
    """A person in an organisation. ``role`` is a word of ``ORGANIZATION_ROLES``."""

    id: str
    organization_id: str
    email: str
    name: str
    role: str
    developer_persona: str
    technical_level: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectUserRecord:
    """A user in a project. ``role`` is a word of ``PROJECT_ROLES``."""

    id: str
    organization_id: str
    project_id: str
    user_id: str
    role: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteRecord:
    """An invite; each of ``projects`` is a project's id, a colon and a role."""

    id: str
    organization_id: str
    email: str
    role: str
    projects: tuple[str, ...]
    created_at: datetime
    expires_at: datetime
    accepted_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRecord:
    """A group of users."""

    id: str
    organization_id: str
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupUserRecord:
    """A user in a group."""

    id: str
    organization_id: str
    group_id: str
    user_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectGroupRecord:
    """A group in a project, with a role of the project."""

    id: str
    organization_id: str
    project_id: str
    group_id: str
    role_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleRecord:
    """A role that somebody made; ``project_id`` is empty for one of the organisation."""

    id: str
    organization_id: str
    project_id: str
    name: str
    description: str
    permissions: tuple[str, ...]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentRecord:
    """A role that a user or a group (``principal_id``) has; ``project_id`` is empty for one in the
    organisation.
    """

    id: str
    organization_id: str
    project_id: str
    principal_id: str
    role_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class UserIdentityRecord:
    """Whom an identity provider's subject is here: bound at the first sign-in, so that an address
    that the provider gives to somebody else later opens nothing.
    """

    id: str
    organization_id: str
    user_id: str
    issuer: str
    subject: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInRecord:
    """A sign-in under way. Holds no secret: what it takes to finish it, its caller keeps.

    Args:
        challenge: the base64url of the SHA-256 of the caller's verifier.
        redirect_uri: empty for one on another device.
        device_digest: the SHA-256 of the device code, in hexadecimal; empty for none.
        interval_s: the least time between two questions to the provider.
        poll_at: not before then is the provider asked.
    """

    id: str
    organization_id: str
    challenge: str
    redirect_uri: str
    device_digest: str
    interval_s: int
    poll_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """An admin key (of the same id) that a sign-in has made."""

    id: str
    organization_id: str
    user_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccountRecord:
    """Whose keys a program uses. ``role`` is ``owner``, ``member`` or ``none``."""

    id: str
    organization_id: str
    project_id: str
    name: str
    role: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FormerSecretRecord:
    """A secret that a rotation has replaced; ``mac`` is the HMAC of its digest in hexadecimal."""

    id: str
    organization_id: str
    key_id: str
    mac: str
    redacted_value: str
    created_at: datetime
    ends_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitRecord:
    """What a project may call of one model pattern; ``None`` is no limit."""

    id: str
    organization_id: str
    project_id: str
    model: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    images_per_minute: int | None
    audio_megabytes_per_minute: int | None
    requests_per_day: int | None
    batch_input_tokens_per_day: int | None
    tokens_per_day: int | None = None
    concurrent_calls: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRecord:
    """An account at a vendor, which routers call; it belongs to the gateway, not to an
    organisation. ``free`` is 1 when calls cost nothing. ``regions``, ``retention_days`` and
    ``trains`` (1 or 0) are what is known of where its data goes; empty and ``None`` for unknown.
    """

    id: str
    name: str
    kind: str
    base_url: str
    models: tuple[str, ...]
    free: int
    created_at: datetime
    regions: tuple[str, ...] = ()
    retention_days: int | None = None
    trains: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialRecord:
    """What a provider is called with: ``sealed`` as ``runtime/sealing.py`` writes it, under the
    key-encryption key ``key_id``.
    """

    id: str
    provider_id: str
    name: str
    weight: int
    organizations: tuple[str, ...]
    projects: tuple[str, ...]
    key_id: str
    sealed: str
    created_at: datetime
    rotated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """An entry of the log of administration; see ``audit.py``."""

    id: str
    sequence: int
    organization_id: str
    project_id: str
    type: str
    effective_at: datetime
    key_id: str
    user_id: str
    email: str
    address: str
    resource_id: str
    before_json: str
    after_json: str
    refusal: str
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditHeadRecord:
    """The last entry of the log of administration."""

    id: str
    sequence: int
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherRecord:
    """A router or edge that watches for changes.

    Args:
        revision: everything up to it is in force there.
        trust_ms: how long it goes by what it knows after the last word of auth.
        refuses_by: from then on it goes by nothing, unless it watches again.
    """

    id: str
    name: str
    revision: int
    trust_ms: int
    refuses_by: datetime
