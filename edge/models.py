"""The models that a key may call, asked of a router: plain gRPC, whichever router answers."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import grpc

from edge.calls import Call
from edge.dispatch import common_headers
from edge.endpoints.models import model_body, models_body
from edge.http import Response
from onegate.common.v1 import error_pb2
from onegate.router.v1 import model_service_pb2, model_service_pb2_grpc
from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.rpc import unary

TIMEOUT_S: Final = 5.0
PAGES_MAX: Final = 100
"""A catalogue that is longer than so many pages is a defect of a router."""

_Metadata: TypeAlias = Sequence[tuple[str, str]]
_Ask: TypeAlias = Callable[
    [model_service_pb2_grpc.ModelServiceStub, str, _Metadata], Awaitable[bytes]
]


class ModelEndpoints:
    """``GET /v1/models`` and ``GET /v1/models/{id}``."""

    def __init__(self, channels: Sequence[grpc.aio.Channel], clock: Clock) -> None:
        self._stubs = [model_service_pb2_grpc.ModelServiceStub(channel) for channel in channels]
        self._clock = clock
        self._turn = 0

    async def list(self, call: Call) -> Response:
        """All models of the key."""
        return await self._first(call, _listed)

    async def get(self, call: Call) -> Response:
        """One model, by id, alias or unambiguous name."""
        return await self._first(call, _got)

    async def _first(self, call: Call, ask: _Ask) -> Response:
        """The first router's answer; the next one is asked only when a router is away."""
        self._turn += 1
        metadata = [("authorization", f"Bearer {call.key}")]
        error = GatewayError(
            error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE,
            "No router is configured; set edge.routers.",
        )
        for offset in range(len(self._stubs)):
            stub = self._stubs[(self._turn + offset) % len(self._stubs)]
            try:
                body = await ask(stub, call.argument, metadata)
            except GatewayError as failure:
                if failure.reason != error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE:
                    raise
                error = failure
                continue
            elapsed_s = self._clock.monotonic() - call.request.received_s
            return Response(200, common_headers(call.request_id, elapsed_s), body)
        raise error


async def _listed(
    stub: model_service_pb2_grpc.ModelServiceStub, _argument: str, metadata: _Metadata
) -> bytes:
    models: list[model_service_pb2.Model] = []
    page = model_service_pb2.ListModelsRequest()
    for _ in range(PAGES_MAX):
        listed = await unary(stub.ListModels, page, timeout_s=TIMEOUT_S, metadata=metadata)
        models += listed.models
        if not listed.next_page_token:
            break
        page = model_service_pb2.ListModelsRequest(page_token=listed.next_page_token)
    return models_body(models)


async def _got(
    stub: model_service_pb2_grpc.ModelServiceStub, argument: str, metadata: _Metadata
) -> bytes:
    request = model_service_pb2.GetModelRequest(id=argument)
    got = await unary(stub.GetModel, request, timeout_s=TIMEOUT_S, metadata=metadata)
    return model_body(got.model)
