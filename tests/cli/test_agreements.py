"""Mark-ups, agreed prices, credits and reratings: commands against a usage service of its own, on
every database.
"""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from cli import credits as credit_commands
from cli import invoices, prices, usage_calls
from cli.context import CliContext
from onegate.common.v1.token_usage_pb2 import TokenUsage
from onegate.usage.v1 import usage_service_pb2, usage_service_pb2_grpc
from runtime.config import Settings
from runtime.rpc import channel, unary
from tests.cli.test_invoices import FILE
from tests.cli.test_usage import process, settings_of
from tests.services.usage.records import record

ORG = ("--org", "org_1")
MODEL = "openai/only-here"


def invoke(directory: Path, *arguments: str) -> Result:
    app = typer.Typer()
    for name, made in (
        ("prices", prices.app),
        ("credits", credit_commands.app),
        ("invoice", invoices.app),
        ("usage", usage_calls.app),
    ):
        app.add_typer(made, name=name)
    context = CliContext(load=lambda: settings_of(directory))
    return CliRunner().invoke(app, arguments, obj=context)


def told(directory: Path, *arguments: str) -> Any:
    done = invoke(directory, *arguments, "-o", "json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def done(directory: Path, *arguments: str) -> str:
    result = invoke(directory, *arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


async def post(settings: Settings, first: int, day: datetime) -> None:
    """Three calls of a thousand tokens, charged a wrong price."""
    made = [record(first + number, cost_nano_usd=500) for number in range(3)]
    for one in made:
        one.model, one.price_version = MODEL, "operator:openai/only-here:old"
        one.tokens.CopyFrom(TokenUsage(input_tokens=1_000))
        one.started_at.FromDatetime(day)
    async with channel(settings.edge.usage, settings.rpc) as line:
        stub = usage_service_pb2_grpc.UsageServiceStub(line)
        request = usage_service_pb2.RecordUsageRequest(records=made)
        await unary(stub.RecordUsage, request, timeout_s=10)


def test_prices_are_put_right_marked_up_and_billed(tmp_path: Path, dsn: str) -> None:
    (tmp_path / "dsn").write_text(dsn)
    file = tmp_path / "invoice.toml"
    file.write_text(FILE)
    day = datetime(2026, 1, 31, 23, tzinfo=UTC)
    acme = (*ORG, "--customer", "acme")
    what = (*acme, "--month", "2026-01", "--file", str(file))
    with process(tmp_path):
        markup = ("prices", "markup", "12.5", *acme, "--from", "2026-01-01", "--source", "us")
        assert "agr_1: org_1 acme, *: +12.5 %." in done(tmp_path, *markup)
        assert "in force already" in done(tmp_path, *markup)
        asyncio.run(post(settings_of(tmp_path), 1, day))
        price = ("--input", "2", "--output", "2", "--from", "2026-01-01", "--source", "a test")
        done(tmp_path, "prices", "set", MODEL, *price)
        rerate = ("prices", "rerate", "--from", "2026-01-01", "--to", "2026-02-01")
        looked = told(tmp_path, *rerate, "--dry-run")
        (row,) = looked["models"]
        assert (row["calls"], row["cost_before_usd"], row["cost_after_usd"]) == (
            3,
            "0.0000015",
            "0.006",
        )
        assert row["charge_after_usd"] == "0.00675"
        assert "3 were put right" in done(tmp_path, *rerate)
        assert told(tmp_path, *rerate)["models"] == []
        (sums,) = told(tmp_path, "usage", "--by", "model")
        assert sums["cost_nano_usd"] == 6_000_000
        granted = told(
            tmp_path, "credits", "grant", "0.001", "--description", "Hello", *acme,
            "--until", "2026-01-31",
        )  # fmt: skip
        assert granted[0]["expires_at"] == "2026-02-01T00:00:00Z"
        issued = invoke(tmp_path, "invoice", "issue", *what, "--json")
        assert issued.exit_code == 0, issued.output
        totals = json.loads(issued.stdout)["document"]["totals"]
        assert (totals["usage_nano_usd"], totals["agreed_nano_usd"]) == (6_000_000, 750_000)
        assert (totals["credits_usd"], totals["net"]) == ("0.001", "0.00575")
        (left,) = told(tmp_path, "credits", "list")
        assert (left["drawn_usd"], left["left_usd"]) == ("0.001", "0.00")
        assert told(tmp_path, "credits", "revoke", left["id"])[0]["state"] == "revoked"
        done(tmp_path, "prices", "rate", MODEL, "--input", "1", "--output", "1", *acme,
             "--source", "us", "--from", "2026-01-01")  # fmt: skip
        refused = invoke(tmp_path, *rerate)
        assert refused.exit_code == 1
        assert "INV-000001" in refused.stderr
        changed = told(tmp_path, *rerate, "--billed")
        assert changed["invoices"] == ["INV-000001"]
        assert changed["models"][0]["charge_after_usd"] == "0.003"
        ended = done(tmp_path, "prices", "end", *acme, "--source", "us", "--model", MODEL)
        assert f"{MODEL}: ended" in ended
        listed = told(tmp_path, "prices", "agreements")
        assert [one["charged"][:8] for one in listed] == ["ended", "input_to", "+12.5 %"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("prices", "markup", "lots", *ORG, "--source", "x"), "no percentage"),
        (("prices", "markup", "1.2345", *ORG, "--source", "x"), "three decimal places"),
        (("prices", "rate", "m", "--input", "x", *ORG, "--source", "x"), "no amount"),
        (("prices", "rerate", "--from", "sometime"), "no time"),
        (("credits", "grant", "1", *ORG, "--description", "x", "--until", "later"), "no time"),
    ],
)
def test_what_makes_no_sense_is_explained(
    tmp_path: Path, arguments: tuple[str, ...], why: str
) -> None:
    result = invoke(tmp_path, *arguments)
    assert result.exit_code != 0
    assert why in " ".join(result.output.split())
