"""Nothing that is wrong about a token or about who gives it is overlooked."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from services.auth.issuer import REFETCH_S, STALE_S
from tests.oidc_provider import (
    CLIENT,
    RSA_KEY,
    SigningKey,
    ec_key,
    rsa_key,
    signed,
)
from tests.services.auth.sign_in_door import door, refusal

pytestmark = pytest.mark.anyio

FOREIGN_KEY = rsa_key(RSA_KEY.kid)


def hmac_signed(claims: dict[str, Any], key: SigningKey) -> str:
    """HS256 with the provider's public key as the secret."""
    head = {"alg": "HS256", "typ": "JWT", "kid": key.kid}
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (head, claims)
    ]
    secret = json.dumps(key.public()).encode()
    mac = jwt.get_algorithm_by_name("HS256").sign(b".".join(parts), secret)
    return b".".join([*parts, base64.urlsafe_b64encode(mac).rstrip(b"=")]).decode()


def unsigned(claims: dict[str, Any], key: SigningKey) -> str:
    """``alg: none``."""
    return jwt.encode(claims, "", algorithm="none", headers={"kid": key.kid})


def twice(claims: dict[str, Any], key: SigningKey) -> str:
    """The subject stands in it twice."""
    text = json.dumps(claims)[:-1] + ', "sub": "subject-2"}'
    named = {"kid": key.kid}
    return jwt.PyJWS().encode(text.encode(), key.private, algorithm="RS256", headers=named)


def named(kid: Any) -> Callable[[dict[str, Any], SigningKey], str]:
    """Signed well, under any name."""

    def sign(claims: dict[str, Any], key: SigningKey) -> str:
        head = {"alg": key.algorithm, "kid": kid}
        parts = [
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
            for part in (head, claims)
        ]
        mark = jwt.get_algorithm_by_name(key.algorithm).sign(b".".join(parts), key.private)
        return b".".join([*parts, base64.urlsafe_b64encode(mark).rstrip(b"=")]).decode()

    return sign


def with_header(**headers: Any) -> Callable[[dict[str, Any], SigningKey], str]:
    """Signed well, under another header."""
    return lambda claims, key: signed(claims, key, **headers)


SIGNATURES: dict[str, tuple[Callable[[dict[str, Any], SigningKey], str], str]] = {
    "no signature": (unsigned, "algorithm that is believed"),
    "the public key as a secret": (hmac_signed, "algorithm that is believed"),
    "a key nobody knows": (with_header(kid="rsa-9"), "key is not one that the provider"),
    "a key that is a path": (with_header(kid="../../../dev/null"), "key is not one that"),
    "no name of a key": (named(None), "no signed token"),
    "a name that is no text": (named(["rsa-1"]), "no signed token"),
    "a key of the token's own": (
        lambda claims, key: signed(
            claims, FOREIGN_KEY, jwk=FOREIGN_KEY.public(), jku="http://127.0.0.1:1/keys"
        ),
        "signature or its content",
    ),
    "a header that must be understood": (with_header(crit=["b64"], b64=False), "another kind"),
    "an access token": (with_header(typ="at+jwt"), "another kind"),
    "another algorithm than the key's": (
        lambda claims, key: jwt.encode(
            claims, key.private, algorithm="RS512", headers={"kid": key.kid}
        ),
        "not that of its key",
    ),
    "a claim that is there twice": (twice, "signature or its content"),
    "a huge token": (lambda claims, key: signed({**claims, "x": "y" * 20_000}, key), "too long"),
    "no token": (lambda _claims, _key: "x", "no signed token"),
    "nesting": (lambda _claims, _key: "W1tb" * 4_000 + ".e30.x", "no signed token"),
}


async def test_a_token_whose_signature_proves_nothing_lets_nobody_in(tmp_path: Path) -> None:
    async with door(tmp_path) as at:
        await at.add_user(role="owner")
        for attack, (sign, why) in SIGNATURES.items():
            at.idp.sign = sign
            reason, message = await refusal(at.sign_in())
            assert (reason, why in message) == ("upstream_auth", True), (attack, message)
            assert (await at.log())[0].type == "login.failed"
            at.idp.sign = None
            assert (await at.sign_in()).value


Spoil = Callable[[dict[str, Any]], dict[str, Any]]


def changed(**claims: Any) -> Spoil:
    """Other claims; ``None`` leaves one out."""
    return lambda good: {
        name: value for name, value in {**good, **claims}.items() if value is not None
    }


