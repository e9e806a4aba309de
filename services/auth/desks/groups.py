"""Groups of users, and those that work in a project.

Whoever puts a user into a group, or a role on it, gives that user the group's rights: the caller
must have them all.
"""

# ruff: noqa: N802 - methods are named as the contract names them

from dataclasses import replace

from onegate.auth.v1 import group_service_pb2 as pb
from onegate.auth.v1 import (
    group_service_pb2_grpc,
    project_group_service_pb2,
    project_group_service_pb2_grpc,
    user_service_pb2,
)
from services.auth import keys, rights_rows
from services.auth.administration import Administration, Context, Deed, conflict, missing
from services.auth.desks import paging
from services.auth.desks.people import find_group, find_role, find_user, group_message, user_message
from services.auth.objects import (
    AssignmentRecord,
    GroupRecord,
    GroupUserRecord,
    ProjectGroupRecord,
    UserRecord,
)
from services.auth.records import ProjectRecord, Slice


class GroupService(group_service_pb2_grpc.GroupServiceServicer):
    """Administers groups."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def CreateGroup(
        self, request: pb.CreateGroupRequest, context: Context
    ) -> pb.CreateGroupResponse:
        """Makes a group."""

        def work(deed: Deed) -> GroupRecord:
            deed.allow("groups.create")
            deed.scope = deed.organization_id
            group = GroupRecord(
                id=deed.new_id("group"),
                organization_id=deed.scope,
                name=keys.checked_name(request.name),
                created_at=deed.now,
            )
            deed.session.insert(group)
            deed.note(group.id, None, group)
            return group

        group = await self._administration.change(context, work)
        return pb.CreateGroupResponse(group=group_message(group))

    async def GetGroup(self, request: pb.GetGroupRequest, context: Context) -> pb.GetGroupResponse:
        """One group by id."""

        def work(deed: Deed) -> GroupRecord:
            deed.allow("groups.get")
            return find_group(deed, request.id)

        return pb.GetGroupResponse(
            group=group_message(await self._administration.read(context, work))
        )

    async def ListGroups(
        self, request: pb.ListGroupsRequest, context: Context
    ) -> pb.ListGroupsResponse:
        """Groups."""
        part = paging.part(request.page)

        def work(deed: Deed) -> list[GroupRecord]:
            deed.allow("groups.list")
            where: dict[str, object] = {"organization_id": deed.organization_id}
            return deed.session.select(GroupRecord, where, part)

        rows, has_more = paging.split(await self._administration.read(context, work), part)
        return pb.ListGroupsResponse(groups=map(group_message, rows), has_more=has_more)

    async def UpdateGroup(
        self, request: pb.UpdateGroupRequest, context: Context
    ) -> pb.UpdateGroupResponse:
        """Changes a group's name."""

        def work(deed: Deed) -> GroupRecord:
            deed.allow("groups.update")
            group = find_group(deed, request.id)
            changed = replace(group, name=keys.checked_name(request.name))
            deed.session.replace(changed)
            deed.note(group.id, group, changed)
            return changed

        group = await self._administration.change(context, work)
        return pb.UpdateGroupResponse(group=group_message(group))

    async def DeleteGroup(
        self, request: pb.DeleteGroupRequest, context: Context
    ) -> pb.DeleteGroupResponse:
        """Ends a group; its users lose what it gave them."""

        def work(deed: Deed) -> str:
            deed.allow("groups.delete")
            group = find_group(deed, request.id)
            deed.session.delete(GroupUserRecord, {"group_id": group.id})
            deed.session.delete(ProjectGroupRecord, {"group_id": group.id})
            deed.session.delete(AssignmentRecord, {"principal_id": group.id})
            deed.session.delete(GroupRecord, {"id": group.id})
            deed.note(group.id, group, None)
            return group.id

        return pb.DeleteGroupResponse(id=await self._administration.change(context, work))

    async def AddGroupUser(
        self, request: pb.AddGroupUserRequest, context: Context
    ) -> pb.AddGroupUserResponse:
        """Adds a user, who gets all that the group has."""

        def work(deed: Deed) -> UserRecord:
            deed.allow("groups.users.add")
            group = find_group(deed, request.group_id, "group_id")
            user = find_user(deed, request.user_id, "user_id")
            for project_id, permissions in rights_rows.given_by_group(deed.session, group.id):
                deed.rights.check_gives(permissions, project_id)
            where: dict[str, object] = {"group_id": group.id, "user_id": user.id}
            if deed.session.find(GroupUserRecord, where) is None:
                row = GroupUserRecord(
                    id=deed.new_id("member"),
                    organization_id=group.organization_id,
                    group_id=group.id,
                    user_id=user.id,
                    created_at=deed.now,
                )
                deed.session.insert(row)
                deed.note(group.id, None, row)
            return user

        user = await self._administration.change(context, work)
        return pb.AddGroupUserResponse(user=user_message(user))

    async def GetGroupUser(
        self, request: pb.GetGroupUserRequest, context: Context
    ) -> pb.GetGroupUserResponse:
        """One user of a group."""

        def work(deed: Deed) -> UserRecord:
            deed.allow("groups.users.get")
            _membership(deed, request.group_id, request.user_id)
            return find_user(deed, request.user_id, "user_id")

        user = await self._administration.read(context, work)
        return pb.GetGroupUserResponse(user=user_message(user))

    async def ListGroupUsers(
        self, request: pb.ListGroupUsersRequest, context: Context
    ) -> pb.ListGroupUsersResponse:
        """The users of a group."""
        part = paging.part(request.page, order="user_id")

        def work(deed: Deed) -> list[user_service_pb2.User]:
            deed.allow("groups.users.list")
            group = find_group(deed, request.group_id, "group_id")
            rows = deed.session.select(GroupUserRecord, {"group_id": group.id}, part)
            ids = [row.user_id for row in rows]
            found = deed.session.select(UserRecord, {"id": ids}, Slice(size=len(ids) + 1))
            users = {user.id: user for user in found}
            return [user_message(users[user_id]) for user_id in ids]

        rows, has_more = paging.split(await self._administration.read(context, work), part)
        return pb.ListGroupUsersResponse(users=rows, has_more=has_more)

    async def RemoveGroupUser(
        self, request: pb.RemoveGroupUserRequest, context: Context
    ) -> pb.RemoveGroupUserResponse:
        """Takes a user out."""

        def work(deed: Deed) -> str:
            deed.allow("groups.users.remove")
            row = _membership(deed, request.group_id, request.user_id)
            deed.session.delete(GroupUserRecord, {"id": row.id})
            deed.note(row.group_id, row, None)
            return row.user_id

        user_id = await self._administration.change(context, work)
        return pb.RemoveGroupUserResponse(user_id=user_id)


