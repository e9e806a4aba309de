"""Says which models a key may call: the catalogue, seen through the key's grant."""

from collections.abc import Callable
from typing import Any, Final

import grpc

from onegate.common.v1 import error_pb2
from onegate.router.v1 import model_service_pb2, model_service_pb2_grpc
from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.patterns import allows
from runtime.rpc import OPERATOR_KEY, require_operator
from runtime.rpc_server import metadata_of
from services.router.chat_call import bearer_of
from services.router.limits.admission import listing_refusal
from services.router.models.catalog import Catalog
from services.router.parts import Grants
from services.router.routing.data_rules import FREE, DataHandling, call_data
from services.router.routing.data_rules import objection as data_objection

PAGE_MAX: Final = 10_000
"""How many models one page can have."""

_MODELS_AT_ONCE: Final = 50

_Shown = tuple[Callable[[str], bool], Callable[[DataHandling], bool]]
Context = grpc.aio.ServicerContext[Any, Any]


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """``onegate.router.v1.ModelService``.

    Args:
        catalog: all models.
        grants: who a key is.
        clock: for keys that expire.
        operator_token: the operator's token; empty where this process has none.
    """

    def __init__(
        self, catalog: Catalog, grants: Grants, clock: Clock, operator_token: Callable[[], str]
    ) -> None:
        self._catalog = catalog
        self._grants = grants
        self._clock = clock
        self._operator_token = operator_token

    async def ListModels(  # noqa: N802 - the generated name
        self, request: model_service_pb2.ListModelsRequest, context: Context
    ) -> model_service_pb2.ListModelsResponse:
        """The models that the caller's key may call, by id; all of them for the operator."""
        shown, fits = await self._shown(context)
        found: list[model_service_pb2.Model] = []
        for number, model in enumerate(self._catalog.models(shown, fits)):
            if model.id > request.page_token:
                found.append(model)
            if number % _MODELS_AT_ONCE == 0:
                # A thousand models take 30 ms; no stream shall wait for that.
                await self._clock.sleep(0)
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
        shown, fits = await self._shown(context)
        deployment = self._catalog.resolve(request.id)
        if not (shown(deployment.id) and fits(deployment.data)):
            raise GatewayError(
                error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
                f"There is no model {request.id!r} for this key; see GET /v1/models.",
                param="model",
            )
        return model_service_pb2.GetModelResponse(model=self._catalog.model(deployment))

    async def _shown(self, context: Context) -> _Shown:
        """Which models the caller may see, by id and by what becomes of data there: those that no
        call of its key can ever reach are hidden.

        Raises INVALID_API_KEY, KEY_EXPIRED, SCOPE_MISSING.
        """
        metadata = metadata_of(context)
        if OPERATOR_KEY in metadata:
            require_operator(metadata, self._operator_token())
            return _everything, _everything
        grant = await self._grants.get(bearer_of(metadata))
        objection = listing_refusal(grant, self._clock.now().timestamp())
        if objection is not None:
            raise objection
        allowed, denied = tuple(grant.models_allowed), tuple(grant.models_denied)
        data = call_data(grant, "", None)
        return (
            lambda model: allows(allowed, denied, model),
            lambda handling: data is FREE or data_objection("", handling, data) is None,
        )


def _everything(_: object) -> bool:
    return True
