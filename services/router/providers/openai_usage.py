"""What an answer in the OpenAI dialect consumed, in every vendor's spelling.

The names do not contradict each other, so one table reads them all
(https://platform.openai.com/docs/api-reference/chat/object,
https://api-docs.deepseek.com/guides/kv_cache, https://docs.perplexity.ai/getting-started/pricing,
https://openrouter.ai/docs/use-cases/usage-accounting). A number that cannot be a count makes the
whole usage "not said", so that the gateway counts for itself.
"""

from collections.abc import Mapping
from typing import Any, Final

from onegate.common.v1 import token_usage_pb2
from services.router.providers.json_members import ENCODE, Json
from services.router.providers.openai_row import Compatible

_COUNT_MAX: Final = 1 << 53

_TOP: Final[Mapping[str, str]] = {
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    "cached_tokens": "cached_input_tokens",
    "num_cached_tokens": "cached_input_tokens",
    "prompt_cache_hit_tokens": "cached_input_tokens",
    "reasoning_tokens": "reasoning_tokens",
    "num_search_queries": "web_searches",
}
_NESTED: Final[Mapping[str, Mapping[str, str]]] = {
    "prompt_tokens_details": {
        "cached_tokens": "cached_input_tokens",
        "cache_write_tokens": "cache_write_tokens",
        "audio_tokens": "input_audio_tokens",
        "image_tokens": "input_image_tokens",
    },
    "completion_tokens_details": {
        "reasoning_tokens": "reasoning_tokens",
        "audio_tokens": "output_audio_tokens",
        "image_tokens": "output_image_tokens",
        "accepted_prediction_tokens": "accepted_prediction_tokens",
        "rejected_prediction_tokens": "rejected_prediction_tokens",
    },
    "server_tool_use_details": {"web_search_requests": "web_searches"},
}
_SAID: Final = frozenset(
    {"prompt_cache_miss_tokens", "service_tier", "text_tokens", "total_tokens"}
)
"""What follows from the others, or is said elsewhere."""
_RENAMED: Final[Mapping[str, str]] = {"cost": "upstream_cost"}
"""``usage.cost`` is the gateway's own price of the call."""


def token_usage(
    row: Compatible, usage: object, service_tier: object
) -> token_usage_pb2.TokenUsage | None:
    """The counts of a ``usage`` object; ``None`` when it does not say, or nothing that can be.

    Args:
        row: the vendor.
        usage: the object, or whatever stands in its place.
        service_tier: the tier that served, where the answer says.
    """
    if not isinstance(usage, dict):
        return None
    counts: dict[str, int] = {}
    extra: Json = {}
    try:
        _read(usage, _TOP, counts, extra, "")
    except ValueError:
        return None
    if "input_tokens" not in counts and "output_tokens" not in counts:
        return None
    if row.reasoning_beside:
        counts["output_tokens"] = counts.get("output_tokens", 0) + counts.get("reasoning_tokens", 0)
    tokens = token_usage_pb2.TokenUsage()
    for field, count in counts.items():
        if count:
            setattr(tokens, field, count)
    tier = usage.get("service_tier") or service_tier
    if isinstance(tier, str):
        tokens.service_tier = tier
    if extra:
        tokens.extra_json = ENCODE(extra)
    return tokens


def _read(
    usage: Mapping[str, Any],
    names: Mapping[str, str],
    counts: dict[str, int],
    extra: Json,
    prefix: str,
) -> None:
    """Reads one level. Of several spellings of one count the greatest wins. What has no name goes
    to ``extra`` unless it is nothing. Raises ValueError for a number that is no count.
    """
    for name, value in usage.items():
        field = names.get(name)
        if value is None or name in _SAID:
            continue
        if field is not None:
            count = _count(value)
            if count > counts.get(field, -1):
                counts[field] = count
        elif name in _NESTED and not prefix and isinstance(value, dict):
            short = name.removesuffix("_tokens_details").removesuffix("_details")
            _read(value, _NESTED[name], counts, extra, f"{short}_")
        elif value or not prefix:
            extra[prefix + _RENAMED.get(name, name)] = value


def _count(value: object) -> int:
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not 0 <= value < _COUNT_MAX:
        raise ValueError
    return value
