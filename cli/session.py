"""The session of whoever has signed in on this machine, in a file that only they can read.

It belongs to one auth: a command for another gateway does not send it there.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from runtime.secrets import SecretError, read_secret

FILE: Final = "session.json"
ADMIN_KEY_VARIABLE: Final = "ONEGATE_ADMIN_KEY"
"""An admin key to use instead of a session: for scripts, and for when nobody can sign in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSession:
    """A session and where it counts."""

    auth: str
    key: str = field(repr=False)
    email: str
    expires_at: datetime


def directory_of(environ: Mapping[str, str]) -> Path:
    """Where this user's configuration lives
    (https://specifications.freedesktop.org/basedir-spec/latest/).
    """
    base = environ.get("XDG_CONFIG_HOME", "")
    home = Path(base) if base.startswith("/") else Path.home() / ".config"
    return home / "onegate"


def keep(directory: Path, session: KeptSession) -> None:
    """Writes the session; nobody else can read it, not even while it is written."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = directory / f".{FILE}.{os.getpid()}"
    content = {
        "auth": session.auth,
        "key": session.key,
        "email": session.email,
        "expires_at": session.expires_at.isoformat(),
    }
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)
    draft.replace(directory / FILE)


def kept(directory: Path, auth: str) -> KeptSession | None:
    """The session for this auth; ``None`` when there is none. Raises ``SecretError`` for a file
    that others can read, or that is none of ours.
    """
    path = directory / FILE
    if not path.exists():
        return None
    text = read_secret(path).reveal()
    try:
        content: dict[str, Any] = json.loads(text)
        found = KeptSession(
            auth=str(content["auth"]),
            key=str(content["key"]),
            email=str(content["email"]),
            expires_at=datetime.fromisoformat(content["expires_at"]),
        )
    except (ValueError, KeyError, TypeError):
        raise SecretError(f"{path} holds no session: remove it and run `onegate login`.") from None
    return found if found.auth == auth else None


def forget(directory: Path) -> None:
    """Removes the session."""
    (directory / FILE).unlink(missing_ok=True)
