"""Invites to an organisation."""

# ruff: noqa: N802 - methods are named as the contract names them

from datetime import datetime, timedelta
from typing import Final

from onegate.auth.v1 import invite_service_pb2 as pb
from onegate.auth.v1 import invite_service_pb2_grpc
from services.auth import keys
from services.auth.administration import Administration, Context, Deed, conflict, missing, refused
from services.auth.desks import paging
from services.auth.desks.people import checked_email, checked_role
from services.auth.objects import InviteRecord, UserRecord
from services.auth.permissions import ORGANIZATION_ROLES, PROJECT_ROLES
from services.auth.records import ProjectRecord

VALID: Final = timedelta(days=7)
PROJECTS_MAX: Final = 50


class InviteService(invite_service_pb2_grpc.InviteServiceServicer):
    """Administers invites."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def CreateInvite(
        self, request: pb.CreateInviteRequest, context: Context
    ) -> pb.CreateInviteResponse:
        """Invites an address, with no more than the caller may give."""

        def work(deed: Deed) -> pb.Invite:
            deed.allow("invites.create")
            deed.scope = deed.organization_id
            email = checked_email(request.email)
            where: dict[str, object] = {"organization_id": deed.scope, "email": email}
            if deed.session.find(UserRecord, where) is not None:
                raise conflict(f"{email} is a user of this organisation already.", "email")
            role = ORGANIZATION_ROLES[checked_role(request.role, ORGANIZATION_ROLES, "role")]
            deed.rights.check_gives(role.permissions)
            invite = InviteRecord(
                id=deed.new_id("invite"),
                organization_id=deed.scope,
                email=email,
                role=role.word,
                projects=_projects(deed, request),
                created_at=deed.now,
                expires_at=deed.now + VALID,
                accepted_at=None,
            )
            deed.session.insert(invite)
            deed.note(invite.id, None, invite)
            return _message(invite, deed.now)

        return pb.CreateInviteResponse(invite=await self._administration.change(context, work))

    async def GetInvite(
        self, request: pb.GetInviteRequest, context: Context
    ) -> pb.GetInviteResponse:
        """One invite by id."""

        def work(deed: Deed) -> pb.Invite:
            deed.allow("invites.get")
            return _message(_find(deed, request.id), deed.now)

        return pb.GetInviteResponse(invite=await self._administration.read(context, work))

    async def ListInvites(
        self, request: pb.ListInvitesRequest, context: Context
    ) -> pb.ListInvitesResponse:
        """Invites."""
        part = paging.part(request.page)

        def work(deed: Deed) -> list[pb.Invite]:
            deed.allow("invites.list")
            where: dict[str, object] = {"organization_id": deed.organization_id}
            rows = deed.session.select(InviteRecord, where, part)
            return [_message(invite, deed.now) for invite in rows]

        rows, has_more = paging.split(await self._administration.read(context, work), part)
        return pb.ListInvitesResponse(invites=rows, has_more=has_more)

    async def DeleteInvite(
        self, request: pb.DeleteInviteRequest, context: Context
    ) -> pb.DeleteInviteResponse:
        """Takes an invite back, unless it was accepted."""

        def work(deed: Deed) -> str:
            deed.allow("invites.delete")
            invite = _find(deed, request.id)
            if invite.accepted_at is not None:
                raise conflict("The invite was accepted: take the user out instead.", "id")
            deed.session.delete(InviteRecord, {"id": invite.id})
            deed.note(invite.id, invite, None)
            return invite.id

        return pb.DeleteInviteResponse(id=await self._administration.change(context, work))


def _find(deed: Deed, invite_id: str) -> InviteRecord:
    where: dict[str, object] = {"id": invite_id, "organization_id": deed.organization_id}
    invite = deed.session.find(InviteRecord, where)
    if invite is None:
        raise missing("invite")
    return invite


def _projects(deed: Deed, request: pb.CreateInviteRequest) -> tuple[str, ...]:
    if len(request.projects) > PROJECTS_MAX:
        raise refused("projects", f"must be at most {PROJECTS_MAX}")
    found: dict[str, str] = {}
    for entry in request.projects:
        where: dict[str, object] = {"id": entry.id, "organization_id": deed.organization_id}
        if deed.session.find(ProjectRecord, where) is None:
            raise missing("project", "projects.id")
        role = PROJECT_ROLES[checked_role(entry.role, PROJECT_ROLES, "projects.role")]
        deed.rights.check_gives(role.permissions, entry.id)
        found[entry.id] = role.word
    return tuple(f"{project_id}:{word}" for project_id, word in found.items())


def _message(invite: InviteRecord, now: datetime) -> pb.Invite:
    projects = [entry.partition(":") for entry in invite.projects]
    state = pb.INVITE_STATE_PENDING
    if invite.accepted_at is not None:
        state = pb.INVITE_STATE_ACCEPTED
    elif invite.expires_at <= now:
        state = pb.INVITE_STATE_EXPIRED
    return pb.Invite(
        id=invite.id,
        email=invite.email,
        role=invite.role,
        projects=[pb.InviteProject(id=place, role=word) for place, _, word in projects],
        created_at=keys.timestamp(invite.created_at),
        expires_at=keys.timestamp(invite.expires_at),
        accepted_at=keys.timestamp(invite.accepted_at),
        state=state,
    )
