"""The auth service: administers keys and projects, answers what a key may do, tells of changes."""

# ruff: noqa: N802 - methods are named as the contract names them

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from onegate.auth.v1 import (
    grant_pb2,
    grant_service_pb2,
    grant_service_pb2_grpc,
    provider_service_pb2_grpc,
)
from onegate.common.v1 import error_pb2
from runtime import apikeys
from runtime.clock import Clock, SystemClock, SystemEntropy
from runtime.config import OidcSettings, Settings, environment
from runtime.errors import GatewayError
from runtime.metrics import Metrics, serve_metrics
from runtime.readiness import follow_store, when_available
from runtime.rpc import RpcServer
from runtime.sealing import Keyring
from runtime.secrets import FileSecrets, read_secret
from services.auth import keys
from services.auth.administration import Administration, Context
from services.auth.bootstrap import ensure_organization
from services.auth.desks.providers import ProviderService
from services.auth.desks.table import DESKS
from services.auth.identity import Identity, identity_of, prepare
from services.auth.issuer import Issuer
from services.auth.records import Lineage, Session
from services.auth.watch import Feed
from services.auth.watchers import Watchers

USES_MAX: Final = 1_000
"""Of how many keys a process may tell at once that they were used."""

CLOCK_SKEW_S: Final = 3600.0
"""By how much another process's clock may be ahead before what it tells is no time, in seconds."""

STOP_GRACE_S: Final = 5.0
"""How long calls under way may take when the service stops, in seconds."""

_LOG = logging.getLogger(__name__)


class GrantService(grant_service_pb2_grpc.GrantServiceServicer):
    """Answers what a key may do and says when that changes."""

    def __init__(self, identity: Identity, feed: Feed, watchers: Watchers) -> None:
        self._identity = identity
        self._feed = feed
        self._watchers = watchers

    async def GetGrant(
        self, request: grant_service_pb2.GetGrantRequest, _context: Context
    ) -> grant_service_pb2.GetGrantResponse:
        """The grant of a key that is known and not revoked."""
        if len(request.key_digest) != apikeys.DIGEST_BYTES:
            raise GatewayError(
                error_pb2.ERROR_REASON_INVALID_REQUEST,
                f"`key_digest` must be the {apikeys.DIGEST_BYTES} bytes of the key's SHA-256.",
                param="key_digest",
            )
        mac = self._identity.mac(request.key_digest)
        lineage = await self._identity.store.find_lineage(mac)
        is_archived = (
            lineage is not None
            and lineage.project is not None
            and lineage.project.archived_at is not None
        )
        if lineage is None or lineage.key.revoked_at is not None or is_archived:
            raise keys.invalid_key()
        return grant_service_pb2.GetGrantResponse(grant=self._grant(lineage))

    def _grant(self, lineage: Lineage) -> grant_pb2.Grant:
        return keys.grant(lineage, self._identity.data_classes)

    async def ReportUse(
        self, request: grant_service_pb2.ReportUseRequest, _context: Context
    ) -> grant_service_pb2.ReportUseResponse:
        """Notes when keys were used last. No change of the keys: nobody is told."""
        if len(request.uses) > USES_MAX:
            raise GatewayError(
                error_pb2.ERROR_REASON_INVALID_REQUEST,
                f"`uses` must have at most {USES_MAX} entries.",
                param="uses",
            )
        now = self._identity.clock.now()
        uses = {
            use.key_id: min(datetime.fromtimestamp(max(use.used_at_s, 0), UTC), now)
            for use in request.uses
            if use.used_at_s <= now.timestamp() + CLOCK_SKEW_S
        }
        if uses:
            await self._identity.store.change(partial(_note_uses, uses))
        return grant_service_pb2.ReportUseResponse()

    async def WatchGrants(
        self, request: grant_service_pb2.WatchGrantsRequest, _context: Context
    ) -> AsyncGenerator[grant_service_pb2.WatchGrantsResponse, None]:
        """Every change from now on."""
        _LOG.info("%r watches", request.watcher)
        watcher_id = request.watcher_id
        if watcher_id:
            await self._watchers.enter(watcher_id, request.watcher, request.trust_ms / 1000)
        try:
            async with aclosing(self._feed.watch(request.after_revision)) as news:
                async for response in news:
                    yield response
        finally:
            if watcher_id:
                self._watchers.leave(watcher_id)

    async def AckGrants(
        self, request: grant_service_pb2.AckGrantsRequest, _context: Context
    ) -> grant_service_pb2.AckGrantsResponse:
        """Notes what is in force at a watcher."""
        await self._watchers.acknowledge(
            request.watcher_id, request.revision, leaving=request.leaving
        )
        return grant_service_pb2.AckGrantsResponse()


def _note_uses(uses: Mapping[str, datetime], session: Session) -> None:
    for key_id, used_at in uses.items():
        session.note_use(key_id, used_at)


async def run(settings: Settings, *, stop: asyncio.Event, ready: Callable[[], None]) -> None:
    """Serves until ``stop`` is set."""
    clock, entropy = SystemClock(), SystemEntropy()
    async with AsyncExitStack() as closing:
        identity = identity_of(settings.auth, clock, entropy)
        closing.push_async_callback(identity.store.close)

        async def begin() -> bool:
            await prepare(identity, settings.auth.pepper_file)
            await ensure_organization(identity)
            return True

        if not await when_available(begin, clock, stop):
            return
        operator_token = FileSecrets(entropy).read_or_make(settings.rpc.operator_token_file)
        feed = Feed(identity.store, clock)
        watchers = Watchers(identity.store, clock)
        issuer = _issuer(settings.oidc, clock)
        administration = Administration(identity, operator_token, feed, watchers, issuer)
        server = serve(administration, RpcServer(settings.rpc, "auth"))
        server.add(
            provider_service_pb2_grpc.add_ProviderServiceServicer_to_server,
            ProviderService(administration, Keyring(settings.sealing, environment(), entropy)),
        )
        await server.start(settings.auth.listen)
        closing.push_async_callback(server.stop, STOP_GRACE_S)
        if settings.telemetry.metrics_address:
            page = await serve_metrics(settings.telemetry.metrics_address, _metrics(feed))
            closing.push_async_callback(page.close)
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(feed.run()),
                tasks.create_task(watchers.run()),
                tasks.create_task(follow_store(server, feed.age_s, clock)),
            ]
            ready()
            await stop.wait()
            for task in running:
                task.cancel()


def _metrics(feed: Feed) -> Metrics:
    metrics = Metrics("auth")
    metrics.reading("watchers", "Routers and edges that watch for changes.", feed.watchers)
    metrics.reading("log_age_seconds", "Since the log of changes was last read.", feed.age_s)
    return metrics


def _issuer(settings: OidcSettings, clock: Clock) -> Issuer | None:
    """The identity provider, if people sign in. Raises ``SecretError``."""
    if not settings.issuer:
        return None
    secret = settings.client_secret_file
    return Issuer(settings, read_secret(Path(secret)) if secret else None, clock)


def serve(administration: Administration, server: RpcServer) -> RpcServer:
    """The server with auth's services added."""
    for add, desk in DESKS:
        server.add(add, desk(administration))
    server.add(
        grant_service_pb2_grpc.add_GrantServiceServicer_to_server,
        GrantService(administration.identity, administration.feed, administration.watchers),
    )
    return server
