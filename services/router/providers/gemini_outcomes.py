"""How a call to Gemini ends: finish reasons, blocked prompts, errors.

https://ai.google.dev/api/generate-content#FinishReason and
https://ai.google.dev/gemini-api/docs/troubleshooting.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers.foreign import STATUS_REASONS, Json, retry_after_ms, upstream_error
from services.router.providers.gemini_models import PROVIDER

_STOP: Final = chat_pb2.FINISH_REASON_STOP
_LENGTH: Final = chat_pb2.FINISH_REASON_LENGTH
_FILTER: Final = chat_pb2.FINISH_REASON_CONTENT_FILTER

FINISH_REASONS: Final[Mapping[str, chat_pb2.FinishReason.ValueType]] = {
    "FINISH_REASON_UNSPECIFIED": _STOP,
    "STOP": _STOP,
    "NO_IMAGE": _STOP,
    "MAX_TOKENS": _LENGTH,
    "TOO_MANY_TOOL_CALLS": _LENGTH,
    "CONTINUATION": _LENGTH,
    "SAFETY": _FILTER,
    "RECITATION": _FILTER,
    "LANGUAGE": _FILTER,
    "OTHER": _FILTER,
    "BLOCKLIST": _FILTER,
    "PROHIBITED_CONTENT": _FILTER,
    "SPII": _FILTER,
    "IMAGE_SAFETY": _FILTER,
    "IMAGE_PROHIBITED_CONTENT": _FILTER,
    "IMAGE_RECITATION": _FILTER,
    "IMAGE_OTHER": _FILTER,
    "ESCALATION": _FILTER,
    "PUP_LIMITED_DISABLED": _FILTER,
    "MODEL_ARMOR": _FILTER,
    # What the model wrote could not be used and is withheld, which Google's own OpenAI endpoint
    # calls a filter, too.
    "MALFORMED_FUNCTION_CALL": _FILTER,
    "MALFORMED_RESPONSE": _FILTER,
    "MISSING_THOUGHT_SIGNATURE": _FILTER,
    "UNEXPECTED_TOOL_CALL": _FILTER,
}
"""By ``finishReason``; one that is not listed counts as STOP, and its own word is kept."""

ERRORS: Final[Mapping[str, int]] = {
    "INVALID_ARGUMENT": error_pb2.ERROR_REASON_INVALID_REQUEST,
    "OUT_OF_RANGE": error_pb2.ERROR_REASON_INVALID_REQUEST,
    # The account's region or billing, by Google's documentation.
    "FAILED_PRECONDITION": error_pb2.ERROR_REASON_UPSTREAM_AUTH,
    "PERMISSION_DENIED": error_pb2.ERROR_REASON_UPSTREAM_AUTH,
    "UNAUTHENTICATED": error_pb2.ERROR_REASON_UPSTREAM_AUTH,
    "NOT_FOUND": error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
    "RESOURCE_EXHAUSTED": error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
    "DEADLINE_EXCEEDED": error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT,
    "ABORTED": error_pb2.ERROR_REASON_UPSTREAM_ERROR,
    "CANCELLED": error_pb2.ERROR_REASON_UPSTREAM_ERROR,
    "INTERNAL": error_pb2.ERROR_REASON_UPSTREAM_ERROR,
    "UNAVAILABLE": error_pb2.ERROR_REASON_UPSTREAM_ERROR,
    "UNKNOWN": error_pb2.ERROR_REASON_UPSTREAM_ERROR,
}
"""By ``error.status``, a ``google.rpc.Code``."""

_TIERS: Final[Mapping[str, str]] = {"standard": "default"}
_CONTEXT_LENGTH: Final = re.compile(r"input token count.*exceeds the maximum", re.IGNORECASE)
_DELAY: Final = re.compile(r"(\d{1,9}(?:\.\d+)?)s")
_TYPE: Final = "type.googleapis.com/google.rpc."


def finish(reason: str, *, calls: bool) -> chat_pb2.FinishReason.ValueType:
    """Why an answer ended; Gemini stops for function calls like for anything else."""
    known = FINISH_REASONS.get(reason, _STOP)
    return chat_pb2.FINISH_REASON_TOOL_CALLS if calls and known == _STOP else known


def answered_tier(usage: Json) -> str:
    """The service tier that served, in OpenAI's words."""
    tier = str(usage.get("serviceTier") or "").lower()
    return _TIERS.get(tier, tier)


def error(status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
    """What an error means: its ``status`` and details, or its HTTP status when the body is not
    Google's.
    """
    try:
        told = msgspec.json.decode(body)
    except msgspec.DecodeError:
        told = None
    return told_error(status, headers, told)


def told_error(status: int, headers: Mapping[str, str], told: Any) -> GatewayError:
    """The same for a body that has been read: an error, or a list that begins with one."""
    wait_ms = retry_after_ms(headers)
    match told[0] if isinstance(told, list) and told else told:
        case {"error": {"status": str(code), "message": str(said), **rest}} if code in ERRORS:
            listed = rest.get("details")
            details = {
                str(detail.get("@type")).removeprefix(_TYPE): detail
                for detail in (listed if isinstance(listed, list) else ())
                if isinstance(detail, dict)
            }
            reason = _reason(code, said, details)
            wait_ms = _wait_ms(details) or wait_ms
        case _:
            reason = STATUS_REASONS.get(status, error_pb2.ERROR_REASON_UPSTREAM_ERROR)
            said = ""
    return upstream_error(PROVIDER, reason, status=status, said=said, retry_ms=wait_ms)


def _reason(code: str, said: str, details: Mapping[str, Json]) -> int:
    """The reason; two kinds of invalid argument are told apart by their details and wording."""
    if code == "INVALID_ARGUMENT":
        if str(details.get("ErrorInfo", {}).get("reason")).startswith("API_KEY_"):
            return error_pb2.ERROR_REASON_UPSTREAM_AUTH
        if _CONTEXT_LENGTH.search(said):
            return error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED
    return ERRORS[code]


def _wait_ms(details: Mapping[str, Json]) -> int:
    """``RetryInfo.retryDelay``, a number of seconds with an ``s``, in milliseconds."""
    match = _DELAY.fullmatch(str(details.get("RetryInfo", {}).get("retryDelay")))
    return round(float(match[1]) * 1000) if match else 0
