"""``onegate prices`` where what it is given is wrong; ``tests/e2e`` has the rest."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli import prices
from cli.context import CliContext
from cli.prices_view import Difference
from onegate.usage.v1 import price_pb2
from onegate.usage.v1.price_pb2 import PriceSheet
from runtime.config import Settings


def said(*arguments: str) -> str:
    app = typer.Typer()
    app.add_typer(prices.app, name="prices")
    context = CliContext(load=Settings)
    result = CliRunner().invoke(app, ["prices", *arguments], obj=context)
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--input", "cheap"), "is no amount of USD"),
        (("--input", "NaN"), "is no amount of USD"),
        (("--input", "1", "--from", "tomorrow"), "is no time"),
    ],
)
def test_a_price_that_is_none_is_explained(arguments: tuple[str, ...], why: str) -> None:
    assert why in said("set", "openai/m", "--source", "x", *arguments)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read"),
        ("{", "is no JSON"),
        ("[]", "one object"),
        (
            '{"m": {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": "x"}}',
            "not in LiteLLM's format",
        ),
    ],
)
def test_a_file_that_is_none_is_explained(tmp_path: Path, content: str | None, why: str) -> None:
    file = tmp_path / "prices.json"
    if content is not None:
        file.write_text(content)
    assert why in said("diff", "--litellm", str(file))


def sheet(nano: int) -> PriceSheet:
    rate = price_pb2.Rate(meter=price_pb2.METER_INPUT_TOKENS, nano_usd_per_million=nano)
    return PriceSheet(rates=[rate])


@pytest.mark.parametrize(
    ("before", "after", "why_not", "verdict"),
    [
        (None, 1, "", "new"),
        (1, 1, "", "same"),
        (2, 1, "", "changed"),
        (None, 1, "no meter", "left out"),
    ],
)
def test_an_import_says_what_it_would_do(
    before: int | None, after: int, why_not: str, verdict: str
) -> None:
    found = Difference(
        model="openai/m",
        sheet=sheet(after),
        why_not=why_not,
        before=None if before is None else sheet(before),
    )
    assert found.verdict == verdict
    assert found.changes is (verdict in ("new", "changed"))
