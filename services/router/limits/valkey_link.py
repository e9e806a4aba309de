"""The one connection to Valkey: many commands in one round trip, none waited for longer than its
deadline.

Commands that come while others are under way leave together when those have been answered. A
deadline that passes, or any failure, ends the connection and everything that waits for it: whoever
asked goes on without Valkey at once. Coming back is the owner's business (:meth:`Link.connect`).
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from valkey.asyncio import ConnectionPool
from valkey.asyncio.connection import AbstractConnection
from valkey.exceptions import ResponseError, ValkeyError

from runtime.clock import Clock
from runtime.secrets import Secret

CONNECT_TIMEOUT_S: Final = 1.0
"""How long connecting may take, greeting and scripts included."""
WAITING_MAX: Final = 10_000
"""How many commands may wait; one more is told that Valkey is away."""
SECOND_LOOK_S: Final = 0.005
"""The last part of a deadline, given after a look at the socket: an answer that has arrived counts,
however late this process wakes up.
"""

_LOG = logging.getLogger(__name__)

Reply = list[Any] | ResponseError


class LinkDownError(Exception):
    """Valkey is away, or was too slow."""


class _Waiting:
    """A command and who waits for its answer."""

    __slots__ = ("answer", "asked_s", "command")

    def __init__(self, command: bytes, answer: "asyncio.Future[Reply]", asked_s: float) -> None:
        self.command = command
        self.answer = answer
        self.asked_s = asked_s


class Link:
    """A connection with a queue in front.

    Args:
        url: ``valkey://host:port/db``, ``valkeys://…`` with TLS, ``unix:///path``.
        password: of the URL's user, or of the default user; may be empty.
        scripts: all that will be run.
        clock: measures deadlines.
        deadline_s: how long a command may take, its wait in the queue included.

    Attributes:
        on_down: called as soon as the connection is lost; not when it is closed.
    """

    def __init__(
        self, url: str, password: Secret, scripts: Sequence[str], clock: Clock, deadline_s: float
    ) -> None:
        self._scripts = scripts
        self._pool = ConnectionPool.from_url(url, **_given(password))
        self._clock = clock
        self._deadline_s = deadline_s
        self.on_down: Callable[[], None] = _nobody
        self._connection: AbstractConnection | None = None
        self._shas: dict[str, bytes] = {}
        self._queue: list[_Waiting] = []
        self._awake = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        """Whether commands can be sent."""
        return self._connection is not None

    async def connect(self) -> None:
        """Connects anew and loads the scripts. Raises ``LinkDownError`` when it cannot."""
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection.connect()  # type: ignore[no-untyped-call]
                for script in self._scripts:
                    await connection.send_command("SCRIPT", "LOAD", script)
                    self._shas[script] = await connection.read_response()
        except (TimeoutError, ValkeyError, OSError) as error:
            _cut(connection)
            raise LinkDownError(str(error) or "it does not answer") from None
        except asyncio.CancelledError:
            _cut(connection)
            raise
        self._connection = connection
        self._serving = asyncio.get_running_loop().create_task(self._serve(connection))

    async def close(self) -> None:
        """Ends the connection and whoever waits."""
        self.on_down = _nobody
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
        self._lost("closed")

    async def run(
        self, script: str, keys: Sequence[str], arguments: Sequence[str | int | float]
    ) -> list[Any]:
        """Runs a loaded script. Raises ``LinkDownError`` within the deadline."""
        connection = self._connection
        if connection is None or len(self._queue) >= WAITING_MAX:
            raise LinkDownError("not connected")
        parts = connection.pack_command("EVALSHA", self._shas[script], len(keys), *keys, *arguments)
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(b"".join(parts), answer, self._clock.monotonic()))
        self._awake.set()
        reply = await answer
        if isinstance(reply, ResponseError):
            self._lost(str(reply))
            raise LinkDownError(str(reply))
        return reply

    async def _serve(self, connection: AbstractConnection) -> None:
        """Sends what waits, batch after batch, until one fails."""
        batch: list[_Waiting] = []
        why = "closed"
        try:
            while True:
                await self._awake.wait()
                self._awake.clear()
                batch, self._queue = self._queue, []
                if not batch:
                    continue
                why = await self._exchange(connection, batch)
                if why:
                    break
                if self._queue:
                    self._awake.set()
        finally:
            if self._connection is connection:
                self._queue = [*batch, *self._queue]
                self._lost(why)

    async def _exchange(self, connection: AbstractConnection, batch: list[_Waiting]) -> str:
        """One round trip; says what went wrong, nothing when all went well."""
        trip = asyncio.get_running_loop().create_task(_trip(connection, batch))
        left_s = batch[0].asked_s + self._deadline_s - SECOND_LOOK_S - self._clock.monotonic()
        try:
            done, _ = await asyncio.wait({trip}, timeout=max(left_s, 0.0))
            if not done:
                done, _ = await asyncio.wait({trip}, timeout=SECOND_LOOK_S)
        finally:
            trip.cancel()
        if not done:
            return f"no answer within {self._deadline_s * 1000:.0f} ms"
        return trip.result()

    def _lost(self, why: str) -> None:
        """The connection is of no use any more."""
        connection, self._connection = self._connection, None
        queue, self._queue = self._queue, []
        for waiting in queue:
            if not waiting.answer.done():
                waiting.answer.set_exception(LinkDownError(why))
                waiting.answer.exception()  # whoever waited may be gone: that is no defect
        if connection is not None:
            _cut(connection)
            _LOG.debug("Valkey is lost: %s", why)
            self.on_down()


def _nobody() -> None:
    """Is told when nobody listens."""


class Subscription:
    """A connection that only listens to one channel.

    Args:
        url: as a :class:`Link`'s.
        password: as a :class:`Link`'s.
    """

    def __init__(self, url: str, password: Secret) -> None:
        self._pool = ConnectionPool.from_url(url, **_given(password))
        self._connection: AbstractConnection | None = None

    async def open(self, channel: str) -> None:
        """Connects anew and subscribes. Raises ``LinkDownError``."""
        self.close()
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_command("SUBSCRIBE", channel)
                await connection.read_response()
        except (TimeoutError, ValkeyError, OSError) as error:
            _cut(connection)
            raise LinkDownError(str(error) or "it does not answer") from None
        except asyncio.CancelledError:
            _cut(connection)
            raise
        # Messages are rare: silence is no reason to connect again.
        connection.socket_timeout = None
        self._connection = connection

    async def heard(self) -> bytes:
        """The next message. Raises ``LinkDownError`` when the connection ends."""
        connection = self._connection
        if connection is None:
            raise LinkDownError("not connected")
        try:
            message: list[Any] = await connection.read_response(disable_decoding=True)
        except (ValkeyError, OSError) as error:
            self.close()
            raise LinkDownError(str(error)) from None
        payload: bytes = message[2]
        return payload

    def close(self) -> None:
        """Ends the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            _cut(connection)


def _cut(connection: AbstractConnection) -> None:
    """Ends a connection at once, whatever it was about to say."""
    writer = connection._writer  # noqa: SLF001 - the library has no other way
    if writer is not None:
        writer.transport.abort()
    connection._close()  # type: ignore[no-untyped-call]  # noqa: SLF001


def _given(password: Secret) -> dict[str, str]:
    return {"password": password.reveal()} if password else {}


async def _trip(connection: AbstractConnection, batch: list[_Waiting]) -> str:
    try:
        await connection.send_packed_command([w.command for w in batch], check_health=False)
        for waiting in batch:
            reply: Reply
            try:
                reply = await connection.read_response(disable_decoding=True)
            except ResponseError as error:
                reply = error
            if not waiting.answer.done():
                waiting.answer.set_result(reply)
    except (ValkeyError, OSError, TimeoutError) as error:
        return str(error) or type(error).__name__
    return ""
