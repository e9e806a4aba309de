"""Puts versions of the catalogue in force, keeps every one of them, and brings them back."""

# ruff: noqa: N802 - methods are named as the contract names them

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import grpc

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import catalogue_service_pb2 as pb
from onegate.usage.v1 import catalogue_service_pb2_grpc
from runtime.clock import Clock, pause
from runtime.errors import GatewayError
from runtime.rpc import require_operator
from runtime.secrets import Secret
from services.usage.prices import catalogue_document
from services.usage.prices.board import Board
from services.usage.prices.catalogue_document import Document, Reading
from services.usage.prices.catalogue_store import CatalogueStore, Version
from services.usage.reports import queries

ACTOR_CHARS_MAX: Final = 100
REFRESH_S: Final = 2.0
"""How often a usage process looks for versions that were put in force through another one although
it heard of none, in seconds.
"""

_SHIPPED_BY: Final = "what is installed"
_LOG = logging.getLogger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class Catalogues:
    """The versions, kept in a store and shown on the board.

    Args:
        store: where they are kept.
        board: what they are shown on; it starts with what is installed.
        clock: for the times of versions and for pauses.
        installed: what is in force while there was never another.
    """

    def __init__(
        self,
        store: CatalogueStore,
        board: Board,
        clock: Clock,
        installed: Callable[[], Document] = catalogue_document.shipped,
    ) -> None:
        self._store = store
        self._board = board
        self._clock = clock
        self._installed = installed
        self._made: _Made | None = None
        self._shown = ""
        self._number = 0
        self._lock = asyncio.Lock()
        self._heard = asyncio.Event()

    async def refresh(self) -> None:
        """Shows the version in force, if there is one. Raises STORE_UNAVAILABLE.

        A version that cannot be read (a later release wrote it) stays unshown, which one line
        tells: what is known goes on.
        """
        async with self._lock:
            last = await self._store.last()
            if last is None or last.number == self._number:
                return
            if last.digest != self._shown:
                content = await self._store.content(last.digest)
                try:
                    reading = await asyncio.to_thread(_read, content)
                except ValueError as error:
                    _LOG.error("version %d of the catalogue is no use: %s", last.number, error)
                else:
                    await self._board.swap(reading.catalogue, reading.facts)
                    _LOG.info("version %d of the catalogue is in force", last.number)
            self._number, self._shown = last.number, last.digest

    async def run(self) -> None:
        """Refreshes when another process announces a version, and now and then."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._store.follow(self._heard.set))
            away = False
            while True:
                await pause(self._clock, REFRESH_S, self._heard)
                self._heard.clear()
                try:
                    await self.refresh()
                except GatewayError as error:
                    if not away:
                        _LOG.warning("another catalogue would not be seen: %s", error.message)
                    away = True
                else:
                    away = False

    async def version(self, number: int) -> tuple[Version, bytes]:
        """A version and its content; the one in force for 0. Raises NOT_FOUND."""
        found = await (self._store.find(number) if number else self._store.last())
        if found is not None:
            return found, await self._store.content(found.digest)
        if number:
            raise _missing(number)
        if self._made is None:
            self._made = await asyncio.to_thread(_shipped, self._installed)
        return self._made.version, self._made.content

    async def versions(self, before: int | None, count_max: int) -> list[Version]:
        """Versions, newest first; what is installed while there was never another."""
        found = await self._store.before(before, count_max)
        if found or before is not None:
            return found
        return [(await self.version(0))[0]]

    async def put(self, content: bytes, in_force: str, actor: str) -> Version:
        """Puts a new version in force; the present one when it is the same.

        Raises INVALID_REQUEST for what is no catalogue, CONFLICT when ``in_force`` is not.
        """
        last, kept = await self._compared(in_force)
        try:
            made = await asyncio.to_thread(_version_of, content)
        except ValueError as error:
            raise _invalid("document", f"is no catalogue: {error}") from None
        if made.version.digest == last.digest:
            return last
        return await self._add(last, kept, replace(made.version, actor=actor), made.content)

    async def restore(self, number: int, in_force: str, actor: str) -> Version:
        """Brings a former version back; for 0 the one before that which is in force.

        Raises NOT_FOUND when there is none, CONFLICT when ``in_force`` is not in force.
        """
        last, kept = await self._compared(in_force)
        former = await (self._store.find(number) if number else self._former(last))
        if former is None:
            raise _missing(number)
        content = await self._store.content(former.digest)
        again = replace(former, number=0, actor=actor, restores=former.number)
        return await self._add(last, kept, again, content)

    async def _compared(self, in_force: str) -> tuple[Version, bytes]:
        last, kept = await self.version(0)
        if last.digest != in_force:
            raise GatewayError(
                error_pb2.ERROR_REASON_CONFLICT,
                "Another version of the catalogue is in force than the one that was compared with:"
                " compare again.",
            )
        return last, kept

    async def _former(self, last: Version) -> Version | None:
        """What was in force before a version or, for one that was brought back, before its
        first time.
        """
        before = last.restores or last.number
        while before:
            found = await self._store.before(before, 1)
            if not found or not found[0].restores:
                return found[0] if found else None
            before = found[0].number
        return None

    async def _add(self, last: Version, kept: bytes, version: Version, content: bytes) -> Version:
        added = [(version, content)]
        if not last.number:
            # What was installed when it was first replaced can be brought back too.
            added.insert(0, (last, kept))
        await self._store.add(added, after=last.number, now=self._clock.now())
        await self.refresh()
        found, _ = await self.version(0)
        _LOG.info(
            "%s put version %d of the catalogue in force: %s",
            version.actor or "the operator",
            found.number,
            version.source,
        )
        return found


class CatalogueService(catalogue_service_pb2_grpc.CatalogueServiceServicer):
    """``onegate.usage.v1.CatalogueService``."""

    def __init__(self, catalogues: Catalogues, operator_token: Secret) -> None:
        self._catalogues = catalogues
        self._operator_token = operator_token

    async def GetCatalogue(
        self, request: pb.GetCatalogueRequest, context: Context
    ) -> pb.GetCatalogueResponse:
        """One version, whole."""
        require_operator(context, self._operator_token.reveal())
        version, content = await self._catalogues.version(_number(request.number))
        return pb.GetCatalogueResponse(version=version.to_proto(), document=content)

    async def ListCatalogueVersions(
        self, request: pb.ListCatalogueVersionsRequest, context: Context
    ) -> pb.ListCatalogueVersionsResponse:
        """A page of versions, newest first."""
        require_operator(context, self._operator_token.reveal())
        count = queries.page_size_of(request.page_size)
        place = queries.place_of(request.page_token, "versions")
        found = await self._catalogues.versions(None if place is None else int(place), count + 1)
        page = found[:count]
        more = len(found) > count
        return pb.ListCatalogueVersionsResponse(
            versions=[version.to_proto() for version in page],
            next_page_token=queries.token_of(str(page[-1].number), "versions") if more else "",
        )

    async def RefreshCatalogue(
        self, request: pb.RefreshCatalogueRequest, context: Context
    ) -> pb.RefreshCatalogueResponse:
        """Puts a version in force; the answer means that it is kept and that watchers are told."""
        require_operator(context, self._operator_token.reveal())
        version = await self._catalogues.put(
            request.document, request.in_force, _actor(request.actor)
        )
        return pb.RefreshCatalogueResponse(version=version.to_proto())

    async def RestoreCatalogue(
        self, request: pb.RestoreCatalogueRequest, context: Context
    ) -> pb.RestoreCatalogueResponse:
        """Brings a version back; the answer means that it is kept and that watchers are told."""
        require_operator(context, self._operator_token.reveal())
        version = await self._catalogues.restore(
            _number(request.number), request.in_force, _actor(request.actor)
        )
        return pb.RestoreCatalogueResponse(version=version.to_proto())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A version that nobody has kept yet, and its content."""

    version: Version
    content: bytes


