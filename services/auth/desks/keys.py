"""API keys: of projects, which call models, and of administrators."""

# ruff: noqa: N802 - methods are named as the contract names them

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta

from onegate.auth.v1 import grant_pb2, key_service_pb2_grpc
from onegate.auth.v1 import key_service_pb2 as pb
from services.auth import key_rows, keys, rights_rows
from services.auth.administration import Administration, Context, Deed, conflict, missing, refused
from services.auth.desks import paging
from services.auth.objects import ProjectUserRecord, ServiceAccountRecord, UserRecord
from services.auth.records import KeyFilter, KeyRecord, NewKey, Page, Slice

USER_ID_PREFIX = "user_"
SERVICE_ACCOUNT_ID_PREFIX = "svc_"


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
            return pb.CreateKeyResponse(
                key=keys.key_message(key, owners(deed, [key]).get(key.id)),
                value=secret if made else "",
            )

        return await self._administration.change(context, work)

    async def GetKey(self, request: pb.GetKeyRequest, context: Context) -> pb.GetKeyResponse:
        """One key by id."""

        def work(deed: Deed) -> pb.Key:
            key = _key(deed, request, "get")
            if request.live_only and key.revoked_at is not None:
                raise missing("key")
            return keys.key_message(key, owners(deed, [key]).get(key.id))

        return pb.GetKeyResponse(key=await self._administration.read(context, work))

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
            known = owners(deed, listing.rows)
            return pb.ListKeysResponse(
                keys=[keys.key_message(key, known.get(key.id)) for key in listing.rows],
                next_page_token=paging.page_token(listing.next_before),
            )

        return await self._administration.read(context, work)

    async def UpdateKey(
        self, request: pb.UpdateKeyRequest, context: Context
    ) -> pb.UpdateKeyResponse:
        """Changes a project key's expiry and scopes."""

        def work(deed: Deed) -> pb.Key:
            wanted = pb.GetKeyRequest(
                id=request.id, kind=grant_pb2.KEY_KIND_PROJECT, project_id=request.project_id
            )
            key = _key(deed, wanted, "update")
            changed = _changed(deed, key, request)
            if changed != key:
                changed = key_rows.keep_key(deed.session, changed, now=deed.now)
                deed.note(key.id, key, changed, key.project_id or "")
            return keys.key_message(changed, owners(deed, [changed]).get(key.id))

        return pb.UpdateKeyResponse(key=await self._administration.change(context, work))

    async def RevokeKey(
        self, request: pb.RevokeKeyRequest, context: Context
    ) -> pb.RevokeKeyResponse:
        """Ends a key. When this returns, every watcher of this process has been told."""

        def work(deed: Deed) -> pb.Key:
            wanted = pb.GetKeyRequest(
                id=request.id, kind=request.kind, project_id=request.project_id
            )
            key = _key(deed, wanted, "revoke")
            return keys.key_message(end_key(deed, key))

        return pb.RevokeKeyResponse(key=await self._administration.change(context, work))


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


def owners(deed: Deed, found: Iterable[KeyRecord]) -> dict[str, pb.KeyOwner]:
    """Whose keys these are, by the keys' ids; keys of the organisation's own are left out."""
    wanted = {key.id: key for key in found if key.principal_id}
    ids = sorted({key.principal_id for key in wanted.values()})
    whole = Slice(size=len(ids) + 1)
    users = {user.id: user for user in deed.session.select(UserRecord, {"id": ids}, whole)}
    accounts = {
        row.id: row for row in deed.session.select(ServiceAccountRecord, {"id": ids}, whole)
    }
    known: dict[str, pb.KeyOwner] = {}
    for key in wanted.values():
        user, account = users.get(key.principal_id), accounts.get(key.principal_id)
        if user is not None:
            known[key.id] = _user_owner(deed, user, key.project_id)
        elif account is not None:
            known[key.id] = pb.KeyOwner(
                id=account.id,
                name=account.name,
                role=account.role,
                created_at=keys.timestamp(account.created_at),
            )
    return known


def _user_owner(deed: Deed, user: UserRecord, project_id: str | None) -> pb.KeyOwner:
    role = user.role
    if project_id:
        where = {"user_id": user.id, "project_id": project_id}
        membership = deed.session.find(ProjectUserRecord, where)
        role = membership.role if membership else "member"
    return pb.KeyOwner(
        id=user.id,
        name=user.name,
        email=user.email,
        role=role,
        created_at=keys.timestamp(user.created_at),
    )


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


def _changed(deed: Deed, key: KeyRecord, request: pb.UpdateKeyRequest) -> KeyRecord:
    """The key as it is asked to be. Raises CONFLICT for one that works no more."""
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= deed.now):
        raise conflict("The key has ended: make a new one.", "id")
    changed = key
    if request.HasField("expires_in_seconds"):
        if request.expires_in_seconds < 1:
            raise refused("expires_in_seconds", "must be at least 1")
        keys.check_expiry(request.expires_in_seconds)
        end = deed.now + timedelta(seconds=request.expires_in_seconds)
        changed = replace(changed, expires_at=end)
    if request.HasField("scopes"):
        scopes = keys.checked_scopes(request.scopes.names, key.kind)
        changed = replace(changed, policy=replace(changed.policy, scopes=scopes))
    return changed
