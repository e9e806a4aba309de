"""What operators may set, and which price applies when."""

from datetime import datetime, timedelta

import pytest

from onegate.usage.v1 import price_pb2
from onegate.usage.v1.price_pb2 import PriceSheet, Rate
from runtime.errors import GatewayError
from services.usage.prices import price_changes as module
from services.usage.prices.price_changes import Change, checked, in_force, overlaid
from tests.services.usage.records import NOON

INPUT, OUTPUT = price_pb2.METER_INPUT_TOKENS, price_pb2.METER_OUTPUT_TOKENS
HOUR = timedelta(hours=1)


def sheet(nano: int = 5, model: str = "openai/m", **fields: object) -> PriceSheet:
    rates = [Rate(meter=meter, nano_usd_per_million=nano) for meter in (INPUT, OUTPUT)]
    made = PriceSheet(model=model, rates=rates, source="a contract")
    made.MergeFrom(PriceSheet(**fields))  # type: ignore[arg-type]
    return made


def change(number: int, start: datetime, nano: int | None) -> Change:
    price = None if nano is None else checked(sheet(nano), start)
    return Change(number=number, model="openai/m", price=price, valid_from=start, recorded_at=NOON)


def shipped(at: datetime, until: datetime) -> list[PriceSheet]:
    """A price from a day ago on, and another from an hour on."""
    made: list[PriceSheet] = []
    for start, nano in ((NOON - 24 * HOUR, 1), (NOON + HOUR, 2)):
        if start < until or not made:
            one = sheet(nano)
            one.valid_from.FromDatetime(start)
            made.append(one)
    return made[-1:] if at >= NOON + HOUR else made


def told(*changes: Change, days: int = 1) -> list[tuple[float, int]]:
    """Hours after noon, and the rate from then on."""
    sheets = overlaid(changes, shipped, at=NOON, until=NOON + days * 24 * HOUR)
    return [
        ((one.valid_from.seconds - NOON.timestamp()) / 3600, one.rates[0].nano_usd_per_million)
        for one in sheets
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], [(-24, 1), (1, 2)]),
        ([change(1, NOON - HOUR, 7)], [(-1, 7)]),
        ([change(1, NOON, 7), change(2, NOON, 8)], [(0, 8)]),
        ([change(2, NOON - HOUR, 7), change(1, NOON - 2 * HOUR, 8)], [(-1, 7)]),
        ([change(1, NOON + 2 * HOUR, 7)], [(-24, 1), (1, 2), (2, 7)]),
        ([change(1, NOON - HOUR, 7), change(2, NOON - HOUR / 2, None)], [(-24, 1), (1, 2)]),
        ([change(1, NOON, 7), change(2, NOON + 3 * HOUR, None)], [(0, 7), (3, 2)]),
        ([change(1, NOON + 48 * HOUR, 7)], [(-24, 1), (1, 2)]),
    ],
)
def test_the_last_change_in_force_counts_and_without_one_what_is_shipped(
    changes: list[Change], expected: list[tuple[float, int]]
) -> None:
    assert told(*changes) == expected


def test_a_withdrawn_price_without_a_shipped_one_leaves_none() -> None:
    changes = [change(1, NOON - HOUR, 7), change(2, NOON, None)]
    assert overlaid(changes, lambda *_: [], at=NOON, until=NOON + HOUR) == []
    later = [change(1, NOON - HOUR, 7), change(2, NOON + HOUR, None)]
    assert len(overlaid(later, lambda *_: [], at=NOON, until=NOON + 2 * HOUR)) == 1
    assert in_force([], NOON) is None


def test_what_is_kept_has_a_version_that_names_its_rates_and_a_start() -> None:
    kept = checked(sheet(), NOON)
    assert kept.version.startswith("operator:openai/m:")
    assert kept.valid_from.ToDatetime() == NOON.replace(tzinfo=None)
    assert checked(sheet(), NOON + HOUR).version == kept.version
    assert checked(sheet(6), NOON).version != kept.version
    dated = sheet()
    dated.valid_from.FromDatetime(NOON + HOUR)
    assert checked(dated, NOON).valid_from == dated.valid_from
    free = checked(PriceSheet(model="openai/m", free=True, source="x"), NOON)
    assert free.version != kept.version
    vector = PriceSheet(model="openai/text-embed", rates=[Rate(meter=INPUT)], source="x")
    assert checked(vector, NOON).version
    told = change(1, NOON, 7).to_proto()
    assert (told.model, told.price.rates[0].nano_usd_per_million) == ("openai/m", 7)
    assert not change(1, NOON, None).to_proto().HasField("price")


