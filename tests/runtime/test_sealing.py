"""Sealed secrets: opened by their key for their purpose, and by nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.clock import SystemEntropy
from runtime.sealing import (
    Keyring,
    LocalKey,
    Sealed,
    SealError,
    purpose_of,
    rewrapped,
    seal,
    unseal,
)
from runtime.secrets import Secret
from runtime.settings import SealingSettings

ENTROPY = SystemEntropy()
SECRET = Secret("sk-canary-of-the-vault")
PURPOSE = purpose_of(["prov_1", "openai", "", [], []])


def key(text: str = "a" * 64) -> LocalKey:
    return LocalKey(Secret(text), ENTROPY)


def test_a_secret_opens_with_its_key_for_its_purpose() -> None:
    sealed = seal(SECRET, PURPOSE, key(), ENTROPY)
    kept = sealed.to_text()
    assert "canary" not in kept
    assert unseal(Sealed.from_text(kept), PURPOSE, [key("b" * 64), key()]) == SECRET
    # The same secret, sealed again, looks like another one.
    assert seal(SECRET, PURPOSE, key(), ENTROPY).ciphertext != sealed.ciphertext


@pytest.mark.parametrize(
    "purpose",
    [
        ["prov_2", "openai", "", [], []],
        ["prov_1", "compatible", "", [], []],
        ["prov_1", "openai", "https://evil.example/v1", [], []],
        ["prov_1", "openai", "", ["org_1"], []],
        ["prov_1", "openai", "", [], ["proj_1"]],
    ],
)
def test_a_secret_opens_for_no_other_provider_address_or_owner(purpose: list[str]) -> None:
    sealed = seal(SECRET, PURPOSE, key(), ENTROPY)
    with pytest.raises(SealError, match="address, kind or owner"):
        unseal(sealed, purpose_of(purpose), [key()])


def test_every_changed_byte_is_noticed() -> None:
    sealed = seal(SECRET, PURPOSE, key(), ENTROPY)
    for member in ("wrapped_key", "nonce", "ciphertext"):
        whole: bytes = getattr(sealed, member)
        changed: dict[str, Any]
        for index in range(len(whole)):
            broken = bytearray(whole)
            broken[index] ^= 1
            changed = {member: bytes(broken)}
            with pytest.raises(SealError):
                unseal(replace(sealed, **changed), PURPOSE, [key()])
        changed = {member: b""}
        with pytest.raises(SealError):
            unseal(replace(sealed, **changed), PURPOSE, [key()])


@pytest.mark.parametrize(
    "text", ["", "1.a.b", "2.a.YQ==.YQ==.YQ==", "1.a.%.YQ==.YQ==", "1.a.b.c.d.e"]
)
def test_what_is_no_sealed_secret_is_refused(text: str) -> None:
    with pytest.raises(SealError):
        Sealed.from_text(text)


def test_a_secret_moves_to_another_key_without_being_opened() -> None:
    old, new = key(), key("b" * 64)
    sealed = seal(SECRET, PURPOSE, old, ENTROPY)
    moved = rewrapped(sealed, [new, old])
    assert (moved.key_id, moved.ciphertext) == (new.id, sealed.ciphertext)
    assert unseal(moved, PURPOSE, [new]) == SECRET
    with pytest.raises(SealError, match=old.id):
        unseal(sealed, PURPOSE, [new])
    with pytest.raises(SealError, match=old.id):
        rewrapped(sealed, [new])


def test_keys_are_read_anew_from_files_and_variables(tmp_path: Path) -> None:
    settings = SealingSettings(
        key_file=str(tmp_path / "kek"), former_key_file=str(tmp_path / "former")
    )
    ring = Keyring(settings, {}, ENTROPY)
    with pytest.raises(SealError, match="kek"):
        ring.read()
    (made,) = ring.read(make=True)
    assert [one.id for one in ring.read()] == [made.id]
    (tmp_path / "kek").rename(tmp_path / "former")
    present, former = ring.read(make=True)
    assert (present.id != made.id, former.id) == (True, made.id)
    by_variable = SealingSettings(key_env="KEK", former_key_env="OLD")
    both = Keyring(by_variable, {"KEK": "n" * 40, "OLD": "o" * 40}, ENTROPY).read()
    assert len({one.id for one in both}) == 2
    for environ in ({}, {"KEK": "short", "OLD": "o" * 40}):
        with pytest.raises(SealError, match="fewer than 32"):
            Keyring(by_variable, environ, ENTROPY).read()
    with pytest.raises(SealError, match=r"sealing\.key_file"):
        Keyring(SealingSettings(), {}, ENTROPY).read()
