"""An auth service on a real socket that says what a test wants it to say, when it wants."""

# ruff: noqa: N802 - methods are named as the contract names them

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from onegate.auth.v1 import grant_pb2, grant_service_pb2, grant_service_pb2_grpc
from onegate.common.v1 import error_pb2
from runtime import apikeys
from runtime.config import RpcSettings
from runtime.errors import GatewayError
from runtime.grants import GrantClient
from runtime.rpc import RpcServer, channel
from tests.services.auth.ports import SteppedClock, until

Response = grant_service_pb2.WatchGrantsResponse
Change = grant_service_pb2.GrantChange


class ScriptedAuth(grant_service_pb2_grpc.GrantServiceServicer):
    """Answers from ``grants``; holds answers back while ``gate`` is closed."""

    def __init__(self) -> None:
        self.grants: dict[bytes, grant_pb2.Grant] = {}
        self.asked: list[bytes] = []
        self.answers: list[grant_pb2.Grant] = []
        self.uses: list[dict[str, int]] = []
        self.failure: GatewayError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.revision = 10
        self.watches: list[asyncio.Queue[Response | None]] = []
        self.after: list[int] = []
        self.acked: list[int] = []
        self.first: Callable[[], Response] | None = None

    def add(self, key: str, version: int = 1, **fields: Any) -> grant_pb2.Grant:
        """Makes a key known."""
        grant = grant_pb2.Grant(key_id=f"key_{key[-8:]}", version=version, **fields)
        self.grants[apikeys.digest(key)] = grant
        return grant

    def push(self, *changes: Change, reset: bool = False) -> None:
        """Tells every watcher."""
        self.revision += 1
        for watch in self.watches:
            watch.put_nowait(Response(revision=self.revision, changes=changes, reset=reset))

    def end(self) -> None:
        """Ends every watch."""
        for watch in self.watches:
            watch.put_nowait(None)

    def revoke(self, key: str) -> None:
        """Ends a key and tells every watcher."""
        grant = self.grants.pop(apikeys.digest(key))
        self.push(Change(key_id=grant.key_id, version=self.revision, revoked=True))

    async def GetGrant(
        self, request: grant_service_pb2.GetGrantRequest, _context: Any
    ) -> grant_service_pb2.GetGrantResponse:
        self.asked.append(request.key_digest)
        found = self.answers.pop(0) if self.answers else self.grants.get(request.key_digest)
        failure = self.failure
        await self.gate.wait()
        if failure is not None:
            raise failure
        if found is None:
            raise GatewayError(error_pb2.ERROR_REASON_INVALID_API_KEY, "no such key")
        return grant_service_pb2.GetGrantResponse(grant=found)

    async def ReportUse(
        self, request: grant_service_pb2.ReportUseRequest, _context: Any
    ) -> grant_service_pb2.ReportUseResponse:
        if self.failure is not None:
            raise self.failure
        self.uses.append({use.key_id: use.used_at_s for use in request.uses})
        return grant_service_pb2.ReportUseResponse()

    async def AckGrants(
        self, request: grant_service_pb2.AckGrantsRequest, _context: Any
    ) -> grant_service_pb2.AckGrantsResponse:
        self.acked.append(request.revision)
        return grant_service_pb2.AckGrantsResponse()

    async def WatchGrants(
        self, request: grant_service_pb2.WatchGrantsRequest, _context: Any
    ) -> AsyncGenerator[Response, None]:
        self.after.append(request.after_revision)
        if self.failure is not None:
            raise self.failure
        watch: asyncio.Queue[Response | None] = asyncio.Queue()
        self.watches.append(watch)
        try:
            yield self.first() if self.first else Response(revision=self.revision)
            while (news := await watch.get()) is not None:
                yield news
        finally:
            self.watches.remove(watch)


async def served(auth: ScriptedAuth, directory: Path) -> RpcServer:
    """A server with this auth on it."""
    server = RpcServer(RpcSettings(), "auth")
    server.add(grant_service_pb2_grpc.add_GrantServiceServicer_to_server, auth)
    await server.start(f"unix:{directory}/auth.sock")
    return server


class Scene:
    """A client, its clock, and the auth that it talks to."""

    def __init__(self, directory: Path, grace_s: float) -> None:
        self.directory = directory
        self.auth = ScriptedAuth()
        self.clock = SteppedClock()
        self.channel = channel(f"unix:{directory}/auth.sock", RpcSettings())
        self.client = GrantClient(self.channel, self.clock, grace_s, "test")
        self.server: RpcServer | None = None

    async def serve(self) -> None:
        """Lets auth be there."""
        self.server = await served(self.auth, self.directory)

    async def leave(self) -> None:
        """Lets auth go away, and waits until the client has noticed."""
        assert self.server is not None
        self.auth.gate.set()
        await self.server.stop(0)
        await until(lambda: self.client._failures > 0, "the client's noticing")

    async def watched(self) -> None:
        """Waits until the client watches."""
        await until(lambda: self.client.ready and self.auth.watches, "the watch")

    async def seen(self) -> None:
        """Waits until the client has taken in everything that was pushed."""
        revision = self.auth.revision
        await until(lambda: self.client._revision >= revision, "the push")


@asynccontextmanager
async def scene(
    directory: Path, *, grace_s: float = 60.0, grants: Iterable[str] = ()
) -> AsyncIterator[Scene]:
    """A client that watches an auth which knows these keys."""
    made = Scene(directory, grace_s)
    for key in grants:
        made.auth.add(key)
    await made.serve()
    made.client.start()
    await made.watched()
    try:
        yield made
    finally:
        await made.client.close()
        await made.channel.close()
        if made.server is not None:
            await made.server.stop(0)
