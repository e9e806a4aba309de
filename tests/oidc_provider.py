"""An identity provider at the wire: OpenID Connect on a loopback port, with keys that can be
rotated and tokens that a test can spoil.
"""

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

CLIENT = "onegate-cli"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


@dataclass
class SigningKey:
    """A key pair and its name."""

    kid: str
    algorithm: str
    private: Any

    def public(self) -> dict[str, Any]:
        """The public half, as the provider publishes it."""
        algorithm = jwt.get_algorithm_by_name(self.algorithm)
        jwk: dict[str, Any] = algorithm.to_jwk(self.private.public_key(), as_dict=True)
        return {**jwk, "kid": self.kid, "use": "sig", "alg": self.algorithm}


def rsa_key(kid: str, bits: int = 2048) -> SigningKey:
    """A new RSA key."""
    return SigningKey(kid, "RS256", rsa.generate_private_key(65537, bits))


def ec_key(kid: str) -> SigningKey:
    """A new key on P-256."""
    return SigningKey(kid, "ES256", ec.generate_private_key(ec.SECP256R1()))


RSA_KEY = rsa_key("rsa-1")
"""Made once: large primes take their time."""


@dataclass
class Grant:
    """What a code or a device code is good for."""

    challenge: str
    nonce: str | None
    redirect_uri: str
    approved: bool = False


@dataclass
class Provider:
    """The provider; a test changes what it wants."""

    issuer: str = ""
    keys: list[SigningKey] = field(default_factory=lambda: [RSA_KEY])
    person: dict[str, Any] = field(
        default_factory=lambda: {
            "sub": "subject-1",
            "email": "Ada@Example.com",
            "email_verified": True,
            "name": "Ada",
        }
    )
    spoil: Callable[[dict[str, Any]], Any] | None = None
    sign: Callable[[dict[str, Any], SigningKey], str] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    grants: dict[str, Grant] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    now: Callable[[], float] = time.time
    interval_s: int = 1
    slow_down: bool = False

    def token(self, grant: Grant) -> str:
        """An ID token, as spoilt as the test wants it."""
        now = int(self.now())
        claims = {
            "iss": self.issuer,
            "aud": CLIENT,
            "azp": CLIENT,
            "iat": now,
            "exp": now + 300,
            **({} if grant.nonce is None else {"nonce": grant.nonce}),
            **self.person,
        }
        if self.spoil is not None:
            claims = self.spoil(claims) or claims
        if self.sign is not None:
            return self.sign(claims, self.keys[0])
        return signed(claims, self.keys[0])

    def authorize(self, url: str) -> str:
        """What the browser of somebody who signs in does: where it is sent back to."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        assert asked["client_id"] == CLIENT
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe(16)
        self.grants[code] = Grant(asked["code_challenge"], asked["nonce"], asked["redirect_uri"])
        return f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}"

    def approve(self) -> None:
        """What somebody does on another device."""
        for grant in self.grants.values():
            grant.approved = True

    def answer(self, path: str, form: Mapping[str, str]) -> tuple[int, Any]:
        """Any request."""
        self.asked.append(path)
        if path in self.broken:
            return 503, {}
        match path:
            case "/.well-known/openid-configuration":
                return 200, self._metadata()
            case "/keys":
                return 200, {"keys": [key.public() for key in self.keys]}
            case "/device":
                return 200, self._device(form)
            case "/token":
                return self._tokens(form)
        return 404, {"error": "not_found"}

    def _metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "device_authorization_endpoint": f"{self.issuer}/device",
            "jwks_uri": f"{self.issuer}/keys",
            **self.metadata,
        }

    def _device(self, form: Mapping[str, str]) -> dict[str, Any]:
        code = secrets.token_urlsafe(16)
        # Most providers know no nonce here.
        self.grants[code] = Grant(form["code_challenge"], None, "")
        return {
            "device_code": code,
            "user_code": "WDJB-MJHT",
            "verification_uri": f"{self.issuer}/activate",
            "expires_in": 300,
            "interval": self.interval_s,
        }

    def _tokens(self, form: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        is_device = form["grant_type"] == DEVICE_GRANT
        code = form["device_code" if is_device else "code"]
        grant = self.grants.get(code)
        if grant is None or form["client_id"] != CLIENT:
            return 400, {"error": "invalid_grant"}
        if self.slow_down:
            self.slow_down = False
            return 400, {"error": "slow_down"}
        if is_device and not grant.approved:
            return 400, {"error": "authorization_pending"}
        del self.grants[code]
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        if base64.urlsafe_b64encode(digest).decode().rstrip("=") != grant.challenge:
            return 400, {"error": "invalid_grant"}
        if not is_device and form["redirect_uri"] != grant.redirect_uri:
            return 400, {"error": "invalid_grant"}
        return 200, {"token_type": "Bearer", "access_token": "x", "id_token": self.token(grant)}


def signed(claims: Any, key: SigningKey, **headers: Any) -> str:
    """Claims signed with a key that they name."""
    named = {"kid": key.kid, **headers}
    return jwt.encode(claims, key.private, algorithm=key.algorithm, headers=named)


@contextmanager
def provider() -> Iterator[Provider]:
    """A provider on a port of its own."""
    made = Provider()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            form = dict(parse_qs(self.rfile.read(length).decode()))
            parts = urlsplit(self.path)
            if parts.path == "/authorize":
                self.send_response(302)
                self.send_header("location", made.authorize(self.path))
                self.send_header("content-length", "0")
                self.end_headers()
                return
            status, body = made.answer(parts.path, {name: vs[0] for name, vs in form.items()})
            content = json.dumps(body).encode() if not isinstance(body, bytes) else body
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _serve  # noqa: N815 - as the standard library names them

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.issuer = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
