"""Secrets do not show, and their files are made once and read with care."""

import copy
import dataclasses
import json
import logging
import multiprocessing
import os
import pickle
import stat
from pathlib import Path

import msgspec
import pytest

from runtime import secrets
from runtime.clock import SystemEntropy
from runtime.secrets import FileSecrets, Secret, SecretError, read_secret

CANARY = "sk-canary-8f2e1c"
SECRET = Secret(CANARY)


@dataclasses.dataclass
class Holder:
    secret: Secret


@pytest.mark.parametrize(
    "shown",
    [
        repr(SECRET),
        str(SECRET),
        f"{SECRET}",
        f"{SECRET:>20}",
        f"{SECRET!r}",
        "%s" % SECRET,  # noqa: UP031
        repr([SECRET, {"key": SECRET}]),
        repr(Holder(SECRET)),
        repr(dataclasses.asdict(Holder(SECRET))),
        repr(vars(Holder(SECRET))),
        repr(copy.deepcopy(SECRET)),
        json.dumps({"key": SECRET}, default=str),
    ],
)
def test_a_secret_shows_as_stars(shown: str) -> None:
    assert CANARY not in shown
    assert "***" in shown


def test_a_secret_does_not_reach_a_log(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("test").error("key %s %r", SECRET, SECRET)
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    "serialise",
    [
        json.dumps,
        msgspec.json.encode,
        msgspec.msgpack.encode,
        pickle.dumps,
        lambda secret: secret.__getstate__(),
    ],
)
def test_a_secret_refuses_to_be_serialised(serialise: object) -> None:
    assert callable(serialise)
    with pytest.raises(TypeError):
        serialise(SECRET)


def test_a_secret_is_equal_to_the_same_secret_and_to_nothing_else() -> None:
    assert Secret("ä") == Secret("ä")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2


def test_a_secret_reveals_itself_when_asked() -> None:
    assert SECRET.reveal() == CANARY
    assert copy.copy(SECRET) is SECRET
    assert Secret("a")
    assert not Secret("")


def test_a_missing_secret_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "pepper"
    made = FileSecrets(SystemEntropy()).read_or_make(str(path))
    assert len(bytes.fromhex(made.reveal())) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["pepper"]  # noqa: PTH208


def test_a_secret_that_is_there_is_kept(tmp_path: Path) -> None:
    files = FileSecrets(SystemEntropy())
    place = str(tmp_path / "pepper")
    first = files.read_or_make(place)
    assert files.read_or_make(place) == first
    assert files.read(place) == first


def _race(place: str) -> str:
    return FileSecrets(SystemEntropy()).read_or_make(place).reveal()


def test_processes_that_race_for_the_first_secret_get_the_same_one(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        for round_number in range(10):
            place = str(tmp_path / f"secret-{round_number}")
            assert len(set(pool.map(_race, [place] * 8))) == 1
    assert len(os.listdir(tmp_path)) == 10  # noqa: PTH208


def test_the_loser_of_a_race_takes_the_winner_s_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pepper"
    winner = FileSecrets(SystemEntropy()).read_or_make(str(path))
    looked = iter([False])
    monkeypatch.setattr(Path, "exists", lambda self: next(looked))
    assert FileSecrets(SystemEntropy()).read_or_make(str(path)) == winner
    assert os.listdir(tmp_path) == ["pepper"]  # noqa: PTH208


def _write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_white_space_around_a_secret_is_not_part_of_it(tmp_path: Path) -> None:
    assert read_secret(_write(tmp_path / "key", b"\n  sk-1 \r\n")).reveal() == "sk-1"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "empty"),
        (b" \n\t\n", "empty"),
        (b"\xff\xfe", "UTF-8"),
        (b"one\ntwo", "one line"),
        (b"a\x00b", "one line"),
        (b"x" * (secrets.FILE_BYTES_MAX + 1), "longer than"),
    ],
)
def test_a_file_without_a_secret_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    with pytest.raises(SecretError, match=complaint):
        read_secret(_write(tmp_path / "key", content))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(SecretError, match="chmod 600"):
        read_secret(_write(tmp_path / "key", CANARY.encode(), mode))


@pytest.mark.parametrize(("mode", "allowed"), [(0o640, True), (0o644, False)])
def test_a_mounted_secret_of_another_owner_may_be_our_group_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, allowed: bool
) -> None:
    path = _write(tmp_path / "key", b"sk-1", mode)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    if allowed:
        assert read_secret(path).reveal() == "sk-1"
    else:
        with pytest.raises(SecretError, match="chmod 600"):
            read_secret(path)


def test_a_file_that_is_missing_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SecretError, match="No such file"):
        read_secret(tmp_path / "absent")
    with pytest.raises(SecretError, match="not a regular file"):
        read_secret(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SecretError, match="not a regular file"):
        read_secret(tmp_path / "pipe")


def test_a_short_secret_is_refused_where_the_gateway_needs_its_own(tmp_path: Path) -> None:
    path = _write(tmp_path / "pepper", b"hunter2")
    with pytest.raises(SecretError, match="fewer than 32"):
        FileSecrets(SystemEntropy()).read_or_make(str(path))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = _write(tmp_path / "file", b"")
    with pytest.raises(SecretError, match="Cannot use the secret file"):
        FileSecrets(SystemEntropy()).read_or_make(str(blocked / "pepper"))


def test_a_file_system_that_fails_leaves_no_draft_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(SecretError, match="No space left"):
        FileSecrets(SystemEntropy()).read_or_make(str(tmp_path / "pepper"))
    assert os.listdir(tmp_path) == []  # noqa: PTH208
