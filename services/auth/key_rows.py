"""What is done to organisations, projects and keys in one transaction.

A change of a key takes a revision, becomes the key's version, and goes into the log that watchers
follow. A change of a project is one revision of all its live keys.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final, TypeVar

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from services.auth import lifetimes
from services.auth.policy import Policy, to_json
from services.auth.records import (
    Change,
    Founding,
    KeyDraft,
    KeyFilter,
    KeyRecord,
    Listing,
    NewKey,
    OrganizationRecord,
    Page,
    ProjectDraft,
    ProjectRecord,
    Session,
    Slice,
)

ORGANIZATION_KEYS_AT_ONCE: Final = 1_000
"""How many keys of an organisation are read at once."""

KEYS_MAX: Final = 100_000
"""How many live keys one project or principal may have; one more is refused."""

R = TypeVar("R")


def within(organization_id: str | None) -> dict[str, object]:
    """Only rows of the organisation; ``None`` for all."""
    return {} if organization_id is None else {"organization_id": organization_id}


def listed(session: Session, kind: type[R], where: Mapping[str, object], page: Page) -> Listing[R]:
    """A page of rows in the order in which they were made, and where the next one starts."""
    part = Slice(
        size=page.size + 1,
        after=page.before,
        ascending=page.ascending,
        order="created_revision",
    )
    rows = session.select(kind, where, part)
    if len(rows) <= page.size:
        return Listing(rows=rows, next_before=None)
    last_id: str = getattr(rows[page.size - 1], "id")  # noqa: B009 - of whichever record
    return Listing(rows=rows[: page.size], next_before=session.position(kind, last_id))


def found(session: Session, founding: Founding) -> bool:
    """Sets up an empty store; ``False`` when somebody already has."""
    if session.find(OrganizationRecord, {}) is not None:
        return False
    add_organization(session, founding)
    return True


def add_organization(session: Session, founding: Founding) -> OrganizationRecord:
    """Keeps an organisation, its first project and keys."""
    revision = session.next_revision()
    organization = OrganizationRecord(
        id=founding.organization_id,
        name=founding.name,
        policy=Policy(),
        version=revision,
        created_at=founding.now,
    )
    session.insert(organization, {"created_revision": revision})
    project = ProjectDraft(
        id=founding.project_id,
        organization_id=founding.organization_id,
        name=founding.name,
        now=founding.now,
    )
    add_project(session, project)
    for draft in founding.keys:
        add_key(session, draft)
    return organization


def first_organization(session: Session) -> str:
    """The organisation that was made first. Raises NOT_FOUND when there is none yet."""
    part = Slice(size=1, ascending=True, order="created_revision")
    rows = session.select(OrganizationRecord, {}, part)
    if not rows:
        raise GatewayError(
            error_pb2.ERROR_REASON_NOT_FOUND,
            "There is no organisation yet: the first start of the gateway makes one.",
        )
    return rows[0].id


def add_project(session: Session, draft: ProjectDraft) -> ProjectRecord:
    """Keeps a project. Raises NOT_FOUND when there is no organisation yet."""
    revision = session.next_revision()
    project = ProjectRecord(
        id=draft.id,
        organization_id=draft.organization_id or first_organization(session),
        name=draft.name,
        policy=Policy(),
        version=revision,
        created_at=draft.now,
        residency=draft.residency,
    )
    session.insert(project, {"created_revision": revision})
    return project


def keep_project(session: Session, project: ProjectRecord, *, now: datetime) -> ProjectRecord:
    """Keeps a changed project; every live key of it gets a new version. Archiving ends them."""
    revision = session.next_revision()
    kept = replace(project, version=revision)
    session.replace(kept)
    ended = project.archived_at is not None
    live = live_keys(session, {"project_id": project.id})
    if ended:
        for key in live:
            session.replace(replace(key, version=revision, revoked_at=now))
    session.log([Change(revision=revision, key_id=key.id, revoked=ended) for key in live], now)
    return kept


def keep_organization(
    session: Session, organization: OrganizationRecord, *, now: datetime
) -> OrganizationRecord:
    """Keeps a changed organisation; every live key of it is told as changed."""
    revision = session.next_revision()
    kept = replace(organization, version=revision)
    session.replace(kept)
    where = {"organization_id": organization.id, "revoked_at": None}
    after: str | None = None
    while True:
        part = Slice(size=ORGANIZATION_KEYS_AT_ONCE, after=after, ascending=True)
        live = session.select(KeyRecord, where, part)
        session.log([Change(revision=revision, key_id=key.id, revoked=False) for key in live], now)
        if len(live) < ORGANIZATION_KEYS_AT_ONCE:
            return kept
        after = live[-1].id


def live_keys(session: Session, where: Mapping[str, object]) -> list[KeyRecord]:
    """Keys that are not revoked."""
    return session.select(KeyRecord, {**where, "revoked_at": None}, Slice(size=KEYS_MAX))


def add_key(session: Session, draft: KeyDraft) -> tuple[KeyRecord, bool]:
    """Keeps a key; with ``False`` the one that the same request made earlier.

    Raises NOT_FOUND for the project, IDEMPOTENCY_MISMATCH when another request had the id,
    CONFLICT for an archived project, INVALID_REQUEST for a longer life than keys may have.
    """
    asked = draft.asked
    organization_id, project = _place(session, draft)
    project_id = project.id if project else None
    fingerprint = _fingerprint(asked)
    if asked.request_id:
        earlier = _earlier(session, organization_id, asked.request_id, fingerprint)
        if earlier is not None:
            return earlier, False
    levels = levels_of(session, organization_id, project)
    expires_at = lifetimes.first_expiry(levels, asked.expires_in_s, draft.now)
    revision = session.next_revision()
    key = KeyRecord(
        id=draft.id,
        organization_id=organization_id,
        project_id=project_id,
        principal_id=asked.principal_id,
        kind=asked.kind,
        name=asked.name,
        redacted_value=draft.redacted_value,
        policy=asked.policy,
        version=revision,
        created_at=draft.now,
        expires_at=expires_at,
        revoked_at=None,
    )
    session.insert(key, {"created_revision": revision, "mac": draft.mac})
    session.log([Change(revision=revision, key_id=key.id, revoked=False)], draft.now)
    if asked.request_id:
        session.keep_request(key, asked.request_id, fingerprint)
    return key, True


def keep_key(
    session: Session, key: KeyRecord, *, now: datetime, mac: bytes | None = None
) -> KeyRecord:
    """Keeps a changed key; ``mac`` is of a new secret, when it has one."""
    revision = session.next_revision()
    kept = replace(key, version=revision)
    session.replace(kept, None if mac is None else {"mac": mac})
    revoked = key.revoked_at is not None
    session.log([Change(revision=revision, key_id=key.id, revoked=revoked)], now)
    return kept


def find_key(session: Session, organization_id: str | None, key_id: str) -> KeyRecord | None:
    """One key of the organisation (``None``: of any)."""
    return session.find(KeyRecord, {"id": key_id, **within(organization_id)})


def revoke_key(
    session: Session, organization_id: str | None, key_id: str, now: datetime
) -> KeyRecord | None:
    """Ends a key for good; a key that has ended stays as it is. ``None``: no such key."""
    key = find_key(session, organization_id, key_id)
    if key is None or key.revoked_at is not None:
        return key
    return keep_key(session, replace(key, revoked_at=now), now=now)


def wanted_keys(wanted: KeyFilter) -> dict[str, object]:
    """The values that the wanted keys' rows have."""
    where = within(wanted.organization_id)
    if wanted.project_id:
        where["project_id"] = wanted.project_id
    if not wanted.include_revoked:
        where["revoked_at"] = None
    if wanted.kind:
        where["kind"] = wanted.kind
    return where


