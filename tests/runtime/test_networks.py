"""Networks: what lies inside, what two lists have in common, what is written wrongly."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.networks import NOWHERE, intersection, is_inside, normalised

V4 = st.builds(
    lambda bits, prefix: str(ipaddress.ip_network((bits, prefix), strict=False)),
    st.integers(0, 255).map(lambda n: n << 24 | n),
    st.integers(0, 32),
)
V6 = st.builds(
    lambda bits, prefix: str(ipaddress.ip_network((bits, prefix), strict=False)),
    st.integers(0, 255).map(lambda n: n << 120 | n),
    st.integers(0, 128),
)
LISTS = st.lists(V4 | V6, min_size=1, max_size=4)
ADDRESSES = st.integers(0, 255).map(lambda n: n << 24 | n).map(ipaddress.IPv4Address).map(str) | (
    st.integers(0, 255).map(lambda n: n << 120 | n).map(ipaddress.IPv6Address).map(str)
)


@given(LISTS, LISTS, ADDRESSES)
def test_an_address_is_in_the_intersection_when_it_is_in_both(
    first: list[str], second: list[str], address: str
) -> None:
    both = is_inside(address, first) and is_inside(address, second)
    assert is_inside(address, intersection(first, second)) == both


@given(LISTS)
def test_no_list_is_every_address(networks: list[str]) -> None:
    assert intersection(networks, ()) == tuple(networks) == intersection((), networks)
    assert intersection((), ()) == ()


def test_nothing_in_common_is_no_address_at_all() -> None:
    assert intersection(["10.0.0.0/8"], ["fd00::/8"]) == (NOWHERE,)
    assert not is_inside("10.0.0.1", (NOWHERE,))
    assert intersection((NOWHERE,), ["10.0.0.0/8"]) == (NOWHERE,)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::1", "::1/128"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_a_network_is_kept_in_one_form(written: str, kept: str) -> None:
    assert normalised(written) == kept


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "must be an address"),
        ("example.com", "must be an address"),
        ("10.0.0.0/33", "must be an address"),
        ("10.1.2.3/8", "must be 10.0.0.0/8"),
        ("fd00::1/8", "must be fd00::/8"),
    ],
)
def test_a_mistake_is_said_in_words(written: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        normalised(written)


@pytest.mark.parametrize("address", ["", "nonsense", "10.0.0.1:80"])
def test_what_is_no_address_lies_nowhere(address: str) -> None:
    assert not is_inside(address, ["0.0.0.0/0", "::/0"])
