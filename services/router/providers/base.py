"""What a provider module is: four pure moments of one HTTP exchange, and how it lists its models.

A module here never opens a socket and never reads a clock: ``upstream.py`` carries what it
returns. Messages in, JSON out and back; what the wire cannot say is refused with
``GatewayError``, never dropped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from onegate.common.v1 import token_usage_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.sse import ServerSentEvent, SseParser

Headers = Sequence[tuple[str, str]]
Cost = Callable[[token_usage_pb2.TokenUsage], int]
"""What a usage costs at the price pinned at admission, in nano-USD."""


class Exchange(NamedTuple):
    """One call to one deployment.

    ``request`` is typed unless ``native`` is true: then ``request.native.body`` is in the wire's
    own dialect and is forwarded, with only what must change changed (model, stream usage).
    ``model`` is the provider's own name of the model.
    """

    request: chat_pb2.ChatRequest
    model: str
    cost: Cost
    native: bool = False
    output_tokens_cap: int = 0
    """What a native body must name as its cap of output; 0 leaves it as it is."""


class UpstreamRequest(NamedTuple):
    """What is sent. ``path`` is appended to the provider's base URL as it is; it starts with
    ``/``.
    """

    method: str
    path: str
    headers: Headers
    body: bytes


Signer = Callable[[str, UpstreamRequest, datetime], Headers]
"""Says who makes a request where that takes more than a header that every call shares: given the
whole URL, the request and the time, the headers to add. Pure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortLived:
    """A credential that is not sent itself: it buys tokens that are good for some minutes.

    Args:
        seller: who sells them, a key of ``tokens.SELLERS``.
        secret: what the seller wants to see; empty where the machine itself is known to it.
        scope: what the tokens are for, in the seller's words.
    """

    seller: str
    scope: str
    secret: str = field(repr=False, default="")


class Framing(Protocol):
    """Cuts the body of a streamed answer into events, wherever its chunks were cut."""

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that are complete with ``chunk``. Raises UPSTREAM_PROTOCOL."""
        ...

    def end(self) -> list[ServerSentEvent]:
        """The events that the end of the body completes. Raises UPSTREAM_PROTOCOL."""
        ...


@dataclass(slots=True, kw_only=True)
class Answer:
    """A whole answer: ``event`` is an ``answer``, or ``native`` bytes when the exchange was native.

    ``usage`` is ``None`` when the provider did not say; ``output_bytes`` counts the UTF-8 bytes
    of all that the model wrote, for a local count in that case.
    """

    event: chat_pb2.ChatEvent
    usage: token_usage_pb2.TokenUsage | None
    finish_reason: str
    upstream_id: str
    output_bytes: int


class Stream(Protocol):
    """Decodes one streamed answer. Its attributes say how far it got, at any moment."""

    usage: token_usage_pb2.TokenUsage | None
    finish_reason: str
    upstream_id: str
    output_bytes: int
    started: bool
    """A piece of content has come: from here on no other deployment can take over."""
    done: bool
    """The answer is complete; what the provider sends beyond is ignored."""
    framing: ClassVar[type[Framing]]
    """What cuts the body into the events that :meth:`feed` takes."""

    def feed(self, events: Sequence[ServerSentEvent]) -> list[chat_pb2.ChatEvent]:
        """``delta`` events, or ``native`` bytes when the exchange is native.

        Raises ``GatewayError`` for an error event inside the stream (the mapped reason) and for
        what is not the wire's protocol (UPSTREAM_PROTOCOL).
        """
        ...

    def forwards(self, line: bytes) -> bool:
        """Takes an event in, and says that it goes on as it is. False, and nothing has changed,
        when :meth:`feed` has to look at it, which any stream may say of any event.

        ``line`` is all of it: ``data: ``, the data, an empty line.
        """
        ...

    def end(self) -> list[chat_pb2.ChatEvent]:
        """The provider closed the stream. Raises UPSTREAM_PROTOCOL when the answer was not
        complete.
        """
        ...


class ListedModel(NamedTuple):
    """A model as the provider's own list names it. Zero and empty mean "not said"."""

    id: str
    created_unix_s: int = 0
    owner: str = ""
    name: str = ""
    context_tokens_max: int = 0
    output_tokens_max: int = 0
    shutdown_on: str = ""
    """The day on which it is switched off, as ``2026-10-23``."""


