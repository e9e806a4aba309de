"""Providers by the command line, before a whole gateway that is never restarted."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fake_provider import FakeProvider, running_in_thread
from tests.gateway import Gateway, running_gateway, wait_until

HELLO: Any = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with running_in_thread(FakeProvider(models=("m",))) as running:
        yield running


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    with running_gateway(tmp_path, "") as running:
        yield running


def secret_file(directory: Path, name: str) -> str:
    place = directory / f"{name}.secret"
    place.touch(mode=0o600)
    place.write_text(f"key-of-{name}\n")
    return str(place)


def answered(client: openai.OpenAI) -> bool:
    try:
        client.chat.completions.create(model="mine/m", messages=HELLO)
    except openai.APIStatusError:
        return False
    return True


def seen(fake: FakeProvider) -> set[str]:
    return {taken.headers["authorization"] for taken in fake.chats}


def test_a_provider_is_added_tried_rotated_rekeyed_and_removed(
    gateway: Gateway, fake: FakeProvider, tmp_path: Path
) -> None:
    place = ("--kind", "compatible", "--base-url", fake.base_url, "--free")
    one, two = secret_file(tmp_path, "one"), secret_file(tmp_path, "two")
    with openai.OpenAI(base_url=gateway.base_url, api_key=gateway.api_key, max_retries=0) as client:
        assert not answered(client)
        made = gateway.cli("providers", "add", "mine", *place, "--from-file", one, "-o", "json")
        assert [row["credential"] for row in json.loads(made)] == ["main"]
        wait_until(lambda: answered(client), 10, "the provider")
        assert seen(fake) == {"Bearer key-of-one"}
        (check,) = json.loads(gateway.cli("providers", "test", "mine", "-o", "json"))
        assert (check["ok"], check["models"], check["detail"]) == (True, 1, None)
        gateway.cli("providers", "rotate", "mine", "--from-file", two)
        wait_until(lambda: answered(client) and "Bearer key-of-two" in seen(fake), 10, "the key")
        kek = gateway.data_dir / "provider.kek"
        kek.rename(gateway.data_dir / "provider.kek.former")
        moved = json.loads(gateway.cli("providers", "rekey", "-o", "json"))
        assert (moved["moved"], moved["total"]) == (1, 1)
        assert answered(client)
        fake.list_status = 401
        with pytest.raises(subprocess.CalledProcessError) as failed:
            gateway.cli("providers", "test", "mine")
        assert "refuses the credential" in failed.value.stdout
        listed = gateway.cli("providers", "list", "-o", "json")
        log = gateway.cli("audit", "list", "-o", "json")
        assert "provider.credential.updated" in log
        assert "key-of" not in listed + log + made
        known = ("--region", "eu", "--retention-days", "0", "--no-trains", "--model", "m")
        (row,) = json.loads(gateway.cli("providers", "update", "mine", *known, "-o", "json"))
        assert (row["regions"], row["retention_days"], row["trains"]) == (["eu"], 0, False)
        forgotten = ("--forget", "trains", "--forget", "models")
        (row,) = json.loads(gateway.cli("providers", "update", "mine", *forgotten, "-o", "json"))
        assert (row["regions"], row["trains"], row["models"]) == (["eu"], None, [])
        assert answered(client)
        gateway.cli("providers", "remove", "mine", "--yes")
        wait_until(lambda: not answered(client), 10, "the removal")
        assert json.loads(gateway.cli("providers", "list", "-o", "json")) == []
