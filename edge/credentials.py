"""Which API key a request presents: pure."""

from collections.abc import Mapping
from typing import Final

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError

_PLAIN: Final = (b"x-api-key", b"api-key", b"x-goog-api-key")
"""Anthropic's, Azure's and Google's headers."""
_ANY_PLAIN: Final = frozenset(_PLAIN)
_BEARER: Final = b"bearer "


def presented_key(headers: Mapping[bytes, bytes]) -> str:
    """The key, from ``Authorization: Bearer`` or one of the vendors' headers; never from a query.

    Raises INVALID_API_KEY when there is none, when the scheme is another, or when two headers
    disagree: which of two keys counts is nothing to guess.
    """
    authorization = headers.get(b"authorization")
    key = None
    if authorization is not None:
        if authorization[:7].lower() != _BEARER:
            raise _refusal("The Authorization header must be 'Bearer ' and an API key.")
        key = authorization[7:].strip()
    if not _ANY_PLAIN.isdisjoint(headers):
        for name in _PLAIN:
            if name in headers:
                if key is not None and headers[name] != key:
                    raise _refusal("Two headers present different API keys; send one.")
                key = headers[name]
    if not key:
        raise _refusal("No API key was sent; send one as 'Authorization: Bearer sk-og-…'.")
    return key.decode("latin-1")


def _refusal(message: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_INVALID_API_KEY, message)
