"""Signs people in, with a browser on their machine or on another device, and out again.

Two calls make a sign-in. Between them nothing is remembered that could be stolen: only who has the
verifier can finish, once, and the nonce is computed from the sign-in's id.
"""

# ruff: noqa: N802 - methods are named as the contract names them

import base64
import hashlib
import hmac
import re
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from onegate.auth.v1 import sign_in_service_pb2 as pb
from onegate.auth.v1 import sign_in_service_pb2_grpc
from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from services.auth.administration import Administration, Context, Deed, refused
from services.auth.admitting import admit, identity_message
from services.auth.desks.keys import end_key
from services.auth.id_tokens import Claims
from services.auth.issuer import Issuer
from services.auth.objects import SessionRecord, SignInRecord
from services.auth.records import Slice

SIGN_INS_MAX: Final = 1_000
"""How many sign-ins are under way at once."""

SIGN_IN_S: Final = 600
"""How long one may take, in seconds."""

INTERVAL_S: Final = 5
"""How often another device is asked about when the provider does not say, in seconds
(https://www.rfc-editor.org/rfc/rfc8628#section-3.2).
"""

INTERVAL_S_MAX: Final = 60
_TEXT_CHARS_MAX: Final = 2_048
_CHALLENGE: Final = re.compile(r"[0-9A-Za-z_-]{43}", re.ASCII)
_STATE: Final = re.compile(r"[0-9A-Za-z_-]{16,256}", re.ASCII)
_LOOPBACK: Final = re.compile(
    r"http://(?:127\.0\.0\.1|\[::1\]):[1-9][0-9]{0,4}(?:/[0-9A-Za-z_-]*)?", re.ASCII
)
"""Where a browser may be sent back to: this machine
(https://www.rfc-editor.org/rfc/rfc8252#section-7.3).
"""


