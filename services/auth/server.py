"""The auth service: administers keys and projects, answers what a key may do, tells of changes."""

# ruff: noqa: N802 - methods are named as the contract names them

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any, Final, TypeAlias

import grpc

from onegate.auth.v1 import (
    grant_pb2,
    grant_service_pb2,
    grant_service_pb2_grpc,
    key_service_pb2,
    key_service_pb2_grpc,
    project_service_pb2,
    project_service_pb2_grpc,
)
from onegate.common.v1 import error_pb2
from runtime import apikeys
from runtime.clock import SystemClock, SystemEntropy
from runtime.config import Settings
from runtime.errors import GatewayError
from runtime.metrics import Metrics, serve_metrics
from runtime.rpc import OPERATOR_KEY, RpcServer, require_operator
from runtime.rpc_server import metadata_of
from runtime.secrets import FileSecrets, Secret
from services.auth import keys
from services.auth.bootstrap import ensure_organization
from services.auth.identity import Identity, open_identity
from services.auth.records import KeyFilter, KeyRecord, Page, ProjectDraft
from services.auth.watch import Feed

PAGE_SIZE: Final = 100
PAGE_SIZE_MAX: Final = 1_000

STOP_GRACE_S: Final = 5.0
"""How long calls under way may take when the service stops, in seconds."""

_BEARER: Final = re.compile(r"bearer +(\S+)", re.IGNORECASE)
_TOKEN: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_LOG = logging.getLogger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class Door:
    """Who may administer, and what: the operator everything, an admin key its organisation."""

    def __init__(self, identity: Identity, operator_token: Secret) -> None:
        self._identity = identity
        self._operator_token = operator_token

    async def admit(self, context: Context) -> str | None:
        """The organisation that the caller may administer, ``None`` for all of them.

        Raises INVALID_API_KEY, KEY_EXPIRED, or SCOPE_MISSING for a key that does not administer.
        """
        metadata = metadata_of(context)
        if OPERATOR_KEY in metadata:
            require_operator(metadata, self._operator_token.reveal())
            return None
        bearer = _BEARER.fullmatch(metadata.get("authorization", ""))
        kind = apikeys.kind_of(bearer[1]) if bearer else None
        if bearer is None or kind is None:
            raise keys.invalid_key()
        if kind != grant_pb2.KEY_KIND_ADMIN:
            raise GatewayError(
                error_pb2.ERROR_REASON_SCOPE_MISSING,
                "This key calls models; administration needs an admin key (sk-og-admin-…).",
            )
        mac = self._identity.mac(apikeys.digest(bearer[1]))
        lineage = await self._identity.store.find_lineage(mac)
        if lineage is None:
            raise keys.invalid_key()
        keys.check_alive(lineage.key, now=self._identity.clock.now())
        return lineage.organization.id


class KeyService(key_service_pb2_grpc.KeyServiceServicer):
    """Administers keys."""

    def __init__(self, identity: Identity, door: Door, feed: Feed) -> None:
        self._identity = identity
        self._door = door
        self._feed = feed

    async def CreateKey(
        self, request: key_service_pb2.CreateKeyRequest, context: Context
    ) -> key_service_pb2.CreateKeyResponse:
        """Makes a key; its secret is in this answer alone."""
        organization_id = await self._door.admit(context)
        secret, draft = self._identity.mint(keys.new_key(request), organization_id)
        key, made = await self._identity.store.add_key(draft)
        if made:
            _LOG.info("key %s was made", key.id)
            await self._told()
        return key_service_pb2.CreateKeyResponse(
            key=keys.key_message(key), value=secret if made else ""
        )

    async def GetKey(
        self, request: key_service_pb2.GetKeyRequest, context: Context
    ) -> key_service_pb2.GetKeyResponse:
        """One key by id."""
        organization_id = await self._door.admit(context)
        key = await self._identity.store.find_key(organization_id, request.id)
        return key_service_pb2.GetKeyResponse(key=keys.key_message(_present(key)))

    async def ListKeys(
        self, request: key_service_pb2.ListKeysRequest, context: Context
    ) -> key_service_pb2.ListKeysResponse:
        """Keys, newest first."""
        wanted = KeyFilter(
            organization_id=await self._door.admit(context),
            project_id=request.project_id,
            include_revoked=request.include_revoked,
        )
        page = _page(request.page_size, request.page_token)
        listing = await self._identity.store.list_keys(wanted, page)
        return key_service_pb2.ListKeysResponse(
            keys=map(keys.key_message, listing.rows),
            next_page_token=_page_token(listing.next_before),
        )

    async def RevokeKey(
        self, request: key_service_pb2.RevokeKeyRequest, context: Context
    ) -> key_service_pb2.RevokeKeyResponse:
        """Ends a key. When this returns, every watcher of this process has been told."""
        organization_id = await self._door.admit(context)
        now = self._identity.clock.now()
        key = await self._identity.store.revoke_key(organization_id, request.id, now=now)
        message = keys.key_message(_present(key))
        _LOG.info("key %s is revoked", message.id)
        await self._told()
        return key_service_pb2.RevokeKeyResponse(key=message)

    async def _told(self) -> None:
        """Tells watchers at once. The change is kept whatever happens here: a log that cannot be
        read just now is read again soon.
        """
        try:
            await self._feed.refresh()
        except GatewayError as error:
            _LOG.warning("watchers will learn of a change later: %s", error.message)


