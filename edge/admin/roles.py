"""Roles and who has them, in OpenAI's shape
(https://platform.openai.com/docs/api-reference/roles). Pure.

The same methods serve an organisation and a project: a path without a project has no project id.
"""

from typing import Final

from edge.admin.asked import Asked
from edge.admin.groups import group_json
from edge.admin.people import user_json
from edge.admin.route import AnyRoute, Json, Route, chained, deleted, seconds_or_none
from onegate.auth.v1 import role_service_pb2 as pb

ORGANIZATION: Final = "/v1/organization"
PROJECT: Final = "/v1/projects/{project_id}"
"""OpenAI leaves ``organization`` out of these paths."""

_SERVICE: Final = "RoleService"


def role_json(role: pb.Role) -> Json:
    """One role."""
    return {
        "id": role.id,
        "object": "role",
        "name": role.name,
        "description": role.description or None,
        "permissions": list(role.permissions),
        "predefined_role": role.predefined,
        "resource_type": "api.project" if role.project_id else "api.organization",
    }


def assigned_json(assigned: pb.AssignedRole) -> Json:
    """A role that somebody has, and through whom."""
    sources = [
        {"principal_id": group_id, "principal_type": "group"} for group_id in assigned.group_ids
    ]
    return {
        **role_json(assigned.role),
        "assignment_sources": sources or None,
        "created_at": seconds_or_none(assigned.role, "created_at"),
        "updated_at": seconds_or_none(assigned.role, "updated_at"),
        "created_by": None,
        "created_by_user_obj": None,
        "metadata": {},
    }


def _project_id(asked: Asked) -> str:
    return asked.path.get("project_id", "")


def _principal(asked: Asked) -> pb.Principal:
    if "group_id" in asked.path:
        return pb.Principal(group_id=asked.path["group_id"])
    return pb.Principal(user_id=asked.path["user_id"])


def _kind(asked: Asked) -> str:
    return "group" if "group_id" in asked.path else "user"


def _create(asked: Asked) -> pb.CreateRoleRequest:
    return pb.CreateRoleRequest(
        project_id=_project_id(asked),
        name=asked.text("role_name"),
        description=asked.text_or("description") or "",
        permissions=asked.texts("permissions"),
    )


def _update(asked: Asked) -> pb.UpdateRoleRequest:
    permissions = asked.texts("permissions")
    return pb.UpdateRoleRequest(
        project_id=_project_id(asked),
        id=asked.path["role_id"],
        name=asked.text_or("role_name"),
        description=asked.text_or("description"),
        permissions=None if permissions is None else pb.RolePermissions(names=permissions),
    )


def _assigned(answer: pb.AssignRoleResponse, _asked: Asked) -> Json:
    """The role with its new holder."""
    role = role_json(answer.role)
    if answer.HasField("group"):
        group = {**group_json(answer.group), "scim_managed": False}
        return {"object": "group.role", "role": role, "group": group}
    return {"object": "user.role", "role": role, "user": user_json(answer.user)}


def _role_routes(place: str) -> tuple[AnyRoute, ...]:
    return (
        Route(
            name="roles.list",
            method="GET",
            path=f"{place}/roles",
            rpc=f"{_SERVICE}/ListRoles",
            request=lambda asked: pb.ListRolesRequest(
                project_id=_project_id(asked), page=asked.page(1000)
            ),
            response=pb.ListRolesResponse,
            answer=lambda answer, _: chained(
                [role_json(role) for role in answer.roles], has_more=answer.has_more
            ),
        ),
        Route(
            name="roles.create",
            method="POST",
            path=f"{place}/roles",
            rpc=f"{_SERVICE}/CreateRole",
            request=_create,
            response=pb.CreateRoleResponse,
            answer=lambda answer, _: role_json(answer.role),
        ),
        Route(
            name="roles.get",
            method="GET",
            path=f"{place}/roles/{{role_id}}",
            rpc=f"{_SERVICE}/GetRole",
            request=lambda asked: pb.GetRoleRequest(
                project_id=_project_id(asked), id=asked.path["role_id"]
            ),
            response=pb.GetRoleResponse,
            answer=lambda answer, _: role_json(answer.role),
        ),
        Route(
            name="roles.update",
            method="POST",
            path=f"{place}/roles/{{role_id}}",
            rpc=f"{_SERVICE}/UpdateRole",
            request=_update,
            response=pb.UpdateRoleResponse,
            answer=lambda answer, _: role_json(answer.role),
        ),
        Route(
            name="roles.delete",
            method="DELETE",
            path=f"{place}/roles/{{role_id}}",
            rpc=f"{_SERVICE}/DeleteRole",
            request=lambda asked: pb.DeleteRoleRequest(
                project_id=_project_id(asked), id=asked.path["role_id"]
            ),
            response=pb.DeleteRoleResponse,
            answer=lambda answer, _: deleted("role.deleted", answer.id),
        ),
    )


def _assignment_routes(holder: str) -> tuple[AnyRoute, ...]:
    return (
        Route(
            name="roles.assigned.list",
            method="GET",
            path=f"{holder}/roles",
            rpc=f"{_SERVICE}/ListAssignedRoles",
            request=lambda asked: pb.ListAssignedRolesRequest(
                project_id=_project_id(asked), principal=_principal(asked), page=asked.page(1000)
            ),
            response=pb.ListAssignedRolesResponse,
            answer=lambda answer, _: chained(
                [assigned_json(assigned) for assigned in answer.assigned],
                has_more=answer.has_more,
            ),
        ),
        Route(
            name="roles.assigned.assign",
            method="POST",
            path=f"{holder}/roles",
            rpc=f"{_SERVICE}/AssignRole",
            request=lambda asked: pb.AssignRoleRequest(
                project_id=_project_id(asked),
                principal=_principal(asked),
                role_id=asked.text("role_id"),
            ),
            response=pb.AssignRoleResponse,
            answer=_assigned,
        ),
        Route(
            name="roles.assigned.get",
            method="GET",
            path=f"{holder}/roles/{{role_id}}",
            rpc=f"{_SERVICE}/GetAssignedRole",
            request=lambda asked: pb.GetAssignedRoleRequest(
                project_id=_project_id(asked),
                principal=_principal(asked),
                role_id=asked.path["role_id"],
            ),
            response=pb.GetAssignedRoleResponse,
            answer=lambda answer, _: assigned_json(answer.assigned),
        ),
        Route(
            name="roles.assigned.unassign",
            method="DELETE",
            path=f"{holder}/roles/{{role_id}}",
            rpc=f"{_SERVICE}/UnassignRole",
            request=lambda asked: pb.UnassignRoleRequest(
                project_id=_project_id(asked),
                principal=_principal(asked),
                role_id=asked.path["role_id"],
            ),
            response=pb.UnassignRoleResponse,
            answer=lambda _answer, asked: {
                "object": f"{_kind(asked)}.role.deleted",
                "deleted": True,
            },
        ),
    )


ROUTES: Final[tuple[AnyRoute, ...]] = (
    *(route for place in (ORGANIZATION, PROJECT) for route in _role_routes(place)),
    *(
        route
        for place in (ORGANIZATION, PROJECT)
        for holder in ("users/{user_id}", "groups/{group_id}")
        for route in _assignment_routes(f"{place}/{holder}")
    ),
)
