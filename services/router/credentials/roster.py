"""Every provider that calls can go to at this moment: those of the file, and those that auth keeps
and pushes. The latter come and go without a restart.

Secrets are opened here, in the router's memory, and nowhere on the way: what auth keeps and sends
is sealed. A secret that does not open for the very address, kind and owners that it is told with is
not used. A provider of the file keeps its own address; credentials that auth keeps join it only
when they were sealed for the same one.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from onegate.auth.v1.provider_service_pb2 import StoredCredential, StoredProvider
from runtime.clock import Clock
from runtime.rules import ConfigError
from runtime.sealing import Keyring, Sealed, SealError, purpose_of_credential, unseal
from runtime.secrets import Secret
from runtime.settings import CredentialSettings, ProviderSettings
from services.router.credentials.configured import DEMO, Configured, SecretOf, configure
from services.router.credentials.tokens import TokenKeeper
from services.router.models.catalog import Catalog
from services.router.parts import Provider
from services.router.providers.base import Wire
from services.router.routing.health import Health

FILE: Final = "file"
"""What a file's only credential is called once others join it."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """What providers are made with.

    Args:
        wires: by kind.
        secret_of: reads a credential of the file.
        demo_url: where the demo listens; empty without one.
        clock: how long a bought token is good.
    """

    wires: Mapping[str, Wire]
    secret_of: SecretOf
    demo_url: str
    clock: Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A provider as it should be; ``secrets`` are those that auth keeps, by credential."""

    settings: ProviderSettings
    secrets: Mapping[str, Secret]


class Roster:
    """All providers.

    Args:
        settings: those of the file, after ``with_demo``.
        making: what they are made with.
        keyring: what opens sealed secrets.
        health: is told when credentials are new.

    Raises ``ConfigError`` for one of the file that cannot be used.
    """

    def __init__(
        self,
        settings: Sequence[ProviderSettings],
        making: Making,
        keyring: Keyring,
        health: Health,
    ) -> None:
        self._file = {one.name: _Wanted(settings=one, secrets={}) for one in settings}
        self._now = dict(self._file)
        self._making = making
        self._keyring = keyring
        self._health = health
        self._opened: dict[tuple[bytes, bytes], Secret] = {}
        self._complaints: set[str] = set()
        self._keepers: dict[str, tuple[TokenKeeper, ...]] = {}
        made = [self._made(one) for one in self._file.values()]
        self.known = tuple(known for one in made for known in one.known)
        self._unstarted = [keeper for one in made for keeper in one.keepers]
        for one in made:
            for name in one.callable:
                self._keepers[name] = one.keepers
        self.providers = {name: p for one in made for name, p in one.callable.items()}
        """By name; changed in place. Who was removed stays here, closed, for calls under way."""
        self.catalog: Catalog | None = None
        """What is told of changes, once there is one."""
        self.changed = asyncio.Event()
        """Set whenever a provider is new or another."""

    async def start(self) -> None:
        """Buys the first tokens of the file's providers."""
        await asyncio.gather(*(keeper.start() for keeper in self._unstarted))

    async def close(self) -> None:
        """Buys no more tokens."""
        for keepers in self._keepers.values():
            for keeper in keepers:
                await keeper.close()

    async def take(self, stored: Sequence[StoredProvider]) -> None:
        """Brings the providers to what auth keeps now."""
        wanted = self._wanted(stored)
        for name, want in wanted.items():
            if self._now.get(name) != want:
                await self._replace(name, want)
        for name in [name for name in self._now if name not in wanted]:
            await self._retire(name)

    def _wanted(self, stored: Sequence[StoredProvider]) -> dict[str, _Wanted]:
        wanted = dict(self._file)
        complaints: set[str] = set()
        opened: dict[tuple[bytes, bytes], Secret] = {}
        for one in stored:
            secrets = self._secrets(one, opened, complaints)
            told = [c for c in one.credentials if c.name in secrets]
            file = self._file.get(one.name)
            if not told:
                if one.name in self._now:
                    wanted[one.name] = self._now[one.name]
            elif file is None:
                wanted[one.name] = _Wanted(settings=_settings(one, told), secrets=secrets)
            elif (file.settings.kind, file.settings.base_url) == (one.kind, one.base_url):
                wanted[one.name] = _Wanted(settings=_joined(file.settings, told), secrets=secrets)
            else:
                complaints.add(
                    f"{one.name} is in the file with another kind or address: the credentials that"
                    " auth keeps for it are not used"
                )
        self._opened = opened
        for complaint in sorted(complaints - self._complaints):
            _LOG.error("%s", complaint)
        self._complaints = complaints
        if DEMO.name in wanted and wanted[DEMO.name].settings is DEMO and len(wanted) > 1:
            del wanted[DEMO.name]
        return wanted

    def _secrets(
        self,
        provider: StoredProvider,
        opened: dict[tuple[bytes, bytes], Secret],
        complaints: set[str],
    ) -> dict[str, Secret]:
        """The secrets that open here, by credential; the others are complained of."""
        found: dict[str, Secret] = {}
        for credential in provider.credentials:
            purpose = purpose_of_credential(provider, credential)
            try:
                sealed = Sealed.from_text(credential.sealed)
                # Another key-encryption key around the same secret is no reason to open it again.
                place = (sealed.ciphertext, purpose)
                secret = self._opened.get(place)
                if secret is None:
                    secret = unseal(sealed, purpose, self._keyring.read())
                opened[place] = found[credential.name] = secret
            except SealError as error:
                complaints.add(f"{provider.name}#{credential.name} is not used: {error}")
        return found

    async def _replace(self, name: str, want: _Wanted) -> None:
        try:
            made = self._made(want)
        except ConfigError as error:
            _LOG.error("%s cannot be used: %s", name, error)
            return
        await asyncio.gather(*(keeper.start() for keeper in made.keepers))
        former = self._keepers.pop(name, ())
        self._keepers[name] = made.keepers
        self._now[name] = want
        self.providers[name] = made.callable[name]
        self._health.forget(name)
        if self.catalog is not None:
            self.catalog.put(made.known[0])
        self.changed.set()
        _LOG.info("%s is called with what is new of it", name)
        for keeper in former:
            await keeper.close()

    async def _retire(self, name: str) -> None:
        del self._now[name]
        if self.catalog is not None:
            self.catalog.drop(name)
        self.providers[name] = _closed(self.providers[name])
        self._health.forget(name)
        for keeper in self._keepers.pop(name, ()):
            await keeper.close()
        _LOG.info("%s was removed", name)

    def _made(self, want: _Wanted) -> Configured:
        """Raises ``ConfigError``."""

        def secret_of(provider: ProviderSettings, credential: str) -> Secret | None:
            stored = want.secrets.get(credential)
            return self._making.secret_of(provider, credential) if stored is None else stored

        making = self._making
        return configure([want.settings], making.wires, secret_of, making.demo_url, making.clock)


