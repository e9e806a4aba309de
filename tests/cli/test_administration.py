"""``onegate projects``, ``orgs`` and ``audit`` against a real auth in a process of its own."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from cli import audit, organizations, projects
from cli.context import CliContext
from runtime.config import Settings
from tests.cli.test_keys import machine_in
from tests.services.auth.serving import process


class Machine:
    """The command line of a machine."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def run(self, app: typer.Typer, *arguments: str) -> Result:
        """What a command does."""
        return CliRunner().invoke(app, arguments, obj=CliContext(load=lambda: self.settings))

    def json(self, app: typer.Typer, *arguments: str) -> Any:
        """What a command prints for programs."""
        result = self.run(app, *arguments, "-o", "json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where an auth runs."""
    made = tmp_path_factory.mktemp("cli")
    with process(made):
        yield made


@pytest.fixture
def machine(directory: Path) -> Machine:
    return Machine(machine_in(directory).settings)


def test_a_project_is_made_listed_and_archived(machine: Machine) -> None:
    made = machine.json(projects.app, "create", "search", "--residency", "EU_STORAGE_PROCESSING")
    assert (made["name"], made["residency"]) == ("search", "EU_STORAGE_PROCESSING")
    listed = machine.run(projects.app, "list").stdout
    assert made["id"] in listed
    ended = machine.json(projects.app, "archive", made["id"])
    assert ended["archived_at"]
    assert made["id"] not in {row["id"] for row in machine.json(projects.app, "list")}
    assert made["id"] in {row["id"] for row in machine.json(projects.app, "list", "--all")}
    assert machine.run(projects.app, "archive", made["id"]).exit_code == 0


def test_a_second_organisation_has_projects_of_its_own(machine: Machine) -> None:
    made = machine.json(organizations.app, "create", "client")
    assert made["admin_key"].startswith("sk-og-admin-")
    assert [row["name"] for row in machine.json(organizations.app, "list")] == ["default", "client"]
    assert made["id"] in machine.run(organizations.app, "list").stdout
    project = machine.json(projects.app, "create", "theirs", "--org", made["id"])
    assert project["organization_id"] == made["id"]
    names = {row["name"] for row in machine.json(projects.app, "list", "--org", made["id"])}
    assert names == {"client", "theirs"}
    shown = machine.run(organizations.app, "create", "third").stdout
    assert "sk-og-admin-" in shown
    refused = machine.run(projects.app, "list", "--org", "org_nobody")
    assert (refused.exit_code, "no such organisation" in refused.stderr) == (1, True)


def test_the_log_is_shown_and_checked(machine: Machine, directory: Path) -> None:
    assert machine.json(audit.app, "verify")["entries"] == 0
    made = machine.json(projects.app, "create", "a")
    machine.json(projects.app, "create", "b")
    events = machine.json(audit.app, "list", "--project", made["id"])
    assert [event["type"] for event in events] == ["project.created"]
    assert events[0]["after"]["name"] == "a"
    assert machine.json(audit.app, "list", "--refused") == []
    assert len(machine.json(audit.app, "list", "--limit", "1")) == 1
    assert "project.created" in machine.run(audit.app, "list").stdout
    head = machine.json(audit.app, "verify")["head"]
    assert "The log is whole: 2 entries." in machine.run(audit.app, "verify", "--head", head).stdout
    assert machine.run(audit.app, "verify", "--head", "nonsense").exit_code == 2
    with sqlite3.connect(directory / "auth.db") as connection:
        connection.execute("UPDATE audit_events SET resource_id = 'x' WHERE sequence = 1")
    connection.close()
    broken = machine.run(audit.app, "verify")
    assert (broken.exit_code, "broken at entry 1" in broken.stderr) == (1, True)
    broken = machine.run(audit.app, "verify", "-o", "json")
    assert broken.exit_code == 1
    assert json.loads(broken.stdout)["broken"]["sequence"] == 1


def test_without_a_running_gateway_a_command_says_what_to_do(tmp_path: Path) -> None:
    machine = Machine(machine_in(tmp_path).settings)
    failed = machine.run(projects.app, "list")
    assert (failed.exit_code, "onegate up" in failed.stderr) == (1, True)
