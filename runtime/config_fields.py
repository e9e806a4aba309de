"""How one setting is read: its type, its rule, and what to say when a value has neither."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, get_type_hints

from runtime.rules import Rule, rule_of

_FLOAT_EXACT_MAX: Final = 2**53


TYPE_NAMES: Final[Mapping[Any, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple[str, ...]: "a list of texts",
}
"""What a setting of a type must be, in words."""

_SAID: Final[Mapping[Any, Any]] = {int | None: int, bool | None: bool}
"""What a setting is that can also be left out, once it is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """How one setting is read: its type and its rule."""

    hint: Any
    rule: Rule | None


def fields_of(cls: type[Any]) -> Mapping[str, Field]:
    """The fields of a settings dataclass, by name."""
    hints = get_type_hints(cls)
    return {f.name: Field(hint=hints[f.name], rule=rule_of(f.metadata)) for f in fields(cls)}


def checked(value: object, known: Field) -> object:
    """The value in the type of its field. Raises ``ValueError`` with what is wrong."""
    if known.hint is float and type(value) is int:
        value = float(value) if abs(value) < _FLOAT_EXACT_MAX else math.inf
    elif known.hint == tuple[str, ...]:
        entries = value if isinstance(value, list | tuple) else [None]
        value = tuple(entries) if all(isinstance(entry, str) for entry in entries) else None
    hint = _SAID.get(known.hint, known.hint)
    expected = tuple if hint == tuple[str, ...] else hint
    if type(value) is not expected:
        raise ValueError(f"must be {TYPE_NAMES[hint]}")
    complaint = None if known.rule is None else known.rule(value)
    if complaint is not None:
        raise ValueError(complaint)
    return value