class ProjectGroupService(project_group_service_pb2_grpc.ProjectGroupServiceServicer):
    """Administers which groups work in a project."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def AddProjectGroup(
        self, request: project_group_service_pb2.AddProjectGroupRequest, context: Context
    ) -> project_group_service_pb2.AddProjectGroupResponse:
        """Lets a group into a project, with a role."""

        def work(deed: Deed) -> project_group_service_pb2.ProjectGroup:
            project = deed.active_project("projects.groups.add", request.project_id)
            group = find_group(deed, request.group_id, "group_id")
            role = find_role(deed, request.role, project.id, "role")
            deed.rights.check_gives(role.permissions, project.id)
            where: dict[str, object] = {"project_id": project.id, "group_id": group.id}
            if deed.session.find(ProjectGroupRecord, where) is not None:
                raise conflict(f"{group.id} is in this project already.", "group_id")
            row = ProjectGroupRecord(
                id=deed.new_id("member"),
                organization_id=project.organization_id,
                project_id=project.id,
                group_id=group.id,
                role_id=role.id,
                created_at=deed.now,
            )
            deed.session.insert(row)
            deed.note(group.id, None, row, project.id)
            return _entry(group, row)

        group = await self._administration.change(context, work)
        return project_group_service_pb2.AddProjectGroupResponse(group=group)

    async def GetProjectGroup(
        self, request: project_group_service_pb2.GetProjectGroupRequest, context: Context
    ) -> project_group_service_pb2.GetProjectGroupResponse:
        """One group of a project."""

        def work(deed: Deed) -> project_group_service_pb2.ProjectGroup:
            project = deed.project("projects.groups.get", request.project_id)
            return _entry(*_entered(deed, project, request.group_id))

        group = await self._administration.read(context, work)
        return project_group_service_pb2.GetProjectGroupResponse(group=group)

    async def ListProjectGroups(
        self, request: project_group_service_pb2.ListProjectGroupsRequest, context: Context
    ) -> project_group_service_pb2.ListProjectGroupsResponse:
        """The groups of a project."""
        part = paging.part(request.page, order="group_id")

        def work(deed: Deed) -> list[project_group_service_pb2.ProjectGroup]:
            project = deed.project("projects.groups.list", request.project_id)
            rows = deed.session.select(ProjectGroupRecord, {"project_id": project.id}, part)
            ids = [row.group_id for row in rows]
            found = deed.session.select(GroupRecord, {"id": ids}, Slice(size=len(ids) + 1))
            groups = {group.id: group for group in found}
            return [_entry(groups[row.group_id], row) for row in rows]

        rows, has_more = paging.split(await self._administration.read(context, work), part)
        return project_group_service_pb2.ListProjectGroupsResponse(groups=rows, has_more=has_more)

    async def RemoveProjectGroup(
        self, request: project_group_service_pb2.RemoveProjectGroupRequest, context: Context
    ) -> project_group_service_pb2.RemoveProjectGroupResponse:
        """Takes a group out of a project."""

        def work(deed: Deed) -> None:
            project = deed.project("projects.groups.remove", request.project_id)
            group, row = _entered(deed, project, request.group_id)
            deed.session.delete(ProjectGroupRecord, {"id": row.id})
            deed.note(group.id, row, None, project.id)

        await self._administration.change(context, work)
        return project_group_service_pb2.RemoveProjectGroupResponse()


def _membership(deed: Deed, group_id: str, user_id: str) -> GroupUserRecord:
    group = find_group(deed, group_id, "group_id")
    row = deed.session.find(GroupUserRecord, {"group_id": group.id, "user_id": user_id})
    if row is None:
        raise missing("user in this group", "user_id")
    return row


def _entered(
    deed: Deed, project: ProjectRecord, group_id: str
) -> tuple[GroupRecord, ProjectGroupRecord]:
    where: dict[str, object] = {"project_id": project.id, "group_id": group_id}
    row = deed.session.find(ProjectGroupRecord, where)
    if row is None:
        raise missing("group in this project", "group_id")
    return find_group(deed, group_id, "group_id"), row


def _entry(group: GroupRecord, row: ProjectGroupRecord) -> project_group_service_pb2.ProjectGroup:
    return project_group_service_pb2.ProjectGroup(
        project_id=row.project_id,
        group_id=group.id,
        group_name=group.name,
        role_id=row.role_id,
        created_at=keys.timestamp(row.created_at),
    )
