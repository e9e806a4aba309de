"""``onegate budgets`` and ``onegate ledger`` against a real usage service in its own process."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from cli import budgets, ledger
from cli.context import CliContext
from tests.cli.test_usage import process, settings_of


def invoke(directory: Path, *arguments: str) -> Result:
    app = typer.Typer()
    app.add_typer(budgets.app, name="budgets")
    app.add_typer(ledger.app, name="ledger")
    context = CliContext(load=lambda: settings_of(directory))
    return CliRunner().invoke(app, arguments, obj=context)


def test_a_budget_is_set_shown_and_deleted(tmp_path: Path) -> None:
    with process(tmp_path):
        options = ("--customer", "acme", "--at", "80", "--mail", "a@b.c")
        made = invoke(tmp_path, "budgets", "set", "12.5", "--org", "org_1", *options)
        assert made.exit_code == 0, made.output
        (shown,) = json.loads(invoke(tmp_path, "budgets", "list", "--json").stdout)
        assert shown["id"] in made.stdout
        assert (shown["scope"], shown["subject"], shown["per"]) == ("customer", "acme", "month")
        assert (shown["limit_usd"], shown["mode"]) == ("12.50", "strict")
        assert (shown["alert_percents"], shown["alert_recipients"]) == ([80], ["a@b.c"])
        (balance,) = json.loads(invoke(tmp_path, "budgets", "show", "--json").stdout)
        assert (balance["spent_usd"], balance["left_usd"]) == ("0.00", "12.50")
        assert "customer acme" in invoke(tmp_path, "budgets", "list").stdout
        assert "12.50" in invoke(tmp_path, "budgets", "show").stdout
        verified = json.loads(invoke(tmp_path, "ledger", "verify", "--json").stdout)
        assert (verified["accounts"], verified["faults"]) == (1, [])
        with closing(sqlite3.connect(tmp_path / "usage.db")) as spoiling:
            spoiling.execute("UPDATE ledger_accounts SET posted_nano_usd = 7")
            spoiling.commit()
        assert "kept as 7" in invoke(tmp_path, "ledger", "verify").stderr
        assert (
            "1 accounts were put right" in invoke(tmp_path, "ledger", "verify", "--rebuild").stdout
        )
        assert "1 accounts" in invoke(tmp_path, "ledger", "verify").stdout
        assert invoke(tmp_path, "budgets", "delete", shown["id"]).exit_code == 0
        assert json.loads(invoke(tmp_path, "budgets", "list", "--json").stdout) == []
        gone = invoke(tmp_path, "budgets", "delete", shown["id"])
        assert gone.exit_code != 0
        assert "no budget" in gone.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("set much --org org_1", "no amount"),
        ("set nan --org org_1", "no amount"),
        ("set 1e12 --org org_1", "no amount"),
        ("set 5 --org org_1 --key k --run r", "Name one"),
    ],
)
def test_a_budget_that_is_none_is_explained(tmp_path: Path, arguments: str, why: str) -> None:
    result = invoke(tmp_path, "budgets", *arguments.split())
    assert result.exit_code != 0
    assert why in " ".join(result.stderr.split())
