"""Whose usage an administrator may see.

Who may see an organisation's usage may ask for any of its projects, also for ids that are none:
nothing was used there. Who may see only some projects' must say which.
"""

# ruff: noqa: N802 - methods are named as the contract names them

from collections.abc import Sequence
from typing import Final

from onegate.auth.v1 import usage_access_service_pb2 as pb
from onegate.auth.v1 import usage_access_service_pb2_grpc
from onegate.common.v1 import error_pb2
from onegate.common.v1.access_pass_pb2 import AccessPass
from runtime.errors import GatewayError
from runtime.passes import REPORTS
from services.auth.administration import Administration, Context, Deed
from services.auth.records import KeyRecord, Slice

OPERATION: Final = "usage.read"
IDS_MAX: Final = 100
"""How many projects or users one question may name."""

KEYS_MAX: Final = 50_000
"""Of how many keys one answer says whose they are."""


class UsageAccessService(usage_access_service_pb2_grpc.UsageAccessServiceServicer):
    """Answers the edge, which asks in its caller's name."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def AuthorizeUsage(
        self, request: pb.AuthorizeUsageRequest, context: Context
    ) -> pb.AuthorizeUsageResponse:
        """What the caller may see of what it asks for."""
        _check_count("project_ids", request.project_ids)
        _check_count("user_ids", request.user_ids)

        def work(deed: Deed) -> pb.AuthorizeUsageResponse:
            whole = deed.rights.may(OPERATION)
            if whole or not request.project_ids:
                deed.allow(OPERATION)
            else:
                for project_id in request.project_ids:
                    deed.project(OPERATION, project_id)
            access = AccessPass(
                organization_id=deed.organization_id,
                whole=whole,
                project_ids=request.project_ids,
                purpose=REPORTS,
            )
            return pb.AuthorizeUsageResponse(
                sealed_pass=self._administration.seal(access),
                organization_id=deed.organization_id,
                whole=whole,
                project_ids=request.project_ids,
                keys=_keys(deed, request),
            )

        return await self._administration.read(context, work)


def _keys(deed: Deed, request: pb.AuthorizeUsageRequest) -> list[pb.KeyUser]:
    if not request.owners and not request.user_ids:
        return []
    where: dict[str, object] = {"organization_id": deed.organization_id}
    if request.user_ids:
        where["principal_id"] = sorted(set(request.user_ids))
    found = deed.session.select(KeyRecord, where, Slice(size=KEYS_MAX + 1))
    if len(found) > KEYS_MAX:
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            f"There are more than {KEYS_MAX:,} keys to tell apart: name `user_ids`.",
            param="user_ids",
        )
    return [pb.KeyUser(key_id=key.id, user_id=key.principal_id) for key in found]


def _check_count(name: str, ids: Sequence[str]) -> None:
    if len(ids) > IDS_MAX:
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            f"`{name}` may name at most {IDS_MAX}.",
            param=name,
        )
