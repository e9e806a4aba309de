"""Networks from which a key works, in CIDR notation, IPv4 and IPv6. Pure.

Auth checks and narrows them; auth, edges and routers ask them. An IPv4 address that came in IPv6
clothes (``::ffff:10.1.2.3``) is the IPv4 address that it is.
"""

import ipaddress
from collections.abc import Iterable
from typing import Final, TypeAlias

NOWHERE: Final = "none"
"""A network without any address: an empty list of networks would let every address in."""

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


def is_inside(address: str, networks: Iterable[str]) -> bool:
    """Whether the address lies in one of the networks. What is malformed contains nothing and lies
    nowhere. Costs about 5 µs for each network.
    """
    try:
        given = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = given.ipv4_mapped if isinstance(given, ipaddress.IPv6Address) else None
    given = mapped or given
    for text in networks:
        try:
            if given in ipaddress.ip_network(text, strict=False):
                return True
        except ValueError:
            continue
    return False


def normalised(text: str) -> str:
    """The network as it is kept: ``10.1.2.3`` is ``10.1.2.3/32``, ``2001:DB8::/32`` in lower case.

    Raises ``ValueError`` in words for what is no network, and for a network whose address has bits
    beyond its prefix: whoever writes ``10.1.2.3/8`` may have meant something else.
    """
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        pass
    else:
        return str(_plain(network))
    try:
        wider = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            "must be an address or a network such as 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32"
        ) from None
    raise ValueError(f"must be {wider}, or the single address: its last bits are not zero")


def intersection(first: Iterable[str], second: Iterable[str]) -> tuple[str, ...]:
    """Networks for the addresses that lie in both; of two empty lists, every address."""
    one, other = tuple(first), tuple(second)
    if not one or not other:
        return one or other
    found: dict[str, None] = {}
    known = [_parsed(text) for text in other]
    for network in map(_parsed, one):
        for wall in known:
            if network is None or wall is None:
                continue
            if network.version != wall.version or not network.overlaps(wall):
                continue
            # Two networks that overlap lie one in the other.
            inner = network if network.prefixlen >= wall.prefixlen else wall
            found[str(inner)] = None
    return tuple(found) or (NOWHERE,)


def _parsed(text: str) -> Network | None:
    try:
        return _plain(ipaddress.ip_network(text, strict=False))
    except ValueError:
        return None


def _plain(network: Network) -> Network:
    """An IPv4 network in IPv6 clothes as the IPv4 network that it is."""
    mapped = network.network_address
    if isinstance(mapped, ipaddress.IPv6Address) and network.prefixlen >= 96 and mapped.ipv4_mapped:
        return ipaddress.IPv4Network((mapped.ipv4_mapped, network.prefixlen - 96))
    return network
