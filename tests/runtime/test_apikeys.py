"""Keys as text: made, recognised, digested, shown."""

import hashlib
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onegate.auth.v1 import grant_pb2
from runtime import apikeys
from runtime.clock import SystemEntropy

ENTROPY = SystemEntropy()
KINDS = [grant_pb2.KEY_KIND_PROJECT, grant_pb2.KEY_KIND_ADMIN]


class Fixed:
    """Bytes that a test chose."""

    def __init__(self, byte: int) -> None:
        self._byte = byte

    def bytes(self, count: int) -> bytes:
        return bytes([self._byte]) * count


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (grant_pb2.KEY_KIND_PROJECT, r"sk-og-[0-9A-Za-z]{46}"),
        (grant_pb2.KEY_KIND_ADMIN, r"sk-og-admin-[0-9A-Za-z]{46}"),
    ],
)
def test_a_minted_key_has_the_shape_of_its_kind(kind: apikeys.KeyKind, shape: str) -> None:
    key = apikeys.mint(kind, ENTROPY)
    assert re.fullmatch(shape, key)
    assert apikeys.kind_of(key) == kind


@pytest.mark.parametrize("byte", [0, 0x7F, 0xFF])
def test_extreme_randomness_still_gives_a_whole_key(byte: int) -> None:
    assert apikeys.kind_of(apikeys.mint(KINDS[0], Fixed(byte))) == KINDS[0]


def test_there_is_no_key_without_a_kind() -> None:
    with pytest.raises(ValueError, match="no keys of kind"):
        apikeys.mint(grant_pb2.KEY_KIND_UNSPECIFIED, ENTROPY)


def test_a_thousand_keys_are_a_thousand_keys() -> None:
    assert len({apikeys.mint(KINDS[0], ENTROPY) for _ in range(1000)}) == 1000


@given(st.integers(0, 51), st.sampled_from("0AZaz9"))
def test_any_single_changed_character_is_noticed(place: int, replacement: str) -> None:
    key = apikeys.mint(KINDS[0], Fixed(0x5A))
    changed = key[:place] + replacement + key[place + 1 :]
    assert changed == key or apikeys.kind_of(changed) is None


@given(st.text())
def test_no_text_breaks_the_check(text: str) -> None:
    assert apikeys.kind_of(text) is None
    assert apikeys.kind_of("sk-og-" + text) is None


def test_the_checksum_covers_the_kind() -> None:
    key = apikeys.mint(KINDS[0], ENTROPY)
    assert apikeys.kind_of(key.replace("sk-og-", "sk-og-admin-")) is None


@pytest.mark.parametrize(
    "garbage",
    ["", "sk-og-", "sk-og-admin-", "sk-" + "a" * 48, "sk-og-" + "é" * 46, "sk-og-" + "a" * 46],
)
def test_garbage_is_no_key(garbage: str) -> None:
    assert apikeys.kind_of(garbage) is None


def test_a_key_with_something_around_it_is_no_key() -> None:
    key = apikeys.mint(KINDS[0], ENTROPY)
    assert [apikeys.kind_of(text) for text in (key + "\n", " " + key, key + key)] == [None] * 3


def test_the_check_costs_no_more_for_a_long_text() -> None:
    text = "sk-og-" + "a" * 10_000_000
    start = time.process_time()
    assert apikeys.kind_of(text) is None
    assert time.process_time() - start < 0.5


def test_the_digest_is_the_sha256_of_the_whole_key() -> None:
    key = apikeys.mint(KINDS[0], ENTROPY)
    assert apikeys.digest(key) == hashlib.sha256(key.encode()).digest()
    assert len(apikeys.digest(key)) == apikeys.DIGEST_BYTES


def test_a_header_that_is_not_utf8_has_a_digest_too() -> None:
    assert len(apikeys.digest("sk-\udcff")) == apikeys.DIGEST_BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_a_redacted_key_shows_its_kind_and_eight_characters(kind: apikeys.KeyKind) -> None:
    key = apikeys.mint(kind, ENTROPY)
    shown = apikeys.redact(key)
    assert re.fullmatch(r"sk-og-(admin-)?[0-9A-Za-z]{4}…[0-9A-Za-z]{4}", shown)
    assert key.startswith(shown.split("…")[0])
    assert key.endswith(shown.split("…")[1])


def test_of_a_foreign_secret_nothing_is_shown() -> None:
    assert apikeys.redact("sk-proj-abcdefghijklmnop") == "***"
