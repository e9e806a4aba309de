"""Service accounts: whose keys programs use."""

# ruff: noqa: N802 - methods are named as the contract names them

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from onegate.auth.v1 import grant_pb2, key_service_pb2, service_account_service_pb2_grpc
from onegate.auth.v1 import service_account_service_pb2 as pb
from services.auth import key_rows, keys
from services.auth.administration import Administration, Context, Deed, missing, refused
from services.auth.desks import paging
from services.auth.desks.key_messages import shown
from services.auth.desks.keys import end_key, make_key
from services.auth.objects import ServiceAccountRecord
from services.auth.records import NewKey

ROLES: Final = ("owner", "member")


class ServiceAccountService(service_account_service_pb2_grpc.ServiceAccountServiceServicer):
    """Administers service accounts. Their keys call models; none administers."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def CreateServiceAccount(
        self, request: pb.CreateServiceAccountRequest, context: Context
    ) -> pb.CreateServiceAccountResponse:
        """Makes a service account and its first key."""

        def work(deed: Deed) -> pb.CreateServiceAccountResponse:
            project = deed.active_project("service_accounts.create", request.project_id)
            if request.account_only and request.expires_in_seconds:
                raise refused("expires_in_seconds", "must be left out: no key is made")
            account = ServiceAccountRecord(
                id=deed.new_id("svc"),
                organization_id=project.organization_id,
                project_id=project.id,
                name=keys.checked_name(request.name),
                role="none" if request.account_only else "member",
                created_at=deed.now,
            )
            deed.session.insert(account)
            deed.note(account.id, None, account, project.id)
            made = pb.CreateServiceAccountResponse(service_account=_message(account))
            if not request.account_only:
                asked = _asked(account, "", request.expires_in_seconds, ())
                made.value, key, _ = make_key(deed, asked)
                made.key.CopyFrom(shown(deed, [key])[0])
            return made

        return await self._administration.change(context, work)

    async def CreateServiceAccountKey(
        self, request: pb.CreateServiceAccountKeyRequest, context: Context
    ) -> pb.CreateServiceAccountKeyResponse:
        """Makes one more key."""

        def work(deed: Deed) -> pb.CreateServiceAccountKeyResponse:
            operation = "service_accounts.api_keys.create"
            deed.active_project(operation, request.project_id)
            account = _account(deed, operation, request.project_id, request.service_account_id)
            asked = _asked(account, request.name, request.expires_in_seconds, request.scopes)
            secret, key, _ = make_key(deed, asked)
            message = shown(deed, [key])[0]
            return pb.CreateServiceAccountKeyResponse(key=message, value=secret)

        return await self._administration.change(context, work)

    async def GetServiceAccount(
        self, request: pb.GetServiceAccountRequest, context: Context
    ) -> pb.GetServiceAccountResponse:
        """One service account by id."""
        account = await self._administration.read(
            context,
            lambda deed: _account(deed, "service_accounts.get", request.project_id, request.id),
        )
        return pb.GetServiceAccountResponse(service_account=_message(account))

    async def ListServiceAccounts(
        self, request: pb.ListServiceAccountsRequest, context: Context
    ) -> pb.ListServiceAccountsResponse:
        """A project's service accounts."""
        part = paging.part(request.page)

        def work(deed: Deed) -> list[ServiceAccountRecord]:
            project = deed.project("service_accounts.list", request.project_id)
            return deed.session.select(ServiceAccountRecord, {"project_id": project.id}, part)

        rows, has_more = paging.split(await self._administration.read(context, work), part)
        return pb.ListServiceAccountsResponse(
            service_accounts=map(_message, rows), has_more=has_more
        )

    async def UpdateServiceAccount(
        self, request: pb.UpdateServiceAccountRequest, context: Context
    ) -> pb.UpdateServiceAccountResponse:
        """Changes name or role."""

        def work(deed: Deed) -> ServiceAccountRecord:
            operation = "service_accounts.update"
            deed.active_project(operation, request.project_id)
            account = _account(deed, operation, request.project_id, request.id)
            changed = account
            if request.HasField("name"):
                changed = replace(changed, name=keys.checked_name(request.name))
            if request.HasField("role"):
                if request.role not in ROLES:
                    raise refused("role", f"must be {' or '.join(ROLES)}")
                changed = replace(changed, role=request.role)
            if changed != account:
                deed.session.replace(changed)
                deed.note(account.id, account, changed, account.project_id)
            return changed

        account = await self._administration.change(context, work)
        return pb.UpdateServiceAccountResponse(service_account=_message(account))

    async def DeleteServiceAccount(
        self, request: pb.DeleteServiceAccountRequest, context: Context
    ) -> pb.DeleteServiceAccountResponse:
        """Ends a service account and all its keys."""

        def work(deed: Deed) -> str:
            operation = "service_accounts.delete"
            account = _account(deed, operation, request.project_id, request.id)
            deed.session.delete(ServiceAccountRecord, {"id": account.id})
            deed.note(account.id, account, None, account.project_id)
            for key in key_rows.live_keys(deed.session, {"principal_id": account.id}):
                end_key(deed, key)
            return account.id

        return pb.DeleteServiceAccountResponse(id=await self._administration.change(context, work))


def _account(deed: Deed, operation: str, project_id: str, account_id: str) -> ServiceAccountRecord:
    """The service account with which the caller may do this. Raises NOT_FOUND, SCOPE_MISSING."""
    project = deed.project(operation, project_id)
    where = {"id": account_id, "project_id": project.id}
    account = deed.session.find(ServiceAccountRecord, where)
    if account is None:
        raise missing("service account")
    return account


def _asked(
    account: ServiceAccountRecord, name: str, expires_in_s: int, scopes: Iterable[str]
) -> NewKey:
    """A key of the account; raises INVALID_REQUEST."""
    request = key_service_pb2.CreateKeyRequest(
        name=name or account.name,
        project_id=account.project_id,
        expires_in_seconds=expires_in_s,
        scopes=scopes,
        kind=grant_pb2.KEY_KIND_PROJECT,
    )
    return replace(keys.new_key(request), principal_id=account.id)


def _message(account: ServiceAccountRecord) -> pb.ServiceAccount:
    return pb.ServiceAccount(
        id=account.id,
        project_id=account.project_id,
        name=account.name,
        role=account.role,
        created_at=keys.timestamp(account.created_at),
    )
