"""Who spends far more than usual is told of once; who is small, new or merely busy never is."""

import asyncio
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onegate.usage.v1 import alert_service_pb2 as pb
from runtime.config import AlertSettings, ConfigError, load
from runtime.sql import unix_micros
from services.usage.alerts import messages
from services.usage.alerts.alert_sender import Mail
from services.usage.alerts.rate_store import RateStore
from services.usage.alerts.rate_watch import ROUND_S, RateWatch
from services.usage.alerts.rates import (
    Rule,
    Subject,
    floors_of,
    judge,
    narrowest,
    subjects_of,
)
from services.usage.reports.rollup_store import Rollups
from services.usage.reports.spans import DAY_US, HOUR_US
from tests.services.usage.books import Books, books_on
from tests.services.usage.records import NOON, SteppedClock, record
from tests.services.usage.test_alerts import hook, mail_server, outbox_on, receiver, sender

START_US = unix_micros(NOON)
USD = 10**9
RULE = Rule(factor=3.0, floor_nano_usd=10 * USD, days_min=7)


def each_day(dollars: list[float], step_us: int = DAY_US) -> dict[int, int]:
    """What was spent in the same hour of the days before, the latest first."""
    return {START_US - (n + 1) * step_us: int(d * USD) for n, d in enumerate(dollars)}


STEADY = [20.0, 21, 19, 20, 22, 18, 20, 20, 21, 19]


@pytest.mark.parametrize(
    ("spent", "history", "unit_us", "told"),
    [
        # Three times the median, and not less.
        (60, each_day(STEADY), HOUR_US, False),
        (61, each_day(STEADY), HOUR_US, True),
        # Nobody is interested in small sums.
        (10, each_day([0.1] * 20), HOUR_US, False),
        (11, each_day([0.1] * 20), HOUR_US, True),
        # Nothing is known of somebody new.
        (500, {}, HOUR_US, False),
        (500, each_day([20.0] * 6), HOUR_US, False),
        (500, each_day([20.0] * 7), HOUR_US, True),
        # What varies widely may be high.
        (170, each_day([10.0, 100] * 10), HOUR_US, False),
        (600, each_day([10.0, 100] * 10), HOUR_US, True),
        # One wild hour does not hide the next one.
        (100, each_day([900.0, *STEADY]), HOUR_US, True),
        # The hour of the week counts where weeks are known: Saturdays are for the big job.
        (100, each_day([100.0, *[1.0] * 6] * 5 + [100.0]), HOUR_US, True),
        (100, each_day([*[1.0] * 6, 100.0] * 5), HOUR_US, False),
        # Who works now and then is measured by those times.
        (100, each_day([0.0, 0, 0, 100] * 7), HOUR_US, False),
        (400, each_day([0.0, 0, 0, 100] * 7), HOUR_US, True),
        (400, each_day([0.0, 0, 0, 0, 0, 0, 0, 100]), HOUR_US, False),
        # Days.
        (61, each_day(STEADY), DAY_US, True),
        (59, each_day(STEADY), DAY_US, False),
    ],
)
def test_whoever_spends_far_more_than_usual_is_told_of(
    spent: int, history: Mapping[int, int], unit_us: int, told: bool
) -> None:
    assert (judge(spent * USD, history, START_US, unit_us, RULE) is not None) is told


amounts = st.integers(0, 10**12)
histories = st.lists(amounts, max_size=60).map(
    lambda some: {START_US - (n + 1) * DAY_US: one for n, one in enumerate(some)}
)


