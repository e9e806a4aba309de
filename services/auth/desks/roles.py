"""Roles and who has them, in an organisation or in a project. Nobody gives what they have not."""

# ruff: noqa: N802 - methods are named as the contract names them

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from onegate.auth.v1 import role_service_pb2 as pb
from onegate.auth.v1 import role_service_pb2_grpc
from services.auth import keys, rights_rows
from services.auth.administration import Administration, Context, Deed, conflict, missing, refused
from services.auth.desks import paging
from services.auth.desks.people import (
    find_group,
    find_role,
    find_user,
    group_message,
    predefined_record,
    user_message,
)
from services.auth.desks.users import assign
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
    PROJECT_ROLES,
    PredefinedRole,
    checked_permissions,
)
from services.auth.records import Slice

DESCRIPTION_CHARS_MAX: Final = 1_000
ROLES_MAX: Final = 500
"""How many roles an organisation or a project may have, and a principal is shown with."""

_WHOLE: Final = Slice(size=ROLES_MAX, ascending=True)


class RoleService(role_service_pb2_grpc.RoleServiceServicer):
    """Administers roles and assignments."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def CreateRole(
        self, request: pb.CreateRoleRequest, context: Context
    ) -> pb.CreateRoleResponse:
        """Makes a role of permissions that the caller has."""

        def work(deed: Deed) -> RoleRecord:
            project_id = deed.place("roles.create", request.project_id)
            deed.scope = deed.organization_id
            role = RoleRecord(
                id=deed.new_id("role"),
                organization_id=deed.scope,
                project_id=project_id,
                name=_free_name(deed, project_id, request.name),
                description=_checked_description(request.description),
                permissions=_permitted(deed, request.permissions, project_id),
                created_at=deed.now,
                updated_at=deed.now,
            )
            if len(_made(deed, project_id)) >= ROLES_MAX:
                raise refused("role_name", f"is one too many: there may be {ROLES_MAX} roles")
            deed.session.insert(role)
            deed.note(role.id, None, role, project_id)
            return role

        role = await self._administration.change(context, work)
        return pb.CreateRoleResponse(role=_message(role))

    async def GetRole(self, request: pb.GetRoleRequest, context: Context) -> pb.GetRoleResponse:
        """One role by id."""

        def work(deed: Deed) -> RoleRecord:
            project_id = deed.place("roles.get", request.project_id)
            return find_role(deed, request.id, project_id, "id")

        return pb.GetRoleResponse(role=_message(await self._administration.read(context, work)))

    async def ListRoles(
        self, request: pb.ListRolesRequest, context: Context
    ) -> pb.ListRolesResponse:
        """Roles: the predefined ones and those that were made."""
        part = paging.part(request.page)

        def work(deed: Deed) -> list[RoleRecord]:
            project_id = deed.place("roles.list", request.project_id)
            roles = PROJECT_ROLES if project_id else ORGANIZATION_ROLES
            came = [predefined_record(deed, role, project_id) for role in roles.values()]
            return _cut([*came, *_made(deed, project_id)], part)

        rows, has_more = paging.split(await self._administration.read(context, work), part)
        return pb.ListRolesResponse(roles=map(_message, rows), has_more=has_more)

    async def UpdateRole(
        self, request: pb.UpdateRoleRequest, context: Context
    ) -> pb.UpdateRoleResponse:
        """Changes a role that was made; it may say no more than the caller may do."""

        def work(deed: Deed) -> RoleRecord:
            project_id = deed.place("roles.update", request.project_id)
            role = _made_role(deed, request.id, project_id)
            changed = role
            if request.HasField("name") and request.name.strip() != role.name:
                changed = replace(changed, name=_free_name(deed, project_id, request.name))
            if request.HasField("description"):
                words = _checked_description(request.description)
                changed = replace(changed, description=words)
            if request.HasField("permissions"):
                permissions = _permitted(deed, request.permissions.names, project_id)
                changed = replace(changed, permissions=permissions)
            if changed != role:
                changed = replace(changed, updated_at=deed.now)
                deed.session.replace(changed)
                deed.note(role.id, role, changed, project_id)
            return changed

        role = await self._administration.change(context, work)
        return pb.UpdateRoleResponse(role=_message(role))

    async def DeleteRole(
        self, request: pb.DeleteRoleRequest, context: Context
    ) -> pb.DeleteRoleResponse:
        """Ends a role that was made; whoever had it loses it."""

        def work(deed: Deed) -> str:
            project_id = deed.place("roles.delete", request.project_id)
            role = _made_role(deed, request.id, project_id)
            deed.session.delete(AssignmentRecord, {"role_id": role.id})
            deed.session.delete(ProjectGroupRecord, {"role_id": role.id})
            deed.session.delete(RoleRecord, {"id": role.id})
            deed.note(role.id, role, None, project_id)
            return role.id

        return pb.DeleteRoleResponse(id=await self._administration.change(context, work))

    async def AssignRole(
        self, request: pb.AssignRoleRequest, context: Context
    ) -> pb.AssignRoleResponse:
        """Gives a role to a user or a group."""

        def work(deed: Deed) -> pb.AssignRoleResponse:
            project_id = deed.place("roles.assigned.assign", request.project_id)
            principal_id = _principal(deed, request.principal)
            role = find_role(deed, request.role_id, project_id)
            deed.rights.check_gives(role.permissions, project_id)
            assign(deed, principal_id, role.id, project_id)
            answer = pb.AssignRoleResponse(role=_message(role))
            if request.principal.group_id:
                answer.group.CopyFrom(group_message(find_group(deed, principal_id)))
            else:
                answer.user.CopyFrom(user_message(find_user(deed, principal_id)))
            return answer

        return await self._administration.change(context, work)

    async def GetAssignedRole(
        self, request: pb.GetAssignedRoleRequest, context: Context
    ) -> pb.GetAssignedRoleResponse:
        """One role of a user or a group."""

        def work(deed: Deed) -> pb.AssignedRole:
            project_id = deed.place("roles.assigned.get", request.project_id)
            principal_id = _principal(deed, request.principal)
            for role, groups in _assigned(deed, principal_id, project_id):
                if role.id == request.role_id:
                    return pb.AssignedRole(role=_message(role), group_ids=groups)
            raise missing("role of theirs", "role_id")

        assigned = await self._administration.read(context, work)
        return pb.GetAssignedRoleResponse(assigned=assigned)

    async def ListAssignedRoles(
        self, request: pb.ListAssignedRolesRequest, context: Context
    ) -> pb.ListAssignedRolesResponse:
        """The roles of a user or a group, those through groups included."""
        part = paging.part(request.page)

        def work(deed: Deed) -> list[pb.AssignedRole]:
            project_id = deed.place("roles.assigned.list", request.project_id)
            principal_id = _principal(deed, request.principal)
            held = {role.id: groups for role, groups in _assigned(deed, principal_id, project_id)}
            roles = _cut([find_role(deed, role_id, project_id) for role_id in held], part)
            return [pb.AssignedRole(role=_message(role), group_ids=held[role.id]) for role in roles]

        rows, has_more = paging.split(await self._administration.read(context, work), part)
        return pb.ListAssignedRolesResponse(assigned=rows, has_more=has_more)

    async def UnassignRole(
        self, request: pb.UnassignRoleRequest, context: Context
    ) -> pb.UnassignRoleResponse:
        """Takes a role from a user or a group."""

        def work(deed: Deed) -> None:
            project_id = deed.place("roles.assigned.unassign", request.project_id)
            principal_id = _principal(deed, request.principal)
            where: dict[str, object] = {
                "principal_id": principal_id,
                "role_id": request.role_id,
                "project_id": project_id,
            }
            row = deed.session.find(AssignmentRecord, where)
            if row is None:
                raise missing("role of theirs", "role_id")
            deed.session.delete(AssignmentRecord, {"id": row.id})
            deed.note(principal_id, row, None, project_id)

        await self._administration.change(context, work)
        return pb.UnassignRoleResponse()


def _principal(deed: Deed, principal: pb.Principal) -> str:
    """The id of a user or a group of the organisation. Raises NOT_FOUND."""
    if principal.group_id:
        return find_group(deed, principal.group_id, "group_id").id
    return find_user(deed, principal.user_id, "user_id").id


def _made(deed: Deed, project_id: str) -> list[RoleRecord]:
    where: dict[str, object] = {"organization_id": deed.organization_id, "project_id": project_id}
    return deed.session.select(RoleRecord, where, _WHOLE)


def _made_role(deed: Deed, role_id: str, project_id: str) -> RoleRecord:
    """A role that can be changed. Raises NOT_FOUND, INVALID_REQUEST."""
    role = find_role(deed, role_id, project_id, "id")
    came = (*ORGANIZATION_ROLES.values(), *PROJECT_ROLES.values())
    if rights_rows.predefined(came, role.id) is not None:
        raise refused("role_id", "must be a role that somebody made: this one cannot be changed")
    return role


def _free_name(deed: Deed, project_id: str, name: str) -> str:
    found = keys.checked_name(name)
    roles: Sequence[PredefinedRole] = tuple(
        (PROJECT_ROLES if project_id else ORGANIZATION_ROLES).values()
    )
    taken = {role.word for role in roles} | {role.name for role in _made(deed, project_id)}
    if found in taken:
        raise conflict(f"There is a role {found!r} already: choose another name.", "role_name")
    return found


def _checked_description(text: str) -> str:
    if len(text) > DESCRIPTION_CHARS_MAX:
        raise refused("description", f"must have at most {DESCRIPTION_CHARS_MAX} characters")
    return text


def _permitted(deed: Deed, names: Sequence[str], project_id: str) -> tuple[str, ...]:
    found = checked_permissions(names, project=bool(project_id), param="permissions")
    deed.rights.check_gives(found, project_id)
    return found


def _assigned(deed: Deed, principal_id: str, project_id: str) -> list[tuple[RoleRecord, list[str]]]:
    """A principal's roles here, each with the groups that it comes through."""
    memberships = deed.session.select(GroupUserRecord, {"user_id": principal_id}, _WHOLE)
    held: dict[str, list[str]] = {}
    for holder in (principal_id, *(row.group_id for row in memberships)):
        for role_id in _held_directly(deed, holder, project_id):
            through = held.setdefault(role_id, [])
            if holder != principal_id:
                through.append(holder)
    own = set(_held_directly(deed, principal_id, project_id))
    return [
        (find_role(deed, role_id, project_id), [] if role_id in own else through)
        for role_id, through in held.items()
    ]


