"""API keys: of projects, which call models, and of administrators."""

# ruff: noqa: N802 - methods are named as the contract names them

from dataclasses import replace

from onegate.auth.v1 import grant_pb2, key_service_pb2_grpc
from onegate.auth.v1 import key_service_pb2 as pb
from services.auth import key_rows, keys, rights_rows
from services.auth.administration import Administration, Context, Deed, conflict, missing, refused
from services.auth.desks import key_changes, paging
from services.auth.desks.key_messages import shown
from services.auth.objects import UserRecord
from services.auth.records import KeyFilter, KeyRecord, Lineage, NewKey, Page, ProjectRecord


class KeyService(key_service_pb2_grpc.KeyServiceServicer):
    """Administers keys."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def CreateKey(
        self, request: pb.CreateKeyRequest, context: Context
    ) -> pb.CreateKeyResponse:
        """Makes a key; its secret is in this answer alone."""

        def work(deed: Deed) -> pb.CreateKeyResponse:
            asked = _asked(deed, request)
            secret, key, made = make_key(deed, asked)
            return pb.CreateKeyResponse(key=shown(deed, [key])[0], value=secret if made else "")

        return await self._administration.change(context, work)

    async def GetKey(self, request: pb.GetKeyRequest, context: Context) -> pb.GetKeyResponse:
        """One key by id."""

        def work(deed: Deed) -> pb.Key:
            key = _key(deed, request, "get")
            if request.live_only and key.revoked_at is not None:
                raise missing("key")
            return shown(deed, [key])[0]

        return pb.GetKeyResponse(key=await self._administration.read(context, work))

    async def GetKeyGrant(
        self, request: pb.GetKeyGrantRequest, context: Context
    ) -> pb.GetKeyGrantResponse:
        """What a project's key may do, as routers see it."""
        classes = self._administration.identity.data_classes

        def work(deed: Deed) -> grant_pb2.Grant:
            wanted = pb.GetKeyRequest(id=request.id, kind=grant_pb2.KEY_KIND_PROJECT)
            key = _key(deed, wanted, "get")
            where: dict[str, object] = {"id": key.project_id}
            project = deed.session.find(ProjectRecord, where)
            if key.revoked_at is not None or project is None or project.archived_at is not None:
                raise conflict("The key has ended: nothing can be called with it.", "id")
            return keys.grant(
                Lineage(organization=deed.organization(), project=project, key=key), classes
            )

        return pb.GetKeyGrantResponse(grant=await self._administration.read(context, work))

    async def ListKeys(self, request: pb.ListKeysRequest, context: Context) -> pb.ListKeysResponse:
        """Keys that the caller may see."""

        def work(deed: Deed) -> pb.ListKeysResponse:
            _allow_listing(deed, request)
            wanted = KeyFilter(
                organization_id=deed.scope,
                project_id=request.project_id,
                include_revoked=request.include_revoked,
                kind=request.kind,
            )
            where = key_rows.wanted_keys(wanted)
            listing = key_rows.listed(deed.session, KeyRecord, where, _page(deed, request))
            return pb.ListKeysResponse(
                keys=shown(deed, listing.rows),
                next_page_token=paging.page_token(listing.next_before),
            )

        return await self._administration.read(context, work)

    async def UpdateKey(
        self, request: pb.UpdateKeyRequest, context: Context
    ) -> pb.UpdateKeyResponse:
        """Changes a key's name, expiry and what it may do."""

        def work(deed: Deed) -> pb.Key:
            wanted = pb.GetKeyRequest(
                id=request.id,
                kind=request.kind or grant_pb2.KEY_KIND_PROJECT,
                project_id=request.project_id,
            )
            key = _key(deed, wanted, "update")
            changed = key_changes.changed(deed, key, request)
            if changed != key:
                changed = key_rows.keep_key(deed.session, changed, now=deed.now)
                deed.note(key.id, key, changed, key.project_id or "")
            return shown(deed, [changed])[0]

        return pb.UpdateKeyResponse(key=await self._administration.change(context, work))

    async def RotateKey(
        self, request: pb.RotateKeyRequest, context: Context
    ) -> pb.RotateKeyResponse:
        """Gives a key a new secret; it is in this answer alone."""

        def work(deed: Deed) -> pb.RotateKeyResponse:
            key = _key(deed, _named(request), "rotate")
            rotated, value = key_changes.rotated(deed, key, request)
            deed.note(key.id, key, rotated, key.project_id or "")
            return pb.RotateKeyResponse(key=shown(deed, [rotated])[0], value=value)

        return await self._administration.change(context, work)

    async def DisableKey(
        self, request: pb.DisableKeyRequest, context: Context
    ) -> pb.DisableKeyResponse:
        """Refuses a key for now. When this returns, every watcher of this process knows."""

        def work(deed: Deed) -> pb.Key:
            key = _key(deed, _named(request), "disable")
            return shown(deed, [key_changes.switched(deed, key, on=False)])[0]

        key = await self._administration.change(context, work)
        return pb.DisableKeyResponse(key=key, unconfirmed=await self._wait(key, request))

    async def EnableKey(
        self, request: pb.EnableKeyRequest, context: Context
    ) -> pb.EnableKeyResponse:
        """Lets a key work again."""

        def work(deed: Deed) -> pb.Key:
            key = _key(deed, _named(request), "enable")
            return shown(deed, [key_changes.switched(deed, key, on=True)])[0]

        return pb.EnableKeyResponse(key=await self._administration.change(context, work))

    async def RevokeKey(
        self, request: pb.RevokeKeyRequest, context: Context
    ) -> pb.RevokeKeyResponse:
        """Ends a key. When this returns, every watcher of this process has been told."""

        def work(deed: Deed) -> pb.Key:
            key = _key(deed, _named(request), "revoke")
            return keys.key_message(end_key(deed, key))

        key = await self._administration.change(context, work)
        return pb.RevokeKeyResponse(key=key, unconfirmed=await self._wait(key, request))

    async def _wait(
        self, key: pb.Key, request: pb.RevokeKeyRequest | pb.DisableKeyRequest
    ) -> list[pb.UnconfirmedWatcher]:
        """Who may not have heard that the key is refused, once the wait that was asked for ends."""
        if not request.wait:
            return []
        return await self._administration.unconfirmed(key.version, request.wait_max_ms)


