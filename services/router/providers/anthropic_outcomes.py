"""How a call to Anthropic ends: finish reasons, errors, and what an answer tells beside its
content.

https://platform.claude.com/docs/en/build-with-claude/handling-stop-reasons and
https://platform.claude.com/docs/en/api/errors.
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers.anthropic_models import PROVIDER
from services.router.providers.foreign import (
    STATUS_REASONS,
    Json,
    dump,
    retry_after_ms,
    upstream_error,
)

FINISH_REASONS: Final[Mapping[str, chat_pb2.FinishReason.ValueType]] = {
    "end_turn": chat_pb2.FINISH_REASON_STOP,
    "stop_sequence": chat_pb2.FINISH_REASON_STOP,
    "max_tokens": chat_pb2.FINISH_REASON_LENGTH,
    "model_context_window_exceeded": chat_pb2.FINISH_REASON_LENGTH,
    "tool_use": chat_pb2.FINISH_REASON_TOOL_CALLS,
    "refusal": chat_pb2.FINISH_REASON_CONTENT_FILTER,
    # A turn that paused or was compacted goes on when it is sent back: it is cut, not complete.
    "pause_turn": chat_pb2.FINISH_REASON_LENGTH,
    "compaction": chat_pb2.FINISH_REASON_LENGTH,
}
"""By ``stop_reason``; one that is not listed counts as STOP, and its own word is kept."""

ERRORS: Final[Mapping[str, int]] = {
    "invalid_request_error": error_pb2.ERROR_REASON_INVALID_REQUEST,
    "authentication_error": error_pb2.ERROR_REASON_UPSTREAM_AUTH,
    "billing_error": error_pb2.ERROR_REASON_UPSTREAM_AUTH,
    "permission_error": error_pb2.ERROR_REASON_UPSTREAM_AUTH,
    "not_found_error": error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
    "request_too_large": error_pb2.ERROR_REASON_REQUEST_TOO_LARGE,
    "rate_limit_error": error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
    "timeout_error": error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT,
    "api_error": error_pb2.ERROR_REASON_UPSTREAM_ERROR,
    "overloaded_error": error_pb2.ERROR_REASON_UPSTREAM_ERROR,
}
"""By ``error.type``."""

_CONTEXT_LENGTH: Final = re.compile(
    r"prompt is too long|exceeds? (?:the )?(?:model's )?context (?:limit|window)", re.IGNORECASE
)
_BILLING: Final = re.compile(r"credit balance is too low", re.IGNORECASE)
_TIERS: Final[Mapping[str, str]] = {"standard": "default"}
_TOLD: Final = (
    "container",
    "context_management",
    "input_transformations",
    "stop_details",
    "stop_sequence",
)


def error(status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
    """What an error means: its ``type``, or its status when the body is not Anthropic's."""
    try:
        told = msgspec.json.decode(body)
    except msgspec.DecodeError:
        told = None
    match told:
        case {"error": {"type": str(kind), "message": str(said)}} if kind in ERRORS:
            reason = _reason(kind, said)
        case _:
            reason = STATUS_REASONS.get(status, error_pb2.ERROR_REASON_UPSTREAM_ERROR)
            said = ""
    return upstream_error(
        PROVIDER, reason, status=status, said=said, retry_ms=retry_after_ms(headers)
    )


def error_event(event: Json) -> GatewayError:
    """An error inside a stream."""
    return error(0, {}, dump(event))


def answered_tier(usage: Json) -> str:
    """The service tier that served, in OpenAI's words."""
    tier = usage.get("service_tier") or ""
    return _TIERS.get(tier, tier)


def extra(message: Json) -> bytes:
    """What an answer tells that the contract does not name, under ``anthropic``."""
    told = {key: message[key] for key in _TOLD if message.get(key)}
    return dump({"anthropic": told}) if told else b""


def _reason(kind: str, said: str) -> int:
    """The reason; two kinds of invalid request are told apart by their wording alone."""
    if kind == "invalid_request_error":
        if _CONTEXT_LENGTH.search(said):
            return error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED
        if _BILLING.search(said):
            return error_pb2.ERROR_REASON_UPSTREAM_AUTH
    return ERRORS[kind]
