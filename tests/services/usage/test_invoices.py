"""Invoices: exact to the nano, rounded once, frozen, numbered without gaps, corrected by notes."""

import asyncio
import json
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import invoice_service_pb2
from onegate.usage.v1.invoice_pb2 import (
    Invoice,
    InvoiceCredit,
    InvoiceParty,
    InvoiceScope,
    InvoiceTerms,
)
from runtime.errors import GatewayError
from services.usage.invoices import documents, invoice_html, invoice_page, invoice_pdf
from services.usage.invoices.documents import Late, Line, Used, checked, totals
from services.usage.invoices.invoice_store import InvoiceStore
from tests.services.usage.books import Books, books_on

MONTHS = [datetime(2026, month, 1, tzinfo=UTC) for month in range(5, 12)]
NASTY = "<script>alert(1)</script> & \"Łódź\" 'Ευρώπη' 東京 \U0001f600"


def terms_of(
    first: datetime = MONTHS[0], before: datetime = MONTHS[1], **fields: Any
) -> InvoiceTerms:
    scope = {name: fields.pop(name) for name in ("project_id", "customer") if name in fields}
    made = InvoiceTerms(
        scope=InvoiceScope(organization_id="org_1", **scope),
        seller=InvoiceParty(name="Seller", address=["Street 1"], payment=["IBAN 1"]),
        buyer=InvoiceParty(name=NASTY, tax_id="X1", email="a@b.c"),
        **fields,
    )
    made.scope.started_from.FromDatetime(first)
    made.scope.started_before.FromDatetime(before)
    return checked(made)


def line(amount: int, name: str = "openai/gpt-4o") -> Line:
    return Line(
        name=name,
        calls=1,
        input_tokens=1_000,
        cached_input_tokens=0,
        output_tokens=5,
        amount_nano_usd=amount,
    )


def used_of(amount: int) -> Used:
    return Used(lines=[line(amount)])


AMOUNTS = st.integers(0, 10**16)
PERCENTS = st.decimals(0, 100, places=4, allow_nan=False).map(str)


@given(
    st.lists(AMOUNTS, max_size=6),
    PERCENTS,
    PERCENTS,
    st.sampled_from(["USD", "EUR", "JPY", "KWD"]),
    st.decimals("0.000001", 20_000, places=6).map(str),
)
def test_a_total_is_the_ledger_s_sum_rounded_once(
    amounts: list[int], margin: str, tax: str, currency: str, rate: str
) -> None:
    rate = "1" if currency == "USD" else rate
    terms = terms_of(margin_percent=margin, tax_percent=tax, currency=currency, exchange_rate=rate)
    used = Used(lines=[line(amount) for amount in amounts])
    made = documents.document(terms, used, number="INV-1", issued_at=MONTHS[1])
    sums = made["totals"]
    exact = Fraction(sum(amounts), 10**9) * (1 + Fraction(margin) / 100)
    exact *= Fraction(rate) * (1 + Fraction(tax) / 100)
    total = Fraction(sums["total"])
    coin = Fraction(1, 10 ** documents.places_of(currency))
    assert sum(one["amount_nano_usd"] for one in made["lines"]) == sum(amounts)
    assert sums["usage_nano_usd"] == sum(amounts)
    assert total % coin == 0
    assert abs(total - exact) <= coin / 2
    # What stands on the page adds up without a rest.
    assert Fraction(sums["net"]) + Fraction(sums["tax"]) + Fraction(sums["rounding"]) == total
    assert Fraction(sums["net"]) + Fraction(sums["tax"]) == exact


def test_half_a_cent_is_rounded_up() -> None:
    assert totals(terms_of(), used_of(5_000_000)).total == Decimal("0.01")
    assert totals(terms_of(), used_of(4_999_999)).total == Decimal("0.00")
    assert totals(terms_of(), used_of(4_999_999)).rounding == Decimal("-0.004999999")


