"""What payers are charged: agreements, credits, and prices worked out anew, to the nano."""

import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select

from onegate.common.v1 import error_pb2
from onegate.common.v1.token_usage_pb2 import TokenUsage
from onegate.usage.v1 import billing_service_pb2 as pb
from onegate.usage.v1 import budget_pb2, price_pb2, usage_record_pb2
from onegate.usage.v1.billing_pb2 import Agreement, BillingPayer, Credit
from onegate.usage.v1.invoice_pb2 import Invoice
from onegate.usage.v1.price_pb2 import PriceSheet, Rate
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.errors import GatewayError
from runtime.money import cost_nano_usd
from services.usage.billing.agreement_store import AgreementStore, Postings
from services.usage.billing.agreements import AgreementBook, checked
from services.usage.billing.billing_schema import CHARGES, DRAWS
from services.usage.billing.credit_store import CreditStore
from services.usage.billing.rerate_store import RerateStore
from services.usage.billing.rerating import price_name, rerated
from services.usage.ledger.charge_store import Charger
from services.usage.reports.queries import Selection
from services.usage.reports.report_store import Question, ReportStore
from services.usage.reports.rollup_schema import ADJUSTMENTS
from services.usage.reports.rollup_store import Rollups
from services.usage.store import SqlStore
from tests.services.usage.books import Books, books_on
from tests.services.usage.records import NOON
from tests.services.usage.test_invoices import MONTHS, Desk, content, desk_on, terms_of

ORG = BillingPayer(organization_id="org_1")
ACME = BillingPayer(organization_id="org_1", customer="acme")
HOUR = timedelta(hours=1)


def sheet(nano: int, model: str = "openai/m", start: datetime | None = None) -> PriceSheet:
    meters = (price_pb2.METER_INPUT_TOKENS, price_pb2.METER_OUTPUT_TOKENS)
    rates = [Rate(meter=meter, nano_usd_per_million=nano) for meter in meters]
    made = PriceSheet(model=model, version=f"test:{nano}", rates=rates, source="a test")
    if start is not None:
        made.valid_from.FromDatetime(start)
    return made


def agreed(percent: int | None = None, nano: int | None = None, **fields: Any) -> Agreement:
    made = Agreement(**{"payer": ORG, "model": "*", "source": "a contract", **fields})
    if percent is not None:
        made.markup_millipercent = percent * 1000
    if nano is not None:
        made.price.rates.extend(sheet(nano).rates)
    if not made.HasField("valid_from"):
        made.valid_from.FromDatetime(MONTHS[0] - HOUR)
    return made


def call(cost: int = 1_000, tokens: int = 7, **fields: Any) -> UsageRecord:
    made = UsageRecord(
        organization_id="org_1",
        project_id="p1",
        model="openai/m",
        cost_nano_usd=cost,
        tokens=TokenUsage(input_tokens=tokens),
        certainty=usage_record_pb2.CERTAINTY_REPORTED,
    )
    made.attribution.customer = fields.pop("customer", "")
    made.MergeFrom(UsageRecord(**fields))
    made.started_at.FromDatetime(MONTHS[0])
    return made


def book_of(*made: Agreement) -> AgreementBook:
    kept = [checked(one, 1_000_000) for one in made]
    for number, one in enumerate(kept):
        one.id = f"agr_{number}"
    return AgreementBook(kept, len(kept))


@given(st.integers(0, 10**15), st.integers(-100_000, 1_000_000))
def test_a_markup_is_exact_in_thousandths_of_a_percent_and_rounded_up_once(
    cost: int, millipercent: int
) -> None:
    one = agreed()
    one.markup_millipercent = millipercent
    found = book_of(one).charged(call(cost), cost)
    assert found is not None
    assert found.amount_nano_usd == ceil(cost * (1 + Fraction(millipercent, 100_000)))


MINE = BillingPayer(organization_id="org_1", project_id="p1")


