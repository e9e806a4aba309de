"""Dates, hours and service tiers of prices, on models made up here."""

from datetime import UTC, date, datetime, time, timedelta, timezone

import pytest

from onegate.usage.v1 import price_pb2, price_service_pb2
from services.usage.prices.pricing import Catalogue, Line, PricedModel, Tariff, Vendor, schedule

INPUT = price_pb2.METER_INPUT_TOKENS
OUTPUT = price_pb2.METER_OUTPUT_TOKENS
DAY = timedelta(days=1)


def line(rate: int, meter: int = INPUT, tier: str = "") -> tuple[Line, ...]:
    return (Line(meter=meter, nano_usd_per_million=rate, service_tier=tier),)


def model(*tariffs: Tariff, tiers: tuple[Tariff, ...] = ()) -> PricedModel:
    return PricedModel(
        id="vendor/m",
        source="source-1",
        origin="the vendor's page",
        tariffs=tariffs,
        tiers=tiers,
        facts=price_service_pb2.ModelFacts(name="M"),
    )


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def told(priced: PricedModel, at: str, until: str) -> list[tuple[str, int]]:
    """The sheets as ``(valid_from, rate of the input)``."""
    return [
        (
            sheet.valid_from.ToDatetime().isoformat(" ", "minutes")
            if sheet.HasField("valid_from")
            else "",
            sheet.rates[0].nano_usd_per_million,
        )
        for sheet in schedule(priced, "kind/m", at=moment(at), until=moment(until))
    ]


PEAK = model(
    Tariff(lines=line(1)),
    Tariff(lines=line(2), starts_on=date(2026, 8, 17)),
    Tariff(lines=line(9), hours=(time(1, tzinfo=UTC), time(4, tzinfo=UTC))),
)
NIGHT = model(
    Tariff(lines=line(5)),
    Tariff(lines=line(3), hours=(time(22, tzinfo=UTC), time(6, tzinfo=UTC))),
)
DATED = model(
    Tariff(lines=line(1)),
    Tariff(lines=line(2), starts_on=date(2026, 3, 1)),
    Tariff(lines=line(3), starts_on=date(2026, 6, 1)),
)


@pytest.mark.parametrize(
    ("priced", "at", "until", "sheets"),
    [
        pytest.param(
            model(Tariff(lines=line(7))), "2026-01-01", "2030-01-01", [("", 7)], id="one for ever"
        ),
        pytest.param(
            DATED,
            "2026-01-01",
            "2026-12-01",
            [("", 1), ("2026-03-01 00:00", 2), ("2026-06-01 00:00", 3)],
            id="before the first date",
        ),
        pytest.param(
            DATED, "2026-03-01", "2026-05-01", [("2026-03-01 00:00", 2)], id="on the date itself"
        ),
        pytest.param(
            DATED, "2026-02-28T23:59:59", "2026-03-01", [("", 1)], id="the end is exclusive"
        ),
        pytest.param(
            PEAK,
            "2026-11-21T02:00",
            "2026-11-22T01:00",
            [("2026-11-21 01:00", 9), ("2026-11-21 04:00", 2)],
            id="within the hours",
        ),
        pytest.param(
            PEAK,
            "2026-11-21T00:30",
            "2026-11-21T04:01",
            [("2026-11-20 04:00", 2), ("2026-11-21 01:00", 9), ("2026-11-21 04:00", 2)],
            id="before the hours",
        ),
        pytest.param(
            NIGHT,
            "2026-11-21T23:00",
            "2026-11-22T23:00",
            [("2026-11-21 22:00", 3), ("2026-11-22 06:00", 5), ("2026-11-22 22:00", 3)],
            id="hours past midnight, evening",
        ),
        pytest.param(
            NIGHT,
            "2026-11-21T05:00",
            "2026-11-21T21:00",
            [("2026-11-20 22:00", 3), ("2026-11-21 06:00", 5)],
            id="hours past midnight, morning",
        ),
        pytest.param(
            model(Tariff(lines=line(4), starts_on=date(2027, 1, 1))),
            "2026-11-21",
            "2027-02-01",
            [("", 4)],
            id="the first applies when none is active",
        ),
        pytest.param(
            model(
                Tariff(lines=line(1)),
                Tariff(lines=line(1), starts_on=date(2026, 3, 1)),
                Tariff(lines=line(2), starts_on=date(2026, 6, 1)),
            ),
            "2026-04-01",
            "2026-07-01",
            [("", 1), ("2026-06-01 00:00", 2)],
            id="a date without a change is none",
        ),
    ],
)
def test_each_sheet_says_since_when_it_applies(
    priced: PricedModel, at: str, until: str, sheets: list[tuple[str, int]]
) -> None:
    assert told(priced, at, until) == sheets


def test_the_schedule_agrees_with_asking_at_every_minute() -> None:
    for priced in (PEAK, NIGHT, DATED):
        start, end = moment("2026-08-15T12:00"), moment("2026-08-18T12:00")
        sheets = schedule(priced, "kind/m", at=start, until=end)
        at = start
        while at < end:
            in_force = [s for s in sheets if s.valid_from.ToDatetime(UTC) <= at][-1]
            assert in_force == schedule(priced, "kind/m", at=at, until=at)[0]
            at += timedelta(minutes=1)


def test_prices_that_come_back_every_day_keep_their_version() -> None:
    sheets = schedule(PEAK, "kind/m", at=moment("2026-11-20"), until=moment("2026-11-23"))
    assert len({sheet.version for sheet in sheets}) == 2
    assert [sheet.version for sheet in sheets] == [sheet.version for sheet in sheets[:2]] * 3 + [
        sheets[0].version
    ]


def test_of_the_prices_for_a_service_tier_the_first_active_one_of_each_meter_applies() -> None:
    priced = model(
        Tariff(lines=line(10) + line(20, OUTPUT)),
        tiers=(
            Tariff(lines=line(6, tier="flex"), starts_on=date(2027, 1, 1)),
            Tariff(lines=line(5, tier="flex"), starts_on=date(2026, 1, 1)),
            Tariff(lines=line(4, tier="flex") + line(9, OUTPUT, "flex")),
            Tariff(lines=line(7, tier="priority")),
        ),
    )
    rates = {
        day: {
            (ln.meter, ln.service_tier): ln.nano_usd_per_million for ln in priced.lines(moment(day))
        }
        for day in ("2025-01-01", "2026-11-21", "2027-01-01")
    }
    rest = {
        (INPUT, ""): 10,
        (OUTPUT, ""): 20,
        (OUTPUT, "flex"): 9,
        (INPUT, "priority"): 7,
    }
    assert rates == {
        "2025-01-01": {**rest, (INPUT, "flex"): 4},
        "2026-11-21": {**rest, (INPUT, "flex"): 5},
        "2027-01-01": {**rest, (INPUT, "flex"): 6},
    }


def test_a_version_changes_with_any_figure_and_with_nothing_else() -> None:
    at = moment("2026-11-21")

    def version(priced: PricedModel, name: str = "kind/m") -> str:
        return schedule(priced, name, at=at, until=at)[0].version

    same = model(Tariff(lines=line(1)))
    dated = model(Tariff(lines=line(1), starts_on=date(2020, 1, 1)))
    assert version(same) == version(same, "kind/alias") == version(dated)
    others = [
        line(2),
        line(1, OUTPUT),
        line(1, tier="flex"),
        (Line(meter=INPUT, nano_usd_per_million=1, above_input_tokens=5),),
        line(1) + line(1, OUTPUT),
    ]
    assert len({version(model(Tariff(lines=lines))) for lines in others} | {version(same)}) == 6


def test_a_moment_in_another_zone_is_the_same_moment() -> None:
    catalogue = Catalogue(
        {"kind": Vendor(find={"m": PEAK}.get, listed={"m": PEAK})},
    )
    tokyo = datetime(2026, 11, 21, 11, tzinfo=timezone(timedelta(hours=9)))
    sheet = catalogue.price_for("kind", "m", tokyo)
    assert sheet is not None
    assert sheet.rates[0].nano_usd_per_million == 9


def test_a_catalogue_lists_one_name_a_model_and_prices_any_that_matches() -> None:
    catalogue = Catalogue(
        {
            "b": Vendor(find={"m": PEAK, "alias": PEAK}.get, listed={"m": PEAK}),
            "a": Vendor(find={"x/y": DATED}.get, listed={"x/y": DATED}),
        }
    )
    at = moment("2026-11-21")
    assert catalogue.models == ["a/x/y", "b/m"]
    facts = catalogue.facts("b/alias")
    assert facts is not None
    assert (facts.model, facts.name, list(facts.sources)) == ("b/alias", "M", ["source-1"])
    assert catalogue.facts("b/other") is None
    asked = catalogue.prices("b/alias", at=at, until=at + DAY)
    assert [sheet.model for sheet in asked] == ["b/alias"] * 3
    assert catalogue.prices("a/x/y", at=at, until=at)
    for unknown in ("b/other", "c/m", "b/", "b", ""):
        assert catalogue.prices(unknown, at=at, until=at) == []
    assert catalogue.price_for("a", "z", at) is None
