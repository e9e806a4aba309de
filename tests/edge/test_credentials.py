"""Which key a request presents."""

import pytest

from edge.credentials import presented_key
from runtime.errors import GatewayError, reason_name

HEADERS = (b"x-api-key", b"api-key", b"x-goog-api-key")


@pytest.mark.parametrize("name", HEADERS)
def test_every_vendors_header_presents_a_key(name: bytes) -> None:
    assert presented_key({name: b"sk-og-1"}) == "sk-og-1"


@pytest.mark.parametrize("value", [b"Bearer sk-og-1", b"bearer sk-og-1", b"BEARER  sk-og-1 "])
def test_authorization_presents_a_key(value: bytes) -> None:
    assert presented_key({b"authorization": value}) == "sk-og-1"


def test_headers_may_agree() -> None:
    headers = {b"authorization": b"Bearer k", **dict.fromkeys(HEADERS, b"k")}
    assert presented_key(headers) == "k"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"authorization": b""},
        {b"authorization": b"Bearer "},
        {b"authorization": b"sk-og-1"},
        {b"authorization": b"Basic c2s="},
        {b"x-api-key": b""},
        {b"authorization": b"Bearer a", b"x-api-key": b"b"},
        {b"api-key": b"a", b"x-api-key": b"b"},
        {b"authorization": b"Basic c2s=", b"x-api-key": b"b"},
        {b"authorization": b"Bearer ", b"x-api-key": b"b"},
    ],
)
def test_no_key_or_two_are_refused(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(GatewayError) as caught:
        presented_key(headers)
    assert reason_name(caught.value.reason) == "invalid_api_key"
