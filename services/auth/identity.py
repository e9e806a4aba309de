"""The open store together with the pepper that its keys are kept under, and how a key is made."""

from dataclasses import dataclass, field

from runtime import apikeys
from runtime.clock import Clock, Entropy, uuid7
from runtime.config import AuthSettings
from runtime.secrets import FileSecrets, Secret, SecretError
from runtime.sql import open_configured
from services.auth import keys
from services.auth.records import KeyDraft, NewKey, Store
from services.auth.store import SqlStore


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSecret:
    """A secret, to be shown once, and what may be kept of it."""

    value: str = field(repr=False)
    mac: bytes
    redacted_value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What auth works with."""

    store: Store
    pepper: Secret
    clock: Clock
    entropy: Entropy
    data_classes: tuple[str, ...]

    def mac(self, digest: bytes) -> bytes:
        """What is stored of the key with this digest."""
        return keys.mac(self.pepper.reveal().encode(), digest)

    def new_id(self, prefix: str) -> str:
        """A public id, ordered by time: ``key_`` and a UUIDv7 without its hyphens."""
        unix_ms = int(self.clock.now().timestamp() * 1000)
        return f"{prefix}_{uuid7(unix_ms, self.entropy).replace('-', '')}"

    def new_secret(self, kind: apikeys.KeyKind) -> NewSecret:
        """A new secret of this kind."""
        value = apikeys.mint(kind, self.entropy)
        return NewSecret(
            value=value,
            mac=self.mac(apikeys.digest(value)),
            redacted_value=apikeys.redact(value),
        )

    def mint(self, asked: NewKey, organization_id: str | None) -> tuple[str, KeyDraft]:
        """A new secret, to be shown once, and what may be kept of it."""
        secret = self.new_secret(asked.kind)
        return secret.value, KeyDraft(
            id=self.new_id("key"),
            organization_id=organization_id,
            mac=secret.mac,
            redacted_value=secret.redacted_value,
            asked=asked,
            now=self.clock.now(),
        )


def identity_of(settings: AuthSettings, clock: Clock, entropy: Entropy) -> Identity:
    """The store, not looked at yet, and its pepper, made when there is none yet."""
    return Identity(
        store=SqlStore(open_configured(settings)),
        pepper=FileSecrets(entropy).read_or_make(settings.pepper_file),
        clock=clock,
        entropy=entropy,
        data_classes=settings.data_classes,
    )


async def prepare(identity: Identity, pepper_file: str) -> None:
    """Brings the schema up to date.

    Raises ``SecretError`` when the pepper is not the one that the stored keys were kept under:
    every key would be refused as unknown.
    """
    await identity.store.migrate(now=identity.clock.now())
    await _check_pepper(identity, pepper_file)


async def open_identity(settings: AuthSettings, clock: Clock, entropy: Entropy) -> Identity:
    """The store, prepared. Raises as :func:`prepare`."""
    identity = identity_of(settings, clock, entropy)
    try:
        await prepare(identity, settings.pepper_file)
    except BaseException:
        await identity.store.close()
        raise
    return identity


async def _check_pepper(identity: Identity, pepper_file: str) -> None:
    fingerprint = keys.pepper_fingerprint(identity.pepper.reveal().encode())
    if not await identity.store.pin_pepper(fingerprint):
        raise SecretError(
            f"{pepper_file} is not the pepper that the keys in the database were stored under:"
            " put the old file back, or no key will work."
        )
