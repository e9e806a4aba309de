"""``onegate keys`` against a real auth in a process of its own."""

import json
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli import keys
from cli.context import CliContext
from onegate.auth.v1 import grant_pb2
from runtime import apikeys
from runtime.config import EdgeSettings, Settings
from tests.gateway import wait_until
from tests.services.auth.serving import process, settings_of


class Machine:
    """The command line of a machine, with or without a running auth."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def run(self, *arguments: str) -> Result:
        """What a command does."""
        return CliRunner().invoke(keys.app, arguments, obj=CliContext(load=lambda: self.settings))

    def json(self, *arguments: str) -> Any:
        """What a command prints for programs."""
        result = self.run(*arguments, "-o", "json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def failure(self, *arguments: str) -> str:
        """What a command says on standard error when it fails."""
        result = self.run(*arguments)
        assert result.exit_code != 0
        assert "Traceback" not in result.output
        assert isinstance(result.exception, SystemExit)
        return result.stderr


def machine_in(directory: Path) -> Machine:
    edge = EdgeSettings(auth=f"unix:{directory}/auth.sock")
    return Machine(replace(settings_of(directory), edge=edge))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where an auth runs for all tests here."""
    made = tmp_path_factory.mktemp("cli")
    with process(made):
        yield made


@pytest.fixture
def machine(directory: Path) -> Machine:
    return machine_in(directory)


def test_a_made_key_is_shown_once_and_listed_without_its_secret(machine: Machine) -> None:
    result = machine.run("create", "--name", "search")
    assert result.exit_code == 0, result.output
    found = re.search(r"^  (sk-og-\S+)$", result.stdout, re.MULTILINE)
    assert found is not None
    assert apikeys.kind_of(found[1]) == grant_pb2.KEY_KIND_PROJECT
    listed = machine.run("list").stdout
    assert apikeys.redact(found[1]) in listed
    assert found[1] not in listed


def test_every_option_of_create_reaches_the_key(machine: Machine) -> None:
    made = machine.json(
        "create", "--name", "all", "--project", "default", "--models", "openai/*",
        "--models", "demo/echo", "--expires-in", "30d", "--tag", "team=search", "--tag", "x=a=b",
        "--rpm", "600", "--tpm", "90000",
    )  # fmt: skip
    assert apikeys.redact(made.pop("value")) == made["redacted_value"]
    assert made == machine.json("show", made["id"])
    assert made["models_allowed"] == ["openai/*", "demo/echo"]
    assert made["tags"] == {"team": "search", "x": "a=b"}
    limits = {limit["meter"]: (limit["amount"], limit["window_s"]) for limit in made["rate_limits"]}
    assert limits == {"requests": (600, 60), "tokens": (90000, 60)}
    assert (made["kind"], made["state"]) == ("project", "active")
    assert made["expires_at"].startswith(made["created_at"][:2])


def test_an_admin_key_is_made_on_request(machine: Machine) -> None:
    made = machine.json("create", "--name", "root", "--admin")
    assert apikeys.kind_of(made["value"]) == grant_pb2.KEY_KIND_ADMIN
    assert (made["kind"], made["project_id"]) == ("admin", None)


def test_a_revoked_key_leaves_the_list_unless_all_are_asked_for(machine: Machine) -> None:
    made = machine.json("create", "--name", "gone")
    ended = machine.json("revoke", made["id"])
    assert ended["state"] == "revoked"
    assert ended["revoked_at"]
    assert made["id"] not in [key["id"] for key in machine.json("list")]
    assert made["id"] in [key["id"] for key in machine.json("list", "--all")]
    assert machine.run("revoke", made["id"]).exit_code == 0


def test_lists_can_be_cut_and_narrowed_to_a_project(machine: Machine, directory: Path) -> None:
    with sqlite3.connect(directory / "auth.db") as connection:
        (organization_id,) = connection.execute("SELECT id FROM organizations").fetchone()
        for name, row in (("twin", 0), ("twin", 1), ("lone", 2)):
            connection.execute(
                "INSERT INTO projects (id, organization_id, name, policy, version,"
                " created_revision, created_at_us) VALUES (?, ?, ?, '{}', ?, ?, 0)",
                (f"proj_{row:032x}", organization_id, name, 10**6 + row, 10**6 + row),
            )
    connection.close()
    made = machine.json("create", "--name", "a", "--project", "lone")
    assert made["project_id"] == f"proj_{2:032x}"
    for project in ("lone", made["project_id"]):
        assert [key["id"] for key in machine.json("list", "--project", project)] == [made["id"]]
    assert "several projects" in machine.failure("list", "--project", "twin")
    assert "no project 'none'" in machine.failure("list", "--project", "none")
    cut = machine.run("list", "--limit", "1").stdout
    assert "--limit shows more" in cut
    assert made["id"] in cut


def test_a_list_of_several_pages_is_whole(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        machine.json("create", "--name", f"page {n}")
    whole = machine.json("list")
    monkeypatch.setattr(keys, "_PAGE_SIZE", 2)
    assert machine.json("list") == whole
    assert machine.json("create", "--name", "x", "--project", "default")["project_id"]


def test_names_are_text_and_not_markup(machine: Machine) -> None:
    made = machine.json("create", "--name", "[bold]x[/nonsense]")
    for command in (("list",), ("show", made["id"])):
        assert "[bold]x[/nonsense]" in machine.run(*command).stdout


def test_an_expired_key_is_called_expired(machine: Machine) -> None:
    made = machine.json("create", "--name", "short", "--expires-in", "1s")
    wait_until(lambda: machine.json("show", made["id"])["state"] == "expired", what="expiry")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "--name", "x", "--expires-in", "soon"), "is no duration"),
        (("create", "--name", "x", "--tag", "team"), "write name=value"),
        (("create", "--name", "x", "--rpm", "0"), "--rpm"),
        (("create",), "--name"),
        (("create", "--name", "x", "--models", "open ai"), "models_allowed[0]"),
        (("create", "--name", "x", "--admin", "--models", "a"), "calls no models"),
        (("show", "key_nowhere"), "There is no such key"),
        (("revoke", "key_nowhere"), "There is no such key"),
    ],
)
def test_a_mistake_is_answered_in_words(
    machine: Machine, arguments: tuple[str, ...], said: str
) -> None:
    assert said in machine.failure(*arguments)


@pytest.mark.parametrize("command", ["create", "list", "show", "revoke"])
def test_every_command_explains_itself(machine: Machine, command: str) -> None:
    result = machine.run(command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_without_a_running_gateway_the_command_says_so(tmp_path: Path) -> None:
    assert "is `onegate up` running?" in machine_in(tmp_path).failure("list")


def test_without_a_token_the_command_says_who_makes_it(tmp_path: Path) -> None:
    machine = machine_in(tmp_path)
    (tmp_path / "operator.token").unlink()
    said = machine.failure("list")
    assert "operator.token" in said
    assert "run `onegate up` first" in said


def test_a_wrong_token_is_refused(machine: Machine, tmp_path: Path) -> None:
    other = tmp_path / "other.token"
    other.touch(mode=0o600)
    other.write_text("x" * 40)
    rpc = replace(machine.settings.rpc, operator_token_file=str(other))
    said = Machine(replace(machine.settings, rpc=rpc)).failure("list")
    assert "operator" in said
    assert "x" * 40 not in said
