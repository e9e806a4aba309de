"""Where the router may send, and with which headers: pure checks in front of ``upstream.py``.

Base URLs come from the operator's file or from a provider module, never from a caller. Still they
are checked: a URL is where a secret goes.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError

HEADERS_ALLOWED: Final = frozenset(
    {
        "accept",
        "anthropic-beta",
        "anthropic-version",
        "api-key",
        "authorization",
        "cancel-after",
        "content-type",
        "http-referer",
        "openai-organization",
        "openai-project",
        "prefer",
        "x-amz-date",
        "x-amz-security-token",
        "x-api-key",
        "x-github-api-version",
        "x-goog-api-client",
        "x-goog-api-key",
        "x-title",
    }
)
"""What a provider module may send; the connection itself adds host, length, encoding and agent."""

PORTS: Final = {"http": 80, "https": 443}

_LOCAL_SUFFIXES: Final = (".internal", ".local", ".localhost", ".lan", ".home.arpa")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR: Final = ipaddress.IPv6Network("2002::/16")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A checked base URL, taken apart. ``path`` has no trailing slash; it may be empty."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The ``Host`` header: without the port where it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def origin_of(base_url: str, *, private_allowed: bool) -> Origin:
    """The base URL, checked.

    Args:
        base_url: ``http`` or ``https``, without user, query and fragment.
        private_allowed: whether the operator's own file names it, so that it may lead into the
            operator's own network. Link-local addresses, where clouds serve credentials to whoever
            asks, stay forbidden.

    Raises INVALID_REQUEST that says what is wrong.
    """
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError as error:
        raise _refuse(base_url, f"it cannot be read ({error})") from None
    host = (parts.hostname or "").rstrip(".")
    _check_form(base_url, parts, host)
    _check_host(base_url, host, private_allowed=private_allowed)
    return Origin(
        scheme=parts.scheme,
        host=host,
        port=port or PORTS[parts.scheme],
        path=parts.path.rstrip("/"),
    )


def check_headers(headers: Iterable[tuple[str, str]]) -> None:
    """Refuses a header that is not on the list, or whose value could end its line.

    Raises INTERNAL: only a provider module or a credential can cause it.
    """
    for name, value in headers:
        if name.lower() not in HEADERS_ALLOWED:
            raise GatewayError(
                error_pb2.ERROR_REASON_INTERNAL,
                f"The header {name!r} is not on the outbound allow-list; the call was not sent.",
            )
        if not (value.isascii() and value.isprintable()):
            raise GatewayError(
                error_pb2.ERROR_REASON_INTERNAL,
                f"The header {name!r} has a value that cannot be sent; check the credential.",
            )


def check_path(path: str) -> None:
    """Refuses a path that could leave its place in the request line. Raises INTERNAL."""
    if not (path.startswith("/") and path.isascii() and path.isprintable()) or " " in path:
        raise GatewayError(
            error_pb2.ERROR_REASON_INTERNAL, "The provider's path is malformed; nothing was sent."
        )


def is_forbidden(address: str) -> bool:
    """Whether nothing is ever sent to an address, whatever name led to it: link-local ones, where
    clouds serve credentials, and those that are nobody's.
    """
    found = _address(address.partition("%")[0])
    if found is None:
        return True
    found = _embedded(found)
    return found.is_link_local or found.is_multicast or found.is_unspecified


def _check_form(base_url: str, parts: SplitResult, host: str) -> None:
    if parts.scheme not in PORTS:
        raise _refuse(base_url, "it must start with https:// or http://")
    if "@" in parts.netloc:
        raise _refuse(base_url, "it holds a user or password; use api_key_env or api_key_file")
    if parts.query or parts.fragment or "?" in base_url or "#" in base_url:
        raise _refuse(base_url, "it has a query or fragment")
    if not host or not host.isascii() or any(c in host for c in " %\\"):
        raise _refuse(base_url, "its host is missing or malformed")
    if not base_url.isascii() or not base_url.isprintable() or " " in base_url:
        raise _refuse(base_url, "it holds characters that a URL does not have")
    if "/../" in f"{parts.path}/" or "\\" in base_url:
        raise _refuse(base_url, "its path is not plain")


def _check_host(base_url: str, host: str, *, private_allowed: bool) -> None:
    address = _address(host)
    if address is None:
        private = host == "localhost" or host.endswith(_LOCAL_SUFFIXES) or "." not in host
    else:
        address = _embedded(address)
        if address.is_link_local or address.is_multicast or address.is_unspecified:
            raise _refuse(base_url, "link-local, multicast and unspecified addresses are refused")
        private = not address.is_global
    if private and not private_allowed:
        raise _refuse(base_url, "it leads into a private network; only the operator's file may")


def _address(host: str) -> Address | None:
    """The host as an address, also in the odd forms that a resolver takes (``127.1``,
    ``0x7f.1``).
    """
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    parts = host.split(".")
    if len(parts) > 4 or not all(_is_number(part) for part in parts):
        return None
    *high, low = [int(part, 8 if part[0] == "0" and part.isdigit() else 0) for part in parts]
    value = low + sum(part << (24 - 8 * index) for index, part in enumerate(high))
    try:
        return ipaddress.IPv4Address(value)
    except ipaddress.AddressValueError:
        return None


def _is_number(text: str) -> bool:
    try:
        int(text, 8 if text[:1] == "0" and text.isdigit() else 0)
    except ValueError:
        return False
    return text[:1].isdigit()


def _embedded(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one that only carries it (mapped, NAT64, 6to4)."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if address in _SIX_TO_FOUR:
            return ipaddress.IPv4Address(int(address) >> 80 & 0xFFFF_FFFF)
    return address


def _refuse(base_url: str, why: str) -> GatewayError:
    shown = base_url.rpartition("@")[2].partition("?")[0].partition("#")[0]
    return GatewayError(
        error_pb2.ERROR_REASON_INVALID_REQUEST, f"The base URL {shown!r} is refused: {why}."
    )
