"""A route: an HTTP method and path, the method of auth behind it, and the two translations."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from edge.admin.asked import Asked

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)
Json = dict[str, Any]


R = TypeVar("R", bound=Message)


class Usage(Protocol):
    """The usage service, asked with the pass that auth gave."""

    async def ask(self, rpc: str, request: Message, response: type[R]) -> R:
        """Its answer to one method (``Service/Method``). Raises ``GatewayError``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Route(Generic[Q, A]):
    """A row of the table.

    Attributes:
        name: auth's name of the operation, and what metrics call it.
        method: the HTTP method; GET serves HEAD too.
        path: the path, with ``{name}`` for a segment.
        rpc: auth's method, as ``Service/Method``.
        request: what is asked of auth.
        response: the type of auth's answer.
        answer: that answer as JSON.
        onward: instead, where the matter itself lies in usage: asks there with the pass in auth's
            answer, and gives the JSON.
        wait_s: how much longer than usual auth may take, in seconds, for what is asked.
    """

    name: str
    method: str
    path: str
    rpc: str
    request: Callable[[Asked], Q]
    response: type[A]
    answer: Callable[[A, Asked], Json] | None = None
    onward: Callable[[Usage, A, Asked], Awaitable[Json]] | None = None
    wait_s: Callable[[Q], float] = lambda _: 0.0


AnyRoute = Route[Any, Any]


def seconds(moment: Timestamp) -> int:
    """A moment in Unix seconds."""
    return moment.seconds


def seconds_or_none(message: Message, field: str) -> int | None:
    """A message's moment in Unix seconds; ``None`` where it is not set."""
    return getattr(message, field).seconds if message.HasField(field) else None


def listed(data: list[Json], *, has_more: bool, id_of: str = "id") -> Json:
    """A page whose next one is asked for with ``last_id``."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0][id_of] if data else None,
        "last_id": data[-1][id_of] if data else None,
        "has_more": has_more,
    }


def chained(data: list[Json], *, has_more: bool, id_of: str = "id") -> Json:
    """A page that says where its next one starts."""
    return {
        "object": "list",
        "data": data,
        "has_more": has_more,
        "next": data[-1][id_of] if data and has_more else None,
    }


def deleted(kind: str, object_id: str) -> Json:
    """What is said of an object that is gone."""
    return {"id": object_id, "object": kind, "deleted": True}
