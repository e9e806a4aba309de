"""Lists of models in the OpenAI dialect: ``{"data": […]}``, or a bare list
(https://docs.together.ai/reference/models-1, https://docs.github.com/en/rest/models/catalog).

Limits and names stand under different members; each is listed with the vendors that write it.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from services.router.providers.base import ListedModel
from services.router.providers.json_members import MALFORMED
from services.router.providers.openai_error import protocol_error
from services.router.providers.openai_row import Compatible

_COUNT_MAX: Final = 1 << 53

_CONTEXT: Final = (
    "context_length",  # OpenRouter, Together, SambaNova, Fireworks, Moonshot
    "context_window",  # Groq
    "max_context_length",  # Mistral, LM Studio
    "max_model_len",  # vLLM
    "limits.max_input_tokens",  # GitHub
    "metadata.context_length",  # DeepInfra
    "meta.n_ctx",  # llama.cpp
)
_OUTPUT: Final = (
    "top_provider.max_completion_tokens",  # OpenRouter
    "max_completion_tokens",  # Groq, SambaNova
    "limits.max_output_tokens",  # GitHub
    "metadata.max_tokens",  # DeepInfra
)
_OWNER: Final = ("owned_by", "publisher", "organization")
_NAME: Final = ("name", "display_name")
_SHUTDOWN: Final = ("shutdown_date",)  # OpenAI: https://developers.openai.com/api/docs/deprecations


def listed_models(row: Compatible, body: bytes) -> list[ListedModel]:
    """The models. Raises UPSTREAM_PROTOCOL when the body is not a list of models."""
    try:
        value = msgspec.json.decode(body)
    except MALFORMED:
        value = None
    items = value.get("data", value.get("models")) if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise protocol_error(row, "answered with something that is no list of models")
    return [_model(item) for item in items if isinstance(item, dict) and _text(item, ("id",))]


def _model(item: Mapping[str, Any]) -> ListedModel:
    return ListedModel(
        id=_text(item, ("id",)),
        created_unix_s=_count(item, ("created",)),
        owner=_text(item, _OWNER),
        name=_text(item, _NAME),
        context_tokens_max=_count(item, _CONTEXT),
        output_tokens_max=_count(item, _OUTPUT),
        shutdown_on=_text(item, _SHUTDOWN),
    )


def _text(item: Mapping[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        value = item.get(name)
        if isinstance(value, str):
            return value
    return ""


def _count(item: Mapping[str, Any], paths: tuple[str, ...]) -> int:
    """The first count that is there; 0 for none."""
    for path in paths:
        value: Any = item
        for step in path.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        if type(value) in (int, float) and 0 < value < _COUNT_MAX:
            return int(value)
    return 0