def make_key(deed: Deed, asked: NewKey) -> tuple[str, KeyRecord, bool]:
    """A new key and its secret; with ``False`` the one that the same request made earlier."""
    secret, draft = deed.mint(asked)
    key, made = key_rows.add_key(deed.session, draft)
    if made:
        deed.scope = key.organization_id
        deed.note(key.id, None, key, key.project_id or "")
    return secret, key, made


def end_key(deed: Deed, key: KeyRecord) -> KeyRecord:
    """Ends a key for good; one that has ended stays as it is."""
    if key.revoked_at is not None:
        return key
    ended = key_rows.keep_key(deed.session, replace(key, revoked_at=deed.now), now=deed.now)
    deed.note(key.id, key, ended, key.project_id or "")
    return ended


def _asked(deed: Deed, request: pb.CreateKeyRequest) -> NewKey:
    """The checked request of somebody who may make such a key."""
    if request.kind == grant_pb2.KEY_KIND_ADMIN:
        deed.allow("admin_api_keys.create")
        return _admin_key(deed, keys.new_key(request), request.owner_id)
    if request.project_id:
        deed.active_project("api_keys.create", request.project_id)
    else:
        deed.allow("api_keys.create")
    if request.owner_id:
        raise refused("owner_id", "must be left out: make a service account and a key of it")
    return keys.new_key(request)


def _admin_key(deed: Deed, asked: NewKey, owner_id: str) -> NewKey:
    """An admin key that can do nothing that its maker cannot."""
    own = deed.key.policy.scopes if deed.key else ()
    if own:
        deed.rights.check_within(asked.policy.scopes, own)
    scopes = asked.policy.scopes or own
    maker_id = deed.key.principal_id if deed.key else ""
    if owner_id and owner_id != maker_id:
        where: dict[str, object] = {"id": owner_id, "organization_id": deed.organization_id}
        user = deed.session.find(UserRecord, where)
        if user is None:
            raise missing("user", "owner_id")
        deed.rights.check_covers(rights_rows.rights_of_user(deed.session, user).narrowed(scopes))
    return replace(
        asked, principal_id=owner_id or maker_id, policy=replace(asked.policy, scopes=scopes)
    )


def _named(
    request: pb.RotateKeyRequest | pb.DisableKeyRequest | pb.EnableKeyRequest | pb.RevokeKeyRequest,
) -> pb.GetKeyRequest:
    return pb.GetKeyRequest(id=request.id, kind=request.kind, project_id=request.project_id)


def _key(deed: Deed, wanted: pb.GetKeyRequest, action: str) -> KeyRecord:
    """The key with which the caller may do this. Raises NOT_FOUND, SCOPE_MISSING."""
    key = key_rows.find_key(deed.session, deed.scope, wanted.id)
    if wanted.project_id:
        deed.project(f"api_keys.{action}", wanted.project_id)
    is_admin = key is not None and key.kind == grant_pb2.KEY_KIND_ADMIN
    family = "admin_api_keys" if is_admin or wanted.kind == grant_pb2.KEY_KIND_ADMIN else "api_keys"
    place = (key.project_id or "") if key else ""
    deed.allow(f"{family}.{action}", place)
    if (
        key is None
        or (wanted.kind and key.kind != wanted.kind)
        or (wanted.project_id and key.project_id != wanted.project_id)
    ):
        raise missing("key")
    deed.scope = key.organization_id
    return key


def _allow_listing(deed: Deed, request: pb.ListKeysRequest) -> None:
    if request.project_id:
        deed.project("api_keys.list", request.project_id)
        return
    if request.kind != grant_pb2.KEY_KIND_ADMIN:
        deed.allow("api_keys.list")
    if request.kind != grant_pb2.KEY_KIND_PROJECT:
        deed.allow("admin_api_keys.list")


def _page(deed: Deed, request: pb.ListKeysRequest) -> Page:
    token = request.page_token
    if request.after:
        # Keys stay, revoked ones too: whoever has seen one can go on after it.
        where = {"id": request.after, **key_rows.within(deed.scope)}
        seen = deed.session.find(KeyRecord, where)
        token = str(deed.session.position(KeyRecord, seen.id)) if seen else ""
        if not token:
            raise refused("after", "must be the id of a key that was listed before")
    return paging.page(request.page_size, token, ascending=request.ascending)
