"""The identity provider at the wire: its metadata, keys, tokens and sign-ins on other devices.

Nothing is followed that was not configured: no redirects, and no address that is not HTTPS unless
the provider is on this machine. Whatever it sends is bounded in size and time.
"""

import asyncio
import base64
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote_plus, urlencode

from onegate.common.v1 import error_pb2
from runtime.clock import Clock
from runtime.config import OidcSettings
from runtime.errors import GatewayError
from runtime.rules import is_safe_url
from runtime.secrets import Secret
from services.auth.id_tokens import Claims, Expected, KeySet, UnknownKeyError, verified

TIMEOUT_S: Final = 5.0
"""How long the provider may take for one answer, in seconds."""

ANSWER_BYTES_MAX: Final = 512 * 1024
REQUESTS_MAX: Final = 8
"""How many requests to the provider are under way at once."""

FRESH_S: Final = 3600.0
"""How long metadata and keys are gone by before they are fetched again, in seconds."""

STALE_S: Final = 86_400.0
"""How long they are gone by while they cannot be fetched, in seconds."""

REFETCH_S: Final = 30.0
"""The least time between two fetches of the same thing, in seconds: whoever sends tokens with
made-up keys, or comes while the provider is away, cannot make auth ask for each.
"""

_WELL_KNOWN: Final = "/.well-known/openid-configuration"
_DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
_NEVER: Final = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the provider said; ``error`` is OAuth's word for what went wrong, empty for nothing."""

    body: Mapping[str, Any]
    error: str


