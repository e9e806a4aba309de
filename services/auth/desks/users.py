"""The people of an organisation, and those of a project."""

# ruff: noqa: N802 - methods are named as the contract names them

from dataclasses import replace

from onegate.auth.v1 import (
    project_user_service_pb2,
    project_user_service_pb2_grpc,
    user_service_pb2_grpc,
)
from onegate.auth.v1 import user_service_pb2 as pb
from services.auth import key_rows, keys, rights_rows
from services.auth.administration import Administration, Context, Deed, conflict, missing, refused
from services.auth.desks import paging
from services.auth.desks.keys import end_key
from services.auth.desks.people import (
    NOTE_CHARS_MAX,
    checked_email,
    checked_role,
    find_role,
    find_user,
    user_message,
)
from services.auth.objects import (
    AssignmentRecord,
    GroupUserRecord,
    InviteRecord,
    ProjectUserRecord,
    UserIdentityRecord,
    UserRecord,
)
from services.auth.permissions import ORGANIZATION_ROLES, PROJECT_ROLES
from services.auth.records import ProjectRecord, Slice

EMAILS_MAX = 100
"""How many addresses one listing may be narrowed to."""


class UserService(user_service_pb2_grpc.UserServiceServicer):
    """Administers users."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def CreateUser(
        self, request: pb.CreateUserRequest, context: Context
    ) -> pb.CreateUserResponse:
        """Adds a user; a pending invite for the address is accepted by that."""

        def work(deed: Deed) -> UserRecord:
            deed.allow("users.create")
            email = checked_email(request.email)
            organization_id = deed.organization_id
            deed.scope = organization_id
            where: dict[str, object] = {"organization_id": organization_id, "email": email}
            if deed.session.find(UserRecord, where) is not None:
                raise conflict(f"{email} is a user of this organisation already.", "email")
            invite = pending_invite(deed, email)
            word = request.role or (invite.role if invite else "reader")
            role = ORGANIZATION_ROLES[checked_role(word, ORGANIZATION_ROLES, "role")]
            deed.rights.check_gives(role.permissions)
            user = UserRecord(
                id=deed.new_id("user"),
                organization_id=organization_id,
                email=email,
                name=keys.checked_name(request.name or email),
                role=role.word,
                developer_persona="",
                technical_level="",
                created_at=deed.now,
            )
            deed.session.insert(user)
            deed.note(user.id, None, user)
            if invite is not None:
                accept_invite(deed, invite, user)
            return user

        user = await self._administration.change(context, work)
        return pb.CreateUserResponse(user=user_message(user))

    async def GetUser(self, request: pb.GetUserRequest, context: Context) -> pb.GetUserResponse:
        """One user by id."""

        def work(deed: Deed) -> UserRecord:
            deed.allow("users.get")
            return find_user(deed, request.id)

        return pb.GetUserResponse(user=user_message(await self._administration.read(context, work)))

    async def ListUsers(
        self, request: pb.ListUsersRequest, context: Context
    ) -> pb.ListUsersResponse:
        """Users, all or some by their addresses."""
        part = paging.part(request.page)

        def work(deed: Deed) -> list[UserRecord]:
            deed.allow("users.list")
            where: dict[str, object] = {"organization_id": deed.organization_id}
            if len(request.emails) > EMAILS_MAX:
                raise refused("emails", f"must be at most {EMAILS_MAX}")
            if request.emails:
                where["email"] = [email.strip().lower() for email in request.emails]
            return deed.session.select(UserRecord, where, part)

        rows, has_more = paging.split(await self._administration.read(context, work), part)
        return pb.ListUsersResponse(users=map(user_message, rows), has_more=has_more)

    async def UpdateUser(
        self, request: pb.UpdateUserRequest, context: Context
    ) -> pb.UpdateUserResponse:
        """Changes a user's role or what is noted of them."""

        def work(deed: Deed) -> UserRecord:
            deed.allow("users.update")
            user = find_user(deed, request.id)
            changed = _changed(deed, user, request)
            if changed != user:
                deed.session.replace(changed)
                deed.note(user.id, user, changed)
            return changed

        user = await self._administration.change(context, work)
        return pb.UpdateUserResponse(user=user_message(user))

    async def DeleteUser(
        self, request: pb.DeleteUserRequest, context: Context
    ) -> pb.DeleteUserResponse:
        """Takes a user out of the organisation, with all that they were in; their keys end."""

        def work(deed: Deed) -> str:
            deed.allow("users.delete")
            user = find_user(deed, request.id)
            deed.session.delete(ProjectUserRecord, {"user_id": user.id})
            deed.session.delete(GroupUserRecord, {"user_id": user.id})
            deed.session.delete(AssignmentRecord, {"principal_id": user.id})
            deed.session.delete(UserIdentityRecord, {"user_id": user.id})
            deed.session.delete(UserRecord, {"id": user.id})
            deed.note(user.id, user, None)
            for key in key_rows.live_keys(deed.session, {"principal_id": user.id}):
                end_key(deed, key)
            return user.id

        return pb.DeleteUserResponse(id=await self._administration.change(context, work))


