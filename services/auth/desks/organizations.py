"""Organisations: for the operator of the gateway alone."""

# ruff: noqa: N802 - methods are named as the contract names them

from onegate.auth.v1 import grant_pb2, organization_service_pb2_grpc
from onegate.auth.v1 import organization_service_pb2 as pb
from services.auth import key_rows, keys
from services.auth.administration import Administration, Context, Deed
from services.auth.bootstrap import FIRST_NAME
from services.auth.desks import paging
from services.auth.policy import Policy
from services.auth.records import Founding, NewKey, OrganizationRecord


class OrganizationService(organization_service_pb2_grpc.OrganizationServiceServicer):
    """Administers organisations."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def CreateOrganization(
        self, request: pb.CreateOrganizationRequest, context: Context
    ) -> pb.CreateOrganizationResponse:
        """Makes an organisation with a project and an admin key that owns it."""

        def work(deed: Deed) -> pb.CreateOrganizationResponse:
            deed.allow("organizations.create")
            name = keys.checked_name(request.name)
            deed.scope = deed.new_id("org")
            secret, draft = deed.mint(
                NewKey(
                    name=FIRST_NAME,
                    kind=grant_pb2.KEY_KIND_ADMIN,
                    project_id="",
                    expires_in_s=None,
                    policy=Policy(),
                    request_id="",
                )
            )
            founding = Founding(
                organization_id=deed.scope,
                project_id=deed.new_id("proj"),
                name=name,
                keys=(draft,),
                now=deed.now,
            )
            made = key_rows.add_organization(deed.session, founding)
            deed.note(made.id, None, made)
            return pb.CreateOrganizationResponse(
                organization=_message(made), project_id=founding.project_id, admin_key=secret
            )

        return await self._administration.change(context, work)

    async def ListOrganizations(
        self, request: pb.ListOrganizationsRequest, context: Context
    ) -> pb.ListOrganizationsResponse:
        """Organisations."""
        part = paging.part(request.page)

        def work(deed: Deed) -> list[OrganizationRecord]:
            deed.allow("organizations.list")
            return deed.session.select(OrganizationRecord, {}, part)

        rows, has_more = paging.split(await self._administration.read(context, work), part)
        return pb.ListOrganizationsResponse(organizations=map(_message, rows), has_more=has_more)


def _message(organization: OrganizationRecord) -> pb.Organization:
    return pb.Organization(
        id=organization.id,
        name=organization.name,
        created_at=keys.timestamp(organization.created_at),
    )
