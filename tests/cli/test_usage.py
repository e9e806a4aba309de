"""``onegate usage`` and ``onegate prices`` against a real usage service in a process of its own."""

import asyncio
import csv
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from cli import usage, usage_calls
from cli.context import CliContext
from cli.usage_view import usd
from onegate.common.v1 import error_pb2
from onegate.usage.v1 import usage_record_pb2, usage_service_pb2, usage_service_pb2_grpc
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.config import EdgeSettings, RpcSettings, Settings, UsageSettings
from runtime.rpc import channel, unary
from tests.services.usage.records import attempt_id, record

NOW = datetime.now(UTC).replace(microsecond=0)


def settings_of(directory: Path) -> Settings:
    """On SQLite, or on the database that a file named `dsn` says."""
    address = f"unix:{directory}/usage.sock"
    named = directory / "dsn"
    dsn = named.read_text() if named.exists() else f"sqlite://{directory}/usage.db"
    return Settings(
        data_dir=str(directory),
        usage=UsageSettings(listen=address, dsn=dsn),
        edge=EdgeSettings(usage=address),
        rpc=RpcSettings(operator_token_file=str(directory / "operator.token")),
    )


@contextmanager
def process(directory: Path) -> Iterator[None]:
    """Usage, as ``onegate serve usage`` runs it."""
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from services.usage import server\n"
        "from tests.cli.test_usage import settings_of\n"
        "asyncio.run(server.run(settings_of(Path(sys.argv[1])), stop=asyncio.Event(),"
        " ready=lambda: print('ready', flush=True)))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(directory)], stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            running.send_signal(signal.SIGKILL)


def posted() -> list[UsageRecord]:
    """Calls of the last five days, one an hour; the newest last."""
    made = []
    for number in range(120):
        one = record(number, cost_nano_usd=1_000_000_001)
        # Half past, so that no minute that a test takes matters.
        one.started_at.FromDatetime(NOW - timedelta(hours=120.5 - number))
        made.append(one)
    made[7].model = "[red]anthropic/claude[/red]"
    made[8].outcome = usage_record_pb2.OUTCOME_CANCELLED
    made[8].certainty = usage_record_pb2.CERTAINTY_ESTIMATED
    made[8].error_reason = error_pb2.ERROR_REASON_CANCELLED
    made[8].first_token_us = 0
    made[8].upstream_status = 0
    made[9].attribution.customer = '=HYPER("x"),y\nz'
    return made


async def post(settings: Settings) -> None:
    async with channel(settings.edge.usage, settings.rpc) as line:
        stub = usage_service_pb2_grpc.UsageServiceStub(line)
        request = usage_service_pb2.RecordUsageRequest(records=posted())
        answer = await unary(stub.RecordUsage, request, timeout_s=10)
        assert answer.inserted == 120


