"""What the gateway itself wants to know of a call, from the request's headers."""

import re
from collections.abc import Mapping
from typing import Final

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError

TAGS_MAX: Final = 16
"""How many tags a call may have."""
NAME_CHARS_MAX: Final = 64
VALUE_CHARS_MAX: Final = 512
KEY_CHARS_MAX: Final = 255
"""Of an idempotency key."""

_USD: Final = re.compile(r"(\d{1,9})(?:\.(\d{1,9}))?")
_TEXTS: Final = {
    "customer": b"x-onegate-customer",
    "data_class": b"x-onegate-data-class",
    "feature": b"x-onegate-feature",
    "run": b"x-onegate-run",
}
_TAGS: Final = b"x-onegate-tags"
_COST_MAX: Final = b"x-onegate-max-cost"
_DRY_RUN: Final = b"x-onegate-dry-run"
_IDEMPOTENCY: Final = b"idempotency-key"
_WAIT: Final = b"x-onegate-wait"
_PRIORITY: Final = b"x-onegate-priority"
_SECONDS: Final = re.compile(r"(\d{1,4})(?:\.(\d{1,3}))?")
_OURS: Final = frozenset(
    {*_TEXTS.values(), _TAGS, _COST_MAX, _DRY_RUN, _WAIT, _PRIORITY, _IDEMPOTENCY}
)
"""All headers of ours: most calls have none of them, and are asked for all at once."""
_FLAGS: Final = {"true": True, "false": False}


def call_context(
    headers: Mapping[bytes, bytes], *, request_id: str, client_address: str
) -> chat_pb2.CallContext:
    """The context of a call. Raises INVALID_REQUEST for a header that cannot be understood.

    Args:
        headers: names in lower case, ours and ``idempotency-key``. ``x-onegate-tags`` is
            ``team=search, env=prod``; ``x-onegate-max-cost`` is a decimal in USD.
        request_id: the gateway's own id of the request.
        client_address: the caller's network address.
    """
    context = chat_pb2.CallContext(request_id=request_id, client_address=client_address)
    if _OURS.isdisjoint(headers):
        return context
    for name, header in _TEXTS.items():
        if header in headers:
            setattr(context, name, _text(headers[header], header))
    if _TAGS in headers:
        context.tags.update(_tags(_text(headers[_TAGS], _TAGS, chars_max=16 * 1024)))
    if _COST_MAX in headers:
        context.cost_max_nano_usd = _nano_usd(_text(headers[_COST_MAX], _COST_MAX))
    if _DRY_RUN in headers:
        context.dry_run = _flag(_text(headers[_DRY_RUN], _DRY_RUN), _DRY_RUN)
    if _IDEMPOTENCY in headers:
        context.idempotency_key = _key(_text(headers[_IDEMPOTENCY], _IDEMPOTENCY))
    if _WAIT in headers:
        context.wait_max_ms = _milliseconds(_text(headers[_WAIT], _WAIT))
    if _PRIORITY in headers:
        context.priority = _priority(_text(headers[_PRIORITY], _PRIORITY))
    return context


def _milliseconds(text: str) -> int:
    found = _SECONDS.fullmatch(text.strip())
    if found is None:
        raise _refusal(_WAIT, "must be a time in seconds like '2.5'")
    return int(found[1]) * 1000 + int((found[2] or "").ljust(3, "0"))


def _priority(text: str) -> int:
    digit = text.strip()
    if len(digit) != 1 or digit not in "0123456789":
        raise _refusal(_PRIORITY, "must be a digit from 0 to 9; the highest goes first")
    return int(digit)


def _key(text: str) -> str:
    if not text.isprintable() or not 0 < len(text) <= KEY_CHARS_MAX:
        # Taken for none, a key would protect nothing.
        raise _refusal(_IDEMPOTENCY, f"must be 1 to {KEY_CHARS_MAX} printable characters")
    return text


def _flag(text: str, header: bytes) -> bool:
    flag = _FLAGS.get(text.strip().lower())
    if flag is None:
        # Taken for false, a dry run that was meant would be a call that costs.
        raise _refusal(header, "must be true or false")
    return flag


def _text(value: bytes, header: bytes, *, chars_max: int = VALUE_CHARS_MAX) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise _refusal(header, "must be UTF-8") from None
    if len(text) > chars_max:
        raise _refusal(header, f"must not be longer than {chars_max} characters")
    return text


def _tags(text: str) -> dict[str, str]:
    tags: dict[str, str] = {}
    for entry in filter(None, map(str.strip, text.split(","))):
        name, _, value = (part.strip() for part in entry.partition("="))
        if not name or len(name) > NAME_CHARS_MAX or len(value) > VALUE_CHARS_MAX:
            raise _refusal(
                _TAGS,
                f"must be a list like 'team=search, env=prod', names of 1 to {NAME_CHARS_MAX} "
                f"and values of up to {VALUE_CHARS_MAX} characters",
            )
        tags[name] = value
    if len(tags) > TAGS_MAX:
        raise _refusal(_TAGS, f"must not have more than {TAGS_MAX} tags")
    return tags


def _nano_usd(text: str) -> int:
    found = _USD.fullmatch(text.strip())
    if found is None:
        raise _refusal(_COST_MAX, "must be a decimal in USD like '0.05'")
    return int(found[1]) * 10**9 + int((found[2] or "").ljust(9, "0"))


def _refusal(header: bytes, what: str) -> GatewayError:
    name = header.decode()
    return GatewayError(
        error_pb2.ERROR_REASON_INVALID_REQUEST, f"The header {name} {what}.", param=name
    )
