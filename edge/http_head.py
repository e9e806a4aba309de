"""A request's head as it comes in, and what it must be like beyond what llhttp checks: pure."""

from collections.abc import Mapping, Sequence
from typing import Final

from edge.http import HttpRefusalError
from onegate.common.v1 import error_pb2

_SPECIAL: Final = frozenset({b"transfer-encoding", b"content-encoding", b"expect"})
_HOST_FORBIDDEN: Final = frozenset(b"/?#@\\ ,")


class Head:
    """Collects the pieces of a head and holds them to their limits.

    llhttp gives a header only when it is complete, so that one without an end is seen by what was
    fed and led to nothing.
    """

    __slots__ = (
        "_began",
        "_bytes_max",
        "_fed",
        "_lines_max",
        "headers",
        "lines",
        "open",
        "target",
    )

    def __init__(self, bytes_max: int, lines_max: int) -> None:
        self._bytes_max = bytes_max
        self._lines_max = lines_max
        self.lines: list[tuple[bytes, bytes]] = []
        """The headers so far, as they came."""
        self._fed = 0
        self._began = False
        self.open = False
        """A head has begun and is not complete."""
        self.target = b""
        self.headers: dict[bytes, bytes] = {}

    def begin(self) -> None:
        """The first byte of a head."""
        self.open = self._began = True
        self._fed = 0
        self.target = b""
        self.lines = []

    def fed(self, size: int) -> HttpRefusalError | None:
        """So many bytes were read and the head is not complete: why it is refused, if it is."""
        if self._began:
            # How many of these bytes belong to the head is not known; they are one read at most.
            self._began = False
            return None
        self._fed += size
        return self._too_large() if self._fed > self._bytes_max else None

    def complete(self, version: str, method: str, size: int) -> HttpRefusalError | None:
        """The head is complete: why it is refused, if it is. ``size`` is that of the last read."""
        self.open = False
        if self._fed + size > self._bytes_max:
            lines = sum(len(name) + len(value) + 4 for name, value in self.lines)
            if len(self.target) + lines > self._bytes_max:
                return self._too_large()
        if len(self.lines) > self._lines_max:
            return HttpRefusalError(431, f"More than {self._lines_max} headers came.")
        self.headers = collected(self.lines)
        return refusal(version, method, self.target, self.headers)

    def _too_large(self) -> HttpRefusalError:
        return HttpRefusalError(431, f"The head is larger than {self._bytes_max} bytes.")


def refusal(
    version: str, method: str, target: bytes, headers: Mapping[bytes, bytes]
) -> HttpRefusalError | None:
    """Why a head is refused; ``None`` when it is not.

    Args:
        version: the protocol's version (``1.1``).
        method: the method.
        target: the target as it was sent.
        headers: names in lower case; values of a name that came twice are joined by a comma.
    """
    if version != "1.1" and version != "1.0":
        return HttpRefusalError(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    host = headers.get(b"host")
    if host is None:
        if version == "1.1":
            return HttpRefusalError(400, "The request has no Host header; send one.")
    elif not _HOST_FORBIDDEN.isdisjoint(host):
        return HttpRefusalError(400, "The Host header is malformed, or came twice.")
    if method == "CONNECT":
        return HttpRefusalError(
            405,
            "This is no proxy.",
            [("allow", "GET, HEAD, POST")],
            error_pb2.ERROR_REASON_METHOD_NOT_ALLOWED,
        )
    # Asking `bytes` for one byte with `in` raises and catches an exception inside.
    if target.find(b"#") >= 0 or not origin_form(target).startswith(b"/"):
        return HttpRefusalError(400, "The request's target is malformed.")
    return None if _SPECIAL.isdisjoint(headers) else _special(headers)


def _special(headers: Mapping[bytes, bytes]) -> HttpRefusalError | None:
    """Why headers are refused that few requests have."""
    if headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
        return HttpRefusalError(400, "Only chunked transfer encoding is understood.")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        return HttpRefusalError(
            415,
            "Compressed bodies are not taken; send the body as it is.",
            [("accept-encoding", "identity")],
        )
    if headers.get(b"expect", b"100-continue").lower() != b"100-continue":
        return HttpRefusalError(417, "Only 'Expect: 100-continue' is understood.")
    return None


def collected(lines: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Header lines as a table: names in lower case, values of a name that came twice joined by a
    comma.
    """
    headers = {name.lower(): value for name, value in lines}
    if len(headers) != len(lines):
        headers = {}
        for name, value in lines:
            key = name.lower()
            headers[key] = headers[key] + b", " + value if key in headers else value
    return headers


def origin_form(target: bytes) -> bytes:
    """The path and query of a target; those of the absolute form (``http://host/path``) too."""
    if target.startswith(b"/") or not target.startswith((b"http://", b"https://")):
        return target
    _, _, rest = target.partition(b"://")
    slash = rest.find(b"/")
    return rest[slash:] if slash >= 0 else b"/"
