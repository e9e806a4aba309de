"""What the headers of an answer say of how much is left of a credential's own limits. Pure.

Every provider counts for each credential, and most say in each answer how much is left and when it
is full again. Read so that load moves before the first 429, not after it:

=================================  =====================================  ==========================
spoken by                          header                                 reset is
=================================  =====================================  ==========================
OpenAI, Groq, xAI, Fireworks       ``x-ratelimit-remaining-requests``     a duration, ``6m0s``
Azure OpenAI                       the same, ``-renewalperiod-requests``  milliseconds, or not said
Mistral                            ``x-ratelimit-remaining-req-10-second``  in the name
Cerebras                           ``x-ratelimit-remaining-tokens-minute``  seconds
Together, OpenRouter               ``x-ratelimit-remaining``              seconds, or a Unix time
Anthropic                          ``anthropic-ratelimit-tokens-remaining``  a date, RFC 3339
Replicate                          ``ratelimit-remaining``                seconds
Hugging Face                       ``ratelimit: "api";r=497;t=68``        seconds, as ``t``
=================================  =====================================  ==========================

As their recorded answers have them, and https://platform.openai.com/docs/guides/rate-limits,
https://docs.anthropic.com/en/api/rate-limits, https://console.groq.com/docs/rate-limits,
https://inference-docs.cerebras.ai/support/rate-limits,
https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers.
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

LIKE: Final = b"ratelimit"
"""What all of these headers have in their names."""
NEAR: Final = 0.02
"""So much of a limit is as good as nothing: other calls and other routers are at it too."""
UNSAID_S: Final = 5.0
"""How long a limit counts as used up when nothing says until when."""

_REMAINING: Final = "remaining"
_LONG: Final = ("hour", "day", "month")
"""Windows of which a fiftieth is plenty."""
_WINDOW: Final = re.compile(r".*?(?:(\d+)-)?(second|minute|hour|day|month)")
_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "month": 2_592_000}
_DURATION: Final = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:([\d.]+)ms)?")
_ITEM: Final = re.compile(r";\s*r=(\d+)(?:[^,]*?;\s*t=(\d+))?")
_UNIX_MIN: Final = 1e9
"""A bare number from here on is a moment, in seconds since 1970; a thousand times as much, in
milliseconds.
"""


def used_up_s(headers: Mapping[str, str], date: str) -> float | None:
    """How long to leave a credential for others; 0 when there is room, ``None`` when nobody says.

    Args:
        headers: those that have ``ratelimit`` in their names, which are in lower case.
        date: when the answer was made, as its ``date`` header says.
    """
    wait_s: float | None = None
    for name, value in headers.items():
        if name == "ratelimit":
            wait_s = max(wait_s or 0.0, _combined(value))
            continue
        left = _number(value) if _REMAINING in name else None
        if left is None:
            continue
        wait_s = wait_s or 0.0
        limit = _number(headers.get(name.replace(_REMAINING, "limit"), "")) or 0.0
        near = 0.0 if name.endswith(_LONG) else NEAR * limit
        if left <= near:
            wait_s = max(wait_s, _reset_s(name, headers, date))
    return wait_s


def _reset_s(name: str, headers: Mapping[str, str], date: str) -> float:
    """How long until one limit is full again."""
    # Proxies join the lines of a repeated header with commas.
    text = headers.get(name.replace(_REMAINING, "reset"), "").partition(",")[0].strip()
    period = _number(headers.get(name.replace(_REMAINING, "renewalperiod"), ""))
    if not text:
        named = _WINDOW.fullmatch(name)
        if named is not None:
            return int(named[1] or 1) * float(_SECONDS[named[2]])
        return period or UNSAID_S
    bare = _number(text)
    if bare is not None and period is not None:
        return bare / 1000  # Azure, which alone names the period
    if bare is not None and bare >= _UNIX_MIN:
        unix_s = bare / 1000 if bare >= _UNIX_MIN * 1000 else bare
        return _until_s(datetime.fromtimestamp(min(unix_s, 4e9), UTC), date)
    if "T" in text:
        try:
            return _until_s(datetime.fromisoformat(text), date)
        except (ValueError, TypeError):
            return UNSAID_S
    return duration_s(text) if bare is None else bare


def _combined(value: str) -> float:
    """The one header of the IETF's draft: whether a policy of it is used up, and for how long."""
    used_up = [found for found in _ITEM.finditer(value) if found[1] == "0"]
    return max((float(found[2] or UNSAID_S) for found in used_up), default=0.0)


def _until_s(moment: datetime, date: str) -> float:
    """By the provider's own clock, which may differ from ours."""
    try:
        now = datetime.strptime(date, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
        return max((moment - now).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return UNSAID_S


def _number(text: str) -> float | None:
    """A finite number that is not below zero."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def duration_s(text: str) -> float:
    """``6m0s``, ``8.64s``, ``120ms`` or bare seconds; 0 for anything else."""
    found = _DURATION.fullmatch(text)
    try:
        if found is None or not text:
            return _number(text or "0") or 0.0
        hours, minutes, seconds, milliseconds = (float(part or 0) for part in found.groups())
    except ValueError:
        return 0.0
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