class SignInService(sign_in_service_pb2_grpc.SignInServiceServicer):
    """Signs in and out."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def BeginSignIn(
        self, request: pb.BeginSignInRequest, context: Context
    ) -> pb.BeginSignInResponse:
        """Notes the sign-in and says where it goes on."""
        issuer = self._issuer()
        _check_begin(request)
        identity = self._administration.identity
        sign_in_id = identity.new_id("signin")
        answer = pb.BeginSignInResponse(id=sign_in_id)
        if request.redirect_uri:
            fields = {
                "redirect_uri": request.redirect_uri,
                "state": request.state,
                "nonce": self._nonce(sign_in_id),
                "code_challenge": request.code_challenge,
            }
            answer.url = await issuer.authorization_url(fields)
            lasts_s = SIGN_IN_S
        else:
            said = await issuer.begin_device(request.code_challenge, self._nonce(sign_in_id))
            lasts_s = _take_device(said, answer)

        def work(deed: Deed) -> SignInRecord:
            deed.allow("sign_in.begin")
            return _begun(deed, request, answer, lasts_s)

        organization = issuer.settings.organization
        row = await self._administration.admit(context, organization, work)
        answer.expires_at.FromDatetime(row.expires_at)
        return answer

    async def FinishSignIn(
        self, request: pb.FinishSignInRequest, context: Context
    ) -> pb.FinishSignInResponse:
        """A session, once the provider says who it is for."""
        issuer = self._issuer()
        organization = issuer.settings.organization
        for name in ("id", "code_verifier", "code", "device_code"):
            if len(getattr(request, name)) > _TEXT_CHARS_MAX:
                raise refused(name, f"must have at most {_TEXT_CHARS_MAX} characters")

        def take(deed: Deed) -> tuple[SignInRecord, int]:
            deed.allow("sign_in.begin")
            return _taken(deed, request)

        row, wait_s = await self._administration.admit(context, organization, take)
        if wait_s:
            return pb.FinishSignInResponse(interval_s=wait_s)
        who = ""
        try:
            claims = await self._claims(issuer, row, request)
            if isinstance(claims, int):
                return await self._later(context, organization, row, claims)
            who = claims.email or claims.subject

            def finish(deed: Deed) -> pb.FinishSignInResponse:
                deed.session.delete(SignInRecord, {"id": row.id})
                value, identity = admit(deed, issuer.settings, claims)
                return pb.FinishSignInResponse(value=value, identity=identity)

            return await self._administration.admit(context, organization, finish)
        except GatewayError as error:
            await self._administration.failed_sign_in(context, organization, who, error)
            raise

    async def WhoAmI(self, request: pb.WhoAmIRequest, context: Context) -> pb.WhoAmIResponse:
        """Who calls."""
        del request

        def work(deed: Deed) -> pb.Identity:
            deed.own("sign_in.who")
            return identity_message(deed, deed.key)

        return pb.WhoAmIResponse(identity=await self._administration.read(context, work))

    async def SignOut(self, request: pb.SignOutRequest, context: Context) -> pb.SignOutResponse:
        """Ends the session that the call is made with."""
        del request

        def work(deed: Deed) -> str:
            deed.own("sign_in.out")
            key = deed.key
            if key is None or deed.session.find(SessionRecord, {"id": key.id}) is None:
                raise GatewayError(
                    error_pb2.ERROR_REASON_CONFLICT,
                    "This is no session that a sign-in has made: revoke the key instead.",
                )
            end_key(deed, key)
            return key.id

        return pb.SignOutResponse(key_id=await self._administration.change(context, work))

    def _issuer(self) -> Issuer:
        issuer = self._administration.issuer
        if issuer is None:
            raise GatewayError(
                error_pb2.ERROR_REASON_NOT_FOUND,
                "Nobody signs in to this gateway: its operator names an identity provider under"
                " [oidc] in the configuration first. Admin keys work.",
            )
        return issuer

    def _nonce(self, sign_in_id: str) -> str:
        pepper = self._administration.identity.pepper.reveal().encode()
        return hmac.digest(pepper, f"onegate sign-in {sign_in_id}".encode(), "sha256").hex()

    async def _claims(
        self, issuer: Issuer, row: SignInRecord, request: pb.FinishSignInRequest
    ) -> Claims | int:
        """What the provider says of the person, or how long to wait for it, in seconds."""
        nonce = self._nonce(row.id)
        verifier = request.code_verifier
        if row.redirect_uri:
            answer = await issuer.exchange(request.code, row.redirect_uri, verifier)
            return await issuer.claims(answer, nonce, nonce_required=True)
        answer = await issuer.poll_device(request.device_code, verifier)
        if answer.error == "authorization_pending":
            return row.interval_s
        if answer.error == "slow_down":
            # https://www.rfc-editor.org/rfc/rfc8628#section-3.5
            return min(row.interval_s + 5, INTERVAL_S_MAX)
        # Providers need not know nonces here: the token comes from them, for this device code.
        return await issuer.claims(answer, nonce, nonce_required=False)

    async def _later(
        self, context: Context, organization: str, row: SignInRecord, interval_s: int
    ) -> pb.FinishSignInResponse:
        def work(deed: Deed) -> None:
            deed.allow("sign_in.begin")
            poll_at = deed.now + timedelta(seconds=interval_s)
            deed.session.replace(replace(row, interval_s=interval_s, poll_at=poll_at))

        await self._administration.admit(context, organization, work)
        return pb.FinishSignInResponse(interval_s=interval_s)


def _check_begin(request: pb.BeginSignInRequest) -> None:
    """Raises INVALID_REQUEST."""
    if not _CHALLENGE.fullmatch(request.code_challenge):
        raise refused("code_challenge", "must be the base64url of a SHA-256")
    if request.redirect_uri and not _LOOPBACK.fullmatch(request.redirect_uri):
        raise refused("redirect_uri", "must look like http://127.0.0.1:PORT/PATH")
    if request.redirect_uri and not _STATE.fullmatch(request.state):
        raise refused("state", "must be 16 to 256 letters, digits, - and _")


def _take_device(said: Any, answer: pb.BeginSignInResponse) -> int:
    """Fills in what a person must do on another device; says how long they have, in seconds.

    Raises UPSTREAM_PROTOCOL.
    """
    code, user_code, url = (
        said.get(name) for name in ("device_code", "user_code", "verification_uri")
    )
    complete = said.get("verification_uri_complete")
    texts = (code, user_code, url)
    if not all(type(text) is str and 0 < len(text) <= _TEXT_CHARS_MAX for text in texts):
        raise GatewayError(
            error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL,
            "The identity provider does not say how to sign in on another device.",
        )
    answer.device_code, answer.user_code, answer.url = code, user_code, url
    if type(complete) is str and 0 < len(complete) <= _TEXT_CHARS_MAX:
        answer.url = complete
    answer.interval_s = _whole(said.get("interval"), INTERVAL_S, INTERVAL_S_MAX)
    return _whole(said.get("expires_in"), SIGN_IN_S, 2 * SIGN_IN_S)


def _whole(value: object, usual: int, most: int) -> int:
    return max(1, min(value, most)) if isinstance(value, int) else usual


def _begun(
    deed: Deed, request: pb.BeginSignInRequest, answer: pb.BeginSignInResponse, lasts_s: int
) -> SignInRecord:
    """Notes a sign-in; forgets those whose time is over. Raises OVERLOADED."""
    rows = deed.session.select(SignInRecord, {}, Slice(size=SIGN_INS_MAX, ascending=True))
    over = [row.id for row in rows if row.expires_at <= deed.now]
    if over:
        deed.session.delete(SignInRecord, {"id": over})
    if len(rows) - len(over) >= SIGN_INS_MAX:
        raise GatewayError(
            error_pb2.ERROR_REASON_OVERLOADED,
            "Too many people are signing in; try again in some minutes.",
        )
    device = answer.device_code
    row = SignInRecord(
        id=answer.id,
        organization_id=deed.organization_id,
        challenge=request.code_challenge,
        redirect_uri=request.redirect_uri,
        device_digest=hashlib.sha256(device.encode()).hexdigest() if device else "",
        interval_s=answer.interval_s,
        poll_at=deed.now,
        expires_at=deed.now + timedelta(seconds=lasts_s),
    )
    deed.session.insert(row)
    return row


def _taken(deed: Deed, request: pb.FinishSignInRequest) -> tuple[SignInRecord, int]:
    """The sign-in that the caller began, and how long to wait before the provider is asked.

    One with a browser is over with this, whatever comes of it: a code is sent on once. Raises
    INVALID_REQUEST, the same for what never was, is over, or is somebody else's.
    """
    row = deed.session.find(SignInRecord, {"id": request.id})
    digest = hashlib.sha256(request.code_verifier.encode()).digest()
    challenge = base64.urlsafe_b64encode(digest).rstrip(b"=")
    device = hashlib.sha256(request.device_code.encode()).hexdigest()
    if (
        row is None
        or row.expires_at <= deed.now
        or not hmac.compare_digest(row.challenge.encode(), challenge)
        or (row.device_digest and not hmac.compare_digest(row.device_digest, device))
    ):
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            "There is no such sign-in under way: begin again.",
            param="id",
        )
    if row.redirect_uri:
        deed.session.delete(SignInRecord, {"id": row.id})
        return row, 0
    wait_s = (row.poll_at - deed.now).total_seconds()
    if wait_s > 0:
        return row, max(1, round(wait_s))
    deed.session.replace(replace(row, poll_at=deed.now + timedelta(seconds=row.interval_s)))
    return row, 0
