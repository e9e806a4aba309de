"""How a call to Bedrock ends: stop reasons and errors.

https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html (stop reasons,
errors), https://docs.aws.amazon.com/bedrock/latest/APIReference/CommonErrors.html. An error is
named in the ``x-amzn-errortype`` header, in the body's ``__type``, or, inside a stream, by the
event; its words are in the body's ``message``.
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers.bedrock_models import PROVIDER
from services.router.providers.foreign import (
    STATUS_REASONS,
    Json,
    dump,
    retry_after_ms,
    upstream_error,
)

_FILTER: Final = chat_pb2.FINISH_REASON_CONTENT_FILTER

FINISH_REASONS: Final[Mapping[str, chat_pb2.FinishReason.ValueType]] = {
    "end_turn": chat_pb2.FINISH_REASON_STOP,
    "stop_sequence": chat_pb2.FINISH_REASON_STOP,
    "max_tokens": chat_pb2.FINISH_REASON_LENGTH,
    "model_context_window_exceeded": chat_pb2.FINISH_REASON_LENGTH,
    "tool_use": chat_pb2.FINISH_REASON_TOOL_CALLS,
    "guardrail_intervened": _FILTER,
    "content_filtered": _FILTER,
    # What the model wrote could not be used and is withheld.
    "malformed_model_output": _FILTER,
    "malformed_tool_use": _FILTER,
}
"""By ``stopReason``; one that is not listed counts as STOP, and its own word is kept."""

_AUTH: Final = error_pb2.ERROR_REASON_UPSTREAM_AUTH
_FAILED: Final = error_pb2.ERROR_REASON_UPSTREAM_ERROR
_LIMITED: Final = error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED

ERRORS: Final[Mapping[str, int]] = {
    "ValidationException": error_pb2.ERROR_REASON_INVALID_REQUEST,
    "ResourceNotFoundException": error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
    "AccessDeniedException": _AUTH,
    "ExpiredTokenException": _AUTH,
    "IncompleteSignatureException": _AUTH,
    "InvalidClientTokenId": _AUTH,
    "InvalidSignatureException": _AUTH,
    "MissingAuthenticationTokenException": _AUTH,
    "NotAuthorized": _AUTH,
    "OptInRequired": _AUTH,
    "UnrecognizedClientException": _AUTH,
    "ThrottlingException": _LIMITED,
    "TooManyRequestsException": _LIMITED,
    "ServiceQuotaExceededException": _LIMITED,
    "ModelTimeoutException": error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT,
    "InternalServerException": _FAILED,
    "ModelErrorException": _FAILED,
    "ModelNotReadyException": _FAILED,
    "ModelStreamErrorException": _FAILED,
    "ServiceUnavailableException": _FAILED,
}
"""By the error's name."""

_CONTEXT_LENGTH: Final = re.compile(
    r"input is too long|too many input tokens|prompt is too long"
    r"|exceeds? (?:the )?(?:model's )?(?:maximum )?context|maximum context length"
    r"|input length and `?max_tokens`? exceed",
    re.IGNORECASE,
)
_NO_MODEL: Final = re.compile(
    r"model identifier is invalid|on-demand throughput isn.t supported"
    r"|reached the end of its life",
    re.IGNORECASE,
)
_POLICY: Final = re.compile(r"blocked by (?:our )?content filter", re.IGNORECASE)
_SAID: Final = ("message", "Message", "originalMessage")
_TOLD: Final = ("additionalModelResponseFields", "performanceConfig", "trace")


def error(status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
    """What an error means: its name, or its status when nothing names it."""
    try:
        told = msgspec.json.decode(body)
    except msgspec.DecodeError:
        told = None
    if not isinstance(told, dict):
        told = {}
    named = headers.get("x-amzn-errortype") or str(told.get("__type") or "")
    # A namespace may stand before the name, a document's address after it.
    name = named.partition(":")[0].rpartition("#")[2]
    said = next((told[key] for key in _SAID if told.get(key)), "")
    fallback = STATUS_REASONS.get(status, _FAILED)
    reason = _reason(ERRORS.get(name, fallback), str(said))
    return upstream_error(
        PROVIDER, reason, status=status, said=said, retry_ms=retry_after_ms(headers)
    )


def told_error(name: str, body: bytes) -> GatewayError:
    """An error inside a stream. Its name begins with a small letter there."""
    return error(0, {"x-amzn-errortype": name[:1].upper() + name[1:]}, body)


def extra(told: Json) -> bytes:
    """What an answer tells that the contract does not name, under ``bedrock``."""
    beyond = {key: told[key] for key in _TOLD if told.get(key)}
    return dump({"bedrock": beyond}) if beyond else b""


def served_by(told: Json, model: str) -> str:
    """The model that answered: a prompt router chooses one."""
    router = (told.get("trace") or {}).get("promptRouter") or {}
    return router.get("invokedModelId") or model


def answered_tier(told: Json) -> str:
    """The service tier that served."""
    return (told.get("serviceTier") or {}).get("type") or ""


def _reason(reason: int, said: str) -> int:
    """The reason; kinds of invalid request are told apart by their wording alone."""
    if reason == error_pb2.ERROR_REASON_INVALID_REQUEST:
        if _CONTEXT_LENGTH.search(said):
            return error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED
        if _NO_MODEL.search(said):
            return error_pb2.ERROR_REASON_MODEL_NOT_FOUND
        if _POLICY.search(said):
            return error_pb2.ERROR_REASON_CONTENT_POLICY
    return reason