class Wire(Protocol):
    """How a provider speaks. Stateless; one value serves every call."""

    @property
    def dialect(self) -> chat_pb2.Dialect.ValueType:
        """The dialect that the wire speaks."""
        ...

    @property
    def native(self) -> bool:
        """Whether bodies of that dialect are forwarded as they are, both ways."""
        ...

    @property
    def base_url(self) -> str:
        """The vendor's own base URL; empty when an operator must say it."""
        ...

    def authorize(self, secret: str) -> Headers | Signer | ShortLived:
        """Where the credential goes, or what it buys. Raises INVALID_REQUEST for what is none."""
        ...

    def request(self, exchange: Exchange) -> UpstreamRequest:
        """The provider's form of a chat call, without its credential."""
        ...

    def response(self, exchange: Exchange, body: bytes) -> Answer:
        """A whole answer (HTTP 2xx). Raises UPSTREAM_PROTOCOL when it is not one."""
        ...

    def stream(self, exchange: Exchange) -> Stream:
        """A decoder for one streamed answer."""
        ...

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
        """What an HTTP status of 300 or more means. ``headers`` has lower-case keys."""
        ...

    def models_request(self) -> UpstreamRequest | None:
        """How to ask for the provider's models; ``None`` when it has no such list."""
        ...

    def models(self, body: bytes) -> list[ListedModel]:
        """The provider's models. Raises UPSTREAM_PROTOCOL when the body is not a list of models."""
        ...


@runtime_checkable
class ListsElsewhere(Protocol):
    """What a wire also is whose vendor lists its models at another address, or in several lists."""

    def lists(self, base_url: str) -> Sequence[tuple[str, UpstreamRequest]]:
        """The base URL and the request of every list, for a provider at ``base_url``. Each answer
        goes to :meth:`Wire.models`; together they are the provider's models.
        """
        ...


class Job(NamedTuple):
    """A call that the vendor works at by itself, whether or not somebody waits for it."""

    over: bool
    """It ended, well or not."""
    state: UpstreamRequest
    """Asks how it stands; the answer goes to :meth:`RunsJobs.job` again."""
    cancel: UpstreamRequest
    """Ends it."""
    stream_url: str = ""
    """Where the vendor says that its events come from; empty when it has none."""


@runtime_checkable
class RunsJobs(Protocol):
    """What a wire also is whose vendor answers a call with a job."""

    def deadline(self, seconds: float) -> Headers:
        """What makes the vendor itself end the job after so long."""
        ...

    def job(self, body: bytes) -> Job:
        """The job that an answer speaks of. Raises UPSTREAM_PROTOCOL when it speaks of none."""
        ...

    def may_stream(self, url: str, base_host: str) -> bool:
        """Whether the credential of calls to ``base_host`` may be sent to a stream's ``url``."""
        ...

    def is_last(self, event: ServerSentEvent) -> bool:
        """Whether an event is the last of a job's stream."""
        ...

    def settled(self, body: bytes) -> bytes:
        """The answer that says that a job is over, as an event for :meth:`Wire.stream`."""
        ...


@dataclass(slots=True)
class StreamState:
    """The attributes every :class:`Stream` has, to inherit."""

    framing: ClassVar[type[Framing]] = SseParser
    usage: token_usage_pb2.TokenUsage | None = field(default=None)
    finish_reason: str = ""
    upstream_id: str = ""
    output_bytes: int = 0
    started: bool = False
    done: bool = False

    def forwards(self, line: bytes) -> bool:
        """Nothing goes on as it is."""
        del line
        return False
