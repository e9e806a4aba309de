"""Secrets as they are stored: sealed with AES-256-GCM, so that a database, a copy of it or a
watched connection gives none away.

Each secret has a data key of its own, and that is wrapped under the key-encryption key (KEK): a
KEK in a key management service only ever sees data keys. What a secret is for is bound to it as
additional data: with another purpose it does not open.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from onegate.auth.v1 import provider_service_pb2
from runtime.clock import Entropy
from runtime.later import Later
from runtime.secrets import FileSecrets, Secret, SecretError, read_secret
from runtime.settings import SealingSettings

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
"""What AES-GCM takes (NIST SP 800-38D, section 8.2). Every data key seals one secret, once."""
SECRET_BYTES_MAX: Final = 64 * 1024

_PURPOSE: Final = b"onegate data key"
_AEAD: Final = Later("cryptography.hazmat.primitives.ciphers.aead")
_FAILURES: Final = Later("cryptography.exceptions")


class SealError(Exception):
    """A sealed secret does not open here. Says why and what to do; holds no secret."""


class KeyEncryptionKey(Protocol):
    """What wraps data keys: a key of one's own, or one in a key management service. Blocks."""

    @property
    def id(self) -> str:
        """Which key it is; kept beside what it has wrapped. Never the key."""
        ...

    def wrap(self, data_key: bytes) -> bytes:
        """The data key, to be kept. Raises ``SealError``."""
        ...

    def unwrap(self, wrapped: bytes) -> bytes:
        """The data key again. Raises ``SealError`` when it was changed or wrapped by another."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A secret as it is kept."""

    key_id: str
    wrapped_key: bytes
    nonce: bytes
    ciphertext: bytes

    def to_text(self) -> str:
        """For a column."""
        members = (self.wrapped_key, self.nonce, self.ciphertext)
        return ".".join(["1", self.key_id, *(base64.b64encode(m).decode() for m in members)])

    @classmethod
    def from_text(cls, text: str) -> "Sealed":
        """From a column. Raises ``SealError``."""
        try:
            version, key_id, *members = text.split(".")
            wrapped, nonce, ciphertext = (base64.b64decode(m, validate=True) for m in members)
        except (ValueError, binascii.Error):
            raise SealError("What is stored is no sealed secret.") from None
        if version != "1":
            raise SealError("The secret was sealed by a newer onegate: run that.")
        return cls(key_id=key_id, wrapped_key=wrapped, nonce=nonce, ciphertext=ciphertext)


class LocalKey:
    """A KEK from a file or a variable: any text of 32 characters or more, best 64 hexadecimal."""

    def __init__(self, secret: Secret, entropy: Entropy) -> None:
        self._cipher = _AEAD.AESGCM(_digest("onegate key-encryption key", secret))
        self._entropy = entropy
        self.id = _digest("onegate key-encryption key id", secret).hex()[:16]

    def wrap(self, data_key: bytes) -> bytes:
        """See :class:`KeyEncryptionKey`."""
        nonce = self._entropy.bytes(NONCE_BYTES)
        wrapped: bytes = self._cipher.encrypt(nonce, data_key, _PURPOSE)
        return nonce + wrapped

    def unwrap(self, wrapped: bytes) -> bytes:
        """See :class:`KeyEncryptionKey`."""
        try:
            nonce, rest = wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]
            data_key: bytes = self._cipher.decrypt(nonce, rest, _PURPOSE)
        except (_FAILURES.InvalidTag, ValueError):
            raise SealError("A sealed secret was changed where it is stored.") from None
        return data_key


def _digest(purpose: str, secret: Secret) -> bytes:
    return hashlib.sha256(f"{purpose}\n{secret.reveal()}".encode()).digest()


def seal(text: Secret, purpose: bytes, key: KeyEncryptionKey, entropy: Entropy) -> Sealed:
    """Seals a secret for a purpose. Raises ``SealError``."""
    content = text.reveal().encode()
    if len(content) > SECRET_BYTES_MAX:
        raise SealError(f"A secret of more than {SECRET_BYTES_MAX} bytes is none.")
    data_key, nonce = entropy.bytes(KEY_BYTES), entropy.bytes(NONCE_BYTES)
    return Sealed(
        key_id=key.id,
        wrapped_key=key.wrap(data_key),
        nonce=nonce,
        ciphertext=_AEAD.AESGCM(data_key).encrypt(nonce, content, purpose),
    )


