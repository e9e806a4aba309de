"""Google's access tokens, through ``google-auth``: of service accounts, of identities that others
vouch for, and of machines.

https://google-auth.readthedocs.io/en/latest/reference/google.auth.html. The key file may be of
the kinds below. Without one, the metadata server of the machine or the pod sells the tokens.
"""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from google.auth import compute_engine, identity_pool
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request
from google.oauth2 import credentials as user
from google.oauth2 import service_account

from onegate.common.v1 import error_pb2
from runtime.clock import Clock, SystemClock
from runtime.errors import GatewayError
from runtime.secrets import Secret
from services.router.credentials.tokens import Buy, Token, TokenError

KINDS: Final[Mapping[str, Callable[..., Any]]] = {
    "service_account": service_account.Credentials.from_service_account_info,
    "external_account": identity_pool.Credentials.from_info,
    "authorized_user": user.Credentials.from_authorized_user_info,
}
"""What reads a key file, by its ``type``. Files that name a program to be run are not among
them."""

LIFE_S: Final = 3600.0
"""How long a token is good when nobody says so
(https://cloud.google.com/docs/authentication/token-types#access)."""


def seller(secret: Secret, scope: str) -> Buy:
    """Buys with the key file's content, or with the machine's identity when it is empty.

    Raises INVALID_REQUEST when the content is no key file.
    """
    credentials = _credentials(secret.reveal(), scope)
    clock = SystemClock()
    return lambda: _bought(credentials, clock)


def _credentials(text: str, scope: str) -> Any:
    if not text:
        return compute_engine.Credentials(scopes=[scope])  # type: ignore[no-untyped-call]
    try:
        told = json.loads(text)
        return KINDS[told["type"]](told, scopes=[scope])
    except (GoogleAuthError, ValueError, TypeError, KeyError) as error:
        kind = type(error).__name__
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            f"The credential is no key file of Google's ({kind}): its type must be one of"
            f" {', '.join(KINDS)}.",
        ) from None


def _bought(credentials: Any, clock: Clock) -> Token:
    try:
        credentials.refresh(Request())
    except GoogleAuthError as error:
        raise TokenError(f"Google answered: {error.args[0] if error.args else error}") from None
    expiry: datetime | None = credentials.expiry
    if expiry is None:
        return Token(credentials.token, LIFE_S)
    left_s = (expiry.replace(tzinfo=UTC) - clock.now()).total_seconds()
    return Token(credentials.token, left_s)
