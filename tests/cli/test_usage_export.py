"""``onegate usage export``: everything, exactly, as a file that is whole or not there."""

import csv
import importlib
import io
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cli import export_files, usage_export
from cli.export_files import ExportError, Format, writer_of
from tests.cli.test_usage import Machine, machine, posted
from tests.services.usage.records import attempt_id

__all__ = ["machine"]

PARQUET: Any = importlib.import_module("pyarrow.parquet")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pages and row groups of few rows."""
    monkeypatch.setattr(usage_export, "PAGE_SIZE", 17)
    monkeypatch.setattr(export_files, "ROWS_AT_ONCE", 40)


def ids() -> list[str]:
    return [attempt_id(number) for number in reversed(range(120))]


def test_every_record_is_written_as_csv_json_and_parquet(machine: Machine, tmp_path: Path) -> None:
    files = {form: tmp_path / f"usage.{form}" for form in Format}
    for form, path in files.items():
        machine.text("usage", "export", "--format", form, "--out", str(path))
    with files[Format.CSV].open(newline="") as file:
        rows = list(csv.DictReader(file))
    objects = json.loads(files[Format.JSON].read_text())
    table = PARQUET.read_table(files[Format.PARQUET])
    assert [row["attempt_id"] for row in rows] == ids()
    assert [row["attempt_id"] for row in objects] == ids()
    assert table["attempt_id"].to_pylist() == ids()
    assert list(objects[0]) == list(rows[0]) == table.column_names
    cost = sum(record.cost_nano_usd for record in posted())
    assert sum(int(row["cost_nano_usd"]) for row in rows) == cost
    assert sum(Decimal(row["cost_usd"]) for row in objects) == Decimal(cost).scaleb(-9)
    assert sum(table["cost_usd"].to_pylist()) == Decimal(cost).scaleb(-9)
    types = {field.name: str(field.type) for field in table.schema}
    assert types["cost_nano_usd"] == "int64"
    assert types["cost_usd"] == "decimal128(38, 9)"
    assert types["started_at"] == "timestamp[us, tz=UTC]"
    assert dict(table["tags"][0].as_py()) == objects[0]["tags"]
    assert PARQUET.ParquetFile(files[Format.PARQUET]).num_row_groups == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "usage.csv",
        "usage.json",
        "usage.parquet",
    ]


def test_what_a_spreadsheet_would_run_is_only_text(machine: Machine) -> None:
    text = machine.text("usage", "export")
    (row,) = (row for row in csv.DictReader(io.StringIO(text)) if "HYPER" in row["customer"])
    assert row["customer"] == '\'=HYPER("x"),y\nz'


def test_filters_choose_and_sums_are_exported_too(machine: Machine, tmp_path: Path) -> None:
    found = json.loads(
        machine.text("usage", "export", "--format", "json", "--from", "48h", "--key", "key_1")
    )
    assert 0 < len(found) < 120
    assert {row["key_id"] for row in found} == {"key_1"}
    for name, value in (("customer", "acme"), ("feature", "chat"), ("team", "search")):
        assert machine.text("usage", "export", f"--{name}", value).count("\n") > 100
        assert machine.text("usage", "export", f"--{name}", "nobody").count("\n") == 1
    assert machine.text("usage", "export", "--format", "json", "--run", "none") == "[]\n"
    path = tmp_path / "sums.parquet"
    machine.text("usage", "export", "--format", "parquet", "--out", str(path), "--by", "key,team")
    sums = PARQUET.read_table(path).to_pylist()
    assert {(row["key"], row["team"]) for row in sums} == {
        (f"key_{number}", "search") for number in range(3)
    }
    assert sum(row["cost_nano_usd"] for row in sums) == sum(r.cost_nano_usd for r in posted())
    tagged: Any = machine.json("usage", "--by", "tag:environment")
    assert [(row["tag:environment"], row["attempts"]) for row in tagged] == [("prod", 120)]


def test_an_interrupted_export_leaves_nothing_behind(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "usage.csv"
    path.write_text("the export of yesterday\n")
    written: list[int] = []

    def interrupted(_writer: object, rows: list[object]) -> None:
        written.append(len(rows))
        assert len(list(tmp_path.iterdir())) == 2
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(export_files.CsvWriter, "write", interrupted)
    result = machine.run("usage", "export", "--out", str(path))
    assert result.exit_code != 0
    assert len(written) == 3
    assert [one.name for one in tmp_path.iterdir()] == ["usage.csv"]
    assert path.read_text() == "the export of yesterday\n"


def test_what_cannot_be_written_is_said(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "name a file" in machine.failure("usage", "export", "--format", "parquet")
    away = tmp_path / "none" / "usage.csv"
    assert "No such file" in machine.failure("usage", "export", "--out", str(away))
    monkeypatch.setattr(usage_export, "SUMS_MAX", 3)
    assert "group by less" in machine.failure("usage", "export", "--by", "key")

    def missing(_name: str) -> Iterator[None]:
        raise ModuleNotFoundError

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ExportError, match=r"onegate\[parquet\]"):
        writer_of(Format.PARQUET, ["model"], tmp_path / "x", io.StringIO())
