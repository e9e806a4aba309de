"""What a call consumed and cost, in OpenAI's words.

https://platform.openai.com/docs/api-reference/chat/object: totals include their parts, as the
contract's do. ``cost`` is ours: USD, exact to the nano-dollar, never rounded by a float.
"""

from typing import Any

import msgspec

from onegate.common.v1 import token_usage_pb2
from onegate.router.v1 import chat_pb2
from runtime.money import usd


def usage_json(metered: chat_pb2.Metered) -> dict[str, Any]:
    """The ``usage`` object of an answer or of a stream's last chunk."""
    tokens = metered.tokens
    return {
        **_reported(tokens),
        "prompt_tokens": tokens.input_tokens,
        "completion_tokens": tokens.output_tokens,
        "total_tokens": tokens.input_tokens + tokens.output_tokens,
        "prompt_tokens_details": _details(
            {
                "cached_tokens": tokens.cached_input_tokens,
                "audio_tokens": tokens.input_audio_tokens,
            },
            cache_write_tokens=tokens.cache_write_tokens + tokens.cache_write_1h_tokens,
            image_tokens=tokens.input_image_tokens,
        ),
        "completion_tokens_details": _details(
            {
                "reasoning_tokens": tokens.reasoning_tokens,
                "audio_tokens": tokens.output_audio_tokens,
                "accepted_prediction_tokens": tokens.accepted_prediction_tokens,
                "rejected_prediction_tokens": tokens.rejected_prediction_tokens,
            },
            image_tokens=tokens.output_image_tokens,
        ),
        "cost": msgspec.Raw(usd(metered.cost_nano_usd).encode()),
    }


def _details(always: dict[str, int], **when_any: int) -> dict[str, int]:
    """The parts of a total; some are named only when there are any."""
    return always | {name: count for name, count in when_any.items() if count}


def _reported(tokens: token_usage_pb2.TokenUsage) -> dict[str, Any]:
    """What the provider reported beside the counts that have a name."""
    reported = msgspec.json.decode(tokens.extra_json) if tokens.extra_json else {}
    return reported if isinstance(reported, dict) else {}
