"""``onegate invoice`` against a real usage service in its own process."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from cli import invoices
from cli.context import CliContext
from onegate.usage.v1 import usage_service_pb2, usage_service_pb2_grpc
from runtime.config import Settings
from runtime.rpc import channel, unary
from tests.cli.test_usage import process, settings_of
from tests.services.usage.records import record

FILE = """
[seller]
name = "Seller"
[invoice]
tax_name = "VAT"
tax_percent = "19"
due_days = 14
[[buyer]]
name = "Everybody"
[[buyer]]
customer = "acme"
name = "Łódź [bold]GmbH[/bold] 東京"
"""


def invoke(directory: Path, *arguments: str) -> Result:
    app = typer.Typer()
    app.add_typer(invoices.app, name="invoice")
    context = CliContext(load=lambda: settings_of(directory))
    return CliRunner().invoke(app, ("invoice", *arguments), obj=context)


async def post(settings: Settings) -> None:
    made = [record(number, cost_nano_usd=500_000_001) for number in range(3)]
    for one in made:
        one.started_at.FromDatetime(datetime(2026, 1, 31, 23, tzinfo=UTC))
    async with channel(settings.edge.usage, settings.rpc) as line:
        stub = usage_service_pb2_grpc.UsageServiceStub(line)
        request = usage_service_pb2.RecordUsageRequest(records=made)
        await unary(stub.RecordUsage, request, timeout_s=10)


def test_an_invoice_is_drafted_issued_exported_and_credited(tmp_path: Path) -> None:
    file = tmp_path / "invoice.toml"
    file.write_text(FILE)
    what = ("--org", "org_1", "--customer", "acme", "--month", "2026-01", "--file", str(file))
    with process(tmp_path):
        asyncio.run(post(settings_of(tmp_path)))
        page = tmp_path / "draft.html"
        draft = invoke(tmp_path, "draft", *what, "--out", str(page))
        assert draft.exit_code == 0, draft.output
        assert "Łódź [bold]GmbH[/bold]" in draft.output
        assert "asks for nothing" in page.read_text()
        money = ("--currency", "EUR", "--rate", "0.9", "--credit", "Goodwill=0.5")
        issued = invoke(
            tmp_path, "issue", *what, *money, "--margin", "10", "--request-id", "a", "--json"
        )
        assert issued.exit_code == 0, issued.output
        made = json.loads(issued.stdout)["document"]
        assert made["totals"]["usage_nano_usd"] == 1_500_000_003
        # (1.500000003 * 1.1 - 0.5) * 0.9 * 1.19 = 1.2316500035343, rounded once.
        assert made["totals"]["total"] == "1.23"
        for name in ("x.pdf", "x.html", "x.json"):
            out = invoke(tmp_path, "export", "INV-000001", "--out", str(tmp_path / name))
            assert out.exit_code == 0, out.output
        assert (
            "東"
            in invoke(tmp_path, "export", "INV-000001", "--out", str(tmp_path / "x.pdf")).output
        )
        assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF-")
        assert json.loads((tmp_path / "x.json").read_text()) == made
        note = invoke(tmp_path, "credit", "INV-000001", "--reason", "wrong rate")
        assert "CN-000001" in note.output
        listed = json.loads(invoke(tmp_path, "list", "--json").stdout)
        assert [(one["number"], one["total"]) for one in listed] == [
            ("CN-000001", "-1.23"),
            ("INV-000001", "1.23"),
        ]
        assert "credited" in invoke(tmp_path, "list").output
        assert "credited in whole" in invoke(tmp_path, "show", "INV-000001").output


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        ("", ("--month", "2026-01"), "[seller] is needed"),
        ("nonsense", ("--month", "2026-01"), "cannot be read"),
        ("[seller]\nname = 'x'\nnick = 'y'\n", ("--month", "2026-01"), "has no nick"),
        (FILE.replace('"19"', "19.0"), ("--month", "2026-01"), "text in quotes"),
        ("[seller]\nname = 'x'\n", ("--month", "2026-01"), "no [[buyer]]"),
        (FILE, ("--month", "2026-13"), "is no month"),
        (FILE, (), "--month 2026-10"),
        (FILE, ("--from", "2026-01-01"), "--month 2026-10"),
        (FILE, ("--month", "2026-01", "--credit", "5"), "is no credit"),
        (FILE, ("--month", "2026-01", "--credit", "a=b"), "no amount"),
    ],
)
def test_what_makes_no_invoice_is_told_in_a_line(
    tmp_path: Path, content: str, arguments: tuple[str, ...], said: str
) -> None:
    file = tmp_path / "invoice.toml"
    file.write_text(content)
    found = invoke(tmp_path, "draft", "--org", "org_1", "--file", str(file), *arguments)
    assert found.exit_code == 1
    assert said in " ".join(found.output.split())
