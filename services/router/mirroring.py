"""Copies of calls that go to another deployment, for nobody to hear the answer.

A copy is made when its original is over and went well, so that it neither delays nor fails it. It
is a call of the same key and project: what the key may use, its data policy and its budgets hold
for the copy, which is charged to the project like any attempt, in a usage row of its own that is
tagged with its original's id. Rate limits do not count it: nobody is refused because an operator
compares models. What cannot be made at once is not made: there is no queue.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.calls import ServerCall
from runtime.errors import GatewayError
from runtime.route_settings import RouteSettings
from services.router.limits.windows import Limits
from services.router.parts import OneGrant, Parts
from services.router.routing.health import RetryBudget
from services.router.routing.routes import Routes
from services.router.routing.standings import Standings

MIRRORS_MAX: Final = 32
"""How many copies are under way at once in one router; the others are not made."""
TAG: Final = "onegate-mirror-of"
"""The tag of a copy's usage row; its value is the original's request id."""

_METHOD: Final = "/onegate.router.v1.ChatService/Chat"
_LOG = logging.getLogger(__name__)


class Mirrors:
    """The copies under way.

    Args:
        standings: of their own, for copies are found from another grant than their originals.
    """

    def __init__(self, standings: Standings) -> None:
        self._standings = standings
        self._tasks: set[asyncio.Task[None]] = set()

    def make(
        self,
        run: Callable[[Parts, ServerCall], Awaitable[None]],
        parts: Parts,
        copy: chat_pb2.ChatRequest,
        grant: grant_pb2.Grant,
    ) -> None:
        """Makes a copy of a call, if there is room for one more."""
        if len(self._tasks) >= MIRRORS_MAX:
            return
        unlimited = grant_pb2.Grant()
        unlimited.CopyFrom(grant)
        unlimited.ClearField("rate_limits")
        bare = replace(
            parts,
            settings=replace(parts.settings, attempts_max=1),
            grants=OneGrant(unlimited),
            limits=Limits(),
            waiting=None,
            shared_limits=None,
            routes=Routes(),
            standings=self._standings,
            retries=RetryBudget(0.0),
            repeats=None,
            mirrors=None,
        )
        call = _Unheard(copy.SerializeToString(), {"authorization": f"Bearer {grant.key_id}"})
        task = asyncio.get_running_loop().create_task(_made(run, bare, call))
        self._tasks.add(task)
        task.add_done_callback(self._over)

    async def close(self) -> None:
        """Ends those under way; each is settled."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _over(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _LOG.error("the copy of a call ended with a defect", exc_info=task.exception())


def is_mirrored(route: RouteSettings, request_id: str) -> bool:
    """Whether this call is one of the share that is copied: the same for the same id."""
    if not (route.mirror_to and route.mirror_percent):
        return False
    mixed = hashlib.blake2b(f"{request_id}\0mirror".encode(), digest_size=8).digest()
    return int.from_bytes(mixed, "big") / 2**64 < route.mirror_percent / 100


def copy_of(request: chat_pb2.ChatRequest, model: str, request_id: str) -> chat_pb2.ChatRequest:
    """The call for another model, with an id of its own. What the caller wants of providers and of
    its data still holds; which models it wanted does not.
    """
    copy = chat_pb2.ChatRequest()
    copy.CopyFrom(request)
    copy.model = model
    if copy.HasField("routing"):
        copy.routing.ClearField("fallback_models")
        copy.routing.ClearField("provider_order")
        copy.routing.ClearField("sort")
        copy.routing.ClearField("allow_fallbacks")
    copy.context.ClearField("request_id")
    copy.context.ClearField("idempotency_key")
    copy.context.ClearField("body_digest")
    copy.context.tags[TAG] = request_id
    return copy


async def _made(
    run: Callable[[Parts, ServerCall], Awaitable[None]], parts: Parts, call: ServerCall
) -> None:
    try:
        await run(parts, call)
    except GatewayError as error:
        _LOG.debug("the copy of a call failed: %s", error.message)


@dataclass(slots=True)
class _Unheard:
    """A call whose answer nobody hears."""

    request: bytes
    metadata: Mapping[str, str]
    method: str = _METHOD
    timeout_s: float | None = None
    send_now: None = None

    async def send(self, payload: bytes) -> None:
        """Drops it."""

    async def receive(self) -> bytes:
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_REQUEST, "A copy of a call has no other form."
        )