def levels_of(
    session: Session, organization_id: str, project: ProjectRecord | None
) -> list[OrganizationRecord | ProjectRecord]:
    """What a key inherits from, the widest level first."""
    organization = session.find(OrganizationRecord, {"id": organization_id})
    found: list[OrganizationRecord | ProjectRecord | None] = [organization, project]
    return [level for level in found if level is not None]


def _place(session: Session, draft: KeyDraft) -> tuple[str, ProjectRecord | None]:
    """The organisation and project that a new key belongs to."""
    if draft.asked.kind == grant_pb2.KEY_KIND_ADMIN:
        return draft.organization_id or first_organization(session), None
    if draft.asked.project_id:
        where = {"id": draft.asked.project_id, **within(draft.organization_id)}
    else:
        where = within(draft.organization_id or first_organization(session))
    part = Slice(size=1, ascending=True, order="created_revision")
    projects = session.select(ProjectRecord, where, part)
    if not projects:
        raise GatewayError(
            error_pb2.ERROR_REASON_NOT_FOUND,
            f"There is no project {draft.asked.project_id!r}: list the projects, or make one.",
            param="project_id",
        )
    check_active(projects[0])
    return projects[0].organization_id, projects[0]


def check_active(project: ProjectRecord) -> None:
    """Raises CONFLICT for an archived project."""
    if project.archived_at is not None:
        raise GatewayError(
            error_pb2.ERROR_REASON_CONFLICT,
            f"The project {project.id} is archived: nothing in it can be made or changed.",
            param="project_id",
        )


def _earlier(
    session: Session, organization_id: str, request_id: str, fingerprint: bytes
) -> KeyRecord | None:
    """The key that a request of this id made. Raises IDEMPOTENCY_MISMATCH when it asked for
    another.
    """
    earlier = session.request(organization_id, request_id)
    if earlier is None:
        return None
    if earlier[0] != fingerprint:
        raise GatewayError(
            error_pb2.ERROR_REASON_IDEMPOTENCY_MISMATCH,
            "Another request used this request_id for a different key: choose a new one.",
            param="request_id",
        )
    return find_key(session, organization_id, earlier[1])


def _fingerprint(asked: NewKey) -> bytes:
    """Tells requests apart by all that they ask for."""
    content = [asked.name, asked.kind, asked.project_id, asked.expires_in_s, to_json(asked.policy)]
    if asked.principal_id:
        content.append(asked.principal_id)
    return hashlib.sha256(json.dumps(content).encode()).digest()
