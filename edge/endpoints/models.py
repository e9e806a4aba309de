"""The models that a key may call, in OpenAI's shape and with what the gateway knows beside it.

https://platform.openai.com/docs/api-reference/models/object; the further fields are OpenRouter's
(https://openrouter.ai/docs/api-reference/list-available-models), so that its clients find them.
"""

from collections.abc import Iterable
from typing import Any, Final

from edge.endpoints.strict_json import encode
from onegate.router.v1 import model_service_pb2

_PER_MILLION_DIGITS: Final = 15


def models_body(models: Iterable[model_service_pb2.Model]) -> bytes:
    """``GET /v1/models``."""
    return encode({"object": "list", "data": [model_json(model) for model in models]})


def model_body(model: model_service_pb2.Model) -> bytes:
    """``GET /v1/models/{id}``."""
    return encode(model_json(model))


def model_json(model: model_service_pb2.Model) -> dict[str, Any]:
    """One model. What is not known is left out, except ``pricing``, which is then ``null``."""
    known: dict[str, Any] = {
        "name": model.name,
        "context_length": model.context_tokens_max,
        "max_output_tokens": model.output_tokens_max,
        "supported_parameters": list(model.supported_parameters),
        "aliases": list(model.aliases),
        "knowledge": model.knowledge,
        "shutdown_date": model.shutdown_on,
        "deprecated": model.deprecated,
        "deployments": list(model.deployments),
    }
    return {
        "id": model.id,
        "object": "model",
        "created": model.created_unix_s,
        "owned_by": model.owner or model.provider,
        **{key: value for key, value in known.items() if value},
        "modalities": {
            "input": list(model.input_modalities),
            "output": list(model.output_modalities),
        },
        "endpoints": list(model.endpoints),
        "pricing": _pricing(model),
        "callable": model.callable,
        "data_policy": _data_policy(model.data_policy),
    }


def _pricing(model: model_service_pb2.Model) -> dict[str, str] | None:
    """USD for one unit, as decimal strings."""
    if model.free:
        return {"prompt": "0", "completion": "0"}
    if not model.rates:
        return None
    return {rate.name: _per_unit(rate.nano_usd_per_million) for rate in model.rates}


def _per_unit(nano_usd_per_million: int) -> str:
    """Nano-USD for a million units as USD for one, exactly."""
    whole, part = divmod(nano_usd_per_million, 10**_PER_MILLION_DIGITS)
    return f"{whole}.{part:0{_PER_MILLION_DIGITS}d}".rstrip("0").rstrip(".")


def _data_policy(policy: model_service_pb2.DataPolicy) -> dict[str, Any]:
    """Where it runs and what its provider does with the data; ``null`` is "not known"."""
    return {
        "region": policy.region or None,
        "regions": list(policy.regions),
        "retention_days": policy.retention_days if policy.HasField("retention_days") else None,
        "training": policy.training if policy.HasField("training") else None,
    }
