"""Auth on a real socket, in this process or in one of its own."""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc

from onegate.auth.v1 import (
    grant_service_pb2_grpc,
    key_service_pb2,
    key_service_pb2_grpc,
    project_service_pb2_grpc,
)
from runtime.clock import SystemClock
from runtime.config import OidcSettings, RpcSettings, SealingSettings, Settings
from runtime.grants import GrantClient
from runtime.rpc import OPERATOR_KEY, RpcServer, channel, unary
from runtime.secrets import Secret
from services.auth.administration import Administration
from services.auth.bootstrap import Bootstrap, bootstrap
from services.auth.identity import Identity
from services.auth.issuer import Issuer
from services.auth.server import run, serve
from services.auth.watch import Feed
from services.auth.watchers import Watchers
from tests.services.auth.ports import ENTROPY, SteppedClock, auth_settings, opened, until

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "operator-token-of-the-tests-0123456789"
OPERATOR = ((OPERATOR_KEY, TOKEN),)


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    """Metadata that presents a key."""
    return (("authorization", f"Bearer {key}"),)


class Peer:
    """Stubs for an auth at some address."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.channel: grpc.aio.Channel = channel(target, RpcSettings())
        self.keys = key_service_pb2_grpc.KeyServiceStub(self.channel)
        self.projects = project_service_pb2_grpc.ProjectServiceStub(self.channel)
        self.grants = grant_service_pb2_grpc.GrantServiceStub(self.channel)

    async def create(self, **fields: object) -> tuple[str, key_service_pb2.Key]:
        """A new key as the operator makes it."""
        request = key_service_pb2.CreateKeyRequest(name="test")
        request.MergeFrom(key_service_pb2.CreateKeyRequest(**fields))  # type: ignore[arg-type]
        made = await unary(self.keys.CreateKey, request, timeout_s=5, metadata=OPERATOR)
        return made.value, made.key

    async def revoke(self, key_id: str) -> key_service_pb2.Key:
        """Ends a key as the operator does."""
        request = key_service_pb2.RevokeKeyRequest(id=key_id)
        return (await unary(self.keys.RevokeKey, request, timeout_s=5, metadata=OPERATOR)).key

    async def revoke_everywhere(
        self, key_id: str, wait_max_ms: int = 0
    ) -> key_service_pb2.RevokeKeyResponse:
        """Ends a key and waits until it is refused everywhere."""
        request = key_service_pb2.RevokeKeyRequest(id=key_id, wait=True, wait_max_ms=wait_max_ms)
        answer: key_service_pb2.RevokeKeyResponse = await unary(
            self.keys.RevokeKey, request, timeout_s=60, metadata=OPERATOR
        )
        return answer

    @asynccontextmanager
    async def clients(
        self, count: int, *, grace_s: float = 60.0, clock: SteppedClock | None = None
    ) -> AsyncIterator[list[GrantClient]]:
        """Routers and edges: each with a channel of its own, as in separate processes."""
        channels = [channel(self.target, RpcSettings()) for _ in range(count)]
        made = [
            GrantClient(line, clock or SystemClock(), grace_s, f"router-{n}")
            for n, line in enumerate(channels)
        ]
        for client in made:
            client.start()
        try:
            await until(lambda: all(client.ready for client in made), "all watches")
            yield made
        finally:
            for client in made:
                await client.close()
            for line in channels:
                await line.close()


class Auth(Peer):
    """Auth in this process, with what is behind it."""

    def __init__(self, target: str, identity: Identity, feed: Feed, first: Bootstrap) -> None:
        super().__init__(target)
        self.identity = identity
        self.feed = feed
        self.first = first


@asynccontextmanager
async def auth(
    directory: Path,
    *,
    tcp: bool = False,
    name: str = "auth",
    clock: SteppedClock | None = None,
    follows: bool = True,
) -> AsyncIterator[Auth]:
    """Auth on the SQLite file in ``directory``, set up and serving; it looks for other processes'
    changes unless told not to.
    """
    first = await bootstrap(Settings(auth=auth_settings(directory)), SteppedClock(), ENTROPY)
    async with opened(directory, clock) as identity:
        address = "127.0.0.1:0" if tcp else f"unix:{directory}/{name}.sock"
        async with served(identity, address, first or NOT_FIRST, follows=follows) as at:
            yield at


@asynccontextmanager
async def served(
    identity: Identity,
    address: str,
    first: Bootstrap,
    *,
    follows: bool = True,
    oidc: OidcSettings | None = None,
) -> AsyncIterator[Auth]:
    """Auth on an open store; people sign in if the settings say where."""
    feed = Feed(identity.store, SystemClock())
    watchers = Watchers(identity.store, SystemClock())
    issuer = None if oidc is None else Issuer(oidc, None, identity.clock)
    administration = Administration(identity, Secret(TOKEN), feed, watchers, issuer)
    server = serve(administration, RpcServer(RpcSettings(), "auth"))
    port = await server.start(address)
    following = asyncio.create_task(feed.run() if follows else feed.refresh())
    peer = Auth(f"127.0.0.1:{port}" if port else address, identity, feed, first)
    try:
        yield peer
    finally:
        following.cancel()
        await peer.channel.close()
        await server.stop(1)
        with contextlib.suppress(asyncio.CancelledError):
            await following


NOT_FIRST = Bootstrap(organization_id="", project_id="", admin_key="", api_key="")


@contextmanager
def process(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Auth in a process of its own on ``unix:DIRECTORY/auth.sock``, ready."""
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.services.auth.serving", str(directory)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        yield started
    finally:
        started.send_signal(signal.SIGCONT)
        started.kill()
        started.wait()
        assert started.stdout is not None
        started.stdout.close()


def settings_of(directory: Path) -> Settings:
    """Settings of auth in a process of its own; its operator token is ``TOKEN``."""
    token_file = directory / "operator.token"
    if not token_file.exists():
        token_file.touch(mode=0o600)
        token_file.write_text(TOKEN)
    return Settings(
        auth=auth_settings(directory, f"unix:{directory}/auth.sock"),
        rpc=RpcSettings(operator_token_file=str(token_file)),
        sealing=SealingSettings(key_file=str(directory / "provider.kek")),
    )


async def _main(directory: Path) -> None:
    settings = settings_of(directory)
    await bootstrap(settings, SystemClock(), ENTROPY)
    await run(settings, stop=asyncio.Event(), ready=lambda: print("ready", flush=True))


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
