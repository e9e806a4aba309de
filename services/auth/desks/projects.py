"""Projects: what keys belong to."""

# ruff: noqa: N802 - methods are named as the contract names them

from dataclasses import replace
from typing import Final

from onegate.auth.v1 import project_service_pb2 as pb
from onegate.auth.v1 import project_service_pb2_grpc
from services.auth import key_rows, keys
from services.auth.administration import Administration, Context, Deed, refused
from services.auth.desks import paging
from services.auth.records import Listing, Page, ProjectDraft, ProjectRecord

# https://platform.openai.com/docs/api-reference/projects/create
RESIDENCIES: Final = frozenset(
    {"GLOBAL", "JP_STORAGE", "KR_STORAGE", "CA_STORAGE", "SG_STORAGE", "IN_STORAGE", "AU_STORAGE"}
    | {"GB_STORAGE", "AE_STORAGE"}
    | {f"{region}_STORAGE_PROCESSING" for region in ("US", "EU", "JP", "IN", "AU", "AE")}
)


class ProjectService(project_service_pb2_grpc.ProjectServiceServicer):
    """Administers projects."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def CreateProject(
        self, request: pb.CreateProjectRequest, context: Context
    ) -> pb.CreateProjectResponse:
        """Makes a project."""

        def work(deed: Deed) -> ProjectRecord:
            deed.allow("projects.create")
            if request.residency and request.residency not in RESIDENCIES:
                raise refused("residency", f"must be one of {', '.join(sorted(RESIDENCIES))}")
            draft = ProjectDraft(
                organization_id=deed.organization_id,
                id=deed.new_id("proj"),
                name=keys.checked_name(request.name),
                now=deed.now,
                residency=request.residency,
            )
            project = key_rows.add_project(deed.session, draft)
            deed.scope = project.organization_id
            deed.note(project.id, None, project, project.id)
            return project

        project = await self._administration.change(context, work)
        return pb.CreateProjectResponse(project=keys.project_message(project))

    async def ListProjects(
        self, request: pb.ListProjectsRequest, context: Context
    ) -> pb.ListProjectsResponse:
        """Projects that the caller may see."""

        def work(deed: Deed) -> Listing[ProjectRecord]:
            where = key_rows.within(deed.scope)
            own = [p for p in deed.rights.projects if deed.rights.may("projects.list", p)]
            if own and not deed.rights.may("projects.list"):
                deed.allow("projects.list", own[0])
                where["id"] = own
            else:
                deed.allow("projects.list")
            if not request.include_archived:
                where["archived_at"] = None
            page = _page(deed, request)
            return key_rows.listed(deed.session, ProjectRecord, where, page)

        listing = await self._administration.read(context, work)
        return pb.ListProjectsResponse(
            projects=map(keys.project_message, listing.rows),
            next_page_token=paging.page_token(listing.next_before),
        )

    async def GetProject(
        self, request: pb.GetProjectRequest, context: Context
    ) -> pb.GetProjectResponse:
        """One project by id."""
        project = await self._administration.read(
            context, lambda deed: deed.project("projects.get", request.id)
        )
        return pb.GetProjectResponse(project=keys.project_message(project))

    async def UpdateProject(
        self, request: pb.UpdateProjectRequest, context: Context
    ) -> pb.UpdateProjectResponse:
        """Changes a project's name."""

        def work(deed: Deed) -> ProjectRecord:
            project = deed.active_project("projects.update", request.id)
            if not request.HasField("name"):
                return project
            # No key's rights change with a name: no new version, nobody is told.
            renamed = replace(project, name=keys.checked_name(request.name))
            deed.session.replace(renamed)
            deed.note(project.id, project, renamed, project.id)
            return renamed

        project = await self._administration.change(context, work)
        return pb.UpdateProjectResponse(project=keys.project_message(project))

    async def ArchiveProject(
        self, request: pb.ArchiveProjectRequest, context: Context
    ) -> pb.ArchiveProjectResponse:
        """Ends a project and its keys; one that has ended stays as it is."""

        def work(deed: Deed) -> ProjectRecord:
            project = deed.project("projects.archive", request.id)
            if project.archived_at is not None:
                return project
            ended = replace(project, archived_at=deed.now)
            kept = key_rows.keep_project(deed.session, ended, now=deed.now)
            deed.note(project.id, project, kept, project.id)
            return kept

        project = await self._administration.change(context, work)
        return pb.ArchiveProjectResponse(project=keys.project_message(project))


def _page(deed: Deed, request: pb.ListProjectsRequest) -> Page:
    token = request.page_token
    if request.after:
        # Projects stay: whoever has seen one can go on after it.
        where = {"id": request.after, **key_rows.within(deed.scope)}
        seen = deed.session.find(ProjectRecord, where)
        token = str(deed.session.position(ProjectRecord, seen.id)) if seen else ""
        if not token:
            raise refused("after", "must be the id of a project that was listed before")
    return paging.page(request.page_size, token, ascending=request.ascending)
