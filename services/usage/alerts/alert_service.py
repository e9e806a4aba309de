"""Alerts over gRPC."""

# ruff: noqa: N802 - methods are named as the contract names them

from typing import Any, TypeAlias

import grpc

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import alert_service_pb2 as pb
from onegate.usage.v1 import alert_service_pb2_grpc
from runtime.clock import Clock, Entropy, uuid7
from runtime.errors import GatewayError
from runtime.rpc import require_operator
from runtime.secrets import Secret
from services.usage.alerts.alert_rows import WEBHOOK
from services.usage.alerts.alert_sender import Ways
from services.usage.alerts.alert_store import AlertStore
from services.usage.reports import queries

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class AlertService(alert_service_pb2_grpc.AlertServiceServicer):
    """Lets operators see what was told, and try whether it arrives."""

    def __init__(
        self,
        store: AlertStore,
        ways: Ways,
        operator_token: Secret,
        chance: tuple[Clock, Entropy],
    ) -> None:
        self._store = store
        self._ways = ways
        self._operator_token = operator_token
        self._clock, self._entropy = chance

    async def ListAlerts(
        self, request: pb.ListAlertsRequest, context: Context
    ) -> pb.ListAlertsResponse:
        """The latest messages."""
        require_operator(context, self._operator_token.reveal())
        count = queries.page_size_of(request.count_max)
        return pb.ListAlertsResponse(alerts=await self._store.latest(request.state, count))

    async def TestAlert(
        self, request: pb.TestAlertRequest, context: Context
    ) -> pb.TestAlertResponse:
        """Puts a trial into the outbox."""
        require_operator(context, self._operator_token.reveal())
        targets = [WEBHOOK] if self._ways.webhook is not None else []
        if request.recipients and self._ways.mail is None:
            raise _invalid("No mail is sent from here: set alerts.smtp_host.")
        if len(request.recipients) > 50 or not all(
            "@" in one and one.isprintable() and len(one) <= 320 for one in request.recipients
        ):
            raise _invalid("`recipients` must be at most 50 e-mail addresses.")
        targets += request.recipients
        if not targets:
            raise _invalid("Nobody is told: set alerts.webhook_url, or name a recipient.")
        name = uuid7(int(self._clock.now().timestamp() * 1000), self._entropy)
        return pb.TestAlertResponse(ids=await self._store.put_trial(name, targets))


def _invalid(what: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, what)
