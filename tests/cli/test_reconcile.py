"""``onegate reconcile`` reads what providers export, and compares it in a real usage service."""

import asyncio
import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from cli import bill_files, bill_json
from cli.bill_files import FileError, examined, rows
from cli.bill_rows import BillError, FieldError, Row, count_of, decimal_of, span_of, time_of
from cli.context import CliContext
from cli.reconcile import reconcile_app
from onegate.usage.v1 import usage_service_pb2, usage_service_pb2_grpc
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.config import Settings
from runtime.rpc import channel, unary
from tests.cli.test_usage import process, settings_of
from tests.services.usage.records import record

DAY = datetime(2026, 11, 10, tzinfo=UTC)
DAY_S = int(DAY.timestamp())
DAY_US = DAY_S * 1_000_000
NEXT_US = DAY_US + 86_400_000_000


def openai_page(*results: dict[str, Any], day: int = 0) -> dict[str, Any]:
    start = DAY_S + day * 86_400
    bucket = {"object": "bucket", "start_time": start, "end_time": start + 86_400}
    return {"object": "page", "data": [{**bucket, "results": list(results)}], "has_more": False}


def anthropic_page(*results: dict[str, Any]) -> dict[str, Any]:
    bucket = {"starting_at": "2026-11-10T00:00:00Z", "ending_at": "2026-11-11T00:00:00Z"}
    return {"data": [{**bucket, "results": list(results)}], "has_more": False, "next_page": None}


OPENAI_USAGE = {
    "object": "organization.usage.completions.result",
    "input_tokens": 1000,
    "output_tokens": 500,
    "input_cached_tokens": 800,
    "num_model_requests": 5,
    "project_id": "proj_x",
    "user_id": None,
    "api_key_id": "key_x",
    "model": "gpt-4o-2024-08-06",
    "batch": None,
}
OPENAI_COST = {
    "object": "organization.costs.result",
    "amount": {"value": 0.06, "currency": "usd"},
    "line_item": "gpt-4o-2024-08-06, cached input",
    "project_id": None,
}
ANTHROPIC_USAGE = {
    "api_key_id": "apikey_1",
    "cache_creation": {"ephemeral_1h_input_tokens": 1000, "ephemeral_5m_input_tokens": 500},
    "cache_read_input_tokens": 200,
    "context_window": "0-200k",
    "model": "claude-sonnet-4-20250514",
    "output_tokens": 500,
    "server_tool_use": {"web_search_requests": 10},
    "service_tier": "standard",
    "uncached_input_tokens": 1500,
    "workspace_id": "wrkspc_1",
}
ANTHROPIC_COST = {
    "amount": "123.78912",
    "currency": "USD",
    "cost_type": "tokens",
    "description": "Claude Sonnet 4 Usage - Input Tokens",
    "model": "claude-sonnet-4-20250514",
    "workspace_id": None,
}
OPENAI_COSTS_CSV = (
    "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,line_item,"
    "project_id,organization_id,organization_name\n"
    f'{DAY_S},{DAY_S + 86400},a,b,0.8958740000000000,usd,"gpt-4o, input",proj_x,org,Personal\n'
    f"{DAY_S + 86400},{DAY_S + 172800},a,b,,,,,,\n"
)
OPENAI_USAGE_CSV = (
    "start_time,end_time,project_id,num_model_requests,user_id,api_key_id,model,batch,"
    "input_tokens,output_tokens,input_cached_tokens\n"
    f"{DAY_S},{DAY_S + 60},proj_x,3.0,,key_x,gpt-4o-2024-08-06,,4212,1673,1280\n"
)
CONSOLE_USAGE_CSV = (
    "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,"
    "usage_input_tokens_no_cache,usage_input_tokens_cache_write_5m,"
    "usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,usage_output_tokens,"
    "web_search_count,inference_geo,speed\n"
    "2026-11-10,claude-haiku-4-5-20251001,test-key,Default,standard,≤ 200k,100,20,3,4,50,0,,\n"
)
CONSOLE_COST_CSV = (
    "usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,"
    "list_price_usd,cost_type\n"
    "2026-11-10,Claude Haiku 4.5,Default,demo,message,≤ 200k,output,0.02,0.02,token\n"
)
GENERATION = (
    '{"generation_id": "gen-1", "created_at": "2026-11-10T00:00:00+00:00", "model": "m",'
    ' "tokens_prompt": 3, "tokens_completion": 4, "total_cost": 1.5e-05}\n\n'
)


