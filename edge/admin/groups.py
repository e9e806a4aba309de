"""Groups, their users, and groups in projects, in OpenAI's shape
(https://platform.openai.com/docs/api-reference/groups). Pure.
"""

from typing import Final

from edge.admin.asked import Asked, refused
from edge.admin.projects import PROJECT
from edge.admin.route import AnyRoute, Json, Route, chained, deleted, seconds
from onegate.auth.v1 import group_service_pb2 as pb
from onegate.auth.v1 import project_group_service_pb2, user_service_pb2

GROUPS: Final = "/v1/organization/groups"
GROUP: Final = f"{GROUPS}/{{group_id}}"
GROUP_USERS: Final = f"{GROUP}/users"
PROJECT_GROUPS: Final = f"{PROJECT}/groups"


def group_json(group: pb.Group) -> Json:
    """One group."""
    return {
        "id": group.id,
        "object": "group",
        "name": group.name,
        "created_at": seconds(group.created_at),
        "group_type": "group",
        "is_scim_managed": False,
    }


def project_group_json(group: project_group_service_pb2.ProjectGroup) -> Json:
    """One group of a project. ``role_id`` is the gateway's own."""
    return {
        "object": "project.group",
        "project_id": group.project_id,
        "group_id": group.group_id,
        "group_name": group.group_name,
        "group_type": "group",
        "created_at": seconds(group.created_at),
        "role_id": group.role_id,
    }


def _group_user_json(user: user_service_pb2.User) -> Json:
    return {"id": user.id, "object": "user", "email": user.email, "name": user.name}


def _one_user_json(answer: pb.GetGroupUserResponse, _asked: Asked) -> Json:
    return {
        **_group_user_json(answer.user),
        "is_service_account": False,
        "picture": None,
        "user_type": "user",
    }


def _added(answer: pb.AddGroupUserResponse, asked: Asked) -> Json:
    group_id = asked.path["group_id"]
    return {"object": "group.user", "group_id": group_id, "user_id": answer.user.id}


def _get_project_group(asked: Asked) -> project_group_service_pb2.GetProjectGroupRequest:
    if asked.filter_word("group_type", "group", "tenant_group") != "group":
        raise refused("group_type", "must be group: there are no others here")
    return project_group_service_pb2.GetProjectGroupRequest(
        project_id=asked.path["project_id"], group_id=asked.path["group_id"]
    )


_GROUP_ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        name="groups.list",
        method="GET",
        path=GROUPS,
        rpc="GroupService/ListGroups",
        request=lambda asked: pb.ListGroupsRequest(page=asked.page(100)),
        response=pb.ListGroupsResponse,
        answer=lambda answer, _: chained(
            [group_json(group) for group in answer.groups], has_more=answer.has_more
        ),
    ),
    Route(
        name="groups.create",
        method="POST",
        path=GROUPS,
        rpc="GroupService/CreateGroup",
        request=lambda asked: pb.CreateGroupRequest(name=asked.text("name")),
        response=pb.CreateGroupResponse,
        answer=lambda answer, _: group_json(answer.group),
    ),
    Route(
        name="groups.get",
        method="GET",
        path=GROUP,
        rpc="GroupService/GetGroup",
        request=lambda asked: pb.GetGroupRequest(id=asked.path["group_id"]),
        response=pb.GetGroupResponse,
        answer=lambda answer, _: group_json(answer.group),
    ),
    Route(
        name="groups.update",
        method="POST",
        path=GROUP,
        rpc="GroupService/UpdateGroup",
        request=lambda asked: pb.UpdateGroupRequest(
            id=asked.path["group_id"], name=asked.text("name")
        ),
        response=pb.UpdateGroupResponse,
        answer=lambda answer, _: group_json(answer.group),
    ),
    Route(
        name="groups.delete",
        method="DELETE",
        path=GROUP,
        rpc="GroupService/DeleteGroup",
        request=lambda asked: pb.DeleteGroupRequest(id=asked.path["group_id"]),
        response=pb.DeleteGroupResponse,
        answer=lambda answer, _: deleted("group.deleted", answer.id),
    ),
)

