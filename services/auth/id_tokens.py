"""ID tokens of an identity provider: believed only when everything about them is as it must be.

Whatever the token says of how it is to be checked counts for nothing: its algorithm must be one of
ours, its key one that the provider publishes, found by its name in a table.
"""

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from runtime.later import Later

TOKEN_CHARS_MAX: Final = 16 * 1024
"""The longest token that is looked at."""

KEYS_MAX: Final = 50
"""How many keys a provider may publish."""

LEEWAY_S: Final = 60
"""By how much the provider's clock may differ, in seconds."""

AGE_S_MAX: Final = 600
"""How long ago a token may have been made: it comes straight from the provider, in seconds."""

RSA_BITS_MIN: Final = 2048
CLAIM_CHARS_MAX: Final = 320
GROUPS_MAX: Final = 1_000

_KTY_OF: Final[Mapping[str, str]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    **dict.fromkeys(("ES256", "ES384", "ES512"), "EC"),
    "EdDSA": "OKP",
}
"""The algorithms that are believed, all of them with a public key, and the keys that each takes
(https://www.rfc-editor.org/rfc/rfc7518#section-3.1).
"""

_JWT: Final = Later("jwt")
_RSA: Final = Later("cryptography.hazmat.primitives.asymmetric.rsa")
_CURVES: Final = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a token must say.

    Args:
        issuer: exactly.
        audience: whom it must be meant for.
        client_id: whom it must have been given to.
        nonce: of the sign-in; ``None`` where the provider may not have been told one.
        group_claim: where groups are listed.
    """

    issuer: str
    audience: str
    client_id: str
    nonce: str
    nonce_required: bool
    group_claim: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a token says of a person. ``email`` is in lower case, and empty unless verified."""

    subject: str
    email: str
    name: str
    groups: frozenset[str]


class UnknownKeyError(Exception):
    """The token names a key that is not known: the provider may have a new one."""