def in_day(**fields: Any) -> Row:
    return Row(DAY_US, NEXT_US, **fields)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            json.dumps(openai_page(OPENAI_USAGE)),
            in_day(
                model="gpt-4o-2024-08-06",
                owners=("key_x", "proj_x"),
                input_tokens=1000,
                cached_input_tokens=800,
                output_tokens=500,
            ),
        ),
        (
            json.dumps(openai_page(OPENAI_COST)),
            in_day(model="gpt-4o-2024-08-06", cost_usd=Decimal("0.06")),
        ),
        (
            json.dumps(anthropic_page(ANTHROPIC_USAGE)),
            in_day(
                model="claude-sonnet-4-20250514",
                owners=("apikey_1", "wrkspc_1"),
                input_tokens=3200,
                cached_input_tokens=200,
                output_tokens=500,
            ),
        ),
        (
            json.dumps(anthropic_page(ANTHROPIC_COST)),
            in_day(model="claude-sonnet-4-20250514", cost_usd=Decimal("1.2378912")),
        ),
        (
            OPENAI_COSTS_CSV,
            in_day(model="gpt-4o", owners=("proj_x",), cost_usd=Decimal("0.895874")),
        ),
        (
            "\ufeff" + OPENAI_USAGE_CSV.replace(",", "\t").replace("\n", "\r\n"),
            Row(
                DAY_US,
                DAY_US + 60_000_000,
                model="gpt-4o-2024-08-06",
                owners=("key_x", "proj_x"),
                input_tokens=4212,
                cached_input_tokens=1280,
                output_tokens=1673,
            ),
        ),
        (
            CONSOLE_USAGE_CSV,
            in_day(
                model="claude-haiku-4-5-20251001",
                owners=("test-key", "Default"),
                input_tokens=127,
                cached_input_tokens=4,
                output_tokens=50,
            ),
        ),
        (
            CONSOLE_COST_CSV,
            in_day(model="Claude Haiku 4.5", owners=("demo", "Default"), cost_usd=Decimal("0.02")),
        ),
        (
            GENERATION,
            Row(
                DAY_US,
                DAY_US + 1,
                request_id="gen-1",
                model="m",
                input_tokens=3,
                output_tokens=4,
                cost_usd=Decimal("0.000015"),
            ),
        ),
        (
            f"date,model,cost\n{DAY_S * 1000},m,7\n",
            Row(DAY_US, DAY_US + 3_600_000_000, model="m", cost_usd=Decimal(7)),
        ),
    ],
)
def test_every_export_is_read(tmp_path: Path, text: str, expected: Row) -> None:
    path = tmp_path / "bill"
    path.write_text(text, newline="")
    bill = examined([path], {})
    (found,) = rows([path], {})
    assert found == expected
    assert bill.lines == 1
    assert bill.has_models
    assert bill.by_request == bool(expected.request_id)


