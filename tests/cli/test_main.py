"""The ``onegate`` command: what each process of it holds, and how mistakes are answered."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import GROUPS, app
from cli.serve import SERVICES


def held_after(code: str) -> set[str]:
    """The top-level modules of a process that has run the code."""
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return {name.partition(".")[0] for name in shown.stdout.split()}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_holds_no_library_of_the_command_line(service: str) -> None:
    held = held_after(f"from cli import __main__, serve; serve.run_of({service!r})")
    assert "grpc" in held
    assert not held & {"typer", "rich"}


def test_a_command_holds_no_service_and_no_administration() -> None:
    assert not held_after("import cli.main") & {"grpc", "services", "edge", "sqlalchemy"}


def test_who_keeps_the_processes_holds_nothing_else() -> None:
    held = held_after("import cli.keeper")
    assert not held & {"typer", "rich", "grpc", "uvloop", "google", "services", "edge", "onegate"}


@pytest.mark.parametrize(
    ("service", "libraries"),
    [
        ("auth", {"cryptography", "jwt"}),
        ("usage", {"cryptography"}),
        ("router", {"httpx2", "cryptography", "valkey"}),
        ("edge", {"sqlalchemy", "cryptography"}),
    ],
)
def test_a_service_holds_no_library_before_somebody_uses_it(
    service: str, libraries: set[str]
) -> None:
    assert not held_after(f"from cli import serve; serve.run_of({service!r})") & libraries


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_of_commands_is_there_when_it_is_asked_for(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert f"Usage: root {name}" in result.output


def test_help_lists_every_command() -> None:
    listed = CliRunner().invoke(app, ["--help"]).output
    assert all(f" {name} " in listed for name in ("up", "serve", "version", *GROUPS))


def test_a_mistyped_command_is_told_the_nearest_one() -> None:
    result = CliRunner().invoke(app, ["usag"])
    assert result.exit_code == 2
    assert "Did you mean 'usage'?" in result.output


@pytest.mark.parametrize("entry", ["cli", "cli.main"])
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["edge", "--port", "0x10"], "argument --port: invalid int value"),
        (["hub"], "invalid choice: 'hub'"),
        (["edge", "--config", "none.toml"], "error: "),
    ],
)
def test_a_service_with_wrong_flags_ends_with_what_is_wrong(
    entry: str, arguments: list[str], complaint: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", entry, "serve", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert complaint in ended.stderr


@pytest.mark.parametrize("service", ["auth", "usage"])
def test_a_service_on_sqlite_holds_no_driver_of_postgresql(service: str, tmp_path: Path) -> None:
    code = (
        f"from cli import serve; serve.run_of({service!r})\nfrom runtime.sql import open_database"
    )
    assert not held_after(f"{code}\nopen_database('sqlite://{tmp_path}/x.db')") & {"psycopg"}
