"""Secrets that cannot be printed by accident, and the files they live in.

A :class:`Secret` shows ``***`` wherever a value is made into text and refuses to be serialised;
:meth:`Secret.reveal` is the one way out, easy to search for. Files of secrets are read only when
nobody else can read them.
"""

import errno
import hmac
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn, Protocol, Self

from runtime.clock import Entropy

SECRET_BYTES: Final = 32
"""How much randomness a secret of the gateway's own has."""

TEXT_CHARS_MIN: Final = 32
"""The shortest text that is accepted where the gateway needs a secret of its own."""

FILE_BYTES_MAX: Final = 64 * 1024
"""The longest file that is read as a secret."""

_MASK: Final = "***"


class SecretError(Exception):
    """A secret's file is missing, unusable or readable by others. Says which and what to do."""


class Secret:
    """Text that never shows: not in logs, tracebacks, f-strings, JSON, pickles or copies of
    settings.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself; for the one place that sends or hashes it."""
        return self._text

    def __repr__(self) -> str:
        return f"Secret({_MASK})"

    def __str__(self) -> str:
        return _MASK

    def __format__(self, format_spec: str) -> str:
        return format(_MASK, format_spec)

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash(self._text)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __getstate__(self) -> NoReturn:
        raise TypeError("A secret is not serialised: pass the name of its file or variable.")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("A secret is not serialised: pass the name of its file or variable.")


class Secrets(Protocol):
    """Where secrets come from, as a port."""

    def read(self, place: str) -> Secret:
        """The secret kept at ``place``. Raises ``SecretError`` when it cannot be used."""
        ...

    def read_or_make(self, place: str) -> Secret:
        """The secret kept at ``place``, made on the first call anywhere.

        At least 256 bits of randomness as text. Raises ``SecretError`` when what is there cannot
        be used.
        """
        ...


class FileSecrets:
    """Secrets in files: one line of text, nobody's to read but the owner's (mode 0600)."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy

    def read(self, place: str) -> Secret:
        """See :class:`Secrets`."""
        return read_secret(Path(place))

    def read_or_make(self, place: str) -> Secret:
        """See :class:`Secrets`. Processes that race for the first call all get the same one."""
        path = Path(place)
        if not path.exists():
            self._make(path)
        secret = read_secret(path)
        if len(secret.reveal()) < TEXT_CHARS_MIN:
            raise SecretError(
                f"{path} holds fewer than {TEXT_CHARS_MIN} characters: put a long random text"
                " there, or remove the file to have one made."
            )
        return secret

    def _make(self, path: Path) -> None:
        """Puts a new secret at ``path`` unless somebody else is faster.

        The text is complete and on disk before the name appears, so that no reader ever sees half
        of it and a power failure cannot leave hashes behind without their pepper.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.{self._entropy.bytes(8).hex()}")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(path, error) from None
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._entropy.bytes(SECRET_BYTES).hex().encode() + b"\n")
                file.flush()
                os.fsync(descriptor)
            os.link(draft, path)
            _sync_directory(path.parent)
        except FileExistsError:
            return
        except OSError as error:
            raise _unusable(path, error) from None
        finally:
            draft.unlink()


def read_secret(path: Path) -> Secret:
    """The stripped text of a file that only its owner can read.

    A file of another owner may be readable by our group: that is how a mounted Kubernetes secret
    reaches a process that is not root
    (https://kubernetes.io/docs/concepts/configuration/secret/). Raises ``SecretError`` when it is
    missing, empty, too long, not text, or readable by others.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        _check_mode(path, os.fstat(descriptor))
        content = os.read(descriptor, FILE_BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    if len(content) > FILE_BYTES_MAX:
        raise SecretError(f"{path} is longer than {FILE_BYTES_MAX} bytes: that is no secret.")
    try:
        text = content.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise SecretError(f"{path} is not text in UTF-8.") from None
    if not text:
        raise SecretError(f"{path} is empty: put the secret there, on one line.")
    line = one_line(text)
    if not line:
        raise SecretError(f"{path} holds more than one line of printable text.")
    return Secret(line)


def one_line(text: str) -> str:
    """The text, stripped; a JSON object, as the key files of clouds are, may stand on several
    lines and becomes one. Empty when it is not one line of printable text.
    """
    text = text.strip()
    if text.startswith("{"):
        with suppress(ValueError):
            return json.dumps(json.loads(text), separators=(",", ":"))
    return text if text.isprintable() else ""


def _check_mode(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise SecretError(f"{path} is not a regular file.")
    own = status.st_uid == os.geteuid()
    if status.st_mode & (0o077 if own else 0o007):
        raise SecretError(f"{path} can be read by others: run `chmod 600 {path}`.")


def _unusable(path: Path, error: OSError) -> SecretError:
    reason = os.strerror(error.errno or errno.EIO)
    return SecretError(f"Cannot use the secret file {path}: {reason}.")


def _sync_directory(directory: Path) -> None:
    """Makes a new name in ``directory`` survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