def test_empty_buckets_say_which_time_was_looked_at(tmp_path: Path) -> None:
    pages = [openai_page(OPENAI_COST), openai_page(day=1), openai_page(day=2)]
    path = tmp_path / "pages.json"
    for text in (json.dumps(pages), "\n".join(map(json.dumps, pages)), json.dumps(pages, indent=1)):
        path.write_text(text)
        bill = examined([path], {})
        assert (bill.from_us, bill.before_us) == (DAY_US, DAY_US + 3 * 86_400_000_000)
        assert (bill.lines, bill.providers) == (1, {"openai"})


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text("wer;was;preis\nr-1;42;0.5\n")
    columns = {"id": "wer", "output": "was", "cost": "preis"}
    assert list(rows([path], columns)) == [
        Row(request_id="r-1", output_tokens=42, cost_usd=Decimal("0.5"))
    ]
    with pytest.raises(FileError, match="no column 'who'"):
        examined([path], {"id": "who"})
    with pytest.raises(FileError, match="Name its columns"):
        examined([path], {})
    with pytest.raises(FileError, match="neither an id"):
        examined([path], {"cost": "preis"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no lines"),
        ("a,a\n", ":1: a column is named twice"),
        ("id,cost\nx,1\ny\n", ":3: 1 values under 2 columns"),
        ('id,cost\nx,"1\n', "this is no CSV"),
        ("id,cost\nx,1\n\n,2\n", ":4: id is empty"),
        ("id,cost\nx,dear\n", ":2: cost must be a number, not 'dear'"),
        ("id,cost\nx,NaN\n", ":2: cost must be a number"),
        ("id,cost\nx,1e13\n", ":2: cost is absurd"),
        ("id,cost\nx,1e40\n", ":2: cost has too many digits"),
        ("id,input_tokens\nx,1.5\n", ":2: input_tokens must be a whole number"),
        ("id,input_tokens\nx,9999999999999\n", ":2: input_tokens is absurd"),
        ("id,cost,time\nx,1,soon\n", ":2: time is no time: 'soon'"),
        (f"id,cost\n{'x' * 513},1\n", "longer than 512"),
        (OPENAI_COSTS_CSV.replace(",usd,", ",eur,"), ":2: amount_value is in eur: only USD"),
        ("\0\0", ":1: this is neither CSV nor JSON"),
        ('{"id": "x",\n "cost": }', ":2: this is no JSON"),
        ('[{"id": "x", "cost": 1}', "the file ends within an array"),
        ("[3]", "here must be an object"),
        ("{3}", "here must be the name of a field"),
        ('{"a" 3}', "here must be a colon"),
        ('[]\n\n"x"', ":3: here must be an object or an array"),
        ('{"id": 3, "cost": 1}', ":1: id must be a text"),
        ('{"id": "x", "cost": true}', ":1: cost must be a number"),
        (json.dumps([{"start_time": 1, "end_time": 2, "results": 3}]), "results must be a list"),
        (json.dumps(openai_page({"amount": 3})), "amount must be an object"),
        (
            json.dumps(anthropic_page({"model": "m", "cache_creation": 3})),
            "cache_creation must be an object",
        ),
        ('{"start_time": 1, "end_time": 2, "results": []}\n{"start_time": 1}', "no 'end_time'"),
        (json.dumps(openai_page()), "nothing in it says"),
        ('{"id": "x", "cost": ' + "1" * 5000 + "}", "number is too long"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "bill"
    path.write_text(text)
    with pytest.raises(FileError) as refused:
        examined([path], {})
    assert said in str(refused.value)


def test_files_that_cannot_be_one_bill_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, days, latin = (tmp_path / name for name in ("r.csv", "d.csv", "l.csv"))
    requests.write_text("id,cost\nx,1\n")
    days.write_text(OPENAI_COSTS_CSV)
    latin.write_bytes(b"id,cost\n\xff,1\n")
    for paths, said in (
        ([requests, days], "cannot be one bill"),
        ([requests, requests], "given twice"),
        ([latin], "no text in UTF-8"),
        ([tmp_path / "none"], "No such file"),
        ([tmp_path], "Is a directory"),
    ):
        with pytest.raises(FileError, match=said):
            examined(paths, {})
    monkeypatch.setattr(bill_files, "LINES_MAX", 0)
    with pytest.raises(FileError, match="more than 0 lines"):
        examined([requests], {})
    monkeypatch.setattr(bill_files, "FILE_BYTES_MAX", 3)
    with pytest.raises(FileError, match="larger"):
        examined([requests], {})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
OBJECTS = st.lists(
    st.dictionaries(st.text(max_size=4).filter(lambda name: name != "data"), JSON, max_size=4),
    max_size=6,
)


@given(OBJECTS, st.integers(1, 9), st.sampled_from([None, 1]))
def test_objects_are_read_in_pieces_of_any_length(
    found: list[dict[str, Any]], length: int, indent: int | None
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bill_json, "PIECE_CHARS", length)
        for text in (
            json.dumps(found, indent=indent),
            json.dumps({"object": "page", "n": 12, "data": found, "more": False}, indent=indent),
            "\n".join(json.dumps(one, indent=indent) for one in found),
        ):
            read = list(bill_json.objects(io.StringIO(text)))
            assert [one for _, one in read] == found
            lines = [number for number, _ in read]
            assert lines == sorted(lines)


def test_an_object_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bill_json, "PIECE_CHARS", 16)
    monkeypatch.setattr(bill_json, "OBJECT_CHARS_MAX", 100)
    with pytest.raises(BillError):
        list(bill_json.objects(io.StringIO('{"a": "' + "x" * 10_000)))


def test_numbers_are_what_is_written() -> None:
    assert count_of("3.0", "n") == 3
    assert count_of(None, "n") == count_of("", "n") == 0
    fine = "0.100000000000000000000000000001"
    assert format(decimal_of(fine, "n"), "f") == fine
    assert time_of("2026-11-10 00:00:00", "t") == time_of(DAY_S, "t") == DAY_US
    assert time_of("2026-11-10T01:00:00.5+01:00", "t") == DAY_US + 500_000
    assert time_of(DAY_S * 1000, "t") == time_of(str(DAY_S), "t") == DAY_US
    assert span_of("2026-11-10", "t") == (DAY_US, NEXT_US)
    for wrong in (0, -5, 10**40, "0"):
        with pytest.raises(FieldError):
            time_of(wrong, "t")


def posted() -> list[UsageRecord]:
    """Ten calls a day over three days, each with the provider's id."""
    made = []
    for number in range(30):
        one = record(number, cost_nano_usd=1_000_001, upstream_request_id=f"chatcmpl-{number}")
        one.started_at.FromDatetime(DAY + timedelta(days=number // 10, hours=1 + number % 10))
        made.append(one)
    return made


class Desk:
    """The command, and where its files lie."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.settings = settings
        self.directory = directory

    def file(self, name: str, text: str) -> str:
        path = self.directory / name
        path.write_text(text)
        return str(path)

    def run(self, *arguments: str) -> Result:
        context = CliContext(load=lambda: self.settings)
        return CliRunner().invoke(reconcile_app, arguments, obj=context)

    def json(self, *arguments: str) -> Any:
        result = self.run(*arguments, "-o", "json")
        assert result.exit_code in (0, 1), result.output
        found = json.loads(result.stdout)
        assert bool(found["differences"]) == (result.exit_code == 1)
        return found


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    directory = tmp_path_factory.mktemp("reconcile")
    with process(directory):
        settings = settings_of(directory)

        async def post() -> None:
            async with channel(settings.edge.usage, settings.rpc) as line:
                stub = usage_service_pb2_grpc.UsageServiceStub(line)
                request = usage_service_pb2.RecordUsageRequest(records=posted())
                await unary(stub.RecordUsage, request, timeout_s=10)

        asyncio.run(post())
        yield settings


@pytest.fixture
def desk(running: Settings, tmp_path: Path) -> Desk:
    return Desk(running, tmp_path)


def requests_csv(numbers: range, cost: str = "0.001000001") -> str:
    head = "id,created,model,prompt_tokens,cached_tokens,completion_tokens,cost\n"
    lines = (
        f"chatcmpl-{n},{(DAY + timedelta(days=n // 10, hours=1 + n % 10)).isoformat()},gpt-4o,"
        f"100,40,10,{cost}\n"
        for n in numbers
    )
    return head + "".join(lines)


def test_a_bill_that_agrees_ends_well(desk: Desk) -> None:
    bill = desk.file("all.csv", requests_csv(range(30)))
    result = desk.run(bill, "--provider", "openai")
    assert result.exit_code == 0, result.output
    assert "30 agree: no difference" in result.stdout
    assert "0.03000003" in result.stdout
    again = desk.json(bill)
    assert again["differences"] == []
    assert again["result"]["earlier_id"]
    assert again["result"]["matched_by"] == "request"
    listed = json.loads(desk.run("--list", "-o", "json").stdout)
    assert {row["sha256"] for row in listed} >= {again["result"]["sha256"]}
    assert "all.csv" in desk.run("--list").stdout
    assert "all.csv" in desk.run("--list", "-o", "csv").stdout


def test_differences_are_listed_in_every_form(desk: Desk) -> None:
    text = requests_csv(range(2, 30)).replace("chatcmpl-9,", "@theirs,", 1)
    bill = desk.file("bill.csv", text)
    since = ("--since", "2026-11-10")
    found = desk.json(bill, *since)
    kinds = {one["request_id"]: one["differs"] for one in found["differences"]}
    only_ours = {f"chatcmpl-{number}": ["only_ours"] for number in (0, 1, 9)}
    assert kinds == {**only_ours, "@theirs": ["only_theirs"]}
    assert found["result"]["agreed"] == 27
    result = desk.run(bill, *since, "-o", "csv")
    assert result.exit_code == 1
    table = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["request_id"] for row in table] == [
        "'@theirs", "chatcmpl-0", "chatcmpl-1", "chatcmpl-9"
    ]  # fmt: skip
    assert table[0]["theirs_cost_usd"] == "0.001000001"
    assert "27 agree: 1 only theirs, 3 only ours" in result.stderr
    shown = desk.run(bill, *since, "--limit", "1").stdout
    assert "and 3 more" in shown


def test_buckets_are_compared_with_the_provider_that_is_billed(desk: Desk) -> None:
    results = [
        {**OPENAI_USAGE, "input_tokens": 600, "output_tokens": 60, "input_cached_tokens": 240},
        {**OPENAI_USAGE, "model": "gpt-4o", "input_tokens": 400, "output_tokens": 40,
         "input_cached_tokens": 160},
    ]  # fmt: skip
    usage = desk.file("usage.json", json.dumps(openai_page(*results)))
    assert desk.json(usage)["result"]["agreed"] == 1
    assert len(desk.json(usage, "--exact-models")["differences"]) == 2
    cost = {**OPENAI_COST, "amount": {"value": 0.01000002, "currency": "usd"}}
    costs = desk.file("costs.json", json.dumps(openai_page(cost)))
    (one,) = desk.json(costs)["differences"]
    assert (one["differs"], one["theirs"]["cost_usd"], one["ours"]["cost_usd"]) == (
        ["cost"],
        "0.01000002",
        "0.01000001",
    )
    assert "+0.00000001" in desk.run(costs).stdout
    assert desk.json(costs, "--tolerance", "0.00000001")["differences"] == []
    assert len(desk.json(costs, "--tolerance", "0.000000009")["differences"]) == 1
    both = desk.json(usage, costs, "--tolerance", "1")
    assert both["result"]["theirs"]["input_tokens"] == 1000
    assert both["result"]["agreed"] == 1
    assert desk.json(usage, "--model", "gpt-4o-2024-08-06=gpt-5")["result"]["only_theirs"] == 1
    keyed = desk.json(usage, "--credential", "key_x=main")
    assert {one["credential"] for one in keyed["differences"]} == {"main", ""}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tolerance", "x"], "no amount"),
        (["--tolerance", "-1"], "no amount"),
        (["--column", "id"], "PART=COLUMN"),
        (["--column", "colour=x"], "a part is one of"),
        (["--model", "=x"], "THEIRS=OURS"),
        (["--since", "soon"], "no time"),
        (["--since", "2026-11-12", "--until", "2026-11-11"], "ends before it begins"),
        (["--column", "id=wer"], "no column"),
    ],
)
def test_what_cannot_be_compared_is_no_difference(
    desk: Desk, arguments: list[str], said: str
) -> None:
    bill = desk.file("bill.csv", requests_csv(range(3)))
    result = desk.run(bill, *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", "").split())
    assert "Traceback" not in result.output


def test_a_bill_without_times_needs_one(desk: Desk) -> None:
    bill = desk.file("bill.csv", "id,cost\nchatcmpl-0,0.001000001\n")
    assert "--since and --until" in desk.run(bill).output
    found = desk.json(bill, "--since", "2026-11-10", "--until", "2026-11-10T02:00")
    assert found["result"]["agreed"] == 1
    assert desk.run().exit_code == 2


def test_without_usage_nothing_was_compared(tmp_path: Path) -> None:
    away = Desk(settings_of(tmp_path), tmp_path)
    bill = away.file("bill.csv", requests_csv(range(3)))
    assert away.run(bill).exit_code == 2
    (tmp_path / "operator.token").write_text("t" * 64)
    (tmp_path / "operator.token").chmod(0o600)
    result = away.run(bill)
    assert (result.exit_code, "usage does not answer" in result.output) == (2, True)
