"""Fetches one file that the operator named: over https, from that host alone, bounded in size and
time. Nothing is ever fetched that nobody named.
"""

import http.client
import ssl
from typing import Final
from urllib.parse import urljoin, urlsplit, urlunsplit

from runtime.clock import Clock

BYTES_MAX: Final = 64 * 1024 * 1024
DEADLINE_S: Final = 60.0
"""How long the whole may take, in seconds."""
SILENCE_S: Final = 10.0
"""How long the other side may say nothing, in seconds."""

REDIRECTS_MAX: Final = 3

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_CHUNK_BYTES: Final = 256 * 1024


class FetchError(Exception):
    """Why a file was not fetched, in words for whoever named it."""


def fetched(url: str, clock: Clock, tls: ssl.SSLContext | None = None) -> bytes:
    """The content of a file.

    Args:
        url: ``https://…``.
        clock: for the deadline.
        tls: whom to trust; ``None`` for whom the system trusts.

    Raises ``FetchError``.
    """
    until_s = clock.monotonic() + DEADLINE_S
    trusted = tls or ssl.create_default_context()
    for _ in range(REDIRECTS_MAX + 1):
        named = urlsplit(url)
        if named.scheme != "https" or not named.hostname:
            raise FetchError("it must be an https:// address")
        line = http.client.HTTPSConnection(named.netloc, timeout=SILENCE_S, context=trusted)
        try:
            line.request("GET", urlunsplit(("", "", named.path or "/", named.query, "")))
            answer = line.getresponse()
            if answer.status not in _REDIRECTS:
                return _body(answer, named.netloc, until_s, clock)
            url = _next(url, answer.getheader("location") or "")
        except (OSError, http.client.HTTPException) as error:
            raise FetchError(f"{named.hostname} cannot be asked: {error}") from None
        finally:
            line.close()
    raise FetchError("it redirects without end")


def _next(url: str, location: str) -> str:
    """Where a redirect leads, when that is the same host."""
    following = urljoin(url, location)
    here, there = urlsplit(url), urlsplit(following)
    if (there.scheme, there.netloc) != (here.scheme, here.netloc):
        raise FetchError(
            f"it redirects to {there.scheme}://{there.netloc}: name that address if you mean it"
        )
    return following


def _body(answer: http.client.HTTPResponse, host: str, until_s: float, clock: Clock) -> bytes:
    if answer.status != http.HTTPStatus.OK:
        raise FetchError(f"{host} answers {answer.status}")
    content = bytearray()
    while chunk := answer.read(_CHUNK_BYTES):
        content += chunk
        if len(content) > BYTES_MAX:
            raise FetchError(f"it is longer than {BYTES_MAX:,} bytes")
        if clock.monotonic() > until_s:
            raise FetchError(f"it takes longer than {DEADLINE_S:.0f} s")
    return bytes(content)
