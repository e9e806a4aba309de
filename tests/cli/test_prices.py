"""``onegate prices`` where what it is given is wrong; ``tests/e2e`` has the rest."""

from decimal import Decimal
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli import prices
from cli.context import CliContext
from cli.prices_file import PriceFileError, places, rate_of, sheets_of, usd_of
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
        (("--rate", "images"), "is no rate"),
        (("--rate", "images,size=1,size=2=3"), "is no rate"),
        (("--rate", "apples=1"), "is no meter"),
        (("--rate", "images,colour=red=1"), "is not known"),
        (("--rate", "images=-1"), "is no price"),
        (("--rate", "input_tokens,above=many=1"), "whole number"),
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


FILE = b"""
[[price]]
model = "openai/gpt-image-1"
source = "a contract"
from = 2026-12-01

[[price.rate]]
meter = "input_tokens"
usd = 5

[[price.rate]]
meter = "images"
size = "1024x1024"
quality = "high"
usd = "0.167"

[[price.rate]]
meter = "input_audio_seconds"
tier = "batch"
mode = "live"
above_input_tokens = 1000
usd = 0.0000001

[[price]]
model = "ollama/m"
source = "ours"
free = true
"""


def test_a_file_says_every_meter_and_tier_exactly() -> None:
    first, second = sheets_of(FILE, is_json=False)
    assert {str(place): usd_of(rate) for place, rate in places(first).items()} == {
        "input_tokens": Decimal(5),
        "images size=1024x1024 quality=high": Decimal("0.167"),
        "input_audio_seconds tier=batch above=1000 mode=live": Decimal("0.0000001"),
    }
    assert first.valid_from.ToJsonString() == "2026-12-01T00:00:00Z"
    assert (second.model, second.free, len(second.rates)) == ("ollama/m", True, 0)
    flag = "input_audio_seconds,above=1000,tier=batch,mode=live=0.0000001"
    assert rate_of(flag) == first.rates[2]


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"[", "no TOML"),
        (b"\xff", "no TOML"),
        (b"a = 1", "a list of"),
        (b"[[price]]\nmodel = 1", "must be text"),
        (b"[[price]]\nmodel = 'm'\nfrm = 1", "'frm' is not known"),
        (b"[[price]]\nmodel = 'm'\nfrom = 1", "must be a day"),
        (b"[[price]]\nmodel = 'm'\nrate = 1", "must be a list"),
        (b"[[price]]\n[[price.rate]]\nmeter = 'pages'\nusd = true", "no amount"),
    ],
)
def test_a_file_that_says_nonsense_is_explained(raw: bytes, why: str) -> None:
    with pytest.raises(PriceFileError, match=why):
        sheets_of(raw, is_json=False)


def test_an_import_needs_one_file() -> None:
    assert "Say which file" in said("import")
    assert "Say which file" in said("import", "--file", "a", "--litellm", "b")


def test_a_difference_names_each_rate_before_and_after() -> None:
    one = Difference(model="openai/m", sheet=sheet(3_000_000_000), why_not="", before=sheet(2))
    assert one.lines() == [
        {
            "rate": "input_tokens",
            "verdict": "changed",
            "usd_before": "0.000000002",
            "usd_after": "3.00",
            "per": "1M tokens",
        }
    ]
    gone = Difference(
        model="openai/m", sheet=PriceSheet(), why_not="", before=PriceSheet(model="openai/m")
    )
    assert gone.verdict == "removed"