def moved(field: str, by_s: float) -> Spoil:
    """Another time."""
    return lambda good: {**good, field: (good.get(field) or good["iat"]) + by_s}


CLAIMS: dict[str, tuple[Spoil, str]] = {
    "another issuer": (changed(iss="https://evil.example"), "another issuer"),
    "the issuer with a slash": (lambda good: {**good, "iss": good["iss"] + "/"}, "another issuer"),
    "no issuer": (changed(iss=None), "another issuer"),
    "for another client": (changed(aud="other", azp="other"), "somebody else"),
    "for nobody": (changed(aud=None), "somebody else"),
    "for a client with a longer name": (changed(aud=f"{CLIENT}x"), "somebody else"),
    "given to another client": (changed(azp="other"), "another client"),
    "for several, given to nobody": (changed(aud=[CLIENT, "b"], azp=None), "for several"),
    "expired": (moved("exp", -361), "expired"),
    "good for ever": (changed(exp=None), "until when"),
    "good until true": (changed(exp=True), "until when"),
    "good until a word": (changed(exp="tomorrow"), "until when"),
    "not valid yet": (moved("nbf", 61), "not valid yet"),
    "made in the future": (moved("iat", 61), "not valid yet"),
    "made long ago": (moved("iat", -661), "old one"),
    "made at no time": (changed(iat=None), "until when"),
    "no nonce": (changed(nonce=None), "another sign-in"),
    "another nonce": (changed(nonce="0" * 64), "another sign-in"),
    "of nobody": (changed(sub=None), "of whom"),
    "of a number": (changed(sub=7), "of whom"),
    "too many groups": (changed(groups=[str(n) for n in range(1_001)]), "too many groups"),
}


async def test_a_token_that_says_something_wrong_lets_nobody_in(tmp_path: Path) -> None:
    async with door(tmp_path) as at:
        await at.add_user(role="owner")
        for attack, (spoil, why) in CLAIMS.items():
            at.idp.spoil = spoil
            reason, message = await refusal(at.sign_in())
            assert (reason, why in message) == ("upstream_auth", True), (attack, message)
        at.idp.spoil = None
        assert (await at.sign_in()).value


async def test_clocks_may_differ_a_little_and_audiences_be_several(tmp_path: Path) -> None:
    async with door(tmp_path) as at:
        await at.add_user()
        for spoil in (
            moved("exp", -359),
            moved("nbf", 59),
            moved("iat", 59),
            changed(aud=[CLIENT, "b"]),
        ):
            at.idp.spoil = spoil
            assert (await at.sign_in()).value


async def test_new_keys_are_found_and_asking_for_them_is_bounded(tmp_path: Path) -> None:
    async with door(tmp_path) as at:
        await at.add_user()
        await at.sign_in()
        at.clock.passed_s += REFETCH_S
        at.idp.keys = [ec_key("ec-2")]
        assert (await at.sign_in()).value
        fetched = at.idp.asked.count("/keys")
        at.idp.sign = with_header(kid="made-up")
        for _ in range(5):
            assert (await refusal(at.sign_in()))[0] == "upstream_auth"
        assert at.idp.asked.count("/keys") == fetched
        at.idp.sign = None
        assert (await at.sign_in()).value


async def test_known_keys_bridge_a_provider_whose_keys_are_away(tmp_path: Path) -> None:
    async with door(tmp_path) as at:
        await at.add_user()
        at.idp.broken = {"/keys"}
        assert (await refusal(at.sign_in()))[0] == "upstream_unreachable"
        at.idp.broken = set()
        await at.sign_in()
        at.idp.broken = {"/keys", "/.well-known/openid-configuration"}
        at.clock.passed_s += STALE_S - 1
        assert (await at.sign_in()).value
        at.clock.passed_s += 2
        assert (await refusal(at.sign_in()))[0] == "upstream_unreachable"


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://evil.example"},
        {"token_endpoint": "http://evil.example/token"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": 7},
    ],
    ids=str,
)
async def test_metadata_that_leads_elsewhere_is_not_followed(
    tmp_path: Path, metadata: dict[str, Any]
) -> None:
    async with door(tmp_path) as at:
        await at.add_user()
        at.idp.metadata = metadata
        assert (await refusal(at.sign_in()))[0] == "upstream_protocol"


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
async def test_a_key_that_is_weak_is_no_key(tmp_path: Path) -> None:
    async with door(tmp_path) as at:
        await at.add_user()
        at.idp.keys = [rsa_key("weak", 1024)]
        assert "too short" in (await refusal(at.sign_in()))[1]
