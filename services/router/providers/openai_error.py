"""What a failure in the OpenAI dialect means: a status and a body, or an error inside a 200, as a
reason of the gateway.

Sources: https://platform.openai.com/docs/guides/error-codes,
https://learn.microsoft.com/en-us/azure/foundry/openai/concepts/content-filter,
https://openrouter.ai/docs/api-reference/errors, https://console.groq.com/docs/errors,
https://api-docs.deepseek.com/quick_start/error_codes, https://docs.z.ai/api-reference/api-code,
https://www.alibabacloud.com/help/en/model-studio/error-code, and the recorded refusals.

The provider's own words are kept for what the caller can mend, without anything that may be a
secret; of its failures only the status is told.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from services.router.providers.json_members import MALFORMED
from services.router.providers.openai_row import Compatible

_SAID_CHARS_MAX: Final = 500
_ITEMS_MAX: Final = 3
_MS_PER_S: Final = 1000
_RETRY_MS_MAX: Final = 86_400_000

_STATUS: Final[Mapping[int, int]] = {
    401: error_pb2.ERROR_REASON_UPSTREAM_AUTH,
    402: error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
    403: error_pb2.ERROR_REASON_UPSTREAM_AUTH,
    404: error_pb2.ERROR_REASON_UPSTREAM_ERROR,
    405: error_pb2.ERROR_REASON_UPSTREAM_ERROR,
    408: error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT,
    413: error_pb2.ERROR_REASON_REQUEST_TOO_LARGE,
    429: error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
    # Groq's flex tier has no capacity left.
    498: error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
}
"""What a status means when the words do not say more. Others: 400 to 499 are the request's fault,
the rest the provider's."""

_CODES: Final[Mapping[str, int]] = {
    "context_length_exceeded": error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
    "exceed_context_size_error": error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
    "string_above_max_length": error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
    "1261": error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
    "content_filter": error_pb2.ERROR_REASON_CONTENT_POLICY,
    "content_policy_violation": error_pb2.ERROR_REASON_CONTENT_POLICY,
    "data_inspection_failed": error_pb2.ERROR_REASON_CONTENT_POLICY,
    "invalid_prompt": error_pb2.ERROR_REASON_CONTENT_POLICY,
    "moderation_blocked": error_pb2.ERROR_REASON_CONTENT_POLICY,
    "1301": error_pb2.ERROR_REASON_CONTENT_POLICY,
    "deploymentnotfound": error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
    "invalid_model": error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
    "model_not_found": error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
    "unknown_model": error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
    "1211": error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
    "arrearage": error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
    "insufficient_quota": error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
    "rate_limit_error": error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
    "rate_limit_exceeded": error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
    "invalid_api_key": error_pb2.ERROR_REASON_UPSTREAM_AUTH,
    "server_error": error_pb2.ERROR_REASON_UPSTREAM_ERROR,
}
"""What a code or type means, whatever the status but 401, 408, 413 and those of 500 and more."""

_WORDS: Final[tuple[tuple[re.Pattern[str], int], ...]] = (
    (
        # xAI and Google's OpenAI dialect answer 400 to a wrong key.
        re.compile(r"(?:incorrect|invalid|missing) api[ _-]?key|api[ _-]?key (?:is )?not valid"),
        error_pb2.ERROR_REASON_UPSTREAM_AUTH,
    ),
    (
        re.compile(
            r"context (?:length|window|size)|maximum (?:prompt|context|input) length"
            r"|(?:prompt|input|request) (?:is )?too (?:long|large)|too many (?:input )?tokens"
            r"|model token limit|range of input length"
            r"|reduce the length of the (?:messages|prompt)|max_new_tokens` must be"
        ),
        error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
    ),
    (
        re.compile(
            r"content (?:management |filter|policy)|content violates|flagged|moderation"
            r"|usage (?:guidelines|policies|policy)|safety system"
        ),
        error_pb2.ERROR_REASON_CONTENT_POLICY,
    ),
    (
        re.compile(
            r"model\b.{0,120}\b(?:does not exist|not exist|not found|not available|deprecated)"
            r"|(?:invalid|unknown|no such) model\b|not a valid model"
        ),
        error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
    ),
)
"""How vendors without codes say it, in lower case; the first that fits wins."""

