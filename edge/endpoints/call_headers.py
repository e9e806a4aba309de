"""What the gateway says of a served call in the answer's headers."""

import re
from typing import Final

from onegate.router.v1 import chat_pb2
from runtime.money import usd

_SPLITS: Final = re.compile(r"[\r\n\0]")


def served_lines(
    served: chat_pb2.Served, metered: chat_pb2.Metered | None, elapsed_s: float
) -> str:
    """The header lines of http-surface: who served, at what cost, how long, and how much is left.
    Written at once as they go out, since every answer has a dozen of them.

    Args:
        served: the router's word on who serves.
        metered: what it cost; ``None`` while a stream goes on.
        elapsed_s: from the request's head to now, in seconds; the gateway's share is what the
            provider's part leaves of it.
    """
    upstream_ms = served.upstream_us / 1000
    gateway_ms = max(elapsed_s * 1000 - upstream_ms, 0)
    model = served.model
    if not model.isprintable():
        # A model's name is its provider's, and must not make a line of its own.
        model = _SPLITS.sub("", model)
    cost = f"x-onegate-cost: {usd(metered.cost_nano_usd)}\r\n" if metered is not None else ""
    if served.repetition.request_id:
        cost = _repetition(served.repetition, cost)
    requests = _limit("requests", served.requests) if served.HasField("requests") else ""
    tokens = _limit("tokens", served.tokens) if served.HasField("tokens") else ""
    route = f"x-onegate-route: {_SPLITS.sub('', served.route)}\r\n" if served.route else ""
    return (
        f"server-timing: gateway;dur={gateway_ms:.2f}, upstream;dur={upstream_ms:.2f}\r\n"
        f"x-onegate-model: {model}\r\nx-onegate-attempts: {served.attempts}\r\n"
        f"{route}{cost}{requests}{tokens}"
    )


def _repetition(repetition: chat_pb2.Repetition, cost: str) -> str:
    """What the answer is to its idempotency key; a replayed one cost nothing, ``cost`` was the
    first call's.
    """
    if not repetition.replayed:
        return f"{cost}x-onegate-replayed: false\r\n"
    original = _SPLITS.sub("", repetition.request_id)
    return (
        f"x-onegate-cost: {usd(0)}\r\nx-onegate-replayed: true\r\n"
        f"x-onegate-original-request-id: {original}\r\n"
    )


def _limit(meter: str, status: chat_pb2.LimitStatus) -> str:
    return (
        f"x-ratelimit-limit-{meter}: {status.limit}\r\n"
        f"x-ratelimit-remaining-{meter}: {status.remaining}\r\n"
        f"x-ratelimit-reset-{meter}: {duration(status.reset_ms)}\r\n"
    )


def duration(milliseconds: int) -> str:
    """A time as OpenAI writes it in its rate-limit headers: ``120ms``, ``8.64s``, ``6m0s``
    (https://platform.openai.com/docs/guides/rate-limits).
    """
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    seconds = f"{rest / 1000:g}s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds
