"""Reads the objects of a JSON file one after the other, so that a large file needs little memory.

A file is an array of objects, a page of an API (``{"data": [...]}``, of which the elements of
``data`` are read), several pages or objects behind each other, or one to a line.
"""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import IO, Any, Final

from cli.bill_rows import BillError

PIECE_CHARS: Final = 1 << 20
"""How much is read at once."""
OBJECT_CHARS_MAX: Final = 64 << 20
"""The longest object, in characters."""

_BLANK: Final = " \t\r\n\ufeff"
_PAGE: Final = "data"
_DECODER: Final = json.JSONDecoder(parse_float=Decimal, parse_constant=Decimal)


def objects(file: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each object with the line that it begins on. Raises ``BillError``."""
    reader = _Reader(file)
    while (sign := reader.peek()) != "":
        if sign == "[":
            yield from _elements(reader)
        elif sign == "{":
            yield from _page_or_object(reader)
        elif sign == ",":
            reader.skip()
        else:
            raise reader.error("here must be an object or an array")


def _elements(reader: "_Reader") -> Iterator[tuple[int, dict[str, Any]]]:
    reader.skip()
    while (sign := reader.peek()) != "]":
        if sign == "":
            raise reader.error("the file ends within an array")
        if sign == ",":
            reader.skip()
        elif sign == "{":
            yield from _page_or_object(reader)
        else:
            raise reader.error("here must be an object")
    reader.skip()


def _page_or_object(reader: "_Reader") -> Iterator[tuple[int, dict[str, Any]]]:
    """The elements of a page as they come, or the object itself."""
    line = reader.line
    found: dict[str, Any] = {}
    reader.skip()
    paged = False
    while (sign := reader.peek()) != "}":
        if sign == ",":
            reader.skip()
            continue
        if sign != '"':
            raise reader.error("here must be the name of a field")
        name = reader.value()
        if reader.peek() != ":":
            raise reader.error("here must be a colon")
        reader.skip()
        if name == _PAGE and reader.peek() == "[":
            paged = True
            yield from _elements(reader)
        else:
            found[name] = reader.value()
    reader.skip()
    if not paged:
        yield line, found


class _Reader:
    """A text, of which a piece is in memory."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._over = False
        self.line = 1

    def peek(self) -> str:
        """The next sign that is not blank; empty at the end."""
        while True:
            text, at = self._text, self._at
            while at < len(text) and text[at] in _BLANK:
                self.line += text[at] == "\n"
                at += 1
            self._at = at
            if at < len(text):
                return text[at]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Goes past the sign that was peeked at."""
        self._at += 1

    def value(self) -> Any:
        """The value that begins here."""
        self.peek()
        while True:
            try:
                found, end = _DECODER.raw_decode(self._text, self._at)
            except ValueError as error:
                if self._over or len(self._text) - self._at > OBJECT_CHARS_MAX:
                    raise self._broken(error) from None
                self._more()
                continue
            # A number at the end of what was read may go on.
            if end == len(self._text) and not self._over and self._more():
                continue
            self.line += self._text.count("\n", self._at, end)
            self._at = end
            return found

    def error(self, what: str) -> BillError:
        """What is wrong, and where."""
        return BillError(self.line, what)

    def _broken(self, error: ValueError) -> BillError:
        if isinstance(error, json.JSONDecodeError):
            line = self.line + self._text.count("\n", self._at, error.pos)
            return BillError(line, f"this is no JSON: {error.msg.lower()}")
        return self.error("this number is too long")

    def _more(self) -> bool:
        """Reads on; false at the end of the file."""
        if self._over:
            return False
        piece = self._file.read(max(PIECE_CHARS, len(self._text) - self._at))
        self._over = not piece
        self._text = self._text[self._at :] + piece
        self._at = 0
        return bool(piece)
