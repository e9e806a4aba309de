"""What the holder of an admin key may do, read in one transaction: through the user whose key it
is, the groups that they are in, and what the key itself says at most.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from services.auth.objects import (
    AssignmentRecord,
    GroupUserRecord,
    ProjectGroupRecord,
    ProjectUserRecord,
    RoleRecord,
    UserRecord,
)
from services.auth.permissions import (
    ORGANIZATION_ROLES,
    OWNER,
    PROJECT_ROLES,
    PredefinedRole,
    Rights,
)
from services.auth.records import KeyRecord, Session, Slice

ROWS_MAX: Final = 10_000
"""How many groups, roles and projects count for one user; what is beyond gives nothing."""

_ALL: Final = Slice(size=ROWS_MAX)


def rights_of(session: Session, key: KeyRecord) -> tuple[Rights, UserRecord | None]:
    """The rights of an admin key, and whose it is; ``None`` for the organisation's own."""
    if not key.principal_id:
        return OWNER.narrowed(key.policy.scopes), None
    where: dict[str, object] = {"id": key.principal_id, "organization_id": key.organization_id}
    user = session.find(UserRecord, where)
    if user is None:
        return Rights(), None
    return rights_of_user(session, user).narrowed(key.policy.scopes), user


def rights_of_user(session: Session, user: UserRecord) -> Rights:
    """All that a user may do."""
    role = ORGANIZATION_ROLES.get(user.role)
    organization = set(role.permissions if role else ())
    projects: dict[str, set[str]] = defaultdict(set)
    groups = [row.group_id for row in session.select(GroupUserRecord, {"user_id": user.id}, _ALL)]
    for row in session.select(ProjectUserRecord, {"user_id": user.id}, _ALL):
        member = PROJECT_ROLES.get(row.role)
        projects[row.project_id].update(member.permissions if member else ())
    for entry in session.select(ProjectGroupRecord, {"group_id": groups}, _ALL):
        projects[entry.project_id].update(permissions_of(session, entry.role_id))
    principals = [user.id, *groups]
    for given in session.select(AssignmentRecord, {"principal_id": principals}, _ALL):
        permissions = permissions_of(session, given.role_id)
        if given.project_id:
            projects[given.project_id].update(permissions)
        else:
            organization.update(permissions)
    return Rights(
        organization=frozenset(organization),
        projects={place: frozenset(held) for place, held in projects.items()},
    )


def permissions_of(session: Session, role_id: str) -> frozenset[str]:
    """What a role permits; nothing when it is gone."""
    role = predefined((*ORGANIZATION_ROLES.values(), *PROJECT_ROLES.values()), role_id)
    if role is not None:
        return role.permissions
    made = session.find(RoleRecord, {"id": role_id})
    return frozenset(made.permissions if made else ())


def predefined(roles: Iterable[PredefinedRole], role_id: str) -> PredefinedRole | None:
    """The role of this id among those that came with the gateway."""
    return next((role for role in roles if role.id == role_id), None)


def given_by_group(session: Session, group_id: str) -> list[tuple[str, frozenset[str]]]:
    """What whoever enters a group is given, by project (empty: the organisation)."""
    assigned = session.select(AssignmentRecord, {"principal_id": group_id}, _ALL)
    entered = session.select(ProjectGroupRecord, {"group_id": group_id}, _ALL)
    return [
        *((row.project_id, permissions_of(session, row.role_id)) for row in assigned),
        *((row.project_id, permissions_of(session, row.role_id)) for row in entered),
    ]
