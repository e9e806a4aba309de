"""Projects in OpenAI's shape (https://platform.openai.com/docs/api-reference/projects). Pure."""

from typing import Final

from edge.admin.asked import Asked, refused
from edge.admin.route import AnyRoute, Json, Route, listed, seconds, seconds_or_none
from onegate.auth.v1 import project_service_pb2 as pb

PROJECTS: Final = "/v1/organization/projects"
PROJECT: Final = f"{PROJECTS}/{{project_id}}"


def project_json(project: pb.Project) -> Json:
    """One project."""
    archived_at = seconds_or_none(project, "archived_at")
    return {
        "id": project.id,
        "object": "organization.project",
        "name": project.name,
        "created_at": seconds(project.created_at),
        "archived_at": archived_at,
        "status": "active" if archived_at is None else "archived",
        "residency": project.residency or None,
    }


def _create(asked: Asked) -> pb.CreateProjectRequest:
    _check_no_geography(asked)
    return pb.CreateProjectRequest(
        name=asked.text("name"), residency=asked.text_or("residency") or ""
    )


def _update(asked: Asked) -> pb.UpdateProjectRequest:
    _check_no_geography(asked)
    return pb.UpdateProjectRequest(id=asked.path["project_id"], name=asked.text_or("name"))


def _check_no_geography(asked: Asked) -> None:
    """What the gateway cannot keep it does not take silently."""
    if asked.has("geography"):
        raise refused("geography", "is deprecated: use `residency` when the project is made")
    if asked.has("external_key_id"):
        raise refused("external_key_id", "is not known here: there are no external keys")


def _list(asked: Asked) -> pb.ListProjectsRequest:
    page = asked.page(20)
    return pb.ListProjectsRequest(
        page_size=page.size,
        after=page.after,
        ascending=page.ascending,
        include_archived=asked.filter_flag("include_archived"),
    )


def _listed(answer: pb.ListProjectsResponse, _asked: Asked) -> Json:
    data = [project_json(project) for project in answer.projects]
    return listed(data, has_more=bool(answer.next_page_token))


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        name="projects.list",
        method="GET",
        path=PROJECTS,
        rpc="ProjectService/ListProjects",
        request=_list,
        response=pb.ListProjectsResponse,
        answer=_listed,
    ),
    Route(
        name="projects.create",
        method="POST",
        path=PROJECTS,
        rpc="ProjectService/CreateProject",
        request=_create,
        response=pb.CreateProjectResponse,
        answer=lambda answer, _: project_json(answer.project),
    ),
    Route(
        name="projects.get",
        method="GET",
        path=PROJECT,
        rpc="ProjectService/GetProject",
        request=lambda asked: pb.GetProjectRequest(id=asked.path["project_id"]),
        response=pb.GetProjectResponse,
        answer=lambda answer, _: project_json(answer.project),
    ),
    Route(
        name="projects.update",
        method="POST",
        path=PROJECT,
        rpc="ProjectService/UpdateProject",
        request=_update,
        response=pb.UpdateProjectResponse,
        answer=lambda answer, _: project_json(answer.project),
    ),
    Route(
        name="projects.archive",
        method="POST",
        path=f"{PROJECT}/archive",
        rpc="ProjectService/ArchiveProject",
        request=lambda asked: pb.ArchiveProjectRequest(id=asked.path["project_id"]),
        response=pb.ArchiveProjectResponse,
        answer=lambda answer, _: project_json(answer.project),
    ),
)