_DEAF: Final = frozenset({401, 408, 413})
"""Statuses whose meaning no word changes."""

_SENTENCES: Final[Mapping[int, str]] = {
    error_pb2.ERROR_REASON_INVALID_REQUEST: "{title} refused the request: {said}",
    error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED: (
        "The conversation is longer than the model's context window. Send less of it, or choose a "
        "model with a larger window. {title} says: {said}"
    ),
    error_pb2.ERROR_REASON_CONTENT_POLICY: ("{title}'s content policy refused the request: {said}"),
    error_pb2.ERROR_REASON_MODEL_NOT_FOUND: "{title} does not serve this model: {said}",
    error_pb2.ERROR_REASON_REQUEST_TOO_LARGE: (
        "The request is larger than {title} takes. Send less, or smaller media."
    ),
    error_pb2.ERROR_REASON_UPSTREAM_AUTH: (
        "{title} refused the gateway's own credential. The operator must check the provider's key "
        "and what it may do."
    ),
    error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED: (
        "{title} limits the gateway's rate, or its account is used up. Try again later."
    ),
    error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT: (
        "{title} did not get the request in time. Try again, or send less."
    ),
    error_pb2.ERROR_REASON_UPSTREAM_ERROR: "{title} failed{status}. Try again later.",
}

_SECRET: Final = re.compile(
    r"\b(?:(?:sk|pk|rk|gsk|csk|xai|nvapi|hf|fw|pplx|tgp|gh[opsu]|github_pat)[-_]|AIza)[\w*-]{6,}"
    r"|\bBearer\s+\S+|(?<=key=)[^\s&]+|\b(?=\w*\d)(?=\w*[A-Za-z])\w{32,}|\S*\*{3,}\S*"
)
_SECONDS: Final = re.compile(r"\d{1,9}(?:\.\d{1,9})?")
_HTTP_DATE: Final = "%a, %d %b %Y %H:%M:%S GMT"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorWords:
    """What an error object says. ``status`` is 0 when it names none."""

    message: str = ""
    codes: tuple[str, ...] = ()
    param: str = ""
    status: int = 0


def http_error(
    row: Compatible, status: int, headers: Mapping[str, str], body: bytes
) -> GatewayError:
    """What an HTTP status of 300 or more means."""
    try:
        value = msgspec.json.decode(body)
    except MALFORMED:
        value = None
    return _error(row, _read(value), status, retry_after_ms(headers))


def embedded_error(row: Compatible, value: object) -> GatewayError:
    """What an error inside an answer of status 200 means; the status is the one that it names."""
    words = _read(value)
    return _error(row, words, words.status, 0)


def failed_answer(row: Compatible, finish_reason: str) -> GatewayError:
    """The provider ended an answer with a finish reason that means that it failed."""
    return GatewayError(
        error_pb2.ERROR_REASON_UPSTREAM_ERROR,
        f"{row.title} broke the answer off ({finish_reason}). Try again later.",
    )


def protocol_error(row: Compatible, what: str) -> GatewayError:
    """The provider answered with something that is not the dialect."""
    return GatewayError(
        error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL,
        f"{row.title} {what}. Try again, or choose another model.",
    )


def retry_after_ms(headers: Mapping[str, str]) -> int:
    """How long the provider asks to wait, in milliseconds, at most a day; 0 when it does not say.

    Knows ``retry-after-ms`` (https://github.com/openai/openai-python) and ``retry-after`` in
    seconds or as a date, which is measured against the answer's own ``date``.
    """
    for name, scale in (("retry-after-ms", 1), ("retry-after", _MS_PER_S)):
        value = headers.get(name, "").strip()
        if _SECONDS.fullmatch(value):
            return min(round(float(value) * scale), _RETRY_MS_MAX)
    until, now = _date(headers.get("retry-after", "")), _date(headers.get("date", ""))
    if until is None or now is None:
        return 0
    return min(max(round((until - now).total_seconds() * _MS_PER_S), 0), _RETRY_MS_MAX)


