"""Says which models a key may call: the catalogue and the routes, seen through the key's grant."""

import bisect
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, Final

import grpc

from onegate.common.v1 import error_pb2
from onegate.router.v1 import model_service_pb2, model_service_pb2_grpc
from runtime.errors import GatewayError
from runtime.patterns import allows
from runtime.rpc import OPERATOR_KEY, require_operator
from runtime.rpc_server import metadata_of
from services.router.chat_call import bearer_of
from services.router.credentials.access import open_to
from services.router.limits.admission import listing_refusal
from services.router.models.catalog import Deployment
from services.router.models.routed import routed
from services.router.parts import Parts
from services.router.routing.data_rules import FREE, DataHandling, call_data
from services.router.routing.data_rules import objection as data_objection

PAGE_MAX: Final = 10_000
"""How many models one page can have."""

_MODELS_AT_ONCE: Final = 50

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What a caller may see: by the id of a deployment, and by what becomes of data there."""

    shown: Callable[[str], bool]
    fits: Callable[[DataHandling], bool]

    def __call__(self, deployment: Deployment) -> bool:
        return self.shown(deployment.id) and self.fits(deployment.data)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """``onegate.router.v1.ModelService``.

    Args:
        parts: the catalogue, the routes, who has credentials, who a key is, the clock.
        operator_token: the operator's token; empty where this process has none.
    """

    def __init__(self, parts: Parts, operator_token: Callable[[], str]) -> None:
        self._catalog = parts.catalog
        self._routes = parts.routes
        self._providers = parts.providers
        self._grants = parts.grants
        self._clock = parts.clock
        self._operator_token = operator_token

    async def ListModels(  # noqa: N802 - the generated name
        self, request: model_service_pb2.ListModelsRequest, context: Context
    ) -> model_service_pb2.ListModelsResponse:
        """The models, routes and policies that the caller's key may call, by id; all of them for
        the operator.
        """
        seen = await self._seen(context)
        named = {name: self._routed(name, seen) for name in self._routes.names}
        found = [model for model in named.values() if model is not None]
        for number, model in enumerate(self._catalog.models(seen.shown, seen.fits)):
            # A route takes the place of what it is named like: calls of the name go there.
            if model.id not in named:
                found.append(_without(model, named))
            if number % _MODELS_AT_ONCE == 0:
                # A thousand models take 30 ms; no stream shall wait for that.
                await self._clock.sleep(0)
        found.sort(key=lambda model: model.id)
        start = bisect.bisect_right(found, request.page_token, key=lambda model: model.id)
        size = min(request.page_size or PAGE_MAX, PAGE_MAX)
        page = found[start : start + max(size, 1)]
        more = start + len(page) < len(found)
        return model_service_pb2.ListModelsResponse(
            models=page, next_page_token=page[-1].id if more else ""
        )

    async def GetModel(  # noqa: N802 - the generated name
        self, request: model_service_pb2.GetModelRequest, context: Context
    ) -> model_service_pb2.GetModelResponse:
        """One model by id or unambiguous name, a route or a policy; MODEL_NOT_FOUND also when the
        key may not see it.
        """
        seen = await self._seen(context)
        names = self._routes.names
        if request.id in names:
            model = self._routed(request.id, seen)
        else:
            deployment = self._catalog.resolve(request.id)
            model = self._catalog.model(deployment) if seen(deployment) else None
        if model is None:
            raise GatewayError(
                error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
                f"There is no model {request.id!r} for this key; see GET /v1/models.",
                param="model",
            )
        return model_service_pb2.GetModelResponse(model=_without(model, names))

    def _routed(self, name: str, seen: _Seen) -> model_service_pb2.Model | None:
        """A route or policy as far as the caller may use it; ``None`` where that is not at all."""
        behind: list[model_service_pb2.Model] = []
        for model in self._routes.reachable(name):
            try:
                deployment = self._catalog.resolve(model)
            except GatewayError:
                continue  # Its provider is not there, now or at all.
            if seen(deployment):
                behind.append(self._catalog.model(deployment))
        return routed(name, behind, chosen=self._routes.is_policy(name)) if behind else None

    async def _seen(self, context: Context) -> _Seen:
        """Which models the caller may see, by id and by what becomes of data there: those that no
        call of its key can ever reach are hidden.

        Raises INVALID_API_KEY, KEY_EXPIRED, SCOPE_MISSING.
        """
        metadata = metadata_of(context)
        if OPERATOR_KEY in metadata:
            require_operator(metadata, self._operator_token())
            return _Seen(shown=_everything, fits=_everything)
        grant = await self._grants.get(bearer_of(metadata))
        objection = listing_refusal(grant, self._clock.now().timestamp())
        if objection is not None:
            raise objection
        allowed, denied = tuple(grant.models_allowed), tuple(grant.models_denied)
        data = call_data(grant, "", None)
        closed = {
            f"{provider.name}/"
            for provider in self._providers.values()
            if provider.credentials and not open_to(provider.credentials, grant)
        }

        def shown(model: str) -> bool:
            if closed and model[: model.find("/") + 1] in closed:
                return False
            return allows(allowed, denied, model)

        return _Seen(
            shown=shown,
            fits=lambda handling: data is FREE or data_objection("", handling, data) is None,
        )


def _without(model: model_service_pb2.Model, names: Container[str]) -> model_service_pb2.Model:
    """The model without the bare names that mean a route here."""
    kept = [alias for alias in model.aliases if alias not in names]
    if len(kept) < len(model.aliases):
        model.ClearField("aliases")
        model.aliases.extend(kept)
    return model


def _everything(_: object) -> bool:
    return True