@given(amounts, histories, st.sampled_from([HOUR_US, DAY_US]))
def test_a_verdict_holds_for_everything_dearer_and_for_nothing_usual(
    spent: int, history: dict[int, int], unit_us: int
) -> None:
    found = judge(spent, history, START_US, unit_us, RULE)
    if found is None:
        assert judge(spent // 2, history, START_US, unit_us, RULE) is None
        return
    assert spent > RULE.floor_nano_usd
    assert spent > 3 * found.usual_nano_usd
    assert judge(spent + 1, history, START_US, unit_us, RULE) == found
    assert judge(found.limit_nano_usd - 1, history, START_US, unit_us, RULE) is None
    assert len([one for one in history.values() if one]) > 0
    # What is still to come changes nothing.
    later = {**history, START_US: 10**15, START_US + DAY_US: 10**15}
    assert judge(spent, later, START_US, unit_us, RULE) == found


KEY = Subject(organization_id="o", project_id="p", key_id="k")


def test_keys_add_up_to_projects_and_organisations() -> None:
    other = Subject(organization_id="o", project_id="q", key_id="l")
    project, whole = KEY.wider
    assert subjects_of({KEY: 3, other: 4}) == {
        KEY: 3,
        other: 4,
        project: 3,
        other.wider[0]: 4,
        whole: 7,
    }


def test_who_is_inside_accounts_for_the_whole() -> None:
    project, whole = KEY.wider
    assert narrowest({KEY: 10, project: 20, whole: 21}) == [KEY]
    assert narrowest({KEY: 10, project: 21, whole: 22}) == [KEY, project]
    assert narrowest({project: 10, whole: 25}) == [project, whole]


def test_the_nearest_floor_holds() -> None:
    rule = Rule(floor_nano_usd=1, floors=floors_of(["p=5", "k=off"]))
    assert rule.floor_of(KEY.ids) is None
    assert rule.floor_of(KEY.wider[0].ids) == 5 * USD
    assert rule.floor_of(KEY.wider[1].ids) == 1
    for wrong in ("p", "p=", "=5", "p=-1", "p=x"):
        with pytest.raises(ValueError, match="must look like"):
            floors_of([wrong])
        with pytest.raises(ConfigError, match="must look like"):
            load(None, {}, {"alerts.spend_rate_floors": [wrong]})


async def spend(books: Books, number: int, hours_ago: float, dollars: float, **who: str) -> None:
    one = record(number, cost_nano_usd=int(dollars * USD), organization_id="org_1", **who)
    moment = books.clock.now() - timedelta(hours=hours_ago)
    one.started_at.FromDatetime(moment)
    await books.store.record([one], now_us=books.now_us())


async def history_of(books: Books, dollars: float) -> None:
    """A key that spent as much in each of twelve days at this hour."""
    for day in range(1, 13):
        await spend(books, day, 24 * day - 0.2, dollars, project_id="proj_1", key_id="key_1")
    await Rollups(books.database).finish(books.now_us())


def watch(books: Books, **settings: Any) -> RateWatch:
    given = {"webhook_url": "http://127.0.0.1/", "smtp_host": "127.0.0.1", **settings}
    rates = RateStore(books.database, books.now_us)
    return RateWatch(rates, AlertSettings(**given), books.clock)


@pytest.mark.anyio
async def test_a_runaway_key_is_told_of_once_by_webhook_and_mail(dsn: str) -> None:
    clock = SteppedClock()
    clock.passed_s = 1800
    async with (
        books_on(dsn, clock) as books,
        receiver() as web,
        mail_server() as (box, port),
    ):
        store = await outbox_on(books)
        await history_of(books, 20)
        settings = AlertSettings(
            smtp_host="127.0.0.1", smtp_port=port, smtp_security="none", mail_from="o@example.com"
        )
        # Two replicas: one has the turn.
        both = [watch(books, spend_rate_mail=("ops@example.com",)) for _ in range(2)]
        assert [await one.round() for one in both] == [[], []]
        await spend(books, 100, 0.1, 90, project_id="proj_1", key_id="key_1")
        clock.passed_s += ROUND_S
        told = await asyncio.gather(*(one.round() for one in both))
        assert sorted(map(len, told)) == [0, 2]
        for _ in range(3):
            clock.passed_s += ROUND_S
            assert await both[0].round() == []
        post = sender(store, books, hook(web.port), Mail(settings, None))
        await post.round()
        said = [json.loads(body) for _, body in web.got]
        assert {one["data"]["period"] for one in said} == {"hour", "day"}
        assert {one["type"] for one in said} == {messages.SPEND_RATE}
        hour = next(one["data"] for one in said if one["data"]["period"] == "hour")
        assert hour == {
            "organization_id": "org_1",
            "project_id": "proj_1",
            "key_id": "key_1",
            "period": "hour",
            "spent_nano_usd": 90 * USD,
            "usual_nano_usd": 20 * USD,
            "limit_nano_usd": 60 * USD,
            "samples": 12,
            "period_starts_us": START_US,
        }
        assert len(box.mails) == 2
        text = b"".join(
            mail.content or b"" for mail in box.mails if isinstance(mail.content, bytes)
        )
        assert b"key_1 spends more than usual" in text
        kept = await store.latest(pb.ALERT_STATE_SENT, 10)
        assert {one.target for one in kept} == {"webhook", "ops@example.com"}


@pytest.mark.anyio
async def test_it_is_told_again_when_it_is_twice_as_bad_or_a_day_later(dsn: str) -> None:
    clock = SteppedClock()
    clock.passed_s = 1800
    async with books_on(dsn, clock) as books:
        await outbox_on(books)
        await history_of(books, 20)
        one = watch(books)

        async def hours() -> int:
            clock.passed_s += ROUND_S
            return sum(spike.unit_us == HOUR_US for spike in await one.round())

        who = {"project_id": "proj_1", "key_id": "key_1"}
        await spend(books, 100, 0.1, 90, **who)
        assert await hours() == 1
        clock.passed_s += 3600
        await spend(books, 101, 0.1, 179, **who)
        assert await hours() == 0
        await spend(books, 102, 0.01, 2, **who)
        assert await hours() == 1
        clock.passed_s += 24 * 3600
        await Rollups(books.database).finish(books.now_us())
        await spend(books, 103, 0.1, 90, **who)
        assert await hours() == 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    "settings",
    [
        {"spend_rate_floors": ("proj_1=off",)},
        {"spend_rate_floors": ("key_1=off", "proj_1=91", "org_1=91")},
        {"spend_rate_floors": ("org_1=90",)},
        {"spend_rate_floor_usd": 90},
        {"spend_rate_factor": 5.0},
        {"spend_rate_days": 14},
    ],
)
async def test_whoever_is_left_alone_is_not_told_of(
    tmp_path: Any, settings: dict[str, Any]
) -> None:
    clock = SteppedClock()
    clock.passed_s = 1800
    async with books_on(f"sqlite://{tmp_path}/books.db", clock) as books:
        await outbox_on(books)
        await history_of(books, 20)
        await spend(books, 100, 0.1, 90, project_id="proj_1", key_id="key_1")
        # The organisation is watched beside the project, unless it is left alone as well.
        found = await watch(books, **settings).round()
        assert [one for one in found if one.subject.key_id or one.subject.project_id] == []
        clock.passed_s += ROUND_S
        assert await watch(books).round() != []


@pytest.mark.anyio
async def test_nobody_looks_where_nobody_is_told(tmp_path: Any) -> None:
    async with books_on(f"sqlite://{tmp_path}/books.db") as books:
        for off in ({"webhook_url": "", "smtp_host": ""}, {"spend_rate": False}):
            async with asyncio.timeout(5):
                await watch(books, **off).run()


def test_a_mail_says_who_and_how_much() -> None:
    subject, text = messages.mail_of(
        {
            "type": messages.SPEND_RATE,
            "data": {
                "organization_id": "org_1",
                "project_id": "",
                "key_id": "",
                "period": "day",
                "spent_nano_usd": 1234 * USD,
                "usual_nano_usd": 20 * USD,
                "limit_nano_usd": 60 * USD,
                "samples": 8,
            },
        }
    )
    assert subject == "onegate: org_1 spends more than usual"
    assert text == (
        "org_1 has spent 1,234.00 USD this day (UTC).\n\n"
        "Usual: 20.00 USD, up to 60.00 USD (of 8 like it).\n"
    )
