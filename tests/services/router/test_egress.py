"""Where the router sends and with what: every odd base URL, every header."""

import pytest

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from services.router.upstream.egress import Origin, check_headers, check_path, origin_of


@pytest.mark.parametrize(
    ("base_url", "origin", "authority"),
    [
        (
            "https://api.openai.com/v1",
            Origin(scheme="https", host="api.openai.com", port=443, path="/v1"),
            "api.openai.com",
        ),
        (
            "https://API.Example.com.:8443/a/b/",
            Origin(scheme="https", host="api.example.com", port=8443, path="/a/b"),
            "api.example.com:8443",
        ),
        (
            "http://[2606:4700::1111]",
            Origin(scheme="http", host="2606:4700::1111", port=80, path=""),
            "[2606:4700::1111]",
        ),
        (
            "http://[2606:4700::1111]:81/v1",
            Origin(scheme="http", host="2606:4700::1111", port=81, path="/v1"),
            "[2606:4700::1111]:81",
        ),
    ],
)
def test_a_public_url_is_taken_apart(base_url: str, origin: Origin, authority: str) -> None:
    assert origin_of(base_url, private_allowed=False) == origin
    assert origin.authority == authority


PRIVATE = [
    "http://127.0.0.1:8000/v1",
    "http://127.1/v1",
    "http://0x7f000001/v1",
    "http://2130706433/v1",
    "http://0177.0.0.1/v1",
    "http://10.1.2.3/v1",
    "http://192.168.1.1",
    "http://[::1]:8000/v1",
    "http://[fd00::1]/v1",
    "http://[::ffff:127.0.0.1]/v1",
    "http://[64:ff9b::7f00:1]/v1",
    "http://[2002:7f00:1::]/v1",
    "http://localhost:11434/v1",
    "http://ollama:11434/v1",
    "http://model.cluster.internal/v1",
    "http://printer.local",
]


@pytest.mark.parametrize("base_url", PRIVATE)
def test_a_private_url_needs_the_operators_word(base_url: str) -> None:
    assert origin_of(base_url, private_allowed=True).scheme == "http"
    with pytest.raises(GatewayError, match="private network"):
        origin_of(base_url, private_allowed=False)


@pytest.mark.parametrize(
    ("base_url", "why"),
    [
        ("ftp://example.com", "must start with"),
        ("file:///etc/passwd", "must start with"),
        ("example.com/v1", "must start with"),
        ("https://", "host is missing"),
        ("https://user:secret@example.com/v1", "user or password"),
        ("https://example.com/v1?key=secret", "query"),
        ("https://example.com/v1?", "query"),
        ("https://example.com#@evil.example", "fragment"),
        ("https://exa mple.com", "host"),
        ("https://ex%61mple.com", "host"),
        ("https://example.com\\@evil.example/", "user or password"),
        ("https://bücher.example/", "host"),
        ("https://example.com/a b", "characters"),
        ("https://example.com/ä", "characters"),
        ("https://example.com/a/../b", "not plain"),
        ("https://example.com/a\\b", "not plain"),
        ("https://example.com:99999", "cannot be read"),
        ("https://[::1", "cannot be read"),
        ("http://169.254.169.254/latest/meta-data", "link-local"),
        ("http://0xa9fea9fe/", "link-local"),
        ("http://[fe80::1]/", "link-local"),
        ("http://[::ffff:169.254.169.254]/", "link-local"),
        ("http://[64:ff9b::a9fe:a9fe]/", "link-local"),
        ("http://0.0.0.0/", "unspecified"),
        ("http://0/", "unspecified"),
        ("http://224.0.0.1/", "multicast"),
        ("http://[::]/", "unspecified"),
    ],
)
def test_a_url_that_hides_something_is_refused_even_to_the_operator(
    base_url: str, why: str
) -> None:
    with pytest.raises(GatewayError, match=why) as caught:
        origin_of(base_url, private_allowed=True)
    assert caught.value.reason == error_pb2.ERROR_REASON_INVALID_REQUEST
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("host", ["1.2.3.4.5", "08.example.com", "300.1.1.1", "0x7g.example.com"])
def test_a_name_that_only_looks_like_an_address_is_a_name(host: str) -> None:
    assert origin_of(f"https://{host}/v1", private_allowed=True).host == host


def test_a_header_off_the_list_is_not_sent() -> None:
    check_headers([("Authorization", "Bearer x"), ("content-type", "application/json")])
    with pytest.raises(GatewayError, match="allow-list"):
        check_headers([("x-forwarded-for", "10.0.0.1")])


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\nb", "ü", "a\x00b"])
def test_a_header_value_cannot_end_its_line(value: str) -> None:
    with pytest.raises(GatewayError, match="check the credential") as caught:
        check_headers([("authorization", value)])
    assert value not in caught.value.message


@pytest.mark.parametrize("path", ["", "v1", "/a b", "/a\r\nhost: evil", "/ä"])
def test_a_path_cannot_leave_the_request_line(path: str) -> None:
    check_path("/models/gemini-2.5-pro:generateContent?alt=sse")
    with pytest.raises(GatewayError, match="malformed"):
        check_path(path)
