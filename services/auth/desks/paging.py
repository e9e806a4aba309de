"""Which part of a listing a request asks for. Pure."""

import re
from collections.abc import Sequence
from typing import Final, TypeVar

from onegate.auth.v1 import page_pb2
from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from services.auth.records import Page, Slice

PAGE_SIZE: Final = 100
PAGE_SIZE_MAX: Final = 1_000

_TOKEN: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_ID: Final = re.compile(r"[A-Za-z0-9_./:@*+~-]{1,256}", re.ASCII)

T = TypeVar("T")


def page(size: int, token: str, *, ascending: bool = False) -> Page:
    """The page that a request asks for by number and token. Raises INVALID_REQUEST."""
    if token and not _TOKEN.fullmatch(token):
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            "`page_token` must be the next_page_token of the page before.",
            param="page_token",
        )
    before = int(token) if token else None
    return Page(size=_size(size, "page_size"), before=before, ascending=ascending)


def part(asked: page_pb2.Page, *, before: str = "", order: str = "id") -> Slice:
    """The slice that a request asks for by ids, with one row more than asked for, which says
    whether there are more. Raises INVALID_REQUEST.
    """
    return Slice(
        size=_size(asked.size, "limit") + 1,
        after=cursor(asked.after, "after"),
        before=cursor(before, "before"),
        ascending=asked.ascending,
        order=order,
    )


def cursor(object_id: str, param: str) -> str | None:
    """A cursor; ``None`` when there is none. Raises INVALID_REQUEST."""
    if object_id and not _ID.fullmatch(object_id):
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            f"`{param}` must be the id of an object that was listed before.",
            param=param,
        )
    return object_id or None


def split(rows: Sequence[T], wanted: Slice) -> tuple[Sequence[T], bool]:
    """The page's rows, and whether there are more."""
    return rows[: wanted.size - 1], len(rows) == wanted.size


def page_token(before: int | None) -> str:
    """Where the next page starts."""
    return "" if before is None else str(before)


def _size(size: int, param: str) -> int:
    if size < 0:
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            f"`{param}` must be 0 (for {PAGE_SIZE}) to {PAGE_SIZE_MAX}.",
            param=param,
        )
    return min(size or PAGE_SIZE, PAGE_SIZE_MAX)
