"""``?wait=true``: an answer only when a key is refused everywhere. Pure.

``wait_seconds_max`` bounds it. The answer then says ``confirmed``, and ``unconfirmed`` names the
routers and edges that may not have heard when the time was up, with when they refuse the key in any
case.
"""

from typing import Any, Final

from edge.admin.asked import Asked, refused
from edge.admin.route import Json, seconds
from onegate.auth.v1 import key_service_pb2 as pb

WAIT_S_MAX: Final = 600
WAIT_S: Final = 100
"""How long is waited unless the caller says otherwise: longer than the usual grace."""


def take_wait(asked: Asked, request: pb.RevokeKeyRequest | pb.DisableKeyRequest) -> None:
    """Reads from the query whether to wait, and for how long. Raises INVALID_REQUEST."""
    most_s = asked.filter_whole("wait_seconds_max")
    if most_s is not None and not 1 <= most_s <= WAIT_S_MAX:
        raise refused("wait_seconds_max", f"must be 1 to {WAIT_S_MAX}")
    if asked.filter_flag("wait"):
        request.wait = True
        request.wait_max_ms = (most_s or WAIT_S) * 1000


def wait_s(request: Any) -> float:
    """How much longer than usual auth may take to answer."""
    return float(request.wait_max_ms) / 1000


def with_wait(
    answer: pb.RevokeKeyResponse | pb.DisableKeyResponse, asked: Asked, shown: Json
) -> Json:
    """The answer, with what waiting for it found out."""
    if not asked.filter_flag("wait"):
        return shown
    behind = [
        {"name": watcher.name, "refuses_by": seconds(watcher.refuses_by)}
        for watcher in answer.unconfirmed
    ]
    return {**shown, "confirmed": not behind, "unconfirmed": behind}
