"""Passes: what auth says that somebody may see or set in another service, sealed so that nobody
else can have said it.

The edge faces the network and holds no operator's token. It asks auth in its caller's name, gets a
pass that is good for one minute and one organisation, and shows it to usage. Auth and usage share
the operator's token; the seal's key is derived from it.
"""

import binascii
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from onegate.common.v1 import error_pb2
from onegate.common.v1.access_pass_pb2 import AccessPass
from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.rpc import require_operator
from runtime.rpc_server import metadata_of
from runtime.secrets import Secret

PASS_KEY: Final = "x-onegate-pass"  # noqa: S105 - the name of a field
"""Metadata: a sealed pass."""
LIFE_S: Final = 60
SPENDING: Final = "spending"
"""The purpose of passes for spend limits and alerts."""
REPORTS: Final = "reports"
"""The purpose of passes for reports of usage and costs."""

_LABEL: Final = b"onegate access pass"
_SEAL_BYTES: Final = 32
_TEXT_CHARS_MAX: Final = 64 * 1024


def sealed(access: AccessPass, token: Secret, clock: Clock) -> str:
    """The pass as text, good for a minute from now."""
    access.expires_at.FromSeconds(int(clock.now().timestamp()) + LIFE_S)
    content = access.SerializeToString(deterministic=True)
    return urlsafe_b64encode(_seal(content, token) + content).decode()


def opened(text: str, token: Secret, clock: Clock) -> AccessPass:
    """What a pass says. Raises INVALID_API_KEY for one that auth has not made or that has ended."""
    try:
        raw = urlsafe_b64decode(text[:_TEXT_CHARS_MAX].encode("ascii"))
        seal, content = raw[:_SEAL_BYTES], raw[_SEAL_BYTES:]
        if not hmac.compare_digest(seal, _seal(content, token)):
            raise _refused("was not made by auth")
        access = AccessPass.FromString(content)
    except (UnicodeEncodeError, binascii.Error, DecodeError):
        raise _refused("cannot be read") from None
    if access.expires_at.seconds <= clock.now().timestamp():
        raise _refused("has ended")
    return access


class Gate:
    """Lets the operator through, and whoever shows a pass for the purpose.

    Args:
        token: the operator's.
        purpose: what passes must be for.
        clock: when passes end.
    """

    def __init__(self, token: Secret, purpose: str, clock: Clock) -> None:
        self._token = token
        self._purpose = purpose
        self._clock = clock

    def admit(
        self, context: "grpc.aio.ServicerContext[Any, Any]", *, writes: bool = False
    ) -> AccessPass | None:
        """What the caller may; ``None`` for the operator, who may everything.

        Raises INVALID_API_KEY and SCOPE_MISSING.
        """
        text = metadata_of(context).get(PASS_KEY, "")
        if not text:
            require_operator(context, self._token.reveal())
            return None
        access = opened(text, self._token, self._clock)
        if access.purpose != self._purpose or (writes and not access.writes):
            raise outside()
        return access


def check_covers(access: AccessPass | None, organization_id: str, project_id: str) -> None:
    """Raises SCOPE_MISSING unless a pass is for this organisation, and for all of it or for the
    project; the operator's always is.
    """
    if access is None:
        return
    inside = access.whole or (project_id != "" and project_id in access.project_ids)
    if access.organization_id != organization_id or not inside:
        raise outside()


def outside() -> GatewayError:
    """The pass is for something else."""
    return GatewayError(
        error_pb2.ERROR_REASON_SCOPE_MISSING, "The pass that came with the call is not for this."
    )


def _seal(content: bytes, token: Secret) -> bytes:
    if not token.reveal():
        raise _refused("cannot be checked: there is no operator's token")
    key = hmac.digest(token.reveal().encode(), _LABEL, "sha256")
    return hmac.digest(key, content, "sha256")


def _refused(why: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_INVALID_API_KEY, f"The pass {why}.")
