"""Who somebody is here whom the identity provider knows, and the session that they get.

A session is an admin key of the user's own that ends by itself: what it may do is what the user
may do at the time of each call, and everybody who can revoke keys can end it.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from onegate.auth.v1 import grant_pb2, sign_in_service_pb2
from onegate.common.v1 import error_pb2
from runtime.config import OidcSettings
from runtime.errors import GatewayError
from services.auth import key_rows, keys, lifetimes, rights_rows
from services.auth.administration import Deed
from services.auth.desks.people import checked_email
from services.auth.desks.users import accept_invite, pending_invite
from services.auth.id_tokens import Claims
from services.auth.objects import (
    GroupRecord,
    GroupUserRecord,
    SessionRecord,
    UserIdentityRecord,
    UserRecord,
)
from services.auth.policy import Policy
from services.auth.records import KeyRecord, NewKey, OrganizationRecord

_GROUP: Final = "group:"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """What the groups of a person make of them here.

    Args:
        role: of the organisation; ``None`` where groups say nothing.
        groups: names of the gateway's groups that they are in.
        others: names of groups that the mapping knows and that they are not in.
    """

    role: str | None
    groups: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()


def mapped(entries: Iterable[str], groups: frozenset[str]) -> Mapped | None:
    """What ``group=owner``, ``group=reader`` and ``group=group:NAME`` say of somebody in these
    groups; ``None`` when there are entries and none of them is about them.
    """
    rules = [(group, target) for group, _, target in (entry.rpartition("=") for entry in entries)]
    if not rules:
        return Mapped(role=None)
    held = {target for group, target in rules if group.strip() in groups}
    if not held:
        return None
    known = {target.removeprefix(_GROUP) for _, target in rules if target.startswith(_GROUP)}
    entered = {target.removeprefix(_GROUP) for target in held if target.startswith(_GROUP)}
    return Mapped(
        role="owner" if "owner" in held else "reader",
        groups=frozenset(entered),
        others=frozenset(known - entered),
    )


def admit(
    deed: Deed, settings: OidcSettings, claims: Claims
) -> tuple[str, sign_in_service_pb2.Identity]:
    """A session for the person, shown once, and who they are here. Raises SCOPE_MISSING."""
    person = mapped(settings.group_roles, claims.groups)
    if person is None:
        raise _not_admitted("none of your groups at the identity provider has a role here")
    deed.scope = deed.organization_id
    user = _known(deed, settings, claims) or _new(deed, settings, claims)
    if person.role is not None and person.role != user.role:
        user = _with_role(deed, user, person.role)
    _enter_groups(deed, user, person)
    deed.allow("sign_in.finish")
    deed.user = user
    value, key = _session(deed, settings, user)
    deed.note(key.id, None, key)
    deed.rights, _ = rights_rows.rights_of(deed.session, key)
    return value, identity_message(deed, key)


def identity_message(deed: Deed, key: KeyRecord | None) -> sign_in_service_pb2.Identity:
    """Whom a key is of; the operator without one."""
    organization = deed.session.find(OrganizationRecord, {"id": deed.organization_id})
    user = deed.user
    return sign_in_service_pb2.Identity(
        key_id=key.id if key else "",
        organization_id=deed.organization_id,
        organization_name=organization.name if organization else "",
        user_id=user.id if user else "",
        email=user.email if user else "",
        name=user.name if user else "",
        role=user.role if user else "",
        permissions=sorted(deed.rights.organization),
        expires_at=keys.timestamp(key.expires_at) if key else None,
        is_operator=deed.rights.is_operator,
    )


def _known(deed: Deed, settings: OidcSettings, claims: Claims) -> UserRecord | None:
    """The user whom this subject was bound to, or is bound to now by their address.

    Raises SCOPE_MISSING for an address that counts for nothing, or is another subject's.
    """
    _check_address(settings, claims)
    bound: dict[str, object] = {
        "organization_id": deed.organization_id,
        "issuer": settings.issuer,
        "subject": claims.subject,
    }
    identity = deed.session.find(UserIdentityRecord, bound)
    if identity is not None:
        return deed.session.find(UserRecord, {"id": identity.user_id})
    where: dict[str, object] = {
        "organization_id": deed.organization_id,
        "email": checked_email(claims.email),
    }
    user = deed.session.find(UserRecord, where)
    if user is None:
        return None
    taken: dict[str, object] = {"user_id": user.id, "issuer": settings.issuer}
    if deed.session.find(UserIdentityRecord, taken) is not None:
        raise _not_admitted("this address belongs to somebody else here: ask an owner")
    _bind(deed, settings, claims, user)
    return user


def _check_address(settings: OidcSettings, claims: Claims) -> None:
    if not claims.email:
        raise _not_admitted("the identity provider does not vouch for your address")
    domain = claims.email.rpartition("@")[2]
    if settings.allowed_domains and domain not in settings.allowed_domains:
        raise _not_admitted(f"addresses of {domain[:80]} do not sign in here")


def _new(deed: Deed, settings: OidcSettings, claims: Claims) -> UserRecord:
    """A new user: one who has been invited, or anybody where the settings say so."""
    email = checked_email(claims.email)
    invite = pending_invite(deed, email)
    if invite is None and not settings.create_users:
        raise _not_admitted("you are no user of this organisation: ask an owner to invite you")
    deed.allow("users.create")
    user = UserRecord(
        id=deed.new_id("user"),
        organization_id=deed.organization_id,
        email=email,
        name=_name(claims, email),
        role=invite.role if invite else "reader",
        developer_persona="",
        technical_level="",
        created_at=deed.now,
    )
    deed.session.insert(user)
    deed.note(user.id, None, user)
    if invite is not None:
        accept_invite(deed, invite, user)
    _bind(deed, settings, claims, user)
    return user


def _name(claims: Claims, email: str) -> str:
    """What a person is called; their address where that cannot be shown."""
    try:
        return keys.checked_name(claims.name or email)
    except GatewayError:
        return keys.checked_name(email[: keys.NAME_CHARS_MAX])


def _bind(deed: Deed, settings: OidcSettings, claims: Claims, user: UserRecord) -> None:
    row = UserIdentityRecord(
        id=deed.new_id("identity"),
        organization_id=deed.organization_id,
        user_id=user.id,
        issuer=settings.issuer,
        subject=claims.subject,
        created_at=deed.now,
    )
    deed.session.insert(row)


def _with_role(deed: Deed, user: UserRecord, role: str) -> UserRecord:
    deed.allow("users.update")
    changed = replace(user, role=role)
    deed.session.replace(changed)
    deed.note(user.id, user, changed)
    return changed


def _enter_groups(deed: Deed, user: UserRecord, person: Mapped) -> None:
    """Puts a user into the groups that the mapping says, and takes them out of its others."""
    for name in sorted(person.groups | person.others):
        where: dict[str, object] = {"organization_id": deed.organization_id, "name": name}
        group = deed.session.find(GroupRecord, where)
        if group is None:
            _LOG.warning("oidc.group_roles names the group %r, which there is not", name)
            continue
        row = deed.session.find(GroupUserRecord, {"group_id": group.id, "user_id": user.id})
        if row is None and name in person.groups:
            deed.allow("groups.users.add")
            row = GroupUserRecord(
                id=deed.new_id("member"),
                organization_id=deed.organization_id,
                group_id=group.id,
                user_id=user.id,
                created_at=deed.now,
            )
            deed.session.insert(row)
            deed.note(user.id, None, row)
        elif row is not None and name in person.others:
            deed.allow("groups.users.remove")
            deed.session.delete(GroupUserRecord, {"id": row.id})
            deed.note(user.id, row, None)


def _session(deed: Deed, settings: OidcSettings, user: UserRecord) -> tuple[str, KeyRecord]:
    """A new admin key of the user's, which lives no longer than keys may live here."""
    levels = key_rows.levels_of(deed.session, deed.organization_id, None)
    longest_s = lifetimes.longest_s(levels) or settings.session_s
    asked = NewKey(
        name=f"sign-in of {user.email}"[: keys.NAME_CHARS_MAX],
        kind=grant_pb2.KEY_KIND_ADMIN,
        project_id="",
        expires_in_s=min(settings.session_s, longest_s),
        policy=Policy(),
        request_id="",
        principal_id=user.id,
    )
    value, draft = deed.mint(asked)
    key, _ = key_rows.add_key(deed.session, draft)
    row = SessionRecord(
        id=key.id, organization_id=key.organization_id, user_id=user.id, created_at=deed.now
    )
    deed.session.insert(row)
    return value, key


def _not_admitted(why: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_SCOPE_MISSING, f"You are not let in: {why}.")