_USER_ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        name="groups.users.list",
        method="GET",
        path=GROUP_USERS,
        rpc="GroupService/ListGroupUsers",
        request=lambda asked: pb.ListGroupUsersRequest(
            group_id=asked.path["group_id"], page=asked.page(100)
        ),
        response=pb.ListGroupUsersResponse,
        answer=lambda answer, _: chained(
            [_group_user_json(user) for user in answer.users], has_more=answer.has_more
        ),
    ),
    Route(
        name="groups.users.add",
        method="POST",
        path=GROUP_USERS,
        rpc="GroupService/AddGroupUser",
        request=lambda asked: pb.AddGroupUserRequest(
            group_id=asked.path["group_id"], user_id=asked.text("user_id")
        ),
        response=pb.AddGroupUserResponse,
        answer=_added,
    ),
    Route(
        name="groups.users.get",
        method="GET",
        path=f"{GROUP_USERS}/{{user_id}}",
        rpc="GroupService/GetGroupUser",
        request=lambda asked: pb.GetGroupUserRequest(
            group_id=asked.path["group_id"], user_id=asked.path["user_id"]
        ),
        response=pb.GetGroupUserResponse,
        answer=_one_user_json,
    ),
    Route(
        name="groups.users.remove",
        method="DELETE",
        path=f"{GROUP_USERS}/{{user_id}}",
        rpc="GroupService/RemoveGroupUser",
        request=lambda asked: pb.RemoveGroupUserRequest(
            group_id=asked.path["group_id"], user_id=asked.path["user_id"]
        ),
        response=pb.RemoveGroupUserResponse,
        answer=lambda _answer, _: {"object": "group.user.deleted", "deleted": True},
    ),
)

_PROJECT_ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        name="projects.groups.list",
        method="GET",
        path=PROJECT_GROUPS,
        rpc="ProjectGroupService/ListProjectGroups",
        request=lambda asked: project_group_service_pb2.ListProjectGroupsRequest(
            project_id=asked.path["project_id"], page=asked.page(20)
        ),
        response=project_group_service_pb2.ListProjectGroupsResponse,
        answer=lambda answer, _: chained(
            [project_group_json(group) for group in answer.groups],
            has_more=answer.has_more,
            id_of="group_id",
        ),
    ),
    Route(
        name="projects.groups.add",
        method="POST",
        path=PROJECT_GROUPS,
        rpc="ProjectGroupService/AddProjectGroup",
        request=lambda asked: project_group_service_pb2.AddProjectGroupRequest(
            project_id=asked.path["project_id"],
            group_id=asked.text("group_id"),
            role=asked.text("role"),
        ),
        response=project_group_service_pb2.AddProjectGroupResponse,
        answer=lambda answer, _: project_group_json(answer.group),
    ),
    Route(
        name="projects.groups.get",
        method="GET",
        path=f"{PROJECT_GROUPS}/{{group_id}}",
        rpc="ProjectGroupService/GetProjectGroup",
        request=_get_project_group,
        response=project_group_service_pb2.GetProjectGroupResponse,
        answer=lambda answer, _: project_group_json(answer.group),
    ),
    Route(
        name="projects.groups.remove",
        method="DELETE",
        path=f"{PROJECT_GROUPS}/{{group_id}}",
        rpc="ProjectGroupService/RemoveProjectGroup",
        request=lambda asked: project_group_service_pb2.RemoveProjectGroupRequest(
            project_id=asked.path["project_id"], group_id=asked.path["group_id"]
        ),
        response=project_group_service_pb2.RemoveProjectGroupResponse,
        answer=lambda _answer, _: {"object": "project.group.deleted", "deleted": True},
    ),
)

ROUTES: Final[tuple[AnyRoute, ...]] = (*_GROUP_ROUTES, *_USER_ROUTES, *_PROJECT_ROUTES)
