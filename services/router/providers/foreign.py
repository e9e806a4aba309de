"""What the wires that do not speak OpenAI's dialect share: saying what becomes of every request
field, reading foreign JSON, and turning a provider's error into a reason without repeating a
secret.

Refuses to guess: a field without a rule is a defect, and a value without an equivalent is refused
under the name that an OpenAI caller knows.
"""

import enum
import json
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError

Json = dict[str, Any]

BESIDE: Final = "provider_specific_fields"
"""Where an OpenAI message carries what the contract has no field for, as the edge writes it
(``parts``, ``annotations``) and as callers send it back."""

GEMINI_PROOF: Final = "gemini:"
"""How a thought's signature begins when it is Gemini's, so that no other provider is sent it."""


class Rule(enum.Enum):
    """What becomes of a request field that has no field of its own on the wire."""

    DERIVED = enum.auto()
    """The wire says it in another form; ``request()`` does."""
    ACCEPTED = enum.auto()
    """It changes nothing in the answer and is not sent."""


Fields = Mapping[str, str | Rule | None]
"""By field of ``ChatRequest``: the wire's name, a rule, or ``None``: no such knob, refuse."""

HARMLESS: Final[Mapping[str, object]] = {
    "choices": 1,
    "frequency_penalty": 0,
    "logprobs": False,
    "min_p": 0,
    "presence_penalty": 0,
    "prompt_cache_retention": "in_memory",
    "top_logprobs": 0,
    "verbosity": "medium",
}
"""Values that ask for what happens anyway."""

OPENAI_NAMES: Final[Mapping[str, str]] = {
    "audio_output": "audio",
    "choices": "n",
    "output_modalities": "modalities",
    "output_tokens_max": "max_completion_tokens",
    "thinking": "reasoning_effort",
    "web_search_options_json": "web_search_options",
}
"""Where OpenAI's name of a field differs from the contract's."""

STATUS_REASONS: Final[Mapping[int, int]] = {
    400: error_pb2.ERROR_REASON_INVALID_REQUEST,
    401: error_pb2.ERROR_REASON_UPSTREAM_AUTH,
    402: error_pb2.ERROR_REASON_UPSTREAM_AUTH,
    403: error_pb2.ERROR_REASON_UPSTREAM_AUTH,
    408: error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT,
    413: error_pb2.ERROR_REASON_REQUEST_TOO_LARGE,
    422: error_pb2.ERROR_REASON_INVALID_REQUEST,
    429: error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
    504: error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT,
}
"""What a status means when the body does not say; any other is UPSTREAM_ERROR."""

_SENTENCES: Final[Mapping[int, str]] = {
    error_pb2.ERROR_REASON_INVALID_REQUEST: "{provider} refused the request: {said}",
    error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED: (
        "The conversation is longer than the model's context window. Send less of it, or choose "
        "a model with a larger window. {provider} says: {said}"
    ),
    error_pb2.ERROR_REASON_CONTENT_POLICY: (
        "{provider}'s content policy refused the request: {said}"
    ),
    error_pb2.ERROR_REASON_MODEL_NOT_FOUND: "{provider} does not serve this model: {said}",
    error_pb2.ERROR_REASON_REQUEST_TOO_LARGE: (
        "The request is larger than {provider} takes. Send less, or smaller media."
    ),
    error_pb2.ERROR_REASON_UPSTREAM_AUTH: (
        "{provider} refused the gateway's own credential or account. The operator must check the "
        "provider's key, its permissions and its billing."
    ),
    error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED: (
        "{provider} limits the gateway's rate. Try again later."
    ),
    error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT: (
        "{provider} did not answer in time. Try again, or send less."
    ),
    error_pb2.ERROR_REASON_UPSTREAM_ERROR: "{provider} failed{status}. Try again later.",
}

_SAID_CHARS_MAX: Final = 400
_SECRET: Final = re.compile(r"(?:sk-|AIza|Bearer )[\w.\-]+|[\w\-]{32,}")
_RETRY_AFTER: Final = re.compile(r"\d{1,9}(?:\.\d+)?")

