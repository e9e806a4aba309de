"""Microsoft Entra's access tokens, for Azure OpenAI without keys.

https://learn.microsoft.com/en-us/entra/identity-platform/v2-oauth2-client-creds-grant-flow. The
secret is a JSON object with ``tenant_id``, ``client_id`` and either ``client_secret`` or
``federated_token_file`` (workload identity of Kubernetes: the file's token is read again for every
purchase, as it is replaced hourly), and, for other clouds, ``authority``.
"""

from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx2
import msgspec

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from runtime.secrets import Secret
from services.router.credentials.tokens import Buy, Token, TokenError
from services.router.upstream.egress import origin_of

AUTHORITY: Final = "https://login.microsoftonline.com"
ASSERTION: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
TIMEOUT_S: Final = 15.0
TOKEN_BYTES_MAX: Final = 64 * 1024


class _Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the secret holds."""

    tenant_id: str
    client_id: str
    client_secret: str = ""
    federated_token_file: str = ""
    authority: str = AUTHORITY


class _Sold(msgspec.Struct, frozen=True):
    """What Entra answers."""

    access_token: str
    expires_in: float


def seller(secret: Secret, scope: str) -> Buy:
    """Buys with the identity in the secret. Raises INVALID_REQUEST when it is none."""
    try:
        identity = msgspec.json.decode(secret.reveal(), type=_Identity)
    except msgspec.MsgspecError as error:
        raise _unusable(str(error)) from None
    if bool(identity.client_secret) == bool(identity.federated_token_file):
        raise _unusable("it needs either client_secret or federated_token_file")
    origin_of(identity.authority, private_allowed=True)
    return lambda: _bought(identity, scope)


def _bought(identity: _Identity, scope: str) -> Token:
    url = f"{identity.authority.rstrip('/')}/{quote(identity.tenant_id, safe='')}/oauth2/v2.0/token"
    try:
        answer = httpx2.post(
            url,
            data=_form(identity, scope),
            timeout=TIMEOUT_S,
            follow_redirects=False,
            trust_env=False,
        )
    except httpx2.HTTPError as error:
        raise TokenError(f"Entra could not be asked ({type(error).__name__})") from None
    if answer.status_code != httpx2.codes.OK:
        raise TokenError(f"Entra answered {answer.status_code}: {_code(answer.content)}")
    try:
        sold = msgspec.json.decode(answer.content[:TOKEN_BYTES_MAX], type=_Sold)
    except msgspec.MsgspecError:
        raise TokenError("Entra answered with something that is no token") from None
    return Token(sold.access_token, sold.expires_in)


def _form(identity: _Identity, scope: str) -> dict[str, str]:
    form = {
        "grant_type": "client_credentials",
        "client_id": identity.client_id,
        "scope": scope,
    }
    if identity.client_secret:
        return form | {"client_secret": identity.client_secret}
    try:
        assertion = Path(identity.federated_token_file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise TokenError("the federated token's file cannot be read") from None
    return form | {"client_assertion_type": ASSERTION, "client_assertion": assertion}


def _code(body: bytes) -> str:
    """The error's code; its description may repeat what was sent."""
    try:
        told: Any = msgspec.json.decode(body[:TOKEN_BYTES_MAX])
    except msgspec.MsgspecError:
        return "no reason"
    code = told.get("error") if isinstance(told, dict) else None
    return code if isinstance(code, str) else "no reason"


def _unusable(why: str) -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_INVALID_REQUEST, f"The credential is no Entra identity: {why}."
    )