def test_credits_and_a_margin_change_the_net() -> None:
    credit = InvoiceCredit(description="Goodwill", amount_nano_usd=10**9)
    sums = totals(terms_of(margin_percent="10", credits=[credit]), used_of(20 * 10**9))
    found = (sums.margin_usd, sums.credits_usd, sums.total)
    assert found == (Decimal(2), Decimal(1), Decimal("21.00"))
    with pytest.raises(GatewayError, match="more than the invoice"):
        totals(terms_of(credits=[credit]), used_of(10**9 - 1))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"currency": "euro", "exchange_rate": "1"}, "currency"),
        ({"currency": "EUR"}, "exchange_rate"),
        ({"currency": "EUR", "exchange_rate": "0"}, "exchange_rate"),
        ({"currency": "EUR", "exchange_rate": "1e5"}, "exchange_rate"),
        ({"currency": "USD", "exchange_rate": "2"}, "exchange_rate"),
        ({"margin_percent": "-101"}, "margin_percent"),
        ({"margin_percent": "NaN"}, "margin_percent"),
        ({"tax_percent": "101"}, "tax_percent"),
        ({"due_days": -1}, "due_days"),
        ({"lines_by": 99}, "lines_by"),
        ({"issuer": "A B"}, "issuer"),
        ({"number_prefix": "a b"}, "number_prefix"),
        ({"notes": ["a\nb"]}, "notes"),
        ({"notes": ["a"] * 51}, "notes"),
        ({"credits": [InvoiceCredit()]}, "credits"),
        ({"credits": [InvoiceCredit(amount_nano_usd=1)] * 51}, "credits"),
        ({"first": MONTHS[1]}, "scope.started_before"),
        ({"project_id": "p" * 300}, "scope"),
    ],
)
def test_terms_that_make_no_sense_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(GatewayError) as refused:
        terms_of(**fields)
    assert (refused.value.reason, refused.value.param) == (
        error_pb2.ERROR_REASON_INVALID_REQUEST,
        param,
    )


def test_terms_need_an_organisation_a_period_and_names() -> None:
    for change in ("organization_id", "started_from"):
        terms = terms_of()
        terms.scope.ClearField(change)
        with pytest.raises(GatewayError, match="scope"):
            checked(terms)
    for party in ("seller", "buyer"):
        terms = terms_of()
        getattr(terms, party).name = " "
        with pytest.raises(GatewayError, match=party):
            checked(terms)
    terms = terms_of()
    terms.buyer.address.extend(["a"] * 13)
    with pytest.raises(GatewayError, match="at most 12 lines"):
        checked(terms)


def test_a_total_beyond_all_reason_is_refused() -> None:
    with pytest.raises(GatewayError, match="absurd"):
        documents.minor_of(Decimal(10) ** 20, "USD")


def test_a_document_that_was_changed_is_not_shown() -> None:
    raw, sha256 = documents.frozen({"total": "1.00"})
    assert documents.thawed(raw, sha256) == {"total": "1.00"}
    with pytest.raises(GatewayError, match="hash differs"):
        documents.thawed(raw.replace(b"1", b"2"), sha256)


