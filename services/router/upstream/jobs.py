"""Calls that a vendor works at by itself: begun, followed until they are over, and ended when
nobody waits for them any more.

To the rest of the router a job is an answer like any other: :class:`JobAnswer` has the methods of
``UpstreamResponse``. What differs is that closing the connection ends nothing. So whoever leaves
early, a caller, a deadline, the process that stops, has the job cancelled by a request of its own,
also when its id was not known yet.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.sse import SseParser
from services.router.providers.base import Job, RunsJobs, UpstreamRequest, Wire
from services.router.upstream.client import Target, Upstream, UpstreamResponse, moved, too_large
from services.router.upstream.connection import Taker
from services.router.upstream.egress import Origin, origin_of

PAUSE_S_MIN: Final = 0.25
PAUSE_S_MAX: Final = 2.0
"""How long is waited before a job is asked again how it stands; longer each time."""
FAILURES_MAX: Final = 3
"""After so many failed questions in a row the job counts as lost."""
SETTLE_S: Final = 3.0
"""How long a job whose stream is over is asked what it cost."""
END_S: Final = 10.0
"""How long ending a job may take."""
BEGIN_S: Final = 30.0
"""How long the id of a job is waited for whose caller left before."""

_REFUSALS: Final = 300
_EVENT_STREAM: Final = "text/event-stream"
_LOG = logging.getLogger(__name__)


class JobWire(Wire, RunsJobs, Protocol):
    """A wire whose vendor answers calls with jobs."""


class JobPlace(NamedTuple):
    """Where jobs are run."""

    target: Target
    wire: JobWire


class _Told(NamedTuple):
    """An answer that was read whole."""

    status: int
    headers: dict[str, str]
    body: bytes


class Jobs:
    """Runs jobs. One for a process."""

    def __init__(self, upstream: Upstream, clock: Clock, bytes_max: int) -> None:
        """``bytes_max`` bounds what is read of one answer, in bytes."""
        self._upstream = upstream
        self._clock = clock
        self._bytes_max = bytes_max
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(
        self, place: JobPlace, request: UpstreamRequest, *, stream: bool, within_s: float
    ) -> "JobAnswer":
        """Begins a job and waits until it is over, or until its stream has begun.

        ``within_s`` is told to the vendor, who ends a job that takes longer. Raises what
        ``Upstream.open`` raises, and what the vendor answers that is no job.
        """
        limit = place.wire.deadline(within_s)
        request = request._replace(headers=[*request.headers, *limit])
        begun = asyncio.create_task(self.tell(place.target, request))
        try:
            told = await asyncio.shield(begun)
        except asyncio.CancelledError:
            self._keep(self._end_late(place, begun))
            raise
        answer = JobAnswer(self, place, told)
        try:
            await (answer.follow() if stream else answer.wait())
        except BaseException:
            answer.close()
            raise
        return answer

    async def tell(self, target: Target, request: UpstreamRequest) -> _Told:
        """Sends a request and reads the whole answer."""
        response = await self._upstream.open(target, request)
        try:
            body = await response.read(self._bytes_max)
            response.finish()
            return _Told(response.status, response.headers, body)
        finally:
            response.close()

    async def stream(self, target: Target, request: UpstreamRequest) -> UpstreamResponse | None:
        """Opens a stream of events; ``None`` when there is none to be had."""
        try:
            response = await self._upstream.open(target, request)
        except GatewayError as error:
            _LOG.warning("a job's stream cannot be had, it is asked instead: %s", error.message)
            return None
        kind = response.header("content-type").partition(";")[0].strip().lower()
        if response.status < _REFUSALS and kind == _EVENT_STREAM:
            return response
        _LOG.warning("a job's stream answered with status %d: it is asked instead", response.status)
        response.close()
        return None

    async def pause(self, delay_s: float) -> None:
        """Waits."""
        await self._clock.sleep(delay_s)

    def end(self, place: JobPlace, job: Job) -> None:
        """Has a job cancelled, without waiting for it."""
        self._keep(self._end(place, job))

    async def close(self) -> None:
        """Waits until all jobs that are to be ended are."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=END_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, place: JobPlace, job: Job) -> None:
        try:
            async with asyncio.timeout(END_S):
                told = await self.tell(place.target, job.cancel)
        except (GatewayError, TimeoutError) as error:
            _LOG.warning("%s could not be cancelled: %s", job.cancel.path, error)
            return
        if told.status >= _REFUSALS:
            _LOG.warning("%s was refused with status %d", job.cancel.path, told.status)

    async def _end_late(self, place: JobPlace, begun: "asyncio.Task[_Told]") -> None:
        """Ends a job as soon as its id is known."""
        try:
            async with asyncio.timeout(BEGIN_S):
                told = await begun
            if told.status >= _REFUSALS:
                return
            job = place.wire.job(told.body)
        except (GatewayError, TimeoutError):
            return  # Nothing was begun, or nobody can say what.
        if not job.over:
            await self._end(place, job)


