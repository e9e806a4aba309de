"""Who may see and set spend limits and alerts, which lie in usage."""

# ruff: noqa: N802 - methods are named as the contract names them

from dataclasses import dataclass
from typing import Final

from onegate.auth.v1 import spending_access_service_pb2 as pb
from onegate.auth.v1 import spending_access_service_pb2_grpc
from onegate.common.v1 import error_pb2
from onegate.common.v1.access_pass_pb2 import AccessPass
from runtime.errors import GatewayError
from runtime.passes import SPENDING
from services.auth.administration import Administration, Context, Deed

_KINDS: Final = {pb.SPENDING_KIND_LIMIT: "spend_limit", pb.SPENDING_KIND_ALERT: "spend_alerts"}
_ACTIONS: Final = {
    pb.SPENDING_ACTION_GET: "get",
    pb.SPENDING_ACTION_LIST: "list",
    pb.SPENDING_ACTION_CREATE: "create",
    pb.SPENDING_ACTION_UPDATE: "update",
    pb.SPENDING_ACTION_DELETE: "delete",
}
_READS: Final = frozenset({pb.SPENDING_ACTION_GET, pb.SPENDING_ACTION_LIST})


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendingChange:
    """What the log says of a change. ``amount_nano_usd`` is the new limit or threshold."""

    kind: str
    project_id: str
    amount_nano_usd: int
    recipients: tuple[str, ...]


class SpendingAccessService(spending_access_service_pb2_grpc.SpendingAccessServiceServicer):
    """Answers the edge, which asks in its caller's name."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def AuthorizeSpending(
        self, request: pb.AuthorizeSpendingRequest, context: Context
    ) -> pb.AuthorizeSpendingResponse:
        """A pass for one act."""
        operation = _operation(request)
        reads = request.action in _READS

        def work(deed: Deed) -> AccessPass:
            if request.project_id:
                deed.project(operation, request.project_id)
            else:
                deed.allow(operation)
            if not reads:
                _note(deed, request)
            return AccessPass(
                organization_id=deed.organization_id,
                whole=not request.project_id,
                project_ids=[request.project_id] if request.project_id else [],
                writes=not reads,
                purpose=SPENDING,
            )

        do = self._administration.read if reads else self._administration.change
        access = await do(context, work)
        organization_id = access.organization_id
        return pb.AuthorizeSpendingResponse(
            sealed_pass=self._administration.seal(access), organization_id=organization_id
        )


def _operation(request: pb.AuthorizeSpendingRequest) -> str:
    kind, action = _KINDS.get(request.kind), _ACTIONS.get(request.action)
    if kind is None or action is None:
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_REQUEST, "`kind` and `action` must be set."
        )
    return f"{'projects.' if request.project_id else ''}{kind}.{action}"


def _note(deed: Deed, request: pb.AuthorizeSpendingRequest) -> None:
    change = SpendingChange(
        kind=_KINDS[request.kind],
        project_id=request.project_id,
        amount_nano_usd=request.amount_nano_usd,
        recipients=tuple(request.recipients),
    )
    resource = request.alert_id or request.project_id or deed.organization_id
    ends = request.action == pb.SPENDING_ACTION_DELETE
    deed.note(resource, change if ends else None, None if ends else change, request.project_id)