class ProjectService(project_service_pb2_grpc.ProjectServiceServicer):
    """Administers projects."""

    def __init__(self, identity: Identity, door: Door) -> None:
        self._identity = identity
        self._door = door

    async def CreateProject(
        self, request: project_service_pb2.CreateProjectRequest, context: Context
    ) -> project_service_pb2.CreateProjectResponse:
        """Makes a project."""
        draft = ProjectDraft(
            organization_id=await self._door.admit(context),
            id=self._identity.new_id("proj"),
            name=keys.checked_name(request.name),
            now=self._identity.clock.now(),
        )
        project = await self._identity.store.add_project(draft)
        _LOG.info("project %s was made", project.id)
        return project_service_pb2.CreateProjectResponse(project=keys.project_message(project))

    async def ListProjects(
        self, request: project_service_pb2.ListProjectsRequest, context: Context
    ) -> project_service_pb2.ListProjectsResponse:
        """Projects, newest first."""
        organization_id = await self._door.admit(context)
        page = _page(request.page_size, request.page_token)
        listing = await self._identity.store.list_projects(organization_id, page)
        return project_service_pb2.ListProjectsResponse(
            projects=map(keys.project_message, listing.rows),
            next_page_token=_page_token(listing.next_before),
        )


class GrantService(grant_service_pb2_grpc.GrantServiceServicer):
    """Answers what a key may do and says when that changes."""

    def __init__(self, identity: Identity, feed: Feed) -> None:
        self._identity = identity
        self._feed = feed

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
        if lineage is None or lineage.key.revoked_at is not None:
            raise keys.invalid_key()
        return grant_service_pb2.GetGrantResponse(grant=keys.grant(lineage))

    async def WatchGrants(
        self, request: grant_service_pb2.WatchGrantsRequest, _context: Context
    ) -> AsyncGenerator[grant_service_pb2.WatchGrantsResponse, None]:
        """Every change from now on."""
        _LOG.info("%r watches", request.watcher)
        async with aclosing(self._feed.watch(request.after_revision)) as news:
            async for response in news:
                yield response


def _present(key: KeyRecord | None) -> KeyRecord:
    if key is None:
        raise GatewayError(
            error_pb2.ERROR_REASON_NOT_FOUND, "There is no such key: list the keys.", param="id"
        )
    return key


def _page(size: int, token: str) -> Page:
    """The page that a request asks for. Raises INVALID_REQUEST."""
    if size < 0:
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            f"`page_size` must be 0 (for {PAGE_SIZE}) to {PAGE_SIZE_MAX}.",
            param="page_size",
        )
    if token and not _TOKEN.fullmatch(token):
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            "`page_token` must be the next_page_token of the page before.",
            param="page_token",
        )
    return Page(size=min(size or PAGE_SIZE, PAGE_SIZE_MAX), before=int(token) if token else None)


def _page_token(before: int | None) -> str:
    return "" if before is None else str(before)


async def run(settings: Settings, *, stop: asyncio.Event, ready: Callable[[], None]) -> None:
    """Serves until ``stop`` is set."""
    clock, entropy = SystemClock(), SystemEntropy()
    async with AsyncExitStack() as closing:
        identity = await open_identity(settings.auth, clock, entropy)
        closing.push_async_callback(identity.store.close)
        await ensure_organization(identity)
        operator_token = FileSecrets(entropy).read_or_make(settings.rpc.operator_token_file)
        feed = Feed(identity.store, clock)
        server = serve(identity, feed, operator_token, RpcServer(settings.rpc, "auth"))
        await server.start(settings.auth.listen)
        closing.push_async_callback(server.stop, STOP_GRACE_S)
        if settings.telemetry.metrics_address:
            page = await serve_metrics(settings.telemetry.metrics_address, _metrics(feed))
            closing.push_async_callback(page.close)
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(feed.run())
            ready()
            await stop.wait()
            following.cancel()


def _metrics(feed: Feed) -> Metrics:
    metrics = Metrics("auth")
    metrics.reading("watchers", "Routers and edges that watch for changes.", feed.watchers)
    metrics.reading("log_age_seconds", "Since the log of changes was last read.", feed.age_s)
    return metrics


def serve(identity: Identity, feed: Feed, operator_token: Secret, server: RpcServer) -> RpcServer:
    """The server with auth's services added."""
    door = Door(identity, operator_token)
    server.add(
        key_service_pb2_grpc.add_KeyServiceServicer_to_server, KeyService(identity, door, feed)
    )
    server.add(
        project_service_pb2_grpc.add_ProjectServiceServicer_to_server,
        ProjectService(identity, door),
    )
    server.add(
        grant_service_pb2_grpc.add_GrantServiceServicer_to_server, GrantService(identity, feed)
    )
    return server
