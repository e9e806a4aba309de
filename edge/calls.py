"""What an endpoint is, and what is known of a request while it is served."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TypeAlias

from edge.admission import Admission
from edge.http import Request, Response
from onegate.auth.v1 import grant_pb2


class Call:
    """One request to one endpoint.

    Attributes:
        request: the request.
        request_id: ``req_`` and 32 hexadecimal digits, made here: nobody else's id is trusted.
        endpoint: which endpoint; ``None`` when there is none.
        argument: what stands for the ``{…}`` of its path, percent-decoded.
        key: the API key that was presented.
        grant: what it may do; ``None`` until auth has said so.
        model: the model that was asked for, for the access log.
        first_byte_s: when the first piece of a stream went out, on the monotonic clock.
        counted: whether it counts against the calls under way.
        admission: where it counts as waiting for its answer; ``None`` once that has begun.
    """

    __slots__ = (
        "admission",
        "argument",
        "counted",
        "endpoint",
        "first_byte_s",
        "grant",
        "key",
        "model",
        "request",
        "request_id",
    )

    def __init__(self, request: Request, request_id: str) -> None:
        self.request = request
        self.request_id = request_id
        self.endpoint: Endpoint | None = None
        self.argument = ""
        self.key = ""
        self.grant: grant_pb2.Grant | None = None
        self.model = ""
        self.first_byte_s: float | None = None
        self.counted = False
        self.admission: Admission | None = None

    def began(self, now_s: float) -> None:
        """The first piece of its answer goes out."""
        self.first_byte_s = now_s
        self.waits_no_more()

    def waits_no_more(self) -> None:
        """Its answer is there, or will never be."""
        if self.admission is not None:
            self.admission.waiting -= 1
            self.admission = None


Page: TypeAlias = Callable[[Call], Response]
"""Answers at once, to anybody, however busy the process is."""
Handler: TypeAlias = Callable[[Call], Coroutine[None, None, Response | None]]
"""Answers the holder of a key; ``None`` when it has written a stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageEndpoint:
    """A row of the table: a public page.

    Attributes:
        name: what metrics call it.
        method: the HTTP method; GET serves HEAD too.
        path: the path.
        page: what answers.
    """

    name: str
    method: str
    path: str
    page: Page


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEndpoint:
    """A row of the table: an endpoint for the holders of keys.

    Attributes:
        name: what metrics call it.
        method: the HTTP method; GET serves HEAD too.
        path: the path; a last segment of ``{…}`` takes the rest, slashes included.
        handle: what answers.
        body_bytes_max: the longest body that is taken.
        sheds: whether it is refused when the process has too much to do: model calls are, what
            operators need is not.
    """

    name: str
    method: str
    path: str
    handle: Handler
    body_bytes_max: int
    sheds: bool = False


Endpoint: TypeAlias = PageEndpoint | KeyEndpoint
