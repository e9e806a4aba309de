"""Users, project users and invites in OpenAI's shape
(https://platform.openai.com/docs/api-reference/users). Pure.

Adding a user directly is the gateway's own: it has no mail to invite with.
"""

from typing import Final

from edge.admin.asked import Asked
from edge.admin.projects import PROJECT
from edge.admin.route import AnyRoute, Json, Route, deleted, listed, seconds, seconds_or_none
from onegate.auth.v1 import invite_service_pb2, project_user_service_pb2
from onegate.auth.v1 import user_service_pb2 as pb

USERS: Final = "/v1/organization/users"
USER: Final = f"{USERS}/{{user_id}}"
MEMBERS: Final = f"{PROJECT}/users"
MEMBER: Final = f"{MEMBERS}/{{user_id}}"
INVITES: Final = "/v1/organization/invites"
_STATES: Final = {
    invite_service_pb2.INVITE_STATE_PENDING: "pending",
    invite_service_pb2.INVITE_STATE_ACCEPTED: "accepted",
    invite_service_pb2.INVITE_STATE_EXPIRED: "expired",
}


def user_json(user: pb.User) -> Json:
    """One user of the organisation."""
    return {
        "id": user.id,
        "object": "organization.user",
        "email": user.email,
        "name": user.name,
        "role": user.role,
        "added_at": seconds(user.created_at),
        "created": seconds(user.created_at),
        "developer_persona": user.developer_persona or None,
        "technical_level": user.technical_level or None,
        "is_service_account": False,
        "is_scim_managed": False,
        "user": {"id": user.id, "object": "user", "email": user.email, "name": user.name},
    }


def member_json(user: project_user_service_pb2.ProjectUser) -> Json:
    """One user of a project."""
    return {
        "id": user.user_id,
        "object": "organization.project.user",
        "email": user.email,
        "name": user.name,
        "role": user.role,
        "added_at": seconds(user.added_at),
    }


def invite_json(invite: invite_service_pb2.Invite) -> Json:
    """One invite."""
    return {
        "id": invite.id,
        "object": "organization.invite",
        "email": invite.email,
        "role": invite.role,
        "status": _STATES.get(invite.state, "pending"),
        "projects": [{"id": project.id, "role": project.role} for project in invite.projects],
        "created_at": seconds(invite.created_at),
        "expires_at": seconds(invite.expires_at),
        "accepted_at": seconds_or_none(invite, "accepted_at"),
    }


def _create_user(asked: Asked) -> pb.CreateUserRequest:
    return pb.CreateUserRequest(
        email=asked.text("email"),
        name=asked.text_or("name") or "",
        role=asked.text_or("role") or "",
    )


def _update_user(asked: Asked) -> pb.UpdateUserRequest:
    return pb.UpdateUserRequest(
        id=asked.path["user_id"],
        role=asked.text_or("role"),
        role_id=asked.text_or("role_id"),
        developer_persona=asked.text_or("developer_persona"),
        technical_level=asked.text_or("technical_level"),
    )


def _add_member(asked: Asked) -> project_user_service_pb2.AddProjectUserRequest:
    return project_user_service_pb2.AddProjectUserRequest(
        project_id=asked.path["project_id"],
        user_id=asked.text_or("user_id") or "",
        email=asked.text_or("email") or "",
        role=asked.text("role"),
    )


def _update_member(asked: Asked) -> project_user_service_pb2.UpdateProjectUserRequest:
    return project_user_service_pb2.UpdateProjectUserRequest(
        project_id=asked.path["project_id"],
        user_id=asked.path["user_id"],
        role=asked.text_or("role"),
    )


def _create_invite(asked: Asked) -> invite_service_pb2.CreateInviteRequest:
    projects = []
    for entry in asked.objects("projects"):
        project = invite_service_pb2.InviteProject(id=entry.text("id"), role=entry.text("role"))
        entry.finish()
        projects.append(project)
    return invite_service_pb2.CreateInviteRequest(
        email=asked.text("email"), role=asked.text("role"), projects=projects
    )