class JobAnswer:
    """One job's answer, with the methods of ``UpstreamResponse``."""

    def __init__(self, jobs: Jobs, place: JobPlace, told: _Told) -> None:
        self.status = told.status
        self.headers = told.headers
        self._jobs = jobs
        self._place = place
        self._body = told.body
        self._job = place.wire.job(told.body) if told.status < _REFUSALS else None
        self._events: UpstreamResponse | None = None
        self._parser = SseParser()
        self._ended = False
        """The last event of its stream came."""
        self._settled = False

    def headers_like(self, part: bytes) -> dict[str, str]:
        """The headers with ``part``, in lower case, in their names."""
        word = part.decode("latin-1")
        return {name: value for name, value in self.headers.items() if word in name}

    def header(self, name: str) -> str:
        """One header by its lower-case name. What is streamed are events, whoever makes them."""
        return _EVENT_STREAM if name == "content-type" else self.headers.get(name, "")

    async def follow(self) -> None:
        """Opens the job's stream, where it has one that may be followed."""
        job = self._job
        if job is None or job.over or not job.stream_url:
            return
        found = _stream_of(self._place, job.stream_url)
        if found is None:
            _LOG.warning(
                "a job's stream is at a place that is not the vendor's: it is not followed"
            )
        else:
            self._events = await self._jobs.stream(*found)

    async def wait(self) -> None:
        """Asks how the job stands until it is over. Raises what the vendor answers instead."""
        job, failures = self._job, 0
        pause_s = 0.0 if self._ended else PAUSE_S_MIN
        while job is not None and not job.over:
            if pause_s:
                await self._jobs.pause(pause_s)
            pause_s = min(max(pause_s * 1.5, PAUSE_S_MIN), PAUSE_S_MAX)
            try:
                job = self._job = await self._ask(job)
                failures = 0
            except GatewayError as error:
                failures += 1
                if failures == FAILURES_MAX:
                    raise
                pause_s = max(pause_s, error.retry_after_ms / 1000)

    async def chunk(self, taker: Taker | None = None) -> bytes:
        """What has arrived of the stream, and at its end how the job ended; then nothing. All of
        it is looked at here, so that ``taker`` is offered none.

        Raises what the vendor answers when it is asked instead.
        """
        del taker
        if self._events is not None:
            data = await self._events.chunk()
            self._ended = any(map(self._place.wire.is_last, self._parser.feed(data)))
            if self._ended or not data:
                self._events.close()
                self._events = None
            if data:
                return data
        if self._settled:
            return b""
        self._settled = True
        if not self._ended:
            await self.wait()
        elif not await self._is_settled():
            return b""
        return self._place.wire.settled(self._body)

    async def read(self, bytes_max: int) -> bytes:
        """The answer that says that the job is over. Raises UPSTREAM_TOO_LARGE."""
        if len(self._body) > bytes_max:
            raise too_large(bytes_max)
        return self._body

    async def start(self, bytes_max: int) -> bytes:
        """The beginning of a refusal."""
        return self._body[:bytes_max]

    def finish(self) -> None:
        """The answer was read to its own end."""

    def close(self) -> None:
        """Ends the answer, and the job if it is not over. A second time it does nothing."""
        if self._events is not None:
            self._events.close()
            self._events = None
        job, self._job = self._job, None
        if job is not None and not (job.over or self._ended):
            self._jobs.end(self._place, job)

    async def _is_settled(self) -> bool:
        """Whether the vendor says in time how the job ended, whose whole answer came."""
        try:
            async with asyncio.timeout(SETTLE_S):
                await self.wait()
        except (GatewayError, TimeoutError):
            return False
        return True

    async def _ask(self, job: Job) -> Job:
        target, wire = self._place
        told = await self._jobs.tell(target, job.state)
        if told.status >= _REFUSALS:
            raise wire.error(told.status, told.headers, told.body)
        self._body = told.body
        return wire.job(told.body)


def _stream_of(place: JobPlace, url: str) -> tuple[Target, UpstreamRequest] | None:
    """Where a stream's events are asked for; ``None`` where the credential may not be sent."""
    target, wire = place
    if not (url.isascii() and url.isprintable()) or " " in url:
        return None
    parts = urlsplit(url)
    try:
        origin = origin_of(f"{parts.scheme}://{parts.netloc}", private_allowed=True)
    except GatewayError:
        return None
    if not (_is_same(origin, target.origin) or wire.may_stream(url, target.origin.host)):
        return None
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    headers = [("accept", _EVENT_STREAM)]
    request = UpstreamRequest(method="GET", path=path or "/", headers=headers, body=b"")
    return moved(target, origin), request


def _is_same(one: Origin, other: Origin) -> bool:
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)