class ProjectUserService(project_user_service_pb2_grpc.ProjectUserServiceServicer):
    """Administers who of the organisation works in a project."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def AddProjectUser(
        self, request: project_user_service_pb2.AddProjectUserRequest, context: Context
    ) -> project_user_service_pb2.AddProjectUserResponse:
        """Adds a user of the organisation."""

        def work(deed: Deed) -> project_user_service_pb2.ProjectUser:
            project = deed.active_project("projects.users.add", request.project_id)
            if not request.user_id and not request.email:
                raise refused("user_id", "or `email` must be set")
            user = _named(deed, request.user_id, request.email)
            role = PROJECT_ROLES[checked_role(request.role, PROJECT_ROLES, "role")]
            deed.rights.check_gives(role.permissions, project.id)
            where: dict[str, object] = {"project_id": project.id, "user_id": user.id}
            if deed.session.find(ProjectUserRecord, where) is not None:
                raise conflict(f"{user.id} is in this project already.", "user_id")
            return _member(user, _add(deed, project, user, role.word))

        user = await self._administration.change(context, work)
        return project_user_service_pb2.AddProjectUserResponse(user=user)

    async def GetProjectUser(
        self, request: project_user_service_pb2.GetProjectUserRequest, context: Context
    ) -> project_user_service_pb2.GetProjectUserResponse:
        """One user of a project."""

        def work(deed: Deed) -> project_user_service_pb2.ProjectUser:
            project = deed.project("projects.users.get", request.project_id)
            return _member(*_membership(deed, project, request.user_id))

        user = await self._administration.read(context, work)
        return project_user_service_pb2.GetProjectUserResponse(user=user)

    async def ListProjectUsers(
        self, request: project_user_service_pb2.ListProjectUsersRequest, context: Context
    ) -> project_user_service_pb2.ListProjectUsersResponse:
        """The users of a project."""
        part = paging.part(request.page, order="user_id")

        def work(deed: Deed) -> list[project_user_service_pb2.ProjectUser]:
            project = deed.project("projects.users.list", request.project_id)
            rows = deed.session.select(ProjectUserRecord, {"project_id": project.id}, part)
            ids = [row.user_id for row in rows]
            found = deed.session.select(UserRecord, {"id": ids}, Slice(size=len(ids) + 1))
            users = {user.id: user for user in found}
            return [_member(users[row.user_id], row) for row in rows]

        rows, has_more = paging.split(await self._administration.read(context, work), part)
        return project_user_service_pb2.ListProjectUsersResponse(users=rows, has_more=has_more)

    async def UpdateProjectUser(
        self, request: project_user_service_pb2.UpdateProjectUserRequest, context: Context
    ) -> project_user_service_pb2.UpdateProjectUserResponse:
        """Changes a user's role in a project."""

        def work(deed: Deed) -> project_user_service_pb2.ProjectUser:
            project = deed.active_project("projects.users.update", request.project_id)
            user, row = _membership(deed, project, request.user_id)
            if request.HasField("role") and request.role != row.role:
                role = PROJECT_ROLES[checked_role(request.role, PROJECT_ROLES, "role")]
                deed.rights.check_gives(role.permissions, project.id)
                changed = replace(row, role=role.word)
                deed.session.replace(changed)
                deed.note(user.id, row, changed, project.id)
                row = changed
            return _member(user, row)

        user = await self._administration.change(context, work)
        return project_user_service_pb2.UpdateProjectUserResponse(user=user)

    async def RemoveProjectUser(
        self, request: project_user_service_pb2.RemoveProjectUserRequest, context: Context
    ) -> project_user_service_pb2.RemoveProjectUserResponse:
        """Takes a user out of a project."""

        def work(deed: Deed) -> str:
            project = deed.project("projects.users.remove", request.project_id)
            user, row = _membership(deed, project, request.user_id)
            deed.session.delete(ProjectUserRecord, {"id": row.id})
            deed.note(user.id, row, None, project.id)
            return user.id

        user_id = await self._administration.change(context, work)
        return project_user_service_pb2.RemoveProjectUserResponse(user_id=user_id)


