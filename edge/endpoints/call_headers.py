"""What the gateway says of a served call in the answer's headers."""

from onegate.router.v1 import chat_pb2
from runtime.money import usd


def served_headers(
    served: chat_pb2.Served, metered: chat_pb2.Metered | None, elapsed_s: float
) -> list[tuple[str, str]]:
    """The headers of http-surface: who served, at what cost, how long, and how much is left.

    Args:
        served: the router's word on who serves.
        metered: what it cost; ``None`` while a stream goes on.
        elapsed_s: from the request's head to now, in seconds; the gateway's share is what the
            provider's part leaves of it.
    """
    upstream_ms = served.upstream_us / 1000
    gateway_ms = max(elapsed_s * 1000 - upstream_ms, 0)
    headers = [
        ("server-timing", f"gateway;dur={gateway_ms:.2f}, upstream;dur={upstream_ms:.2f}"),
        ("x-onegate-model", served.model),
        ("x-onegate-attempts", str(served.attempts)),
    ]
    if metered is not None:
        headers.append(("x-onegate-cost", usd(metered.cost_nano_usd)))
    if served.HasField("requests"):
        headers += _limit("requests", served.requests)
    if served.HasField("tokens"):
        headers += _limit("tokens", served.tokens)
    return headers


def _limit(meter: str, status: chat_pb2.LimitStatus) -> list[tuple[str, str]]:
    return [
        (f"x-ratelimit-limit-{meter}", str(status.limit)),
        (f"x-ratelimit-remaining-{meter}", str(status.remaining)),
        (f"x-ratelimit-reset-{meter}", duration(status.reset_ms)),
    ]


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