@dataclass(slots=True)
class _Kept:
    """A document and when it was fetched, and asked for, last."""

    document: Mapping[str, Any] | None = None
    fetched_s: float = _NEVER
    asked_s: float = _NEVER


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for the failure that it is."""

    def redirect_request(self, *_: Any) -> None:
        """Follows nothing."""
        return


class Issuer:
    """The identity provider of the settings."""

    def __init__(self, settings: OidcSettings, secret: Secret | None, clock: Clock) -> None:
        self.settings = settings
        self._secret = secret
        self._clock = clock
        self._metadata, self._keys = _Kept(), _Kept()
        self._fetching = asyncio.Lock()
        self._room = asyncio.Semaphore(REQUESTS_MAX)
        self._opener = urllib.request.build_opener(_NoRedirect)

    async def authorization_url(self, asked: Mapping[str, str]) -> str:
        """What a browser opens. Raises as :meth:`endpoint`."""
        address = await self.endpoint("authorization_endpoint")
        fields = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "scope": " ".join(self.settings.scopes),
            "code_challenge_method": "S256",
            **asked,
        }
        return f"{address}{'&' if '?' in address else '?'}{urlencode(fields)}"

    async def begin_device(self, challenge: str, nonce: str) -> Mapping[str, Any]:
        """Starts a sign-in on another device
        (https://www.rfc-editor.org/rfc/rfc8628#section-3.1). Raises as :meth:`endpoint`.
        """
        answer = await self._ask(
            await self.endpoint("device_authorization_endpoint"),
            {
                "client_id": self.settings.client_id,
                "scope": " ".join(self.settings.scopes),
                "code_challenge": challenge,
                "code_challenge_method": "S256",
                "nonce": nonce,
            },
        )
        if answer.error:
            raise _refused(answer.error)
        return answer.body

    async def exchange(self, code: str, redirect_uri: str, verifier: str) -> Answer:
        """The tokens for a code (https://www.rfc-editor.org/rfc/rfc6749#section-4.1.3)."""
        return await self._ask(
            await self.endpoint("token_endpoint"),
            {
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": redirect_uri,
                "code_verifier": verifier,
                "client_id": self.settings.client_id,
            },
        )

    async def poll_device(self, device_code: str, verifier: str) -> Answer:
        """The tokens for a sign-in on another device, or why there are none yet."""
        return await self._ask(
            await self.endpoint("token_endpoint"),
            {
                "grant_type": _DEVICE_GRANT,
                "device_code": device_code,
                "code_verifier": verifier,
                "client_id": self.settings.client_id,
            },
        )

    async def claims(self, answer: Answer, nonce: str, *, nonce_required: bool) -> Claims:
        """What the tokens of an answer say of a person.

        A key that is not known is looked for once more at the provider, which may have changed
        its keys. Raises UPSTREAM_AUTH, UPSTREAM_PROTOCOL, UPSTREAM_UNREACHABLE.
        """
        token = answer.body.get("id_token")
        if answer.error or not isinstance(token, str):
            raise _refused(answer.error or "no ID token; is `openid` among its scopes?")
        settings = self.settings
        expected = Expected(
            issuer=settings.issuer,
            audience=settings.audience or settings.client_id,
            client_id=settings.client_id,
            nonce=nonce,
            nonce_required=nonce_required,
            group_claim=settings.group_claim,
        )
        now = self._clock.now()
        try:
            return verified(token, await self._key_set(anew=False), expected, now)
        except UnknownKeyError:
            return await self._claims_anew(token, expected, now)

    async def _claims_anew(self, token: str, expected: Expected, now: datetime) -> Claims:
        try:
            return verified(token, await self._key_set(anew=True), expected, now)
        except UnknownKeyError:
            raise GatewayError(
                error_pb2.ERROR_REASON_UPSTREAM_AUTH,
                "The identity provider's token is refused: its key is not one that the provider"
                " publishes. Begin again in half a minute, or tell the operator.",
            ) from None

    async def endpoint(self, name: str) -> str:
        """An address of the provider. Raises UPSTREAM_PROTOCOL, UPSTREAM_UNREACHABLE."""
        address = self.settings.issuer.rstrip("/") + _WELL_KNOWN
        document = await self._fetched(self._metadata, address, anew=False)
        if document.get("issuer") != self.settings.issuer:
            raise _broken("its metadata is another issuer's: compare oidc.issuer, to the last /")
        found = document.get(name)
        if not isinstance(found, str):
            raise _broken(f"it has no {name}: this way of signing in is not offered")
        is_local = _is_plain(found) and not _is_plain(self.settings.issuer)
        if is_local or not is_safe_url(found):
            raise _broken(f"its {name} is not an https:// address")
        return found

    async def _key_set(self, *, anew: bool) -> KeySet:
        address = await self.endpoint("jwks_uri")
        return KeySet(await self._fetched(self._keys, address, anew=anew))

    async def _fetched(self, kept: _Kept, address: str, *, anew: bool) -> Mapping[str, Any]:
        """A document, fetched if it is not fresh, and kept if it cannot be."""
        async with self._fetching:
            now_s = self._clock.monotonic()
            age_s = now_s - kept.fetched_s
            is_due = (anew or age_s > FRESH_S) and now_s - kept.asked_s >= REFETCH_S
            if is_due:
                kept.asked_s = now_s
                try:
                    answer = await self._ask(address, None)
                    if answer.error:
                        raise _refused(answer.error)
                    kept.document, kept.fetched_s, age_s = answer.body, now_s, 0.0
                except GatewayError:
                    if kept.document is None:
                        # Nothing is known yet: the next one may ask at once.
                        kept.asked_s = _NEVER
                        raise
            if kept.document is None or age_s > STALE_S:
                raise _away()
            return kept.document

    async def _ask(self, address: str, fields: Mapping[str, str] | None) -> Answer:
        """One request: a GET, or a POST of fields. Raises UPSTREAM_UNREACHABLE,
        UPSTREAM_PROTOCOL.
        """
        headers = {"accept": "application/json"}
        if fields is not None and self._secret is not None:
            # https://www.rfc-editor.org/rfc/rfc6749#section-2.3.1
            pair = (self.settings.client_id, self._secret.reveal())
            text = ":".join(map(quote_plus, pair))
            headers["authorization"] = f"Basic {base64.b64encode(text.encode()).decode()}"
        data = None if fields is None else urlencode(fields).encode()
        request = urllib.request.Request(address, data=data, headers=headers)  # noqa: S310
        try:
            async with asyncio.timeout(2 * TIMEOUT_S), self._room:
                status, content = await asyncio.to_thread(self._send, request)
        except (OSError, http.client.HTTPException):
            raise _away() from None
        return _answer(status, content)

    def _send(self, request: urllib.request.Request) -> tuple[int, bytes]:
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                return answer.status, answer.read(ANSWER_BYTES_MAX + 1)
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, refusal.read(ANSWER_BYTES_MAX + 1)


def _answer(status: int, content: bytes) -> Answer:
    """What an HTTP answer says. Raises UPSTREAM_PROTOCOL, UPSTREAM_UNREACHABLE."""
    if status >= 500:
        raise _away()
    if len(content) > ANSWER_BYTES_MAX:
        raise _broken("its answer is too long")
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise _broken(f"its answer (HTTP {status}) is no JSON object")
    error = body.get("error") if status >= 400 else ""
    return Answer(body=body, error=error if isinstance(error, str) else f"HTTP {status}")


def _is_plain(address: str) -> bool:
    return address.startswith("http:")


def _away() -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_UPSTREAM_UNREACHABLE,
        "The identity provider does not answer. Try again soon; admin keys work meanwhile.",
    )


def _broken(why: str) -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL, f"The identity provider cannot be used: {why}."
    )


def _refused(word: str) -> GatewayError:
    shown = "".join(char for char in word[:80] if char.isprintable())
    return GatewayError(
        error_pb2.ERROR_REASON_UPSTREAM_AUTH,
        f"The identity provider refuses this sign-in ({shown}). Begin again.",
    )
