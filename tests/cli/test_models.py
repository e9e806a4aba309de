"""``onegate models`` where no gateway answers; ``tests/e2e`` has it before a whole one."""

from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli import models
from cli.context import CliContext
from cli.models_view import model_fields
from onegate.router.v1.model_service_pb2 import Model
from runtime.config import EdgeSettings, RpcSettings, Settings


def said(settings: Settings, *arguments: str) -> str:
    app = typer.Typer()
    app.add_typer(models.app, name="models")
    result = CliRunner().invoke(app, ["models", *arguments], obj=CliContext(load=lambda: settings))
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    return result.stderr


@pytest.mark.parametrize("arguments", [("list",), ("show", "gpt-4o")])
def test_without_a_gateway_the_command_says_what_to_start(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    token = tmp_path / "operator.token"
    settings = Settings(
        edge=EdgeSettings(routers=(f"unix:{tmp_path}/none.sock",)),
        rpc=RpcSettings(operator_token_file=str(token)),
    )
    assert "run `onegate up` first" in said(settings, *arguments)
    token.write_text("x" * 64)
    token.chmod(0o600)
    assert "no router answers at" in said(settings, *arguments)
    alone = replace(settings, rpc=RpcSettings(operator_token_file=str(tmp_path / "gone")))
    assert "no router answers at" in said(alone, *arguments, "--key", "sk-og-any")


def test_what_is_not_known_is_null_and_not_zero() -> None:
    fields = model_fields(Model(id="a/b"))
    for name in ("context_length", "max_output_tokens", "knowledge", "shutdown_date", "created"):
        assert fields[name] is None
    assert fields["data_policy"] == {"region": None, "retention_days": None, "training": None}