def _read(content: bytes) -> Reading:
    return catalogue_document.read(catalogue_document.unpacked(content))


def _version_of(content: bytes) -> _Made:
    """Raises ``ValueError``."""
    return _made(catalogue_document.unpacked(content), "")


def _shipped(installed: Callable[[], Document]) -> _Made:
    return _made(installed(), _SHIPPED_BY)


def _made(document: Document, actor: str) -> _Made:
    reading = catalogue_document.read(document)
    version = Version(
        digest=catalogue_document.digest_of(document),
        source=catalogue_document.source_of(document),
        actor=actor,
        models=len(reading.catalogue.models),
    )
    return _Made(version=version, content=catalogue_document.packed(document))


def _number(number: int) -> int:
    if number < 0:
        raise _invalid("number", "must be 0 or the number of a version")
    return number


def _actor(actor: str) -> str:
    if len(actor) > ACTOR_CHARS_MAX or not actor.isprintable():
        raise _invalid("actor", f"must be at most {ACTOR_CHARS_MAX} printable characters")
    return actor


def _missing(number: int) -> GatewayError:
    what = f"version {number} of the catalogue" if number else "version before this one"
    return GatewayError(
        error_pb2.ERROR_REASON_NOT_FOUND,
        f"There is no {what}: see `onegate models versions`.",
    )


def _invalid(param: str, what: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, f"`{param}` {what}.", param=param)