def _held_directly(deed: Deed, principal_id: str, project_id: str) -> list[str]:
    where: dict[str, object] = {"principal_id": principal_id, "project_id": project_id}
    found = [row.role_id for row in deed.session.select(AssignmentRecord, where, _WHOLE)]
    if project_id:
        place: dict[str, object] = {"project_id": project_id}
        member = deed.session.find(ProjectUserRecord, {**place, "user_id": principal_id})
        entry = deed.session.find(ProjectGroupRecord, {**place, "group_id": principal_id})
        if member is not None:
            found.append(PROJECT_ROLES[member.role].id)
        if entry is not None:
            found.append(entry.role_id)
    else:
        user = deed.session.find(UserRecord, {"id": principal_id})
        if user is not None:
            found.append(ORGANIZATION_ROLES[user.role].id)
    return list(dict.fromkeys(found))


def _cut(roles: Sequence[RoleRecord], part: Slice) -> list[RoleRecord]:
    """The slice of roles by their ids."""
    ordered = sorted(roles, key=lambda role: role.id, reverse=not part.ascending)
    if part.after is not None:
        after = str(part.after)
        ordered = [r for r in ordered if (r.id > after if part.ascending else r.id < after)]
    return ordered[: part.size]


def _message(role: RoleRecord) -> pb.Role:
    came = (*ORGANIZATION_ROLES.values(), *PROJECT_ROLES.values())
    is_predefined = rights_rows.predefined(came, role.id) is not None
    return pb.Role(
        id=role.id,
        name=role.name,
        description=role.description,
        permissions=role.permissions,
        predefined=is_predefined,
        project_id=role.project_id,
        created_at=None if is_predefined else keys.timestamp(role.created_at),
        updated_at=None if is_predefined else keys.timestamp(role.updated_at),
    )
