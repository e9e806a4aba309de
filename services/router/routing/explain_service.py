"""Says what would happen to a call: the same handler as for calls, told to make none."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import grpc

from onegate.auth.v1 import grant_pb2, key_service_pb2, key_service_pb2_grpc
from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2, chat_service_pb2, explain_service_pb2, plan_pb2
from onegate.router.v1.explain_service_pb2_grpc import ExplainServiceServicer
from runtime.errors import GatewayError
from runtime.rpc import OPERATOR_KEY, unary
from runtime.rpc_server import metadata_of
from services.router.chat_call import ChatCall
from services.router.parts import OneGrant, Parts

GRANT_TIMEOUT_S: Final = 5.0
"""How long auth may take to say what a key may do, in seconds."""

_AUTHORIZATION: Final = "authorization"
_CREDENTIALS: Final = (OPERATOR_KEY, _AUTHORIZATION)
_METHOD: Final = "/onegate.router.v1.ExplainService/ExplainChat"

Context = grpc.aio.ServicerContext[Any, Any]


class ExplainService(ExplainServiceServicer):
    """``onegate.router.v1.ExplainService``.

    Args:
        parts: of the router.
        keys: auth's own administration, which decides who may ask about which key.
    """

    def __init__(self, parts: Parts, keys: key_service_pb2_grpc.KeyServiceStub) -> None:
        self._parts = parts
        self._keys = keys

    async def ExplainChat(  # noqa: N802 - the generated name
        self, request: explain_service_pb2.ExplainChatRequest, context: Context
    ) -> explain_service_pb2.ExplainChatResponse:
        """The plan of a chat call. Raises what auth raises for the credentials and the key."""
        if request.request.HasField("native"):
            raise GatewayError(
                error_pb2.ERROR_REASON_INVALID_REQUEST,
                "Send the call typed, without `native`.",
                param="request.native",
            )
        asked = chat_pb2.ChatRequest()
        asked.CopyFrom(request.request)
        asked.context.dry_run = True
        metadata, parts = metadata_of(context), self._parts
        call = _UnmadeCall(asked.SerializeToString(), metadata)
        if request.key_id:
            grant = await self._grant(request.key_id, metadata)
            parts = replace(parts, grants=OneGrant(grant))
            call.metadata = {_AUTHORIZATION: f"Bearer {request.key_id}"}
        # Auth has checked the operator's token by now, where it is what was presented.
        tells_all = bool(request.key_id) and OPERATOR_KEY in metadata
        await ChatCall(parts, call, tells_all=tells_all).run()
        return explain_service_pb2.ExplainChatResponse(plan=call.plan)

    async def _grant(self, key_id: str, metadata: Mapping[str, str]) -> grant_pb2.Grant:
        presented = [(name, metadata[name]) for name in _CREDENTIALS if name in metadata]
        answer = await unary(
            self._keys.GetKeyGrant,
            key_service_pb2.GetKeyGrantRequest(id=key_id),
            timeout_s=GRANT_TIMEOUT_S,
            metadata=presented,
            away=error_pb2.ERROR_REASON_AUTH_UNAVAILABLE,
        )
        return answer.grant


@dataclass(slots=True)
class _UnmadeCall:
    """A call of which only the plan is wanted."""

    request: bytes
    metadata: Mapping[str, str]
    method: str = _METHOD
    timeout_s: float | None = None
    plan: plan_pb2.Plan = field(default_factory=plan_pb2.Plan)
    send_now: None = None

    async def send(self, payload: bytes) -> None:
        for event in chat_service_pb2.ChatResponse.FromString(payload).events:
            self.plan.MergeFrom(event.plan)

    async def receive(self) -> bytes:
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_REQUEST, "There is no more to this request."
        )
