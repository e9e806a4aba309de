"""An organisation as a file: applied, compared, written; and every mistake with its line."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import Result

from cli import audit, declared, limits, organizations, policy, projects, providers
from cli.declared_file import DeclaredError, read
from cli.keys_change import app as keys_app
from services.auth.permissions import PERMISSIONS, PROJECT_PERMISSIONS
from tests.cli.test_administration import Machine, directory, machine

__all__ = ["directory", "machine"]

FILE = """\
version: 1
organization:
  models: {mode: deny, patterns: ["*/o3"]}
  limits:
    - {model: "*", requests_per_minute: 600}
    - {model: gpt-5, tokens_per_day: 1000000}
  key_policy: {max_lifetime_seconds: 7776000, networks: [10.0.0.0/8, "::1"]}
  data_policy:
    class_min: internal
    demands:
      - {class: confidential, regions: [us, eu], retention_days_max: 0, no_training: true}
      - {class: "", storage_regions: [eu], regions: [], no_training: false}
users:
  - {email: Ada@example.com, role: owner}
  - {email: bob@example.com}
roles:
  - {name: auditor, description: reads, permissions: [api.audit_logs.read]}
groups:
  - {name: ml, members: [bob@example.com], roles: [auditor]}
projects:
  - name: search
    residency: EU_STORAGE_PROCESSING
    models: {mode: allow, patterns: ["openai/*", "demo/*"]}
    limits: [{model: openai/*, requests_per_minute: 60, concurrent_calls: 4}]
    roles: [{name: keymaker, permissions: [api.api_keys.write]}]
    users: [{email: ada@example.com, role: owner}]
    groups: [{name: ml, role: keymaker}]
    service_accounts: [{name: bot, role: member}]
    keys:
      - name: ci
        models: ["demo/*"]
        tags: {team: search, feature: ci}
        limits: [{meter: requests, amount: 5, window_seconds: 10}]
        disabled: true
      - {name: bot, service_account: bot, scopes: [model.chat.request]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "org.yaml"


def did(machine: Machine, app: typer.Typer, file: Path, *arguments: str) -> Result:
    """A command on the file."""
    return machine.run(app, "-f", str(file), *arguments)


def test_a_file_is_applied_once_and_twice_is_the_same(machine: Machine, file: Path) -> None:
    file.write_text(FILE)
    first = did(machine, declared.diff_app, file)
    assert first.exit_code == 1, first.output
    assert "+ project search" in first.stdout
    applied = did(machine, declared.apply_app, file)
    assert applied.exit_code == 0, applied.output
    assert len(re.findall(r"search/(?:ci|bot): sk-og-", applied.stdout)) == 2
    for app in (declared.apply_app, declared.diff_app):
        again = did(machine, app, file)
        assert (again.exit_code, again.stdout) == (0, "Nothing to change.\n")
    key = next(row for row in machine.json(keys_app, "list") if row["name"] == "ci")
    assert (key["state"], key["tags"]) == ("disabled", {"team": "search", "feature": "ci"})
    shown = machine.run(policy.app, "show", "-o", "json").stdout
    assert all(word in shown for word in ("confidential", "no_training", "internal"))
    rows = {row["model"] for row in machine.json(limits.app, "list")}
    assert rows == {"*", "*/gpt-5"}
    events = {event["type"] for event in machine.json(audit.app, "list", "--limit", "100")}
    assert {"project.created", "role.created", "group.created", "api_key.created"} <= events


def test_a_change_is_shown_before_it_is_made_and_nothing_else_changes(
    machine: Machine, file: Path
) -> None:
    file.write_text(FILE)
    assert did(machine, declared.apply_app, file).exit_code == 0
    file.write_text(
        FILE.replace("requests_per_minute: 60, concurrent_calls: 4", "tokens_per_minute: 9")
        .replace("team: search, ", "")
        .replace("disabled: true", "disabled: false")
    )
    shown = did(machine, declared.diff_app, file, "-o", "json")
    assert shown.exit_code == 1
    for said in ("limits.set", "key.update", "key.disabled"):
        assert said in shown.stdout
    assert shown.stdout.count('"does"') == 3
    assert did(machine, declared.apply_app, file).exit_code == 0
    assert did(machine, declared.diff_app, file).exit_code == 0
    (row,) = machine.json(limits.app, "list", "--project", "search")
    assert (row["tokens_per_minute"], row["requests_per_minute"]) == (9, None)


def test_only_pruning_ends_what_the_file_has_not_and_asks_before(
    machine: Machine, file: Path
) -> None:
    file.write_text(FILE)
    assert did(machine, declared.apply_app, file).exit_code == 0
    keys = FILE.index("    keys:")
    file.write_text(FILE[:keys] + "    keys: []\n")
    assert did(machine, declared.diff_app, file).exit_code == 0
    pruned = did(machine, declared.diff_app, file, "--prune")
    assert (pruned.exit_code, pruned.stdout.count("- project search: key")) == (1, 2)
    refused = did(machine, declared.apply_app, file, "--prune")
    assert refused.exit_code == 1
    assert "ci" in {row["name"] for row in machine.json(keys_app, "list")}
    done = did(machine, declared.apply_app, file, "--prune", "--yes")
    assert done.exit_code == 0, done.output
    assert "ci" not in {row["name"] for row in machine.json(keys_app, "list")}
    # The first project came with the organisation and is not in the file.
    assert [row["name"] for row in machine.json(projects.app, "list")] == ["search"]


def exported(machine: Machine, organization: str) -> str:
    result = machine.run(declared.export_app, "--org", organization)
    assert result.exit_code == 0, result.output
    return result.stdout


def some(dice: random.Random, values: list[Any]) -> list[Any]:
    return dice.sample(values, dice.randrange(len(values) + 1))


def a_level(dice: random.Random) -> dict[str, Any]:
    """Random settings of an organisation or a project."""
    patterns = ["openai/*", "*/gpt-5", "demo/echo", "*"]
    return {
        "models": {"mode": dice.choice(["allow", "deny"]), "patterns": some(dice, patterns)},
        "limits": [
            {"model": model, "requests_per_minute": dice.randrange(9), "images_per_minute": 1}
            for model in some(dice, patterns)
        ],
        "key_policy": {
            "max_lifetime_seconds": dice.choice([0, 1000]),
            "default_lifetime_seconds": dice.choice([0, 900]),
            "networks": some(dice, ["10.0.0.0/8", "::1", "192.0.2.7"]),
            "tags": dict.fromkeys(some(dice, ["team", "ключ"]), "v"),
        },
        "data_policy": {
            "class_min": dice.choice(["", "internal"]),
            "demands": [
                {
                    "class": word,
                    "regions": some(dice, ["eu", "us"]),
                    "retention_days_max": dice.randrange(3),
                    "no_training": dice.choice([True, False]),
                }
                for word in some(dice, ["", "public", "confidential"])
            ],
        },
    }


def a_key(dice: random.Random, name: str, accounts: list[str]) -> dict[str, Any]:
    meters = ["requests", "tokens", "images"]
    return {
        "name": name,
        "service_account": dice.choice(["", *accounts]),
        "models": some(dice, ["openai/*", "demo/*"]),
        "denied_models": some(dice, ["*/o3"]),
        "networks": some(dice, ["10.1.0.0/16"]),
        "scopes": some(dice, ["model.chat.request", "api.model.read"]),
        "tags": dict.fromkeys(some(dice, ["feature"]), "x: y"),
        "limits": [
            {"meter": meter, "amount": 3, "window_seconds": dice.choice([7, 60])}
            for meter in some(dice, meters)
        ]
        + some(dice, [{"meter": "concurrency", "amount": 2}]),
        "disabled": dice.random() < 0.5,
    }


def an_organisation(dice: random.Random) -> dict[str, Any]:
    """A random file."""
    people = [f"u{number}@example.com" for number in range(4)]
    roles = [
        {"name": f"r{number}", "permissions": some(dice, sorted(PERMISSIONS)[:6])}
        for number in range(2)
    ]
    groups = [
        {"name": f"g{number}", "members": some(dice, people), "roles": some(dice, ["r0", "r1"])}
        for number in range(2)
    ]
    found = []
    for number in range(2):
        accounts = some(dice, ["a", "b"])
        found.append(
            {
                "name": f"p{number}",
                **a_level(dice),
                "roles": [{"name": "own", "permissions": some(dice, sorted(PROJECT_PERMISSIONS))}],
                "users": [{"email": email, "role": "owner"} for email in some(dice, people)],
                "groups": [{"name": name, "role": "own"} for name in some(dice, ["g0", "g1"])],
                "service_accounts": [{"name": name, "role": "member"} for name in accounts],
                "keys": [a_key(dice, name, accounts) for name in some(dice, ["k0", "k1"])],
            }
        )
    return {
        "version": 1,
        "organization": a_level(dice),
        "users": [{"email": email, "role": dice.choice(["owner", "reader"])} for email in people],
        "roles": roles,
        "groups": groups,
        "projects": found,
    }


@pytest.mark.parametrize("seed", range(3))
def test_what_is_exported_makes_the_same_organisation_elsewhere(
    machine: Machine, file: Path, seed: int
) -> None:
    one, other = (machine.json(organizations.app, "create", name)["id"] for name in ("a", "b"))
    file.write_text(yaml.safe_dump(an_organisation(random.Random(seed)), allow_unicode=True))
    everything = ("--prune", "--yes", "--org")
    applied = did(machine, declared.apply_app, file, *everything, one)
    assert applied.exit_code == 0, applied.output
    assert did(machine, declared.diff_app, file, "--prune", "--org", one).exit_code == 0
    text = exported(machine, one)
    assert "sk-og-" not in text
    file.write_text(text)
    assert did(machine, declared.diff_app, file, "--prune", "--org", one).exit_code == 0
    applied = did(machine, declared.apply_app, file, *everything, other)
    assert applied.exit_code == 0, applied.output
    assert exported(machine, other) == text


PROVIDERS = """\
version: 1
projects: [{name: search}]
providers:
  - name: openai
    kind: openai
    regions: [us, eu]
    retention_days: 30
    trains: false
    credentials:
      - {name: main, secret_env: OPENAI_MAIN}
      - {name: theirs, weight: 2, projects: [search], secret_file: "%s"}
  - {name: mine, kind: vllm, base_url: "http://10.0.0.7:8000/v1", free: true, models: [llama],
     credentials: [{name: main, secret_env: OPENAI_MAIN}]}
"""


def test_providers_are_applied_without_their_secrets_in_the_file(
    machine: Machine, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "theirs.key"
    secret.touch(mode=0o600)
    secret.write_text("key-of-theirs\n")
    file.write_text(PROVIDERS % secret)
    failed = did(machine, declared.apply_app, file)
    assert (failed.exit_code, "OPENAI_MAIN is not set" in failed.stderr) == (2, True)
    assert machine.json(providers.app, "list") == []
    monkeypatch.setenv("OPENAI_MAIN", "key-of-main")
    applied = did(machine, declared.apply_app, file)
    assert applied.exit_code == 0, applied.output
    rows = machine.json(providers.app, "list")
    assert [(row["provider"], row["credential"], row["weight"]) for row in rows] == [
        ("mine", "main", 1),
        ("openai", "main", 1),
        ("openai", "theirs", 2),
    ]
    assert (rows[1]["regions"], rows[1]["retention_days"], rows[1]["trains"]) == (
        ["eu", "us"],
        30,
        False,
    )
    assert rows[2]["for"][0].startswith("proj_")
    # Nothing is to be done, and so no secret is needed.
    monkeypatch.delenv("OPENAI_MAIN")
    assert did(machine, declared.apply_app, file).stdout == "Nothing to change.\n"
    text = machine.run(declared.export_app).stdout
    assert "key-of" not in text
    assert "secret" not in text
    file.write_text(text)
    assert did(machine, declared.diff_app, file, "--prune").exit_code == 0


def test_providers_change_move_and_end_as_the_file_says(
    machine: Machine, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", "one")
    two = "[{name: main, secret_env: KEY}, {name: spare, secret_env: KEY}]"
    at = "{name: p, kind: vllm, base_url: 'http://10.0.0.7/v1', trains: true, credentials: %s}"
    other = "{name: q, kind: openai, credentials: [{name: main, secret_env: KEY}]}"
    file.write_text(f"version: 1\nproviders:\n- {at % two}\n- {other}")
    assert did(machine, declared.apply_app, file).exit_code == 0
    one = "[{name: main, secret_env: KEY}]"
    moved = at.replace("10.0.0.7", "10.0.0.8").replace("true", "false") % one
    file.write_text(f"version: 1\nproviders:\n- {moved}")
    failed = did(machine, declared.apply_app, file)
    assert (failed.exit_code, "p#spare: needs its secret now" in failed.stderr) == (2, True)
    moved = at.replace("10.0.0.7", "10.0.0.8").replace("true", "false") % two
    file.write_text(f"version: 1\nproviders:\n- {moved}")
    shown = did(machine, declared.diff_app, file, "--prune").stdout
    assert "~ provider p: http://10.0.0.7/v1 -> http://10.0.0.8/v1" in shown
    assert "~ provider p: {trains=True} -> {trains=False}" in shown
    assert "- provider q" in shown
    assert did(machine, declared.apply_app, file, "--prune", "--yes").exit_code == 0
    file.write_text(f"version: 1\nproviders:\n- {{name: p, credentials: {one}}}")
    assert (
        "- provider credential p#spare" in did(machine, declared.diff_app, file, "--prune").stdout
    )
    assert did(machine, declared.apply_app, file, "--prune", "--yes").exit_code == 0
    (row,) = machine.json(providers.app, "list")
    assert (row["credential"], row["base_url"], row["trains"]) == (
        "main",
        "http://10.0.0.8/v1",
        False,
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{name: p, kind: openai}", "a new one needs `kind` and `credentials`"),
        ("{name: q, kind: groq}", "is of kind openai, which cannot change"),
        ("{name: q, credentials: [{name: main, weight: 9}]}", "cannot change its weight"),
        ("{name: q, credentials: [{name: b}]}", "q#b: needs its secret now"),
        ("{name: q, credentials: [{name: b, secret_env: A, secret_file: B}]}", "name one of"),
        ("{name: q, credentials: [{name: b, secret_file: /nowhere/key}]}", "/nowhere/key"),
    ],
)
def test_what_cannot_become_of_a_provider_ends_the_command_before_anything_is_done(
    machine: Machine, file: Path, monkeypatch: pytest.MonkeyPatch, row: str, said: str
) -> None:
    monkeypatch.setenv("KEY", "one")
    there = "{name: q, kind: openai, credentials: [{name: main, secret_env: KEY}]}"
    file.write_text(f"version: 1\nproviders:\n- {there}")
    assert did(machine, declared.apply_app, file).exit_code == 0
    file.write_text(f"version: 1\nusers: [{{email: new@example.com}}]\nproviders:\n- {row}")
    failed = did(machine, declared.apply_app, file)
    assert (failed.exit_code, said in " ".join(failed.stderr.split())) == (2, True), failed.stderr
    assert "new@example.com" not in machine.run(declared.export_app).stdout


def test_providers_are_the_operator_s_and_of_no_one_organisation(
    machine: Machine, file: Path
) -> None:
    file.write_text("version: 1\nproviders: []")
    made = machine.json(organizations.app, "create", "client")["id"]
    failed = did(machine, declared.apply_app, file, "--org", made)
    assert (failed.exit_code, "the operator's" in failed.stderr) == (2, True)
    assert "providers" not in exported(machine, made)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "version: 1"),
        ("version: 2", 0, "must be 1"),
        ("users: []", 1, "`version` is missing"),
        ("version: 1\nmodles: []", 2, "there is no field `modles`"),
        ("version: 1\nproject: []", 2, "did you mean `projects`?"),
        ("version: 1\nroutes: []", 2, "onegate.toml"),
        ("version: 1\nprojects: {}", 2, "must be a list"),
        ("version: 1\nprojects:\n  - name: 7", 3, "must be a text: write it in quotes"),
        ("version: 1\nprojects:\n  - {}", 3, "`name` is missing"),
        ("version: 1\nprojects:\n  - name: a\n  - name: a", 4, "twice"),
        ("version: 1\nversion: 1", 2, "there twice"),
        (
            "version: 1\norganization:\n  limits:\n    - model: a\n      requests_per_minute: -1",
            5,
            "must not be negative",
        ),
        (
            "version: 1\norganization:\n  key_policy:\n    networks:\n      - 10.1.2.3/8",
            5,
            "must be 10.0.0.0/8",
        ),
        ("version: 1\norganization:\n  models: {mode: maybe, patterns: []}", 3, "one of allow"),
        ("version: 1\nusers: [", 2, ""),
        ("version: 1\nusers: !!python/object:os.system {}", 2, "must be a list"),
    ],
)
def test_a_mistake_is_said_with_its_line(text: str, line: int, said: str) -> None:
    with pytest.raises(DeclaredError) as caught:
        read(text, "org.yaml")
    assert str(caught.value).startswith(f"org.yaml:{line}:" if line else "org.yaml:")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: 1\nfoo: 1", ":2: there is no field `foo`"),
        ("version: 1\nprojects: [{name: default, residency: EU_STORAGE}]", "cannot change"),
    ],
)
def test_a_file_that_cannot_be_applied_ends_the_command_with_two(
    machine: Machine, file: Path, text: str, said: str
) -> None:
    file.write_text(text)
    for app in (declared.diff_app, declared.apply_app):
        failed = did(machine, app, file)
        assert (failed.exit_code, said in failed.stderr) == (2, True), failed.stderr
    assert did(machine, declared.diff_app, file.with_name("none.yaml")).exit_code == 2


def test_a_step_that_auth_refuses_is_named_and_what_was_done_stays(
    machine: Machine, file: Path
) -> None:
    file.write_text(
        "version: 1\nroles: [{name: good}]\nprojects:\n"
        "  - {name: x, models: {mode: allow, patterns: [open ai]}}"
    )
    failed = did(machine, declared.apply_app, file)
    assert (failed.exit_code, "stopped at `~ project x: models" in failed.stderr) == (1, True)
    assert "+ role good" in failed.stdout
    file.write_text("version: 1\nroles: [{name: good}]")
    assert did(machine, declared.diff_app, file).exit_code == 0


def test_two_of_one_name_are_said_instead_of_guessed(machine: Machine) -> None:
    for _ in range(2):
        machine.json(keys_app, "create", "--name", "twin")
    failed = machine.run(declared.export_app)
    assert (failed.exit_code, "named 'twin'" in failed.stderr) == (2, True)
