"""``onegate alerts`` against a real usage service in its own process."""

import json
from pathlib import Path

import typer
from typer.testing import CliRunner, Result

from cli import alerts
from cli.context import CliContext
from tests.cli.test_usage import process, settings_of


def invoke(directory: Path, *arguments: str) -> Result:
    app = typer.Typer()
    app.add_typer(alerts.app, name="alerts")
    context = CliContext(load=lambda: settings_of(directory))
    return CliRunner().invoke(app, ("alerts", *arguments), obj=context)


def test_without_a_way_to_tell_a_trial_says_what_to_set(tmp_path: Path) -> None:
    with process(tmp_path):
        found = invoke(tmp_path, "test")
        assert found.exit_code == 1
        assert "alerts.webhook_url" in found.output
        assert "alerts.smtp_host" in invoke(tmp_path, "test", "--mail", "a@b.c").output
        assert json.loads(invoke(tmp_path, "list", "--json").stdout) == []
        assert invoke(tmp_path, "list", "--dead").exit_code == 0
