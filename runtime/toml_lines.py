"""Where in a TOML text a setting stands. The standard parser does not say, so it is asked again.

A text that parses is cut shorter until the setting is gone: the statement that made the
difference is the one that set it. A few parses, on the way to an error message only.
"""

import tomllib
from collections.abc import Sequence


def line_of(text: str, path: Sequence[str | int]) -> int:
    """The line, from 1, on which the statement that sets ``path`` begins.

    ``text`` is valid TOML that has ``path``: keys, and indexes into arrays of tables.
    """
    lines = text.split("\n")
    without, with_it = 0, len(lines)
    while with_it - without > 1:
        middle = _complete(lines, (without + with_it) // 2, down_to=without)
        if middle is None:
            # One statement covers everything from here to its end.
            end = (without + with_it) // 2 + 1
            while _parsed(lines[:end]) is None:
                end += 1
            if end >= with_it or _has(_parsed(lines[:end]), path):
                break
            without = end
        elif _has(_parsed(lines[:middle]), path):
            with_it = middle
        else:
            without = middle
    return without + 1


def _complete(lines: Sequence[str], count: int, *, down_to: int) -> int | None:
    """The most lines, at most ``count`` and more than ``down_to``, that parse by themselves."""
    while count > down_to:
        if _parsed(lines[:count]) is not None:
            return count
        count -= 1
    return None


def _parsed(lines: Sequence[str]) -> object:
    try:
        return tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError:
        return None


def _has(document: object, path: Sequence[str | int]) -> bool:
    for key in path:
        match document, key:
            case dict(), str() if key in document:
                document = document[key]
            case list(), int() if key < len(document):
                document = document[key]
            case _:
                return False
    return True