@pytest.mark.parametrize(
    ("said", "which"),
    [
        ([agreed(1), agreed(2, payer=MINE), agreed(3, payer=ACME)], 2),
        ([agreed(1), agreed(2, model="openai/*"), agreed(3, model="openai/m")], 2),
        ([agreed(1), agreed(2, model="anthropic/*"), agreed(3, model="kind/priced")], 2),
        ([agreed(1, payer=ACME), agreed(nano=5, model="openai/m")], 0),
        ([agreed(1), agreed(2)], 1),
        ([agreed(1), agreed()], None),
        ([agreed(1, payer=BillingPayer(organization_id="org_2"))], None),
        ([agreed(1, payer=BillingPayer(organization_id="org_1", project_id="p2"))], None),
        ([agreed(1, payer=ACME), agreed(2)], 0),
    ],
)
def test_of_all_agreements_the_closest_applies(said: list[Agreement], which: int | None) -> None:
    found = book_of(*said).charged(call(customer="acme", price_model="kind/priced"), 1_000)
    assert (found and found.agreement_id) == (None if which is None else f"agr_{which}")


def test_an_agreement_applies_from_its_day_on_and_a_price_needs_known_tokens() -> None:
    later = agreed(1)
    later.valid_from.FromDatetime(MONTHS[0] + HOUR)
    assert book_of(later).charged(call(), 5) is None
    found = book_of(agreed(nano=3_000_000)).charged(call(tokens=7), 5)
    assert found is not None
    assert found.amount_nano_usd == 21
    unknown = call(certainty=usage_record_pb2.CERTAINTY_UNCERTAIN)
    assert book_of(agreed(nano=3_000_000)).charged(unknown, 5) is None
    assert book_of(agreed(100)).charged(unknown, 5) is not None


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        (agreed(1, payer=BillingPayer()), "payer.organization_id"),
        (agreed(1, payer=BillingPayer(organization_id="o", customer="x" * 257)), "payer"),
        (agreed(1, source=" "), "source"),
        (agreed(1, model="x" * 257), "model"),
        (agreed(-101), "markup_millipercent"),
        (agreed(1_001), "markup_millipercent"),
        (Agreement(payer=ORG, source="x", price=PriceSheet()), "model"),
        (Agreement(payer=ORG, source="x", price=sheet(1, start=NOON)), "price.valid_from"),
    ],
)
def test_an_agreement_that_makes_no_sense_is_refused(wrong: Agreement, param: str) -> None:
    with pytest.raises(GatewayError) as refused:
        checked(wrong, 1_000_000)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"price_model": "openai/m", "model": "mine/m"}, "openai/m"),
        ({"model": "mine/m", "price_version": "operator:openai/a:b:0123456789ab"}, "openai/a:b"),
        ({"model": "openai/m", "price_version": "genai-prices-1:openai/m:01"}, "openai/m"),
    ],
)
def test_a_call_is_priced_as_the_model_that_it_was_priced_as(
    fields: dict[str, Any], name: str
) -> None:
    assert price_name(UsageRecord(**fields)) == name


class Counter:
    """Everything that bills, on one database."""

    def __init__(self, books: Books, desk: Desk) -> None:
        self.books, self.desk = books, desk
        database = books.database
        self.agreements = AgreementStore(database, books.now_us)
        self.credits = CreditStore(database, books.now_us)
        self.rerates = RerateStore(database, books.ledger, self.agreements)
        self.reports, self.rollups = ReportStore(database), Rollups(database)
        books.store = SqlStore(database, Postings(Charger(books.ledger), self.agreements))
        self.prices: dict[str, list[PriceSheet]] = {}
        self.sent: list[UsageRecord] = []

    def sheets(self, model: str, _at: datetime, _until: datetime) -> Sequence[PriceSheet]:
        return self.prices.get(model, [])

    async def spend(self, at: datetime, cost: int, **fields: Any) -> UsageRecord:
        number = len(self.sent) + 1
        rest = {"model": "openai/m", "price_version": "test:1", **fields}
        tokens = TokenUsage(input_tokens=rest.pop("tokens", 10))
        one = self.books.record(number, cost, tokens=tokens, **rest)
        one.started_at.FromDatetime(at)
        self.sent.append(one)
        await self.books.store.record([one], now_us=self.books.now_us())
        return one

    async def rerate(self, **fields: Any) -> pb.RerateUsageResponse:
        """All batches, as the service does them; rows of one model summed up."""
        request = pb.RerateUsageRequest(**fields)
        request.started_from.FromDatetime(MONTHS[0])
        request.started_before.FromDatetime(NOON + 400 * 24 * HOUR)
        after, total = None, pb.RerateUsageResponse()
        while True:
            records, after = await self.rerates.records(request, after)
            batch = rerated(records, self.sheets)
            if request.dry_run:
                told = await self.rerates.look(batch.found)
            else:
                told = await self.rerates.keep(batch.found, billed=request.billed)
            told.left, told.unpriced = batch.left, batch.unpriced
            total.MergeFrom(told)
            if after is None:
                return total

    async def cost(self) -> int:
        """What reports say that everything cost."""
        (total,) = await self.reports.totals(Question(), rows_max=1)
        return total.sums["cost_nano_usd"]

    async def sum_of(self, column: Any) -> int:
        query = select(func.coalesce(func.sum(column), 0))
        return int(await self.books.database.read(lambda c: c.execute(query).scalar_one()))


