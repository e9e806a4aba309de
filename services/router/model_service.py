"""Says which models a key may call: the catalogue, seen through the key's grant."""

from typing import Any, Final

import grpc

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from onegate.router.v1 import model_service_pb2, model_service_pb2_grpc
from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.patterns import allows
from runtime.rpc_server import metadata_of
from services.router.admission import listing_refusal
from services.router.catalog import Catalog
from services.router.chat_call import bearer_of
from services.router.parts import Grants

PAGE_MAX: Final = 10_000
"""How many models one page can have."""

Context = grpc.aio.ServicerContext[Any, Any]


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """``onegate.router.v1.ModelService``."""

    def __init__(self, catalog: Catalog, grants: Grants, clock: Clock) -> None:
        self._catalog = catalog
        self._grants = grants
        self._clock = clock

    async def ListModels(  # noqa: N802 - the generated name
        self, request: model_service_pb2.ListModelsRequest, context: Context
    ) -> model_service_pb2.ListModelsResponse:
        """The models that the caller's key may call, by id."""
        grant = await self._grant(context)
        found = [model for model in self._models(grant) if model.id > request.page_token]
        found.sort(key=lambda model: model.id)
        size = min(request.page_size or PAGE_MAX, PAGE_MAX)
        page = found[: max(size, 1)]
        return model_service_pb2.ListModelsResponse(
            models=page, next_page_token=page[-1].id if len(page) < len(found) else ""
        )

    async def GetModel(  # noqa: N802 - the generated name
        self, request: model_service_pb2.GetModelRequest, context: Context
    ) -> model_service_pb2.GetModelResponse:
        """One model by id or unambiguous name; MODEL_NOT_FOUND also when the key may not see it."""
        grant = await self._grant(context)
        deployment = self._catalog.resolve(request.id)
        if not allows(grant.models_allowed, grant.models_denied, deployment.id):
            raise GatewayError(
                error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
                f"There is no model {request.id!r} for this key; see GET /v1/models.",
                param="model",
            )
        return model_service_pb2.GetModelResponse(model=self._catalog.model(deployment))

    async def _grant(self, context: Context) -> grant_pb2.Grant:
        grant = await self._grants.get(bearer_of(metadata_of(context)))
        objection = listing_refusal(grant, self._clock.now().timestamp())
        if objection is not None:
            raise objection
        return grant

    def _models(self, grant: grant_pb2.Grant) -> list[model_service_pb2.Model]:
        allowed, denied = tuple(grant.models_allowed), tuple(grant.models_denied)
        return list(self._catalog.models(lambda model: allows(allowed, denied, model)))
