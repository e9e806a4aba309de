"""Model patterns: ``*`` stands for any run of characters, ``/`` included; everything else for
itself.

Auth narrows with them, the router asks them. Matching takes time linear in the text for each part
between stars; no pattern can make it backtrack.
"""

from collections.abc import Iterable
from typing import Final

_FRESH: Final = "\0"


def matches(pattern: str, model: str) -> bool:
    """Whether the pattern stands for the model (``provider/model``, compared exactly)."""
    head, *parts = pattern.split("*")
    if not parts:
        return model == head
    tail = parts.pop()
    start, end = len(head), len(model) - len(tail)
    if end < start or not model.startswith(head) or not model.endswith(tail):
        return False
    for part in parts:
        found = model.find(part, start, end)
        if found < 0:
            return False
        start = found + len(part)
    return True


def covers(wide: str, narrow: str) -> bool:
    """Whether every model that ``narrow`` stands for is one that ``wide`` stands for.

    A character that no pattern holds takes the place of each star of ``narrow``: only a star of
    ``wide`` can match it, and then matches whatever else stands there.
    """
    return matches(wide, narrow.replace("*", _FRESH))


def allows(allowed: Iterable[str], denied: Iterable[str], model: str) -> bool:
    """Whether a grant's two lists let the model through: denied wins; an empty ``allowed`` allows
    every model.
    """
    if any(matches(pattern, model) for pattern in denied):
        return False
    patterns = tuple(allowed)
    return not patterns or any(matches(pattern, model) for pattern in patterns)