class KeySet:
    """The public keys of a provider, by name."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        """Takes what can be used of a JWK set
        (https://www.rfc-editor.org/rfc/rfc7517#section-5). Raises UPSTREAM_PROTOCOL.
        """
        keys = document.get("keys")
        if not isinstance(keys, list) or len(keys) > KEYS_MAX:
            raise GatewayError(
                error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL,
                f"The identity provider's key set must be a list of at most {KEYS_MAX} keys.",
            )
        self._keys: dict[str, Mapping[str, Any]] = {}
        for key in keys:
            if isinstance(key, dict) and _is_public_signing_key(key):
                self._keys[key["kid"]] = key

    def key(self, header: Mapping[str, Any]) -> tuple[Any, str]:
        """The key of a token and its algorithm. Raises :class:`UnknownKeyError`, UPSTREAM_AUTH."""
        algorithm, name = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in _KTY_OF:
            raise _invalid("it is not signed with an algorithm that is believed")
        if not isinstance(name, str) or not 1 <= len(name) <= CLAIM_CHARS_MAX:
            raise _invalid("it does not name its key")
        found = self._keys.get(name)
        if found is None:
            raise UnknownKeyError
        curve = _CURVES.get(algorithm)
        if (
            found["kty"] != _KTY_OF[algorithm]
            or found.get("alg", algorithm) != algorithm
            or (curve is not None and found.get("crv") != curve)
        ):
            raise _invalid("its algorithm is not that of its key")
        try:
            key = _JWT.PyJWK(dict(found), algorithm).key
        except (_JWT.PyJWTError, ValueError):
            raise _invalid("its key cannot be used") from None
        if isinstance(key, _RSA.RSAPublicKey) and key.key_size < RSA_BITS_MIN:
            raise _invalid("its key is too short")
        return key, algorithm


def verified(token: str, keys: KeySet, expected: Expected, now: datetime) -> Claims:
    """What a token says, if it is good. Raises :class:`UnknownKeyError`, UPSTREAM_AUTH."""
    if len(token) > TOKEN_CHARS_MAX or not token.isascii():
        raise _invalid("it is too long")
    try:
        header = _JWT.get_unverified_header(token)
    except (_JWT.PyJWTError, RecursionError):
        raise _invalid("it is no signed token") from None
    if "crit" in header or str(header.get("typ", "JWT")).upper() != "JWT":
        raise _invalid("it is a token of another kind")
    key, algorithm = keys.key(header)
    try:
        content = _JWT.PyJWS().decode(token, key, algorithms=[algorithm])
        claims = json.loads(content, object_pairs_hook=_unique)
    except (_JWT.PyJWTError, ValueError, RecursionError):
        raise _invalid("its signature or its content is broken") from None
    if not isinstance(claims, dict):
        raise _invalid("it says nothing")
    _check_parties(claims, expected)
    _check_times(claims, now.timestamp())
    _check_nonce(claims, expected)
    return _claims(claims, expected.group_claim)


def _check_parties(claims: Mapping[str, Any], expected: Expected) -> None:
    """Who made it, for whom, and for which client
    (https://openid.net/specs/openid-connect-core-1_0.html#IDTokenValidation).
    """
    if claims.get("iss") != expected.issuer:
        raise _invalid("it is another issuer's")
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if expected.audience not in audiences:
        raise _invalid("it is meant for somebody else")
    party = claims.get("azp")
    if party is None and len(audiences) > 1:
        raise _invalid("it is meant for several and does not say which client it was given to")
    if party is not None and party != expected.client_id:
        raise _invalid("it was given to another client")


def _check_times(claims: Mapping[str, Any], now_s: float) -> None:
    times: list[Any] = [claims.get(field) for field in ("exp", "iat", "nbf")]
    ends_s, made_s, begins_s = times
    begins_s = made_s if begins_s is None else begins_s
    if not (_is_time(ends_s) and _is_time(made_s) and _is_time(begins_s)):
        raise _invalid("it does not say when it was made and until when it is good")
    if not ends_s > now_s - LEEWAY_S:
        raise _invalid("it has expired")
    if not begins_s <= now_s + LEEWAY_S or not made_s <= now_s + LEEWAY_S:
        raise _invalid("it is not valid yet: compare the clocks")
    if not made_s >= now_s - AGE_S_MAX - LEEWAY_S:
        raise _invalid("it is an old one")


def _is_time(value: Any) -> bool:
    """Whether it is a number; to JSON, true is none."""
    return type(value) in (int, float)


def _check_nonce(claims: Mapping[str, Any], expected: Expected) -> None:
    nonce = claims.get("nonce")
    if nonce is None and not expected.nonce_required:
        return
    if type(nonce) is not str or not hmac.compare_digest(nonce.encode(), expected.nonce.encode()):
        raise _invalid("it was made for another sign-in")


def _claims(claims: Mapping[str, Any], group_claim: str) -> Claims:
    subject, email, name = (_text(claims.get(field)) for field in ("sub", "email", "name"))
    if not subject:
        raise _invalid("it does not say of whom it is")
    # Some providers write truth values as texts.
    is_verified = claims.get("email_verified") in (True, "true")
    groups = claims.get(group_claim, [])
    groups = groups if isinstance(groups, list) else [groups]
    if len(groups) > GROUPS_MAX:
        raise _invalid("it lists too many groups")
    return Claims(
        subject=subject,
        email=email.lower() if is_verified else "",
        name=name,
        groups=frozenset(group for group in groups if type(group) is str),
    )


def _text(value: object) -> str:
    fits = type(value) is str and len(value) <= CLAIM_CHARS_MAX and value.isprintable()
    return str(value).strip() if fits else ""


def _is_public_signing_key(key: Mapping[str, Any]) -> bool:
    """Whether signatures can be checked with it; a symmetric key has no place in a public set."""
    return (
        isinstance(key.get("kid"), str)
        and key.get("kty") in ("RSA", "EC", "OKP")
        and key.get("use", "sig") == "sig"
        and "d" not in key
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ``ValueError`` for a name that is there twice: which of two counts is no guess."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _invalid(why: str) -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_UPSTREAM_AUTH,
        f"The identity provider's token is refused: {why}. Begin again, or tell the operator.",
    )
