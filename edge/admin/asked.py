"""What a request asks for: its path, query and body, each read field by field. Pure.

Whatever no reader has asked for is refused: a field that is not a route's own never reaches auth,
and a misspelt filter is not silently no filter.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from edge.endpoints.strict_json import read_object
from edge.http import HttpRefusalError
from onegate.auth.v1 import page_pb2
from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError

BODY_DEPTH_MAX: Final = 8
LIMIT_MAX: Final = 1_000
QUERY_FIELDS_MAX: Final = 500
_INT64_MAX: Final = 2**63 - 1

T = TypeVar("T")


class Asked:
    """One request, being read."""

    def __init__(self, path: Mapping[str, str], query: bytes, body: bytes) -> None:
        self.path = path
        self._query = _query(query)
        self._body = read_object(body, depth_max=BODY_DEPTH_MAX) if body.strip() else {}
        self._unread = {*self._query, *self._body}

    def finish(self) -> None:
        """Raises INVALID_REQUEST when there is something that nobody has read."""
        for name in sorted(self._unread):
            raise refused(name, "is no field of this request")

    def has(self, name: str) -> bool:
        """Whether the body has the field, and not as ``null``."""
        return self._field(name) is not None

    def text(self, name: str) -> str:
        """A text of the body that must be there."""
        value = self.text_or(name)
        if value is None:
            raise refused(name, "must be set")
        return value

    def text_or(self, name: str) -> str | None:
        """A text of the body; ``None`` where there is none."""
        return self._typed(name, str, "must be a string")

    def whole(self, name: str) -> int | None:
        """A whole number of the body; ``None`` where there is none."""
        value = self._typed(name, int, "must be a whole number")
        if value is not None and not 0 <= value <= _INT64_MAX:
            raise refused(name, "must not be negative, or larger than 64 bits")
        return value

    def flag(self, name: str) -> bool:
        """A truth value of the body; false where there is none."""
        return bool(self._typed(name, bool, "must be true or false"))

    def texts(self, name: str) -> list[str] | None:
        """A list of texts of the body; ``None`` where there is none."""
        values = self._typed(name, list, "must be a list of strings")
        if values is not None and not all(type(value) is str for value in values):
            raise refused(name, "must be a list of strings")
        return values

    def mapping(self, name: str) -> dict[str, str]:
        """An object of texts of the body; empty where there is none."""
        found = self._typed(name, dict, "must be an object of strings") or {}
        if not all(type(value) is str for value in found.values()):
            raise refused(name, "must be an object of strings")
        return found

    def object(self, name: str) -> "Asked":
        """An object of the body that must be there; to be finished by its reader."""
        value = self._typed(name, dict, "must be an object")
        if value is None:
            raise refused(name, "must be set")
        return _inner(value)

    def objects(self, name: str) -> list["Asked"]:
        """A list of objects of the body; each is to be finished by its reader."""
        values = self._typed(name, list, "must be a list of objects") or []
        if not all(type(value) is dict for value in values):
            raise refused(name, "must be a list of objects")
        return [_inner(value) for value in values]

    def filter(self, name: str) -> str:
        """A text of the query; empty where there is none."""
        values = self.filters(name)
        if len(values) > 1:
            raise refused(name, "must be sent once")
        return values[0] if values else ""

    def filters(self, name: str) -> list[str]:
        """All texts of the query by this name, with or without ``[]`` behind it."""
        self._unread -= {name, f"{name}[]"}
        return [*self._query.get(name, ()), *self._query.get(f"{name}[]", ())]

    def filter_whole(self, name: str) -> int | None:
        """A whole number of the query; ``None`` where there is none."""
        text = self.filter(name)
        if not text:
            return None
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise refused(name, "must be a whole number")
        return int(text)

    def filter_word(self, name: str, *words: str) -> str:
        """One of some words of the query; the first of them where there is none."""
        found = self.filter(name) or words[0]
        if found not in words:
            raise refused(name, f"must be one of {', '.join(words)}")
        return found

    def filter_flag(self, name: str) -> bool:
        """A truth value of the query; false where there is none."""
        return self.filter_word(name, "false", "true") == "true"

    def page(self, default: int, *, order: str = "desc") -> page_pb2.Page:
        """``limit``, ``after`` and ``order`` of the query; 0 asks for the default."""
        limit = self.filter_whole("limit") or default
        if limit > LIMIT_MAX:
            raise refused("limit", f"must be 0 (for {default}) to {LIMIT_MAX}")
        words = ("desc", "asc") if order == "desc" else ("asc", "desc")
        ascending = self.filter_word("order", *words) == "asc"
        return page_pb2.Page(size=limit, after=self.filter("after"), ascending=ascending)

    def _field(self, name: str) -> Any:
        self._unread.discard(name)
        return self._body.get(name)

    def _typed(self, name: str, kind: type[T], rule: str) -> T | None:
        value = self._field(name)
        # Not isinstance: to JSON, true is no number.
        if value is not None and type(value) is not kind:
            raise refused(name, rule)
        return value


def refused(name: str, rule: str) -> GatewayError:
    """INVALID_REQUEST with the field at fault."""
    shown = name[:100]
    message = f"`{shown}` {rule}."
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, message, param=shown)


def _inner(value: dict[str, Any]) -> Asked:
    asked = Asked({}, b"", b"")
    asked._body = value  # noqa: SLF001 - the class is this module's own
    asked._unread = set(value)  # noqa: SLF001
    return asked


def _query(query: bytes) -> dict[str, Sequence[str]]:
    found: dict[str, list[str]] = {}
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=QUERY_FIELDS_MAX,
        )
    except ValueError:
        raise HttpRefusalError(400, "The query string cannot be read.") from None
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return dict(found)