@asynccontextmanager
async def counter_on(dsn: str) -> AsyncIterator[Counter]:
    async with books_on(dsn) as books:
        desk = await desk_on(books)
        yield Counter(books, desk)


@pytest.mark.anyio
async def test_prices_are_put_right_by_further_entries_and_only_once(dsn: str) -> None:
    async with counter_on(dsn) as made:
        await made.books.budget(10**6, subject="org_1", scope=budget_pb2.BUDGET_SCOPE_ORGANIZATION)
        first = await made.spend(NOON - 3 * HOUR, 100)
        await made.spend(NOON, 70)
        await made.spend(NOON, 5, price_version="")
        await made.spend(NOON, 6, certainty=usage_record_pb2.CERTAINTY_UNCERTAIN)
        await made.spend(NOON, 7, model="openai/unknown")
        await made.rollups.finish(made.books.now_us())
        made.prices["openai/m"] = [sheet(3_000_000), sheet(4_000_000, start=NOON - HOUR)]
        dry = await made.rerate(dry_run=True)
        (row,) = dry.rows
        assert (row.calls, row.cost_before_nano_usd, row.cost_after_nano_usd) == (2, 170, 70)
        assert (dry.left, dry.unpriced) == (2, 1)
        assert await made.cost() == 188
        assert await made.rerate() == dry
        assert await made.cost() == 88
        assert await made.sum_of(ADJUSTMENTS.c.amount_nano_usd) == -100
        assert (await made.books.stands("org_1"))[0] == 88
        assert list((await made.rerate()).rows) == []
        # There and back again are two more entries; the record itself never changes.
        made.prices["openai/m"] = [sheet(10_000_000)]
        await made.rerate()
        assert await made.cost() == 218
        made.prices["openai/m"] = [sheet(3_000_000), sheet(4_000_000, start=NOON - HOUR)]
        await made.rerate()
        assert (await made.cost(), (await made.books.stands("org_1"))[0]) == (88, 88)
        kept = await made.books.store.list_records(Selection(), after=None, count_max=10)
        assert first in kept
        await made.books.sound()


@pytest.mark.anyio
async def test_only_budgets_of_open_periods_follow_a_corrected_price(dsn: str) -> None:
    async with counter_on(dsn) as made:
        books = made.books
        month, day = budget_pb2.BUDGET_PERIOD_MONTH, budget_pb2.BUDGET_PERIOD_DAY
        await books.budget(10**6, period=day)
        await made.spend(NOON, 100)
        books.clock.passed_s += 24 * 3600
        # Opened later: what it takes in of the past is corrected with the past.
        await books.budget(10**6, period=month)
        await made.spend(NOON + 24 * HOUR, 100)
        made.prices["openai/m"] = [sheet(1_000_000)]
        await made.rerate()
        found = {
            (one.budget.period, one.period_starts_at.ToDatetime(UTC).day): one.spent_nano_usd
            for one in await books.balances()
        }
        assert found == {(month, 1): 20, (day, 22): 10}
        await books.sound()
        # A budget that is set afterwards counts what calls cost by then.
        await books.budget(
            10**6, subject="proj_1", scope=budget_pb2.BUDGET_SCOPE_PROJECT, period=month
        )
        await made.spend(NOON + 24 * HOUR, 3)
        (project,) = await books.balances("proj_1")
        assert project.spent_nano_usd == 23
        await books.sound()


