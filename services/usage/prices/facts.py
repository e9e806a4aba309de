"""What is known of models beside their prices: limits, modalities, parameters, dates, data policy.

Two files ship with the package. ``model_facts.json`` is made from models.dev by
``tools/model_facts.py``. ``model_corrections.json`` is the project's own and wins, each row with
its source. A name that neither knows has no facts: a wrong limit is worse than none.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, Final

from onegate.usage.v1.price_service_pb2 import DataHandling, ModelFacts

FACTS_FILE: Final = "model_facts.json"
CORRECTIONS_FILE: Final = "model_corrections.json"

_SNAPSHOT: Final = re.compile(r"-(?:20\d\d-?[01]\d-?[0-3]\d|latest)$")
"""The end of a name that only says which day's edition of a model it is."""

_PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    "tool_call": ("tools", "tool_choice"),
    "structured_output": ("response_format",),
    "reasoning": ("reasoning_effort",),
    "temperature": ("temperature",),
}
"""Request fields that a capability stands for, as OpenAI names them
(https://platform.openai.com/docs/api-reference/chat/create)."""

_MODALITIES: Final[Mapping[str, str]] = {"pdf": "file"}
"""Words of models.dev that differ from ours."""


class FactBook:
    """The facts of models, by ``kind/name``.

    Args:
        shipped: ``model_facts.json``, parsed.
        corrections: ``model_corrections.json``, parsed.
    """

    def __init__(self, shipped: Mapping[str, Any], corrections: Mapping[str, Any]) -> None:
        self._source: str = shipped["source"]
        # Vendors write one name in several cases (`GLM-4.6`, `glm-4.6`) and take any.
        self._shipped = {name.lower(): row for name, row in shipped["models"].items()}
        self._corrected = {name.lower(): row for name, row in corrections["models"].items()}
        self._vendors: Mapping[str, Mapping[str, Any]] = corrections["vendors"]
        self.models: Sequence[str] = sorted({*shipped["models"], *corrections["models"]})
        """The models with facts of their own, in order."""

    def find(self, model: str) -> ModelFacts | None:
        """What is known of a model; a dated edition has the facts of its model where it has none
        of its own. ``None`` when nothing is known.
        """
        kind, _, name = model.partition("/")
        if not name:
            return None
        facts = ModelFacts(model=model)
        shipped = self._row(self._shipped, kind, name)
        if shipped is not None:
            facts.MergeFrom(_facts(shipped))
            facts.sources.append(self._source)
        corrected = self._row(self._corrected, kind, name)
        vendor = self._vendors.get(kind)
        for row in (vendor, corrected):
            if row is not None:
                _correct(facts, row)
                facts.sources.append(row["source"])
        return facts if facts.sources else None

    @staticmethod
    def _row(rows: Mapping[str, Any], kind: str, name: str) -> Mapping[str, Any] | None:
        for candidate in _editions(name.lower()):
            row: Mapping[str, Any] | None = rows.get(f"{kind}/{candidate}")
            if row is not None:
                return row
        return None


def shipped_facts() -> FactBook:
    """The facts that come with the package."""
    return FactBook(read_facts(), shipped_corrections())


def read_facts() -> Any:
    """``model_facts.json`` as it comes with the package."""
    return _read(FACTS_FILE)


def shipped_corrections() -> Any:
    """``model_corrections.json`` as it comes with the package."""
    return _read(CORRECTIONS_FILE)


def merged(price_facts: ModelFacts | None, known: ModelFacts | None) -> ModelFacts | None:
    """What a price table says beside its prices, and what is known here, which wins."""
    if price_facts is None or known is None:
        return known if price_facts is None else price_facts
    facts = ModelFacts()
    facts.CopyFrom(price_facts)
    facts.MergeFrom(known)
    return facts


def _read(file: str) -> Any:
    return json.loads((resources.files("services.usage") / file).read_text("utf-8"))


def _editions(name: str) -> Iterator[str]:
    yield name
    plain = _SNAPSHOT.sub("", name)
    if plain != name:
        yield plain


def _facts(row: Mapping[str, Any]) -> ModelFacts:
    return ModelFacts(
        name=row.get("name", ""),
        context_tokens_max=row.get("context", 0),
        output_tokens_max=row.get("output", 0),
        input_modalities=_modalities(row.get("reads", "")),
        output_modalities=_modalities(row.get("writes", "")),
        supported_parameters=[
            parameter
            for capability in row.get("can", "").split()
            for parameter in _PARAMETERS[capability]
        ],
        knowledge=row.get("knowledge", ""),
        deprecated=row.get("deprecated", False) or "shutdown_on" in row,
        shutdown_on=row.get("shutdown_on", ""),
    )


def _modalities(words: str) -> list[str]:
    return [_MODALITIES.get(word, word) for word in words.split()]


def _correct(facts: ModelFacts, row: Mapping[str, Any]) -> None:
    """Puts a correction over what is there. A row may hold every field that a shipped one may."""
    fields = _facts(row)
    for field, _ in fields.ListFields():
        facts.ClearField(field.name)  # type: ignore[arg-type]
    facts.MergeFrom(fields)
    if {"region", "retention_days", "training"} & row.keys():
        facts.data_handling.MergeFrom(
            DataHandling(
                region=row.get("region", ""),
                retention_days=row.get("retention_days"),
                training=row.get("training"),
            )
        )