def unseal(sealed: Sealed, purpose: bytes, keys: Sequence[KeyEncryptionKey]) -> Secret:
    """The secret again. Raises ``SealError`` without its key, or with another purpose."""
    data_key = _wrapping(sealed, keys).unwrap(sealed.wrapped_key)
    try:
        cipher = _AEAD.AESGCM(data_key)
        content: bytes = cipher.decrypt(sealed.nonce, sealed.ciphertext, purpose)
        return Secret(content.decode())
    except (_FAILURES.InvalidTag, ValueError):
        raise SealError(
            "A sealed secret does not belong to the address, kind or owner that it is stored with:"
            " give it anew."
        ) from None


def rewrapped(sealed: Sealed, keys: Sequence[KeyEncryptionKey]) -> Sealed:
    """The same secret under the first of ``keys``. The secret itself is not opened.

    Raises ``SealError`` when none of them is its key.
    """
    data_key = _wrapping(sealed, keys).unwrap(sealed.wrapped_key)
    return Sealed(
        key_id=keys[0].id,
        wrapped_key=keys[0].wrap(data_key),
        nonce=sealed.nonce,
        ciphertext=sealed.ciphertext,
    )


def _wrapping(sealed: Sealed, keys: Sequence[KeyEncryptionKey]) -> KeyEncryptionKey:
    for key in keys:
        if key.id == sealed.key_id:
            return key
    raise SealError(
        f"The key-encryption key {sealed.key_id} is not here: set sealing.key_file or"
        " sealing.former_key_file to it."
    )


def purpose_of(members: Sequence[str | Sequence[str]]) -> bytes:
    """What a secret is bound to, without two meanings: a JSON list."""
    return json.dumps(members, separators=(",", ":")).encode()


class Keyring:
    """The KEKs as the settings name them, read anew whenever they are asked for: a key that is put
    there works without a restart.

    Args:
        settings: where they are.
        environ: the environment.
        entropy: for a key that is made, and for wrapping.
    """

    def __init__(
        self, settings: SealingSettings, environ: Mapping[str, str], entropy: Entropy
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._entropy = entropy

    def read(self, *, make: bool = False) -> list[KeyEncryptionKey]:
        """The present key, then the former one where there is one. ``make`` makes the file of the
        present one when it is absent.

        Raises ``SealError`` when one cannot be read.
        """
        settings, files = self._settings, FileSecrets(self._entropy)
        reading: Callable[[str], Secret] = files.read_or_make if make else _read
        try:
            present = self._secret(settings.key_env, settings.key_file, reading)
            former = self._former()
        except SecretError as error:
            raise SealError(str(error)) from None
        if present is None:
            raise SealError("No key-encryption key is set: set sealing.key_file.")
        found = [present] if former is None or former == present else [present, former]
        return [LocalKey(secret, self._entropy) for secret in found]

    def _former(self) -> Secret | None:
        file = self._settings.former_key_file
        present = file if file and Path(file).exists() else ""
        return self._secret(self._settings.former_key_env, present, _read)

    def _secret(self, variable: str, file: str, reading: Callable[[str], Secret]) -> Secret | None:
        if variable:
            secret = Secret(self._environ.get(variable, "").strip())
        elif file:
            secret = reading(file)
        else:
            return None
        if len(secret.reveal()) < KEY_BYTES:
            raise SecretError(
                f"The key-encryption key in {variable or file} has fewer than {KEY_BYTES}"
                " characters: `openssl rand -hex 32` makes one."
            )
        return secret


def _read(place: str) -> Secret:
    return read_secret(Path(place))


def purpose_of_credential(
    provider: provider_service_pb2.StoredProvider, credential: provider_service_pb2.StoredCredential
) -> bytes:
    """What a provider's secret is bound to: where it goes and whose it is."""
    return purpose_of(
        [
            provider.id,
            provider.kind,
            provider.base_url,
            credential.id,
            sorted(credential.organizations),
            sorted(credential.projects),
        ]
    )