@pytest.mark.anyio
async def test_calls_on_an_invoice_that_stands_are_left_unless_it_is_allowed(dsn: str) -> None:
    async with counter_on(dsn) as made:
        await made.spend(MONTHS[0], 100, customer="acme")
        first = await made.desk.issue("a", customer="acme")
        made.prices["openai/m"] = [sheet(1_000_000)]
        assert list((await made.rerate(dry_run=True)).invoices) == [first.number]
        with pytest.raises(GatewayError, match=f"{first.number} bills calls") as refused:
            await made.rerate()
        assert refused.value.reason == error_pb2.ERROR_REASON_CONFLICT
        assert await made.cost() == 100
        await made.rerate(billed=True)
        await made.spend(MONTHS[1], 500, customer="acme")
        second = await made.desk.issue("b", customer="acme", first=MONTHS[1], before=MONTHS[2])
        (late,) = content(second)["late"]
        assert (late["number"], late["amount_nano_usd"]) == (first.number, -90)
        await made.desk.credit(second.number, "c")
        await made.desk.credit(first.number, "d")
        assert (await made.desk.issue("e", customer="acme")).usage_nano_usd == 10


@pytest.mark.anyio
async def test_agreements_are_kept_dated_and_said_once(dsn: str) -> None:
    async with counter_on(dsn) as made:
        one, is_new = await made.agreements.set(agreed(25, payer=ACME))
        assert (one.id, is_new) == ("agr_1", True)
        assert await made.agreements.set(agreed(25, payer=ACME)) == (one, False)
        await made.spend(MONTHS[0], 1_001, customer="acme")
        await made.spend(MONTHS[0], 1_001)
        (await made.agreements.set(agreed(nano=7_000_000, payer=ACME, model="openai/m")))
        await made.spend(MONTHS[0], 1_001, customer="acme")
        assert await made.sum_of(CHARGES.c.cost_nano_usd) == 2_002
        assert await made.sum_of(CHARGES.c.margin_nano_usd) == 251 + (70 - 1_001)
        draft = content(await made.desk.store.draft(terms_of(margin_percent="10")))
        (line,) = draft["lines"]
        assert (line["amount_nano_usd"], line["charged_nano_usd"]) == (3_003, 3_003 + 251 - 931)
        # The margin of an invoice is for what no agreement covers.
        assert draft["totals"]["margin_usd"] == "0.0000001001"
        ended = await made.agreements.set(agreed(payer=ACME, model="openai/m"))
        assert ended[1]
        with pytest.raises(GatewayError, match="not in force"):
            await made.agreements.set(agreed(payer=ACME, model="openai/never"))
        numbers = [number for number, _ in await made.agreements.list("org_1", None, 10)]
        assert numbers == [3, 2, 1]
        assert await made.agreements.list("org_2", None, 10) == []


@pytest.mark.anyio
async def test_what_was_agreed_on_later_is_charged_after_a_rerating(dsn: str) -> None:
    async with counter_on(dsn) as made:
        await made.spend(MONTHS[0], 10)
        made.prices["openai/m"] = [sheet(1_000_000)]
        await made.agreements.set(agreed(50))
        (row,) = (await made.rerate()).rows
        assert (row.cost_after_nano_usd, row.charge_before_nano_usd) == (10, 10)
        assert row.charge_after_nano_usd == 15
        assert await made.sum_of(CHARGES.c.margin_nano_usd) == 5
        await made.agreements.set(agreed())
        await made.rerate()
        assert await made.sum_of(CHARGES.c.margin_nano_usd) == 0
        assert await made.sum_of(CHARGES.c.cost_nano_usd) == 0


def credit(amount: int, expires: datetime | None = None, payer: BillingPayer = ORG) -> Credit:
    made = Credit(payer=payer, description="Welcome", amount_nano_usd=amount)
    if expires is not None:
        made.expires_at.FromDatetime(expires)
    return made


