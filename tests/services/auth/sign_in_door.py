"""Auth, an identity provider on the wire, and the calls of a sign-in."""

import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from onegate.auth.v1 import (
    audit_service_pb2,
    audit_service_pb2_grpc,
    sign_in_service_pb2_grpc,
    user_service_pb2,
    user_service_pb2_grpc,
)
from onegate.auth.v1 import sign_in_service_pb2 as pb
from runtime.config import OidcSettings, Settings
from runtime.errors import GatewayError, reason_name
from runtime.rpc import unary
from services.auth.bootstrap import bootstrap
from tests.oidc_provider import (
    CLIENT,
    Provider,
    provider,
)
from tests.services.auth.ports import ENTROPY, SteppedClock, auth_settings, opened
from tests.services.auth.serving import NOT_FIRST, OPERATOR, Auth, bearer, served

VERIFIER = "v" * 43
CHALLENGE = (
    base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
)
BACK = "http://127.0.0.1:4711/back"
STATE = "s" * 22


class Door:
    """Auth, an identity provider, and the two calls of a sign-in."""

    def __init__(self, at: Auth, idp: Provider, clock: SteppedClock) -> None:
        self.at, self.idp, self.clock = at, idp, clock
        self.stub = sign_in_service_pb2_grpc.SignInServiceStub(at.channel)

    async def begin(self, **fields: str) -> pb.BeginSignInResponse:
        """Starts with a browser."""
        asked = {"code_challenge": CHALLENGE, "redirect_uri": BACK, "state": STATE, **fields}
        request = pb.BeginSignInRequest(**asked)
        begun: pb.BeginSignInResponse = await unary(self.stub.BeginSignIn, request, timeout_s=20)
        return begun

    async def begin_device(self) -> pb.BeginSignInResponse:
        """Starts on another device."""
        return await self.begin(redirect_uri="", state="")

    def browse(self, begun: pb.BeginSignInResponse) -> str:
        """What comes back from the browser."""
        back = parse_qs(urlsplit(self.idp.authorize(begun.url)).query)
        assert back["state"] == [STATE]
        return back["code"][0]

    async def finish(self, sign_in_id: str, **fields: str) -> pb.FinishSignInResponse:
        """Asks for the session."""
        asked = {"code_verifier": VERIFIER, **fields}
        request = pb.FinishSignInRequest(id=sign_in_id, **asked)
        ended: pb.FinishSignInResponse = await unary(self.stub.FinishSignIn, request, timeout_s=20)
        return ended

    async def sign_in(self) -> pb.FinishSignInResponse:
        """All of it."""
        begun = await self.begin()
        return await self.finish(begun.id, code=self.browse(begun))

    async def who(self, key: str) -> pb.Identity:
        """Whom a key is of."""
        answer = await unary(
            self.stub.WhoAmI, pb.WhoAmIRequest(), timeout_s=5, metadata=bearer(key)
        )
        return answer.identity

    async def add_user(self, email: str = "ada@example.com", role: str = "reader") -> str:
        """A user whom the operator adds."""
        stub = user_service_pb2_grpc.UserServiceStub(self.at.channel)
        request = user_service_pb2.CreateUserRequest(email=email, role=role)
        made = await unary(stub.CreateUser, request, timeout_s=5, metadata=OPERATOR)
        user_id: str = made.user.id
        return user_id

    async def log(self) -> list[audit_service_pb2.AuditEvent]:
        """The newest entries of the log."""
        stub = audit_service_pb2_grpc.AuditServiceStub(self.at.channel)
        anything = audit_service_pb2.AUDIT_OUTCOME_ANY
        request = audit_service_pb2.ListAuditEventsRequest(outcome=anything)
        listed = await unary(stub.ListAuditEvents, request, timeout_s=5, metadata=OPERATOR)
        return sorted(listed.events, key=lambda event: -event.sequence)


@asynccontextmanager
async def door(directory: Path, **settings: Any) -> AsyncIterator[Door]:
    """Auth with a provider that people sign in through."""
    clock = SteppedClock()
    with provider() as idp:
        idp.now = lambda: clock.now().timestamp()
        oidc = OidcSettings(issuer=idp.issuer, client_id=CLIENT, **settings)
        first = await bootstrap(Settings(auth=auth_settings(directory)), clock, ENTROPY)
        address = f"unix:{directory}/auth.sock"
        async with (
            opened(directory, clock) as identity,
            served(identity, address, first or NOT_FIRST, oidc=oidc) as at,
        ):
            yield Door(at, idp, clock)


async def refusal(work: Any) -> tuple[str, str]:
    """Why it is refused."""
    with pytest.raises(GatewayError) as caught:
        await work
    return reason_name(caught.value.reason), caught.value.message