class Machine:
    """The command line of a machine, with or without a running usage service."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.app = typer.Typer()
        self.app.add_typer(usage_calls.app, name="usage")
        self.app.add_typer(usage.prices_app, name="prices")

    def run(self, *arguments: str) -> Result:
        context = CliContext(load=lambda: self.settings)
        return CliRunner().invoke(self.app, arguments, obj=context)

    def text(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.text(*arguments, "-o", "json"))

    def csv(self, *arguments: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.text(*arguments, "-o", "csv"))))

    def failure(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code != 0
        assert "Traceback" not in result.output
        assert isinstance(result.exception, SystemExit)
        return result.stderr


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    directory = tmp_path_factory.mktemp("cli")
    with process(directory):
        asyncio.run(post(settings_of(directory)))
        yield Machine(settings_of(directory))


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["attempt_id"] for row in rows]


def test_the_latest_calls_come_first_and_more_on_request(machine: Machine) -> None:
    newest = [attempt_id(number) for number in reversed(range(120))]
    assert ids(machine.json("usage")) == newest[:50]
    assert ids(machine.json("usage", "--limit", "3")) == newest[:3]
    assert ids(machine.json("usage", "--limit", "5000")) == newest
    text = machine.text("usage")
    assert "--limit shows more" in text
    assert "models" in text
    assert "$120.00000012" in text
    assert "models" not in machine.text("usage", "--limit", "3")
    assert "--limit shows more" not in machine.text("usage", "--limit", "200")


def test_a_row_says_everything_that_is_known(machine: Machine) -> None:
    (row,) = machine.json("usage", "--limit", "1")
    assert row == {
        "attempt_id": attempt_id(119),
        "request_id": "req-59",
        "attempt_number": 1,
        "started_at": (NOW - timedelta(hours=1.5)).isoformat(timespec="milliseconds"),
        "key_id": "key_2",
        "project_id": "proj_1",
        "organization_id": "org_1",
        "model_requested": "gpt-4o",
        "model": "openai/gpt-4o",
        "provider": "openai",
        "endpoint": "chat.completions",
        "stream": True,
        "outcome": "completed",
        "error_reason": "",
        "upstream_status": 200,
        "duration_ms": 1500.0,
        "first_token_ms": 250.0,
        "input_tokens": 100,
        "cached_input_tokens": 40,
        "cache_write_tokens": 0,
        "output_tokens": 10,
        "reasoning_tokens": 4,
        "web_searches": 0,
        "service_tier": "",
        "cost_nano_usd": 1_000_000_001,
        "cost_usd": "1.000000001",
        "price_version": "source:openai/gpt-4o:1",
        "certainty": "reported",
        "finish_reason": "stop",
        "upstream_request_id": "",
        "credential": "",
        "end_user": "",
        "customer": "acme",
        "feature": "chat",
        "run": "",
        "data_class": "",
        "data_policy_version": "",
        "data_regions": "",
        "data_retention_days": None,
        "data_training": None,
        "tags": {"environment": "prod", "team": "search"},
    }


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        (["--request", "req-10"], [21, 20]),
        (["--key", "key_0", "--since", "10h"], [117, 114, 111]),
        (["--project", "proj_1", "--since", "5h"], [119, 117]),
        (["--model", "openai/gpt-4o", "--since", "120m"], [119]),
        (["--model", "openai/none"], []),
        (["--since", "1w", "--until", "118h"], [2, 1, 0]),
        (["--since", "90s"], []),
    ],
)
def test_calls_can_be_chosen(machine: Machine, arguments: list[str], numbers: list[int]) -> None:
    assert ids(machine.json("usage", *arguments)) == [attempt_id(n) for n in numbers]


def test_times_are_utc_unless_they_say_otherwise(machine: Machine) -> None:
    at = NOW - timedelta(hours=3)
    plain = at.replace(tzinfo=None).isoformat()
    assert ids(machine.json("usage", "--since", plain)) == [attempt_id(n) for n in (119, 118)]
    zoned = (at + timedelta(hours=2)).replace(tzinfo=None).isoformat() + "+02:00"
    assert machine.json("usage", "--since", zoned) == machine.json("usage", "--since", plain)
    day = f"{at:%Y-%m-%d}"
    assert machine.json("usage", "--since", day, "--until", day) == []


def test_sums_are_exact_and_come_dearest_first(machine: Machine) -> None:
    rows = machine.json("usage", "--by", "model")
    assert [row["model"] for row in rows] == ["openai/gpt-4o", "[red]anthropic/claude[/red]"]
    assert rows[0] == {
        "model": "openai/gpt-4o",
        "attempts": 119,
        "failures": 1,
        "input_tokens": 11_900,
        "cached_input_tokens": 4760,
        "output_tokens": 1190,
        "cost_nano_usd": 119_000_000_119,
        "cost_usd": "119.000000119",
        "uncertain_nano_usd": 0,
    }


@pytest.mark.parametrize(
    "by", ["model", "key", "project", "provider", "day", "feature", "customer"]
)
def test_sums_can_be_grouped_by_anything(machine: Machine, by: str) -> None:
    rows = machine.json("usage", "--by", by)
    assert sum(row["attempts"] for row in rows) == 120
    assert len({row[by] for row in rows}) == len(rows)


def test_sums_can_be_grouped_by_several_things_at_once(machine: Machine) -> None:
    rows = machine.json("usage", "--by", "key", "--by", "project", "--by", "key", "--since", "9w")
    assert len(rows) == 6
    assert list(rows[0])[:2] == ["key", "project"]


def test_tables_show_the_same_to_people(machine: Machine) -> None:
    table = machine.text("usage", "--limit", "500")
    assert "[red]anthropic/claude[/red]" in table
    assert "cancelled (cancelled)" in table
    assert "1.000000001 ≈" in table
    assert "1,500 ms" in table
    sums = machine.text("usage", "--by", "key")
    assert "120.00000012" in sums.splitlines()[-1]
    assert sums.splitlines()[-1].startswith("all")
    assert len(machine.text("usage", "--by", "provider").splitlines()) == 2


def test_csv_holds_the_same_rows(machine: Machine) -> None:
    rows = machine.csv("usage", "--limit", "500")
    assert [row["attempt_id"] for row in rows] == ids(machine.json("usage", "--limit", "500"))
    assert rows[0]["tags"] == "environment=prod team=search"
    odd = next(row for row in rows if row["attempt_id"] == attempt_id(9))
    # No spreadsheet takes it for a formula.
    assert odd["customer"] == '\'=HYPER("x"),y\nz'
    sums = machine.csv("usage", "--by", "key", "--by", "day")
    assert sum(int(row["cost_nano_usd"]) for row in sums) == 120 * 1_000_000_001
    assert machine.text("usage", "--key", "none", "-o", "csv").startswith("attempt_id,request_id,")
    assert machine.text("usage", "--by", "key", "--key", "none", "-o", "csv").startswith("key,")


def test_prices_are_listed_by_pattern(machine: Machine) -> None:
    sheets = machine.json("prices", "list", "anthropic/*")
    assert len(sheets) > 20
    assert all(sheet["model"].startswith("anthropic/") for sheet in sheets)
    (one,) = machine.json("prices", "list", "openai/gpt-4o-mini")
    base = {r["meter"]: r for r in one["rates"] if not r["service_tier"]}
    assert base["input_tokens"]["usd_per_million"] == "0.15"
    assert base["input_tokens"]["nano_usd_per_million"] == 150_000_000


def test_a_name_that_is_not_listed_has_its_price_too(machine: Machine) -> None:
    (dated,) = machine.json("prices", "list", "openai/gpt-4o-2024-08-06")
    (plain,) = machine.json("prices", "list", "openai/gpt-4o")
    assert dated["version"] == plain["version"]
    assert machine.json("prices", "list", "openai/none") == []
    assert "No price is known" in machine.text("prices", "list", "openai/none")


def test_all_prices_fit_a_table_and_a_csv(machine: Machine) -> None:
    table = machine.text("prices", "list")
    assert "google/gemini-2.5-pro" in table
    assert ">200,000" in table
    assert "priority" in table
    rows = machine.csv("prices", "list", "gemini/gemini-2.5-pro")
    assert {row["meter"] for row in rows} >= {"input_tokens", "output_tokens"}
    assert rows[0]["model"] == "gemini/gemini-2.5-pro"


@pytest.mark.parametrize("since", ["yesterday", "24", "-3h", "2026-13-01", "999999w"])
def test_a_time_that_is_none_is_explained(machine: Machine, since: str) -> None:
    said = machine.failure("usage", "--since", since)
    assert "--since" in said
    assert "2026-11-01" in said


def test_a_span_that_ends_before_it_starts_is_explained(machine: Machine) -> None:
    said = machine.failure("usage", "--since", "2026-11-02", "--until", "2026-11-01")
    assert "must not lie before" in said


def test_without_a_gateway_the_command_says_what_to_start(machine: Machine, tmp_path: Path) -> None:
    never_started = Machine(settings_of(tmp_path))
    assert "onegate up" in never_started.failure("usage")
    gone = replace(machine.settings, edge=EdgeSettings(usage=f"unix:{tmp_path}/none.sock"))
    assert "usage does not answer" in Machine(gone).failure("prices", "list")


def test_a_wrong_token_is_refused(machine: Machine, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("x" * 64)
    token.chmod(0o600)
    wrong = replace(machine.settings, rpc=RpcSettings(operator_token_file=str(token)))
    assert "operator" in Machine(wrong).failure("usage")


@given(st.integers(-(10**20), 10**20))
def test_money_is_shown_to_the_nano(nano: int) -> None:
    assert Decimal(usd(nano)) == Decimal(nano) / 10**9
    assert len(usd(nano).partition(".")[2]) >= 2
