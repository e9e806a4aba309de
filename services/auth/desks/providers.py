"""Providers and their credentials: for the operator of the gateway alone.

Secrets come in, are sealed, and go out sealed, to routers: nothing here opens one.
"""

# ruff: noqa: N802 - methods are named as the contract names them

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from onegate.auth.v1 import provider_service_pb2 as pb
from onegate.auth.v1 import provider_service_pb2_grpc
from runtime.clock import pause
from runtime.sealing import KeyEncryptionKey, Keyring, Sealed, SealError, rewrapped
from services.auth import provider_rows as rows
from services.auth.administration import Administration, Context, Deed, conflict, refused
from services.auth.objects import CredentialRecord, ProviderRecord

HEARTBEAT_S: Final = 2.0
"""How often a watcher hears something, and the longest that it does not learn of what another
process of auth has changed, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialNote:
    """A credential as the audit log shows it."""

    provider: str
    name: str
    weight: int
    organizations: tuple[str, ...]
    projects: tuple[str, ...]
    key_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RekeyNote:
    """A rekeying as the audit log shows it."""

    key_id: str
    moved: int


class ProviderService(provider_service_pb2_grpc.ProviderServiceServicer):
    """Keeps providers."""

    def __init__(self, administration: Administration, keyring: Keyring) -> None:
        self._administration = administration
        self._keyring = keyring
        self._changed = asyncio.Event()

    async def AddProvider(
        self, request: pb.AddProviderRequest, context: Context
    ) -> pb.AddProviderResponse:
        """Adds a provider with its first credential."""
        return pb.AddProviderResponse(
            provider=await self._change(context, partial(self._add, request))
        )

    async def ListProviders(
        self, request: pb.ListProvidersRequest, context: Context
    ) -> pb.ListProvidersResponse:
        """The providers that are kept, without their secrets."""
        del request
        return pb.ListProvidersResponse(providers=await self._all(context, sealed=False))

    async def MoveProvider(
        self, request: pb.MoveProviderRequest, context: Context
    ) -> pb.MoveProviderResponse:
        """Gives a provider another address, with every secret anew."""
        return pb.MoveProviderResponse(
            provider=await self._change(context, partial(self._move, request))
        )

    async def UpdateProvider(
        self, request: pb.UpdateProviderRequest, context: Context
    ) -> pb.UpdateProviderResponse:
        """Changes what is known of a provider; its secrets stay as they are."""

        def work(deed: Deed, _key: KeyEncryptionKey) -> ProviderRecord:
            deed.allow("providers.update")
            was = rows.named(deed.session, request.name)
            is_ = rows.updated(was, request)
            deed.session.replace(is_)
            deed.note(was.id, was, is_)
            return is_

        return pb.UpdateProviderResponse(provider=await self._change(context, work))

    async def RemoveProvider(
        self, request: pb.RemoveProviderRequest, context: Context
    ) -> pb.RemoveProviderResponse:
        """Forgets a provider and its credentials."""

        def work(deed: Deed) -> ProviderRecord:
            deed.allow("providers.remove")
            provider = rows.named(deed.session, request.name)
            deed.session.delete(CredentialRecord, {"provider_id": provider.id})
            deed.session.delete(ProviderRecord, {"id": provider.id})
            deed.note(provider.id, provider, None)
            return provider

        await self._administration.change(context, work)
        self._tell()
        return pb.RemoveProviderResponse()

    async def AddCredential(
        self, request: pb.AddCredentialRequest, context: Context
    ) -> pb.AddCredentialResponse:
        """Adds a credential to a provider."""

        def work(deed: Deed, key: KeyEncryptionKey) -> ProviderRecord:
            deed.allow("providers.credentials.add")
            provider = rows.named(deed.session, request.provider)
            rows.checked_credential(request.credential, rows.credentials_of(deed.session, provider))
            self._insert(deed, provider, request.credential, key)
            return provider

        return pb.AddCredentialResponse(provider=await self._change(context, work))

    async def RotateCredential(
        self, request: pb.RotateCredentialRequest, context: Context
    ) -> pb.RotateCredentialResponse:
        """Replaces a credential's secret."""

        def work(deed: Deed, key: KeyEncryptionKey) -> ProviderRecord:
            deed.allow("providers.credentials.rotate")
            provider = rows.named(deed.session, request.provider)
            was = rows.credential_named(deed.session, provider, request.credential)
            is_ = self._resealed(deed, provider, was, request.secret, key)
            deed.note(was.id, _note(provider, was), _note(provider, is_))
            return provider

        return pb.RotateCredentialResponse(provider=await self._change(context, work))

    async def RemoveCredential(
        self, request: pb.RemoveCredentialRequest, context: Context
    ) -> pb.RemoveCredentialResponse:
        """Forgets a credential."""

        def work(deed: Deed, _key: KeyEncryptionKey) -> ProviderRecord:
            deed.allow("providers.credentials.remove")
            provider = rows.named(deed.session, request.provider)
            if not request.credential:
                raise refused("credential", "must be named")
            gone = rows.credential_named(deed.session, provider, request.credential)
            if len(rows.credentials_of(deed.session, provider)) == 1:
                raise conflict(
                    "It is the provider's only credential: remove the provider, or add another"
                    " credential first."
                )
            deed.session.delete(CredentialRecord, {"id": gone.id})
            deed.note(gone.id, _note(provider, gone), None)
            return provider

        return pb.RemoveCredentialResponse(provider=await self._change(context, work))

    async def RekeyCredentials(
        self, request: pb.RekeyCredentialsRequest, context: Context
    ) -> pb.RekeyCredentialsResponse:
        """Moves every secret to the present key-encryption key; all or none."""
        del request

        def work(deed: Deed) -> pb.RekeyCredentialsResponse:
            deed.allow("providers.credentials.rekey")
            found = self._keys()
            moved = total = 0
            for provider in deed.session.select(ProviderRecord, {}, rows.ALL):
                for one in rows.credentials_of(deed.session, provider):
                    total += 1
                    if one.key_id == found[0].id:
                        continue
                    try:
                        sealed = rewrapped(Sealed.from_text(one.sealed), found)
                    except SealError as error:
                        raise conflict(f"{provider.name}#{one.name}: {error}") from None
                    moved += 1
                    text = sealed.to_text()
                    deed.session.replace(replace(one, key_id=sealed.key_id, sealed=text))
            deed.note("", None, RekeyNote(key_id=found[0].id, moved=moved))
            return pb.RekeyCredentialsResponse(moved=moved, total=total, key_id=found[0].id)

        answer = await self._administration.change(context, work)
        self._tell()
        return answer

    async def WatchProviders(
        self, request: pb.WatchProvidersRequest, context: Context
    ) -> AsyncGenerator[pb.WatchProvidersResponse, None]:
        """All providers with their sealed secrets, and again after each change."""
        del request
        told: list[pb.StoredProvider] | None = None
        while True:
            changed = self._changed
            found = await self._all(context, sealed=True)
            if found == told:
                yield pb.WatchProvidersResponse()
            else:
                yield pb.WatchProvidersResponse(providers=found, complete=True)
            told = found
            if changed is self._changed:
                await pause(self._administration.identity.clock, HEARTBEAT_S, changed)

    async def _all(self, context: Context, *, sealed: bool) -> list[pb.StoredProvider]:
        def work(deed: Deed) -> list[pb.StoredProvider]:
            deed.allow("providers.list")
            return rows.messages(deed.session, sealed=sealed)

        return await self._administration.read(context, work)

    async def _change(
        self, context: Context, work: Callable[[Deed, KeyEncryptionKey], ProviderRecord]
    ) -> pb.StoredProvider:
        """Does it, with the key that secrets are sealed under, and tells the watchers."""

        def done(deed: Deed) -> pb.StoredProvider:
            # Asked before a key is made: who may not do it makes none.
            deed.allow("providers.list")
            provider = work(deed, self._keys()[0])
            return rows.message(provider, rows.credentials_of(deed.session, provider))

        answer = await self._administration.change(context, done)
        self._tell()
        return answer

    def _keys(self) -> list[KeyEncryptionKey]:
        try:
            return self._keyring.read(make=True)
        except SealError as error:
            raise conflict(str(error)) from None

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _add(
        self, request: pb.AddProviderRequest, deed: Deed, key: KeyEncryptionKey
    ) -> ProviderRecord:
        deed.allow("providers.add")
        rows.checked_provider(request)
        if deed.session.find(ProviderRecord, {"name": request.name}) is not None:
            raise conflict(
                f"There is a provider {request.name!r}: add a credential to it, or name another.",
                "name",
            )
        if len(deed.session.select(ProviderRecord, {}, rows.ALL)) >= rows.PROVIDERS_MAX:
            raise refused("name", f"is one too many: at most {rows.PROVIDERS_MAX} are kept")
        rows.checked_credential(request.credential, [])
        provider = ProviderRecord(
            id=deed.new_id("prov"),
            name=request.name,
            kind=request.kind,
            base_url=request.base_url,
            models=tuple(request.models),
            free=int(request.free),
            created_at=deed.now,
            regions=tuple(request.regions),
            retention_days=rows.retention_of(request),
            trains=rows.trains_of(request),
        )
        deed.session.insert(provider)
        deed.note(provider.id, None, provider)
        deed.allow("providers.credentials.add")
        self._insert(deed, provider, request.credential, key)
        return provider

    def _insert(
        self, deed: Deed, provider: ProviderRecord, asked: pb.NewCredential, key: KeyEncryptionKey
    ) -> None:
        bare = CredentialRecord(
            id=deed.new_id("cred"),
            provider_id=provider.id,
            name=asked.name,
            weight=asked.weight or 1,
            organizations=tuple(asked.organizations),
            projects=tuple(asked.projects),
            key_id=key.id,
            sealed="",
            created_at=deed.now,
            rotated_at=deed.now,
        )
        entropy = self._administration.identity.entropy
        sealed = rows.sealed_for(provider, bare, asked.secret, key, entropy)
        made = replace(bare, sealed=sealed)
        deed.session.insert(made)
        deed.note(made.id, None, _note(provider, made))

    def _resealed(
        self,
        deed: Deed,
        provider: ProviderRecord,
        was: CredentialRecord,
        secret: str,
        key: KeyEncryptionKey,
    ) -> CredentialRecord:
        entropy = self._administration.identity.entropy
        sealed = rows.sealed_for(provider, was, secret, key, entropy)
        is_ = replace(was, key_id=key.id, sealed=sealed, rotated_at=deed.now)
        deed.session.replace(is_)
        return is_

    def _move(
        self, request: pb.MoveProviderRequest, deed: Deed, key: KeyEncryptionKey
    ) -> ProviderRecord:
        deed.allow("providers.move")
        was = rows.named(deed.session, request.name)
        rows.check_base_url(was.kind, request.base_url)
        credentials = rows.credentials_of(deed.session, was)
        names = {one.name for one in credentials}
        if set(request.secrets) != names:
            raise refused(
                "secrets",
                "must have every credential's secret, given anew: a secret never follows its"
                f" provider to another address ({', '.join(sorted(names))})",
            )
        moved = replace(was, base_url=request.base_url)
        deed.session.replace(moved)
        for one in credentials:
            self._resealed(deed, moved, one, request.secrets[one.name], key)
        deed.note(was.id, was, moved)
        return moved


def _note(provider: ProviderRecord, credential: CredentialRecord) -> CredentialNote:
    return CredentialNote(
        provider=provider.name,
        name=credential.name,
        weight=credential.weight,
        organizations=credential.organizations,
        projects=credential.projects,
        key_id=credential.key_id,
    )
