"""What a request's head must be like, beyond what llhttp checks: pure."""

from collections.abc import Mapping, Sequence
from typing import Final

from edge.http import HttpRefusalError
from onegate.common.v1 import error_pb2

VERSIONS: Final = ("1.1", "1.0")

_HOST_FORBIDDEN: Final = frozenset(b"/?#@\\ ,")


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
    if version not in VERSIONS:
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
    if b"#" in target or not origin_form(target).startswith(b"/"):
        return HttpRefusalError(400, "The request's target is malformed.")
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
    if not target.startswith((b"http://", b"https://")):
        return target
    _, _, rest = target.partition(b"://")
    slash = rest.find(b"/")
    return rest[slash:] if slash >= 0 else b"/"