MALFORMED: Final = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What reading JSON of an unexpected shape raises: the provider broke its own protocol."""


def copy_fields(request: chat_pb2.ChatRequest, fields: Fields, body: Json, provider: str) -> None:
    """Writes every set field that the wire names into ``body``.

    Raises UNSUPPORTED_PARAMETER for a set field without equivalent, unless its value asks for what
    happens anyway.
    """
    for descriptor, value in request.ListFields():
        name = descriptor.name
        rule = fields[name]
        if rule is None:
            if name not in HARMLESS or value != HARMLESS[name]:
                raise unsupported(OPENAI_NAMES.get(name, name), provider)
        elif isinstance(rule, str):
            body[rule] = list(value) if descriptor.is_repeated else value


def beside(**told: object) -> bytes:
    """A piece of a streamed answer that OpenAI's dialect has no field for."""
    return dump({BESIDE: told})


def sent_back(members: Json, where: str, provider: str) -> list[Any]:
    """The provider's own parts that a message's unnamed ``members`` repeat; its citations say
    nothing new.

    Raises UNSUPPORTED_PARAMETER for any other field of the message.
    """
    parts: list[Any] = []
    for key, value in members.items():
        match value:
            case {"parts": [*own]} if key == BESIDE:
                parts += own
            case {} if key == BESIDE:
                pass
            case _:
                raise unsupported(f"{where}.{key}", provider)
    return parts


def unsupported(param: str, provider: str, hint: str = "") -> GatewayError:
    """The refusal of a field or value that the provider has no equivalent for."""
    advice = hint or "Leave it out, or choose a model of a provider that has it."
    return GatewayError(
        error_pb2.ERROR_REASON_UNSUPPORTED_PARAMETER,
        f"{provider} has no equivalent of `{param}`. {advice}",
        param=param,
    )


def invalid(param: str, message: str) -> GatewayError:
    """The refusal of a malformed value."""
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, message, param=param)


def protocol_error(provider: str, what: str) -> GatewayError:
    """The provider answered with something that is not its protocol."""
    return GatewayError(
        error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL,
        f"{provider} {what}. Try again, or choose another model.",
    )


def read_object(body: bytes, provider: str) -> Json:
    """A provider's JSON object. Raises UPSTREAM_PROTOCOL when it is not one."""
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError as exc:
        raise protocol_error(provider, "answered with something that is not JSON") from exc
    if not isinstance(value, dict):
        raise protocol_error(provider, "answered with JSON that is not an object")
    return value


def given_object(raw: bytes, param: str) -> Json:
    """A caller's JSON object. Raises INVALID_REQUEST when it is not one."""
    try:
        value = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        value = None
    if not isinstance(value, dict):
        raise invalid(param, f"`{param}` must be a JSON object.")
    return value


def arguments(text: str) -> msgspec.Raw | None:
    """A tool call's arguments, verbatim, when they are a JSON object; ``None`` when they are not,
    as when an output limit cut them. An empty text counts as no arguments.
    """
    raw = text.encode() if text.strip() else b"{}"
    return msgspec.Raw(raw) if is_object(raw) else None


def is_object(raw: bytes) -> bool:
    """Whether the bytes are a JSON object."""
    try:
        return isinstance(msgspec.json.decode(raw), dict)
    except msgspec.DecodeError:
        return False


def dump(value: object) -> bytes:
    """Compact JSON of what a provider sent; numbers of any size survive."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def utf8_size(text: str) -> int:
    """How many bytes the text has in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def count(value: object) -> int:
    """A reported count; 0 for what is not a whole number or does not fit."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53:
        return value
    return 0


def quoted(said: object) -> str:
    """A provider's words, fit to be shown: one line, not endless, nothing that may be a secret."""
    text = " ".join(said.split()) if isinstance(said, str) else ""
    text = _SECRET.sub("***", text)
    if len(text) > _SAID_CHARS_MAX:
        text = text[:_SAID_CHARS_MAX] + "…"
    return text or "it does not say why."


def retry_after_ms(headers: Mapping[str, str]) -> int:
    """``retry-after-ms`` or ``retry-after`` (seconds) in milliseconds; 0 without a number."""
    for name, scale in (("retry-after-ms", 1), ("retry-after", 1000)):
        value = headers.get(name, "")
        if _RETRY_AFTER.fullmatch(value):
            return round(float(value) * scale)
    return 0


def upstream_error(
    provider: str,
    reason: int,
    *,
    status: int,
    said: object,
    retry_ms: int = 0,
) -> GatewayError:
    """A provider's error under the gateway's reason, in words that say what to do next.

    ``status`` is 0 for an error inside a stream that began well.
    """
    message = _SENTENCES[reason].format(
        provider=provider,
        said=quoted(said),
        status=f" with status {status}" if status else " while it answered",
    )
    return GatewayError(reason, message, retry_after_ms=retry_ms, upstream_status=status)