_USER_ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        name="users.list",
        method="GET",
        path=USERS,
        rpc="UserService/ListUsers",
        request=lambda asked: pb.ListUsersRequest(
            page=asked.page(20), emails=asked.filters("emails")
        ),
        response=pb.ListUsersResponse,
        answer=lambda answer, _: listed(
            [user_json(user) for user in answer.users], has_more=answer.has_more
        ),
    ),
    Route(
        name="users.create",
        method="POST",
        path=USERS,
        rpc="UserService/CreateUser",
        request=_create_user,
        response=pb.CreateUserResponse,
        answer=lambda answer, _: user_json(answer.user),
    ),
    Route(
        name="users.get",
        method="GET",
        path=USER,
        rpc="UserService/GetUser",
        request=lambda asked: pb.GetUserRequest(id=asked.path["user_id"]),
        response=pb.GetUserResponse,
        answer=lambda answer, _: user_json(answer.user),
    ),
    Route(
        name="users.update",
        method="POST",
        path=USER,
        rpc="UserService/UpdateUser",
        request=_update_user,
        response=pb.UpdateUserResponse,
        answer=lambda answer, _: user_json(answer.user),
    ),
    Route(
        name="users.delete",
        method="DELETE",
        path=USER,
        rpc="UserService/DeleteUser",
        request=lambda asked: pb.DeleteUserRequest(id=asked.path["user_id"]),
        response=pb.DeleteUserResponse,
        answer=lambda answer, _: deleted("organization.user.deleted", answer.id),
    ),
)

_MEMBER_ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        name="projects.users.list",
        method="GET",
        path=MEMBERS,
        rpc="ProjectUserService/ListProjectUsers",
        request=lambda asked: project_user_service_pb2.ListProjectUsersRequest(
            project_id=asked.path["project_id"], page=asked.page(20)
        ),
        response=project_user_service_pb2.ListProjectUsersResponse,
        answer=lambda answer, _: listed(
            [member_json(user) for user in answer.users], has_more=answer.has_more
        ),
    ),
    Route(
        name="projects.users.add",
        method="POST",
        path=MEMBERS,
        rpc="ProjectUserService/AddProjectUser",
        request=_add_member,
        response=project_user_service_pb2.AddProjectUserResponse,
        answer=lambda answer, _: member_json(answer.user),
    ),
    Route(
        name="projects.users.get",
        method="GET",
        path=MEMBER,
        rpc="ProjectUserService/GetProjectUser",
        request=lambda asked: project_user_service_pb2.GetProjectUserRequest(
            project_id=asked.path["project_id"], user_id=asked.path["user_id"]
        ),
        response=project_user_service_pb2.GetProjectUserResponse,
        answer=lambda answer, _: member_json(answer.user),
    ),
    Route(
        name="projects.users.update",
        method="POST",
        path=MEMBER,
        rpc="ProjectUserService/UpdateProjectUser",
        request=_update_member,
        response=project_user_service_pb2.UpdateProjectUserResponse,
        answer=lambda answer, _: member_json(answer.user),
    ),
    Route(
        name="projects.users.remove",
        method="DELETE",
        path=MEMBER,
        rpc="ProjectUserService/RemoveProjectUser",
        request=lambda asked: project_user_service_pb2.RemoveProjectUserRequest(
            project_id=asked.path["project_id"], user_id=asked.path["user_id"]
        ),
        response=project_user_service_pb2.RemoveProjectUserResponse,
        answer=lambda answer, _: deleted("organization.project.user.deleted", answer.user_id),
    ),
)

_INVITE_ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        name="invites.list",
        method="GET",
        path=INVITES,
        rpc="InviteService/ListInvites",
        request=lambda asked: invite_service_pb2.ListInvitesRequest(page=asked.page(20)),
        response=invite_service_pb2.ListInvitesResponse,
        answer=lambda answer, _: listed(
            [invite_json(invite) for invite in answer.invites], has_more=answer.has_more
        ),
    ),
    Route(
        name="invites.create",
        method="POST",
        path=INVITES,
        rpc="InviteService/CreateInvite",
        request=_create_invite,
        response=invite_service_pb2.CreateInviteResponse,
        answer=lambda answer, _: invite_json(answer.invite),
    ),
    Route(
        name="invites.get",
        method="GET",
        path=f"{INVITES}/{{invite_id}}",
        rpc="InviteService/GetInvite",
        request=lambda asked: invite_service_pb2.GetInviteRequest(id=asked.path["invite_id"]),
        response=invite_service_pb2.GetInviteResponse,
        answer=lambda answer, _: invite_json(answer.invite),
    ),
    Route(
        name="invites.delete",
        method="DELETE",
        path=f"{INVITES}/{{invite_id}}",
        rpc="InviteService/DeleteInvite",
        request=lambda asked: invite_service_pb2.DeleteInviteRequest(id=asked.path["invite_id"]),
        response=invite_service_pb2.DeleteInviteResponse,
        answer=lambda answer, _: deleted("organization.invite.deleted", answer.id),
    ),
)

ROUTES: Final[tuple[AnyRoute, ...]] = (*_USER_ROUTES, *_MEMBER_ROUTES, *_INVITE_ROUTES)