@pytest.mark.anyio
async def test_credits_are_drawn_in_order_of_expiry_and_never_below_nothing(dsn: str) -> None:
    async with counter_on(dsn) as made:
        grant = made.credits.grant
        forever = await grant(credit(1_000), "a")
        late = await grant(credit(30, MONTHS[5]), "b")
        soon = await grant(credit(20, MONTHS[1], ACME), "c")
        await grant(credit(10_000, MONTHS[1] - HOUR), "d")
        await grant(credit(9, None, BillingPayer(organization_id="org_2")), "e")
        gone = await grant(credit(9, MONTHS[1]), "f")
        assert (await made.credits.revoke(gone.id)).HasField("revoked_at")
        assert await grant(credit(1_000), "a") == forever
        with pytest.raises(GatewayError, match="Something else"):
            await grant(credit(1_001), "a")
        with pytest.raises(GatewayError, match="no credit"):
            await made.credits.revoke("crd_99")
        await made.spend(MONTHS[0], 60, customer="acme")
        draft = await made.desk.store.draft(terms_of(customer="acme"))
        first = await made.desk.issue("i", customer="acme")
        for one in (draft, first):
            drawn = [(o["credit"], o["amount_nano_usd"]) for o in content(one)["credits"]]
            assert drawn == [(soon.id, 20), (late.id, 30), (forever.id, 10)]
            assert content(one)["totals"]["net"] == "0"
        left = {o.id: o.amount_nano_usd - o.drawn_nano_usd for o in await _credits(made)}
        assert (left[soon.id], left[late.id], left[forever.id]) == (0, 0, 990)
        await made.desk.credit(first.number, "n")
        assert {o.drawn_nano_usd for o in await _credits(made)} == {0}
        assert await made.sum_of(DRAWS.c.amount_nano_usd) == 0
        assert len(await made.credits.list("org_1", 3, 10)) == 2


async def _credits(made: Counter) -> list[Credit]:
    return [one for _, one in await made.credits.list("org_1", None, 100)]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        (credit(0), "amount_nano_usd"),
        (credit(10**18 + 1), "amount_nano_usd"),
        (Credit(payer=ORG, amount_nano_usd=1), "description"),
        (credit(1, payer=BillingPayer()), "payer.organization_id"),
    ],
)
@pytest.mark.anyio
async def test_a_credit_that_makes_no_sense_is_refused(wrong: Credit, param: str) -> None:
    store = CreditStore(None, lambda _: 0)  # type: ignore[arg-type]
    with pytest.raises(GatewayError) as refused:
        await store.grant(wrong, "a")
    assert refused.value.param == param


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(2))
async def test_invoices_are_the_ledger_and_the_charges_after_any_history(
    dsn: str, seed: int
) -> None:
    chosen = random.Random(seed)
    customers = ("", "acme", "zenith")
    async with counter_on(dsn) as made:
        made.prices = {"openai/m": [sheet(5_000_000)], "openai/n": [sheet(1_000_003)]}
        await made.books.budget(10**9, subject="org_1", scope=budget_pb2.BUDGET_SCOPE_ORGANIZATION)
        month = dict.fromkeys(customers[1:], 0)
        for wish in range(60):
            match chosen.choice(
                ["spend"] * 5 + ["agree", "rerate", "price", "issue", "grant", "roll"]
            ):
                case "spend":
                    model = chosen.choice(["openai/m", "openai/n"])
                    at = chosen.choice(MONTHS) + chosen.randrange(20) * HOUR
                    fields = {"model": model, "customer": chosen.choice(customers)}
                    await made.spend(
                        at, chosen.randrange(10**6), tokens=chosen.randrange(10**4), **fields
                    )
                case "agree":
                    payer = chosen.choice([ORG, ACME])
                    what = chosen.choice([{"percent": chosen.randrange(-50, 90)}, {"nano": 77_777}])
                    await made.agreements.set(
                        agreed(**what, payer=payer, model=chosen.choice(["*", "openai/m"]))
                    )
                case "price":
                    made.prices["openai/n"] = [sheet(chosen.randrange(10**7))]
                case "rerate":
                    await made.rerate(billed=True)
                case "issue":
                    customer = chosen.choice(customers[1:])
                    await _issue(made, customer, month)
                case "grant":
                    await made.credits.grant(credit(chosen.randrange(1, 10**6)), f"g{wish}")
                case _:
                    await made.rollups.finish(made.books.now_us())
        await made.rerate(billed=True)
        await _check_books(made)
        for customer in customers[1:]:
            while month[customer] < len(MONTHS) - 1:
                await _issue(made, customer, month)
            await _check_invoices(made, customer)