def pending_invite(deed: Deed, email: str) -> InviteRecord | None:
    """The newest invite of an address that can be accepted now."""
    where: dict[str, object] = {
        "organization_id": deed.organization_id,
        "email": email,
        "accepted_at": None,
    }
    rows = deed.session.select(InviteRecord, where, Slice(size=1))
    return rows[0] if rows and rows[0].expires_at > deed.now else None


def accept_invite(deed: Deed, invite: InviteRecord, user: UserRecord) -> None:
    """Gives a new user what their invite promises and the caller may give."""
    for entry in invite.projects:
        project_id, _, word = entry.partition(":")
        deed.rights.check_gives(PROJECT_ROLES[word].permissions, project_id)
        where: dict[str, object] = {"id": project_id, "archived_at": None}
        project = deed.session.find(ProjectRecord, where)
        if project is not None:
            _add(deed, project, user, word)
    deed.session.replace(replace(invite, accepted_at=deed.now))


def _add(deed: Deed, project: ProjectRecord, user: UserRecord, word: str) -> ProjectUserRecord:
    row = ProjectUserRecord(
        id=deed.new_id("member"),
        organization_id=project.organization_id,
        project_id=project.id,
        user_id=user.id,
        role=word,
        created_at=deed.now,
    )
    deed.session.insert(row)
    deed.note(user.id, None, row, project.id)
    return row


def _changed(deed: Deed, user: UserRecord, request: pb.UpdateUserRequest) -> UserRecord:
    """The user as they are asked to be; a role that somebody made is assigned on the way."""
    changed = user
    if request.HasField("role"):
        role = ORGANIZATION_ROLES[checked_role(request.role, ORGANIZATION_ROLES, "role")]
        deed.rights.check_gives(role.permissions)
        changed = replace(changed, role=role.word)
    if request.HasField("role_id"):
        made = find_role(deed, request.role_id, "")
        deed.rights.check_gives(made.permissions)
        predefined = rights_rows.predefined(ORGANIZATION_ROLES.values(), made.id)
        if predefined is not None:
            changed = replace(changed, role=predefined.word)
        else:
            assign(deed, user.id, made.id, "")
    if request.HasField("developer_persona"):
        note = _note("developer_persona", request.developer_persona)
        changed = replace(changed, developer_persona=note)
    if request.HasField("technical_level"):
        note = _note("technical_level", request.technical_level)
        changed = replace(changed, technical_level=note)
    return changed


def _note(name: str, note: str) -> str:
    if len(note) > NOTE_CHARS_MAX or not note.isprintable():
        raise refused(name, f"must be one line of at most {NOTE_CHARS_MAX} characters")
    return note


def assign(deed: Deed, principal_id: str, role_id: str, project_id: str) -> None:
    """Gives a role, once. Whoever calls has checked that the caller may give it."""
    where: dict[str, object] = {
        "principal_id": principal_id,
        "role_id": role_id,
        "project_id": project_id,
    }
    if deed.session.find(AssignmentRecord, where) is not None:
        return
    row = AssignmentRecord(
        id=deed.new_id("assignment"),
        organization_id=deed.organization_id,
        project_id=project_id,
        principal_id=principal_id,
        role_id=role_id,
        created_at=deed.now,
    )
    deed.session.insert(row)
    deed.note(principal_id, None, row, project_id)


def _named(deed: Deed, user_id: str, email: str) -> UserRecord:
    if user_id:
        user = find_user(deed, user_id, "user_id")
        if email and checked_email(email) != user.email:
            raise refused("email", "must be left out, or be the address of `user_id`")
        return user
    where: dict[str, object] = {
        "organization_id": deed.organization_id,
        "email": checked_email(email),
    }
    found = deed.session.find(UserRecord, where)
    if found is None:
        raise missing("user; add or invite them first", "email")
    return found


def _membership(
    deed: Deed, project: ProjectRecord, user_id: str
) -> tuple[UserRecord, ProjectUserRecord]:
    where: dict[str, object] = {"project_id": project.id, "user_id": user_id}
    row = deed.session.find(ProjectUserRecord, where)
    if row is None:
        raise missing("user in this project", "user_id")
    return find_user(deed, user_id, "user_id"), row


def _member(user: UserRecord, row: ProjectUserRecord) -> project_user_service_pb2.ProjectUser:
    return project_user_service_pb2.ProjectUser(
        user_id=user.id,
        project_id=row.project_id,
        email=user.email,
        name=user.name,
        role=row.role,
        added_at=keys.timestamp(row.created_at),
    )