def _closed(provider: Provider) -> Provider:
    """The provider without a secret, for nobody."""
    bare = replace(provider.target, head=b"", signer=None)
    return replace(provider, target=bare, lists=(), credentials=(), retired=True)


def _settings(
    provider: StoredProvider, credentials: Sequence[StoredCredential]
) -> ProviderSettings:
    return ProviderSettings(
        name=provider.name,
        kind=provider.kind,
        base_url=provider.base_url,
        models=tuple(provider.models),
        free=provider.free,
        region=tuple(provider.regions),
        retention_days=provider.retention_days if provider.HasField("retention_days") else None,
        trains=provider.trains if provider.HasField("trains") else None,
        credential=_credentials(credentials),
    )


def _joined(file: ProviderSettings, credentials: Sequence[StoredCredential]) -> ProviderSettings:
    """The file's provider with more credentials."""
    own = file.credential
    if not own and (file.api_key_env or file.api_key_file):
        own = (
            CredentialSettings(
                name=FILE, api_key_env=file.api_key_env, api_key_file=file.api_key_file
            ),
        )
    taken = {one.name for one in own}
    more = _credentials([one for one in credentials if one.name not in taken])
    return replace(file, api_key_env="", api_key_file="", credential=(*own, *more))


def _credentials(told: Sequence[StoredCredential]) -> tuple[CredentialSettings, ...]:
    return tuple(
        CredentialSettings(
            name=one.name,
            weight=one.weight,
            organizations=tuple(one.organizations),
            projects=tuple(one.projects),
        )
        for one in told
    )
