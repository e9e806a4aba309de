"""``onegate keys`` beyond making them, ``limits`` and ``users``, against a real auth."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli import keys, limits, users
from cli.keys_change import app as keys_app
from runtime import apikeys
from tests.cli.test_administration import Machine, directory, machine

__all__ = ["directory", "machine"]


def test_a_rotated_key_keeps_its_id_and_shows_its_new_secret_once(machine: Machine) -> None:
    made = machine.json(keys_app, "create", "--name", "ci", "--team", "search")
    rotated = machine.json(keys_app, "rotate", made["id"], "--grace", "7d")
    assert rotated["id"] == made["id"]
    assert rotated["value"] != made["value"]
    assert rotated["redacted_value"] == apikeys.redact(rotated["value"])
    (former,) = rotated["former_secrets"]
    assert former["redacted_value"] == made["redacted_value"]
    shown = machine.run(keys_app, "rotate", made["id"], "--grace", "0").stdout
    assert "The new secret, shown this once" in shown
    assert "earlier secret" not in shown
    refused = machine.run(keys_app, "rotate", made["id"], "--grace", "soon")
    assert (refused.exit_code, "is no duration" in refused.stderr) == (2, True)


def test_a_key_is_disabled_and_enabled(machine: Machine) -> None:
    made = machine.json(keys_app, "create", "--name", "ci")
    assert machine.json(keys_app, "disable", made["id"])["state"] == "disabled"
    assert "disabled" in machine.run(keys_app, "list").stdout
    assert machine.json(keys_app, "enable", made["id"])["state"] == "active"


def test_what_is_not_named_in_an_update_stays(machine: Machine) -> None:
    made = machine.json(
        keys_app, "create", "--name", "ci", "--models", "openai/*", "--network", "10.0.0.0/8",
        "--endpoint", "chat", "--feature", "search", "--customer", "c", "--deny-models", "*/o3",
    )  # fmt: skip
    assert made["tags"] == {"feature": "search", "customer": "c"}
    assert (made["scopes"], made["models_denied"]) == (["model.chat.request"], ["*/o3"])
    changed = machine.json(
        keys_app, "update", made["id"], "--team", "a", "--untag", "customer", "--models", "all",
        "--expires-in", "30d",
    )  # fmt: skip
    assert changed["tags"] == {"feature": "search", "team": "a"}
    assert (changed["models_allowed"], changed["networks_allowed"]) == ([], ["10.0.0.0/8"])
    assert changed["expires_at"]
    changed = machine.json(
        keys_app, "update", made["id"], "--expires-in", "never", "--read-only", "--network", "all"
    )
    assert (changed["expires_at"], changed["scopes"]) == (None, ["model.read"])
    assert changed["networks_allowed"] == []
    admin = machine.json(keys_app, "create", "--name", "root", "--admin")
    renamed = machine.json(keys_app, "update", admin["id"], "--name", "break-glass")
    assert renamed["name"] == "break-glass"


def test_a_key_policy_is_said_and_holds(machine: Machine) -> None:
    said = machine.json(
        keys_app, "policy", "--max-lifetime", "90d", "--network", "10.0.0.0/8", "--tag", "org=a"
    )
    assert said["max_lifetime_seconds"] == 90 * 86_400
    assert machine.json(keys_app, "policy") == said
    refused = machine.run(keys_app, "create", "--name", "x", "--expires-in", "91d")
    assert (refused.exit_code, "7776000" in refused.stderr) == (1, True)
    freed = machine.json(keys_app, "policy", "--max-lifetime", "none", "--network", "all")
    assert (freed["max_lifetime_seconds"], freed["networks_allowed"]) == (None, [])
    own = machine.json(keys_app, "policy", "--project", "default", "--default-lifetime", "1d")
    assert own["default_lifetime_seconds"] == 86_400
    assert "default lifetime seconds" in machine.run(keys_app, "policy").stdout


@pytest.mark.parametrize("level", ["organisation", "project", "key"])
def test_limits_are_set_listed_and_unset_on_every_level(machine: Machine, level: str) -> None:
    key = machine.json(keys_app, "create", "--name", "ci")["id"]
    of = {"organisation": [], "project": ["--project", "default"], "key": ["--key", key]}[level]
    assert machine.json(limits.app, "list", *of) == []
    made = machine.json(limits.app, "set", *of, "--rpm", "60", "--tpd", "1000", "--concurrent", "2")
    assert (made["id"], made["requests_per_minute"], made["tokens_per_day"]) == ("rl-*", 60, 1000)
    machine.json(limits.app, "set", *of, "--rpm", "5", "--model", "openai/*")
    rows = machine.json(limits.app, "list", *of)
    assert [row["model"] for row in rows] == ["*", "openai/*"]
    left = machine.json(limits.app, "unset", *of, "--field", "tokens_per_day")
    assert (left["tokens_per_day"], left["requests_per_minute"]) == (None, 60)
    machine.json(limits.app, "unset", *of)
    assert [row["model"] for row in machine.json(limits.app, "list", *of)] == ["openai/*"]
    assert "openai/*" in machine.run(limits.app, "list", *of).stdout
    assert machine.run(limits.app, "unset", *of).exit_code == 1
    assert machine.run(limits.app, "set", *of).exit_code == 2
    assert machine.run(limits.app, "list", "--project", "default", "--key", key).exit_code == 2


def test_people_are_added_shown_changed_and_removed(machine: Machine) -> None:
    made = machine.json(users.app, "add", "a@example.com", "--role", "owner", "--name", "A")
    assert (made["role"], made["name"]) == ("owner", "A")
    assert machine.json(users.app, "show", "a@example.com") == made
    assert machine.json(users.app, "show", made["id"]) == made
    changed = machine.json(users.app, "update", made["id"], "--role", "reader")
    assert changed["role"] == "reader"
    assert "a@example.com" in machine.run(users.app, "list").stdout
    assert machine.json(users.app, "remove", made["id"])["id"] == made["id"]
    assert machine.json(users.app, "list") == []
    failed = machine.run(users.app, "show", "a@example.com")
    assert (failed.exit_code, "no user" in failed.stderr) == (1, True)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("onegate ", {"keys", "limits", "users", "projects", "up"}),
        ("onegate keys ", {"create", "rotate", "disable", "enable", "update", "policy"}),
        ("onegate keys rotate --g", {"--grace"}),
        ("onegate limits ", {"list", "set", "unset"}),
    ],
)
def test_the_shell_is_told_what_can_follow(typed: str, offered: set[str], tmp_path: Path) -> None:
    words = typed.split(" ")
    # As the installed script does: completion goes by the program's name.
    program = "import sys; sys.argv[0] = 'onegate'; from cli.__main__ import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "_ONEGATE_COMPLETE": "complete_bash",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(words) - 1),
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert offered <= set(ran.stdout.split()), ran.stderr
    assert "Usage" not in ran.stdout


@pytest.mark.parametrize("command", ["update", "rotate", "disable", "enable", "policy"])
def test_every_command_about_keys_teaches(machine: Machine, command: str) -> None:
    said = machine.run(keys_app, command, "--help")
    assert (said.exit_code, "Usage:" in said.stdout) == (0, True)
    assert keys.app is keys_app
