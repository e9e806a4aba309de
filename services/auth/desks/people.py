"""What users, invites and groups have in common: addresses, roles, and finding each of them."""

import re
from collections.abc import Mapping
from typing import Final

from onegate.auth.v1 import group_service_pb2, user_service_pb2
from services.auth import keys, rights_rows
from services.auth.administration import Deed, missing, refused
from services.auth.objects import GroupRecord, RoleRecord, UserRecord
from services.auth.permissions import ORGANIZATION_ROLES, PROJECT_ROLES, PredefinedRole

EMAIL_CHARS_MAX: Final = 320
NOTE_CHARS_MAX: Final = 200
_EMAIL: Final = re.compile(r"[^\s@<>\"(),:;\\]+@[^\s@<>\"(),:;\\]+")


def checked_email(email: str) -> str:
    """An address in lower case. Raises INVALID_REQUEST."""
    found = email.strip().lower()
    if len(found) > EMAIL_CHARS_MAX or not _EMAIL.fullmatch(found) or not found.isprintable():
        raise refused("email", "must be an email address, such as ada@example.com")
    return found


def checked_role(word: str, roles: Mapping[str, PredefinedRole], param: str) -> str:
    """A word for a predefined role. Raises INVALID_REQUEST."""
    if word not in roles:
        raise refused(param, f"must be one of {', '.join(roles)}")
    return word


def find_user(deed: Deed, user_id: str, param: str = "id") -> UserRecord:
    """A user of the organisation. Raises NOT_FOUND."""
    where: dict[str, object] = {"id": user_id, "organization_id": deed.organization_id}
    user = deed.session.find(UserRecord, where)
    if user is None:
        raise missing("user", param)
    return user


def find_group(deed: Deed, group_id: str, param: str = "id") -> GroupRecord:
    """A group of the organisation. Raises NOT_FOUND."""
    where: dict[str, object] = {"id": group_id, "organization_id": deed.organization_id}
    group = deed.session.find(GroupRecord, where)
    if group is None:
        raise missing("group", param)
    return group


def find_role(deed: Deed, role_id: str, project_id: str, param: str = "role_id") -> RoleRecord:
    """A role of the organisation or project, predefined ones by id or word. Raises NOT_FOUND."""
    roles = PROJECT_ROLES if project_id else ORGANIZATION_ROLES
    role = roles.get(role_id) or rights_rows.predefined(roles.values(), role_id)
    if role is not None:
        return predefined_record(deed, role, project_id)
    where: dict[str, object] = {
        "id": role_id,
        "organization_id": deed.organization_id,
        "project_id": project_id,
    }
    made = deed.session.find(RoleRecord, where)
    if made is None:
        raise missing("role", param)
    return made


def predefined_record(deed: Deed, role: PredefinedRole, project_id: str) -> RoleRecord:
    """A role that came with the gateway, as if somebody had made it."""
    return RoleRecord(
        id=role.id,
        organization_id=deed.organization_id,
        project_id=project_id,
        name=role.word,
        description=role.description,
        permissions=tuple(sorted(role.permissions)),
        created_at=deed.now,
        updated_at=deed.now,
    )


def user_message(user: UserRecord) -> user_service_pb2.User:
    """A user as administrators see them."""
    return user_service_pb2.User(
        id=user.id,
        email=user.email,
        name=user.name,
        role=user.role,
        created_at=keys.timestamp(user.created_at),
        developer_persona=user.developer_persona,
        technical_level=user.technical_level,
    )


def group_message(group: GroupRecord) -> group_service_pb2.Group:
    """A group as administrators see it."""
    return group_service_pb2.Group(
        id=group.id, name=group.name, created_at=keys.timestamp(group.created_at)
    )