async def _issue(made: Counter, customer: str, month: dict[str, int]) -> None:
    place = month[customer]
    if place + 1 >= len(MONTHS):
        return
    span = {"first": MONTHS[place], "before": MONTHS[place + 1]}
    try:
        await made.desk.issue(
            f"{customer}{place}", customer=customer, margin_percent="12.5", tax_percent="19", **span
        )
    except GatewayError as refused:
        # Corrections of earlier months may be more than this month's usage.
        if "less than nothing" not in refused.message:
            raise
        more = {"customer": customer, "model": "openai/without-a-price", "tokens": 10**11}
        await made.spend(MONTHS[place], 10**9, **more)
        return
    month[customer] = place + 1


async def _check_books(made: Counter) -> None:
    """Reports, budget and charges say what the calls cost and are charged now."""
    book = await made.books.database.read(made.agreements.book)
    cost = margin = 0
    for one in made.sent:
        priced = made.prices.get(one.model)
        now = one.cost_nano_usd if priced is None else cost_nano_usd(priced[0], one.tokens)
        charged = book.charged(one, now)
        cost += now
        margin += 0 if charged is None else charged.amount_nano_usd - now
    assert await made.cost() == cost
    assert (await made.books.stands("org_1"))[0] == cost
    assert await made.sum_of(CHARGES.c.margin_nano_usd) == margin
    await made.books.sound()


async def _check_invoices(made: Counter, customer: str) -> None:
    """All invoices of a customer together are the ledger and the charges; each adds up."""
    found: list[Invoice] = [
        await made.desk.store.get("default", one.number)
        for one in await made.desk.store.list("default", "org_1", None, 100)
        if one.scope.customer == customer
    ]
    documents = [content(one)["totals"] for one in found]
    before = MONTHS[-1]
    mine = [o for o in made.sent if o.attribution.customer == customer]
    mine = [o for o in mine if o.started_at.ToDatetime(UTC) < before]
    ids = [one.attempt_id for one in mine]
    changed = select(func.coalesce(func.sum(ADJUSTMENTS.c.amount_nano_usd), 0)).where(
        ADJUSTMENTS.c.attempt_id.in_(ids)
    )
    margins = select(func.coalesce(func.sum(CHARGES.c.margin_nano_usd), 0)).where(
        CHARGES.c.attempt_id.in_(ids)
    )
    read = made.books.database.read
    cost = sum(o.cost_nano_usd for o in mine) + int(
        await read(lambda c: c.execute(changed).scalar_one())
    )
    margin = int(await read(lambda c: c.execute(margins).scalar_one()))
    assert sum(one["usage_nano_usd"] for one in documents) == cost
    assert sum(one["agreed_nano_usd"] for one in documents) == margin
    for one, sums in zip(found, documents, strict=True):
        made_of = json.loads(one.document)
        parts = (*made_of["lines"], *made_of["late"])
        assert sum(part["charged_nano_usd"] for part in parts) == sums["charged_nano_usd"]
        drawn = sum(part["amount_nano_usd"] for part in made_of["credits"])
        net = Fraction(sums["charged_nano_usd"] - drawn, 10**9) + Fraction(sums["margin_usd"])
        assert Fraction(sums["net"]) == net >= 0
        assert net + Fraction(sums["tax"]) + Fraction(sums["rounding"]) == Fraction(sums["total"])
    for credit_ in await _credits(made):
        assert 0 <= credit_.drawn_nano_usd <= credit_.amount_nano_usd