def sample(count: int, **fields: Any) -> invoice_page.Page:
    used = Used(
        lines=[line(10**12 // (place + 1), f"vendor/model-{place}") for place in range(count)],
        late=[Late(issuer="default", number="INV-0", amount_nano_usd=5)],
    )
    made = documents.document(
        terms_of(due_days=14, **fields), used, number="INV-1", issued_at=MONTHS[1]
    )
    return invoice_page.page(made, "ab" * 32)


def test_html_shows_names_as_text_and_loads_nothing() -> None:
    made = invoice_html.html(sample(3, notes=[NASTY], tax_percent="19", tax_name="<b>"))
    assert "<script" not in made
    assert "&lt;script&gt;" in made
    assert "<b>" not in made
    assert "http://" not in made
    assert "https://" not in made
    assert "1,000.00" in made


def test_a_page_says_the_period_as_people_do() -> None:
    day = timedelta(days=1)
    facts = [
        dict(sample(1, first=first, before=before).facts)["Period"]
        for first, before in (
            (MONTHS[0], MONTHS[1]),
            (MONTHS[0], MONTHS[0] + day),
            (MONTHS[0], MONTHS[0] + 7 * day),
            (MONTHS[0], MONTHS[0] + day / 2),
        )
    ]
    assert facts == [
        "May 2026",
        "1 May 2026",
        "1 May 2026 \N{EN DASH} 7 May 2026",
        "2026-05-01 00:00 to 2026-05-01 12:00 UTC",
    ]


@pytest.mark.parametrize(("count", "pages"), [(0, 1), (5, 1), (300, 9)])
def test_a_pdf_has_a_page_for_each_screenful_of_lines(count: int, pages: int) -> None:
    page = sample(count, notes=["n" * 400, "word " * 90], margin_percent="5", tax_percent="7")
    made = invoice_pdf.pdf(page, issued_at="2026-06-01T00:00:00Z")
    assert made.pdf.startswith(b"%PDF-")
    assert made.pdf.count(b"/Type /Page\n") in (pages, pages + 1)
    assert made.pdf == invoice_pdf.pdf(page, issued_at="2026-06-01T00:00:00Z").pdf
    assert set(made.missing) == set("東京")


def test_a_pdf_takes_any_name(tmp_path: Path) -> None:
    for name in ("x" * 500, "\u202e\u0301\ud7ff", "ﷺ\U0010ffff", "\u200d"):
        terms = terms_of()
        terms.buyer.name = name
        made = documents.document(terms, Used(lines=[line(1, name)]), number="", issued_at=None)
        assert invoice_pdf.pdf(invoice_page.page(made, ""), issued_at=None).pdf
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    with pytest.raises(invoice_pdf.FontError, match="broken"):
        invoice_pdf.pdf(sample(1), issued_at=None, further_font=broken)
    regular = Path(invoice_pdf.__file__).parent / "fonts" / "DejaVuSans.ttf"
    whole = regular.read_bytes()
    for damaged in (whole[:1000], whole[: len(whole) // 10], whole[:40] + bytes(200) + whole[240:]):
        broken.write_bytes(damaged)
        with pytest.raises(invoice_pdf.FontError, match="no font that can be used"):
            invoice_pdf.pdf(sample(1), issued_at=None, further_font=broken)
    assert invoice_pdf.pdf(sample(1), issued_at=None, further_font=regular).missing


class Desk:
    """An invoice store beside a ledger."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.store = InvoiceStore(books.database, books.now_us)
        self.number = 0

    async def spend(self, at: datetime, cost: int, **fields: Any) -> None:
        self.number += 1
        one = self.books.record(self.number, cost, **fields)
        one.started_at.FromDatetime(at)
        await self.books.store.record([one], now_us=self.books.now_us())

    async def issue(self, request_id: str, **fields: Any) -> Invoice:
        return await self.store.issue(terms_of(**fields), request_id)

    async def credit(self, number: str, request_id: str, amount: str = "") -> Invoice:
        request = invoice_service_pb2.CreditInvoiceRequest(
            number=number, reason="wrong", net_amount=amount, request_id=request_id
        )
        return await self.store.credit(request)


async def desk_on(books: Books) -> Desk:
    made = Desk(books)
    await made.store.migrate(now=books.clock.now())
    return made


def content(invoice: Invoice) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(invoice.document)
    return found


@pytest.mark.anyio
async def test_an_invoice_bills_its_scope_and_its_period_to_the_nano(dsn: str) -> None:
    async with books_on(dsn) as books:
        desk = await desk_on(books)
        await desk.spend(MONTHS[0], 10**9 + 1, model="a")
        await desk.spend(MONTHS[1] - timedelta(microseconds=1), 7, model="b")
        await desk.spend(MONTHS[1], 10**12, model="a")
        await desk.spend(MONTHS[0], 10**12, model="a", organization_id="org_2")
        await desk.spend(MONTHS[0], 5, model="a", customer="acme")
        draft = await desk.store.draft(terms_of())
        assert (draft.number, draft.usage_nano_usd) == ("", 10**9 + 13)
        made = await desk.issue("one")
        assert (made.number, made.usage_nano_usd, made.total_minor) == (
            "INV-000001",
            10**9 + 13,
            100,
        )
        lines = [(one["name"], one["amount_nano_usd"]) for one in content(made)["lines"]]
        assert lines == [("a", 10**9 + 6), ("b", 7)]
        assert await desk.store.get("default", "INV-000001") == made
        by_day = await desk.store.draft(terms_of(first=MONTHS[1], before=MONTHS[2], lines_by=5))
        assert [one["name"] for one in content(by_day)["lines"]] == ["2026-06-01"]


@pytest.mark.anyio
async def test_numbers_have_no_gap_however_many_ask_at_once(dsn: str) -> None:
    async with books_on(dsn) as books:
        desk = await desk_on(books)

        async def one(place: int) -> str:
            try:
                made = await desk.issue(f"r{place}", customer=f"c{place % 8}")
            except GatewayError as refused:
                return error_pb2.ErrorReason.Name(refused.reason)
            return made.number

        answers = sorted(await asyncio.gather(*map(one, range(16))))
        assert answers[8:] == [f"INV-{place:06d}" for place in range(1, 9)]
        assert set(answers[:8]) == {"ERROR_REASON_CONFLICT"}


@pytest.mark.anyio
async def test_the_same_wish_is_the_same_invoice(dsn: str) -> None:
    async with books_on(dsn) as books:
        desk = await desk_on(books)
        made = await desk.issue("one")
        assert await desk.issue("one") == made
        with pytest.raises(GatewayError, match="Something else was asked") as refused:
            await desk.issue("one", first=MONTHS[1], before=MONTHS[2])
        assert refused.value.reason == error_pb2.ERROR_REASON_IDEMPOTENCY_MISMATCH
        for bad in ("", "x" * 65, "ä"):
            with pytest.raises(GatewayError, match="request_id"):
                await desk.issue(bad)


@pytest.mark.anyio
async def test_no_usage_is_on_two_invoices(dsn: str) -> None:
    async with books_on(dsn) as books:
        desk = await desk_on(books)
        await desk.issue("a", project_id="p1")
        await desk.issue("b", project_id="p2")
        clashes: list[dict[str, Any]] = [{}, {"project_id": "p1"}, {"customer": "acme"}]
        for clash in clashes:
            with pytest.raises(GatewayError, match="same usage"):
                await desk.store.draft(terms_of(**clash))
        with pytest.raises(GatewayError, match="lies ahead"):
            await desk.issue("c", first=MONTHS[6], before=MONTHS[6] + timedelta(days=40))


@pytest.mark.anyio
async def test_a_credit_note_refers_to_its_invoice_and_frees_the_period(dsn: str) -> None:
    async with books_on(dsn) as books:
        desk = await desk_on(books)
        await desk.spend(MONTHS[0], 10 * 10**9)
        made = await desk.issue("a", tax_percent="19", tax_name="VAT")
        note = await desk.credit(made.number, "n")
        assert await desk.credit(made.number, "n") == note
        assert (note.number, note.credits_number, note.total_minor) == (
            "CN-000001",
            made.number,
            -1190,
        )
        assert content(note)["credits_invoice"]["sha256"] == made.sha256
        assert (await desk.store.get("default", made.number)).credited
        with pytest.raises(GatewayError, match="credited in whole already"):
            await desk.credit(made.number, "m")
        with pytest.raises(GatewayError, match="is a credit note"):
            await desk.credit(note.number, "o")
        with pytest.raises(GatewayError, match="There is no invoice"):
            await desk.credit("INV-9", "p")
        again = await desk.issue("b")
        assert (again.number, again.usage_nano_usd) == ("INV-000002", 10 * 10**9)
        listed = await desk.store.list("", "org_1", None, 10)
        assert {one.number for one in listed} == {"INV-000001", "INV-000002", "CN-000001"}
        assert not any(one.document for one in listed)
        page = invoice_page.page(content(note), note.sha256)
        assert page.title == "Credit note"
        assert b"%PDF" in invoice_pdf.pdf(page, issued_at=content(note)["issued_at"]).pdf
        assert "wrong" in invoice_html.html(page)


@pytest.mark.anyio
async def test_parts_are_credited_up_to_the_whole(dsn: str) -> None:
    async with books_on(dsn) as books:
        desk = await desk_on(books)
        await desk.spend(MONTHS[0], 10 * 10**9)
        made = await desk.issue("a", tax_percent="10")
        part = await desk.credit(made.number, "n", "4")
        assert part.total_minor == -440
        for amount in ("6.01", "0", "-1"):
            with pytest.raises(GatewayError, match="net_amount"):
                await desk.credit(made.number, f"x{amount}", amount)
        with pytest.raises(GatewayError, match="credit the"):
            await desk.credit(made.number, "w")
        assert (await desk.credit(made.number, "rest", "6")).total_minor == -660
        # The usage stays billed: only a whole credit frees it.
        with pytest.raises(GatewayError, match="same usage"):
            await desk.issue("b")


@pytest.mark.anyio
async def test_a_frozen_document_that_was_changed_is_refused(tmp_path: Path) -> None:
    async with books_on(f"sqlite://{tmp_path}/books.db") as books:
        desk = await desk_on(books)
        made = await desk.issue("a")
        await books.database.write(
            lambda c: c.execute(text("UPDATE invoices SET document = CAST('{}' AS BLOB)"))
        )
        with pytest.raises(GatewayError, match="hash differs"):
            await desk.store.get("default", made.number)


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(4))
async def test_all_invoices_together_are_what_the_ledger_says(dsn: str, seed: int) -> None:
    """Usage comes on time and late, invoices are issued and credited, in any order."""
    chance = random.Random(seed)
    async with books_on(dsn) as books:
        desk = await desk_on(books)
        standing: dict[str, Invoice] = {}
        spent = [0] * (len(MONTHS) - 1)
        issued = 0
        for step in range(60):
            month = chance.randrange(len(spent))
            if chance.random() < 0.6:
                cost = chance.randrange(10**11)
                at = MONTHS[month] + timedelta(seconds=chance.randrange(27 * 86_400))
                await desk.spend(at, cost)
                spent[month] += cost
            elif chance.random() < 0.7 and issued < len(spent):
                made = await desk.issue(f"i{step}", first=MONTHS[issued], before=MONTHS[issued + 1])
                standing[made.number] = made
                issued += 1
            elif standing:
                # The last one that stands: what came late may be on it.
                last = max(standing)
                await desk.credit(last, f"c{step}")
                del standing[last]
                issued -= 1
        while issued < len(spent):
            made = await desk.issue(f"z{issued}", first=MONTHS[issued], before=MONTHS[issued + 1])
            standing[made.number] = made
            issued += 1
        total = sum(one.usage_nano_usd for one in standing.values())
        # Only what the last month gained after its own invoice is not billed yet.
        after = await desk.store.draft(terms_of(first=MONTHS[-1], before=MONTHS[-1] + timedelta(9)))
        assert total + after.usage_nano_usd == sum(spent)
        with pytest.raises(GatewayError):
            await desk.store.get("default", "INV-999999")


@pytest.mark.anyio
async def test_an_invoice_stays_while_a_later_one_bills_what_came_late(dsn: str) -> None:
    async with books_on(dsn) as books:
        desk = await desk_on(books)
        first = await desk.issue("a")
        await desk.spend(MONTHS[0], 3)
        second = await desk.issue("b", first=MONTHS[1], before=MONTHS[2])
        money = {"amount_nano_usd": 3, "charged_nano_usd": 3}
        late = [{"issuer": "default", "number": first.number, **money}]
        assert content(second)["late"] == late
        with pytest.raises(GatewayError, match=f"credit {second.number} first"):
            await desk.credit(first.number, "c")
        await desk.credit(second.number, "d")
        await desk.credit(first.number, "e")
        assert (await desk.issue("f")).usage_nano_usd == 3