def rated(*rates: Rate) -> PriceSheet:
    return PriceSheet(model="openai/m", rates=rates, source="x")


def at_year(year: int) -> PriceSheet:
    made = sheet()
    made.valid_from.seconds = int(datetime(year, 1, 1).timestamp())  # noqa: DTZ001
    return made


def beyond_time() -> PriceSheet:
    made = sheet()
    made.valid_from.seconds = 10**15
    return made


BASE = (Rate(meter=INPUT), Rate(meter=OUTPUT))
IMAGES, SEARCHES = price_pb2.METER_IMAGES, price_pb2.METER_WEB_SEARCHES


def test_pictures_are_priced_by_size_and_quality_without_tokens() -> None:
    rates = [Rate(meter=IMAGES, size=size, nano_usd_per_million=7) for size in ("1x1", "2x2")]
    one = checked(rated(*rates), NOON)
    other = checked(rated(rates[0], Rate(meter=IMAGES, mode="edit", nano_usd_per_million=7)), NOON)
    assert one.version != other.version


def test_versions_of_prices_that_were_set_before_there_were_sizes_are_what_they_were() -> None:
    assert checked(rated(*BASE), NOON).version == "operator:openai/m:56deb1fca465"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (sheet(model="vendor/m"), "kind of provider"),
        (sheet(model="gpt-4o"), "kind of provider"),
        (sheet(model="openai/"), "no `kind/name`"),
        (sheet(model="openai/a b"), "no `kind/name`"),
        (PriceSheet(model="openai/m", free=True), "source"),
        (sheet(source="x" * 501), "source"),
        (sheet(free=True), "free and have rates"),
        (rated(*BASE * 101), "at most"),
        (rated(*BASE, Rate(meter=99)), "meter"),  # type: ignore[arg-type]
        (rated(*BASE, Rate(nano_usd_per_million=1)), "meter"),
        (rated(Rate(meter=INPUT, nano_usd_per_million=-1), BASE[1]), "outside"),
        (rated(Rate(meter=INPUT, nano_usd_per_million=10**15 + 1), BASE[1]), "outside"),
        (rated(*BASE, Rate(meter=INPUT, above_input_tokens=-1)), "tier"),
        (rated(*BASE, Rate(meter=INPUT, service_tier="x" * 65)), "tier"),
        (rated(*BASE, BASE[0]), "two rates"),
        (rated(BASE[0]), "one for output"),
        (rated(BASE[0], Rate(meter=OUTPUT, above_input_tokens=5)), "one for output"),
        (rated(BASE[1]), "one for output"),
        (rated(Rate(meter=SEARCHES)), "one for output"),
        (rated(Rate(meter=IMAGES), BASE[1]), "one for output"),
        (rated(Rate(meter=IMAGES, mode="edit")), "one for output"),
        (rated(*BASE, Rate(meter=INPUT, size="1x1")), "only pictures"),
        (rated(*BASE, Rate(meter=INPUT, mode="x" * 65)), "tier"),
        (rated(Rate(meter=IMAGES, size="1x1"), Rate(meter=IMAGES, size="1x1")), "two rates"),
        (at_year(2019), "between"),
        (at_year(2101), "between"),
        (beyond_time(), "between"),
    ],
)
def test_what_cannot_be_charged_in_full_is_refused(wrong: PriceSheet, why: str) -> None:
    with pytest.raises(GatewayError, match=why):
        checked(wrong, NOON)


def test_a_longest_source_is_a_source() -> None:
    longest = PriceSheet(model="openai/m", rates=BASE, source="x" * module.SOURCE_CHARS_MAX)
    assert checked(longest, NOON).source == longest.source