def _date(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, _HTTP_DATE).replace(tzinfo=UTC)
    except ValueError:
        return None


def _error(row: Compatible, words: ErrorWords, status: int, retry_ms: int) -> GatewayError:
    reason = _reason(words, status)
    message = _SENTENCES[reason].format(
        title=row.title,
        said=_quoted(words.message),
        status=f" with status {status}" if status else " while it answered",
    )
    if reason == error_pb2.ERROR_REASON_UPSTREAM_ERROR and 300 <= status < 500:
        message = (
            f"{row.title} has no such address (status {status}). The operator must check the "
            "provider's base_url."
        )
    return GatewayError(
        reason, message, param=words.param, retry_after_ms=retry_ms, upstream_status=status
    )


def _reason(words: ErrorWords, status: int) -> int:
    if status >= 500 or 300 <= status < 400:
        return error_pb2.ERROR_REASON_UPSTREAM_ERROR
    if status not in _DEAF:
        for code in words.codes:
            if code in _CODES:
                return _CODES[code]
    if status not in _DEAF and status != 429:
        said = words.message.lower()
        for pattern, reason in _WORDS:
            if pattern.search(said):
                return reason
    if not status and not any(code.startswith("invalid_request") for code in words.codes):
        return error_pb2.ERROR_REASON_UPSTREAM_ERROR
    return _STATUS.get(status, error_pb2.ERROR_REASON_INVALID_REQUEST)


def _read(value: object) -> ErrorWords:
    """An error in any shape that is seen: OpenAI's, a bare text, FastAPI's ``detail``, Mistral's
    and vLLM's object without a wrapper, Google's list.
    """
    if isinstance(value, list):
        value = value[0] if value else None
    if not isinstance(value, dict):
        return ErrorWords(message=value if isinstance(value, str) else "")
    inner = value.get("error")
    holder = inner if isinstance(inner, dict) else value
    codes = [holder.get("code"), holder.get("type"), holder.get("error_type")]
    if isinstance(nested := holder.get("innererror"), dict):
        codes.append(nested.get("code"))
    status = next(
        (
            number
            for name in ("status_code", "status", "code")
            if type(number := holder.get(name)) is int and 300 <= number < 600
        ),
        0,
    )
    message, param = _said(value)
    if isinstance(meta := holder.get("metadata"), dict) and isinstance(meta.get("raw"), str):
        message = f"{message}: {meta['raw']}"
    named = holder.get("param")
    return ErrorWords(
        message=message,
        codes=tuple(str(code).lower() for code in codes if isinstance(code, str | int)),
        param=named if isinstance(named, str) else param,
        status=status,
    )


def _said(value: Any) -> tuple[str, str]:
    """The words of an error and the field that they are about."""
    match value:
        case str():
            return value, ""
        case {"msg": str(text), "loc": list(place)}:
            # FastAPI's place begins with where the field was looked for: `body`.
            return text, ".".join(str(step) for step in place[1:])
        case list():
            found = [_said(item) for item in value[:_ITEMS_MAX]]
            return "; ".join(text for text, _ in found if text), found[0][1] if found else ""
        case dict():
            for name in ("error", "message", "detail", "msg", "error_description"):
                text, param = _said(value.get(name))
                if text:
                    return text, param
    return "", ""


def _quoted(said: str) -> str:
    """A provider's words, fit to be shown: one line, not endless, nothing that may be a secret."""
    text = _SECRET.sub("***", " ".join(said.split()))
    if len(text) > _SAID_CHARS_MAX:
        text = text[:_SAID_CHARS_MAX] + "…"
    return text or "it does not say why."
